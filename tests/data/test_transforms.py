"""Crops: sizes, chance from one generator alone, known answers."""

from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from ssdd.data.transforms import centre_crop, resized_sides, resized_window, training_crop

Picture = Callable[..., np.ndarray]


def resized(image: np.ndarray, shorter: int, filter: Image.Resampling) -> np.ndarray:
    height, width = resized_sides(image, shorter)
    return np.asarray(Image.fromarray(image).resize((width, height), filter))


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("size", [(64, 64), (37, 53), (200, 20), (20, 200), (1, 1), (1, 30), (7, 5)])
@pytest.mark.parametrize("scale", [1.0, 1.3, 2.0])
def test_training_crop_size(picture: Picture, size: tuple[int, int], scale: float) -> None:
    """Any photograph gives a whole crop, smaller ones than the crop too."""
    for seed in range(5):
        crop = training_crop(picture(*size), 16, scale, True, generator(seed))
        assert crop.shape == (16, 16, 3), f"a crop of {size} has another size"
        assert crop.dtype == np.uint8, f"a crop of {size} has another type"
        assert crop.flags.c_contiguous, "not contiguous, as promised"
        assert crop.flags.writeable, "PyTorch warns of arrays that it may not write to"


def test_training_crop_depends_on_the_generator_alone(picture: Picture) -> None:
    image = picture(60, 80)
    np.random.seed(0)
    first = [training_crop(image, 16, 2.0, True, generator(seed)) for seed in range(20)]
    np.random.seed(1)
    again = [training_crop(image, 16, 2.0, True, generator(seed)) for seed in range(20)]
    assert np.array_equal(first, again), "the same generator gives another crop: a run cannot be repeated"
    assert len({c.tobytes() for c in first}) == 20, "different generators give the same crop"
    assert np.array_equal(image, picture(60, 80)), "the photograph was changed"


def places(image: np.ndarray, size: int) -> dict[bytes, tuple[int, int]]:
    """Every crop of the image that was not resized, and where it lies."""
    height, width = image.shape[:2]
    return {
        image[top : top + size, left : left + size].tobytes(): (top, left)
        for top in range(height - size + 1)
        for left in range(width - size + 1)
    }


def test_scale_one_never_resizes_and_reaches_every_place(picture: Picture) -> None:
    """Shorter side equal to the crop: the crop is cut out of the photograph, at the edges as well."""
    image = picture(16, 20)
    known = places(image, 16)
    found = {known.get(training_crop(image, 16, 1.0, False, generator(s)).tobytes()) for s in range(100)}
    assert found == {(0, left) for left in range(5)}, "pixels were resampled, or a place is never taken"


def test_scale_changes_the_size_of_things() -> None:
    """A white half beside a black one: the finer the scale, the sharper its edge; all scales up to the limit occur."""
    image = np.zeros((16, 16, 3), np.uint8)
    image[::2] = 255  # rows of one pixel: their period in the crop is the scale
    periods = set()
    for seed in range(200):
        crop = training_crop(image, 16, 2.0, False, generator(seed)).astype(float)
        spectrum = np.abs(np.fft.rfft(crop[:, 0, 0] - crop[:, 0, 0].mean()))
        periods.add(int(spectrum.argmax()))
    assert min(periods) == 4, f"expected scales up to 2 (4 periods in a crop), found {min(periods)} periods"
    assert max(periods) == 8, f"expected scales down to 1 (8 periods in a crop), found {max(periods)} periods"
    assert {5, 6, 7} <= periods, "scales in between are missing"


@pytest.mark.parametrize("scale", [1.0, 2.0, 3.0])
def test_training_crop_is_cut_out_of_the_whole_resized_photograph(scale: float) -> None:
    """To the bit, although only a part of it is resized: runs that were started before go on with the same crops."""
    random = generator(1)
    for seed in range(60):
        height, width = (int(n) for n in random.integers(1, int(random.choice([20, 120, 400])), 2))
        size = int(random.integers(4, 48))
        image = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        chance = generator(seed)
        shorter = int(chance.integers(size, int(scale * size), endpoint=True))
        whole = resized(image, shorter, Image.Resampling.LANCZOS)
        top = int(chance.integers(0, whole.shape[0] - size, endpoint=True))
        left = int(chance.integers(0, whole.shape[1] - size, endpoint=True))
        crop = training_crop(image, size, scale, False, generator(seed))
        expected = whole[top : top + size, left : left + size]
        assert np.array_equal(crop, expected), f"other pixels from {width} x {height}, shorter side {shorter}"


def test_flip_mirrors_half_of_the_crops(picture: Picture) -> None:
    image = picture(16, 16)
    crops = [training_crop(image, 16, 1.0, True, generator(seed)) for seed in range(200)]
    mirrored = sum(np.array_equal(c, image[:, ::-1]) for c in crops)
    plain = sum(np.array_equal(c, image) for c in crops)
    assert mirrored + plain == 200, "a flipped crop is something other than the mirror image, left and right swapped"
    assert 70 < mirrored < 130, f"expected about half of 200 mirrored, found {mirrored}"


