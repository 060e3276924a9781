"""Files from elsewhere: bombs, broken and unusual images, tar files that lead outside, models that are none."""

import io
import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import ssdd as package
from ssdd.autoencoder import AutoencoderSSDD
from ssdd.autoencoder.codec import encode_image
from ssdd.checkpoints.layout import CheckpointError
from ssdd.tokenization.model import LatentEncoder
from tests.process import ssdd
from tests.reliability.commands import Inputs, arguments
from tests.reliability.interventions import show_warnings_of_diffusers
from tests.training.runs import SMALL

pytestmark = pytest.mark.slow

Tree = Callable[[Path], dict[str, bytes]]
Picture = Callable[..., np.ndarray]

WEIGHTS = "diffusion_pytorch_model.safetensors"
LITTLE = 3 * 10**9
"""Bytes that a command on small images stays below, torch and all."""


def write_bomb(path: Path, side: int = 50_000) -> None:
    """A whole and valid PNG of one bit a pixel: 300 kB that become 7.5 GB of RGB."""
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    packer = zlib.compressobj(1)
    rows = b"\0" + bytes(side // 8)
    data = b"".join(packer.compress(rows * 1000) for _ in range(side // 1000)) + packer.flush()
    with path.open("wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        for name, content in ((b"IHDR", header), (b"IDAT", data), (b"IEND", b"")):
            file.write(struct.pack(">I", len(content)) + name + content)
            file.write(struct.pack(">I", zlib.crc32(name + content)))


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory, picture: Picture) -> Path:
    """Good ones: a PNG called .jpg, CMYK, 16 bits. Bad ones, called bad-*: cut files, no bytes, a bomb, a FIFO."""
    folder = tmp_path_factory.mktemp("mixed")
    photo = Image.fromarray(picture(24, 32))
    photo.save(folder / "really-a-png.jpg", "PNG")
    photo.convert("CMYK").save(folder / "cmyk.jpg", "JPEG")
    Image.fromarray(np.linspace(0, 65535, 24 * 32).reshape(24, 32).astype(np.uint16)).save(folder / "deep.png")
    for kind in ("JPEG", "PNG", "TIFF", "WEBP", "GIF"):
        stream = io.BytesIO()
        photo.save(stream, kind)
        (folder / f"bad-{kind}.{kind.lower()}").write_bytes(stream.getvalue()[: len(stream.getvalue()) // 2])
    (folder / "bad-empty.png").touch()
    (folder / "bad-text.jpg").write_text("Dear Sir or Madam")
    write_bomb(folder / "bad-bomb.png")
    os.mkfifo(folder / "bad-pipe.png")
    (folder / "bad-link.png").symlink_to("/dev/zero")
    return folder


@pytest.mark.parametrize("command", ["encode", "evaluate", "data"])
def test_every_bad_image_is_one_line(command: str, inputs: Inputs, mixed: Path, tmp_path: Path) -> None:
    """Named once, skipped and counted; the good ones are done; a bomb is not even unpacked."""
    options = [mixed if a == inputs.photographs else a for a in arguments(command, inputs, tmp_path / "out")]
    ended = ssdd(*options)
    assert (ended.status, "Traceback" in ended.err) == (3, False), ended.err
    bad = sorted(p for p in mixed.iterdir() if p.name.startswith("bad-"))
    named = [line for line in ended.lines() if "bad-" in line]
    assert len(named) == len(bad) == 10, ended.err
    assert all(sum(str(path) in line for line in named) == 1 for path in bad), ended.err
    assert len(ended.lines()) <= len(bad) + 1, f"other lines besides: {ended.err}"
    assert any("50000 x 50000" in line for line in named), "the bomb is refused for another reason"
    assert ended.peak_bytes < LITTLE, f"{ended.peak_bytes / 1e9:.1f} GB"
    if command == "encode":
        assert len(list((tmp_path / "out").iterdir())) == 3, "a good image was left out"


def test_a_training_passes_over_them(mixed: Path, tmp_path: Path) -> None:
    ended = ssdd("train", "tiny-encoder", "--out", tmp_path / "run", "--data.paths", mixed, *SMALL)
    assert (ended.status, "Traceback" in ended.err) == (0, False), ended.err
    named = Counter(line for line in ended.lines() if line.startswith("skipped: "))
    assert len(named) > 5, f"bad images are not named: {ended.err}"
    assert max(named.values()) <= 2, "named again and again: not once in training, once while statistics are taken"


def test_a_line_that_padding_would_blow_up(tiny_model: Path) -> None:
    """2^28 pixels in one row, which a reader may take, would be eight times as many for the network: 26 GB."""
    line = np.broadcast_to(np.zeros((1, 1, 3), np.uint8), (1, 2**28, 3))
    model = AutoencoderSSDD.from_pretrained(tiny_model)
    with pytest.raises(ValueError, match=r"expected at most 268435456 pixels .* found 268435456 x 8"):
        encode_image(model, line)


def test_a_tar_that_leads_outside(inputs: Inputs, picture: Picture, tmp_path: Path, tree: Tree) -> None:
    """Absolute names, ``..``, links, devices and FIFOs, by the real program: nothing is written but the results, and
    standard error has one line, of the two links that are left out."""
    stream = io.BytesIO()
    Image.fromarray(picture(24, 32)).save(stream, "PNG")
    data = tmp_path / "data"
    data.mkdir()
    with tarfile.open(data / "a.tar", "w") as file:
        for name in ("../../up.png", f"{tmp_path}/absolute.png", "good.png"):
            member = tarfile.TarInfo(name)
            member.size = len(stream.getvalue())
            file.addfile(member, io.BytesIO(stream.getvalue()))
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE):
            member = tarfile.TarInfo(f"special-{kind.decode()}.png")
            member.type, member.linkname = kind, "/etc/passwd"
            file.addfile(member)
    before = tree(data)
    command = [sys.executable, "-m", "ssdd", "data", "check", "a.tar", "--out", str(tmp_path / "out"), "--workers", "0"]
    environment = {**os.environ, "PYTHONPATH": str(Path(package.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, cwd=data, env=environment, capture_output=True, text=True, timeout=300)
    assert (ended.returncode, "3 images" in ended.stdout) == (3, True), ended.stderr
    lines = [line for line in ended.stderr.splitlines() if line and "image/s]" not in line]
    assert lines == ["a.tar: 2 other files left out: link 2"], lines
    assert tree(data) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data", "out"]


# ---- models --------------------------------------------------------------------------------------------------------


class Canary:
    """Unpickled, it makes a folder called sprung where the command runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.folder,)


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def refused(inputs: Inputs, model: Path | str, longest: int = 1000) -> str:
    """The one line of a command that is given the model; nothing is written."""
    out = Path(inputs.latents).parent / "never"
    line = ssdd("encode", inputs.photographs, "--out", out, "--model", model, "--device", "cpu").one_line()
    assert not out.exists(), "a result of a bad model"
    assert len(line) < longest, "the line is endless"
    return line


INDEX = {"metadata": {}, "weight_map": {"encoder.conv_in.weight": "shard.bin"}}
"""Of weights of which one is in a pickle."""


@pytest.mark.parametrize(
    "name", ["diffusion_pytorch_model.bin", "indexed", "indexed too", WEIGHTS, "model.pt", "model.ckpt"]
)
@pytest.mark.parametrize("archive", [True, False], ids=["torch", "pickle"])
def test_a_pickle_is_never_opened(name: str, archive: bool, inputs: Inputs, model: Path, tmp_path: Path) -> None:
    """As the weights of a folder, behind an index alone or beside good weights, under a false name, as its own file."""
    sprung, indexed = tmp_path / "sprung", name.startswith("indexed")
    path = model / ("shard.bin" if indexed else name)
    if name != "indexed too":
        (model / WEIGHTS).unlink()
    if archive:
        torch.save({"encoder.conv_in.weight": Canary(sprung)}, path)
    else:
        path.write_bytes(pickle.dumps(Canary(sprung)))
    if indexed:
        (model / f"{WEIGHTS}.index.json").write_text(json.dumps(INDEX))
    given = path if name.startswith("model.") else model
    assert str(given) in refused(inputs, given)
    typed = ("evaluate", given, "--data", inputs.photographs, "--lpips", "--extractors")
    assert ssdd(*typed).one_line().startswith("ssdd: error: ")
    typed = ("train", "tiny-encoder", "--model.start-from", given, "--data.paths", inputs.photographs)
    assert ssdd(*typed, *SMALL, "--out", tmp_path / "run").status == 1
    assert not sprung.exists(), "code of a pickle was run"


@pytest.mark.parametrize(
    ("options", "index"),
    [
        ({}, f"{WEIGHTS}.index.json"),
        ({"variant": "fp16"}, f"{WEIGHTS}.index.fp16.json"),
        ({"variant": "fp16"}, "diffusion_pytorch_model.fp16.safetensors.index.json"),  # of early diffusers
        ({"subfolder": "inside"}, f"{WEIGHTS}.index.json"),
        ({"ignore_mismatched_sizes": True}, f"{WEIGHTS}.index.json"),
    ],
)
def test_no_option_leads_to_a_pickle(options: dict[str, Any], index: str, model: Path, tmp_path: Path) -> None:
    """Whatever the arguments of diffusers, an index beside good weights is checked."""
    folder = Path(shutil.copytree(model, tmp_path / "of" / "inside"))
    (folder / index).write_text(json.dumps(INDEX))
    shutil.copy(folder / WEIGHTS, folder / "diffusion_pytorch_model.fp16.safetensors")
    torch.save({}, folder / "shard.bin")
    with pytest.raises(CheckpointError, match="expected the names of safetensors files beside it, found"):
        AutoencoderSSDD.from_pretrained(folder.parent if "subfolder" in options else folder, **options)
    (folder / index).write_text(json.dumps({"weight_map": {"encoder.conv_in.weight": WEIGHTS}}))
    with pytest.raises(CheckpointError, match="expected metadata, an object"):
        AutoencoderSSDD.from_pretrained(folder.parent if "subfolder" in options else folder, **options)
    (folder / index).unlink()
    AutoencoderSSDD.from_pretrained(folder.parent if "subfolder" in options else folder, **options)


def test_a_pickle_of_the_hub_is_never_fetched(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a repository, the index is read before its weights are downloaded, and both readers see the same weights."""
    from huggingface_hub.errors import EntryNotFoundError

    snapshot, fetched = tmp_path / "cache" / "0123", []

    def download(repository: str, file: str, **options: Any) -> str:
        assert (repository, options.get("token", "mine")) == ("a/b", "mine")
        fetched.append(file)
        if not (model / file).is_file():
            raise EntryNotFoundError.__new__(EntryNotFoundError)
        (snapshot / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(model / file, snapshot / file)
        return str(snapshot / file)

    monkeypatch.setattr("ssdd.checkpoints.places.hf_hub_download", download)
    loaded = AutoencoderSSDD.from_pretrained("a/b", token="mine", revision="main", torch_dtype=torch.float16)
    assert (loaded.dtype, loaded.config["_name_or_path"]) == (torch.float16, "a/b")
    expected = AutoencoderSSDD.from_pretrained(model, torch_dtype=torch.float16).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.state_dict().items())
    assert LatentEncoder("a/b").identity.encoder_sha256 == LatentEncoder(str(model)).identity.encoder_sha256

    torch.save({}, model / "shard.bin")
    (model / f"{WEIGHTS}.index.json").write_text(json.dumps(INDEX))
    fetched.clear()
    for load in (AutoencoderSSDD.from_pretrained, LatentEncoder):
        with pytest.raises(CheckpointError, match=r"expected the names of safetensors files beside it, found"):
            load("a/b")
    assert set(fetched) == {"config.json", f"{WEIGHTS}.index.json"}

    shards = {"encoder.conv_in.weight": "other.safetensors"}
    (model / f"{WEIGHTS}.index.json").write_text(json.dumps(INDEX | {"weight_map": shards}))
    shutil.copy(model / WEIGHTS, model / "other.safetensors")
    other = load_file(model / WEIGHTS)
    save_file({k: v + 1 for k, v in other.items()}, model / "other.safetensors")
    assert LatentEncoder("a/b").identity.encoder_sha256 == LatentEncoder(str(model)).identity.encoder_sha256
    found = AutoencoderSSDD.from_pretrained("a/b").state_dict()["encoder.conv_in.weight"]
    torch.testing.assert_close(found, other["encoder.conv_in.weight"] + 1)


CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "string": ({"latent_channels": "4"}, "expected latent_channels as an integer from 1 to 16384, found 4"),
    "list": ({"decoder_layers": [8]}, "expected decoder_layers as an integer from 1 to 64"),
    "null": ({"block_out_channels": None}, "expected block_out_channels as 1 to 8 integers"),
    "huge": ({"decoder_channels": [10**9] * 4}, "expected decoder_channels as 1 to 8 integers from 1 to 16384"),
    "terabytes": ({"decoder_channels": [16384] * 7}, "differences from the expected layout"),
    "digits": ({"sample_size": 10**400}, "expected sample_size as an integer from 1 to 1048576"),
    "zero": ({"decoder_groups": 0}, "expected decoder_groups as an integer from 1"),
    "groups": ({"decoder_heads": 7}, "expected channels in multiples of decoder_heads 7, found 96"),
    "steps": ({"num_inference_steps": 10**9}, "expected num_inference_steps as an integer from 1 to 1000"),
    "seed": ({"noise_seed": "x"}, "expected noise_seed as an integer"),
    "nan": ({"scaling_factor": float("nan")}, "expected scaling_factor as a number above zero, found nan"),
    "statistics": ({"latents_std": [1, 1]}, r"expected latents_std as 4 numbers"),
    "batch norm": (
        {"batch_norm_mean": [0] * 16, "batch_norm_var": [-1] * 16},
        "expected batch_norm_var as 16 finite numbers",
    ),
    "half a batch norm": ({"batch_norm_mean": [0] * 16}, "expected both batch_norm_mean and batch_norm_var"),
    "flag": ({"has_encoder": "no"}, "expected has_encoder as true or false"),
    "convention": ({"latents_convention": {}}, "expected latents_convention"),
    "class": ({"_class_name": "AutoencoderTiny"}, "expected an AutoencoderSSDD, found AutoencoderTiny"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_hostile_configs(case: str, inputs: Inputs, model: Path) -> None:
    """One line that names file and entry, before memory is taken for it."""
    entries, told = CONFIGS[case]
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | entries))
    line = refused(inputs, model)
    assert str(model) in line, line
    assert told in line, line


@pytest.mark.parametrize(
    "text", ["", "[]", "{", "[" * 100_000, '{"a":' * 5000 + "1" + "}" * 5000, "\0\0\0"], ids=range(6)
)
def test_a_config_that_is_none(text: str, inputs: Inputs, model: Path) -> None:
    (model / "config.json").write_text(text)
    assert "config.json" in refused(inputs, model)


def test_unknown_entries_of_a_config_are_passed_over(inputs: Inputs, model: Path, tmp_path: Path) -> None:
    """Of a later release, perhaps: the model loads, with a warning."""
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"nonsense": {"a": [1] * 1000}}))
    options = ("--out", tmp_path / "out", "--model", model, "--device", "cpu")
    ended = ssdd("encode", inputs.photographs, *options, prepare=show_warnings_of_diffusers)
    assert (ended.status, "Traceback" in ended.err) == (0, False), ended.err
    assert "nonsense" in ended.err, "nobody is told"


def spoil(weights: Path, how: str) -> None:
    """Makes another file of good weights."""
    content, tensors = weights.read_bytes(), load_file(weights)
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    name = "decoder.conv_in.weight"
    if how == "huge header":
        weights.write_bytes((2**60).to_bytes(8, "little") + content[8:])
    elif how == "header of gigabytes":
        weights.write_bytes((2**33).to_bytes(8, "little") + content[8:])
    elif how in ("overlapping", "shape"):
        other = sorted(header)[-1]
        if how == "overlapping":
            header[name]["data_offsets"] = header[other]["data_offsets"]
        else:
            header[name]["shape"] = [2**40, 2**40]
        text = json.dumps(header).encode()
        weights.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    elif how == "cut":
        weights.write_bytes(content[:-1])
    elif how == "empty":
        weights.write_bytes(b"")
    elif how == "integers":
        save_file({**tensors, name: tensors[name].to(torch.int32)}, weights)
    elif how == "transposed":
        save_file({**tensors, name: tensors[name].transpose(0, 1).contiguous()}, weights)
    elif how == "less":
        save_file({k: v for k, v in tensors.items() if k != name}, weights)
    else:
        save_file({**tensors, name: torch.full_like(tensors[name], float(how))}, weights)


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("huge header", "expected a complete safetensors file"),
        ("header of gigabytes", "expected a complete safetensors file"),
        ("overlapping", "expected a complete safetensors file"),
        ("shape", "expected a complete safetensors file"),
        ("cut", "expected a complete safetensors file"),
        ("empty", "expected a complete safetensors file"),
        ("integers", "expected decoder.conv_in.weight as F64, F32, F16, BF16, found I32"),
        ("transposed", "decoder.conv_in.weight is ["),
        ("less", "no decoder.conv_in.weight"),
        ("nan", "expected finite weights, found NaN or infinity in decoder.conv_in.weight"),
        ("inf", "expected finite weights, found NaN or infinity in decoder.conv_in.weight"),
    ],
)
def test_hostile_weights(how: str, told: str, inputs: Inputs, model: Path) -> None:
    spoil(model / WEIGHTS, how)
    line = refused(inputs, model)
    assert str(model) in line, line
    assert told in line, line


