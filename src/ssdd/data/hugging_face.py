"""Images of Hugging Face data sets: from the hub, from ``save_to_disk``, from parquet files."""

import functools
import io
import re
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

import numpy as np

from .images import ImageError, ImageReadError, file_content, printable, read_failure, read_image, reason_of
from .names import natural_order
from .packages import parquet, require
from .remote import is_remote, remote_content

PREFIX = "hf:"
_STREAMING, _KEYS = "streaming", ("config", "image", "label")
_LABEL, _MOST_CLASSES = "label", 1 << 20
_ROWS = 64
_PATH = re.compile(r"(?P<place>.+?)(:(?P<split>[\w.-]+(\[[\w:%-]*\])?))?")
_HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+")
_SHARD = re.compile(r"(?P<split>\w+(\.\w+)*)-\d{5}-of-\d{5}")
_SPLIT_WORDS = {"train": "train", "training": "train", "test": "test", "testing": "test", "eval": "test"}
_SPLIT_WORDS |= dict.fromkeys(("validation", "valid", "val", "dev"), "validation")


class HuggingFaceSource:
    """The images of one split, in its order, not decoded by ``datasets``.

    ``hf:OWNER/NAME[:SPLIT]`` is downloaded from the hub, or taken from the cache; ``hf:./folder[:SPLIT]`` (or an
    absolute path) is what ``save_to_disk`` wrote, or a folder of parquet files. The split is ``train`` if not given;
    of the hub's data sets and parquet files a part can be taken: ``train[:1000]``. No code of a data set is ever run.

    ``?config=NAME&image=COLUMN&label=COLUMN`` may follow, all of it or a part: the configuration of a data set of the
    hub, the column of images (by default the first with the feature ``Image``, or else the first of encoded images:
    structs with ``bytes``, or bytes alone), the column of classes (by default ``label``, or else the first with the
    feature ``ClassLabel``).
    """

    def __init__(self, path: str) -> None:
        """Raise ImageError if there is no such data set, split or column; ImportError without ``datasets``."""
        split = load_split(path)
        self._label, self._column, self._class_column = split.label, split.column, split.class_column
        feature = split.dataset.features.get(split.class_column)
        self._names: list[str] = list(getattr(feature, "names", None) or [])
        is_class = _is_class(_package(split.label), feature)
        self._classes = split.dataset.select_columns([split.class_column]).with_format(None) if is_class else None
        self._dataset = split.images.with_format(None)

    def __len__(self) -> int:
        return len(self._dataset)

    def name(self, index: int) -> str:
        return f"{self._label}[{index}]"

    def key(self, index: int) -> str:
        return str(index)

    def classes(self) -> tuple[list[str | None], list[str]]:
        """Return the class of every row by name, None where there is none (-1 too), and all names by number.

        These are those of the data set, or else whole numbers or words in their order, 2 before 10.
        """
        values = [None] * len(self) if self._classes is None else self._classes[:][self._class_column]
        known = [None if isinstance(value, int) and value < 0 else value for value in values]
        if self._names:
            if (largest := max((value or 0 for value in known), default=0)) >= len(self._names):
                raise ImageError(f"{self._label}: expected classes below {len(self._names)}, found {largest}")
            return [None if value is None else self._names[value] for value in known], self._names
        found = set(known) - {None}
        largest = max((value for value in found if isinstance(value, int)), default=_MOST_CLASSES)
        named = range(largest + 1) if largest < _MOST_CLASSES else found
        return [None if value is None else str(value) for value in known], sorted(map(str, named), key=natural_order)

    def content(self, index: int) -> bytes:
        """Return the encoded image. Raises ImageError."""
        name = self.name(index)
        try:
            image = as_cell(self._dataset[index][self._column])
        except (OSError, ValueError) as error:  # pyarrow's errors are of these classes
            raise read_failure(error, f"{name}: expected a readable row, found {reason_of(error)}") from error
        return encoded_image(image, name)

    def read(self, index: int) -> np.ndarray:
        """Return uint8 (H, W, 3). Raises ImageError."""
        return read_image(io.BytesIO(self.content(index)), name=self.name(index))


Cell = dict[str, Any] | None
"""An image as ``datasets`` has it, not decoded: its ``bytes``, or the ``path`` or address of its file."""


def as_cell(value: Any) -> Cell:
    """Return what a row has in the column of images: a struct, or bytes alone."""
    return {"bytes": value} if isinstance(value, bytes) else value


def encoded_image(cell: Cell, name: str) -> bytes:
    """Return the encoded image of a cell. Raises ImageError if there is none."""
    content, path = (cell.get("bytes"), cell.get("path")) if cell is not None else (None, None)
    if content is not None:
        return content
    if path is not None:
        return remote_content(path) if is_remote(path) else file_content(path)
    raise ImageError(f"{name}: expected an image, found an empty cell")


def streaming_path(path: str) -> bool:
    """Tell whether a data path asks for streaming: ``hf:OWNER/NAME:SPLIT?streaming``."""
    return path.startswith(PREFIX) and _STREAMING in path.partition("?")[2].split("&")


