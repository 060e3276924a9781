"""One picture through several autoencoders: reconstructions, metrics and costs. Nothing here knows of a page.

Shapes: H x W pixels, multiples of 32; c latent channels; h x w latent grid.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from msgspec import structs
from PIL import Image
from torch import Tensor

from ..checkpoints.embedded import embedded_names
from ..checkpoints.identity import LatentIdentity
from ..checkpoints.layout import CheckpointError
from ..checkpoints.own_code import OWN_CODE, one_line
from ..checkpoints.places import find_model
from ..data.pixels import Pixels, image_to_tensor
from ..evaluation.autoencoders import JPEG_AUTO, Autoencoder, Network, load_autoencoder
from ..evaluation.decoders import identify_network
from ..evaluation.image_metrics import rounded
from ..evaluation.pairs import ImageComparison, ImageMetrics
from ..evaluation.run import add_latent_noise
from ..runtime.memory import memory_growth
from ..runtime.peak import timed
from ..runtime.text import one_safe_line

MULTIPLE = 32
"""Pictures are cut to multiples of it, as by the protocol native-v1: no autoencoder up to f32 has to pad."""

JPEG_LABEL = "JPEG, same bytes"
"""Names JPEG files of as many bytes as the latent of the first network of a comparison."""


@dataclass(frozen=True)
class Settings:
    """How latents are decoded.

    Attributes:
        steps: number of decoding steps of those decoders that have a choice.
        seed: of the noise that decoding starts from, and of the noise on the latent.
        latent_noise: standard deviation of the noise on the latent, in standard deviations of the latent.
    """

    steps: int = 1
    seed: int = 0
    latent_noise: float = 0.0


@dataclass(frozen=True)
class EncodedPicture:
    """What an autoencoder made of a picture: its latent, (1, c, h, w) for a network, bytes of it, seconds taken."""

    latent: Any
    latent_bytes: int
    seconds: float


@dataclass(frozen=True)
class Reconstruction:
    """A picture as an autoencoder decodes it, uint8 (H, W, 3), with its metrics and costs.

    Attributes:
        label: of the autoencoder on the page.
        name: see ``Models``; jpeg:BYTES with the bytes of this picture.
        steps: number of decoding steps; None if the decoder has none to choose.
        latent: of a network, that was decoded, noise included: (c, h, w).
        latent_shape: in words.
        peak_bytes: that decoding took on a GPU; None on a CPU.
    """

    label: str
    name: str
    image: Pixels
    metrics: ImageMetrics
    steps: int | None
    latent: Tensor | None
    latent_shape: str
    latent_bytes: int
    encode_seconds: float
    decode_seconds: float
    peak_bytes: int | None


@dataclass(frozen=True)
class Failure:
    """An autoencoder that could not reconstruct the picture, and one line that says why."""

    label: str
    reason: str


@dataclass(frozen=True)
class Comparison:
    """A picture, uint8 (H, W, 3), and what autoencoders made of it.

    Attributes:
        title: of the picture.
        picture: the pixels that were encoded.
        encoded: by label, so that other settings need no encoding.
        results: in the order of the labels that were asked for.
        settings: with which they were decoded.
    """

    title: str
    picture: Pixels
    encoded: dict[str, EncodedPicture] = field(default_factory=dict)
    results: tuple[Reconstruction | Failure, ...] = ()
    settings: Settings = Settings()

    @property
    def reconstructions(self) -> list[Reconstruction]:
        """Return the results without the failures."""
        return [result for result in self.results if isinstance(result, Reconstruction)]

    def shown(self, label: str | None) -> Reconstruction | None:
        """Return the reconstruction with a label, or else the first one, if there is any."""
        found = {result.label: result for result in self.reconstructions}
        return found.get(label or "") or next(iter(found.values()), None)


def fit_picture(image: Pixels, pixels: int) -> Pixels:
    """Reduce a picture, uint8 (H, W, 3), to at most so many pixels, and cut it to multiples of 32 around its centre.

    Raises ValueError for sides below 32 pixels.
    """
    height, width = image.shape[:2]
    if (scale := math.sqrt(pixels / (height * width))) < 1:
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        image = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))
        height, width = image.shape[:2]
    if min(height, width) < MULTIPLE:
        raise ValueError(f"expected a picture with sides of at least {MULTIPLE} pixels, found {width} x {height}")
    top, left = height % MULTIPLE // 2, width % MULTIPLE // 2
    return np.ascontiguousarray(image[top : top + height - height % MULTIPLE, left : left + width - width % MULTIPLE])


def label_models(names: Sequence[str]) -> dict[str, str]:
    """Return the names of autoencoders by labels: a path's last part, where no other autoencoder has it.

    The embedded models and JPEG of the same bytes are always among them.
    """
    names = list(dict.fromkeys([*names, *embedded_names()]))
    short = [_last_part(name) for name in names]
    labels = [s if short.count(s) == 1 else name for s, name in zip(short, names, strict=True)]
    return {**dict(zip(labels, names, strict=True)), JPEG_LABEL: JPEG_AUTO}


def _last_part(name: str) -> str:
    """Return a name without the folders before it, and a hub id as it is."""
    if Path(name).exists():
        path = Path(name).absolute()
        return path.parent.name if path.name in ("model", "vae") else path.name
    return name.rpartition("/")[2] if re.fullmatch(OWN_CODE, name) else name


def check_model_name(name: str) -> None:
    """Raise FileNotFoundError for a name that cannot be an autoencoder's; the hub is not asked."""
    if not re.fullmatch(rf"(jpeg|bicubic):.*|{OWN_CODE}", name) and not Path(name).is_file():
        find_model(name, lambda hub: Path(hub), "jpeg:BYTES, bicubic:FACTOR, a .safetensors file, file.py:NAME, ")


