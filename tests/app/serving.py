"""A page that is served in this process, with a tiny model, for the tests beside."""

import json
import os
import socket
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ssdd.app.compare import JPEG_LABEL, Models, Settings


@dataclass(frozen=True)
class Served:
    """A running page: its URL, the cache that it serves, a folder beside it, its models and events."""

    url: str
    cache: Path
    folder: Path
    models: Models
    page: Any

    def call(self, function: str, values: dict[str, Any]) -> str:
        """Trigger an event as a browser does, with values by control; return the last message of the answer."""
        index = next(i for i, fn in self.page.fns.items() if getattr(fn.fn, "__name__", "") == function)
        data = [values.get(control.elem_id) for control in self.page.fns[index].inputs]
        join = {"data": data, "fn_index": index, "session_hash": "test", "trigger_id": None}
        headers = {"content-type": "application/json"}
        request = urllib.request.Request(f"{self.url}gradio_api/queue/join", json.dumps(join).encode(), headers)
        urllib.request.urlopen(request, timeout=20).close()
        with urllib.request.urlopen(f"{self.url}gradio_api/queue/data?session_hash=test", timeout=60) as answer:
            for line in answer:
                if b"process_completed" in line:
                    return line.decode()
        raise AssertionError("the event did not end")


@contextmanager
def serve_page(model: Path, folder: Path) -> Iterator[Served]:
    """Serve a page with a model, JPEG and a folder of two pictures, without LPIPS."""
    from ssdd.app.server import Address, private_cache, serve

    photos = folder / "photos"
    photos.mkdir()
    for i in range(2):
        pixels = np.random.default_rng(i).integers(0, 255, (8, 12, 3)).astype(np.uint8)
        Image.fromarray(pixels).resize((192, 128), Image.Resampling.BICUBIC).save(photos / f"photo-{i}.png")
    with pytest.MonkeyPatch.context() as patch, private_cache() as cache:
        patch.setenv("TORCH_HOME", os.fspath(folder / "no-torch-home"))
        from ssdd.app.page import Options, build_page

        models = Models([str(model), "bicubic:8"])
        examples = sorted(photos.iterdir())
        options = Options(models, [model.name, JPEG_LABEL], examples, [photos], cache, Settings(), 1 << 20, 1 << 24, 20)
        page = build_page(options)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        with serve(page, Address(port=port), options.megabytes) as url:
            yield Served(url, cache, folder, models, page)
