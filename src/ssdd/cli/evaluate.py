"""``ssdd evaluate MODEL... --data PATH...``: autoencoders side by side on the same crops, by a named protocol."""

import math
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

import torch
import tyro
from tqdm import tqdm

from ..dtypes import DTYPES
from ..files import OutputExists, only_one
from .common import DEFAULT_MODEL, ModelOptions, check_outputs, model_of_run, parse_options

if TYPE_CHECKING:
    from ..evaluation.features import Extractor
    from ..evaluation.metrics import Metric
    from ..evaluation.protocols import EvaluationSet, Protocol
    from ..evaluation.results import Evaluation, Row
    from ..evaluation.run import Entry, Settings
    from ..processes import Processes

T = TypeVar("T")

_LPIPS: tuple[Literal["vgg", "alex", "squeeze"], ...] = ("alex", "vgg", "squeeze")
_EXTRACTORS = ("inception-torch-fidelity", "mobilenet_v2-imagenet")


@dataclass(frozen=True)
class Evaluate:
    """Compare autoencoders on the same crops of photographs, by a protocol that is printed with the table.

    ``ssdd evaluate report OUT`` makes table and page anew of a saved result, without models or data.
    """

    models: tyro.conf.Positional[tuple[str, ...]] = ()
    """Model folders, runs, embedded names, Hugging Face ids, .safetensors of the authors or in LDM's layout,
    jpeg:BYTES, jpeg:auto (the bytes of the first model's latent), bicubic:FACTOR, file.py:NAME; folder:PATH or an .npz
    file of images that another program wrote. Without --data the first of those is the original."""
    encoder: str | None = None
    """Encoder of the models that have none: file.py:NAME, package.module:NAME, model folder, run, Hugging Face id."""
    data: tuple[str, ...] = ()
    """Folders, uncompressed tar files, .npz files of images, hf:OWNER/NAME[:SPLIT]."""
    protocol: str | None = None
    """paper-128-v1, paper-256-v1 (the default), paper-512-v1, torchvision-256, adm-256, dcae-in512, omnidoc-256,
    native-v1, crops-128-v1, crops-256-v1; as-is (the default without --data)."""
    limit: int | None = None
    """So many images at most, drawn by the protocol's seed."""
    steps: str = ""
    """Decoding steps, such as 1,2,4,8: a row for each, where a model has a choice. By default the model's own."""
    latent_noise: str = ""
    """Noise that is added to the latents, such as 0.1,0.2, in standard deviations of each: a row more for each."""
    lpips: tuple[Literal["vgg", "alex", "squeeze"], ...] | None = None
    """LPIPS networks; none of them without a name. By default those whose weights can be had."""
    dreamsim: bool = False
    """DreamSim too (pip install 'ssdd[dreamsim]')."""
    metrics: tuple[str, ...] = ()
    """Metrics of yours, file.py:NAME: see docs/evaluation.md."""
    extractors: tuple[str, ...] | None = None
    """Feature extractors for distances of sets: inception-torch-fidelity, mobilenet_v2-imagenet, dinov2-large,
    clip-vit-large-patch14-336, ...; none without a name. By default the first two, where their weights can be had."""
    reference: Path | None = None
    """An .npz with mu and sigma of a set (guided-diffusion's, torch-fidelity's): the Fréchet distance on the one
    extractor of --extractors is to it, and not to the originals."""
    allow_missing: bool = False
    """Leave out, with a line, what was asked for and cannot be had, instead of ending before the work."""
    out: Path | None = None
    """Folder for evaluation.json, crops-HASH.npz (every crop's numbers), pictures and report.html. An interrupted run
    goes on with the model at which it stopped."""
    add_to: Path | None = None
    """Folder of an earlier result, to which the models are added; its data, protocol and limit are used."""
    save_reconstructions: Path | None = None
    """Folder for every reconstruction as PNG, in a new folder for each row."""
    cache: Path | None = None
    """Folder in which the originals' features are kept for other results; by default they are kept in OUT."""
    overwrite: bool = False
    """Replace existing files."""
    batch_size: int = 16
    """Crops at a time; no number depends on it."""
    workers: int = 2
    """Processes that read and crop."""
    device: str = "auto"
    """auto (a GPU if there is one; under torchrun that of the process), cpu, cuda, cuda:1, ..."""
    dtype: str = "fp32"
    """Precision of the networks: fp32, bf16 or fp16. Several, such as fp32,bf16,fp16, give a row for each that decodes
    the latents of the first: what does lower precision cost?"""


