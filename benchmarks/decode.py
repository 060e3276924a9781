"""How fast is decoding, against diffusers' autoencoders and against our own network as it is defined?

Checks the table of docs/performance.md, "How quick", and with it the README's 2.5 to 3.0 times, by

    python benchmarks/decode.py --peers kl tiny plain --batch-sizes 1 4
    python benchmarks/decode.py --decoders XS S B M L XL H --peers kl --rounds 4
    python benchmarks/decode.py --peers kl tiny --sizes 128 256 512 1024 --rounds 3 --plot docs/speed.png
    python benchmarks/decode.py --peers kl plain onnx --dtype fp32 --rounds 4

*of peak* is the share of the machine's quickest matrix product (on a CPU also convolution) in this precision.
"""

from collections.abc import Sequence
from pathlib import Path

import common

from ssdd.runtime.dtypes import torch_dtype


def main() -> None:
    parser = common.new_parser(__doc__)
    common.add_decoders(parser, peers=["kl", "tiny"])
    parser.add_argument("--sizes", type=int, nargs="+", default=[256], help="sides of the images (default: 256)")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1])
    parser.add_argument("--plot", type=Path, help="PNG file: images a second against the side; needs matplotlib")
    options = common.parse(parser)
    how = (options.latent, options.steps, options.device, torch_dtype(options.dtype))
    models = [common.build_decoder(kind, size, *how) for kind, size in common.decoder_kinds(options)]
    rows = common.measure(models, options)
    common.report(rows, options)
    if options.plot is not None:
        write_plot(rows, options.plot)


def write_plot(rows: Sequence[common.Row], path: Path) -> None:
    """Draw images a second against the side of the image, a line for each model and batch."""
    from ssdd.evaluation.figures import binary_scale, figure_style, new_figure, row_style, save_figure

    models, batches = (list(dict.fromkeys(row[name] for row in rows)) for name in ("model", "batch"))
    with figure_style():
        figure = new_figure(4.0)
        axes = figure.subplots()
        for i, model in enumerate(models):
            for k, batch in enumerate(batches):
                points = sorted((r["px"], r["images/s"]) for r in rows if (r["model"], r["batch"]) == (model, batch))
                label = f"{model}, batch {batch}" if len(batches) > 1 else model
                axes.plot(*zip(*points, strict=True), **row_style(i, k), label=label)
        binary_scale(axes)
        axes.set(yscale="log", xlabel="side of the image, pixels", ylabel="images a second, faster ↑")
        axes.margins(0.12, 0.15)
        path.write_bytes(save_figure(figure, "png"))


if __name__ == "__main__":
    main()
