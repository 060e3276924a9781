"""The default noise of a decoding without PyTorch, for programs that run the exported decoder."""

import numpy as np


def default_noise(seed: int, height: int, width: int) -> np.ndarray:
    """``torch.randn((3, height, width))`` of a CPU generator with this seed, but for rounding; float32.

    MT19937, 24 bits of each number, Box-Muller (1958) on groups of 16. Raises ValueError unless 3*height*width is a
    multiple of 16, as it is for images of an autoencoder with a factor of 4 or more.
    """
    if 3 * height * width % 16:
        raise ValueError(f"expected 3*height*width to be a multiple of 16, found {height} x {width}")
    bits = np.random.RandomState(seed % 2**32).randint(0, 2**32, 3 * height * width, dtype=np.uint32)
    uniform = (bits % 2**24 / np.float32(2**24)).astype(np.float32).reshape(-1, 2, 8)
    radius, angle = np.sqrt(-2 * np.log1p(-uniform[:, 0])), 2 * np.pi * uniform[:, 1]
    pairs = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    return pairs.astype(np.float32).reshape(3, height, width)
