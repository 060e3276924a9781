"""Data sets of Hugging Face: the same pixels as from files, from everywhere that `datasets` keeps them."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from ssdd.data.hugging_face import HuggingFaceSource, is_saved_dataset, streaming_path
from ssdd.data.images import ImageError
from ssdd.data.loader import CropStream
from ssdd.data.sources import open_source
from ssdd.data.streaming import StreamedBatches, StreamedCrops
from tests.images import png

Picture = Callable[..., np.ndarray]
COUNT = 5


@pytest.fixture(scope="module")
def datasets() -> Any:
    return pytest.importorskip("datasets", reason="needs the extra: pip install 'ssdd[data]'")


@pytest.fixture(autouse=True)
def cache(datasets: Any, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test fills the user's cache."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def make(datasets: Any, picture: Picture) -> Callable[..., Any]:
    """``make(first, count)``: a data set of pictures ``first``, ``first + 1``, ... with a label and a thumbnail."""

    def make(first: int = 0, count: int = COUNT) -> Any:
        contents = [{"bytes": png(picture(16 + i, 24, i)), "path": None} for i in range(first, first + count)]
        features = {"label": datasets.Value("int64"), "photo": datasets.Image(), "small": datasets.Image()}
        columns = {"label": list(range(count)), "photo": contents, "small": [None] * count}
        return datasets.Dataset.from_dict(columns, features=datasets.Features(features))

    return make


def check(source: Any, picture: Picture, first: int = 0, count: int = COUNT) -> None:
    assert len(source) == count, "another number of images"
    for i in (count - 1, 0):
        assert np.array_equal(source.read(i), picture(16 + first + i, 24, first + i)), f"row {i} is another image"


def test_saved_data_set(tmp_path: Path, make: Callable[..., Any], picture: Picture) -> None:
    """Of ``Dataset.save_to_disk``: found without ``hf:``; the first column of images counts, by whatever name."""
    make().save_to_disk(tmp_path / "saved")
    assert is_saved_dataset(tmp_path / "saved"), "the folder is taken for one of images"
    source = open_source([tmp_path / "saved"])
    check(source, picture)
    assert source.name(3) == f"hf:{tmp_path}/saved:train[3]", "errors name another place"
    assert source.content(0) == png(picture(16, 24, 0)), "the bytes are not those of the file"


def test_splits_of_a_saved_data_set(tmp_path: Path, datasets: Any, make: Callable[..., Any], picture: Picture) -> None:
    """Of ``DatasetDict.save_to_disk``: ``train`` if nothing else is said."""
    datasets.DatasetDict({"test": make(5, 3), "train": make()}).save_to_disk(tmp_path / "a:b")
    check(open_source([tmp_path / "a:b"]), picture)
    check(HuggingFaceSource(f"hf:{tmp_path}/a:b:test"), picture, 5, 3)
    check(open_source([tmp_path / "a:b" / "test"]), picture, 5, 3)
    with pytest.raises(ImageError, match=r"expected one of the splits that are there, test, train; found val$"):
        HuggingFaceSource(f"hf:{tmp_path}/a:b:val")


def test_parquet_files(
    tmp_path: Path, make: Callable[..., Any], picture: Picture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As downloaded from the hub by hand, other files beside them. A Python script among them is not run."""
    (tmp_path / "set" / "data").mkdir(parents=True)
    for i in range(2):
        make(3 * i, 3).to_parquet(tmp_path / "set" / "data" / f"train-{i:05d}-of-00002.parquet")
    make(9, 2).to_parquet(tmp_path / "set" / "data" / "test-00000-of-00001.parquet")
    make(11, 1).to_parquet(tmp_path / "set" / "val.parquet")
    (tmp_path / "set" / "README.md").write_text("photographs")
    (tmp_path / "set" / "set.py").write_text("raise SystemExit('this was run')")
    monkeypatch.chdir(tmp_path)
    check(HuggingFaceSource("hf:./set"), picture, 0, 6)
    check(HuggingFaceSource("hf:./set:test"), picture, 9, 2)
    check(HuggingFaceSource(f"hf:{tmp_path}/set:validation"), picture, 11, 1)
    check(HuggingFaceSource("hf:./set:train[1:3]"), picture, 1, 2)
    with pytest.raises(ImageError, match=r"expected one of the splits that are there, .*; found dogs$"):
        HuggingFaceSource("hf:./set:dogs")