class LoadedSplit(NamedTuple):
    """A split: its name in messages, all of it and its column of images alone, not decoded; its column of classes."""

    label: str
    dataset: Any
    column: str
    images: Any
    class_column: str | None


def load_split(path: str) -> LoadedSplit:
    """Load ``hf:PLACE[:SPLIT]`` as a ``datasets.Dataset``, with ``?streaming`` as an ``IterableDataset``.

    Raises:
        ImageError: there is no such data set, split or column; an option that is none.
        ImportError: the package ``datasets`` is not installed.
    """
    place, split, options = _parse(path)
    chosen = "&".join(f"{key}={value}" for key, value in options.items())
    label = printable(f"{PREFIX}{place}:{split}" + (f"?{chosen}" if chosen else ""))
    datasets = _package(label)
    dataset = _load(datasets, place, split, options.get("config"), label, streaming_path(path))
    column = _image_column(datasets, dataset, options.get("image"), label)
    if isinstance(dataset.features[column], datasets.Image):
        dataset = dataset.cast_column(column, datasets.Image(decode=False))
    images = dataset.select_columns([column])
    return LoadedSplit(label, dataset, column, images, _class_column(datasets, dataset, options.get("label"), label))


@functools.lru_cache(maxsize=4)
def _stream(path: str) -> LoadedSplit:
    """Load a data set that is streamed, once in each process."""
    return load_split(path)


def stream_shards(path: str) -> int:
    """Return how many shards a data set that is streamed has."""
    return int(_stream(path).dataset.num_shards)


def write_stream_shard(path: str, number: int, target: Path) -> tuple[str, str | None]:
    """Write one shard of a data set that is streamed as a Parquet file: its images, classes and columns of text.

    Returns:
        The columns of images and of classes.

    Raises:
        ImageReadError: The shard cannot be read.
        ImageError, ImportError: As ``load_split``.
    """
    split = _stream(path)
    datasets, features = _package(split.label), split.dataset.features
    named = split.class_column if _is_class(datasets, features.get(split.class_column)) else None
    texts = [name for name, feature in features.items() if getattr(feature, "dtype", None) == "string"]
    kept = datasets.Features({name: features[name] for name in dict.fromkeys([*texts, *([named] if named else [])])})
    kept[split.column] = datasets.Value("binary")
    pyarrow, module = parquet()
    try:
        shard = split.dataset.select_columns(list(kept))
        shard = shard.shard(num_shards=shard.num_shards, index=number)
        with module.ParquetWriter(target, kept.arrow_schema) as writer:
            for rows in shard.iter(_ROWS):
                images = [_content_or_none(as_cell(cell), split.label) for cell in rows[split.column]]
                columns = dict(rows) | {split.column: images}
                writer.write_table(pyarrow.Table.from_pydict(columns, schema=kept.arrow_schema))
    except Exception as error:  # `datasets` raises whatever its storage, its parsers and the network raise
        raise ImageReadError(
            f"{split.label}: expected shard {number} to be readable, found {type(error).__name__}: {reason_of(error)}"
        ) from error
    return split.column, named


def _content_or_none(cell: Cell, name: str) -> bytes | None:
    """Return an encoded image; None for one that is missing, which is skipped when it is read."""
    try:
        return encoded_image(cell, name)
    except ImageReadError:
        raise
    except ImageError:
        return None


def is_saved_dataset(folder: Path) -> bool:
    """Whether ``save_to_disk`` of ``datasets`` wrote this folder."""
    one = (folder / "dataset_info.json").is_file() and (folder / "state.json").is_file()
    return one or (folder / "dataset_dict.json").is_file()


def _parse(path: str) -> tuple[str, str, dict[str, str]]:
    """Return place, split and options of ``hf:PLACE[:SPLIT][?KEY=VALUE&...]``."""
    rest = path.removeprefix(PREFIX)
    if _is_local(rest) and Path(rest).is_dir():  # a folder with a colon or a question mark in its name
        return rest, "train", {}
    rest, _, query = rest.partition("?")
    options = {}
    for part in query.split("&") if query else []:
        key, _, value = part.partition("=")
        if part != _STREAMING and (key not in _KEYS or not value):
            known = ", ".join(f"{key}=NAME" for key in _KEYS)
            raise ImageError(f"{printable(path)}: expected {_STREAMING}, {known} behind the ?, found {printable(part)}")
        if part != _STREAMING:
            options[key] = unquote(value)
    found = _PATH.fullmatch(rest)
    if found is None:
        raise ImageError(f"{printable(path)}: expected hf:OWNER/NAME[:SPLIT] or hf:./folder[:SPLIT]")
    if _is_local(rest) and Path(rest).is_dir():
        return rest, "train", options
    return found["place"], found["split"] or "train", options


def _is_local(place: str) -> bool:
    return place.startswith((".", "/"))


def _package(label: str) -> Any:
    return require("datasets", f"{label}: expected the package datasets, found none", "ssdd[data]")


