"""Feature extractors: pictures to the numbers whose distribution is compared. Frozen, float32, free of chance.

Every extractor sees the whole picture, scaled to its own square whatever the aspect ratio; nothing is cropped.

========================  ==========  ========================================================================
name                      width       preprocessing
========================  ==========  ========================================================================
inception-torch-fidelity  2048        299 x 299, bilinear as in TensorFlow 1 (not antialiased); pixels / 128 - 1
mobilenet_v2-imagenet     1280        224 x 224, bilinear, antialiased; mean and deviation of ImageNet
torchvision:MODEL         its own     side, filter, mean and deviation of its weights; antialiased
dinov2-small ... -giant   384 - 1536  224 x 224, bicubic, antialiased; mean and deviation of the checkpoint
dinov2:FOLDER_OR_ID       its own     the same
========================  ==========  ========================================================================

Only the distance on Inception's features is called FID; that on MobileNetV2's is FD-MobileNetV2.

Shapes: B pictures, H x W pixels, S side that the network sees, D width of a feature.
"""

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from ..objectives.repa import DinoFeatures
from .weights import MissingWeights, dino_weights, first_line, hub_file, hub_path, sha256

_INCEPTION, _MOBILENET = "inception-torch-fidelity", "mobilenet_v2-imagenet"
_TORCHVISION, _DINO = "torchvision:", "dinov2"
_DINO_SIZES = ("small", "base", "large", "giant")
_DINO_SIDE = 224
EXTRACTORS = (_INCEPTION, _MOBILENET, *(f"{_DINO}-{size}" for size in _DINO_SIZES))
"""The extractors with a name of their own; ``load_extractor`` takes more."""

_INCEPTION_HASH = "6726825d"
"""How the sha256 of torch-fidelity's file begins, by its name: FID is of these very weights."""