def test_hub(datasets: Any, make: Callable[..., Any], picture: Picture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked for by name and split alone: above all, no code of a data set is trusted."""
    asked: list[tuple[object, ...]] = []

    def load_dataset(*arguments: object, **options: object) -> Any:
        asked.append((*arguments, options))
        return make()

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    check(open_source(["hf:owner/some.name"]), picture)
    check(open_source(["hf:owner/name:validation[:10%]"]), picture)
    expected = [("owner/some.name", {"split": "train"}), ("owner/name", {"split": "validation[:10%]"})]
    assert asked == expected, "the hub is asked for something else"


def test_hub_that_fails(datasets: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*arguments: object, **options: object) -> Any:
        raise ConnectionError("Couldn't reach\nthe hub")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(ImageError) as caught:
        HuggingFaceSource("hf:owner/name")
    message = str(caught.value)
    assert message.startswith("hf:owner/name:train: expected a data set"), f"it is not named: {message}"
    assert message.endswith("found ConnectionError: Couldn't reach the hub"), f"not one line with the reason: {message}"


@pytest.mark.parametrize("path", ["hf:", "hf:name", "hf:a/b/c", "hf:./nowhere", "hf:owner/na me"])
def test_paths_without_meaning(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ImageError, match=r"^hf:.*expected (hf:OWNER/NAME|a folder)") as caught:
        HuggingFaceSource(path)
    assert "\n" not in str(caught.value), "not one line"


def test_folders_without_images(tmp_path: Path, datasets: Any) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImageError, match="expected parquet files, or what save_to_disk writes, found neither"):
        HuggingFaceSource(f"hf:{tmp_path}/empty")
    datasets.Dataset.from_dict({"text": ["a"], "n": [1]}).save_to_disk(tmp_path / "texts")
    with pytest.raises(ImageError, match=r"expected a column of images, found text \(Value\), n \(Value\)"):
        open_source([tmp_path / "texts"])
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "train.parquet").write_bytes(b"no parquet")
    with pytest.raises(ImageError, match="expected a data set that the package datasets can load, found") as caught:
        HuggingFaceSource(f"hf:{tmp_path}/broken")
    assert "\n" not in str(caught.value), "not one line"


def test_rows_that_cannot_be_read(
    tmp_path: Path, datasets: Any, picture: Picture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty cell, a damaged image, a file that is gone: each is an ImageError that names its row."""
    Image.fromarray(picture(8, 8)).save(tmp_path / "good.png")
    paths = [str(tmp_path / "good.png"), str(tmp_path / "gone.png")]
    cells = [None, {"bytes": b"damaged", "path": None}, *({"bytes": None, "path": p} for p in paths)]
    dataset = datasets.Dataset.from_dict({"image": cells}, features=datasets.Features({"image": datasets.Image()}))
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: dataset)
    source = HuggingFaceSource("hf:o/n")
    for i, line in enumerate((r"^hf:o/n:train\[0\]: .*empty cell", r"^hf:o/n:train\[1\]: expected an image")):
        with pytest.raises(ImageError, match=line):
            source.read(i)
    assert np.array_equal(source.read(2), picture(8, 8)), "an image beside the data set is not read"
    with pytest.raises(ImageError, match=r"gone\.png: expected an image file"):
        source.read(3)


def test_workers_read_the_same(tmp_path: Path, make: Callable[..., Any], picture: Picture) -> None:
    """Forked and, by way of pickle, spawned."""
    make().save_to_disk(tmp_path / "saved")
    source = open_source([tmp_path / "saved"])
    source.read(0)
    check(pickle.loads(pickle.dumps(source)), picture)
    stream = CropStream(source, 16, 1.0, False, seed=0)
    expected = [stream[i].numpy().tobytes() for i in range(COUNT)]
    loader = DataLoader(stream, sampler=range(COUNT), batch_size=None, num_workers=2)
    assert [crop.numpy().tobytes() for crop in loader] == expected, "a worker read other pixels"


def test_configuration(datasets: Any, make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[object, ...]] = []

    def load_dataset(*arguments: object, **options: object) -> Any:
        asked.append((*arguments, options))
        return make()

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    source = HuggingFaceSource("hf:owner/name:val[:9]?config=large%20one")
    assert source.name(1) == "hf:owner/name:val[:9]?config=large one[1]", "errors name another data set"
    assert asked == [("owner/name", {"split": "val[:9]", "name": "large one"})], "the hub is asked for something else"
    assert streaming_path("hf:owner/name?config=a&streaming"), "a stream is read as a whole"
    assert not streaming_path("hf:owner/streaming?config=streaming"), "a name counts as the option"
    with pytest.raises(ImageError, match=r"hf:OWNER/NAME:SPLIT\?config=NAME$"):
        HuggingFaceSource("hf:owner/name:config:train")


