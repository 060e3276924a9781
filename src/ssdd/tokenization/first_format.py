"""Sets of the first format, ``ssdd-latents-1``: they are read, checked and decoded, but not gone on with."""

import hashlib
import json
from typing import Any

FIRST_FORMAT = "ssdd-latents-1"
_RESULTS = ("images", "latents", "skipped", "statistics", "shards")


def first_digest(content: dict[str, Any]) -> str:
    """Return the digest of a plan, or of the plan in a manifest, by which its shards know it.

    Raises KeyError, TypeError for anything else.
    """
    plan = {key: value for key, value in content.items() if key not in _RESULTS}
    plan["model"] = {key: value for key, value in plan["model"].items() if key not in ("name", "encoder")}
    plan["data"] = {key: value for key, value in plan["data"].items() if key != "paths"}
    return hashlib.sha256(json.dumps(plan, sort_keys=True, allow_nan=False).encode()).hexdigest()


def in_todays_words(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return a manifest with the fields of today. Raises KeyError, TypeError for anything else."""
    rounding = manifest["rounding"]
    return {
        **manifest,
        "data": {**manifest["data"], "labels": "auto", "shards": len(manifest["shards"])},
        "made_by": {"threads": None, **rounding},
        "skipped_images": len(manifest["skipped"]),
        "left_out": {},
        "first_digest": first_digest(manifest),
    }