@dataclass(frozen=True)
class Report:
    """Make the table and the page of a saved result anew, without models or data."""

    out: tyro.conf.Positional[Path]
    """Folder that ``ssdd evaluate --out`` wrote."""


def parse(arguments: Sequence[str]) -> Evaluate | Report:
    """``MODEL... --data PATH... [OPTIONS]``, or ``report OUT``."""
    if arguments and arguments[0] == "report":
        return parse_options(Report, "evaluate report", arguments[1:])
    return parse_options(Evaluate, "evaluate", arguments)


def run(options: Evaluate | Report) -> int:
    from ..evaluation.results import Evaluation, as_text
    from ..evaluation.weights import first_line

    if isinstance(options, Report):
        from ..evaluation.report import check_report, write_report

        check_report()
        evaluation = Evaluation.load(options.out)
        try:
            print(as_text(evaluation))
            write_report(evaluation, options.out)
        except Exception as error:  # whatever a damaged or hostile result leads to
            raise ValueError(
                f"{options.out}: expected a result as ssdd evaluate wrote it, found {first_line(error)}"
            ) from error
        return 0
    from ..processes import join_processes

    device = None if options.device == "auto" else ModelOptions(device=options.device).torch_device()
    out = options.add_to or options.out
    for folder in (out, options.save_reconstructions, options.cache):
        if folder is not None:
            check_outputs(folder, [])
    with (
        join_processes(device) as processes,
        only_one(out, "evaluated into") if out is not None and processes.main else nullcontext(),
    ):
        return _evaluate(options, processes, out)


def _evaluate(options: Evaluate, processes: "Processes", out: Path | None) -> int:
    from ..evaluation.distances import read_statistics
    from ..evaluation.metrics import BatchMetrics
    from ..evaluation.protocols import draw_images
    from ..evaluation.results import as_text, file_name
    from ..evaluation.run import Run, Settings
    from ..processes import broadcast

    if options.batch_size < 1:
        raise ValueError(f"expected a batch size of at least 1, found {options.batch_size}")
    evaluation = _earlier(options, processes)
    models, evaluation_set, sources = _data(options, broadcast(evaluation and (evaluation.protocol, evaluation.data)))
    protocol, device = evaluation_set.protocol, processes.device
    limit = _limit(options, broadcast(evaluation and evaluation.data["limit"]))
    groups = _groups(options, models, evaluation_set, device)
    left_out = LeftOut(options.allow_missing)
    if out is not None:
        left_out.try_for(_check_report, asked=True)
    settings = Settings(
        BatchMetrics([], device, _metrics(options, device, left_out)),
        load_extractors(options.extractors, device, left_out),
        options.batch_size,
        options.workers,
        device,
        draw_images(len(evaluation_set), limit, protocol.seed),
        limit,
        options.save_reconstructions,
        lambda items, total: tqdm(items, total=total, unit="img", disable=not processes.main),
    )
    reference = None
    if options.reference is not None:
        if len(settings.extractors) != 1:
            raise ValueError(f"{options.reference}: expected one extractor in --extractors, whose features it is of")
        reference = [read_statistics(options.reference, settings.extractors[0])]
    if processes.main:
        left_out.say()
    work = Run(evaluation_set, settings, processes, out, evaluation, options.cache, sources, reference)
    work.finish_distances()
    missing = _missing(groups, broadcast(evaluation.rows if evaluation is not None else []), settings, processes.main)
    if options.save_reconstructions is not None and not options.overwrite:
        labels = [file_name(entry.label) for entries in missing for entry in entries]
        check_outputs(options.save_reconstructions, labels, labels)
    for entries in missing:
        work.add(entries)
    if not missing:
        work.verify()
    if not processes.main or work.evaluation is None:
        return 0
    return _show(work.evaluation, out, as_text(work.evaluation))


def _missing(groups: "list[list[Entry]]", rows: "list[Row]", settings: "Settings", main: bool) -> "list[list[Entry]]":
    """Return the rows that an earlier result does not have; say which it has, and what those lack of this run."""
    there = {row.label: row for row in rows}
    missing = []
    for entries in groups:
        found = [e for e in entries if e.label in there and there[e.label].model == e.autoencoder.describe()]
        for row in (there[entry.label] for entry in found):
            lacks = [m for m in settings.metrics.metrics if m not in row.image_metrics and m != "pooled_psnr"]
            lacks += [e.name for e in settings.extractors if e.name not in row.distances]
            without = f"; it was measured without {', '.join(lacks)}: take another --out for these" if lacks else ""
            if main:
                print(f"{row.label}: this row is there already{without}", file=sys.stderr)
        if len(found) < len(entries):
            missing.append([entry for entry in entries if entry not in found])
    return missing


