"""Packages that are extras."""

import importlib
from typing import Any


def require(name: str, purpose: str, extra: str) -> Any:
    """Import a module. Raises ImportError, with what needs it and how to install it, where it is missing."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"{purpose}: pip install '{extra}'") from error


def parquet() -> tuple[Any, Any]:
    """Return pyarrow and its module for Parquet."""
    purpose = "Parquet files need pyarrow", "ssdd[parquet]"
    return require("pyarrow", *purpose), require("pyarrow.parquet", *purpose)
