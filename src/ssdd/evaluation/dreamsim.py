"""DreamSim (Fu et al. 2023): how different two pictures look, learned from people's judgements; 0 for equal ones.

The authors' package computes it, with their weights; nothing is downloaded. The folder that it takes (``cache_dir``):

=================================  ==================================================================================
files of the kind's archive        unpacked there: backbones (.pth, .pth.tar) and a folder KIND_lora
facebookresearch_dino_main         for the kinds with DINO: a clone of github.com/facebookresearch/dino, whose code runs
checkpoints/dino_vitbase16_...pth  for the kinds with DINO: the backbone that this code reads
=================================  ==================================================================================

Shapes: B pictures, H x W pixels.
"""

import contextlib
import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .features import full_precision
from .weights import MissingWeights, check_tensors, first_line, sha256

_RELEASE = "https://github.com/ssundaram21/dreamsim/releases/download/v0.2.0-checkpoints/dreamsim_{}_checkpoint.zip"
_DINO_CODE = "https://github.com/facebookresearch/dino"
_DINO_FILE = "https://dl.fbaipublicfiles.com/dino/dino_vitbase16_pretrain/dino_vitbase16_pretrain.pth"


@dataclass(frozen=True)
class _Kind:
    """Files of one kind; dino: it runs DINO's own code besides."""

    backbones: tuple[str, ...]
    adapter: str
    dino: bool


KINDS = {
    "ensemble": _Kind(
        ("dino_vitb16_pretrain.pth", "clip_vitb16_pretrain.pth.tar", "open_clip_vitb16_pretrain.pth.tar"),
        "ensemble_lora",
        dino=True,
    ),
    "dino_vitb16": _Kind(("dino_vitb16_pretrain.pth",), "dino_vitb16_single_lora", dino=True),
    "open_clip_vitb32": _Kind(("open_clip_vitb32_pretrain.pth.tar",), "open_clip_vitb32_single_lora", dino=False),
    "clip_vitb32": _Kind(("clip_vitb32_pretrain.pth.tar",), "clip_vitb32_single_lora", dino=False),
}
"""The networks, as the package calls them. Its others fetch code or weights in ways that cannot be checked first."""


class DreamSim:
    """Calls the package's model; made by ``load_dreamsim``.

    Attributes:
        name: ``dreamsim`` and the kind; distances of two kinds cannot be compared.
        sha256: of the sha256 of all files of weights, in hexadecimal.
        preprocessing: one line for reports.
    """

    preprocessing = "the package's own: 224 x 224 bicubic by Pillow, antialiased, whatever the aspect ratio, in [0, 1]"

    def __init__(self, kind: str, model: Any, preprocess: Any, digest: str, device: torch.device) -> None:
        self.name, self.sha256, self.device = f"dreamsim-{kind}", digest, device
        self._model, self._preprocess = model, preprocess

    @torch.inference_mode()
    def __call__(self, original: Tensor, reconstruction: Tensor) -> np.ndarray:
        """Distance of each pair, from 0 to 2 (one minus a cosine): (B,) float64; each independent of the others.

        TF32 and autocast are off whatever the caller chose.

        Args:
            original, reconstruction: uint8 (B, H, W, 3) on any device, of one size.

        Raises:
            ValueError: another shape or type.
        """
        for images in (original, reconstruction):
            if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[-1] != 3 or 0 in images.shape[1:3]:
                raise ValueError(f"expected uint8 images (B, H, W, 3), found {images.dtype} {tuple(images.shape)}")
        if original.shape != reconstruction.shape:
            found = f"{tuple(original.shape)} and {tuple(reconstruction.shape)}"
            raise ValueError(f"expected two batches of images of one size, found {found}")
        if len(original) == 0:
            return np.zeros(0)
        with full_precision(self.device):
            distance = self._model(self._prepared(original), self._prepared(reconstruction))
        return distance.reshape(len(original)).double().clamp_min(0).cpu().numpy()  # rounding is below 0

    def _prepared(self, images: Tensor) -> Tensor:
        """uint8 (B, H, W, 3) to (B, 3, 224, 224) in [0, 1]."""
        pictures = (Image.fromarray(image) for image in images.cpu().numpy())
        return torch.cat([self._preprocess(picture) for picture in pictures]).to(self.device)


