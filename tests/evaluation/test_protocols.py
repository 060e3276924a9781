"""Evaluation sets: the same pixels for everybody, and a reason for every image that gives none."""

import hashlib
import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ssdd.data.loader import Skipped
from ssdd.data.sources import open_source
from ssdd.data.transforms import centre_crop
from ssdd.evaluation.protocols import (
    PROTOCOLS,
    Census,
    CropKey,
    EvaluationItem,
    EvaluationSet,
    Protocol,
    adm_crop,
    draw_images,
    get_protocol,
    read_items,
    torchvision_crop,
)

Picture = Callable[..., np.ndarray]
SIZES = [(40, 56), (33, 90), (70, 41), (20, 64), (16, 16)]
CENTRE = Protocol("test-centre", "centre", 32)
RANDOM = Protocol("test-random", "random", 32, crops=3)
NATIVE = Protocol("test-native", "native", 16)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory, picture: Picture) -> Path:
    """Five images, of which 3.png and 4.png are small, and 5.png, which is broken."""
    folder = tmp_path_factory.mktemp("photos")
    for i, size in enumerate(SIZES):
        Image.fromarray(picture(*size, i)).save(folder / f"{i}.png")
    (folder / "5.png").write_bytes((folder / "0.png").read_bytes()[:200])
    return folder


def evaluation_set(folder: Path, protocol: Protocol) -> EvaluationSet:
    return EvaluationSet(open_source([folder]), protocol)


def census(folder: Path, protocol: Protocol, workers: int = 0, indices: list[int] | None = None) -> Census:
    result = Census()
    for index, item in read_items(evaluation_set(folder, protocol), workers, indices):
        result.add(index, item)
    return result


def crops(item: EvaluationItem | Skipped) -> list[np.ndarray]:
    assert isinstance(item, EvaluationItem), f"skipped: {item}"
    return [crop.pixels for crop in item.crops]


def test_centre_is_the_evaluation_crop_of_the_data_package(photos: Path, picture: Picture) -> None:
    for i, size in enumerate(SIZES):
        item = evaluation_set(photos, CENTRE)[i]
        (crop,) = crops(item)
        assert np.array_equal(crop, centre_crop(picture(*size, i), 32)), f"{size}: other pixels than `centre_crop`"
        assert item.enlarged == (min(size) < 32), f"{size}: enlarged images are not told from the others"
        assert item.crops[0].key == CropKey(i, 0, str(photos / f"{i}.png")), "the crop goes by another name"


def test_random_crops_are_pixels_of_the_image(photos: Path, picture: Picture) -> None:
    """At native resolution, inside the image, as many as asked for, at places of (seed, index, crop) for ever."""
    for i in range(3):
        image, found = picture(*SIZES[i], i), crops(evaluation_set(photos, RANDOM)[i])
        assert len(found) == 3, "another number of crops"
        for k, crop in enumerate(found):
            random = np.random.default_rng([0, i, k])
            top, left = (int(random.integers(0, side - 32, endpoint=True)) for side in SIZES[i])
            expected = image[top : top + 32, left : left + 32]
            assert np.array_equal(crop, expected), f"crop {k} of image {i}: published numbers cannot be had any more"
    other = crops(evaluation_set(photos, replace(RANDOM, seed=1))[1])
    assert not all(map(np.array_equal, other, crops(evaluation_set(photos, RANDOM)[1]))), "the seed changes nothing"


def test_random_crops_reach_every_place(tmp_path: Path, picture: Picture) -> None:
    image = picture(9, 10)
    Image.fromarray(image).save(tmp_path / "a.png")
    found = {c.tobytes() for c in crops(evaluation_set(tmp_path, Protocol("test", "random", 8, crops=100))[0])}
    assert len(found) == 2 * 3, "places at the border are never drawn, or some that do not exist"


def test_native_is_the_middle_of_the_image(photos: Path, picture: Picture) -> None:
    for i, (top, left, height, width) in enumerate([(4, 4, 32, 48), (0, 5, 32, 80), (3, 4, 64, 32)]):
        (crop,) = crops(evaluation_set(photos, NATIVE)[i])
        expected = picture(*SIZES[i], i)[top : top + height, left : left + width]
        assert np.array_equal(crop, expected), f"{SIZES[i]}: not cut to multiples of 16 around the middle"
        assert crop.base is None, "a view that keeps the whole image in memory"


