"""How fast is encoding, against diffusers' autoencoders? The encoder is the KL-VAE's, and as fast: 1.0 in
docs/performance.md, by

    python benchmarks/encode.py --rounds 3
"""

import common

from ssdd.runtime.dtypes import torch_dtype


def main() -> None:
    parser = common.new_parser(__doc__)
    parser.add_argument("--latent", default="f8c4", help="of our encoder (default: f8c4)")
    parser.add_argument("--peers", nargs="*", choices=common.DIFFUSERS, default=["kl", "tiny"], help=common.PEERS)
    parser.add_argument("--sizes", type=int, nargs="+", default=[256], help="sides of the images (default: 256)")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1])
    options = common.parse(parser)
    how = (options.latent, options.device, torch_dtype(options.dtype))
    common.report(
        common.measure([common.build_encoder(kind, *how) for kind in (*options.peers, "SSDD")], options), options
    )


if __name__ == "__main__":
    main()
