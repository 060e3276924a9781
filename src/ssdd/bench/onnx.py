"""Our one-step decoder as a contender in ONNX Runtime, as ``ssdd export`` writes it.

Shapes: B batch, S side of an image, c latent channels, g x g latent grid.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from ..autoencoder import AutoencoderSSDD
from ..nn.presets import encoder_size
from .config import DecodeBench
from .networks import Contender, Preparation, Work


def check_onnx(settings: DecodeBench, device: torch.device) -> None:
    """Raises ValueError or ImportError with one line where the files cannot be compared with the other contenders."""
    from ..export.trace import require_packages

    require_packages()
    if (device.type, settings.dtype, settings.steps) != ("cpu", "fp32", 1):
        raise ValueError(
            "the peer onnx decodes in one step, in float32, on a CPU: pass --steps 1 --dtype fp32 --device cpu, or "
            "leave it out of --peers"
        )


def onnx_contender(size: str, latent_name: str, how: Preparation) -> Contender:
    """A decoder of this size, with as many threads as PyTorch has."""
    from ..export.check import open_session
    from ..export.files import export_model
    from ..export.trace import DECODER

    latent = encoder_size(latent_name)
    autoencoder = how.plain(AutoencoderSSDD.from_preset(latent_name, size, has_encoder=False))
    with TemporaryDirectory() as folder:
        export_model(autoencoder, Path(folder), "", check=False)
        session = open_session(Path(folder) / DECODER)

    def inputs(side: int, batch: int) -> tuple[Tensor, Tensor]:
        z = how.random(batch, latent.latent_channels, side // latent.factor, side // latent.factor)
        return z, how.random(batch, 3, side, side)

    def work(side: int, batch: int) -> Work:
        z, noise = inputs(side, batch)
        values = {"latent": z.numpy(), "noise": noise.numpy()}
        return lambda: torch.from_numpy(session.run(["image"], values)[0])

    def counted(side: int, batch: int) -> Work:
        z, noise = inputs(side, batch)
        return lambda: autoencoder.decode(z, noise=noise, num_inference_steps=1).sample

    return Contender(f"ONNX-{size} {latent_name}", work, None, counted)