def test_broken_and_small_images_are_skips_with_a_reason(photos: Path) -> None:
    """Each once, in the set's order; ``centre`` enlarges what is small, and says how many."""
    for protocol, names, enlarged in (
        (CENTRE, ["5.png"], 2),
        (RANDOM, ["3.png", "4.png", "5.png"], 0),
        (replace(NATIVE, size=24), ["3.png", "4.png", "5.png"], 0),
    ):
        result = census(photos, protocol, indices=[5, 4, 3, 2, 1, 0])
        assert [Path(s.name).name for s in result.skipped] == names, f"{protocol.name}: other images are left out"
        assert all(name in reason for name, reason in result.skipped), "a reason that names no file"
        assert result.describe()["enlarged_images"] == enlarged, f"{protocol.name}: enlarged images are not counted"
        assert result.describe()["images"] + result.describe()["skipped_images"] == 6, "images got lost"
    reason = {Path(s.name).name: s.reason for s in census(photos, RANDOM).skipped}
    assert reason["3.png"] == (
        f"{photos / '3.png'}: expected sides of at least 32 pixels, as test-random enlarges nothing, found 20 x 64"
    ), "the reason does not say what was wrong"
    assert "5.png: expected a complete image" in reason["5.png"], "a broken file's reason is lost"


def test_an_image_that_a_resize_would_blow_up_is_a_skip(tmp_path: Path) -> None:
    Image.new("RGB", (40_000, 1)).save(tmp_path / "line.png")
    item = evaluation_set(tmp_path, Protocol("test", "centre", 256))[0]
    assert isinstance(item, Skipped), "one row of pixels takes gigabytes"
    assert "after the resize to 256, found sides 1 x 40000" in item.reason, "the reason does not say what was wrong"


@pytest.mark.parametrize("protocol", [CENTRE, RANDOM, NATIVE], ids=lambda p: p.rule)
def test_crops_depend_on_protocol_source_and_index_alone(photos: Path, protocol: Protocol) -> None:
    """Not on the order, on workers, on what was read before, or on how processes share the set."""
    whole = census(photos, protocol).fingerprint()
    assert census(photos, protocol, indices=[3, 0, 5, 2, 4, 1]).fingerprint() == whole, "the order of reading matters"
    assert census(photos, protocol, workers=2).fingerprint() == whole, "workers make other crops"
    shares = [census(photos, protocol, indices=list(range(rank, 6, 2))) for rank in (1, 0)]
    shares[0].merge(shares[1])
    assert shares[0].fingerprint() == whole, "two processes make other crops than one"
    assert shares[0].describe() == census(photos, protocol).describe(), "two processes count other images than one"
    sent = pickle.loads(pickle.dumps(evaluation_set(photos, protocol)))
    assert all(map(np.array_equal, crops(sent[1]), crops(evaluation_set(photos, protocol)[1]))), "a copy is another set"


def test_items_come_in_order_with_their_index(photos: Path) -> None:
    for workers in (0, 2):
        items = list(read_items(evaluation_set(photos, RANDOM), workers))
        assert [i for i, _ in items] == list(range(6)), f"{workers} workers: another order"
        names = [item.name if isinstance(item, Skipped) else item.crops[0].key.name for _, item in items]
        assert names == [str(photos / f"{i}.png") for i in range(6)], (
            f"{workers} workers: an item under another's index"
        )
        assert all(isinstance(c, np.ndarray) for c in crops(items[0][1])), f"{workers} workers: another type"


def test_fingerprint(tmp_path: Path, picture: Picture) -> None:
    """sha256 of the digests; one level of one pixel changes it, and so do the order and the shape."""
    images = [picture(32, 48), picture(32, 32)]

    def fingerprint(*pictures: np.ndarray) -> str:
        for i, image in enumerate(pictures):
            Image.fromarray(image).save(tmp_path / f"{i}.png")
        return census(tmp_path, NATIVE).fingerprint()

    whole = fingerprint(*images)
    digests = [
        hashlib.sha256(b"".join(n.to_bytes(8, "little") for n in i.shape[:2]) + i.tobytes()).digest() for i in images
    ]
    assert whole == hashlib.sha256(b"".join(digests)).hexdigest(), "published fingerprints are worth nothing any more"
    changed = images[0].copy()
    changed[31, 47, 2] ^= 1
    assert fingerprint(changed, images[1]) != whole, "a changed pixel goes unnoticed"
    assert fingerprint(images[1], images[0]) != whole, "the order of the images goes unnoticed"
    assert fingerprint(images[0].reshape(48, 32, 3), images[1]) != whole, "another shape goes unnoticed"
    assert fingerprint(*images) == whole, "the same images have two fingerprints"


