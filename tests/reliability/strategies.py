"""What hypothesis makes of valid files, and what must hold for every result.

A target takes bytes and either comes to an end or raises the error class that is documented for them, with one line.
"""

import io
import json
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save

from ssdd.autoencoder import AutoencoderSSDD
from ssdd.autoencoder.codec import EncodedImage, LatentFileError, load_encoded, save_encoded
from ssdd.checkpoints.kl_vae import read_kl_encoder
from ssdd.checkpoints.layout import CheckpointError
from ssdd.checkpoints.original import read_original
from ssdd.checkpoints.own_model import check_folder
from ssdd.data.images import ImageError, read_image
from ssdd.data.tar import TarSource
from ssdd.training.checkpoint import DamagedCheckpoint, checkpoint_folder, read_checkpoint, write_checkpoint

MOST_PIXELS = 1 << 20
"""For images here; so that a valid one of 2^28 pixels does not take its time."""

WEIGHTS = "diffusion_pytorch_model.safetensors"


@dataclass(frozen=True)
class Target:
    """seeds: valid files. run(content, folder): reads the bytes, as a file in an empty folder or otherwise.
    errors: what it may raise."""

    seeds: list[bytes]
    run: Callable[[bytes, Path], object]
    errors: tuple[type[Exception], ...]

    def check(self, content: bytes, folder: Path) -> bool:
        """Runs it. Returns whether the bytes were accepted; any error that is not documented gets through."""
        try:
            self.run(content, folder)
        except self.errors as error:
            message = str(error)
            assert message.isprintable(), f"not one printable line: {message!r}"
            assert 0 < len(message) < 2000, f"an endless line: {message[:200]}"
            return False
        return True


# ---- mutations -----------------------------------------------------------------------------------------------------

_INTERESTING = [
    b"\0",
    b"\xff",
    b"\0\0\0\0",
    b"\xff\xff\xff\xff",
    b"\x7f\xff\xff\xff",
    b"9" * 12,
    b"-1",
    b"[",
    b"{",
    b'"',
]


@st.composite
def mutated(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """A valid file with a few pieces replaced, inserted, removed, repeated, or its end cut off; half of them near the
    start, where the structure is."""
    content = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 5))):
        reach = len(content) if draw(st.booleans()) else min(len(content), 256)
        at = draw(st.integers(0, max(0, reach - 1)))
        piece = draw(st.one_of(st.binary(min_size=1, max_size=8), st.sampled_from(_INTERESTING)))
        how = draw(st.sampled_from(["replace", "insert", "remove", "repeat", "cut"]))
        if how == "replace":
            content[at : at + len(piece)] = piece
        elif how == "insert":
            content[at:at] = piece
        elif how == "remove":
            del content[at : at + draw(st.integers(1, 64))]
        elif how == "repeat":
            content[at:at] = content[at : at + draw(st.integers(1, 512))] * draw(st.integers(1, 4))
        else:
            del content[at:]
    return bytes(content)


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 20),
    st.sampled_from([2**31, 2**63, 10**30, -(2**63), 32, 64, 96, 128]),
    st.floats(),
    st.text(max_size=8),
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@st.composite
def changed_json(draw: st.DrawFn, seed: bytes) -> bytes:
    """A JSON object with some entries changed, left out or added, at any depth of the first two."""
    content = json.loads(seed)
    for _ in range(draw(st.integers(1, 4))):
        place = content
        key = draw(st.sampled_from(sorted(place)) | st.text(max_size=8)) if place else draw(st.text(max_size=8))
        if isinstance(place.get(key), dict) and place[key] and draw(st.booleans()):
            place = place[key]
            key = draw(st.sampled_from(sorted(place)))
        if draw(st.integers(0, 4)) == 0:
            place.pop(key, None)
        else:
            place[key] = draw(JSON)
    return json.dumps(content).encode()


@st.composite
def changed_header(draw: st.DrawFn, seed: bytes) -> bytes:
    """A safetensors file with another header: names, types, shapes, offsets, metadata; or another length of it."""
    length = int.from_bytes(seed[:8], "little")
    header = draw(changed_json(seed[8 : 8 + length]))
    claimed = draw(st.sampled_from([len(header)] * 6 + [0, len(header) - 1, 2**31, 2**63, 100_000_001]))
    return claimed.to_bytes(8, "little") + header + seed[8 + length :]


# ---- targets -------------------------------------------------------------------------------------------------------


def image_seeds() -> list[bytes]:
    """A small picture in every format that is read, some of them twice."""
    picture = Image.linear_gradient("L").resize((20, 14)).convert("RGB")
    kinds: list[tuple[str, dict[str, object]]] = [(k, {}) for k in ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "PPM")]
    kinds += [("JPEG", {"progressive": True}), ("WEBP", {"lossless": True}), ("TIFF", {"compression": "tiff_lzw"})]
    kinds += [("TIFF", {"compression": "tiff_adobe_deflate"}), ("TIFF", {"compression": "jpeg"}), ("JPEG2000", {})]
    seeds = []
    for kind, options in kinds:
        stream = io.BytesIO()
        picture.save(stream, kind, **options)  # type: ignore[arg-type]
        seeds.append(stream.getvalue())
    return seeds


def read_bytes(content: bytes, folder: Path) -> None:
    pixels = read_image(io.BytesIO(content), name="a.png", max_pixels=MOST_PIXELS)
    assert pixels.ndim == 3, pixels.shape
    assert pixels.shape[2] == 3, pixels.shape