class Models:
    """The autoencoders that a page may use, each loaded when it is first needed, and kept.

    Args:
        names: see ``load_autoencoder``. No other can be chosen, but for the embedded ones and JPEG.
        device: where they run.
        dtype: of the networks.
        encoder: of models that have none.
        folders: where models are, by their names, that ``load_autoencoder`` would not find: of unfinished runs.
    """

    def __init__(
        self,
        names: Sequence[str],
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        encoder: str | None = None,
        folders: Mapping[str, str] | None = None,
    ) -> None:
        self.names = label_models(names)
        self.folders = folders or {}
        self.device, self.dtype, self.encoder = torch.device(device), dtype, encoder
        self._loaded: dict[str, Autoencoder] = {}
        self._identities: dict[str, LatentIdentity] = {}

    @property
    def labels(self) -> list[str]:
        """Return what can be chosen."""
        return list(self.names)

    @cached_property
    def metrics(self) -> ImageComparison:
        """Return the metrics, with LPIPS where its weights are at hand."""
        return ImageComparison(self.device)

    def load(self, label: str, jpeg_bytes: int | None = None) -> tuple[str, Autoencoder]:
        """Return name and autoencoder of a label.

        Args:
            label: one of ``labels``.
            jpeg_bytes: of each file, for JPEG of the same bytes.

        Raises:
            ValueError: another label, or no bytes for JPEG; or as ``load_autoencoder``.
        """
        if label not in self.names:
            raise ValueError(f"expected one of the models that the page was started with, found {label[:80]!r}")
        name = self.names[label]
        if name == JPEG_AUTO:
            if jpeg_bytes is None:
                raise ValueError("expected a model whose bytes a JPEG file is to have, found none: choose one besides")
            name = f"jpeg:{jpeg_bytes}"
            return name, load_autoencoder(name)
        if name not in self._loaded:
            place = self.folders.get(name, name)
            self._loaded[name] = load_autoencoder(place, self.device, self.dtype, self.encoder)
        return name, self._loaded[name]

    def identify(self, label: str) -> LatentIdentity | None:
        """Return whose latents a network makes; None for one whose encoder alone cannot be read. Raises as ``load``."""
        name, autoencoder = self.load(label)
        if name not in self._identities:
            try:
                found = identify_network(self.folders.get(name, name), cast(Network, autoencoder))
            except CheckpointError:
                return None
            self._identities[name] = structs.replace(found, name=name)
        return self._identities[name]