def _load(datasets: Any, place: str, split: str, config: str | None, label: str, streaming: bool) -> Any:
    """Return the ``datasets.Dataset`` of a split, or its ``IterableDataset``."""
    folder = Path(place)
    if _is_local(place) and not folder.is_dir():
        raise ImageError(f"{label}: expected a folder, found none at {printable(place)}")
    if not _is_local(place) and not _HUB_ID.fullmatch(place):
        raise ImageError(
            f"{label}: expected hf:OWNER/NAME[:SPLIT] of a data set on the hub, or hf:./folder, found neither; "
            "a configuration is given as hf:OWNER/NAME:SPLIT?config=NAME"
        )
    if _is_local(place) and config is not None:
        raise ImageError(f"{label}: expected config= for a data set of the hub alone, found it for a folder")
    options = {"split": split} | ({"streaming": True} if streaming else {}) | ({"name": config} if config else {})
    try:
        if not _is_local(place):
            return datasets.load_dataset(place, **options)
        if not is_saved_dataset(folder):
            files = _parquet_files(folder, split.split("[")[0], label)
            return datasets.load_dataset("parquet", data_files=files, **options)
        if streaming:
            raise ImageError(
                f"{label}: expected a data set of the hub or a folder of parquet files, "
                "found what save_to_disk wrote, which is never loaded as a whole: leave out ?streaming"
            )
        saved = datasets.load_from_disk(place)
    except ImageError:
        raise
    except Exception as error:  # `datasets` raises whatever its storage, its parsers and the network raise
        raise ImageError(
            f"{label}: expected a data set that the package datasets can load, "
            f"found {type(error).__name__}: {reason_of(error)}"
        ) from error
    splits = saved if isinstance(saved, datasets.DatasetDict) else {str(saved.split or split): saved}
    if split not in splits:
        raise ImageError(f"{label}: expected one of the splits that are there, {', '.join(splits)}; found {split}")
    return splits[split]


def _parquet_files(folder: Path, split: str, label: str) -> dict[str, list[str]]:
    """Return the folder's parquet files of a split, by their names, as ``datasets`` has it: ``test-00000-of-00003``.

    Files whose names tell no split are for training. ``datasets`` is not left to find them: it would take the
    folder's other files (and, its older releases, Python scripts) for data.
    """
    files: dict[str, list[str]] = {}
    for path in sorted(folder.rglob("*.parquet")):
        inner = path.relative_to(folder).with_suffix("")
        if not any(part.startswith(".") for part in inner.parts):
            words = [_SPLIT_WORDS[w] for w in re.split(r"[^a-z0-9]+", str(inner).lower()) if w in _SPLIT_WORDS]
            shard = _SHARD.fullmatch(inner.name)
            name = shard["split"] if shard else (words or ["train"])[-1]
            files.setdefault(name, []).append(str(path))
    if not files:
        raise ImageError(f"{label}: expected parquet files, or what save_to_disk writes, found neither in the folder")
    if split not in files:
        raise ImageError(f"{label}: expected one of the splits that are there, {', '.join(files)}; found {split}")
    return {split: files[split]}


def _class_column(datasets: Any, dataset: Any, name: str | None, label: str) -> str | None:
    """Return the column of that name; without one ``label``, or else the first of class labels; None for none."""
    features = dataset.features or {}  # a stream may not know them
    if name is not None:
        _check_column(features, name, label)
        if not _is_class(datasets, features[name]):
            raise ImageError(f"{label}: expected a column of classes, found {_listed({name: features[name]})}")
        return name
    labels = (column for column, feature in features.items() if isinstance(feature, datasets.ClassLabel))
    return _LABEL if _LABEL in features else next(labels, None)


def _is_class(datasets: Any, feature: Any) -> bool:
    kind = str(getattr(feature, "dtype", ""))
    return isinstance(feature, (datasets.ClassLabel, datasets.Value)) and kind.startswith(("int", "uint", "string"))


def _image_column(datasets: Any, dataset: Any, name: str | None, label: str) -> str:
    features = dataset.features or {}  # a stream may not know them
    if name is not None:
        _check_column(features, name, label)
        features = {name: features[name]}
    for is_image in (
        lambda feature: isinstance(feature, datasets.Image),
        lambda feature: isinstance(feature, dict) and _holds_bytes(feature.get("bytes")),
        _holds_bytes,
    ):
        for column, feature in features.items():
            if is_image(feature):
                return column
    raise ImageError(f"{label}: expected a column of images, found {_listed(features)}")


def _holds_bytes(feature: Any) -> bool:
    return getattr(feature, "dtype", None) in ("binary", "large_binary")


def _check_column(features: Any, name: str, label: str) -> None:
    if name not in features:
        raise ImageError(f"{label}: expected one of the columns that are there, {_listed(features)}; found {name}")


def _listed(features: Any) -> str:
    columns = ", ".join(f"{name} ({type(feature).__name__})" for name, feature in features.items())
    return printable(columns) if columns else "no column"
