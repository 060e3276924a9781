"""What goes in: shards that make a shard each, lists and patterns, webdataset samples, Parquet, files of labels."""

import fcntl
import io
import json
import os
import shutil
import sys
import tarfile
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch.utils.data import DataLoader

from ssdd.data import find
from ssdd.data.images import ImageError
from ssdd.runtime.files import only_one
from ssdd.tokenization import LatentBatchSampler, LatentDataset, Part, collate_fn, finish, tokenize, verify
from ssdd.tokenization.inputs import expand, is_parquet, is_shard, split_columns
from ssdd.tokenization.labels import LabelFile, class_of
from ssdd.tokenization.plan import InputShards
from tests.images import png, write_tar
from tests.tokenization.conftest import Job

Picture = Callable[..., np.ndarray]
Tree = Callable[[Path], dict[str, bytes]]


@pytest.fixture
def shards(tmp_path: Path, picture: Picture) -> Path:
    """Three webdataset shards of two samples each; the classes are 2, 10, 1, 2, 10, 1."""
    folder = tmp_path / "shards"
    folder.mkdir()
    for shard in range(3):
        members: dict[str, bytes] = {}
        for k in range(2):
            i = 2 * shard + k
            members[f"{i:04}.png"] = png(picture(40, 40 + i, i))
            members[f"{i:04}.cls"] = b"%d" % [2, 10, 1][i % 3]
            members[f"{i:04}.txt"] = f"caption {i}".encode()
            members[f"{i:04}.json"] = json.dumps({"url": f"https://example.org/{i}"}).encode()
        write_tar(folder / f"{shard:06}.tar", members)
    return folder


def test_an_input_shard_makes_a_shard(job: Job, shards: Path, tmp_path: Path) -> None:
    """With labels and all members of the samples; keys are unique though each shard counts its own images."""
    pattern = str(shards / "{000000..000002}.tar")
    done = tokenize(job(paths=(pattern,), shard_images=None), tmp_path / "out", workers=1)
    assert (done.made, done.shards) == (3, 3)
    data = LatentDataset(tmp_path / "out", members=("txt", "json"))
    assert data.classes == [str(i) for i in range(11)], "whole numbers are the numbers of their classes"
    items = [data[i] for i in range(len(data))]
    assert [int(item["label"]) for item in items] == [2, 10, 1, 2, 10, 1]
    assert [item["txt"] for item in items] == [f"caption {i}" for i in range(6)]
    assert [json.loads(item["json"])["url"][-1] for item in items] == list("012345")
    assert len({item["key"] for item in items}) == 6
    assert verify(tmp_path / "out") == []
    assert not (tmp_path / "out" / "images.index").exists(), "input shards were listed"


def test_the_latents_are_those_of_a_list(job: Job, shards: Path, tmp_path: Path) -> None:
    tokenize(job(paths=(str(shards),), shard_images=None, batch_size=1), tmp_path / "each", workers=0)
    tokenize(job(paths=(str(shards),), shard_images=4, batch_size=1), tmp_path / "listed", workers=0)
    each, listed = LatentDataset(tmp_path / "each"), LatentDataset(tmp_path / "listed", members=("txt",))
    assert [entry["latents"] for entry in listed.manifest["shards"]] == [4, 2]
    for a, b in zip(each.stream(), listed.stream(), strict=True):
        assert a["mean"].equal(b["mean"])
        assert a["label"].equal(b["label"])
    assert listed[5]["txt"] == "caption 5"


def test_paths(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, photographs: Path) -> None:
    expected = [str(shards / f"{i:06}.tar") for i in range(3)]
    (tmp_path / "list.txt").write_text("\n".join([expected[0], "", str(shards / "{000001..000002}.tar"), ""]))
    assert expand([str(shards)]) == expected
    assert expand([f"@{tmp_path / 'list.txt'}"]) == expected
    for pattern in ("*.tar", "00000?.tar", "00000[0-2].tar", "**/*.tar"):
        assert expand([str(shards / pattern)]) == expected, pattern
    assert expand([f"{shards}/0*.tar?image=x"]) == [f"{path}?image=x" for path in expected]
    monkeypatch.setattr(find, "_standard_input", lambda: "\n".join(expected))
    assert expand(["@-"]) == expand(["-"]) == expected
    assert expand([str(photographs), "hf:a/b"]) == [str(photographs), "hf:a/b"]
    (shards / "out").mkdir()
    (shards / "out" / "plan.json").write_text("{}")
    assert expand([str(shards)]) == expected, "a set that is made inside a folder hides its shards"
    (tmp_path / "empty").write_text("\n")
    for wrong, message in {
        "@nowhere": "a list of paths",
        f"@{tmp_path / 'empty'}": "found none",
        "a{b": "balanced",
        f"{tmp_path}/no*": "files that fit this pattern, found none",
    }.items():
        with pytest.raises(ImageError, match=message):
            expand([wrong])