def test_columns_by_name(tmp_path: Path, datasets: Any, picture: Picture) -> None:
    """Two columns of images and two of classes, as in CIFAR-100, and what is no image or no class."""
    photos, small = ([{"bytes": png(picture(16, 24, i)), "path": None} for i in seeds] for seeds in ((0, 1), (7, 8)))
    features = {
        "photo": datasets.Image(),
        "small": datasets.Image(),
        "fine_label": datasets.ClassLabel(names=["b", "a"]),
        "coarse": datasets.Value("int64"),
        "score": datasets.Value("float32"),
    }
    columns = {"photo": photos, "small": small, "fine_label": [0, 1], "coarse": [2, 10], "score": [0.5, 1.5]}
    datasets.Dataset.from_dict(columns, features=datasets.Features(features)).save_to_disk(tmp_path / "set")
    path = f"hf:{tmp_path}/set"
    source = HuggingFaceSource(path)
    assert source.classes() == (["b", "a"], ["b", "a"]), "the only class labels are not found"
    other = HuggingFaceSource(f"{path}?image=small&label=coarse")
    assert np.array_equal(other.read(1), picture(16, 24, 8)), "another column of images"
    assert other.classes()[0] == ["2", "10"], "another column of classes"
    assert other.classes()[1][:3] == ["0", "1", "2"], "classes are not in the order of their numbers"
    for option, found in (
        ("image=photos", r"found photos$"),
        ("image=score", r"expected a column of images, found score"),
        ("label=labels", r"photo \(Image\), small \(Image\), fine_label \(ClassLabel\).*; found labels$"),
        ("label=score", r"expected a column of classes, found score"),
        ("imgae=photo", r"expected streaming, config=NAME, image=NAME, label=NAME behind the \?, found imgae=photo$"),
        ("image=", r"found image=$"),
        ("config=large", r"for a data set of the hub alone"),
    ):
        with pytest.raises(ImageError, match=found):
            HuggingFaceSource(f"{path}?{option}")


def test_encoded_images_without_the_feature(tmp_path: Path, datasets: Any, picture: Picture) -> None:
    """As pandas, Spark and Dask write them: a struct, or bytes alone."""
    contents = [png(picture(16 + i, 24, i)) for i in range(COUNT)]
    structs = [{"bytes": content, "path": None} for content in contents]
    tables = {
        "struct": {"id": list(range(COUNT)), "photo": structs},
        "no path": {"photo": [{"bytes": content} for content in contents]},
        "bytes": {"key": ["a"] * COUNT, "jpg": contents, "cls": [10, 9, 2, 1, 0]},
    }
    for name, table in tables.items():
        (tmp_path / name).mkdir()
        datasets.Dataset.from_dict(table).to_parquet(tmp_path / name / "train.parquet")
        check(HuggingFaceSource(f"hf:{tmp_path}/{name}"), picture)
    labelled = HuggingFaceSource(f"hf:{tmp_path}/bytes?label=cls&image=jpg")
    check(labelled, picture)
    assert labelled.classes()[0] == ["10", "9", "2", "1", "0"], "another column of classes"
    stream = StreamedCrops(f"hf:{tmp_path}/bytes?image=jpg&streaming", 16, 1.0, False, 0)
    assert next(StreamedBatches(stream, 2, 0)).shape == (2, 3, 16, 16), "a stream of bytes alone is not read"


def test_words_as_classes_are_in_natural_order(tmp_path: Path, datasets: Any, picture: Picture) -> None:
    table = {"image": [png(picture(8, 8))] * 4, "label": ["10", "2", "1", "b"]}
    datasets.Dataset.from_dict(table).save_to_disk(tmp_path / "set")
    assert HuggingFaceSource(f"hf:{tmp_path}/set").classes()[1] == ["1", "2", "10", "b"]
    table["label"] = [1 << 30, 9, 1 << 21, -1]
    datasets.Dataset.from_dict(table).save_to_disk(tmp_path / "large")
    assert HuggingFaceSource(f"hf:{tmp_path}/large").classes()[1] == ["9", str(1 << 21), str(1 << 30)]
