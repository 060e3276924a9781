"""The spectrum that shows over-smoothing, invented detail and a weave."""

from collections.abc import Callable

import numpy as np
import pytest

from ssdd.evaluation.spectrum import FREQUENCIES, detail_ratio, mean_power, spectra

Picture = Callable[..., np.ndarray]


def ratio(reconstruction: np.ndarray, original: np.ndarray) -> np.ndarray:
    """Of two batches of images."""
    return detail_ratio(spectra(reconstruction).high, spectra(original).high)


def waves(height: int, width: int, rows: float, columns: float) -> np.ndarray:
    """Gray waves of so many cycles a pixel down and across: uint8 (1, H, W, 3)."""
    y, x = np.mgrid[:height, :width]
    levels = 127.5 + 100 * np.cos(2 * np.pi * (rows * y + columns * x))
    return np.rint(levels)[None, :, :, None].repeat(3, -1).astype(np.uint8)


def blurred(images: np.ndarray) -> np.ndarray:
    """Mean over 3 x 3 pixels, edges wrapped around."""
    shifts = [np.roll(images.astype(float), (i, j), (1, 2)) for i in (-1, 0, 1) for j in (-1, 0, 1)]
    return np.rint(sum(shifts) / 9).astype(np.uint8)


def test_white_noise_is_flat_at_its_variance() -> None:
    """Whatever the size, odd and not square too: bands can be averaged over images of many sizes."""
    for height, width in ((256, 256), (255, 301), (128, 400)):
        noise = np.random.default_rng(0).normal(128, 20, (8, height, width, 1)).repeat(3, -1)
        images = np.rint(noise).clip(0, 255).astype(np.uint8)
        power = spectra(images).power.mean(0)
        fine = power[-8:] / (20**2 + 1 / 12)
        assert abs(fine - 1).max() < 0.1, f"{height} x {width}: noise of variance 400 has the powers {power[-8:]}"


@pytest.mark.parametrize("size", [(256, 256), (255, 301)])
def test_a_wave_is_in_its_band(size: tuple[int, int]) -> None:
    for rows, columns in ((0.1, 0), (0, 0.1), (0.3, 0), (0.03, 0.04), (0.3, 0.3), (0.45, 0.45)):
        spectrum = spectra(waves(*size, rows, columns))
        band = int(np.nanargmax(spectrum.power[0]))
        octaves = abs(np.log2(FREQUENCIES[band] / np.hypot(rows, columns)))
        assert octaves <= 0.26, f"{rows}, {columns} cycles a pixel: found {octaves} octaves from there"


def test_bands_without_a_frequency_are_undefined(picture: Picture) -> None:
    power = spectra(picture(16, 16)[None]).power[0]
    assert np.isnan(power[:11]).all(), "power below the first frequency of 16 pixels"
    assert np.isfinite(power[-7:-4:2]).all(), "no power at 1 and 2 cycles in 16 pixels"


def test_equal_images_have_exactly_the_same_detail(picture: Picture) -> None:
    for size in ((64, 64), (33, 47), (1, 1), (1, 200), (2, 3)):
        image = picture(*size)[None]
        assert ratio(image, image).tolist() == [1.0], f"{size}: equal images differ"


def test_blur_loses_detail_and_noise_adds_it(picture: Picture) -> None:
    images = np.stack([picture(64, 80, seed) for seed in range(3)])
    noise = np.random.default_rng(0).integers(-40, 41, images.shape)
    noisy = (images + noise).clip(0, 255).astype(np.uint8)
    assert (ratio(blurred(images), images) < 0.3).all(), "over-smoothing goes unnoticed"
    assert (ratio(noisy, images) > 1.5).all(), "added noise goes unnoticed"
    each = [float(ratio(blurred(i[None]), i[None])[0]) for i in images]
    assert ratio(blurred(images), images).tolist() == pytest.approx(each), "the batch matters"


def test_only_what_is_above_half_nyquist_counts() -> None:
    """Half the amplitude of a wave there is a quarter of the energy; a wave below changes nothing."""
    fine, coarse = waves(128, 128, 0.0, 0.375).astype(float) - 127.5, waves(128, 128, 0.125, 0.0).astype(float) - 127.5

    def image(a: float, b: float) -> np.ndarray:
        return np.rint(127.5 + a * fine + b * coarse).astype(np.uint8)

    assert ratio(image(0.25, 0), image(0.5, 0))[0] == pytest.approx(0.25, abs=0.01), "not the energy"
    assert ratio(image(0.5, 0.5), image(0.5, 0))[0] == pytest.approx(1, abs=0.01), "coarse waves count"


@pytest.mark.parametrize("size", [(128, 128), (127, 127)])
def test_every_direction_counts_the_same(size: tuple[int, int]) -> None:
    for frequency in (0.3, 0.5):
        down, across = waves(*size, frequency, 0), waves(*size, 0, frequency)
        assert ratio(down, across)[0] == pytest.approx(1, abs=1e-3), "rows and columns differ"
        powers = [spectra(i).power[0] for i in (down, across)]
        assert powers[0][-3:] == pytest.approx(powers[1][-3:], rel=1e-3), "rows and columns differ"


def test_detail_of_flat_images() -> None:
    flat, board = np.full((1, 32, 32, 3), 77, np.uint8), waves(32, 32, 0.5, 0.5)
    assert ratio(flat + np.uint8(9), flat).tolist() == [1.0], "two flat images differ in detail"
    assert ratio(board, flat).tolist() == [np.inf], "detail out of nothing has a finite ratio"
    assert ratio(flat, board)[0] == pytest.approx(0, abs=1e-12), "detail that is gone is still there"
    one = flat.copy()
    one[0, 16, 16, 2] += 1
    assert ratio(one, flat).tolist() == [np.inf], "one level in one pixel is taken for rounding"


def test_weave_is_power_at_a_period_of_two_pixels(picture: Picture) -> None:
    """White noise has as much there as beside it; a faint pattern of columns, rows or a board has more."""
    noise = np.random.default_rng(0).integers(80, 176, (16, 128, 96, 1)).repeat(3, -1).astype(np.uint8)
    assert spectra(noise).weave.mean() == pytest.approx(1, abs=0.1)
    y, x = np.mgrid[:128, :96]
    for pattern in (x % 2, y % 2):
        woven = (noise + 6 * pattern[..., None]).astype(np.uint8)
        assert (spectra(woven).weave > spectra(noise).weave).all(), "a weave goes unnoticed"
    assert np.isnan(spectra(picture(33, 64)[None]).weave).all(), "an odd side has no such frequency"


def test_mean_spectrum_is_that_of_all_images(picture: Picture) -> None:
    """Images of several sizes, in batches: a band counts the images that have it."""
    sizes = ((64, 48), (16, 16), (200, 120))
    powers = [spectra(np.stack([picture(*size, seed) for seed in range(2)])).power for size in sizes]
    for band, (found, column) in enumerate(zip(mean_power(powers), np.concatenate(powers).T, strict=True)):
        expected = np.mean(column[np.isfinite(column)]) if np.isfinite(column).any() else np.nan
        np.testing.assert_allclose(found, expected, rtol=1e-12, err_msg=f"band {band}")
    assert np.isnan(mean_power([])).all()