@pytest.mark.parametrize("pattern", ["a*", "a?", "a[12]"])
def test_every_folder_that_fits_a_pattern(job: Job, tmp_path: Path, picture: Picture, pattern: str) -> None:
    """Else the images of all but the first are lost without a word."""
    for folder, count in (("a1", 2), ("a2", 3)):
        (tmp_path / folder).mkdir()
        for i in range(count):
            (tmp_path / folder / f"{i}.png").write_bytes(png(picture(40, 40, i)))
    done = tokenize(job(paths=(str(tmp_path / pattern),)), tmp_path / "out", workers=0)
    assert done.manifest is not None
    assert done.manifest.images == 5


def test_classes_of_a_set_come_from_all_its_parts(job: Job, shards: Path, tmp_path: Path) -> None:
    """No part knows them all; words are numbered when the manifest is written."""
    for i, word in enumerate(["dog", "ant", "cat"]):
        content = (shards / f"{i:06}.tar").read_bytes()
        with tarfile.open(fileobj=io.BytesIO(content)) as tar:
            members = {m.name: tar.extractfile(m).read() for m in tar}  # type: ignore[union-attr]
        write_tar(shards / f"{i:06}.tar", {n: word.encode() if n.endswith("cls") else c for n, c in members.items()})
    for part in (2, 0, 1):
        tokenize(job(paths=(str(shards),), shard_images=None), tmp_path / "out", part=Part(part, 3), workers=0)
    data = LatentDataset(tmp_path / "out")
    assert data.classes == ["ant", "cat", "dog"]
    assert [int(item["label"]) for item in data.stream()] == [2, 2, 0, 0, 1, 1]
    assert verify(tmp_path / "out") == []
    assert finish(tmp_path / "out").classes == data.classes


@pytest.mark.slow
def test_a_broken_shard_is_an_error_and_a_broken_image_is_not(job: Job, shards: Path, tmp_path: Path) -> None:
    path = shards / "000001.tar"
    whole = path.read_bytes()
    path.write_bytes(whole[:1500])
    settings = job(paths=(str(shards),), shard_images=None)
    for processes in (1, 2):
        out = tmp_path / ("out" if processes == 1 else "other")
        with pytest.raises(
            ImageError, match=r"000001\.tar.*all others are made: mend it, and run the same command again"
        ):
            tokenize(settings, out, workers=0, processes=processes)
        assert {p.name for p in out.glob("shard*.tar")} == {"shard-000000.tar", "shard-000002.tar"}
    write_tar(path, {"0002.png": b"no image", "0003.png": whole[512:1024]})
    done = tokenize(settings, tmp_path / "out", workers=0)
    assert done.manifest is not None
    assert (done.manifest.images, done.manifest.skipped_images, done.made, done.kept) == (4, 2, 1, 2)
    assert verify(tmp_path / "out") == []


def test_parquet_shards(job: Job, tmp_path: Path, picture: Picture) -> None:
    """As ``datasets``, pandas and Spark write them: an image is a struct or bytes; text is kept."""
    pyarrow = pytest.importorskip("pyarrow", reason="needs the extra: pip install 'ssdd[parquet]'")
    parquet = pytest.importorskip("pyarrow.parquet")
    for shard in range(2):
        images = [png(picture(40, 40, 3 * shard + i)) for i in range(3)]
        cells: list[Any] = [{"bytes": image, "path": None} for image in images] if shard else images
        table = pyarrow.table({"image": cells, "fine": [7, -1, 3], "label": [1, 0, 1], "caption": ["a", None, "c"]})
        parquet.write_table(table, tmp_path / f"{shard}.parquet", row_group_size=2)
    pattern = str(tmp_path / "{0..1}.parquet")
    tokenize(job(paths=(pattern,), shard_images=None), tmp_path / "out", workers=2)
    data = LatentDataset(tmp_path / "out", members=("caption",))
    assert [int(item["label"]) for item in data.stream()] == [1, 0, 1] * 2
    assert [item["caption"] for item in data.stream()] == ["a", None, "c"] * 2
    tokenize(job(paths=(f"{pattern}?label=fine",), shard_images=None), tmp_path / "fine", workers=0)
    assert [int(item["label"]) for item in LatentDataset(tmp_path / "fine").stream()] == [7, -1, 3] * 2
    with pytest.raises(ImageError, match="expected a column photo, found the columns image, fine, label, caption"):
        tokenize(job(paths=(f"{pattern}?image=photo",), shard_images=None), tmp_path / "none", workers=0)


