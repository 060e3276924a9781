"""``nn.ops`` for sizes that are not known: one formulation for all of them, which is traced once.

``nn.fast`` chooses between formulations by the sizes that it is given, and a graph for all sizes holds one. Only what
holds for every size decides here: from f8 on all levels have whole latent cells, and sizes are multiples of h and w.
At f4 the last level is rounded up where h or w is odd: there pixels are taken by index.

Shapes: B batch, C channels, G groups, H x W pixels of a level, h x w cells of the latent grid (or 1 x 1); n heads,
R x S token grid, N = R * S tokens, d width of a head, K x L blocks of 8 x 8 queries, each of which sees T x T keys
(22 x 22 for a window of 15; see ``nn.fast.attention``).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true

from ..nn.fast.attention import BLOCK, OUTSIDE
from ..nn.whole_image import Moments


def group_norm(
    x: Tensor, groups: int, scale: Tensor, shift: Tensor, eps: float, moments: Moments | None = None
) -> Tensor:
    """Return ``norm(x) * scale + shift``, as ``ops.group_norm``.

    The sums are float32 and in two steps: those of ONNX Runtime's own norm lose digits on large images.
    """
    if moments is not None:
        y = moments.normalize(x, eps)
    else:
        batch, channels, rows, columns = x.shape
        values = x.float() if x.dtype == torch.float16 else x
        grouped = values.reshape(batch, groups, channels // groups * rows, columns)
        centred = grouped - grouped.mean(3, keepdim=True).mean(2, keepdim=True)
        variance = (centred * centred).mean(3, keepdim=True).mean(2, keepdim=True)
        y = (centred * torch.rsqrt(variance + eps)).reshape(x.shape).to(x.dtype)
    if not _is_known(scale.shape[2:], (1, 1)):
        scale, shift = (resize(m, (x.shape[2], x.shape[3])) for m in (scale, shift))
    return y * scale + shift


def norm_silu(
    x: Tensor, groups: int, scale: Tensor, shift: Tensor, eps: float, moments: Moments | None = None
) -> Tensor:
    """Return the SiLU of ``group_norm``."""
    return F.silu(group_norm(x, groups, scale, shift, eps, moments))


def resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Return x at another size by nearest neighbours, as ``ops.resize``."""
    if _is_known(x.shape[2:], size):
        return x
    repeats = [length // cells for length, cells in zip(size, x.shape[2:], strict=True)]
    if _is_known([n * cells for n, cells in zip(repeats, x.shape[2:], strict=True)], size):
        return F.interpolate(x, scale_factor=[float(n) for n in repeats], mode="nearest")
    for axis, length in zip((2, 3), size, strict=True):  # by index, with the rounding of PyTorch: float32, down
        step = torch.scalar_tensor(x.shape[axis]) / length
        index = (torch.arange(length, dtype=torch.float32) * step).long().clamp(max=x.shape[axis] - 1)
        x = x.index_select(axis, index)
    return x


def downsample_conv(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return a 3x3 convolution of stride 2, as ``ops.downsample_conv``.

    Even sizes go without the padding that no kernel reaches: then n is seen to become n/2.
    """
    if _is_known([n % 2 for n in x.shape[2:]], (0, 0)):
        return F.conv2d(F.pad(x, (1, 0, 1, 0)), weight, bias, stride=2)
    return F.conv2d(x, weight, bias, stride=2, padding=1)


def upsample_conv(x: Tensor, weight: Tensor, bias: Tensor | None, size: tuple[int, int]) -> Tensor:
    """Return a 3x3 convolution of x repeated to twice its size and cut, as ``ops.upsample_conv``."""
    if _is_known([2 * n for n in x.shape[2:]], size):
        x = F.interpolate(x, scale_factor=2.0, mode="nearest")
    else:
        for axis, length in zip((2, 3), size, strict=True):
            x = x.index_select(axis, torch.arange(length, device=x.device) // 2)
    return F.conv2d(x, weight, bias, padding=1)


def windowed_attention(q: Tensor, k: Tensor, v: Tensor, table: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return the attention of every token to the window around it, (B, n, N, d), as ``ops.windowed_attention``.

    Blocks are taken by index, rows and then columns. An index beyond the grid is moved to the nearest token, and a
    channel of its own takes such a key out of the softmax. Memory grows linearly with the grid, whatever its size.
    """
    radius = table.shape[0] // 2
    queries, keys = ([_blocks(length, margin, q.device) for length in grid] for margin in (0, radius))
    off_rows, off_columns = ((at < 0) | (at >= length) for at, length in zip(keys, grid, strict=True))
    outside = (off_rows[:, None, :, None] | off_columns[None, :, None, :]).flatten(2)  # (K, L, T*T)

    def take(x: Tensor, blocks: list[Tensor]) -> Tensor:
        """Return the tokens of each block in row-major order, (B, n, N, d) -> (B, K, L, n, T*T, d)."""
        x = x.transpose(1, 2).unflatten(1, grid)  # (B, R, S, n, d)
        for axis, (at, length) in enumerate(zip(blocks, grid, strict=True), 1):
            x = x.index_select(axis, at.clamp(min=0).clamp(max=length - 1).flatten())
        x = x.reshape(x.shape[0], *blocks[0].shape, *blocks[1].shape, *x.shape[3:])  # (B, K, T, L, T, n, d)
        return x.permute(0, 1, 3, 5, 2, 4, 6).flatten(4, 5)

    q = take(q, queries) * q.shape[-1] ** -0.5  # (B, K, L, n, 64, d)
    k, v = take(k, keys), take(v, keys)  # (B, K, L, n, T*T, d)
    # Every query has a one where a key outside the grid has a large negative number.
    offset = (outside * OUTSIDE).to(k.dtype)[None, :, :, None, :, None]
    q = torch.cat([q, torch.ones_like(q[..., :1])], dim=-1)
    k = torch.cat([k, offset.expand_as(k[..., :1])], dim=-1)

    out = (q @ k.transpose(-1, -2) + _block_bias(table)).softmax(dim=-1) @ v  # (B, K, L, n, 64, d)
    out = out.unflatten(4, (BLOCK, BLOCK)).permute(0, 1, 4, 2, 5, 3, 6).flatten(3, 4).flatten(1, 2)
    for axis, length in enumerate(grid, 1):  # by index: a slice would ask whether there are so many
        out = out.index_select(axis, torch.arange(length, device=out.device))
    return out.flatten(1, 2).transpose(1, 2)  # (B, R, S, n, d) -> (B, n, N, d)


def _blocks(length: int, margin: int, device: torch.device) -> Tensor:
    """Return the rows or columns that each block takes, (blocks, 8 + 2 * margin), also beyond the grid."""
    # Not -(-length // BLOCK): the exported division rounds towards zero.
    begin = torch.arange((length + BLOCK - 1) // BLOCK, device=device) * BLOCK - margin
    return begin[:, None] + torch.arange(BLOCK + 2 * margin, device=device)


def _block_bias(table: Tensor) -> Tensor:
    """Return the bias of a block's queries and the keys that they see, (n, 64, T*T), as ``ops.window_bias``.

    Rows and then columns are looked up, for a file would keep an index of all pairs of every layer.
    """
    beyond = table.shape[0]
    queries, keys = (torch.arange(length, device=table.device) for length in (BLOCK, BLOCK + beyond - 1))
    offset = queries[:, None] - keys + beyond - 1  # (8, T) of the table, 0 to 2r inside the window
    index = offset.clamp(max=beyond).where(offset >= 0, beyond).flatten()
    padded = F.pad(table.permute(2, 0, 1), (0, 1, 0, 1), value=float("-inf"))
    bias = padded.index_select(1, index).index_select(2, index)  # (n, 8*T, 8*T)
    return bias.unflatten(2, (BLOCK, -1)).unflatten(1, (BLOCK, -1)).transpose(2, 3).flatten(3, 4).flatten(1, 2)


def _is_known(found: Sequence[int], expected: Sequence[int]) -> bool:
    """Return whether two sizes are equal whatever the values of their symbols."""
    return all(statically_known_true(a == b) for a, b in zip(found, expected, strict=True))
