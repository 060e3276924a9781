"""Representation alignment (REPA; Yu et al. 2024, arXiv 2410.06940): the decoder's tokens follow DINOv2's.

L = mean over tokens of 1 - cos(MLP(h), y), h the decoder's tokens and y those of a frozen DINOv2 on the real image.

Shapes: B batch, H x W pixels, N = rows * columns tokens in row-major order, D decoder features, F DINOv2 features.
"""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checkpoints.config import read_json
from ..runtime.text import quiet

ARCHITECTURES = ("dinov2", "dinov2_with_registers")
"""``model_type`` of the checkpoints that can be read."""

_FILES = ["config.json", "preprocessor_config.json", "model*.safetensors*"]
_IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
_TIMEOUT = 10.0
"""Seconds that the hub may take to answer at all."""

_SHORTEST = 1e-4
"""Shorter vectors than this count as this long: the gradient of a cosine grows like 1 / length."""


class DinoFeatures(nn.Module):
    """Patch tokens of a frozen DINOv2.

    Args:
        name: hub id or folder of a Dinov2 or Dinov2WithRegisters checkpoint, read from safetensors only.

    Raises:
        RuntimeError: neither cached nor downloadable, or no readable weights; one line that says what to do.
        ValueError: another architecture, or weights that don't fit the config.
        ImportError: transformers is not installed.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, name: str = "facebook/dinov2-base") -> None:
        super().__init__()
        try:
            import transformers  # noqa: F401
        except ImportError as error:
            raise ImportError("REPA needs the package transformers: pip install 'ssdd[train]'") from error
        folder = _find_folder(name)
        self.net = _load(folder, name)
        self.width: int = self.net.config.hidden_size
        self.patch: int = self.net.config.patch_size
        preprocessor = folder / "preprocessor_config.json"
        values = _IMAGENET | (read_json(preprocessor) if preprocessor.is_file() else {})
        for key in ("mean", "std"):
            self.register_buffer(key, torch.tensor(values[f"image_{key}"]).reshape(3, 1, 1), persistent=False)
        self.requires_grad_(False)
        self.eval()

    @torch.no_grad()
    def forward(self, images: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return tokens for each cell of a grid that is laid over the whole image, in float32 even under autocast.

        The image is resized (bicubic) to one patch per cell: no cropping, whatever the two aspect ratios.

        Args:
            images: (B, 3, H, W) in [-1, 1].
            grid: (rows, columns) of the tokens, as in ``VelocityFeatures.grid``.

        Returns:
            (B, N, F) without gradient.
        """
        size = [cells * self.patch for cells in grid]
        with torch.autocast(images.device.type, enabled=False):
            x = ((images.float() + 1) / 2 - self.mean) / self.std
            x = F.interpolate(x, size=size, mode="bicubic", antialias=True)
            tokens = self.net(pixel_values=x).last_hidden_state
        return tokens[:, -grid[0] * grid[1] :]  # class and register tokens come first


class Projection(nn.Module):
    """From the decoder's features to DINOv2's: Linear(D, D), SiLU, Linear(D, F); trained with the decoder."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(channels, channels), nn.SiLU(), nn.Linear(channels, width))

    def forward(self, tokens: Tensor) -> Tensor:
        """Return (B, N, F) of tokens (B, N, D)."""
        return self.mlp(tokens)


def repa_loss(projected: Tensor, target: Tensor) -> Tensor:
    """Return the mean over tokens of ``1 - cos``, in float32 whatever comes in.

    The gradient stays finite at zero vectors, whose cosine counts as 0.

    Args:
        projected: (B, N, F), the decoder's tokens.
        target: (B, N, F), DINOv2's.

    Returns:
        (B,) in [0, 2].
    """
    cosine = F.normalize(projected.float(), dim=-1, eps=_SHORTEST) * F.normalize(target.float(), dim=-1, eps=_SHORTEST)
    return 1 - cosine.sum(-1).mean(-1)


def feature_block(layers: int) -> int:
    """Return the transformer block, counted from 0, whose output is aligned: ``min(4, layers // 2)``."""
    return min(4, layers // 2)


def _find_folder(name: str) -> Path:
    """Return the checkpoint's folder: ``name`` itself, the hub's cache, or a download into it. Raise RuntimeError."""
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import HfApi, snapshot_download

    try:
        cached = Path(snapshot_download(name, allow_patterns=_FILES, local_files_only=True))
        if any(cached.glob("model*.safetensors")):  # else some other program needed just the config
            return cached
    except (OSError, ValueError):  # not there, or not even the name of a repository: said below
        pass
    try:
        # Behind a firewall that drops packets the download would retry for minutes; this asks once.
        HfApi().model_info(name, timeout=_TIMEOUT)
        return Path(snapshot_download(name, allow_patterns=_FILES))
    except Exception as error:  # the errors of the hub's HTTP client differ between its releases
        raise RuntimeError(
            f"REPA needs {name}, which is neither a folder nor in the hub's cache and could not be downloaded "
            f"({_first_line(error)}); give a folder with its config.json and model.safetensors, "
            "or train without it: --loss.repa 0"
        ) from error


def _load(folder: Path, name: str) -> Any:
    """Return the network of a checkpoint folder, in float32. Raise RuntimeError or ValueError."""
    from transformers import AutoModel

    if not (folder / "config.json").is_file():
        raise RuntimeError(f"{name}: no config.json in {folder}")
    kind = read_json(folder / "config.json").get("model_type")
    if kind not in ARCHITECTURES:
        raise ValueError(f"{name}: expected the architecture {' or '.join(ARCHITECTURES)}, found {kind}")
    try:
        with quiet("transformers"):
            net, report = AutoModel.from_pretrained(
                folder,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # reported below, in one line
            )
    except Exception as error:  # of many kinds: no such file, safetensors, a config of transformers
        raise RuntimeError(
            f"{name}: no readable weights in {folder} ({_first_line(error)}); get its config.json and "
            "model.safetensors anew"
        ) from error
    absent = [*report["missing_keys"], *report["mismatched_keys"]]
    if absent:  # transformers would go on with random numbers in their place
        raise ValueError(
            f"{name}: {len(absent)} tensors that config.json asks for are missing or of another shape in {folder}"
        )
    return net.float()


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