class Extractor(ABC):
    """Calls a frozen network on pictures.

    Attributes:
        name: the name for ``load_extractor``.
        width: D.
        weights: the file (or folder, where there are several) that was read.
        sha256: of that file, in hexadecimal; of all of them one after the other in order of their names.
        preprocessing: one line for reports.
    """

    preprocessing: str

    def __init__(self, name: str, net: nn.Module, width: int, weights: Path, device: torch.device | str) -> None:
        self.name, self.width, self.weights = name, width, weights
        self.sha256 = sha256(weights)
        self.device = torch.device(device)
        self.net = net.to(self.device).requires_grad_(False).eval()

    @property
    def identity(self) -> str:
        """Weights and preprocessing: features are comparable where this is equal, whatever folder it came from."""
        return f"sha256 {self.sha256}, {self.preprocessing}"

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """Features of pictures, each independent of the others; TF32 and autocast are off whatever the caller chose.

        Args:
            images: uint8 (B, H, W, 3) on any device.

        Returns:
            float32 (B, D) on ``device``.

        Raises:
            ValueError: another shape or type.
        """
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[-1] != 3 or 0 in images.shape[1:3]:
            raise ValueError(f"expected uint8 images (B, H, W, 3), found {images.dtype} {tuple(images.shape)}")
        if len(images) == 0:
            return torch.empty(0, self.width, device=self.device)
        with full_precision(self.device):
            return self._features(images.to(self.device).permute(0, 3, 1, 2)).float()

    @abstractmethod
    def _features(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) to (B, D)."""


class InceptionFeatures(Extractor):
    """The 2048 numbers before the classifier of FID's Inception, by torch-fidelity, bit for bit its own.

    Raises MissingWeights, or ImportError if torch-fidelity is not installed.
    """

    preprocessing = "299 x 299 bilinear as in TensorFlow 1 (not antialiased), pixels / 128 - 1"

    def __init__(self, device: torch.device | str = "cpu", download: bool = True) -> None:
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3
        except ImportError as error:
            raise ImportError(f"{_INCEPTION} needs the package torch-fidelity: pip install 'ssdd[eval]'") from error
        path = hub_file(_INCEPTION, URL_INCEPTION_V3, download)
        if not sha256(path).startswith(_INCEPTION_HASH):
            raise MissingWeights(
                f"{_INCEPTION}: {path} is another file than torch-fidelity's (its sha256 does not begin with "
                f"{_INCEPTION_HASH}); put the one from {URL_INCEPTION_V3} there"
            )
        net = FeatureExtractorInceptionV3(_INCEPTION, ["2048"], feature_extractor_weights_path=str(path))
        super().__init__(_INCEPTION, net, 2048, path, device)

    def _features(self, images: Tensor) -> Tensor:
        return self.net(images.contiguous())[0]


class TorchvisionFeatures(Extractor):
    """What the last linear layer of one of torchvision's classifiers is given; for MobileNetV2 means over H and W.

    The weights are the first that torchvision lists for the model: IMAGENET1K_V1 but for two, in all releases.

    Raises MissingWeights, or ValueError for a model that torchvision does not have or that has no linear layer.
    """

    def __init__(self, model: str, name: str, device: torch.device | str = "cpu", download: bool = True) -> None:
        try:
            weights = next(iter(torchvision.models.get_model_weights(model)))
        except (ValueError, StopIteration) as error:
            raise ValueError(f"{name}: torchvision has no classifier {model}") from error
        path = hub_file(name, weights.url, download)
        try:
            net = torchvision.models.get_model(model, weights=weights)
        except RuntimeError as error:
            raise MissingWeights(
                f"{name}: {path} has the weights of another network; put {weights.url} there"
            ) from error
        linear = [key for key, module in net.named_modules() if isinstance(module, nn.Linear)]
        preset = weights.transforms()
        if not linear or not hasattr(preset, "crop_size"):
            raise ValueError(f"{name}: {model} is no classifier of images that ends in a linear layer")
        width = net.get_submodule(linear[-1]).in_features
        net.set_submodule(linear[-1], nn.Identity())
        super().__init__(name, net, width, path, device)
        self._side, self._filter = preset.crop_size[0], preset.interpolation.value
        self._mean, self._std = preset.mean, preset.std
        self.preprocessing = (
            f"{self._side} x {self._side} {self._filter}, antialiased, mean and deviation of its weights"
        )

    def _features(self, images: Tensor) -> Tensor:
        return self.net(_prepared(images, self._side, self._filter, self._mean, self._std))


class DinoClassToken(Extractor):
    """The class token of a DINOv2 after its last norm. ``source``: hub id or folder, read from safetensors only.

    Raises MissingWeights; ValueError for another architecture; ImportError if transformers is not installed.
    """

    preprocessing = f"{_DINO_SIDE} x {_DINO_SIDE} bicubic, antialiased, mean and deviation of the checkpoint"

    def __init__(self, source: str, name: str, device: torch.device | str = "cpu", download: bool = True) -> None:
        if importlib.util.find_spec("transformers") is None:
            raise ImportError(f"{name} needs the package transformers: pip install 'ssdd[train]'")
        advice = f"{name} needs {source}: put it in Hugging Face's cache, or give a folder with its config.json and "
        advice += f"model.safetensors as {_DINO}:FOLDER"
        if not download and dino_weights(source) is None:
            raise MissingWeights(advice)
        try:
            dino = DinoFeatures(source)
        except RuntimeError as error:  # its advice is about training: only the cause is told
            raise MissingWeights(f"{advice} ({first_line(error.__cause__ or error)})") from error
        weights = dino_weights(source)
        assert weights is not None, "a network was read from nowhere"
        super().__init__(name, dino.net, dino.width, weights, device)
        self._mean, self._std = (t.flatten().tolist() for t in (dino.mean, dino.std))

    def _features(self, images: Tensor) -> Tensor:
        x = _prepared(images, _DINO_SIDE, "bicubic", self._mean, self._std)
        return self.net(pixel_values=x).last_hidden_state[:, 0]


def available_extractors() -> list[str]:
    """Those of ``EXTRACTORS`` that can be loaded at once: package and weights are here. Nothing is downloaded."""
    found = []
    if importlib.util.find_spec("torch_fidelity") is not None:
        from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

        found += [_INCEPTION] if hub_path(URL_INCEPTION_V3).is_file() else []
    if hub_path(torchvision.models.MobileNet_V2_Weights.IMAGENET1K_V1.url).is_file():
        found.append(_MOBILENET)
    if importlib.util.find_spec("transformers") is not None:
        found += [name for name in EXTRACTORS if name.startswith(_DINO) and dino_weights(f"facebook/{name}")]
    return found


def load_extractor(name: str, device: torch.device | str = "cpu", download: bool = True) -> Extractor:
    """An extractor by its name, as in the table above.

    Args:
        name: one of ``EXTRACTORS``, ``torchvision:MODEL``, or ``dinov2:`` with a folder or hub id.
        device: where it computes; features come out there.
        download: whether weights that are not at hand may be fetched. That is tried once.

    Raises:
        MissingWeights: the weights are not at hand; one line that says which file goes where.
        ValueError: no such extractor.
        ImportError: a package is missing; names the extra.
    """
    if name == _INCEPTION:
        return InceptionFeatures(device, download)
    if name == _MOBILENET:
        return TorchvisionFeatures("mobilenet_v2", name, device, download)
    if name.startswith(_TORCHVISION):
        return TorchvisionFeatures(name.removeprefix(_TORCHVISION), name, device, download)
    if name in EXTRACTORS:
        return DinoClassToken(f"facebook/{name}", name, device, download)
    if name.startswith(f"{_DINO}:"):
        return DinoClassToken(name.removeprefix(f"{_DINO}:"), name, device, download)
    raise ValueError(
        f"expected an extractor of {', '.join(EXTRACTORS)}, {_TORCHVISION}MODEL or {_DINO}:FOLDER, found {name!r}"
    )


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """float32 as written, by the same algorithm whatever the batch was before: else the distances change with them."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    flags = {"enabled": True, "benchmark": False, "deterministic": True, "allow_tf32": False}
    try:
        with torch.autocast(device.type, enabled=False), torch.backends.cudnn.flags(**flags):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)


def _prepared(images: Tensor, side: int, filter: str, mean: list[float], std: list[float]) -> Tensor:
    """uint8 (B, 3, H, W) to normalised float32 (B, 3, S, S), without rounding in between."""
    x = images.float() / 255
    if x.shape[2:] != (side, side):
        x = F.interpolate(x, size=(side, side), mode=filter, antialias=True)
    return (x - x.new_tensor(mean)[:, None, None]) / x.new_tensor(std)[:, None, None]
