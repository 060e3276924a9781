"""LPIPS (Zhang et al. 2018), from torchmetrics, whose square root has a safe gradient at zero features."""

from pathlib import Path
from typing import get_args

import torch
from torch import Tensor, nn

from . import LPIPSNetwork

_BACKBONE_FILES = {
    "vgg": "vgg16-397923af.pth",
    "alex": "alexnet-owt-7be5be79.pth",
    "squeeze": "squeezenet1_1-b8a52dc0.pth",
}
"""torchvision's file of each backbone; the linear layers on top come with torchmetrics."""


def backbone_path(network: LPIPSNetwork) -> Path:
    """Return where torchvision looks for the backbone before it downloads it: the hub cache under ``TORCH_HOME``."""
    return Path(torch.hub.get_dir()) / "checkpoints" / _BACKBONE_FILES[network]


def available_network() -> LPIPSNetwork | None:
    """Return the first network whose backbone is in the cache (nothing is downloaded), or None."""
    return next((n for n in get_args(LPIPSNetwork) if backbone_path(n).is_file()), None)


class LPIPS(nn.Module):
    """Perceptual distance of two images, by a frozen network.

    Raises:
        RuntimeError: the backbone is neither cached nor downloadable; the message names the missing file.
    """

    def __init__(self, network: LPIPSNetwork = "vgg") -> None:
        super().__init__()
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

        try:
            self.net = LearnedPerceptualImagePatchSimilarity(net_type=network).net
        except OSError as error:
            raise RuntimeError(
                f"LPIPS-{network} needs {backbone_path(network)}, which is missing and could not be downloaded "
                f"({error}); put the torchvision file there, or choose another network"
            ) from error
        self.requires_grad_(False)
        self.eval()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return distances (B,) of images x and y, (B, 3, H, W) in [-1, 1]."""
        return self.net(x, y).flatten()
