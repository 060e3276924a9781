"""The way from pixels to what the networks see, and back."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image

from ssdd.data.pixels import image_to_tensor, images_to_tensor, levels_to_values, tensor_to_image

Picture = Callable[..., np.ndarray]


def test_image_to_tensor_values_and_layout(picture: Picture) -> None:
    image = picture(4, 6)
    x = image_to_tensor(image)
    assert x.dtype == torch.float32, "not float32"
    assert x.shape == (3, 4, 6), "not CHW"
    assert x.is_contiguous(), "not contiguous"
    expected = torch.from_numpy(image.astype(np.float64)).permute(2, 0, 1) / 127.5 - 1
    assert torch.allclose(x.double(), expected, atol=1e-6), "not x / 127.5 - 1"
    ends = image_to_tensor(np.array([[[0, 255, 0]]], np.uint8)).flatten()
    assert ends.tolist() == [-1, 1, -1], "black and white are not exactly -1 and 1"


@pytest.mark.filterwarnings("error")
def test_image_to_tensor_takes_read_only_pixels(picture: Picture) -> None:
    """Such as `np.asarray` makes of a Pillow image; PyTorch warns where it would share their memory."""
    planar = np.ascontiguousarray(picture(24, 36).transpose(2, 0, 1))
    planar.flags.writeable = False
    for image in (np.asarray(Image.fromarray(picture(24, 36))), planar.transpose(1, 2, 0)):
        assert np.array_equal(tensor_to_image(image_to_tensor(image)), picture(24, 36)), "the pixels changed"


def test_image_to_tensor_takes_views_and_copies_them(picture: Picture) -> None:
    image = picture(4, 6)
    x = image_to_tensor(image[::-1, ::-1])
    assert torch.equal(x, image_to_tensor(image).flip(1, 2)), "a mirrored view is misread"
    planar = np.ascontiguousarray(image.transpose(2, 0, 1))
    view = planar.transpose(1, 2, 0)
    x = image_to_tensor(view)
    planar[:] = 0
    assert torch.equal(x, image_to_tensor(image)), "the tensor shares memory with the array"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_round_trip_is_exact_for_every_level(dtype: torch.dtype) -> None:
    image = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, 2)
    assert np.array_equal(tensor_to_image(image_to_tensor(image).to(dtype)), image), f"{dtype}: a level moved"


def test_tensor_to_image_clamps_and_rounds_to_nearest() -> None:
    infinity = float("inf")
    x = torch.tensor([-9.0, -1.0, 0.0, 1.0, 9.0, infinity, -infinity, 100.4 / 127.5 - 1, 100.6 / 127.5 - 1])
    levels = tensor_to_image(x.expand(3, 1, 9))[0, :, 0].tolist()
    assert levels == [0, 0, 128, 255, 255, 255, 0, 100, 101], "values wrap around, or are cut off"


def test_tensor_to_image_shapes(picture: Picture) -> None:
    x = torch.stack([image_to_tensor(picture(24, 36, seed=s)) for s in (1, 2)]).requires_grad_()
    batch = tensor_to_image(x)
    assert np.array_equal(batch, np.stack([picture(24, 36, seed=s) for s in (1, 2)])), "BCHW does not become BHWC"
    single = tensor_to_image(x[0])
    assert np.array_equal(single, picture(24, 36, seed=1)), "CHW does not become HWC"
    assert single.flags.c_contiguous, "not contiguous"


def test_tensor_to_image_refuses_nan_and_other_shapes(picture: Picture) -> None:
    x = image_to_tensor(picture(24, 36))
    x[1, 2, 3] = float("nan")
    with pytest.raises(ValueError, match="NaN"):
        tensor_to_image(x)
    for bad in (torch.zeros(4, 8, 8), torch.zeros(8, 8), torch.zeros(8, 8, 3), torch.zeros(3, 8, 8).int()):
        with pytest.raises(ValueError, match="expected a float tensor"):
            tensor_to_image(bad)


def test_a_batch_is_its_images(picture: Picture) -> None:
    """Evaluation goes by batches, ``ssdd reconstruct`` by images: two measurements of one model would differ."""
    images = [picture(4, 6, seed) for seed in range(3)]
    batch = torch.from_numpy(np.stack(images))
    before = batch.clone()
    x = images_to_tensor(batch)
    assert x.dtype == torch.float32, "not float32"
    assert torch.equal(x, torch.stack([image_to_tensor(image) for image in images])), "another map, or another order"
    assert torch.equal(images_to_tensor(batch[:, 1:3, 2:5]), x[:, :, 1:3, 2:5]), "a part of larger images is misread"
    assert torch.equal(levels_to_values(batch), x.permute(0, 2, 3, 1)), "the order of the axes decides the values"
    assert torch.equal(batch, before), "the pixels changed"
    assert images_to_tensor(batch[:0]).shape == (0, 3, 4, 6)
    for bad in (batch[0], batch.permute(0, 3, 1, 2), batch / 255):
        with pytest.raises(ValueError, match=r"expected uint8 images \(B, H, W, 3\), found"):
            images_to_tensor(bad)