def test_parquet_shards_that_name_their_classes(job: Job, tmp_path: Path, picture: Picture) -> None:
    """Classes have the numbers of the data set, whatever their words' order; a file of labels has its own. A column of
    text is kept under a name that a file can have."""
    pyarrow = pytest.importorskip("pyarrow", reason="needs the extra: pip install 'ssdd[parquet]'")
    names = ["tench", "goldfish", "great white shark"]
    feature = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    meta = {b"huggingface": json.dumps({"info": {"features": feature}}).encode()}
    for shard in range(2):
        images = [png(picture(40, 40, 3 * shard + i)) for i in range(3)]
        columns = {"image": images, "label": [0, 1, 2 - shard], "my text": ["a", "b", "c"], "my_text": ["d", "e", "f"]}
        table = pyarrow.table({**columns, "a text of more than 24 letters": ["x", "y", "z"]})
        pytest.importorskip("pyarrow.parquet").write_table(
            table.replace_schema_metadata(meta), tmp_path / f"{shard}.parquet"
        )
    settings = {"paths": (str(tmp_path / "{0..1}.parquet"),), "shard_images": None}
    tokenize(job(**settings), tmp_path / "out", workers=0)
    members = ("my_text", "my_text0001", "a_text_of_more_than_24_l")
    data = LatentDataset(tmp_path / "out", members=members)
    assert data.classes == names
    assert [int(item["label"]) for item in data.stream()] == [0, 1, 2, 0, 1, 1]
    assert [data[2][name] for name in members] == ["c", "f", "z"]
    (tmp_path / "labels.csv").write_text("file_name,label\n0.parquet[0],b\n1.parquet[1],a\n")
    tokenize(job(**settings, label_file=str(tmp_path / "labels.csv")), tmp_path / "own", workers=0)
    assert LatentDataset(tmp_path / "own").classes == ["a", "b"]


def test_several_images_of_one_sample(job: Job, tmp_path: Path, picture: Picture) -> None:
    """Names up to their first dot are a sample; what has the whole name of an image is that image's alone."""
    members: dict[str, bytes] = {"scan.txt": b"of all"}
    for i in range(3):
        members |= {f"scan.{i:04}.{kind}": b"%d" % (i % 2) for kind in ("cls", "json")}
        members[f"scan.{i:04}.png"] = png(picture(40, 40, i))
    write_tar(tmp_path / "a.tar", members)
    tokenize(job(paths=(str(tmp_path / "a.tar"),)), tmp_path / "out", workers=0)
    items = list(LatentDataset(tmp_path / "out", members=("txt", "json")).stream())
    assert [(int(item["label"]), item["txt"], item["json"]) for item in items] == [
        (0, "of all", "0"),
        (1, "of all", "1"),
        (0, "of all", "0"),
    ]