def _limit(options: Evaluate, earlier: int | None) -> int | None:
    """Return the number of images that are drawn; an earlier result's stays. Raises ValueError for another."""
    if options.limit is not None and earlier is not None and options.limit != earlier:
        raise ValueError(f"expected the --limit of the rows that are there, {earlier}, found {options.limit}")
    return earlier if options.limit is None else options.limit


def _show(evaluation: "Evaluation", out: Path | None, text: str) -> int:
    """Print the table and write the page. Return the exit status: 1 if images were skipped."""
    skipped = [*evaluation.data["skipped"], *(b for row in evaluation.rows for b in row.model.get("broken", []))]
    for reason in skipped:
        print(f"skipped {reason}", file=sys.stderr)
    print(text)
    if out is not None:
        evaluation.finished = True
        evaluation.save(out)
        try:
            from ..evaluation.report import write_report

            write_report(evaluation, out)
        except ImportError as error:
            print(f"left out: report.html: {error}", file=sys.stderr)
    return 1 if skipped else 0


def _earlier(options: Evaluate, processes: "Processes") -> "Evaluation | None":
    """Return the result to add to, in the main process: of --add-to, or of an interrupted run in --out."""
    from ..evaluation.results import REPORT, RESULTS, Evaluation

    if options.add_to is not None and (options.out is not None or options.overwrite):
        raise ValueError("--add-to has no effect beside --out and --overwrite: give one of them")
    if not processes.main:
        return None
    if options.add_to is not None:
        return Evaluation.load(options.add_to)
    if options.out is None:
        return None
    if not options.overwrite and (options.out / RESULTS).is_file():
        evaluation = Evaluation.load(options.out)
        if evaluation.finished:
            raise OutputExists(
                f"{options.out / RESULTS} exists already; pass --overwrite to replace it, or --add-to for more rows"
            )
        print(f"{options.out}: goes on after {len(evaluation.rows)} rows", file=sys.stderr)
        return evaluation
    names = [RESULTS, REPORT]
    check_outputs(options.out, names, [] if options.overwrite else names)
    return None


def _data(
    options: Evaluate, earlier: tuple[dict[str, object], dict[str, object]] | None
) -> tuple[list[str], "EvaluationSet", list[str]]:
    """Return the models, the crops that they are evaluated on, and the paths of these.

    Without --data an earlier result's are taken, or the first folder of images among the models.
    """
    from ..data.sources import open_source
    from ..evaluation.protocols import EvaluationSet, get_protocol
    from ..evaluation.saved_images import images_path

    models, data, name = list(options.models or (DEFAULT_MODEL,)), list(options.data), options.protocol
    if earlier is not None:
        protocol, facts = earlier
        data = data or [str(source) for source in facts["sources"]]  # type: ignore[attr-defined]
        name = name or str(protocol["protocol"])
        if name != protocol["protocol"]:
            raise ValueError(f"expected the protocol of the rows that are there, {protocol['protocol']}, found {name}")
    elif not data:
        path = images_path(models[0])
        if path is None or len(models) < 2:
            raise ValueError(
                "expected photographs to evaluate on: pass --data FOLDER_OR_TAR ..., or two or more folder:PATH"
            )
        data, models, name = [path], models[1:], name or "as-is"
    return models, EvaluationSet(open_source(data), get_protocol(name or "paper-256-v1")), data


class LeftOut:
    """Leaves out what cannot be had, and says so in ``say``; or ends the command, where it was asked for."""

    def __init__(self, allow: bool = False) -> None:
        self.allow = allow
        self.reasons: list[str] = []

    def try_for(self, load: Callable[[], T], asked: bool) -> T | None:
        """Return what ``load`` gives, or None. Raises ValueError for what was asked for."""
        from ..evaluation.weights import MissingWeights

        try:
            return load()
        except (MissingWeights, ImportError) as error:
            if asked and not self.allow:
                raise ValueError(f"{error}; or pass --allow-missing to leave it out") from error
            self.reasons.append(str(error))
            return None

    def say(self) -> None:
        """Print a line for each thing that is left out."""
        for reason in self.reasons:
            print(f"left out: {reason}", file=sys.stderr)


def _check_report() -> None:
    from ..evaluation.report import check_report

    check_report()


