"""DreamSim (Fu et al. 2023): how different two images look, learned from people's judgements; 0 for equal ones.

The authors' package computes it with their ensemble. Its folder is ``dreamsim`` in torch.hub's (under ``TORCH_HOME``),
with the ensemble's archive unpacked, DINO's code cloned as ``facebookresearch_dino_main``, and DINO's own weights.
"""

import contextlib
import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from .features import full_precision
from .metrics import ImagePairs, Metric
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


_NAME = "dreamsim-ensemble"
_PREPROCESSING = "the package's own: 224 x 224 bicubic by Pillow, antialiased, whatever the aspect ratio, in [0, 1]"


def dreamsim_metric(device: torch.device | str = "cpu") -> Metric:
    """Return DreamSim as an image metric: the distance of each pair, from 0 to 2 (one minus a cosine).

    Its files are read with ``weights_only=True`` before the package may unpickle them; TF32 and autocast are off.

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
            raise MissingWeights(f"{_NAME} needs {path}, which is missing; get it from {url}")
        if path.suffix in (".pth", ".tar"):
            check_tensors(_NAME, path, url)
    options = {"pretrained": True, "cache_dir": str(folder), "dreamsim_type": "ensemble", "normalize_embeds": True}
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints about its cache
            model, preprocess = dreamsim(device=str(device), **options)
    except Exception as error:  # of many kinds: safetensors, JSON, shapes, other people's code
        raise MissingWeights(
            f"{_NAME}: {folder} has damaged or other weights than those of {_ENSEMBLE} "
            f"({first_line(error)}); get them anew"
        ) from error
    finally:
        torch.hub.set_dir(hub)  # the package moves it to its own folder: all other networks would be looked for there
    digest = sha256(*(path for path in paths if path.suffix not in (".json", ".py")))
    model = model.eval().requires_grad_(False)

    @torch.inference_mode()
    def distance(pairs: ImagePairs) -> np.ndarray:
        batches = [
            torch.cat([preprocess(Image.fromarray(image)) for image in torch.as_tensor(images).cpu().numpy()])
            for images in (pairs.original, pairs.reconstruction)
        ]
        with full_precision(device):
            found = model(*(batch.to(device) for batch in batches))
        return found.reshape(len(pairs.original)).double().clamp_min(0).cpu().numpy()  # rounding is below 0

    return Metric("dreamsim", "DreamSim", 3, "lower", f"{_NAME}: {_PREPROCESSING}; sha256 {digest[:16]}", distance)