def test_images_by_their_names(job: Job, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pattern of image files is what it fits; the folder of each is its class."""
    monkeypatch.chdir(photographs)
    tokenize(job(paths=("[bc]*/?.png", "ant/1.png")), tmp_path / "out", workers=0)
    data = LatentDataset(tmp_path / "out")
    assert [data.classes[item["label"]] for item in data.stream()] == ["cow", "cow", "ant"]


def test_a_link_to_a_disk_that_is_gone(job: Job, photographs: Path, tmp_path: Path) -> None:
    """A link that leads nowhere is left out when it is listed; one that leads nowhere later is no broken image."""
    disk, links = Path(shutil.copytree(photographs / "cow", tmp_path / "disk")), tmp_path / "links"
    links.mkdir()
    for name in ("x.png", "é.png", "none.png"):
        (links / name).symlink_to(disk / name)
    settings = job(paths=(str(links),), shard_images=1)
    done = tokenize(settings, tmp_path / "out", part=Part(0, 2), workers=0)
    assert done.shards == 2
    disk.rename(tmp_path / "unmounted")
    with pytest.raises(OSError, match=r"é\.png: expected the image that was listed, found none"):
        tokenize(settings, tmp_path / "out", part=Part(1, 2), workers=0)
    (tmp_path / "unmounted").rename(disk)
    done = tokenize(settings, tmp_path / "out", part=Part(1, 2), workers=0)
    assert done.manifest is not None
    assert (done.manifest.images, done.manifest.skipped_images) == (2, 0)


def test_no_name_fits(job: Job, photographs: Path, tmp_path: Path) -> None:
    shutil.copytree(photographs, tmp_path / "data")
    (tmp_path / "data" / "notes.txt").touch()
    with pytest.raises(ValueError, match=r"names like 'dog/\*' \(--only\), found none; the first name is 'ant/0\.png'"):
        tokenize(job(paths=(str(tmp_path / "data"),), only="dog/*"), tmp_path / "out", workers=0)


@pytest.mark.parametrize("kind", ["csv", "json", "edm", "parquet"])
def test_a_file_of_labels(job: Job, photographs: Path, tmp_path: Path, kind: str) -> None:
    rows = [{"file_name": f"ant/{i}.png", "label": 1 - i, "caption": f"ant {i}"} for i in range(2)]
    path = tmp_path / ("labels.json" if kind == "edm" else f"labels.{kind}")
    if kind == "csv":
        path.write_text("file_name,label,caption\n" + "".join(f"ant/{i}.png,{1 - i},ant {i}\n" for i in range(2)))
    elif kind == "json":
        path.write_text(json.dumps(rows))
    elif kind == "edm":
        path.write_text(json.dumps({"labels": [[row["file_name"], row["label"]] for row in rows]}))
    else:
        pyarrow = pytest.importorskip("pyarrow", reason="needs the extra: pip install 'ssdd[parquet]'")
        pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(rows), path)
    tokenize(job(label_file=str(path), only="ant/*"), tmp_path / "out", workers=0)
    data = LatentDataset(tmp_path / "out", members=("txt",))
    assert [int(item["label"]) for item in data.stream()] == [1, 0]
    assert [item["txt"] for item in data.stream()] == [None if kind == "edm" else f"ant {i}" for i in range(2)]


def test_a_file_of_labels_for_some_images(job: Job, photographs: Path, shards: Path, tmp_path: Path) -> None:
    """One class is a class, and how many latents have none is in the manifest."""
    path = tmp_path / "labels.csv"
    path.write_text("file_name,label\nant/0.png,only\n0001.png,only\n")
    for paths, images in ((str(photographs), 7), (str(shards), None)):
        out = tmp_path / f"out-{images}"
        done = tokenize(job(paths=(paths,), label_file=str(path), shard_images=images), out, workers=0)
        assert done.manifest is not None
        assert (done.manifest.classes, done.manifest.unlabelled) == (["only"], 5)
        assert sorted(int(item["label"]) for item in LatentDataset(out).stream()) == [-1] * 5 + [0]
    path.write_text("file_name,label\nnobody.png,1\n")
    with pytest.raises(ValueError, match=r"expected names like 'ant/0\.png' in the file of labels, found none"):
        tokenize(job(label_file=str(path)), tmp_path / "none", workers=0)


def test_a_file_that_holds_no_labels(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ImageError, match=r"expected columns file_name, and label or caption, found \['a', 'b'\]"):
        LabelFile(str(path))
    with pytest.raises(ImageError, match="expected CSV, JSON or Parquet with labels"):
        LabelFile(str(tmp_path / "nowhere.csv"))
    path.write_text("file_name,caption\na,one\na,one\n")
    assert LabelFile(str(path))["a"].caption == "one"
    path.write_text("file_name,caption\na,one\na,two\n")
    with pytest.raises(ImageError, match="expected one class and one caption of a, found several"):
        LabelFile(str(path))
    path = tmp_path / "labels.json"
    for content in ('{"a.png": {"label": 3}}', '[{"file_name": "a.png", "caption": ["one", "two"]}]'):
        path.write_text(content)
        with pytest.raises(ImageError, match=r"a class or caption as a number or text, found .* for a\.png"):
            LabelFile(str(path))
    path.write_text('[{"file_name": "a.png", "caption": "half a pair \\ud83d"}]')
    assert LabelFile(str(path))["a.png"].caption == "half a pair \\ud83d"


@pytest.mark.parametrize(
    ("cell", "expected"),
    [(3, 3), (3.0, 3), ("3.0", 3), (" 07 ", 7), ("10.00", 10), ("3.5", "3.5"), ("ant", "ant"), ("v1.0", "v1.0")]
    + [(cell, None) for cell in (None, "", " ", -1, -1.0, "-1.0", "nan", "NaN", float("nan"))],
)
def test_what_a_cell_states(cell: object, expected: int | str | None) -> None:
    """As pandas writes a column that lacks some."""
    assert class_of(cell) == expected


def test_buckets(job: Job, tmp_path: Path, picture: Picture) -> None:
    """Each image has the shape nearest to its own, and all of a shard have one."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    sides = [(40, 40), (30, 90), (90, 30), (42, 38), (60, 31), (33, 100)]
    for i, (height, width) in enumerate(sides):
        Image.fromarray(picture(height, width, i)).save(folder / f"{i}.png")
    Image.open(folder / "1.png").save(folder / "broken.png")
    (folder / "broken.png").write_bytes(b"no image")
    text = PngInfo()
    text.add_text("k", "x" * (3 << 20), zip=True)  # too much of it for Pillow
    Image.fromarray(picture(30, 90, 9)).save(folder / "6.png", pnginfo=text)
    settings = job(paths=(str(folder),), size=32, bucket_step=8, shard_images=2)
    done = tokenize(settings, tmp_path / "out", workers=0)
    assert done.manifest is not None
    assert done.manifest.skipped_images == 1
    data = LatentDataset(tmp_path / "out")
    shapes = {item["key"].rsplit("-", 1)[1]: tuple(8 * s for s in item["mean"].shape[1:]) for item in data.stream()}
    long = dict.fromkeys("156", (16, 48))
    assert shapes == {"0": (32, 32), "3": (32, 32), "2": (48, 16), "4": (40, 24), **long}
    for name, (height, width) in shapes.items():
        assert height * width <= 32 * 32
        assert height % 8 == width % 8 == 0, name
    assert verify(tmp_path / "out") == []


def test_batches_of_buckets(job: Job, tmp_path: Path, picture: Picture) -> None:
    """Each has one shape; an epoch has every latent once, in an order of its own, shared by the ranks."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    for i in range(17):
        height, width = [(40, 40), (30, 90), (90, 30)][i % 3]
        Image.fromarray(picture(height, width, i)).save(folder / f"{i:02}.png")
    (folder / "00.png").write_bytes(b"no image")
    tokenize(job(paths=(str(folder),), size=32, bucket_step=8, shard_images=1), tmp_path / "out", workers=0)
    data = LatentDataset(tmp_path / "out")
    sampler = LatentBatchSampler(data, 4, seed=1)
    batches = [batch["mean"].shape for batch in DataLoader(data, batch_sampler=sampler)]
    assert len(batches) == len(sampler) == 6
    assert sorted(batches) == sorted(
        [(4, 4, 4, 4), (1, 4, 4, 4), (4, 4, 2, 6), (2, 4, 2, 6), (4, 4, 6, 2), (1, 4, 6, 2)]
    )
    first = list(sampler)
    assert sorted(chain.from_iterable(first)) == list(range(16))
    assert first == list(LatentBatchSampler(data, 4, seed=1)) != list(LatentBatchSampler(data, 4, seed=2))
    parts = [list(LatentBatchSampler(data, 4, seed=1, rank=rank, processes=4)) for rank in range(4)]
    assert [part[0] for part in parts] == first[:4]
    assert [len(part) for part in parts] == [1] * 4, "a process has more batches than another"
    sampler.set_epoch(1)
    assert list(sampler) != first
    assert {len(batch) for batch in LatentBatchSampler(data, 4, drop_last=True)} == {4}
    assert list(chain.from_iterable(LatentBatchSampler(data, 5, shuffle=False))) == list(range(16))
    with pytest.raises(ValueError, match="a rank below 2"):
        LatentBatchSampler(data, 4, rank=2, processes=2)


def test_a_data_set_that_is_streamed(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, picture: Picture
) -> None:
    """Each of its shards makes one, as it arrives; classes have the numbers of the data set."""
    datasets = pytest.importorskip("datasets", reason="needs the extra: pip install 'ssdd[data]'")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    features = {"photo": datasets.Image(), "label": datasets.ClassLabel(names=["zebra", "ape"])}
    features |= {"caption": datasets.Value("string"), "other": datasets.Value("float32")}
    for shard in range(3):
        cells = [{"bytes": png(picture(40, 40 + i, 2 * shard + i)), "path": None} for i in range(2)]
        columns = {"photo": cells, "label": [0, 1], "caption": [f"caption {shard}", None], "other": [0.0, 1.0]}
        if shard == 1:
            columns["photo"][1] = {"bytes": b"no image", "path": None}
        made = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
        made.to_parquet(tmp_path / f"set/train-{shard:05}-of-00003.parquet")
    path = f"hf:{tmp_path / 'set'}:train"
    settings = job(paths=(f"{path}?streaming",), shard_images=None, batch_size=1)
    done = tokenize(settings, tmp_path / "out", part=Part(1, 2), workers=1)
    assert (done.made, done.shards) == (1, 3)
    done = tokenize(settings, tmp_path / "out", workers=0)
    assert done.manifest is not None
    assert (done.made, done.kept, done.manifest.skipped_images) == (2, 1, 1)
    assert not list((tmp_path / "cache").rglob("*.arrow")), "the data set was downloaded as a whole"
    tokenize(job(paths=(path,), batch_size=1), tmp_path / "listed", workers=0)
    data, listed = LatentDataset(tmp_path / "out", members=("caption",)), LatentDataset(tmp_path / "listed")
    assert data.classes == listed.classes == ["zebra", "ape"]
    for a, b in zip(data.stream(), listed.stream(), strict=True):
        assert a["mean"].equal(b["mean"])
        assert a["label"].equal(b["label"])
    assert [item["caption"] for item in data.stream()] == ["caption 0", None, "caption 1", "caption 2", None]
    assert verify(tmp_path / "out") == []
    with pytest.raises(ValueError, match="streaming#0: expected shards alone"):
        tokenize(job(paths=(f"{path}?streaming",)), tmp_path / "wrong", workers=0)


def test_members_called_as_ours(job: Job, tmp_path: Path, picture: Picture) -> None:
    """None takes the place of another."""
    names = ("json", "source.json", "source.source.json", "safetensors", "source.txt")
    for shard in range(2):
        sample = {f"{shard}.{name}": f'"{name}"'.encode() for name in names}
        write_tar(tmp_path / f"{shard}.tar", {f"{shard}.png": png(picture(40, 40, shard)), **sample})
    tokenize(job(paths=(str(tmp_path / "{0..1}.tar"),), shard_images=None), tmp_path / "out", workers=0)
    data = LatentDataset(tmp_path / "out", members=names)
    for item in (*data.stream(), data[1], *data.as_webdataset()):
        assert [item[name] for name in names] == [f'"{name}"' for name in names]
    assert verify(tmp_path / "out") == []


def test_lightningdit(job: Job, whole: Path, tmp_path: Path) -> None:
    """The names and shapes that LightningDiT's data set reads, and the latents of the tar shards."""
    safetensors = pytest.importorskip("safetensors.torch")
    tokenize(job(flips=True, container="lightningdit"), tmp_path / "out", workers=0)
    tensors = safetensors.load_file(tmp_path / "out" / "shard-000000.safetensors")
    data, tar = LatentDataset(tmp_path / "out"), LatentDataset(whole)
    assert tensors["latents"].shape == tensors["latents_flip"].shape == (3, 4, 4, 4)
    assert tensors["latents"][1].float().equal(tar[2]["mean"])
    assert tensors["latents_flip"][1].float().equal(tar[3]["mean"])
    assert tensors["labels"].tolist() == [0, 0, 1]
    for a, b in zip(data.stream(), tar.stream(), strict=True):
        assert a["mean"].equal(b["mean"])
        assert (a["key"], int(a["label"])) == (b["key"], int(b["label"]))
    assert verify(tmp_path / "out") == []
    tokenize(job(flips=True, container="lightningdit", shard_images=1), tmp_path / "single", workers=0)
    empty = safetensors.load_file(tmp_path / "single" / "shard-000003.safetensors")  # of the broken image
    assert empty["latents"].shape == (0, 4, 4, 4)
    assert verify(tmp_path / "single") == []
    with pytest.raises(ValueError, match="expected crops of one shape and --flips"):
        job(container="lightningdit")


def test_a_plain_data_loader(whole: Path, job: Job, shards: Path, tmp_path: Path) -> None:
    batch = next(iter(DataLoader(LatentDataset(whole), batch_size=4, shuffle=False)))
    assert batch["mean"].shape == (4, 4, 4, 4)
    assert batch["label"].dtype == torch.int64
    assert len(batch["key"]) == 4
    tokenize(job(paths=(str(shards),), shard_images=None), tmp_path / "out", workers=0)
    data = LatentDataset(tmp_path / "out", members=("txt", "missing"))
    batch = next(iter(DataLoader(data, batch_size=6, collate_fn=collate_fn)))
    assert batch["txt"] == [f"caption {i}" for i in range(6)]
    assert batch["missing"] == [None] * 6
    assert batch["logvar"].shape == (6, 4, 4, 4)


def test_webdataset_gives_the_same_items(job: Job, shards: Path, tmp_path: Path) -> None:
    pytest.importorskip("webdataset", reason="needs the extra: pip install 'ssdd[dev]'")
    tokenize(job(paths=(str(shards),), shard_images=None), tmp_path / "out", workers=0)
    data = LatentDataset(tmp_path / "out", members=("txt", "json"))
    for a, b in zip(data.as_webdataset(), data.stream(), strict=True):
        assert a["mean"].equal(b["mean"])
        assert {name: a[name] for name in ("label", "key", "txt", "json")} == {
            name: b[name] for name in ("label", "key", "txt", "json")
        }


def test_latents_of_another_encoder_are_refused(whole: Path) -> None:
    sha256 = LatentDataset(whole).model.encoder_sha256
    assert len(LatentDataset(whole, expect=sha256)) == len(LatentDataset(whole, expect=sha256[:12]))
    with pytest.raises(ValueError, match="expected latents of the encoder 0000, found those of"):
        LatentDataset(whole, expect="0000")


def test_mds(job: Job, whole: Path, tmp_path: Path, tree: Callable[[Path], dict[str, bytes]]) -> None:
    """mosaicml-streaming reads the latents of the tar shards, in the same bytes however they were made."""
    streaming = pytest.importorskip("streaming", reason="needs the extra: pip install 'ssdd[mds]'")
    settings = job(flips=True, container="mds")
    tokenize(settings, tmp_path / "out", workers=0)
    samples = list(streaming.StreamingDataset(local=str(tmp_path / "out"), batch_size=1, shuffle=False))
    for sample, item in zip(samples, LatentDataset(whole).stream(), strict=True):
        assert torch.from_numpy(sample["mean"].copy()).float().equal(item["mean"])
        assert (sample["key"], sample["label"]) == (item["key"], int(item["label"]))
    assert samples[0]["class"] == "ant"
    assert verify(tmp_path / "out") == []
    for part in (1, 0):
        tokenize(settings, tmp_path / "parts", part=Part(part, 2), workers=0)
    found, expected = tree(tmp_path / "parts"), tree(tmp_path / "out")
    assert {k: v for k, v in found.items() if k[0] != "."} == {k: v for k, v in expected.items() if k[0] != "."}


def test_mds_is_an_extra(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "streaming", None)
    with pytest.raises(ImportError, match=r"pip install 'ssdd\[mds\]'"):
        tokenize(job(container="mds"), tmp_path / "out", workers=0)


def test_integers_and_words_as_classes(job: Job, shards: Path, tmp_path: Path, picture: Picture) -> None:
    """Each stays the class that it names."""
    write_tar(shards / "000001.tar", {"dog/a.png": png(picture(40, 40, 1)), "b.png": png(picture(40, 40, 2))})
    tokenize(job(paths=(str(shards),), shard_images=None), tmp_path / "out", workers=0)
    data = LatentDataset(tmp_path / "out")
    names = [None if item["label"] < 0 else data.classes[item["label"]] for item in data.stream()]
    assert names == ["2", "10", "dog", None, "10", "1"]
    assert verify(tmp_path / "out") == []


def test_names_that_are_no_text(job: Job, tmp_path: Path, picture: Picture) -> None:
    """As a name of a broken image, of a class, and of a member of an input shard."""
    folder = tmp_path / "photographs"
    for name in (b"k\xff/a\xfe.png", b"l/broken\xff.png", b"k\xff/a\xfe.\xfd"):
        path = Path(os.fsdecode(os.fsencode(folder) + b"/" + name))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"no image" if b"broken" in name else png(picture(40, 40, 1)))
    tokenize(job(paths=(str(folder),)), tmp_path / "listed", workers=0)
    assert LatentDataset(tmp_path / "listed").classes == ["k\\udcff", "l"]
    for shard in range(2):
        with tarfile.open(tmp_path / f"{shard}.tar", "w") as tar:
            tar.add(folder, ".")
    tokenize(job(paths=(str(tmp_path / "{0..1}.tar"),), shard_images=None), tmp_path / "each", workers=0)
    for name in ("listed", "each"):
        assert verify(tmp_path / name) == []
        assert tokenize_again(job, tmp_path, folder, name) == 0, "a shard is made again and again"


