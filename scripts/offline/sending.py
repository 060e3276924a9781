"""What goes home from the machine without a network: as much as fits in a call, the most valuable first."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from . import runs
from .bundles import Cut, cut, piece_size, write_bundles
from .store import Store


def now() -> str:
    """UTC, for names and for the order of indexes."""
    return datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%f")


@dataclass(frozen=True)
class Limits:
    """Of what one call brings home: files, bytes of each, bytes of all."""

    files: int
    size: int
    total: int


@dataclass(frozen=True)
class Sent:
    """bundles: written. left: bytes that are still to come."""

    bundles: tuple[str, ...]
    left: int


def send(work: Path, out: Path, limits: Limits) -> Sent:
    """Writes bundles with what has not gone home yet, the most valuable first, within the limits.

    What arrived in packages and is as it was is at home already.
    """
    folders = sorted((p for p in (work / "runs").glob("[!.]*") if p.is_dir()), key=_changed, reverse=True)
    found = [part for run in folders for part in runs.parts(run, work / "logs" / f"{run.name}.log")]
    size = min(limits.size, limits.total)
    cuts = [cut(p.source, p.path, piece_size(size)) for p in sorted(found, key=lambda part: part.rank)]
    sent_path = work / "sent.txt"
    sent = set(sent_path.read_text().split()) if sent_path.is_file() else set()
    to_send = _unsent(cuts, Store(work).received(), sent)
    if not to_send:
        return Sent((), 0)
    most = max(1, min(limits.files, limits.total // size))
    created = now()
    stem = f"runs-{created.split('.')[0]}"
    written = write_bundles(cuts, out, stem, size, created, only=to_send, most=most)
    gone = {piece for pieces in written.values() for piece in pieces}
    with sent_path.open("a") as file:
        file.writelines(f"{piece}\n" for piece in gone)
    sizes = {name: piece.size for c in cuts for name, piece in c.slices.items()}
    return Sent(tuple(written), sum(sizes[name] for name in to_send if name not in gone))


def _unsent(cuts: Sequence[Cut], received: set[str], sent: set[str]) -> list[str]:
    """Pieces that are not at home, in their order. A file that came here with other pieces goes as a whole."""
    names = [name for c in cuts if not received.issuperset(c.entry.pieces) for name in c.entry.pieces]
    return [name for name in dict.fromkeys(names) if name not in sent]


def _changed(run: Path) -> float:
    """When a run last wrote its statistics."""
    path = run / "stats.jsonl"
    return path.stat().st_mtime if path.is_file() else 0.0
