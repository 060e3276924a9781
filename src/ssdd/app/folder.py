"""The photographs of a folder through several autoencoders, by a protocol of ``ssdd evaluate``, with its report."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..data.sources import open_source
from ..evaluation.metrics import BatchMetrics, cached_lpips
from ..evaluation.protocols import EvaluationSet, Progress, get_protocol, silent
from ..evaluation.report import check_report, write_report
from ..evaluation.results import as_text
from ..evaluation.run import Entry, Run
from ..runtime.processes import Processes
from .compare import JPEG_LABEL, Models, Settings

PROTOCOLS = ("paper-128-v1", "paper-256-v1", "paper-512-v1")
"""Protocols of square crops, for which JPEG files of the same bytes are defined."""


@dataclass(frozen=True)
class FolderResult:
    """The table as text, and the page of ``ssdd evaluate``; None where the packages for it are missing."""

    text: str
    report: Path | None


def evaluate_folder(
    models: Models,
    folder: Path,
    labels: Sequence[str],
    settings: Settings,
    protocol: str,
    limit: int,
    out: Path,
    progress: Progress = silent,
) -> FolderResult:
    """Evaluate autoencoders on the photographs of a folder, and write the report to the folder ``out``.

    Args:
        models: where the autoencoders are.
        folder: of the photographs.
        labels: of the autoencoders.
        settings: of decoding; the noise is that of the protocol's seed.
        protocol: one of ``PROTOCOLS``.
        limit: number of photographs, drawn by the protocol's seed.
        out: for the result.
        progress: goes round the images, once for each autoencoder.

    Raises:
        ValueError: no photograph that can be read, an unknown label or protocol, nothing to measure.
    """
    if not labels:
        raise ValueError("expected one model or more, found none: choose some")
    if protocol not in PROTOCOLS:
        raise ValueError(f"expected a protocol ({', '.join(PROTOCOLS)}), found {protocol!r}")
    crops = EvaluationSet(open_source([folder]), get_protocol(protocol))
    entries = _entries(models, labels, settings, crops.protocol.size)
    lpips = cached_lpips(models.device)
    metrics = BatchMetrics(models.device, [lpips] if lpips else [])
    run = Run(
        crops,
        metrics,
        workers=0,
        processes=Processes(0, 1, models.device),
        limit=limit,
        progress=progress,
        out=out,
        sources=[str(folder)],
    )
    for entry in entries:
        run.add([entry])
    assert run.evaluation is not None
    run.evaluation.finished = True
    run.evaluation.save(out)
    try:
        check_report()
    except ImportError as error:
        return FolderResult(f"{as_text(run.evaluation)}\n{error}", None)
    return FolderResult(as_text(run.evaluation), write_report(run.evaluation, out))


def _entries(models: Models, labels: Sequence[str], settings: Settings, size: int) -> list[Entry]:
    """Return what is to be measured; JPEG files get the bytes of the first network's latent of a crop."""
    entries: list[Entry] = []
    jpeg_bytes: int | None = None
    for label in sorted(labels, key=lambda label: label == JPEG_LABEL):
        _, autoencoder = models.load(label, jpeg_bytes)
        if autoencoder.dtype == torch.uint8:  # no network: nothing to choose
            entries.append(Entry(autoencoder))
            continue
        if jpeg_bytes is None:
            jpeg_bytes = autoencoder.latent_bytes(autoencoder.encode(torch.zeros(1, 3, size, size)))[0]
        steps = settings.steps if autoencoder.has_steps else None
        entries.append(Entry(autoencoder, steps, latent_noise=settings.latent_noise))
    return entries