def tokenize_again(job: Job, tmp_path: Path, folder: Path, name: str) -> int:
    paths = (str(folder),) if name == "listed" else (str(tmp_path / "{0..1}.tar"),)
    return tokenize(job(paths=paths, shard_images=4 if name == "listed" else None), tmp_path / name, workers=0).made


def test_other_labels_or_data_are_other_settings(job: Job, shards: Path, tmp_path: Path) -> None:
    out, paths = tmp_path / "out", (str(shards),)
    tokenize(job(paths=paths, shard_images=None), out, workers=0)
    (out / "shard-000001.json").unlink()
    with pytest.raises(ValueError, match=r"data\.labels is auto there, none here"):
        tokenize(job(paths=paths, shard_images=None, labels="none"), out, workers=0)
    (tmp_path / "labels.csv").write_text("file_name,label\n0000.png,1\n")
    with pytest.raises(ValueError, match=r"data\.labels is auto there, "):
        tokenize(job(paths=paths, shard_images=None, label_file=str(tmp_path / "labels.csv")), out, workers=0)
    (shards / "000000.tar").write_bytes((shards / "000000.tar").read_bytes() + bytes(10240))
    with pytest.raises(ValueError, match=r"000000\.tar: expected \d+ bytes, of which shard 0 was made, found"):
        tokenize(job(paths=paths, shard_images=None), out, workers=0)