def compare(
    models: Models,
    comparison: Comparison,
    labels: Sequence[str],
    settings: Settings,
    progress: Callable[[int, str], None] = lambda done, label: None,
) -> Comparison:
    """Return the comparison with the results of these autoencoders in these settings.

    A picture is encoded once by each; an autoencoder that fails leaves the others' results.

    Args:
        models: where the autoencoders are.
        comparison: the picture, and latents of it that are known.
        labels: of the autoencoders.
        settings: of decoding.
        progress: gets the number of autoencoders that are done and the label of the next.
    """
    encoded = dict(comparison.encoded)
    results: list[Reconstruction | Failure] = []
    x = image_to_tensor(comparison.picture)[None]  # 1, 3, H, W
    for done, label in enumerate(sorted(labels, key=lambda label: label == JPEG_LABEL)):  # it needs the others' bytes
        progress(done, label)
        try:
            name, autoencoder = models.load(label, _bytes_of_first_network(labels, encoded))
            if label not in encoded or label == JPEG_LABEL:  # another network may be the first one now
                latent, seconds = timed(partial(autoencoder.encode, x.to(models.device)), models.device)
                encoded[label] = EncodedPicture(latent, autoencoder.latent_bytes(latent)[0], seconds)
            results.append(reconstruct(label, name, autoencoder, encoded[label], comparison.picture, settings, models))
        except Exception as error:  # whatever a model of others raises
            ours = isinstance(error, (OSError, ValueError))  # their messages say what was expected
            results.append(Failure(label, one_safe_line(str(error)) if ours else one_line(error)[:400]))
    return replace(comparison, encoded=encoded, results=tuple(results), settings=settings)


def _bytes_of_first_network(labels: Sequence[str], encoded: dict[str, EncodedPicture]) -> int | None:
    networks = (encoded[label] for label in labels if label in encoded and label != JPEG_LABEL)
    return next((e.latent_bytes for e in networks if isinstance(e.latent, Tensor)), None)


def reconstruct(
    label: str,
    name: str,
    autoencoder: Autoencoder,
    encoded: EncodedPicture,
    picture: Pixels,
    settings: Settings,
    models: Models,
) -> Reconstruction:
    """Decode the latent of a picture and compare. Raises ValueError for an image that is not finite."""
    latent, seed, device = encoded.latent, settings.seed, models.device
    if isinstance(latent, Tensor):
        latent = add_latent_noise(latent, settings.latent_noise, seed, [0])
    noise = autoencoder.noise(latent, seed, [0])

    steps = settings.steps if autoencoder.has_steps else None

    def decode() -> tuple[Tensor, float]:
        return timed(lambda: autoencoder.decode(latent, steps, noise), device)

    on_gpu = device.type == "cuda"
    (decoded, seconds), peak = memory_growth(decode, device) if on_gpu else (decode(), None)
    result = rounded(decoded)
    if not result.valid[0]:
        small = f"no JPEG file of {name.partition(':')[2]} bytes can hold this picture"
        raise ValueError(small if autoencoder.kind == "JPEG" else "expected a finite image, found NaN or infinity")
    return Reconstruction(
        label,
        name,
        result.images[0],
        models.metrics(picture, result.images[0]),
        steps,
        latent[0].float().cpu() if isinstance(latent, Tensor) else None,
        _shape_in_words(latent),
        encoded.latent_bytes,
        encoded.seconds,
        seconds,
        peak,
    )


def _shape_in_words(latent: Any) -> str:
    """Return c x h x w of a latent: (1, c, h, w) of a network, (1, h, w, c) of small pictures, or a list of files."""
    if isinstance(latent, list):
        return "file"
    shape = latent.shape[1:] if isinstance(latent, Tensor) else (latent.shape[3], *latent.shape[1:3])
    return " x ".join(map(str, shape))


# ---- what is looked at -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Region:
    """A square of a picture.

    Attributes:
        x, y: centre, in percent of the width and the height.
        zoom: the shorter side of the picture by the side of the square.
    """

    x: float = 50.0
    y: float = 50.0
    zoom: float = 4.0

    def box(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Return left, top, right and bottom in a picture of H x W pixels: a square of 8 pixels at least, inside it."""
        side = max(8, min(min(height, width), round(min(height, width) / max(self.zoom, 1.0))))
        left = min(max(round(width * self.x / 100 - side / 2), 0), width - side)
        top = min(max(round(height * self.y / 100 - side / 2), 0), height - side)
        return left, top, left + side, top + side

    def cut(self, image: Pixels) -> Pixels:
        """Return the square of an image, uint8 (H, W, 3)."""
        left, top, right, bottom = self.box(*image.shape[:2])
        return image[top:bottom, left:right]


def latent_channels(latent: Tensor) -> Iterator[tuple[Pixels, str]]:
    """Yield each channel of a latent (c, h, w) as a gray image, uint8 (h, w, 3), with a line of its mean and deviation.

    Black and white are 2.5 deviations below and above the mean.
    """
    for channel in latent.float():
        mean, std = float(channel.mean()), float(channel.std(correction=0))
        levels = ((channel - mean) / max(std, 1e-12) / 5 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)
        yield np.repeat(levels.numpy()[:, :, None], 3, axis=2), f"mean {mean:.3g}, std {std:.3g}"
