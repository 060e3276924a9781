"""Files of pretrained weights: found in the usual caches, fetched where that is allowed, checked before they are read.

Nothing here unpickles more than tensors.
"""

import hashlib
import re
import urllib.request
from pathlib import Path

import torch

_TIMEOUT = 10.0
"""Seconds that a server may take to answer at all."""


class MissingWeights(RuntimeError):
    """An extractor's weights are not at hand. One line that says which file goes where."""


def hub_path(url: str) -> Path:
    """Where torch.hub keeps the file of an address: the cache under ``TORCH_HOME``."""
    return Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]


def hub_file(name: str, url: str, download: bool) -> Path:
    """The file of an address in torch.hub's cache, fetched if allowed; nothing but tensors in it. MissingWeights."""
    path, tried = hub_path(url), ""
    if not path.is_file() and download:
        try:
            # Behind a firewall that drops packets the download itself would wait for minutes; this asks once.
            with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=_TIMEOUT):
                path.parent.mkdir(parents=True, exist_ok=True)
            begin = re.search(r"-([0-9a-f]{8,})\.", path.name)
            torch.hub.download_url_to_file(url, str(path), begin and begin[1], progress=False)
        except (OSError, RuntimeError) as error:
            tried = f" and could not be downloaded ({first_line(error)})"
    if not path.is_file():
        raise MissingWeights(f"{name} needs {path}, which is missing{tried}; put the file from {url} there")
    check_tensors(name, path, url)
    return path


def check_tensors(name: str, path: Path, url: str) -> None:
    """Raises MissingWeights unless the file has tensors and nothing that could run code.

    For the libraries that unpickle it without this restriction.
    """
    try:
        torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of many kinds: zip, pickle, end of file
        raise MissingWeights(
            f"{name}: {path} is damaged or no file of weights ({type(error).__name__}); put the one from {url} there"
        ) from error


def dino_weights(source: str) -> Path | None:
    """The weights of a folder or of a hub id in the cache (the folder, if they are several files), or None."""
    folder = Path(source)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        try:
            folder = Path(snapshot_download(source, allow_patterns=["model*.safetensors"], local_files_only=True))
        except (OSError, ValueError):  # not there, or not even the name of a repository
            return None
    if (folder / "model.safetensors").is_file():
        return folder / "model.safetensors"
    return folder if any(folder.glob("model*.safetensors")) else None


def sha256(weights: Path) -> str:
    """Of a file, in hexadecimal; of the safetensors of a folder one after the other in order of their names."""
    digest = hashlib.sha256()
    for path in sorted(weights.glob("model*.safetensors")) if weights.is_dir() else [weights]:
        with path.open("rb") as file:
            while part := file.read(1 << 20):
                digest.update(part)
    return digest.hexdigest()


def first_line(error: BaseException) -> str:
    """The error's kind and the first line of what it says."""
    return f"{type(error).__name__}: {error}".splitlines()[0]
