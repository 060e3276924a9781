"""DreamSim (Fu et al. 2023): how different two images look, learned from people's judgements; 0 for equal ones.

The authors' package computes it with their ensemble. Its folder is ``dreamsim`` in torch.hub's (under ``TORCH_HOME``),
with the ensemble's archive unpacked, DINO's code cloned as ``facebookresearch_dino_main``, and DINO's own weights.
"""

import contextlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .features import full_precision
from .metrics import Metric
from .weights import MissingWeights, check_tensors, first_line, sha256

_RELEASE = "https://github.com/ssundaram21/dreamsim/releases/download/v0.2.0-checkpoints"
_ENSEMBLE = f"{_RELEASE}/dreamsim_ensemble_checkpoint.zip"
_DINO = "https://dl.fbaipublicfiles.com/dino/dino_vitbase16_pretrain/dino_vitbase16_pretrain.pth"
FILES = {
    "dino_vitb16_pretrain.pth": _ENSEMBLE,
    "clip_vitb16_pretrain.pth.tar": _ENSEMBLE,
    "open_clip_vitb16_pretrain.pth.tar": _ENSEMBLE,
    "ensemble_lora/adapter_model.safetensors": _ENSEMBLE,
    "ensemble_lora/adapter_config.json": _ENSEMBLE,
    "checkpoints/dino_vitbase16_pretrain.pth": _DINO,
    "facebookresearch_dino_main/hubconf.py": "https://github.com/facebookresearch/dino",
}
"""Files in the folder, and where to get them. The package would download them itself, and run what came."""


class DreamSim:
    """Calls the package's model; ``load_dreamsim`` makes it.

    Attributes:
        model, preprocess: what the package gives.
        sha256: SHA-256 of all files of weights, in hexadecimal.
    """

    name = "dreamsim-ensemble"
    preprocessing = "the package's own: 224 x 224 bicubic by Pillow, antialiased, whatever the aspect ratio, in [0, 1]"

    def __init__(self, model: Any, preprocess: Any, sha256: str, device: torch.device) -> None:
        self.model, self.preprocess, self.sha256, self.device = model, preprocess, sha256, device

    @torch.inference_mode()
    def __call__(self, original: Tensor, reconstruction: Tensor) -> np.ndarray:
        """Return the distance of each pair, from 0 to 2 (one minus a cosine), float64 (B,); TF32 and autocast are off.

        Args:
            original, reconstruction: B images, uint8 (B, H, W, 3), on any device.
        """
        batches = [
            torch.cat([self.preprocess(Image.fromarray(image)) for image in images.cpu().numpy()]).to(self.device)
            for images in (original, reconstruction)
        ]
        with full_precision(self.device):
            distance = self.model(*batches)
        return distance.reshape(len(original)).double().clamp_min(0).cpu().numpy()  # rounding is below 0


def dreamsim_metric(device: torch.device | str = "cpu") -> Metric:
    """Return DreamSim as an image metric. Raises MissingWeights or ImportError."""
    net = load_dreamsim(device)
    description = f"{net.name}: {net.preprocessing}; sha256 {net.sha256[:16]}"
    return Metric("dreamsim", "DreamSim", 3, "lower", description, lambda p: net(p.original, p.reconstruction))


def load_dreamsim(device: torch.device | str = "cpu") -> DreamSim:
    """Return DreamSim; its files are read with ``weights_only=True`` before the package may unpickle them.

    Raises:
        MissingWeights: a file is missing, damaged or another one; one line that says which file goes where.
        ImportError: the package is not installed.
    """
    try:
        from dreamsim import dreamsim
    except ImportError as error:
        raise ImportError(f"DreamSim needs its package: pip install 'ssdd[dreamsim]' ({first_line(error)})") from error
    hub, device = torch.hub.get_dir(), torch.device(device)
    folder = Path(hub) / "dreamsim"
    paths = {folder / name: url for name, url in FILES.items()}
    for path, url in paths.items():
        if not path.is_file():
            raise MissingWeights(f"{DreamSim.name} needs {path}, which is missing; get it from {url}")
        if path.suffix in (".pth", ".tar"):
            check_tensors(DreamSim.name, path, url)
    options = {"pretrained": True, "cache_dir": str(folder), "dreamsim_type": "ensemble", "normalize_embeds": True}
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints about its cache
            model, preprocess = dreamsim(device=str(device), **options)
    except Exception as error:  # of many kinds: safetensors, JSON, shapes, other people's code
        raise MissingWeights(
            f"{DreamSim.name}: {folder} has damaged or other weights than those of {_ENSEMBLE} "
            f"({first_line(error)}); get them anew"
        ) from error
    finally:
        torch.hub.set_dir(hub)  # the package moves it to its own folder: all other networks would be looked for there
    digest = sha256(*(path for path in paths if path.suffix not in (".json", ".py")))
    return DreamSim(model.eval().requires_grad_(False), preprocess, digest, device)