def tar_seeds() -> list[bytes]:
    """Three dialects, with long names, a tar inside, and a sparse header."""
    seeds = []
    for dialect in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        inner, outer = io.BytesIO(), io.BytesIO()
        for stream, names in ((inner, ["x.png"]), (outer, ["a.png", "in.tar", f"{'d' * 90}/{'f' * 60}.png", "b.txt"])):
            with tarfile.open(fileobj=stream, mode="w", format=dialect) as file:
                for name in names:
                    content = inner.getvalue() if name == "in.tar" else b"content of the member"
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    if dialect == tarfile.PAX_FORMAT:
                        member.mtime = 1.5  # type: ignore[assignment]
                    file.addfile(member, io.BytesIO(content))
        used = len(outer.getvalue().rstrip(b"\0"))
        seeds.append(outer.getvalue()[: -(-used // 512) * 512 + 1024])
    return seeds


def index_tar(content: bytes, folder: Path) -> None:
    (folder / "a.tar").write_bytes(content)
    source = TarSource(folder / "a.tar")
    for i in range(len(source)):
        assert len(source.content(i)) <= len(content)


def latent_seed(folder: Path) -> bytes:
    mean = torch.arange(24.0).reshape(4, 2, 3)
    save_encoded(folder / "latent.safetensors", EncodedImage(mean, -mean, 12, 20, 8, "a-model"), overwrite=True)
    return (folder / "latent.safetensors").read_bytes()


def read_latent(content: bytes, folder: Path) -> None:
    (folder / "a.safetensors").write_bytes(content)
    found = load_encoded(folder / "a.safetensors")
    assert found.mean.shape == found.logvar.shape


def model_files(folder: Path) -> tuple[bytes, bytes]:
    """config.json and weights of a model as small as it can be."""
    sizes = {"decoder_layers": 1, "decoder_heads": 1, "encoder_groups": 1, "decoder_groups": 1}
    model = AutoencoderSSDD((8, 8), 2, decoder_channels=(8, 8), **sizes)  # type: ignore[arg-type]
    model.save_pretrained(folder / "seed")
    return (folder / "seed" / "config.json").read_bytes(), (folder / "seed" / WEIGHTS).read_bytes()


def load_model(config: bytes, weights: bytes, folder: Path) -> None:
    (folder / "config.json").write_bytes(config)
    (folder / WEIGHTS).write_bytes(weights)
    check_folder(folder, AutoencoderSSDD)


def read_foreign(content: bytes, folder: Path) -> None:
    """An ``AutoencoderKL`` by its config, whose weights are never there: everything up to them."""
    (folder / "config.json").write_bytes(content)
    read_kl_encoder(folder)


KL_SEED = json.dumps(
    {
        "_class_name": "AutoencoderKL",
        "block_out_channels": [32, 64],
        "down_block_types": ["DownEncoderBlock2D"] * 2,
        "layers_per_block": 2,
        "latent_channels": 4,
        "scaling_factor": 0.18215,
        "latents_mean": [0.0, 1.0, 2.0, 3.0],
    }
).encode()


def state_seed(folder: Path) -> bytes:
    write_checkpoint(checkpoint_folder(folder, 12), {"model": {"w": torch.ones(3)}}, {"images_seen": 12, "photos": 2})
    return (checkpoint_folder(folder, 12) / "state.json").read_bytes()


def read_state(content: bytes, folder: Path) -> None:
    state_seed(folder)
    (checkpoint_folder(folder, 12) / "state.json").write_bytes(content)
    read_checkpoint(checkpoint_folder(folder, 12))


def read_authors(content: bytes, folder: Path) -> None:
    (folder / "a.safetensors").write_bytes(content)
    read_original(folder / "a.safetensors")


AUTHORS_SEED = save(
    {
        "decoder.conv_in.weight": torch.zeros(32, 7, 3, 3),
        "decoder.mid_block.transformer_blocks.0.relative_position_bias.relative_bias_table": torch.zeros(3, 3, 4),
        "decoder.down_blocks.0.resnets.0.conv1.weight": torch.zeros(32, 32, 3, 3),
    }
)


def targets(folder: Path) -> dict[str, Target]:
    """All of them; ``folder`` is for making seeds."""
    config, weights = model_files(folder)
    model_errors = (CheckpointError, FileNotFoundError)
    return {
        "image": Target(image_seeds(), read_bytes, (ImageError,)),
        "tar": Target(tar_seeds(), index_tar, (ImageError,)),
        "latent": Target([latent_seed(folder)], read_latent, (LatentFileError,)),
        "config": Target([config], lambda c, where: load_model(c, weights, where), model_errors),
        "weights": Target([weights], lambda c, where: load_model(config, c, where), model_errors),
        "kl-config": Target([KL_SEED], read_foreign, (CheckpointError,)),
        "authors": Target([AUTHORS_SEED], read_authors, (CheckpointError,)),
        "state": Target([state_seed(folder)], read_state, (DamagedCheckpoint,)),
    }


def files(name: str, target: Target) -> st.SearchStrategy[bytes]:
    """Files for a target: mutated bytes, and for the structured formats changed structures."""
    anything = mutated(target.seeds)
    if name in ("config", "kl-config", "state"):
        return st.one_of(changed_json(target.seeds[0]), anything)
    if name in ("latent", "weights", "authors"):
        return st.one_of(changed_header(target.seeds[0]), anything)
    return anything
