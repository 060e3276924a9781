"""The training of a tokenizer as the loop sees it: crops, one of the stages, validation on held-out photographs.

Shapes: B images of this process, S side of the crops.
"""

import itertools
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..autoencoder.statistics import LatentStatistics
from ..checkpoints.identity import identify_weights
from ..data.loader import BrokenImages, CropStream, crop_batches
from ..data.pixels import levels_to_values
from ..data.sources import ConcatSource, open_source
from ..data.streaming import StreamedBatches, StreamedCrops, streaming_path
from ..runtime.files import write_json
from ..runtime.processes import Processes, broadcast
from .config import TrainConfig
from .export import write_result
from .run_folder import identify_photographs
from .stages.base import Stage, State
from .task import Task
from .validation import Validation, better, hold_out, read_crops, summary

logger = logging.getLogger(__name__)

LATENT_CROPS = 4096
"""Crops over which a foreign encoder's latents are measured before the decoder is trained on them."""

STATISTICS_IMAGES = 256
"""Crops over which the latent's mean and standard deviation are taken at the end."""

_BATCH = 16


class TokenizerTask(Task):
    """Crops of photographs, and the stage that the config is of.

    Raises:
        ValueError, OSError: the data or the weights to start from cannot be had.
    """

    config: TrainConfig
    stage: Stage
    batch_name = "images"

    def __init__(self, config: TrainConfig) -> None:
        data = config.data
        self.config = config
        self.held_out: ConcatSource | None = None
        self.stream: CropStream | StreamedCrops
        crops = (data.resolution, data.scale, data.flip, config.seed)
        if any(map(streaming_path, data.paths)):
            if len(data.paths) > 1:
                raise ValueError("expected a stream as the one path of --data.paths, found several paths")
            self.stream = StreamedCrops(data.paths[0], *crops)
        else:
            trained, self.held_out = self._split(open_source(data.paths))
            self.stream = CropStream(trained, *crops)
        if config.validation.count and config.validation.paths:
            self.held_out = open_source(config.validation.paths)
        self.stage = config.build_stage()
        self.broken = BrokenImages(data.broken_limit)
        self.validation_images = config.validation.images
        self._streamed: StreamedBatches | None = None
        self._validation: Validation | None = None
        self._before: dict[str, float] = {}

    def _split(self, source: ConcatSource) -> tuple[ConcatSource, ConcatSource | None]:
        """Hold a share of the photographs out, unless others are given or there are too few."""
        validation = self.config.validation
        if validation.paths or not validation.count:
            return source, None
        trained, held_out = hold_out(len(source), validation.share, self.config.seed)
        if not len(held_out) or not len(trained):
            return source, None
        return source.subset(trained), source.subset(held_out)

    @property
    def name(self) -> str:
        return self.config.stage

    # ---- data ----------------------------------------------------------------------------------------------------

    def provenance(self) -> dict[str, Any]:
        if isinstance(self.stream, StreamedCrops):
            photographs: dict[str, Any] = {"sha256": self.stream.identity()}
        else:
            photographs = identify_photographs(self.stream.source)
        weights = {name: identify_weights(network) for name, network in self.stage.given.items()}
        return {"photographs": photographs} | weights

    def batches(self, seen: int, processes: Processes, position: Any = None) -> Iterator[Tensor]:
        """Return this process' parts of the batches, uint8 (B, 3, S, S)."""
        how = (self.config.batch_size, self.config.data.workers, processes.rank, processes.count, self.broken)
        if isinstance(self.stream, StreamedCrops):
            self._streamed = StreamedBatches(self.stream, *how, position)
            return self._streamed
        return crop_batches(self.stream, seen, *how)

    def data_position(self) -> Any:
        return None if self._streamed is None else self._streamed.state()

    def on_device(self, piece: Tensor, device: torch.device) -> Tensor:
        """Return float32 in [-1, 1], channels-last, of uint8 (B, 3, S, S)."""
        images = levels_to_values(piece.to(device, non_blocking=True))
        return images.contiguous(memory_format=torch.channels_last)

    def batch_at(self, seen: int) -> dict[str, Tensor]:
        if isinstance(self.stream, StreamedCrops):
            raise ValueError("a stream has no positions")
        return {"images": torch.stack([self.stream[p] for p in range(seen, seen + self.config.batch_size)])}

    def counts(self) -> dict[str, int]:
        return {"broken_images": self.broken.count}

    @torch.no_grad()
    def _measure_latents(
        self, encode: Callable[[Tensor], Tensor], count: int, start: int, device: torch.device
    ) -> dict[str, Any]:
        """Return config entries of the latents' statistics over about so many training crops from a position on."""
        if isinstance(self.stream, StreamedCrops):
            batches: Iterator[Tensor] = StreamedBatches(self.stream, _BATCH, self.config.data.workers)
        else:
            batches = crop_batches(self.stream, start, _BATCH, self.config.data.workers)
        measured = LatentStatistics()
        for crops in itertools.islice(batches, max(1, count // _BATCH)):  # uint8 (b, 3, S, S)
            measured.update(encode(levels_to_values(crops.to(device))))
        return measured.config()

    # ---- before the first update -----------------------------------------------------------------------------------

    def _is_to_validate(self) -> bool:
        settings = self.config.validation
        return settings.count > 0 and (settings.share > 0 or bool(settings.paths))

    def prepare(self, run: Path, processes: Processes) -> None:
        """Measure a foreign encoder's latents, once a run, and read the crops of the validation."""
        device = processes.device
        if self.stage.normalize_latents is not None:
            path, encoder = run / "latents.json", self.stage.frozen["encoder"]
            if processes.main and not path.is_file():
                logger.info("measuring the encoder's latents over %d crops", LATENT_CROPS)
                known = self._measure_latents(lambda x: encoder(x).float().chunk(2, dim=1)[0], LATENT_CROPS, 0, device)
                write_json(path, known)
            processes.wait()
            known = broadcast(json.loads(path.read_text()) if processes.main else None)
            self.stage.normalize_latents(tuple(known["latents_mean"]), tuple(known["latents_std"]))
        if self.held_out is not None and processes.main:
            settings = self.config.validation
            crops = read_crops(self.held_out, settings.count, self.config.data.resolution)
            if len(crops):
                steps = settings.steps or self.stage.steps
                network = self.config.loss.lpips_network if self.config.loss.lpips else None
                self._validation = Validation(self.stage, crops, steps, network, device)
        elif processes.main and self._is_to_validate() and not isinstance(self.stream, StreamedCrops):
            logger.info("too few photographs to hold any out: no validation (--validation.share, --validation.paths)")

    # ---- what it has learnt ----------------------------------------------------------------------------------------

    def grid(self, weights: State) -> np.ndarray | None:
        count = self.config.log.sample_count
        if self._validation is None or not count:
            return None
        return self._validation.grid(self._result(weights), count)

    def validate(self, weights: State, run: Path, seen: int) -> dict[str, float]:
        """Measure the model; keep the best in ``best/``, with its figures in ``best.json``."""
        validation, settings = self._validation, self.config.validation
        if validation is None or (seen == 0 and "start" not in self.stage.given):
            return {}
        result = self._result(weights)
        scores = validation.measure(result)
        if seen == 0:
            self._before = scores
            return scores
        steps, best = validation.steps[0], run / "best.json"
        metric = settings.best if f"{settings.best}_{steps}" in scores else "psnr"  # its weights may be missing
        known = _read_figures(best.read_text()) if best.is_file() else {}
        name = f"{metric}_{steps}"
        if better(metric, scores[name], known.get(name)):
            write_result(run / "best", lambda folder: self.stage.export(result.to("cpu"), folder, {}))
            write_json(best, {"images": seen, **scores})
        if seen >= self.config.total_images:
            logger.info("%s", summary(self._first_scores(run), scores, len(validation.crops)))
        return scores

    def _first_scores(self, run: Path) -> dict[str, float]:
        """Return the figures of the model that the run started from, if there was one."""
        if self._before or not (run / "validation.jsonl").is_file():
            return self._before
        first = _read_figures((run / "validation.jsonl").read_text().partition("\n")[0])
        return first if first.get("images") == 0 else {}

    def _result(self, weights: State) -> Any:
        assert self._validation is not None
        return self.stage.result(weights).to(self._validation.device)

    def export(self, weights: State, run: Path, device: torch.device) -> Path:
        """Write ``model/``; the latents' statistics come from the encoder's source, or from crops."""
        stage, result = self.stage, self.stage.result(weights).to(device)
        statistics = dict(stage.statistics)
        if statistics.keys() <= {"force_upcast"}:  # a single file states no scale
            statistics |= self._measure_latents(
                lambda images: stage.latents(result, images), STATISTICS_IMAGES, self.config.total_images, device
            )
        return write_result(run / "model", lambda folder: stage.export(result.to("cpu"), folder, statistics))


def _read_figures(text: str) -> dict[str, float]:
    """Return the figures of a model; none for a line that was cut off."""
    try:
        return dict(json.loads(text))
    except (ValueError, TypeError):
        return {}
