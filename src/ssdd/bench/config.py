"""The settings of the benchmarks, which the command line shares."""

from dataclasses import dataclass
from typing import Literal

from ..dtypes import Dtype
from ..objectives import LPIPSNetwork

Mode = Literal["optimized", "eager"]
Peer = Literal["kl", "tiny", "plain", "onnx"]


@dataclass(frozen=True)
class GenerationBench:
    """What all contenders of the comparison of latent generation share."""

    dit: str = "XL/2"
    """XL/2, L/2, B/2, S/2, tiny/2."""
    decoder: str = "S"
    """Size of our decoder."""
    image_size: int = 256
    batch_size: int = 8
    steps: int = 50
    """Euler steps of the DiT."""
    guidance: float = 4.0
    """Classifier-free guidance; 1 for none, with half of the DiT's work."""
    rounds: int = 3
    """Measured rounds, in which the contenders take turns; one more to warm up."""
    compile: bool = False
    """torch.compile the DiT and the decoders."""
    dtype: Dtype = "bf16"


@dataclass(frozen=True)
class NetworkBench:
    """What all contenders of a comparison of decoders or encoders share."""

    latent: str = "f8c4"
    """Our latents: f8c4, f16c4, ... The peers' are f8c4."""
    sizes: tuple[int, ...] = (256,)
    """Sides of the images in pixels."""
    batch_sizes: tuple[int, ...] = (1,)
    rounds: int = 5
    """Measured rounds, in which the contenders take turns; one more to warm up."""
    seconds: float = 0.3
    """Least time of a round of one contender: quick calls are repeated."""
    mode: Mode = "optimized"
    """optimized: ours by AutoencoderSSDD.optimize, peers in channels-last. eager: all as they are made."""
    compile: bool = False
    """torch.compile, all contenders but ``plain``, anew for each size and batch. (On a CPU ours is not compiled as a
    whole, but its norms are fused by ``optimize`` in any case.)"""
    dtype: Dtype = "bf16"


@dataclass(frozen=True)
class DecodeBench(NetworkBench):
    """Images a second from latents."""

    decoders: tuple[str, ...] = ("S",)
    """Sizes of our decoder, XXS to H."""
    peers: tuple[Peer, ...] = ("kl", "tiny")
    """kl: AutoencoderKL in Stable Diffusion's shape. tiny: AutoencoderTiny. plain: our own network written down
    straightforwardly, in NCHW and never compiled, once for each size. onnx: ours as ssdd export writes it, in ONNX
    Runtime, once for each size; on a CPU in float32. Speeds are against the first."""
    steps: int = 1
    """Decoding steps of ours and of ``plain``."""


@dataclass(frozen=True)
class EncodeBench(NetworkBench):
    """Latents of images a second: our encoder of width 128."""

    peers: tuple[Literal["kl", "tiny"], ...] = ("kl", "tiny")
    """kl: AutoencoderKL in Stable Diffusion's shape. tiny: AutoencoderTiny. Speeds are against the first."""


@dataclass(frozen=True)
class TrainingBench:
    """Updates as ``ssdd train`` makes them (stage flow with its encoder, average, optimiser), on a batch in memory."""

    latent: str = "f8c4"
    decoder: str = "S"
    encoder_width: int = 128
    """Channels of the encoder's first level."""
    image_size: int = 128
    batch_size: int = 8
    lpips: bool = True
    """With a perceptual loss; its weights must be in the cache."""
    lpips_network: LPIPSNetwork = "squeeze"
    precision: Literal["fp32", "bf16"] = "bf16"
    """bf16: autocast, as in training."""
    compile: bool = False
    """One more row: channels last and compiled (on a CPU the norms)."""
    rounds: int = 5
    """Measured rounds, in which the rows take turns; one more to warm up."""
    seconds: float = 0.3
    """Least time of a round of one row."""


@dataclass(frozen=True)
class MemoryBench:
    """Peak memory of a call above the weights, each contender and size in a process of its own."""

    latent: str = "f8c4"
    decoders: tuple[str, ...] = ("S",)
    """Sizes of our decoder, XXS to H."""
    peers: tuple[Literal["kl", "tiny", "plain"], ...] = ("kl",)
    """As for ``ssdd bench decode``; ``plain`` knows no tiles."""
    sizes: tuple[int, ...] = (512, 1024)
    """Sides of the images in pixels."""
    tiling: Literal["both", "off", "on"] = "both"
    """Whole images, in tiles, or a row for each."""
    batch_size: int = 1
    steps: int = 1
    mode: Mode = "eager"
    """optimized: ours by AutoencoderSSDD.optimize, which on a CPU keeps freed memory; peers in channels-last."""
    compile: bool = False
    dtype: Dtype = "bf16"
