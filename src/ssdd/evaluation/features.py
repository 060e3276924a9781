"""Feature extractors: frozen networks that turn images into the features whose distributions are compared.

Every extractor sees the whole image, resized to a square of its own whatever the aspect ratio; nothing is cropped.

==========================  ===============  =========  ====================================================
name                        title            width      preprocessing
==========================  ===============  =========  ====================================================
inception-torch-fidelity    Inception        2048       299 px, bilinear as in TensorFlow 1; pixels / 128 - 1
mobilenet_v2-imagenet       MobileNetV2      1280       224 px, bilinear; ImageNet's mean and std
dinov2-small ... -giant     DINOv2-S ... -g  384-1536   224 px, bicubic; the checkpoint's mean and std
dinov2:FOLDER_OR_ID         by its width     its own    the same
clip-vit-large-patch14-336  CLIP-L           768        336 px, bicubic; CLIP's mean and std
clip:FOLDER_OR_ID           by its width     its own    the same at its own size
==========================  ===============  =========  ====================================================

All but Inception's resizing is antialiased. The Fréchet distance is called FID on Inception's features alone.

FD-DINOv2 of Stein et al. (2023) takes the same class token of DINOv2-L at 224 px. Their code (dgm-eval) rounds resized
images to 8 bits, and stretches the position embeddings slightly differently: expect close values, not equal ones.
CMMD of Jayasumana et al. (2024) takes the same normalized embedding of CLIP-L at 336 px.

Shapes: B images, H x W pixels, S side that the network sees, D width of a feature.
"""

import importlib.util
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import MobileNet_V2_Weights, mobilenet_v2

from ..objectives.repa import DinoFeatures
from ..runtime.text import quiet
from .weights import (
    MissingWeights,
    cached_checkpoint,
    checkpoint_folder,
    damaged,
    first_line,
    hub_file,
    hub_path,
    sha256,
)

logger = logging.getLogger(__name__)

INCEPTION, MOBILENET, CLIP = "inception-torch-fidelity", "mobilenet_v2-imagenet", "clip-vit-large-patch14-336"
EXTRACTORS = (INCEPTION, MOBILENET, "dinov2-small", "dinov2-base", "dinov2-large", "dinov2-giant", CLIP)
"""The extractors with a name of their own; ``load_extractor`` takes folders too."""

CLIP_FEATURES = "normalized CLIP embedding"
"""Ends the preprocessing, and so the identity, of features that CMMD is defined on."""

_MOBILENET_WEIGHTS = MobileNet_V2_Weights.IMAGENET1K_V1
_IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
_OPENAI = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])


class Extractor(ABC):
    """A frozen network that is called on images, in float32 and without randomness.

    Attributes:
        name: name for ``load_extractor``.
        title: display name.
        width: D.
        sha256: SHA-256 of the weights in hexadecimal.
        preprocessing: one line for reports.
    """

    preprocessing: str

    def __init__(
        self, name: str, net: nn.Module, width: int, weights: Path, device: torch.device | str, title: str = ""
    ) -> None:
        self.name, self.title, self.width, self.sha256 = name, title or name, width, sha256(weights)
        self.device = torch.device(device)
        self.net = net.to(self.device).requires_grad_(False).eval()

    @property
    def identity(self) -> str:
        """Weights and preprocessing: features are comparable where this is equal, whatever folder they came from."""
        return f"sha256 {self.sha256}, {self.preprocessing}"

    def frechet_name(self, count: int | None) -> str:
        """Return the name of the Fréchet distance between sets of so many images: FID-50k, FD-5k DINOv2-L, or FID."""
        if count is None:
            number = ""
        elif count >= 1000:
            number = f"-{count // 1000}k" if count % 1000 == 0 else f"-{count // 100 / 10:.1f}k"
        else:
            number = f"-{count}"
        return f"FID{number}" if self.name == INCEPTION else f"FD{number} {self.title}"

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """Return the features of images, each independent of the others; TF32 and autocast are off.

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
        """Return (B, D) of uint8 (B, 3, H, W)."""


class InceptionFeatures(Extractor):
    """The 2048 features before the classifier of FID's Inception, bit for bit those of torch-fidelity."""

    preprocessing = "299 x 299 bilinear as in TensorFlow 1 (not antialiased), pixels / 128 - 1"

    def __init__(self, device: torch.device | str = "cpu", download: bool = True) -> None:
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3
        except ImportError as error:
            raise ImportError(f"{INCEPTION} needs the package torch-fidelity: pip install 'ssdd[eval]'") from error
        path = hub_file(INCEPTION, URL_INCEPTION_V3, download, exact=True)  # FID is defined on these very weights
        net = FeatureExtractorInceptionV3(INCEPTION, ["2048"], feature_extractor_weights_path=str(path))
        super().__init__(INCEPTION, net, 2048, path, device, "Inception")

    def _features(self, images: Tensor) -> Tensor:
        return self.net(images.contiguous())[0]


class MobileNetFeatures(Extractor):
    """The input of the classifier of torchvision's MobileNetV2: the last feature map's mean over H and W."""

    preprocessing = "224 x 224 bilinear, antialiased, mean and std of ImageNet"

    def __init__(self, device: torch.device | str = "cpu", download: bool = True) -> None:
        path = hub_file(MOBILENET, _MOBILENET_WEIGHTS.url, download)
        try:
            net = mobilenet_v2(weights=_MOBILENET_WEIGHTS)
        except RuntimeError as error:  # tensors of another network
            raise damaged(MOBILENET, path, _MOBILENET_WEIGHTS.url, error) from error
        net.classifier = nn.Identity()
        super().__init__(MOBILENET, net, 1280, path, device, "MobileNetV2")

    def _features(self, images: Tensor) -> Tensor:
        return self.net(_prepared(images, 224, "bilinear", *_IMAGENET))


