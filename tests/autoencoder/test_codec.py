"""One photograph through an autoencoder, and latent files."""

import dataclasses
import os
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

import ssdd
from ssdd.autoencoder import AutoencoderSSDD
from ssdd.autoencoder.codec import (
    EncodedImage,
    LatentFileError,
    decode_image,
    decode_pil,
    encode_image,
    encode_pil,
    load_encoded,
    pad_to_multiple,
    save_encoded,
)
from ssdd.data.images import read_image
from ssdd.data.pixels import image_to_tensor
from ssdd.runtime.files import OutputExists
from tests.data.test_images_colour import SWAPPED

Picture = Callable[..., np.ndarray]


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> AutoencoderSSDD:
    return AutoencoderSSDD.from_pretrained(tiny_model).eval()


def encoded(height: int = 12, width: int = 20) -> EncodedImage:
    mean, logvar = torch.randn(2, 4, -(-height // 8), -(-width // 8), generator=torch.Generator().manual_seed(0))
    return EncodedImage(mean, logvar, height, width, 8, "my model")


def test_padding_repeats_the_last_row_and_column() -> None:
    x = torch.arange(6.0).reshape(1, 1, 2, 3)
    expected = [[0, 1, 2, 2], [3, 4, 5, 5], [3, 4, 5, 5], [3, 4, 5, 5]]
    assert pad_to_multiple(x, 4)[0, 0].tolist() == expected, "padded on another side, or with other values"


@pytest.mark.parametrize(("size", "padded"), [((1, 1), (8, 8)), ((8, 16), (8, 16)), ((9, 7), (16, 8))])
def test_padding_is_no_more_than_needed(size: tuple[int, int], padded: tuple[int, int]) -> None:
    x = torch.rand(2, 3, *size)
    y = pad_to_multiple(x, 8)
    assert y.shape == (2, 3, *padded), f"{size} is padded to another size"
    assert torch.equal(y[..., : size[0], : size[1]], x), "the image itself was changed or moved"


@pytest.mark.parametrize("size", [(1, 1), (8, 24), (37, 53), (16, 200)])
def test_any_size_comes_back(model: AutoencoderSSDD, picture: Picture, size: tuple[int, int]) -> None:
    e = encode_image(model, picture(*size), "name")
    grid = (4, -(-size[0] // 8), -(-size[1] // 8))
    assert e.mean.shape == e.logvar.shape == grid, "the grid does not cover the image"
    assert (e.height, e.width, e.factor, e.model) == (*size, 8, "name"), "the record is of another image"
    result = decode_image(model, e, steps=1)
    assert result.shape == (*size, 3), "the image comes back in another size"
    assert result.dtype == np.uint8, "the image comes back in another type"


def test_codec_is_the_model(model: AutoencoderSSDD, picture: Picture) -> None:
    """An image that needs no padding: the same numbers as from the model's own encode and decode."""
    image = picture(16, 24)
    x = image_to_tensor(image)[None]
    with torch.no_grad():
        posterior = model.encode(x).latent_dist
        expected = model.decode(posterior.mode(), num_inference_steps=2).sample[0]
    e = encode_image(model, image)
    assert torch.equal(e.mean, posterior.mean[0]), "not the posterior's mean, or it was scaled"
    assert torch.equal(e.logvar, posterior.logvar[0]), "not the posterior's log-variance"
    levels = ((expected.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    assert np.array_equal(decode_image(model, e, steps=2), levels), "not the model's image of the mode"
    assert not e.mean.requires_grad, "the latent drags a graph along"


def test_default_steps_are_the_models(model: AutoencoderSSDD) -> None:
    e = encoded()
    default = decode_image(model, e)
    assert np.array_equal(default, decode_image(model, e, model.config.num_inference_steps)), "another default"
    assert not np.array_equal(default, decode_image(model, e, model.config.num_inference_steps + 1)), "steps ignored"


def test_padding_does_not_show(model: AutoencoderSSDD, picture: Picture) -> None:
    """What is decoded of a padded image is the top left of what is decoded of the image padded by hand."""
    image = picture(13, 21)
    by_hand = np.pad(image, ((0, 3), (0, 3), (0, 0)), mode="edge")
    whole = decode_image(model, encode_image(model, by_hand), 1)
    assert np.array_equal(decode_image(model, encode_image(model, image), 1), whole[:13, :21]), "cut on another side"


def test_latent_of_another_model(model: AutoencoderSSDD) -> None:
    other = dataclasses.replace(encoded(), factor=16)
    with pytest.raises(LatentFileError, match=r"expected a latent of f8c4, found f16c4 \(encoded by my model\)"):
        decode_image(model, other)
    other = dataclasses.replace(encoded(), mean=torch.zeros(16, 2, 3), model="")
    with pytest.raises(LatentFileError, match=r"expected a latent of f8c4, found f8c16 \(encoded by an unnamed model"):
        decode_image(model, other)


def test_round_trip_is_exact(tmp_path: Path) -> None:
    e = encoded()
    e.mean[0, 0, :2] = torch.tensor([1e-45, -0.0])  # smallest number, signed zero
    save_encoded(tmp_path / "new" / "a.safetensors", e)
    back = load_encoded(tmp_path / "new" / "a.safetensors")
    for name in ("mean", "logvar"):
        a, b = getattr(e, name), getattr(back, name)
        assert b.dtype == torch.float32, f"{name} comes back in another type"
        assert a.numpy().tobytes() == b.numpy().tobytes(), f"{name} comes back with other bits"
    for name in ("height", "width", "factor", "model"):
        assert getattr(back, name) == getattr(e, name), f"{name} comes back changed"


def test_name_that_is_not_utf8(tmp_path: Path) -> None:
    """Photographs from old archives have such names, and their latents get them too."""
    path = tmp_path / os.fsdecode(b"caf\xe9.safetensors")
    try:
        save_encoded(path, encoded())
    except OSError:
        pytest.skip("this file system takes UTF-8 alone")
    assert torch.equal(load_encoded(path).mean, encoded().mean)


def test_strided_views_are_saved_in_order(tmp_path: Path) -> None:
    e = encoded()
    view = e.mean.transpose(1, 2).contiguous().transpose(1, 2)
    save_encoded(tmp_path / "a.safetensors", dataclasses.replace(e, mean=view))
    assert torch.equal(load_encoded(tmp_path / "a.safetensors").mean, e.mean), "a view comes back transposed"


def test_file_can_be_read_without_this_library(tmp_path: Path) -> None:
    """Names, types and metadata of the file are an interface: other programs read it."""
    save_encoded(tmp_path / "a.safetensors", encoded())
    with safe_open(tmp_path / "a.safetensors", framework="numpy") as file:
        metadata = {"format": "ssdd-latent-1", "height": "12", "width": "20", "factor": "8", "model": "my model"}
        assert file.metadata() == metadata, "the metadata changed: files of earlier releases and ours differ"
        assert sorted(file.keys()) == ["logvar", "mean"], "the tensors have other names"
        assert file.get_tensor("mean").dtype == np.float32, "the tensors have another type"


def test_file_has_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    """A folder of latents is shared with colleagues: their umask, not the writer's library, decides who reads it."""
    save_encoded(tmp_path / "a.safetensors", encoded())
    (tmp_path / "other").touch()
    modes = [stat.S_IMODE(os.stat(tmp_path / name).st_mode) for name in ("a.safetensors", "other")]
    assert modes[0] == modes[1], f"expected mode {modes[1]:o}, found {modes[0]:o}"


def test_existing_file_is_replaced_only_on_request(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_encoded(path, encoded(8, 8))
    with pytest.raises(OutputExists, match=r"a\.safetensors"):
        save_encoded(path, encoded(16, 16))
    assert load_encoded(path).height == 8, "an existing file was replaced"
    save_encoded(path, encoded(16, 16), overwrite=True)
    assert load_encoded(path).height == 16, "overwrite=True did not replace the file"
    assert os.listdir(tmp_path) == [path.name], "a temporary file was left behind"


GOOD = {"height": "12", "width": "20", "factor": "8"}


def latents(**changed: Tensor | None) -> dict[str, Tensor]:
    tensors = {"mean": torch.zeros(4, 2, 3), "logvar": torch.zeros(4, 2, 3), **changed}
    return {k: v for k, v in tensors.items() if v is not None}


@pytest.mark.parametrize(
    ("tensors", "metadata", "told"),
    [
        (latents(mean=None), GOOD, "expected a latent file of ssdd encode"),
        (latents(logvar=None), GOOD, "expected a latent file of ssdd encode"),
        (latents(), {}, "expected a latent file of ssdd encode"),
        (latents(), {**GOOD, "height": "twelve"}, "twelve"),
        (latents(), {**GOOD, "height": "9" * 5000}, "expected a latent file of ssdd encode"),
        (latents(), {"height": "12", "width": "20"}, "expected a latent file of ssdd encode"),
        (latents(), {**GOOD, "height": "17"}, "grid of 17 x 20 pixels at factor 8, found (4, 2, 3)"),
        (latents(), {**GOOD, "width": "16"}, "grid of 12 x 16 pixels"),
        (latents(), {**GOOD, "factor": "0"}, "at factor 0"),
        (latents(), {**GOOD, "factor": "-8"}, "at factor -8"),
        (latents(mean=torch.zeros(4, 0, 3), logvar=torch.zeros(4, 0, 3)), {**GOOD, "height": "0"}, "0 x 20 pixels"),
        (latents(mean=torch.zeros(4, 2, 3, 1)), GOOD, "found (4, 2, 3, 1)"),
        (latents(logvar=torch.zeros(1, 2, 3)), GOOD, "expected the grid"),
        (latents(mean=torch.full((4, 2, 3), float("nan"))), GOOD, "expected finite numbers"),
        (latents(mean=torch.full((4, 2, 3), float("-inf"))), GOOD, "expected finite numbers"),
    ],
)
def test_entries_that_contradict_one_another(
    tmp_path: Path, tensors: dict[str, Tensor], metadata: dict[str, str], told: str
) -> None:
    save_file(tensors, tmp_path / "a.safetensors", metadata=metadata)
    with pytest.raises(LatentFileError) as caught:
        load_encoded(tmp_path / "a.safetensors")
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'a.safetensors'}: expected"), f"the file is not named: {message}"
    assert told in message, f"the reason is not told: {message}"
    assert "\n" not in message, f"not one line: {message}"
    assert len(message) < 600, "the line is endless"


def test_half_precision_files_are_read(tmp_path: Path) -> None:
    save_file({k: v.half() for k, v in latents().items()}, tmp_path / "a.safetensors", metadata=GOOD)
    assert load_encoded(tmp_path / "a.safetensors").mean.dtype == torch.float32, "not float32, as documented"


def test_identity_that_never_ends(tmp_path: Path) -> None:
    """It ended the command with a word about recursion; the files after it were not decoded."""
    save_encoded(tmp_path / "a.safetensors", encoded())
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        metadata, tensors = dict(file.metadata()), {name: file.get_tensor(name) for name in ("mean", "logvar")}
    save_file(tensors, tmp_path / "b.safetensors", metadata | {"identity": "[" * 100_000})
    with pytest.raises(LatentFileError, match=r"b\.safetensors: expected a latent file of ssdd encode, found"):
        load_encoded(tmp_path / "b.safetensors")


@pytest.mark.parametrize("content", ["cut", "random", "empty", "missing", "folder", "header"])
def test_files_that_are_none(tmp_path: Path, content: str) -> None:
    path = tmp_path / "a.safetensors"
    if content == "cut":
        save_encoded(path, encoded())
        os.truncate(path, path.stat().st_size - 1)
    elif content == "random":
        path.write_bytes(np.random.default_rng(0).bytes(4096))
    elif content == "empty":
        path.touch()
    elif content == "folder":
        path.mkdir()
    elif content == "header":  # claims a header of exabytes
        path.write_bytes(b"\xff" * 7 + b"\x0f" + b"{}")
    with pytest.raises(LatentFileError) as caught:
        load_encoded(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: expected a latent file of ssdd encode, could not read it"), message
    assert "\n" not in message, f"not one line: {message}"


def test_from_pillow_to_pillow(tiny_model: Path, picture: Callable[..., np.ndarray]) -> None:
    """Modes and EXIF rotation as in the commands; the size stays."""
    model = AutoencoderSSDD.from_pretrained(tiny_model).eval()
    pixels = picture(12, 20)
    photo = Image.fromarray(pixels)
    again = decode_pil(model, encode_pil(model, photo), steps=1)
    assert (again.mode, again.size) == ("RGB", (20, 12))
    assert np.array_equal(np.asarray(again), decode_image(model, encode_image(model, pixels), 1))
    turned = Image.fromarray(np.rot90(pixels))
    turned.getexif()[274] = 6  # to be turned by a quarter
    assert torch.equal(encode_pil(model, turned).mean, encode_pil(model, photo).mean)
    assert encode_pil(model, photo.convert("LA")).mean.shape == (4, 2, 3)


def test_colour_profiles_of_pillow_images_count(tiny_model: Path, picture: Picture, tmp_path: Path) -> None:
    """Photographs of phones had other latents in Python than by ``ssdd encode``."""
    model = AutoencoderSSDD.from_pretrained(tiny_model).eval()
    photo = Image.fromarray(picture(16, 24))
    photo.getexif()[274] = 6
    photo.save(tmp_path / "photo.png", icc_profile=SWAPPED, exif=photo.getexif())
    by_command = encode_image(model, read_image(tmp_path / "photo.png"))
    assert torch.equal(encode_pil(model, Image.open(tmp_path / "photo.png")).mean, by_command.mean)
    assert not torch.equal(encode_pil(model, photo).mean, by_command.mean), "the profile changes nothing"


def test_public_names() -> None:
    assert dir(ssdd) == ["AutoencoderSSDD", "LatentDataset", "__version__", "decode_pil", "encode_pil"]
    for name in dir(ssdd):
        assert getattr(ssdd, name).__doc__
    with pytest.raises(AttributeError, match="nothing"):
        ssdd.nothing  # type: ignore[attr-defined]  # noqa: B018
