"""``ssdd export``: a model -> ONNX files for ONNX Runtime."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta

from .common import DEFAULT_MODEL, ModelOptions


@dataclass(frozen=True)
class Export:
    """Write encoder.onnx and decoder.onnx (one step) for any batch and size, and export.json with the constants."""

    out: Path
    """Folder for the files."""
    model: str = DEFAULT_MODEL
    """Embedded name, folder, or Hugging Face id."""
    dtype: Literal["fp32", "fp16"] = "fp32"
    """Precision of the weights and networks; inputs and outputs are float32 in both."""
    opset: Annotated[int, Meta(ge=18, le=23)] = 20
    """Version of ONNX's operators, 18 to 23."""
    check: bool = True
    """Compare with PyTorch on a few sizes, in ONNX Runtime on the CPU."""
    overwrite: bool = False
    """Replace existing files."""


OPTIONS = Export


def run(options: Export) -> int:
    from ..export.check import TOLERANCE
    from ..export.files import export_model
    from ..export.trace import require_packages
    from ..runtime.text import aligned

    require_packages()
    autoencoder = ModelOptions(model=options.model, device="cpu").load()
    made = export_model(
        autoencoder, options.out, options.model, options.dtype, options.opset, options.check, options.overwrite
    )
    for name in made.files:
        print(f"{options.out / name}: {(options.out / name).stat().st_size / 1e6:,.1f} MB")
    if made.differences:
        rows = [[d.file, d.output, f"{d.largest:.1e}", "x".join(map(str, d.shape))] for d in made.differences]
        print(f"\nlargest differences from PyTorch in float32 (at most {TOLERANCE[options.dtype]:g} is taken):")
        print("\n".join(aligned([["file", "output", "difference", "at"], *rows], left=2)))
    return 0
