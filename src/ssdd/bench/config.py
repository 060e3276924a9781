"""The settings of the benchmarks, which the command line shares."""

from dataclasses import dataclass

from ..dtypes import Dtype


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
