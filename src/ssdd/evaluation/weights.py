"""Find, download and check files of pretrained weights. Nothing here unpickles more than tensors."""

import hashlib
import importlib.util
import logging
import re
import urllib.request
from fnmatch import fnmatch
from pathlib import Path

import torch

logger = logging.getLogger(__name__)

_TIMEOUT = 10.0
"""Seconds that a server may take to answer at all."""

_WEIGHTS = ("model*.safetensors", "pytorch_model.bin")
"""Files of weights in a checkpoint of transformers, the preferred ones first."""


class MissingWeights(RuntimeError):
    """Weights are not at hand. The message is one line that says which file goes where."""


def hub_path(url: str) -> Path:
    """Return where torch.hub keeps the file of an address: its cache under ``TORCH_HOME``."""
    return Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]


def hub_file(name: str, url: str, download: bool, exact: bool = False) -> Path:
    """Return the file of an address in torch.hub's cache, downloaded if allowed, checked. Raises MissingWeights.

    Args:
        name: what needs the file, for messages.
        url: its address; the name ends with the beginning of the file's SHA-256.
        download: whether to download what is not in the cache.
        exact: whether a file with another SHA-256 is refused; else a warning names it.
    """
    path, tried = hub_path(url), ""
    digest = re.findall("[0-9a-f]{8,}", path.name)[-1]
    if not path.is_file() and download:
        try:
            # Behind a firewall that drops packets the download itself would wait for minutes; this asks once.
            with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=_TIMEOUT):
                path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), digest, progress=False)
        except (OSError, RuntimeError) as error:
            tried = f" and could not be downloaded ({first_line(error)})"
    if not path.is_file():
        raise MissingWeights(f"{name} needs {path}, which is missing{tried}; put the file from {url} there")
    check_tensors(name, path, url)
    if not sha256(path).startswith(digest):
        message = f"{name}: {path} is another file than that of {url} (its sha256 does not begin with {digest})"
        if exact:
            raise MissingWeights(f"{message}; delete it and get it anew from there")
        logger.warning("%s; it is used all the same", message)
    return path


def check_tensors(name: str, path: Path, url: str) -> None:
    """Raise MissingWeights unless a file holds tensors and no code: some libraries would run it."""
    try:
        torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of many kinds: zip, pickle, end of file
        raise damaged(name, path, url, error) from error


def damaged(name: str, path: Path, url: str, error: Exception) -> MissingWeights:
    """Return what to raise for a file that cannot be read as the weights of ``name``."""
    return MissingWeights(
        f"{name}: {path} is damaged or no file of its weights ({type(error).__name__}); delete it and get it anew "
        f"from {url}"
    )


def checkpoint_folder(name: str, source: str, download: bool) -> Path:
    """Return the folder of a transformers checkpoint, downloaded if allowed. Raises MissingWeights or ImportError.

    Args:
        name: extractor that needs it, ``KIND-...`` or ``KIND:SOURCE``.
        source: folder or hub id.
        download: whether to download what is neither a folder nor in the hub's cache.
    """
    if importlib.util.find_spec("transformers") is None:
        raise ImportError(f"{name} needs the package transformers: pip install 'ssdd[train]'")
    folder, tried = cached_checkpoint(source), ""
    if folder is None and download and not Path(source).is_dir():
        from huggingface_hub import HfApi, snapshot_download

        try:
            # The hub's client would retry for minutes without network; this asks once.
            files = [file.rfilename for file in HfApi().model_info(source, timeout=_TIMEOUT).siblings or []]
            safe = any(fnmatch(file, _WEIGHTS[0]) for file in files)
            snapshot_download(source, allow_patterns=["*config.json", f"{_WEIGHTS[0]}*" if safe else _WEIGHTS[1]])
        except Exception as error:  # the errors of the hub's HTTP client differ between its releases
            tried = f" and could not be downloaded ({first_line(error)})"
        folder = cached_checkpoint(source)
    if folder is None:
        raise MissingWeights(
            f"{name} needs {source}, which has no model.safetensors here{tried}; put it in Hugging Face's cache, or "
            f"give a folder with its config.json and model.safetensors as {re.split('[-:]', name)[0]}:FOLDER"
        )
    return folder


def cached_checkpoint(source: str) -> Path | None:
    """Return the folder with weights of a folder or of a hub id in the cache, or None."""
    folder = Path(source)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        try:
            folder = Path(snapshot_download(source, local_files_only=True))
        except (OSError, ValueError):  # not there, or not even the name of a repository
            return None
    return folder if _weight_files(folder) else None


def _weight_files(folder: Path) -> list[Path]:
    """Return the files of weights in a transformers checkpoint's folder, sorted by name."""
    return next((files for pattern in _WEIGHTS if (files := sorted(folder.glob(pattern)))), [])


def sha256(*paths: Path) -> str:
    """Return the SHA-256 in hexadecimal of files one after the other; a checkpoint's folder stands for its weights."""
    digest = hashlib.sha256()
    files = [file for path in paths for file in (_weight_files(path) if path.is_dir() else [path])]
    for path in files:
        with path.open("rb") as file:
            while part := file.read(1 << 20):
                digest.update(part)
    return digest.hexdigest()


def first_line(error: BaseException) -> str:
    """Return an error's kind and the first line of its message."""
    return f"{type(error).__name__}: {error}".splitlines()[0]
