"""Where a saved model lies: a folder, a training run, a pipeline, this package, the hub's cache.

Everything that takes the name of a model understands it by this.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, RepositoryNotFoundError

from .config import read_config
from .embedded import embedded_folder, embedded_names
from .layout import CheckpointError
from .own_code import OWN_ENCODER, one_line
from .weights import find_weights

HUB_ID = r"\w[\w.-]*/\w[\w.-]*"
"""``OWNER/NAME``."""


def find_model(name: str, hub: Callable[[str], Path], others: str = "") -> Path:
    """Return the model's folder: a local one first, then an embedded one, then what ``hub`` makes of an id.

    Raises FileNotFoundError where the name is none of these; ``others`` says what it could have been besides.
    """
    path, embedded = Path(name), embedded_folder(name)
    if name.startswith("runs/") and not path.exists():  # the shape of a hub id, but surely none
        raise FileNotFoundError(f"{name}: expected a run's folder, found none: train {path.name} first")
    if path.is_dir():
        return _model_folder(path)
    if embedded is not None:
        return embedded
    if path.exists() or not re.fullmatch(rf"{HUB_ID}(/\w[\w.-]*)*", name):
        raise FileNotFoundError(
            f"{name}: expected {others}a model folder, a Hugging Face id OWNER/NAME or an embedded model "
            f"({', '.join(embedded_names()) or 'none in this build'}), found "
            f"{'a file' if path.exists() else 'none of them'}"
        )
    return hub(name)


def _model_folder(folder: Path) -> Path:
    """Return the folder itself, the result of a training run or the VAE of a pipeline."""
    for candidate in (folder / "model", folder, folder / "vae"):
        if (candidate / "config.json").is_file() and "_class_name" in read_config(candidate):
            return candidate
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder}: expected a model folder, found no config.json in it, in model/ or in vae/")
    if (folder / "checkpoints").is_dir() or (folder / "stats.jsonl").is_file():
        raise CheckpointError(
            f"{folder}: expected a finished run with its model/ folder, found one that is not finished yet: "
            "start its command again to finish it"
        )
    raise CheckpointError(f"{folder}: expected a model folder of diffusers, found no _class_name in its config.json")


def download(
    name: str,
    accept: Callable[[Path], Any],
    variant: str | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
    **options: Any,
) -> Path:
    """Folder of a hub id in the hub's cache, with config and safetensors.

    ``accept`` is given the folder when its config is there, and raises where no weights are to be fetched for that.
    ``variant``: see ``find_weights``; ``options``: further arguments of ``hf_hub_download``. Raises CheckpointError or
    OSError with one line.
    """
    owner, repository, *inside = name.split("/")
    folder = "".join(f"{part}/" for part in inside)
    hub = Repository(name, f"{owner}/{repository}", folder, revision, local_files_only, options)
    config = hub.fetch("config.json")
    if config is None and not inside:
        hub.folder = "vae/"  # of a pipeline
        config = hub.fetch("config.json")
    if config is None:
        raise hub.nothing()
    accept(config.parent)
    try:
        find_weights(name, hub.fetch, variant)
    except CheckpointError:
        if hub.offline:
            raise hub.nothing() from None
        raise
    if read_config(config.parent).get("has_encoder") is False:
        hub.fetch(OWN_ENCODER)
    return config.parent


@dataclass
class Repository:
    """Files of a folder of a hub repository, all of one revision."""

    name: str
    repository: str
    folder: str
    revision: str | None = None
    offline: bool = False
    """The hub was out of reach, and only its cache is asked: another attempt would take its time too."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Of ``hf_hub_download``."""

    def fetch(self, file: str) -> Path | None:
        """Its path in the cache, or None if there is no such file. Raises OSError."""
        file = self.folder + file
        try:
            found = hf_hub_download(
                self.repository, file, revision=self.revision, local_files_only=self.offline, **self.options
            )
        except LocalEntryNotFoundError:
            self.offline = True
            return None
        except EntryNotFoundError:
            return None
        except RepositoryNotFoundError as error:  # private and gated ones too
            raise FileNotFoundError(
                f"{self.name}: expected a folder or a Hugging Face id, found no such folder, and no repository that "
                "you may read: accept its licence on its page and log in with `hf auth login` if there is one"
            ) from error
        except Exception as error:  # the errors of two HTTP libraries, by the release of the hub's client
            raise OSError(f"{self.name}: cannot download {file} from Hugging Face: {one_line(error)}") from error
        path = Path(found)
        self.revision = path.parents[file.count("/")].name
        return path

    def nothing(self) -> FileNotFoundError:
        """Return what to raise where the model is not there."""
        if not self.offline:
            return FileNotFoundError(
                f"{self.name}: expected config.json in this Hugging Face repository, found none; add its subfolder "
                "(OWNER/NAME/SUBFOLDER) if it has one"
            )
        return FileNotFoundError(
            f"{self.name}: expected a folder or a Hugging Face id, found no such folder, and the hub is offline and "
            "its cache does not hold the model: download it where there is a network"
        )
