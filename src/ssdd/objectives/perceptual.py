"""LPIPS (Zhang et al. 2018), from torchmetrics, whose square root has a safe gradient at zero features."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import LPIPSNetwork

_BACKBONE_FILES = {
    "vgg": "vgg16-397923af.pth",
    "alex": "alexnet-owt-7be5be79.pth",
    "squeeze": "squeezenet1_1-b8a52dc0.pth",
}
"""torchvision's file of each backbone; the linear layers on top come with torchmetrics."""


def backbone_url(network: LPIPSNetwork) -> str:
    """Return where torchvision downloads the backbone from."""
    return f"https://download.pytorch.org/models/{_BACKBONE_FILES[network]}"


def backbone_path(network: LPIPSNetwork) -> Path:
    """Return where torchvision looks for the backbone before it downloads it: torch.hub's cache in ``TORCH_HOME``."""
    return Path(torch.hub.get_dir()) / "checkpoints" / _BACKBONE_FILES[network]


class _Backbone(nn.Module):
    """A backbone of torchmetrics whose forward makes no class, for which torch.compile would begin anew each time."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        slices: Any = getattr(network, "slices", None)
        self.slices = nn.ModuleList(network.children() if slices is None else slices)

    def forward(self, x: Tensor) -> list[Tensor]:
        features = []
        for part in self.slices:
            x = part(x)
            features.append(x)
        return features


class LPIPS(nn.Module):
    """Perceptual distance of two images, by a frozen network.

    Raises RuntimeError with one line that names the file if the backbone is missing and cannot be downloaded, or is
    damaged.
    """

    def __init__(self, network: LPIPSNetwork = "vgg") -> None:
        super().__init__()
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

        path = backbone_path(network)
        try:
            net: Any = LearnedPerceptualImagePatchSimilarity(net_type=network).net
        except Exception as error:  # of many kinds: zip, pickle, end of file, network
            if path.is_file() and not isinstance(error, OSError):
                raise RuntimeError(
                    f"LPIPS-{network}: {path} is damaged: delete it, and it is downloaded again, or put the "
                    f"torchvision file there ({type(error).__name__})"
                ) from error
            raise RuntimeError(
                f"LPIPS-{network} needs {path}, which is missing and could not be downloaded ({error}); put the "
                "torchvision file there, or choose another network"
            ) from error
        net.net = _Backbone(net.net)
        self.net = net
        self.requires_grad_(False)
        self.eval()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return distances (B,) of images x and y, (B, 3, H, W) in [-1, 1]."""
        return self.net(x, y).flatten()
