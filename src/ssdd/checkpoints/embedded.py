"""The weights inside the package."""

from pathlib import Path

_FOLDER = Path(__file__).parent / "embedded"


def embedded_names() -> list[str]:
    """Names that ``AutoencoderSSDD.from_pretrained`` finds inside the package."""
    return sorted(p.parent.name for p in _FOLDER.glob("*/config.json"))


def embedded_folder(name: str) -> Path | None:
    """Folder of the embedded model called ``name``, or None."""
    return _FOLDER / name if name in embedded_names() else None