def test_a_refused_command_leaves_the_list_alone(job: Job, photographs: Path, tmp_path: Path, tree: Tree) -> None:
    out = tmp_path / "out"
    tokenize(job(), out, part=Part(0, 2), workers=0)
    before = tree(out)
    with pytest.raises(ValueError, match="begun with other settings"):
        tokenize(job(only="cow/*"), out, workers=0)
    assert tree(out) == before
    with only_one(out, part="0-of-2"), (out / ".lock-of-2").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        with pytest.raises(ValueError, match="is being tokenized into in other parts than 1/3: wait for them"):
            tokenize(job(), out, part=Part(1, 3), workers=0)
    tokenize(job(), out, part=Part(1, 2), workers=0)
    assert verify(out) == []


def test_a_tar_file_that_changed_between_parts(job: Job, shards: Path, tmp_path: Path, picture: Picture) -> None:
    """Its images are known by their places."""
    path, out = shards / "000000.tar", tmp_path / "out"
    settings = job(paths=(str(path),), shard_images=1)
    tokenize(settings, out, part=Part(0, 2), workers=0)
    write_tar(path, {"0001.png": png(picture(40, 41, 1)), "0000.png": png(picture(40, 40, 0))})
    with pytest.raises(ValueError, match=r"000000\.tar: expected the tar file as it was listed, found a changed one"):
        tokenize(settings, out, part=Part(1, 2), workers=0)


def test_queries_of_addresses_are_kept() -> None:
    assert split_columns("a.parquet?image=x&label=y") == ("a.parquet", {"image": "x", "label": "y"})
    signed = "https://host/a.tar?token=abc&image=x"
    assert split_columns(signed) == (signed, {})
    assert is_shard(signed)
    for path in ("https://host/x.parquet?token=abc", "X.PARQUET", "x.parquet?image=a"):
        assert is_parquet(path), path
    assert not is_parquet("x.tar?name=x.parquet")


def test_another_signature_is_the_same_data(job: Job) -> None:
    """Signed addresses end before a long command does; columns are other data."""
    a, b = "https://host/a.tar?token=1", "https://host/a.tar?token=2"
    x, y = "a.parquet?image=x", "a.parquet?image=y"
    digests = [InputShards(job(), [path]).describe()[0].names_sha256 for path in (a, b, x, y)]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3
