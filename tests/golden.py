"""The weights and inputs of the golden cases: a formula fills them, so that no weight file is needed.

``wave(name, shape, scale)[i] = scale * sin(0.7390851 i + crc32(name) % 9973)``, i over the flattened tensor.
"""

import math
import zlib

import numpy as np
import torch
from torch import Tensor, nn

from ssdd.checkpoints.names import Rules, rename


def wave(name: str, shape: tuple[int, ...], scale: float) -> Tensor:
    index = np.arange(math.prod(shape), dtype=np.float64)
    values = scale * np.sin(0.7390851 * index + zlib.crc32(name.encode()) % 9973)
    return torch.from_numpy(values.astype(np.float32).reshape(shape))


def fill(module: nn.Module, rules: Rules) -> None:
    """Sets every parameter by the formula of its name in the authors' layout."""
    state = {}
    for name, tensor in module.state_dict().items():
        theirs, shape = rename(name, rules), tuple(tensor.shape)
        if len(shape) == 1:
            state[name] = wave(theirs, shape, 0.1) + (1 if theirs.endswith("weight") else 0)
        elif theirs.endswith("relative_bias_table"):
            state[name] = wave(theirs, shape, 0.5)
        else:
            state[name] = wave(theirs, shape, math.sqrt(1 / math.prod(shape[1:])))
    module.load_state_dict(state)
