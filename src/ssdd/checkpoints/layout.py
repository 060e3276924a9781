"""Foreign tensors into our modules: every name and shape is compared before anything is loaded."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from ..runtime.text import one_safe_line
from .names import Rules, rename

_SHOWN = 3


class CheckpointError(ValueError):
    """A checkpoint that is not what it should be; one line with what was expected, and the first differences."""

    def __init__(self, message: str) -> None:
        super().__init__(one_safe_line(message))


@dataclass(frozen=True)
class Expectation:
    """A module that is to be filled, and how its parameters are called in the file."""

    module: nn.Module
    rules: Rules
    prefix: str = ""

    def names(self) -> dict[str, str]:
        """Name in the file -> our name."""
        return {self.prefix + rename(name, self.rules): name for name in self.module.state_dict()}


def take(source: str, tensors: Mapping[str, Tensor], expected: Expectation) -> dict[str, Tensor]:
    """Return the module's tensors under our names, each of the right shape.

    A 1x1 convolution where we have a linear layer is accepted: the same matrix.

    Raises CheckpointError if a tensor is missing, unexpected, of another shape, or not floating point where ours is (or
    the other way round).
    """
    names, expected_state = expected.names(), expected.module.state_dict()
    differences = [f"no {name}" for name in names if name not in tensors]
    differences += [f"unexpected {name}" for name in tensors if name not in names]
    state: dict[str, Tensor] = {}
    for theirs, ours in names.items():
        if theirs not in tensors:
            continue
        tensor, shape = tensors[theirs], expected_state[ours].shape
        if tensor.dim() == 4 and len(shape) == 2 and tensor.shape[2:] == (1, 1):
            tensor = tensor[:, :, 0, 0]
        if tensor.shape != shape:
            differences.append(f"{theirs} is {list(tensor.shape)}, expected {list(shape)}")
        elif tensor.is_floating_point() != expected_state[ours].is_floating_point():
            what = "floating point" if expected_state[ours].is_floating_point() else expected_state[ours].dtype
            differences.append(f"{theirs} is {tensor.dtype}, expected {what}")
        else:
            state[ours] = tensor
    if differences:
        raise CheckpointError(
            f"{source}: {len(differences)} differences from the expected layout: {first(differences)}"
        )
    return state


def first(items: list[str]) -> str:
    """Return the first few items in one line, and how many more there are."""
    more = f"; and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return "; ".join(items[:_SHOWN]) + more
