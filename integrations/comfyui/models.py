"""Where models lie in ComfyUI's folders, how they are loaded, and how ComfyUI manages their memory."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import comfy.model_management
import folder_paths
import torch
from comfy.model_patcher import ModelPatcher
from comfy.utils import ProgressBar
from torch import nn

from ssdd import AutoencoderSSDD
from ssdd.autoencoder.tiling import tracked
from ssdd.checkpoints.config import read_config
from ssdd.checkpoints.embedded import embedded_names
from ssdd.checkpoints.layout import CheckpointError

PRECISIONS = {"auto": None, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

folder_paths.add_model_folder_path("ssdd", str(Path(folder_paths.models_dir) / "ssdd"))


def model_names() -> list[str]:
    """Return the choices of a loader: embedded models, then those in ComfyUI's folders."""
    return [*embedded_names(), *_local_models()]


def fingerprint(name: str) -> str:
    """Return a text that changes when a model's files do, so that ComfyUI loads it again."""
    path = _local_models().get(name)
    if path is None:
        return name
    files = [path] if path.is_file() else sorted(path.iterdir())
    return repr([(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files])


def load_model(name: str, precision: str) -> AutoencoderSSDD:
    """Return a model in eval mode on the CPU.

    Args:
        name: one of ``model_names``, or a Hugging Face id.
        precision: one of ``PRECISIONS``; ``auto`` is what ComfyUI chooses for a VAE.

    Raises:
        ValueError, OSError: with one line, if there is no such model or its files are not sound.
    """
    path = _local_models().get(name)
    if path is not None and path.is_file():
        model = AutoencoderSSDD.from_original(path)
    else:
        model = AutoencoderSSDD.from_pretrained(path or name)
    management = comfy.model_management
    dtype = PRECISIONS[precision] or management.vae_dtype(management.vae_device(), [torch.bfloat16, torch.float32])
    model.decoder.to(dtype)
    if model.encoder is not None:  # a KL-VAE's may overflow in float16
        model.encoder.to(torch.float32 if dtype == torch.float16 and model.config.force_upcast else dtype)
    return model.eval().requires_grad_(False)


def _local_models() -> dict[str, Path]:
    """Return the models in ``models/ssdd`` and ``models/vae``, by their names in the loader's list."""
    found: dict[str, Path] = {}
    for kind in ("ssdd", "vae"):
        for root in map(Path, folder_paths.get_folder_paths(kind)):
            configs = [*root.glob("*/config.json"), *root.glob("*/model/config.json")]  # the second: of a training run
            paths = [config.parent for config in configs if _is_ours(config.parent)]
            if kind == "ssdd":  # the authors' released files; those in models/vae are of other VAEs
                paths += root.glob("*.safetensors")
            for path in sorted(paths):
                found.setdefault(f"{kind}/{path.relative_to(root).as_posix()}", path)
    return found


def _is_ours(folder: Path) -> bool:
    try:
        return bool(read_config(folder).get("_class_name") == "AutoencoderSSDD")
    except CheckpointError:  # somebody else's file
        return False


class ManagedModel:
    """A model that ComfyUI moves to the GPU when a node needs it, and away when something else needs the room."""

    def __init__(self, autoencoder: AutoencoderSSDD) -> None:
        self.autoencoder = autoencoder
        # ComfyUI sets ``device`` on what it moves, a property of diffusers' models, hence a module around ours.
        self._patcher = ModelPatcher(
            nn.ModuleDict({"autoencoder": autoencoder}),
            load_device=comfy.model_management.vae_device(),
            offload_device=comfy.model_management.vae_offload_device(),
        )

    def prepare(self, batch: int, height: int, width: int, tiling: str, tile_size: int) -> torch.device:
        """Set the tiling, and have ComfyUI load the model with room for so many images; return the device."""
        self.autoencoder.tile = "auto" if tiling == "auto" else tiling == "on"
        self.autoencoder.tile_sample_min_size = tile_size
        if tiling == "on" and max(height, width) > tile_size:
            batch, height, width = 1, tile_size, tile_size
        room = self.autoencoder.estimate_memory(height, width, batch)
        # All of it: only weights of ComfyUI's own layers can stay behind and be fetched when they are needed.
        comfy.model_management.load_models_gpu([self._patcher], memory_required=room, force_full_load=True)
        device: torch.device = self._patcher.load_device
        return device


@contextmanager
def progress(network: nn.Module, calls: int) -> Iterator[None]:
    """Show the calls of a network in ComfyUI's progress bar, and let a user stop between them.

    Args:
        network: encoder or decoder.
        calls: how often it is called for an image, or for each tile of one.
    """
    bar = ProgressBar(calls)

    def after_call(*_: Any) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        bar.update(1)

    def count_tiles(tiles: Sequence[Any]) -> Sequence[Any]:
        bar.update_absolute(0, calls * len(tiles))
        return tiles

    hook = network.register_forward_hook(after_call)
    try:
        with tracked(count_tiles):
            yield
    finally:
        hook.remove()