def load_dreamsim(
    device: torch.device | str = "cpu", kind: str = "ensemble", cache_dir: str | Path | None = None
) -> DreamSim:
    """DreamSim by the authors' package.

    Every file is read with ``weights_only=True`` before the package may unpickle it. The kinds with DINO (the
    ensemble, which the paper reports, among them) run the code in ``facebookresearch_dino_main``, as the package
    does: it has to be there, and is never fetched.

    Args:
        device: where it computes.
        kind: one of ``KINDS``.
        cache_dir: the folder of the weights; by default ``dreamsim`` in torch.hub's (under ``TORCH_HOME``).

    Raises:
        MissingWeights: a file is missing, damaged or another one; one line that says which file goes where.
        ImportError: the package is not installed.
        ValueError: no such kind.
    """
    if kind not in KINDS:
        raise ValueError(f"expected a DreamSim of {', '.join(KINDS)}, found {kind!r}")
    try:
        from dreamsim import dreamsim
    except ImportError as error:
        raise ImportError(
            f"DreamSim needs its authors' package: pip install dreamsim, or 'ssdd[dreamsim]' ({first_line(error)})"
        ) from error
    folder = Path(torch.hub.get_dir()) / "dreamsim" if cache_dir is None else Path(cache_dir)
    digest = _checked(folder, kind)
    device = torch.device(device)
    try:
        with _kept_hub_folder(), contextlib.redirect_stdout(io.StringIO()):  # it talks about its cache
            model, preprocess = dreamsim(
                pretrained=True, device=str(device), cache_dir=str(folder), dreamsim_type=kind, normalize_embeds=True
            )
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        raise MissingWeights(
            f"dreamsim-{kind}: expected the weights of {_RELEASE.format(kind)} in {folder}, found others "
            f"({first_line(error)}); unpack it there again"
        ) from error
    return DreamSim(kind, model.eval().requires_grad_(False), preprocess, digest, device)


def _checked(folder: Path, kind: str) -> str:
    """sha256 of all files of the kind, none of which can run code. Raises MissingWeights."""
    files, url = KINDS[kind], _RELEASE.format(kind)
    adapter = folder / files.adapter
    wanted = [(folder / name, url) for name in files.backbones]
    wanted += [(adapter / "adapter_config.json", url), (_adapter_weights(adapter), url)]
    if files.dino:
        wanted += [(folder / "facebookresearch_dino_main" / "hubconf.py", _DINO_CODE)]
        wanted += [(folder / "checkpoints" / Path(_DINO_FILE).name, _DINO_FILE)]
    for path, origin in wanted:
        if not path.is_file():
            advice = {
                url: f"unpack {url} in {folder}",
                _DINO_CODE: f"clone {_DINO_CODE}, whose code will run, into {path.parent}",
                _DINO_FILE: f"put the file from {_DINO_FILE} there",
            }[origin]
            raise MissingWeights(f"dreamsim-{kind} needs {path}, which is missing; {advice}")
    weights = [(path, origin) for path, origin in wanted if path.suffix not in (".json", ".py")]
    for path, origin in weights:
        if path.suffix != ".safetensors":
            check_tensors(f"dreamsim-{kind}", path, origin)
    return hashlib.sha256("".join(sha256(path) for path, _ in weights).encode()).hexdigest()


def _adapter_weights(adapter: Path) -> Path:
    """What peft reads: safetensors first. It would ask the hub if there were neither."""
    safe, pickled = adapter / "adapter_model.safetensors", adapter / "adapter_model.bin"
    return pickled if pickled.is_file() and not safe.is_file() else safe


@contextlib.contextmanager
def _kept_hub_folder() -> Iterator[None]:
    """The package moves torch.hub's folder to its own: every other network would be looked for there."""
    before = torch.hub.get_dir()
    try:
        yield
    finally:
        if torch.hub.get_dir() != before:
            torch.hub.set_dir(before)
