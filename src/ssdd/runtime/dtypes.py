"""The precisions that networks run in, by the names that options have. torch is imported where it is needed."""

from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    import torch

Dtype = Literal["fp32", "bf16", "fp16"]


def torch_dtype(name: Dtype) -> "torch.dtype":
    """Return the dtype of a name."""
    import torch

    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]


def dtype_name(dtype: "torch.dtype") -> Dtype:
    """Return the name of one of these dtypes."""
    return next(name for name in get_args(Dtype) if torch_dtype(name) == dtype)


def fastest_dtype(device: "torch.device") -> "torch.dtype":
    """bfloat16 where the device has instructions for it, else float32 (float16 on older GPUs)."""
    import torch

    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if device.type == "cpu" and torch.cpu._is_avx512_bf16_supported():
        return torch.bfloat16
    return torch.float32
