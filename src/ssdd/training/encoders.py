"""The encoder that ``--model.encoder`` names: ours, a diffusers ``AutoencoderKL``'s, or a module of the user's own.

Shapes: B batch, H x W pixels, f spatial factor, c latent channels.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, RepositoryNotFoundError
from torch import nn

from ..checkpoints import kl_vae
from ..checkpoints.embedded import embedded_folder, embedded_names
from ..checkpoints.layout import CheckpointError
from ..nn.encoder import Encoder
from ..nn.presets import ENCODER_WIDTH, GROUPS, EncoderSize, encoder_size
from .foreign import ForeignEncoder, load_own, one_line

_OWN = r"((?:.*/)?[^/:]+\.py|[^\W\d]\w*(?:\.[^\W\d]\w*)*):([^\W\d]\w*)"
_OTHERS = "a size like f8c4, code of yours (package.module:NAME, file.py:NAME), "
_HUB_ID = r"\w[\w.-]*/\w[\w.-]*"


@dataclass(frozen=True)
class EncoderChoice:
    """An encoder to train a decoder for."""

    module: nn.Module
    """(B, 3, H, W) in [-1, 1] -> moments (B, 2c, H/f, W/f): mean, then log-variance."""
    latent_channels: int
    spatial_factor: int
    size: EncoderSize | None
    """Of our architecture, which is AutoencoderKL's too; None: a user's module, not saved with the decoder."""
    statistics: dict[str, Any]
    """Those of scaling_factor, shift_factor, latents_mean and latents_std that the source states."""


def choose_encoder(name: str, width: int = ENCODER_WIDTH, groups: int = GROUPS) -> EncoderChoice:
    """The encoder called ``name``.

    Args:
        name: a size such as f8c4 (random weights); the folder of an AutoencoderSSDD or AutoencoderKL, of a training
            run or of a pipeline; an embedded model; a Hugging Face id OWNER/NAME or OWNER/NAME/SUBFOLDER;
            package.module:NAME or file.py:NAME, the user's own code (see ``ForeignEncoder``).
        width, groups: of a random one; see ``encoder_size``.

    Raises ValueError, CheckpointError, OSError or ImportError with one line.
    """
    if re.fullmatch(r"f\d+c\d+", name):
        size = encoder_size(name, width, groups)
        return EncoderChoice(Encoder(size), size.latent_channels, size.factor, size, {})
    if not Path(name).exists() and (own := re.fullmatch(_OWN, name)):
        foreign = ForeignEncoder(load_own(name, *own.groups()), name)
        return EncoderChoice(foreign, foreign.latent_channels, foreign.spatial_factor, None, foreign.statistics)
    read = kl_vae.read_encoder(_find(name, _download, _OTHERS))
    module = Encoder(read.size)
    module.load_state_dict(read.state)
    return EncoderChoice(module, read.size.latent_channels, read.size.factor, read.size, read.statistics)


def resolve_model_folder(name: str, kind: str = "AutoencoderSSDD") -> str:
    """What the ``from_pretrained`` of a whole model takes for ``name``: the result of a training run's folder, another
    folder, and an embedded name or a Hugging Face id OWNER/NAME as it is.

    Raises CheckpointError or FileNotFoundError with one line, as for a run that is not finished yet, or for a folder
    whose class is not ``kind``.
    """
    folder = _find(name, Path)
    if not Path(name).is_dir():
        if folder == Path(name) and not re.fullmatch(_HUB_ID, name):
            raise FileNotFoundError(f"{name}: expected a model folder or a Hugging Face id OWNER/NAME, found neither")
        return name
    found = kl_vae.read_config(folder).get("_class_name")
    if found != kind:
        raise CheckpointError(
            f"{folder}: expected an {kind} to start from, found {kl_vae.short(found)}; name it as --model.encoder to "
            "take its encoder alone"
        )
    return str(folder)


# ---- a saved model -------------------------------------------------------------------------------------------------


def _find(name: str, hub: Callable[[str], Path], others: str = "") -> Path:
    """The model's folder: a local one first, then an embedded one, then what ``hub`` makes of an id.

    Raises FileNotFoundError where the name is none of these; ``others`` says what it could have been besides.
    """
    path, embedded = Path(name), embedded_folder(name)
    if name.startswith("runs/") and not path.exists():  # the shape of a hub id, but surely none
        raise FileNotFoundError(f"{name}: expected a run's folder, found none: train {path.name} first")
    if path.is_dir():
        return _model_folder(path)
    if embedded is not None:
        return embedded
    if path.exists() or not re.fullmatch(rf"{_HUB_ID}(/\w[\w.-]*)*", name):
        raise FileNotFoundError(
            f"{name}: expected {others}a model folder, a Hugging Face id OWNER/NAME or an embedded model "
            f"({', '.join(embedded_names()) or 'none in this build'}), found "
            f"{'a file' if path.exists() else 'none of them'}"
        )
    return hub(name)


def _model_folder(folder: Path) -> Path:
    """The folder itself, the result of a training run or the VAE of a pipeline."""
    for candidate in (folder / "model", folder, folder / "vae"):
        if (candidate / "config.json").is_file() and "_class_name" in kl_vae.read_config(candidate):
            return candidate
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder}: expected a model folder, found no config.json in it, in model/ or in vae/")
    if (folder / "checkpoints").is_dir() or (folder / "stats.jsonl").is_file():
        raise CheckpointError(
            f"{folder}: expected a finished run with its model/ folder, found one that is not finished yet: "
            "start its command again to finish it"
        )
    raise CheckpointError(f"{folder}: expected a model folder of diffusers, found no _class_name in its config.json")


def _download(name: str) -> Path:
    """Folder of a hub id in the hub's cache, with config and safetensors; weights only where the config fits."""
    owner, repository, *inside = name.split("/")
    hub = _Repository(name, f"{owner}/{repository}", "".join(f"{part}/" for part in inside))
    config = hub.fetch("config.json")
    if config is None and not inside:
        hub.folder = "vae/"  # of a pipeline
        config = hub.fetch("config.json")
    if config is None:
        raise hub.nothing()
    kl_vae.read_layout(config.parent)
    try:
        kl_vae.find_weights(name, hub.fetch)
    except CheckpointError:
        if hub.offline:
            raise hub.nothing() from None
        raise
    return config.parent


@dataclass
class _Repository:
    """Files of a folder of a hub repository, all of one revision."""

    name: str
    repository: str
    folder: str
    revision: str | None = None
    offline: bool = False
    """The hub was out of reach, and only its cache is asked: another attempt would take its time too."""

    def fetch(self, file: str) -> Path | None:
        """Its path in the cache, or None if there is no such file. Raises OSError."""
        file = self.folder + file
        try:
            path = Path(hf_hub_download(self.repository, file, revision=self.revision, local_files_only=self.offline))
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
        self.revision = path.parents[file.count("/")].name
        return path

    def nothing(self) -> FileNotFoundError:
        """What to raise where the model is not there."""
        if not self.offline:
            return FileNotFoundError(
                f"{self.name}: expected config.json in this Hugging Face repository, found none; add its subfolder "
                "(OWNER/NAME/SUBFOLDER) if it has one"
            )
        return FileNotFoundError(
            f"{self.name}: expected a folder or a Hugging Face id, found no such folder, and the hub is offline and "
            "its cache does not hold the model: download it where there is a network"
        )
