"""The encoder whose latents are stored: found by name, hashed, run. Nothing of a model's decoder is needed.

Shapes: B crops of S x S pixels, f spatial factor, c latent channels, h = w = S / f.
"""

from functools import cached_property

import torch
from torch import Tensor

from ..checkpoints.encoders import cast, load_encoder_of
from ..checkpoints.identity import identify
from ..checkpoints.own_code import ForeignEncoder
from ..nn.encoder import LOGVAR_RANGE, Encoder
from ..runtime.dtypes import Dtype, torch_dtype


class LatentEncoder:
    """Encoder of a saved autoencoder, ours or diffusers', or one for a model that only decodes; in eval mode.

    Attributes:
        identity: Identity of the latents that it makes.
    """

    def __init__(
        self, name: str, device: torch.device | str = "cpu", dtype: Dtype = "fp32", encoder: str | None = None
    ) -> None:
        """
        Args:
            name: Of the autoencoder; see ``checkpoints.encoders.find_encoder``.
            device: Where it runs.
            dtype: fp32, bf16 or fp16; a module of the user's that states its own keeps it.
            encoder: That of a model that only decodes; see ``checkpoints.encoders.load_encoder``.

        Raises ValueError, CheckpointError, OSError or ImportError with one line.
        """
        self._loaded = load_encoder_of(name, encoder)
        self.identity = identify(name, encoder, self._loaded)
        self.latent_channels, self.spatial_factor = self._loaded.latent_channels, self._loaded.spatial_factor
        self.device = torch.device(device)
        self._dtype = torch_dtype(dtype)

    @cached_property
    def _module(self) -> Encoder | ForeignEncoder:
        """The network, moved to the device when it is first used: who only plans needs none."""
        return cast(self._loaded, self._dtype).to(self.device)

    @torch.inference_mode()
    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance (B, c, h, w), as ``AutoencoderSSDD.encode(x).latent_dist`` has them.

        Args:
            x: (B, 3, S, S) in [-1, 1] on the encoder's device.
        """
        mean, logvar = self._module(x.to(self._module.dtype)).chunk(2, dim=1)
        return mean, logvar.clamp(*LOGVAR_RANGE)
