"""The weights inside the package: models of ours, and an encoder of somebody else's."""

from pathlib import Path

TAEF2 = "taef2"
"""Name of the encoder; no folder of this name takes its place."""

TAEF2_SHA256 = "087de3cb4d4c2a85c6ec94561003b6476ee0bdd60500b684453447baf19355f7"
"""Its digest, as ``encoder_digest`` has it."""

_FOLDER = Path(__file__).parent / "embedded"
TAEF2_FOLDER = _FOLDER / TAEF2


def embedded_names() -> list[str]:
    """Names that ``AutoencoderSSDD.from_pretrained`` finds inside the package."""
    return sorted(path.parent.name for path in _FOLDER.glob("*/config.json"))


def embedded_folder(name: str) -> Path | None:
    """Folder of the embedded model called ``name``, or None."""
    return _FOLDER / name if name in embedded_names() else None


def embedded_encoder(sha256: str | None) -> str | None:
    """Name of the embedded encoder with this digest, or None."""
    return TAEF2 if sha256 == TAEF2_SHA256 else None