def _groups(
    options: Evaluate, models: Sequence[str], evaluation_set: "EvaluationSet", device: torch.device
) -> "list[list[Entry]]":
    """Return the rows of each model: one for each precision, number of steps and level of noise."""
    from ..evaluation.autoencoders import JPEG_AUTO, Jpeg, check_encoder_attached, load_autoencoder
    from ..evaluation.run import Entry
    from ..evaluation.saved_images import SavedImages, images_path

    protocol = evaluation_set.protocol
    dtypes, steps, noises = _dtypes(options), _numbers("steps", options.steps, int), _levels(options)
    groups: list[list[Entry]] = []
    for name in models:
        if (path := images_path(name)) is not None:
            groups.append([Entry(SavedImages(path, evaluation_set.source, protocol))])
            continue
        if name == JPEG_AUTO:
            groups.append([Entry(Jpeg(_bytes_of_first(groups, protocol), device))])
            continue
        autoencoders = [load_autoencoder(model_of_run(name), device, dtype, options.encoder) for dtype in dtypes]
        first = autoencoders[0]
        if first.describe()["dtype"] == "uint8":  # no network: nothing to choose
            groups.append([Entry(first)])
            continue
        choices = (steps if first.steps is not None else ()) or (None,)
        entries = []
        for noise in noises:
            for autoencoder in autoencoders:
                for number in choices:
                    autoencoder.check_steps(number)
                    entries.append(Entry(autoencoder, number, None if autoencoder is first else first, noise))
        groups.append(entries)
    if options.encoder is not None:
        taken = (entry.autoencoder for entries in groups for entry in entries)
        check_encoder_attached([a for a in taken if not isinstance(a, SavedImages)], options.encoder)
    return groups


def _bytes_of_first(groups: "list[list[Entry]]", protocol: "Protocol") -> int:
    from ..evaluation.autoencoders import JPEG_AUTO
    from ..evaluation.saved_images import SavedImages

    first = groups[0][0].autoencoder if groups else None
    if first is None or isinstance(first, SavedImages) or not protocol.square:
        raise ValueError(f"{JPEG_AUTO} takes the bytes of the model before it, on square crops: give jpeg:BYTES")
    return first.latent_bytes(first.encode(torch.zeros(1, 3, protocol.size, protocol.size)))[0]


def _dtypes(options: Evaluate) -> list[torch.dtype]:
    parts = [part.strip() for part in options.dtype.split(",")]
    if unknown := [part for part in parts if part not in DTYPES]:
        raise ValueError(f"expected --dtype of {', '.join(DTYPES)}, or several like fp32,bf16, found {unknown[0]!r}")
    return [DTYPES[part] for part in dict.fromkeys(parts)]


def _levels(options: Evaluate) -> list[float]:
    return list(dict.fromkeys([0.0, *_numbers("latent-noise", options.latent_noise, float)]))


def _numbers(option: str, text: str, kind: Callable[[str], T]) -> list[T]:
    """Return the positive numbers of an option like 1,2,4."""
    try:
        numbers = [kind(part) for part in text.split(",") if part.strip()]
        if all(0 < number < math.inf for number in numbers):  # type: ignore[operator]
            return numbers
    except ValueError:
        pass  # said below
    example = "1,2,4,8" if kind is int else "0.1,0.2"
    raise ValueError(f"expected --{option} like {example}, found {text!r}")


def _metrics(options: Evaluate, device: torch.device, left_out: LeftOut) -> "list[Metric]":
    from ..evaluation.metrics import dreamsim_metric, lpips_metric, own_metric

    found = [
        left_out.try_for(lambda network=network: lpips_metric(network, device), asked=options.lpips is not None)  # type: ignore[misc]
        for network in (_LPIPS if options.lpips is None else options.lpips)
    ]
    if options.dreamsim:
        found.append(left_out.try_for(lambda: dreamsim_metric(device), asked=True))
    return [metric for metric in found if metric is not None] + [own_metric(spec, device) for spec in options.metrics]


def load_extractors(names: Sequence[str] | None, device: torch.device, left_out: LeftOut) -> "list[Extractor]":
    """Return the extractors of these names, or those of the default whose weights can be had."""
    from ..evaluation.features import load_extractor

    found = [
        left_out.try_for(lambda name=name: load_extractor(name, device), asked=names is not None)  # type: ignore[misc]
        for name in (_EXTRACTORS if names is None else names)
    ]
    return [extractor for extractor in found if extractor is not None]
