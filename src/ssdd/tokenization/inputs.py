"""What the user names -> paths: list files, brace patterns, folders of shards, patterns of remote files, streams."""

import glob
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import parse_qsl

from ..data.find import IMAGE_SUFFIXES, check_left_out, expand_lists, matching
from ..data.hugging_face import PREFIX, stream_shards, streaming_path
from ..data.images import ImageError, printable
from ..data.remote import file_system, is_remote, retried
from .format import PLAN


def expand(paths: Sequence[str]) -> list[str]:
    """Return what these stand for, in order.

    Lists and braces as ``data.find.expand_lists`` has them; of a folder that has shards (tar or Parquet files) and no
    images, the shards; of a pattern, the shards that fit it, or all that fits where no shard does; of a remote folder
    or pattern, its files; of a data set that is streamed, its shards, as ``hf:OWNER/NAME:SPLIT?streaming#NUMBER``.

    Raises:
        ImageError: A list or a folder that is missing or empty, or a pattern that nothing fits.
        ImportError: A package that a remote path needs is missing.
    """
    return [found for path in expand_lists(paths) for found in _inside(path)]


def is_shard(path: str) -> bool:
    """Whether a path is that of a tar or Parquet file, or of a shard of a data set that is streamed."""
    return is_stream_shard(path) or _file_name(path).endswith((".tar", ".parquet"))


def is_parquet(path: str) -> bool:
    """Return whether a shard is a Parquet file, whatever the query behind its name."""
    return _file_name(path).endswith(".parquet")


def is_stream_shard(path: str) -> bool:
    """Whether ``expand`` made this of a data set that is streamed."""
    return streaming_path(path.rpartition("#")[0])


def split_columns(path: str) -> tuple[str, dict[str, str]]:
    """Return a path without ``?image=COLUMN&label=COLUMN``, and these; any other query belongs to the address."""
    place, _, query = path.partition("?")
    columns = dict(parse_qsl(query))
    return (place, columns) if columns and set(columns) <= {"image", "label"} else (path, {})


def _inside(path: str) -> list[str]:
    if streaming_path(path):
        return [f"{path}#{number}" for number in range(stream_shards(path))]
    if path.startswith(PREFIX):
        return [path]
    if is_remote(path):
        return _remote_files(path) if "*" in path or not is_shard(path) else [path]
    place = split_columns(path)[0]
    if glob.has_magic(place) and not Path(place).exists():
        found = matching(place)
        shards = [name + path.removeprefix(place) for name in found if is_shard(name)]
        return shards or [each for name in found for each in _inside(name)]
    folder = Path(path)
    if not folder.is_dir():
        return [path]
    visible = [p for p in folder.iterdir() if p.name[0] != "."]
    shards = sorted(str(p) for p in visible if is_shard(p.name) and not p.is_dir())
    others = [p for p in visible if not is_shard(p.name) or p.is_dir()]
    if not shards or any(map(_may_be_data, others)):
        return [path]
    check_left_out([path], len(shards), Counter(p.suffix or "without extension" for p in others))
    return shards


def _file_name(path: str) -> str:
    return path.split("?")[0].lower()


def _may_be_data(path: Path) -> bool:
    if path.is_dir():
        return not (path / PLAN).is_file()  # a set that is made inside the folder
    return path.suffix.lower() in IMAGE_SUFFIXES or path.name in ("dataset_info.json", "state.json")


def _remote_files(address: str) -> list[str]:
    """Return the shards of a remote folder or pattern; without any, its images."""
    system, path = file_system(address)
    names = retried(address, lambda: system.glob(path) if "*" in path else system.find(path))
    inside = len(path.split("*")[0].rpartition("/")[0] if "*" in path else path)
    visible = [name for name in names if "/." not in name[inside:]]
    found = sorted(system.unstrip_protocol(name) for name in visible)
    shards = [name for name in found if is_shard(name)]
    images = [name for name in found if Path(name).suffix.lower() in IMAGE_SUFFIXES]
    if not shards and not images:
        raise ImageError(f"{printable(address)}: expected tar or Parquet files, or images, found none")
    others = Counter(Path(name).suffix or "without extension" for name in set(found) - set(shards or images))
    check_left_out([address], len(shards or images), others)
    return shards or images