def test_flip_does_not_move_the_crop(picture: Picture) -> None:
    image = picture(16, 20)
    for seed in range(20):
        with_flip = training_crop(image, 16, 1.0, True, generator(seed))
        without = training_crop(image, 16, 1.0, False, generator(seed))
        same = np.array_equal(with_flip, without) or np.array_equal(with_flip, without[:, ::-1])
        assert same, "switching the flip on changes which part is taken"


@pytest.mark.parametrize(("size", "place"), [((4, 9), (0, 2)), ((9, 4), (2, 0)), ((4, 4), (0, 0)), ((4, 8), (0, 2))])
def test_centre_crop_known_answer(picture: Picture, size: tuple[int, int], place: tuple[int, int]) -> None:
    """No resizing needed: the middle, an odd pixel left over on the right or below."""
    image = picture(*size)
    top, left = place
    assert np.array_equal(centre_crop(image, 4), image[top : top + 4, left : left + 4]), "not the middle"


def test_centre_crop_halves() -> None:
    """Known colours: twice as large, four columns of one colour each; the crop has the inner two."""
    columns = np.array([10, 80, 160, 240], np.uint8).repeat(8)
    image = np.broadcast_to(columns[None, :, None], (16, 32, 3)).copy()
    crop = centre_crop(image, 8)
    assert crop.shape == (8, 8, 3), "another size"
    assert crop[:, 1].min() == crop[:, 2].max() == 80, "the left half is not the second column"
    assert crop[:, 5].min() == crop[:, 6].max() == 160, "the right half is not the third column"


@pytest.mark.parametrize("size", [(1, 1), (3, 50), (50, 3), (31, 33)])
def test_centre_crop_of_any_size(picture: Picture, size: tuple[int, int]) -> None:
    assert centre_crop(picture(*size), 32).shape == (32, 32, 3), f"a photograph of {size} gives no whole crop"


@pytest.mark.parametrize(
    ("size", "expected"), [((10, 20), (5, 10)), ((21, 10), (10, 5)), ((3, 7), (5, 12)), ((1000, 999), (5, 5))]
)
def test_resize_keeps_the_aspect_ratio(picture: Picture, size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert resized_sides(picture(*size), 5) == expected


@pytest.mark.parametrize("filter", [Image.Resampling.LANCZOS, Image.Resampling.BICUBIC, Image.Resampling.BILINEAR])
def test_a_window_is_cut_out_of_the_whole_resized_image(filter: Image.Resampling) -> None:
    """To the bit, in every shape."""
    random = generator(3)
    for _ in range(80):
        height, width = (int(n) for n in random.integers(1, int(random.choice([20, 120, 400])), 2))
        size = int(random.integers(4, 48))
        image = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        whole = resized(image, size + int(random.integers(0, 30)), filter)
        top, left = (int(random.integers(0, n - size, endpoint=True)) for n in whole.shape[:2])
        window = resized_window(image, whole.shape[:2], top, left, (size, size), filter)
        assert np.array_equal(window, whole[top : top + size, left : left + size]), f"{image.shape} to {whole.shape}"


def test_a_window_of_a_very_long_image() -> None:
    """Not the whole of it is made, and the place is right to a rounding."""
    random = generator(4)
    for shape in ((3, 2000), (2000, 3)):
        image = random.integers(0, 256, (*shape, 3), dtype=np.uint8)
        whole = resized(image, 40, Image.Resampling.LANCZOS)
        assert max(whole.shape) > 1 << 14, "the test needs a longer image"
        for place in (0, 1, 12345, max(whole.shape) - 40):
            top, left = (place, 0) if shape[0] > shape[1] else (0, place)
            window = resized_window(image, whole.shape[:2], top, left, (40, 40), Image.Resampling.LANCZOS)
            difference = window.astype(int) - whole[top : top + 40, left : left + 40]
            assert np.abs(difference).max() <= 1, f"other pixels at {place} of {shape}"


@pytest.mark.parametrize("shape", [(2, 2000), (2000, 2), (1, 200_000), (200_000, 1)])
def test_crops_cost_no_more_than_they_show(shape: tuple[int, int]) -> None:
    image = np.zeros((*shape, 3), np.uint8)
    largest = []
    new = Image.Image.resize

    def resize(self: Image.Image, size: tuple[int, int], *args: object, **options: object) -> Image.Image:
        largest.append(max(self.width * self.height, size[0] * size[1]))
        return new(self, size, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Image.Image, "resize", resize)
        assert training_crop(image, 256, 2.0, False, generator()).shape == (256, 256, 3)
        assert centre_crop(image, 256).shape == (256, 256, 3)
    assert max(largest) < 1 << 21, f"an image of {max(largest)} pixels was made for a crop of 65,536"