def test_protocols_have_names_and_say_everything() -> None:
    names = {"paper-128-v1", "paper-256-v1", "paper-512-v1", "native-v1", "crops-128-v1", "crops-256-v1"}
    assert names <= set(PROTOCOLS), "a published protocol is gone"
    for name, protocol in PROTOCOLS.items():
        words = protocol.describe()
        assert get_protocol(name) is protocol, f"{name} stands for another protocol"
        assert words["protocol"] == protocol.name == name, f"{name} is described under another name"
        assert json.loads(json.dumps(words)) == words, f"{name}: not for JSON"
        assert "{" not in str(list(words.values())), f"{name}: a number is missing in the words"
        assert words["crops_per_image"] == (8 if name.startswith("crops") else 1), f"{name}: another number of crops"
        assert (words["posterior"], words["statistics_dtype"]) == ("mode", "float64"), f"{name}: other choices"
    assert len({str(p.describe()) for p in PROTOCOLS.values()}) == len(PROTOCOLS), "two protocols read the same"


def test_unknown_protocols_are_refused() -> None:
    with pytest.raises(ValueError, match=r"paper-128-v1, .*as-is\), found 'paper-256'"):
        get_protocol("paper-256")


RANDOM_SIZES = [(int(h), int(w)) for h, w in np.random.default_rng(0).integers(40, 700, (40, 2))]


def test_torchvision_crop_is_torchvisions(picture: Picture) -> None:
    """Numbers of others are of these pixels: a crop that is off by one is another protocol."""
    from torchvision.transforms import CenterCrop, Compose, Resize

    transform = Compose([Resize(256), CenterCrop(256)])
    for size in [*RANDOM_SIZES, (256, 256), (257, 300), (300, 257)]:
        image = picture(*size)
        expected = np.asarray(transform(Image.fromarray(image)))
        assert np.array_equal(torchvision_crop(image, 256), expected), f"{size}: other pixels"


def _guided_diffusion(picture: Image.Image, size: int) -> np.ndarray:
    """Centre crop in the words of the ADM paper's code, with sizes as tuples of width and height."""
    while min(*picture.size) >= 2 * size:
        picture = picture.resize(tuple(side // 2 for side in picture.size), resample=Image.BOX)
    factor = size / min(*picture.size)
    picture = picture.resize(tuple(round(side * factor) for side in picture.size), resample=Image.BICUBIC)
    pixels = np.array(picture)
    y, x = (pixels.shape[0] - size) // 2, (pixels.shape[1] - size) // 2
    return pixels[y : y + size, x : x + size]


def test_adm_crop_is_guided_diffusions(picture: Picture) -> None:
    for size in [*RANDOM_SIZES, (128, 128), (512, 1100), (255, 256)]:
        image = picture(*size)
        assert np.array_equal(adm_crop(image, 128), _guided_diffusion(Image.fromarray(image), 128)), f"{size}"


def test_exact_images_alone(tmp_path: Path, picture: Picture) -> None:
    """A benchmark of squares is of its very pixels; an image of another size is not one of its images."""
    for i, size in enumerate([(256, 256), (256, 255), (512, 512)]):
        Image.fromarray(picture(*size, i)).save(tmp_path / f"{i}.png")
    items = [item for _, item in read_items(evaluation_set(tmp_path, get_protocol("omnidoc-256")))]
    assert np.array_equal(crops(items[0])[0], picture(256, 256, 0))
    for item in items[1:]:
        assert isinstance(item, Skipped)
        assert "expected 256 x 256 pixels for omnidoc-256" in item.reason


def test_whole_images_of_any_size(tmp_path: Path, picture: Picture) -> None:
    Image.fromarray(picture(17, 5)).save(tmp_path / "small.png")
    ((_, item),) = read_items(evaluation_set(tmp_path, get_protocol("as-is")))
    assert np.array_equal(crops(item)[0], picture(17, 5))


def test_a_limit_draws_images_from_the_whole_set() -> None:
    assert draw_images(5, None, 0) is None
    assert draw_images(5, 5, 0) is None
    drawn = draw_images(1000, 50, 0)
    assert drawn == draw_images(1000, 50, 0) == sorted(drawn or [])
    assert max(drawn or []) > 800, "the first ones of the set"
    with pytest.raises(ValueError, match="at least 1 image, found 0"):
        draw_images(5, 0, 0)
