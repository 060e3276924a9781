"""What the server of the page gives, and what it refuses: to programs that are no browser."""

import json
import os
import re
import signal
import socket
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio", reason="the page needs gradio: pip install 'ssdd[app]'")

from ssdd.app.server import LARGEST_REQUEST, Address
from ssdd.cli.main import Stopped
from tests.app.serving import Served, serve_page


@pytest.fixture(scope="module")
def served(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serve_page(tiny_model, tmp_path_factory.mktemp("server")) as served:
        yield served


def status(url: str, body: object = None) -> int:
    """Return the status of GET, or of POST with a body as JSON."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def test_nothing_of_the_disk_is_served(served: Served, tiny_model: Path) -> None:
    secret = served.folder / "secret.txt"
    secret.write_text("secret")
    paths = ["/etc/passwd", str(secret), str(tiny_model / "config.json"), str(Path("pyproject.toml").resolve())]
    paths += [f"{served.cache}/../{served.folder.name}/secret.txt", str(served.cache), f"{served.cache}/.."]
    for path in paths:
        for form in (f"file={path}", f"file/{path}", f"file={path.replace('/', '%2F')}"):
            assert status(f"{served.url}gradio_api/{form}") in (403, 404), form
    for path in ("static/../../../../etc/passwd", "assets/..%2f..%2f..%2fetc/passwd", "gradio_api/file=..%2f..%2fx"):
        assert status(served.url + path) in (403, 404), path


def test_the_server_fetches_nothing(served: Served) -> None:
    for form in ("file=http://127.0.0.1:1/x", "file=https%3A%2F%2Fexample.com/x", "proxy=https://example.com/x"):
        assert status(f"{served.url}gradio_api/{form}") == 403, form
    file = {"path": "http://127.0.0.1:1/x", "meta": {"_type": "gradio.FileData"}}
    join = {"data": [file], "fn_index": 0, "session_hash": "x"}
    for path in ("queue/join", "run/predict", "call/x", "api/x", "run/upload"):
        assert status(f"{served.url}gradio_api/{path}", join) == 403, path
    assert status(f"{served.url}gradio_api/queue/join", {"data": "x" * LARGEST_REQUEST}) == 413
    deep: Any = file
    for _ in range(900):
        deep = [deep]
    assert status(f"{served.url}gradio_api/queue/join", {**join, "data": deep}) == 403


def test_a_browser_cannot_name_a_file_or_a_model(served: Served, tiny_model: Path) -> None:
    """A path outside the cache is no upload, and a path, an id or a pickle is no model."""
    choices = {"models": ["bicubic:8"], "steps": 1, "seed": 0, "noise": 0, "across": 50, "down": 50, "zoom": 4}
    answer = served.call("on_load", choices)
    assert '"success":true' in answer.replace(" ", "")
    cached = re.findall(rf"{served.cache}/[\w/-]+/image\.png", answer)
    assert status(f"{served.url}gradio_api/file={cached[0]}") == 200
    file = {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}
    assert "error" in served.call("on_upload", {"upload": file, **choices})
    for name in (str(tiny_model), "stabilityai/sd-vae-ft-mse", "/tmp/model.pkl", "x.py:Code"):
        choices["models"] = [name]
        said = served.call("on_load", choices)
        assert "error" in said, "a model that the page was not started with is taken"
        assert name not in served.models._loaded
    for many in ({"steps": 1000}, {"noise": 1e9}, {"seed": -1}, {"zoom": 0}):
        assert "error" in served.call("on_load", {**choices, "models": ["bicubic:8"], **many}), many


def test_only_an_upload_is_read_and_deleted(served: Served) -> None:
    """A visitor deletes results of the page, which others look at."""
    choices = {"models": ["bicubic:8"], "steps": 1, "seed": 0, "noise": 0, "across": 50, "down": 50, "zoom": 4}
    answer = served.call("on_load", choices)
    shown = Path(re.findall(rf"{served.cache}/[\w/-]+/image\.png", answer)[0])
    file = {"path": str(shown), "meta": {"_type": "gradio.FileData"}}
    assert "expected a picture that was dropped here" in served.call("on_upload", {"upload": file, **choices})
    assert shown.is_file()
    (content,) = (path.read_bytes() for path in served.folder.glob("photos/photo-0.png"))
    form = (
        b'--x\r\ncontent-disposition: form-data; name="files"; filename="mine.png"\r\n\r\n' + content + b"\r\n--x--\r\n"
    )
    request = urllib.request.Request(
        f"{served.url}gradio_api/upload", form, {"content-type": "multipart/form-data; boundary=x"}
    )
    with urllib.request.urlopen(request, timeout=20) as said:
        (uploaded,) = json.load(said)
    assert Path(uploaded).is_file()
    file = {"path": uploaded, "meta": {"_type": "gradio.FileData"}}
    assert '"success":true' in served.call("on_upload", {"upload": file, **choices}).replace(" ", "")
    assert not Path(uploaded).exists(), "an upload is kept"


def test_folders_of_one_name_are_told_apart() -> None:
    from ssdd.app.page import _folder_names

    folders = [Path("a/photos"), Path("b/photos"), Path("c/other"), Path(".")]
    assert _folder_names(folders) == ["a/photos", "b/photos", "other", "."]


def test_the_cache_goes_with_the_server(tiny_model: Path, tmp_path: Path) -> None:
    with serve_page(tiny_model, tmp_path) as served:
        assert served.cache.is_dir()
        assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
    assert not served.cache.exists()


def test_the_command_serves_until_it_is_stopped(
    ssdd: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", os.fspath(tmp_path))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def wait() -> None:
        assert status(f"http://127.0.0.1:{port}/") == 200
        assert list(tmp_path.glob("ssdd-app-*"))
        raise Stopped(signal.SIGTERM)

    monkeypatch.setattr("ssdd.cli.app._wait", wait)
    ended = ssdd("app", "--models", "bicubic:8", "--port", port)
    assert (ended.status, ended.err) == (143, "ssdd: stopped by SIGTERM\n")
    assert ended.out == f"the page is at http://127.0.0.1:{port}/ until Ctrl-C\n"
    assert not list(tmp_path.glob("ssdd-app-*")), "uploads and results are left"
    ended = ssdd("app", "--host", "0.0.0.0", "--port", port)
    assert "other machines can open this page" in ended.err
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        assert "pass another --port" in ssdd("app", "--port", port).error_line()


def test_one_picture_is_computed_at_a_time(served: Served) -> None:
    events = {fn.fn.__name__: (fn.concurrency_id, fn.concurrency_limit) for fn in served.page.fns.values()}
    computing = ("on_upload", "on_example", "on_load", "on_settings", "on_prepare", "on_folder")
    assert {events[name] for name in computing} == {("device", 1)}
    assert "device" not in {events[name][0] for name in events.keys() - computing}


def test_addresses() -> None:
    assert Address().is_local
    assert not Address("0.0.0.0").is_local
    assert not Address(share=True).is_local
