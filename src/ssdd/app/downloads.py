"""Files that a visitor takes home: pictures, the latent, and what reproduces them."""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

import torch

from ..autoencoder.codec import LATENT_SUFFIX, EncodedImage, save_encoded
from ..data.images import save_image
from ..runtime.dtypes import dtype_name
from . import DEFAULT_PIXELS
from .compare import JPEG_LABEL, Comparison, Models, Reconstruction

_PYTHON = '''"""Reconstructs picture.png as the page showed it."""

import torch

from ssdd.cli.common import model_of_run
from ssdd.data.images import read_image, save_image
from ssdd.data.pixels import image_to_tensor, tensor_to_image
from ssdd.evaluation.autoencoders import load_autoencoder
from ssdd.evaluation.run import add_latent_noise

STEPS, SEED, LATENT_NOISE = {steps}, {seed}, {noise}

x = image_to_tensor(read_image("picture.png"))[None]  # 1, 3, H, W in [-1, 1]
for number, name in enumerate({names}):
    autoencoder = load_autoencoder(model_of_run(name), {device!r}, torch.{dtype}{encoder})
    latent = autoencoder.encode(x)
    if isinstance(latent, torch.Tensor):
        latent = add_latent_noise(latent, LATENT_NOISE, SEED, [0])
    steps = None if autoencoder.only_steps else STEPS
    y = autoencoder.decode(latent, steps, autoencoder.noise(latent, SEED, [0]))
    save_image(f"reconstruction-{{number}}.png", tensor_to_image(y[0]), overwrite=True)
'''


def python_snippet(comparison: Comparison, models: Models) -> str:
    """Return a script that makes the reconstructions of a comparison from its picture, saved as picture.png."""
    settings = comparison.settings
    return _PYTHON.format(
        steps=settings.steps,
        seed=settings.seed,
        noise=settings.latent_noise,
        names=repr([result.name for result in comparison.reconstructions]),
        device=str(models.device),
        dtype=str(models.dtype).removeprefix("torch."),
        encoder="" if models.encoder is None else f", {models.encoder!r}",
    )


def command_snippet(comparison: Comparison, models: Models) -> str:
    """Return the commands that open this view, and that measure it; the second one always draws seed 0."""
    settings = comparison.settings
    names = [models.names[result.label] for result in comparison.reconstructions if result.label != JPEG_LABEL]
    network = ["--encoder", models.encoder] if models.encoder else []
    network += [] if models.dtype == torch.float32 else ["--dtype", dtype_name(models.dtype)]
    view = ["ssdd", "app", "picture.png", "--models", *names, *network, "--steps", str(settings.steps)]
    view += ["--seed", str(settings.seed), "--latent-noise", f"{settings.latent_noise:g}"]
    height, width, _ = comparison.picture.shape
    view += ["--pixels", str(height * width)] if height * width > DEFAULT_PIXELS else []
    measure = ["ssdd", "evaluate", *(result.name for result in comparison.reconstructions), *network]
    measure += ["--data", "original", "--protocol", "native-v1", "--steps", str(settings.steps)]
    measure += ["--latent-noise", f"{settings.latent_noise:g}"] if settings.latent_noise else []
    measure += ["--save-reconstructions", "reconstructions"]
    if settings.seed:
        lines = [shlex.join(view), "# ssdd evaluate draws seed 0: take reproduce.py"]
    else:
        lines = [shlex.join(view), "mkdir -p original && cp picture.png original", shlex.join(measure)]
    return "\n".join(lines) + "\n"


def write_files(folder: Path, comparison: Comparison, shown: Reconstruction, models: Models) -> list[Path]:
    """Write the picture, what one autoencoder made of it, its latent, and both snippets; return their paths.

    The latent file is one of ``ssdd encode`` whose posterior is a point: the latent that was decoded, noise included.
    """
    stem = file_stem(shown.label)
    paths = [folder / "picture.png", folder / f"{stem}.png"]
    for path, image in zip(paths, (comparison.picture, shown.image), strict=True):
        save_image(path, image, overwrite=True)
    if shown.latent is not None:
        height, width, _ = comparison.picture.shape
        name, autoencoder = models.load(shown.label)
        point = torch.full_like(shown.latent, -30.0)  # the smallest log-variance of diffusers' posteriors
        encoded = EncodedImage(
            shown.latent, point, height, width, autoencoder.spatial_factor, name, models.identify(shown.label)
        )
        paths.append(folder / f"{stem}{LATENT_SUFFIX}")
        save_encoded(paths[-1], encoded, overwrite=True)
    snippets: Sequence[tuple[str, str]] = (
        ("reproduce.py", python_snippet(comparison, models)),
        ("reproduce.sh", command_snippet(comparison, models)),
    )
    for name, text in snippets:
        (folder / name).write_text(text, encoding="utf-8")
        paths.append(folder / name)
    return paths


def file_stem(label: str) -> str:
    """Return a label as the name of a file."""
    return re.sub(r"[^\w.-]+", "-", label).strip(".-") or "model"
