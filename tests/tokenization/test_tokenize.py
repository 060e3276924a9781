"""What is stored is what the model gives, with the right labels and places; statistics are those of all of it."""

import json
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ssdd import AutoencoderSSDD
from ssdd.data.images import read_image
from ssdd.data.pixels import image_to_tensor
from ssdd.data.transforms import centre_crop
from ssdd.tokenization import CropProtocol, LatentDataset, Part, finish, tokenize, verify
from ssdd.tokenization.image_list import ImageList, make_list
from ssdd.tokenization.sources import Selection
from tests.tokenization.conftest import NAMES, SIZE, Job

Tree = Callable[[Path], dict[str, bytes]]

GOOD = [name for name in NAMES if "broken" not in name]


def meta(folder: Path) -> list[dict[str, Any]]:
    found = []
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            found += [json.load(tar.extractfile(m)) for m in tar if m.name.endswith(".json")]  # type: ignore[arg-type]
    return found


@torch.no_grad()
def test_latents_are_those_of_the_model(whole: Path, photographs: Path, tiny_model: Path) -> None:
    data, ae = LatentDataset(whole), AutoencoderSSDD.from_pretrained(tiny_model).eval()
    assert len(data) == 2 * len(GOOD)
    assert data.latent_shape == (4, SIZE // 8, SIZE // 8)
    for i, name in enumerate(GOOD):
        x = image_to_tensor(centre_crop(read_image(photographs / name), SIZE))[None]
        for item, crop in ((data[2 * i], x), (data[2 * i + 1], x.flip(-1))):
            posterior = ae.encode(crop).latent_dist
            assert item["mean"].dtype == item["logvar"].dtype == torch.float32
            torch.testing.assert_close(item["mean"], posterior.mean[0], rtol=1e-3, atol=1e-3)  # of fp16
            torch.testing.assert_close(item["logvar"], posterior.logvar[0], rtol=1e-3, atol=1e-2)
            assert data.classes[item["label"]] == name.split("/")[0]
    assert (data[0]["mean"] - data[1]["mean"]).abs().max() > 0.01, "the mirrored crop has the same latent"


def test_metadata(whole: Path, photographs: Path) -> None:
    entries = meta(whole)
    assert [e["source"] for e in entries] == [name for name in GOOD for _ in range(2)]
    assert [e["flipped"] for e in entries] == [False, True] * len(GOOD)
    keys = [e["key"] for e in entries]
    assert keys[0] == "000000000-c0-0"
    assert keys[-1] == "000000006-c0f-image"
    assert all("." not in key and key.isascii() for key in keys), "webdataset's keys end at the first dot"
    image = read_image(photographs / NAMES[-1])
    last = entries[-1]
    assert last["size"] == [*image.shape[:2]]
    assert min(last["resized"]) == SIZE
    top, left, height, width = last["crop"]
    resized = np.asarray(Image.fromarray(image).resize(last["resized"][::-1], Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(resized[top : top + height, left : left + width], centre_crop(image, SIZE))


def test_broken_images_are_skipped_and_move_no_others(whole: Path) -> None:
    (skipped,) = LatentDataset(whole).manifest["skipped"]
    assert (skipped["image"], skipped["name"]) == (3, "bee/broken.jpg")
    assert LatentDataset(whole).manifest["skipped_images"] == 1
    assert "expected an image" in skipped["reason"]
    assert {e["image"] for e in meta(whole)} == {0, 1, 2, 4, 5, 6}


def test_statistics_are_those_of_all_latents(whole: Path) -> None:
    data = LatentDataset(whole)
    values = torch.stack([item["mean"] for item in data.stream()]).double().numpy()
    found = data.manifest["statistics"]
    for name, expected in {
        "mean": values.mean((0, 2, 3)),
        "std": values.std((0, 2, 3)),
        "minimum": values.min((0, 2, 3)),
        "maximum": values.max((0, 2, 3)),
        "global_mean": values.mean(),
        "global_std": values.std(),
        "scaling_factor": 1 / values.std(),
        "shift_factor": values.mean(),
        "positions": values.size / 4,
    }.items():
        assert found[name] == pytest.approx(expected, rel=1e-12), name
    assert data.statistics["latents_mean"] == pytest.approx(found["mean"])
    assert set(data.statistics) == {"scaling_factor", "shift_factor", "latents_mean", "latents_std"}


def test_random_crops(job: Job, photographs: Path, tmp_path: Path, picture: Callable[..., np.ndarray]) -> None:
    done = tokenize(job(rule="random", crops=3, scale=1.5, only="cow/*"), tmp_path / "out", workers=0)
    entries = meta(tmp_path / "out")
    assert done.manifest.latents == len(entries) == 6
    assert len({(*e["resized"], *e["crop"]) for e in entries[:3]}) == 3, "crops of one image are the same"
    protocol, image = CropProtocol("random", SIZE, crops=3, scale=1.5), picture(50, 70)
    first, again, other = (protocol.cut(image, [number]) for number in (5, 5, 6))
    assert all(np.array_equal(a.pixels, b.pixels) for a, b in zip(first, again, strict=True)), "chance beside the seed"
    assert not np.array_equal(first[0].pixels, other[0].pixels)
    for crop in first:
        assert crop.pixels.shape == (SIZE, SIZE, 3)
        assert SIZE <= min(crop.resized) <= 1.5 * SIZE


def test_bf16_and_no_labels(job: Job, tmp_path: Path) -> None:
    tokenize(job(store="bf16", labels="none", only="ant/*"), tmp_path / "out", workers=0)
    data = LatentDataset(tmp_path / "out")
    assert data.classes == []
    assert [int(item["label"]) for item in data.stream()] == [-1, -1]
    assert data[0]["mean"].to(torch.bfloat16).float().equal(data[0]["mean"])
    assert verify(tmp_path / "out") == []


def test_reading_ahead_changes_no_byte(job: Job, whole: Path, tmp_path: Path, tree: Tree) -> None:
    tokenize(job(flips=True), tmp_path / "out", workers=1)
    assert tree(tmp_path / "out") == tree(whole)


def test_parts(job: Job, whole: Path, tmp_path: Path, tree: Tree) -> None:
    """Parts in any order come to the set of a single process; the last one writes the manifest."""
    sent = pickle.loads(pickle.dumps(job(flips=True)))
    second = tokenize(sent, tmp_path, part=Part(1, 2), workers=0)
    assert (second.manifest, second.made, second.missing) == (None, 1, 1)
    with pytest.raises(ValueError, match="expected all 2 shards, found 1 missing"):
        finish(tmp_path)
    first = tokenize(sent, tmp_path, part=Part(0, 2), workers=0)
    assert first.manifest is not None
    assert (first.made, first.kept, first.missing) == (1, 0, 0)
    assert visible(tree(tmp_path)) == visible(tree(whole))
    (tmp_path / "manifest.json").unlink()
    assert finish(tmp_path) == first.manifest
    assert visible(tree(tmp_path)) == visible(tree(whole))


def visible(files: dict[str, bytes]) -> dict[str, bytes]:
    """All files but the locks."""
    return {name: content for name, content in files.items() if not name.startswith(".")}


class Listed:
    """A list of images, as ``LabelledSource`` once was: names and labels."""

    def __init__(self, folder: Path, paths: list[str], only: str | None = None, labels: Any = "auto") -> None:
        folder = folder / f"list-{len(list(folder.iterdir()))}"
        self.classes = make_list(folder, paths, Selection(only, labels)).classes
        images = ImageList(folder, paths)
        self.images = [images.image(i) for i in range(images.info.images)]

    def names(self) -> list[str]:
        return [image.name for image in self.images]

    def labels(self) -> list[Any]:
        return [image.label for image in self.images]


def test_labels_of_tar_files(photographs: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name in GOOD:
            tar.add(photographs / name, f"animals/{name}")
        tar.add(photographs / GOOD[0], "flat.png")
    tar = [str(tmp_path / "x.tar")]
    source = Listed(tmp_path, tar)
    assert source.classes == ["ant", "bee", "cow"]
    assert source.labels() == [0, 0, 1, 1, 2, 2, None]
    assert source.names()[0] == "animals/ant/0.png"
    bees = Listed(tmp_path, tar, only="*/bee/*")
    assert (bees.classes, bees.labels()) == ([], [None, None]), "one class is no label"
    assert Listed(tmp_path, tar, "*/bee/*", "folder").classes == ["bee"]
    with pytest.raises(ValueError, match="expected images in folders that name their class"):
        Listed(tmp_path, tar, "flat*", "folder")
    with pytest.raises(ValueError, match=r"expected names like 'dog/\*'"):
        Listed(tmp_path, tar, "dog/*")


def test_labels_of_data_sets(photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets", reason="needs the extra: pip install 'ssdd[data]'")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    photos = [{"bytes": (photographs / name).read_bytes(), "path": None} for name in GOOD[:3]]

    def source(labels: list[Any], feature: Any) -> Listed:
        features = datasets.Features({"photo": datasets.Image(), "label": feature})
        made = datasets.Dataset.from_dict({"photo": photos, "label": labels}, features=features)
        folder = tmp_path / f"set-{len(list(tmp_path.iterdir()))}"
        made.save_to_disk(folder)
        return Listed(tmp_path, [str(folder)])

    named = source([1, 0, -1], datasets.ClassLabel(names=["zebra", "ape", "gnu"]))
    assert named.classes == ["zebra", "ape", "gnu"], "the data set's own numbers are its labels"
    assert named.labels() == [1, 0, None]
    numbers = source([2, 0, 11], datasets.Value("int64"))
    assert numbers.labels() == [2, 0, 11]
    words = source(["b", "a", "b"], datasets.Value("string"))
    assert (words.classes, words.labels()) == (["a", "b"], [1, 0, 1])
