"""A model's networks traced for all batches and sizes, each into one ONNX file.

Shapes: B batch, f spatial factor, c latent channels, h x w latent grid, H x W = h*f x w*f pixels.
"""

import importlib.util
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..autoencoder import AutoencoderSSDD
from .networks import ExportDecoder, ExportEncoder

ENCODER, DECODER = "encoder.onnx", "decoder.onnx"
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
OPSETS = range(18, 24)
"""Versions of ONNX's operators that PyTorch's exporter writes."""

_EXAMPLE_GRID = (6, 9)
_MOST_BYTES = 2**31 - 2**24
"""A single ONNX file ends at 2 GiB; some of that is for the graph."""


@dataclass(frozen=True)
class Network:
    """A network to be traced, with the names and axes of what goes in and comes out.

    A shape's entries are numbers of channels, and for axes of any size names: ``h`` and ``w`` are cells, ``rows`` and
    ``columns`` pixels.
    """

    file: str
    module: nn.Module
    inputs: dict[str, tuple[str | int, ...]]
    outputs: dict[str, tuple[str | int, ...]]


def require_packages() -> None:
    """Raise ImportError with one line if a package is missing that only the export needs."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f"expected {', '.join(PACKAGES)}, found no {', '.join(missing)}: pip install 'ssdd[onnx]'")


def networks(autoencoder: AutoencoderSSDD) -> list[Network]:
    """Return the encoder, if the model has one, and the decoder."""
    c = autoencoder.config.latent_channels
    image, latent = ("batch", 3, "rows", "columns"), ("batch", c, "h", "w")
    decoder = ExportDecoder(autoencoder.decoder, autoencoder.spatial_factor)
    found = [Network(DECODER, decoder, {"latent": latent, "noise": image}, {"image": image})]
    if autoencoder.encoder is not None:
        encoder = ExportEncoder(autoencoder.encoder)
        found.insert(0, Network(ENCODER, encoder, {"image": image}, {"mean": latent, "logvar": latent}))
    return found


def write_network(network: Network, factor: int, path: Path, opset: int) -> None:
    """Traces a network for all batches and sizes and writes it as one file, weights included.

    Raises ValueError for an opset that the exporter does not write, and for more weights than one file holds.
    """
    if opset not in OPSETS:
        raise ValueError(f"expected an opset from {OPSETS[0]} to {OPSETS[-1]}, found {opset}")
    size = sum(t.numel() * t.element_size() for t in [*network.module.parameters(), *network.module.buffers()])
    if size > _MOST_BYTES:
        raise ValueError(f"{path.name}: expected weights below 2 GiB, the end of an ONNX file, found {size:,} bytes")
    program = _trace(network, factor, opset)
    for node in program.model.graph:
        node.metadata_props.clear()  # where in the source it comes from, with the paths of this machine
        for value in node.outputs:
            if value.name in network.outputs:
                value.name = f"inner_{value.name}"  # torch.mean calls its result so
    _name_outputs(program.model.graph.outputs, network.outputs, factor)
    program.save(path, external_data=False)


def _trace(network: Network, factor: int, opset: int) -> Any:
    h, w = torch.export.Dim("h"), torch.export.Dim("w")
    dims = {"batch": torch.export.Dim("batch"), "h": h, "w": w, "rows": factor * h, "columns": factor * w}
    sizes = dict(zip(("batch", "h", "w"), (2, *_EXAMPLE_GRID), strict=True))
    sizes |= {"rows": factor * sizes["h"], "columns": factor * sizes["w"]}
    shapes = [tuple(sizes[n] if isinstance(n, str) else n for n in shape) for shape in network.inputs.values()]
    dynamic = {
        name: {axis: dims[n] for axis, n in enumerate(shape) if isinstance(n, str)}
        for name, shape in network.inputs.items()
    }
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about names of axes
        return torch.onnx.export(
            network.module.eval(),
            tuple(torch.zeros(shape) for shape in shapes),
            dynamo=True,
            verbose=False,
            input_names=list(network.inputs),
            output_names=[f"output_{name}" for name in network.outputs],
            dynamic_shapes=dynamic,
            opset_version=opset,
        )


def _name_outputs(values: Sequence[Any], shapes: dict[str, tuple[str | int, ...]], factor: int) -> None:
    """Give outputs their names, and to their axes those that the inputs have: ``8*h`` for rows."""
    from onnxscript import ir

    names = {"rows": f"{factor}*h", "columns": f"{factor}*w"}
    for value, (name, shape) in zip(values, shapes.items(), strict=True):
        value.name = name
        value.shape = ir.Shape([names.get(n, n) if isinstance(n, str) else n for n in shape])