def test_a_terminal_obeys_no_file(inputs: Inputs, model: Path) -> None:
    """Escape sequences in the names of tensors, and names of megabytes, come to the terminal as text, shortened."""
    tensors = load_file(model / WEIGHTS)
    save_file({**tensors, "\x1b]0;owned\x07\x1b[2J\n": torch.zeros(1), "x" * 10**6: torch.zeros(1)}, model / WEIGHTS)
    line = refused(inputs, model, longest=2000)
    assert line.isprintable(), repr(line)
    assert r"unexpected \x1b]0;owned" in line


def test_a_run_with_a_hostile_state(inputs: Inputs, tmp_path: Path) -> None:
    """Settings or a clock that are none: one line, and a checkpoint that leads outside is not followed."""
    run = tmp_path / "run"
    typed = arguments("train", inputs, run)
    assert ssdd(*typed).status == 0
    settings = (run / "config.json").read_text()
    for text in ("", "[]", "[" * 100_000, "null"):
        (run / "config.json").write_text(text)
        assert str(run / "config.json") in ssdd(*typed).one_line(), text[:10]
    (run / "config.json").write_text(settings)
    shutil.rmtree(run / "model")
    last = sorted((run / "checkpoints").iterdir())[-1]
    state = json.loads((last / "state.json").read_text())
    (last / "state.json").write_text(json.dumps(state | {"checksums": {"/dev/zero": "0"}}))
    ended = ssdd(*typed)
    assert (ended.status, "Traceback" in ended.err) == (0, False), ended.err
    assert "damaged checkpoint passed over" in ended.err, "a checkpoint may name any file of the machine"