class DinoClassToken(Extractor):
    """The class token of a DINOv2 after its last norm; ``source`` is a folder or hub id with safetensors."""

    preprocessing = "224 x 224 bicubic, antialiased, mean and std of the checkpoint"

    def __init__(self, name: str, source: str, device: torch.device | str = "cpu", download: bool = True) -> None:
        folder = checkpoint_folder(name, source, download)
        try:
            dino = DinoFeatures(str(folder))
        except (RuntimeError, ValueError) as error:
            raise MissingWeights(
                f"{name}: no readable DINOv2 in {folder} ({first_line(error.__cause__ or error)}); get its files anew"
            ) from error
        title = {384: "DINOv2-S", 768: "DINOv2-B", 1024: "DINOv2-L", 1536: "DINOv2-g"}.get(dino.width, "DINOv2")
        super().__init__(name, dino.net, dino.width, folder, device, title)
        self._mean, self._std = dino.mean.flatten().tolist(), dino.std.flatten().tolist()

    def _features(self, images: Tensor) -> Tensor:
        x = _prepared(images, 224, "bicubic", self._mean, self._std)
        return self.net(pixel_values=x).last_hidden_state[:, 0]


class ClipEmbedding(Extractor):
    """The image embedding of a CLIP, of length 1; ``source`` is a folder or hub id."""

    def __init__(self, name: str, source: str, device: torch.device | str = "cpu", download: bool = True) -> None:
        folder = checkpoint_folder(name, source, download)
        from transformers import CLIPVisionModelWithProjection

        try:
            with quiet("transformers"):  # about the text model in the same file
                loaded: Any = CLIPVisionModelWithProjection.from_pretrained(
                    folder, local_files_only=True, output_loading_info=True, dtype=torch.float32
                )
        except Exception as error:  # of many kinds: no such file, safetensors, pickle, shapes
            raise MissingWeights(
                f"{name}: no readable CLIP in {folder} ({first_line(error)}); get its files anew"
            ) from error
        net, report = loaded
        if report["missing_keys"]:  # transformers would go on with random numbers in their place
            raise MissingWeights(f"{name}: {folder} lacks {len(report['missing_keys'])} tensors of its config.json")
        self._side, width = net.config.image_size, net.config.projection_dim
        super().__init__(name, net, width, folder, device, "CLIP-L" if width == 768 else "CLIP")
        self.preprocessing = f"{self._side} x {self._side} bicubic, antialiased, mean and std of CLIP, {CLIP_FEATURES}"

    def _features(self, images: Tensor) -> Tensor:
        return F.normalize(self.net(pixel_values=_prepared(images, self._side, "bicubic", *_OPENAI)).image_embeds)


def available_extractors() -> list[str]:
    """Return those of ``EXTRACTORS`` whose packages and weights are here; nothing is downloaded."""
    here = {MOBILENET: hub_path(_MOBILENET_WEIGHTS.url).is_file()}
    if importlib.util.find_spec("torch_fidelity") is not None:
        from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

        here[INCEPTION] = hub_path(URL_INCEPTION_V3).is_file()
    if importlib.util.find_spec("transformers") is not None:
        here |= {name: cached_checkpoint(_hub_id(name)) is not None for name in EXTRACTORS[2:]}
    return [name for name in EXTRACTORS if here.get(name)]


def cached_extractor(device: torch.device | str = "cpu") -> Extractor | None:
    """Return the first extractor that is here, or None; one with damaged weights is left out, with a line.

    Nothing is downloaded.
    """
    for name in available_extractors():
        try:
            return load_extractor(name, device, download=False)
        except (MissingWeights, ImportError) as error:
            logger.warning("left out: %s", error)
    return None


def load_extractor(name: str, device: torch.device | str = "cpu", download: bool = True) -> Extractor:
    """Return an extractor by its name, as in the table above.

    Args:
        name: one of ``EXTRACTORS``, or ``dinov2:`` or ``clip:`` with a folder or hub id.
        device: where it computes; features come out there.
        download: whether weights that are not at hand may be downloaded. That is tried once.

    Raises:
        MissingWeights: the weights are not at hand; one line that says which file goes where.
        ValueError: no such extractor.
        ImportError: a package is missing; names the extra.
    """
    if name == INCEPTION:
        return InceptionFeatures(device, download)
    if name == MOBILENET:
        return MobileNetFeatures(device, download)
    kind, _, source = name.partition(":")
    if name in EXTRACTORS:
        kind, source = name.split("-")[0], _hub_id(name)
    if kind == "dinov2" and source:
        return DinoClassToken(name, source, device, download)
    if kind == "clip" and source:
        return ClipEmbedding(name, source, device, download)
    raise ValueError(f"expected an extractor of {', '.join(EXTRACTORS)}, dinov2:FOLDER or clip:FOLDER, found {name!r}")


def _hub_id(name: str) -> str:
    return f"{'openai' if name == CLIP else 'facebook'}/{name}"


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Compute in float32 as written, by the same algorithm whatever the batch before: distances change otherwise."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    flags = {"enabled": True, "benchmark": False, "deterministic": True, "allow_tf32": False}
    try:
        with torch.autocast(device.type, enabled=False), torch.backends.cudnn.flags(**flags):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)


def _prepared(images: Tensor, side: int, filter: str, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return uint8 (B, 3, H, W) as normalized float32 (B, 3, S, S), without rounding in between."""
    x = images.float() / 255
    if x.shape[2:] != (side, side):
        x = F.interpolate(x, size=(side, side), mode=filter, antialias=True)
    return (x - x.new_tensor(mean)[:, None, None]) / x.new_tensor(std)[:, None, None]
