"""JPEG files and fewer pixels as contestants."""

import io
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image

from ssdd.data.pixels import image_to_tensor, tensor_to_image
from ssdd.evaluation.contestants import JPEG_AUTO, Jpeg, load_contestant
from ssdd.evaluation.metrics import bicubic_baseline
from tests.evaluation.contestants.models import images, refused


def test_jpeg_keeps_its_budget(picture: Callable[..., np.ndarray]) -> None:
    """JPEG gets more bytes than the tokenizer it is compared with, or less quality than its bytes allow."""
    batch = torch.stack([image_to_tensor(picture(96, 128, seed)) for seed in range(2)])
    sizes, errors = [], []
    for budget in (1200, 2400, 4800, 100_000):
        contestant = load_contestant(f"jpeg:{budget}")
        assert contestant.name == f"jpeg@{budget}B"
        assert contestant.latent_bytes(96, 128) == budget
        files = contestant.encode(batch)
        assert all(0.7 * budget < len(file) <= budget for file in files) or budget == 100_000
        decoded = contestant.decode(files)
        assert (decoded.shape, decoded.dtype) == (batch.shape, torch.float32)
        sizes.append(sum(map(len, files)))
        errors.append(float((decoded - batch).square().mean()))
    assert sizes == sorted(set(sizes))
    assert errors == sorted(set(errors), reverse=True)
    expected = io.BytesIO()
    Image.fromarray(picture(96, 128, 0)).save(expected, "JPEG", quality=95)
    assert files[0] == expected.getvalue()
    assert (contestant.parameters, contestant.decoder_parameters, contestant.flops(96, 128)) == (0, 0, None)
    assert contestant.describe()["kind"] == "JPEG"


def test_jpeg_takes_the_best_quality_that_fits(picture: Callable[..., np.ndarray]) -> None:
    """The search stops early: the next quality would have met the budget as well."""
    image = picture(64, 64)
    sizes = []
    for quality in range(1, 96):
        stream = io.BytesIO()
        Image.fromarray(image).save(stream, "JPEG", quality=quality)
        sizes.append(stream.tell())
    for quality in (1, 30, 60, 94):
        (file,) = Jpeg(sizes[quality - 1]).encode(image_to_tensor(image)[None])
        assert len(file) == max(size for size in sizes if size <= sizes[quality - 1])


def test_bicubic_is_the_baseline_of_the_metrics(picture: Callable[..., np.ndarray]) -> None:
    """Two tables of this project show two different baselines."""
    pictures = [picture(64, 96, seed) for seed in range(2)]
    contestant = load_contestant("bicubic:8")
    latent = contestant.encode(torch.stack([image_to_tensor(p) for p in pictures]))
    decoded = tensor_to_image(contestant.decode(latent))
    assert all(np.array_equal(decoded[i], bicubic_baseline(pictures[i], 8)) for i in range(2))
    assert latent[0].nbytes == contestant.latent_bytes(64, 96) == 8 * 12 * 3
    assert (contestant.name, contestant.spatial_factor, contestant.flops(64, 96)) == ("bicubic:8", 8, None)
    assert contestant.describe()["latent"] == "(3, H/8, W/8) of 8 bits"
    with pytest.raises(ValueError, match="H and W multiples of 8"):
        contestant.encode(torch.zeros(1, 3, 60, 64))


def test_baselines_that_cannot_be(picture: Callable[..., np.ndarray]) -> None:
    """A wrong number is taken for a model of the hub, or gives a file over the budget."""
    refused("jpeg:big", "^jpeg:big: expected jpeg:BYTES, .* found 'big'")
    refused("jpeg:0", "^jpeg:0: expected jpeg:BYTES")
    refused("bicubic:", "^bicubic:: expected bicubic:FACTOR")
    refused(JPEG_AUTO, "^jpeg:auto: expected another contestant")
    with pytest.raises(ValueError, match="at least 1 byte"):
        Jpeg(0)
    with pytest.raises(ValueError, match=r"^jpeg@100B: .* 64 x 32 pixels can meet, found \d{3} bytes at quality 1"):
        Jpeg(100).encode(image_to_tensor(picture(32, 64))[None])
    for name in ("jpeg:2000", "bicubic:8"):
        contestant = load_contestant(name)
        with pytest.raises(ValueError, match="expected no number of decoding steps"):
            contestant.decode(contestant.encode(images(1)), steps=1)
