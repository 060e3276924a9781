"""``ssdd evaluate MODEL... --data PATH...``: autoencoders side by side on the same crops, by a named protocol."""

import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from msgspec import Meta
from tyro.conf import Positional

from ..runtime.dtypes import Dtype, torch_dtype
from ..runtime.files import OutputExists, only_one
from ..runtime.text import bars_are_off
from .common import (
    DEFAULT_MODEL,
    SKIPPED,
    Count,
    ModelOptions,
    Optimize,
    Workers,
    can_compile_once,
    check_outputs,
    model_of_run,
    pays,
    print_json,
)
from .parse import subcommands

if TYPE_CHECKING:
    import torch

    from ..evaluation.features import Extractor
    from ..evaluation.metrics import Metric
    from ..evaluation.protocols import EvaluationSet, Protocol
    from ..evaluation.results import Evaluation, Row
    from ..evaluation.run import Entry, Run
    from ..runtime.processes import Processes

S = TypeVar("S")
T = TypeVar("T")

_LPIPS: tuple[Literal["vgg", "alex", "squeeze"], ...] = ("alex", "vgg", "squeeze")
_EXTRACTORS = ("inception-torch-fidelity", "mobilenet_v2-imagenet")


@dataclass(frozen=True)
class Evaluate:
    """Compare autoencoders on the same crops of photographs, by a protocol that is printed with the table.

    ``ssdd evaluate report OUT`` makes table and page anew of a saved result, without models or data.
    """

    models: Positional[tuple[str, ...]] = ()
    """Model folders, runs, embedded names, Hugging Face ids, .safetensors of the authors or in LDM's layout,
    jpeg:BYTES, jpeg:auto (the bytes of the first model's latent), bicubic:FACTOR, file.py:NAME; folder:PATH or an .npz
    file of images that another program wrote. Without --data the first of those is the original."""
    encoder: str | None = None
    """Encoder of the models that have none: file.py:NAME, package.module:NAME, model folder, run, Hugging Face id,
    single .safetensors file, taef2."""
    data: tuple[str, ...] = ()
    """Folders, uncompressed tar files, .npz files of images, hf:OWNER/NAME[:SPLIT]."""
    protocol: str | None = None
    """paper-128-v1, paper-256-v1 (the default), paper-512-v1, torchvision-256, adm-256, dcae-in512, omnidoc-256,
    native-v1, crops-64-v1 (-128-, -256-); as-is (the default without --data)."""
    limit: Count | None = None
    """So many images at most, drawn by the protocol's seed."""
    steps: tuple[Count, ...] = ()
    """Decoding steps, such as 1 2 4 8: a row for each, where a model has a choice. By default the model's own."""
    latent_noise: tuple[Annotated[float, Meta(gt=0)], ...] = ()
    """Noise that is added to the latents, such as 0.1 0.2, in standard deviations of each: a row more for each."""
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
    json: bool = False
    """Print the result as evaluation.json has it instead of the table."""
    batch_size: Count = 16
    """Crops at a time; no number depends on it."""
    workers: Workers = 2
    """Processes that read and crop."""
    device: str = "auto"
    """auto (a GPU if there is one; under torchrun that of the process), cpu, cuda, cuda:1, ..."""
    dtype: tuple[Dtype, ...] = ("fp32",)
    """Precision of the networks. Several, such as fp32 bf16 fp16, give a row for each that decodes the latents of the
    first: what does lower precision cost?"""
    optimize: Optimize = "auto"
    """Make models of ours ready for full speed in their precision, which takes half a minute the first time on a
    machine and changes the last digits of fp32. auto: for 100 images and more."""


@dataclass(frozen=True)
class Report:
    """Make the table and the page of a saved result anew, without models or data."""

    out: Positional[Path]
    """Folder that ``ssdd evaluate --out`` wrote."""


def choose_options(arguments: list[str]) -> tuple[Any, list[str]]:
    """Return the options of ``MODEL... --data PATH...``, or of ``report OUT``."""
    if arguments[:1] == ["report"]:
        return subcommands({"report": ("", Report)}), arguments
    return Evaluate, arguments


def run(options: Evaluate | Report) -> int:
    from ..runtime.processes import join_processes

    if isinstance(options, Report):
        return _report(options.out)
    device = None if options.device == "auto" else ModelOptions(device=options.device).torch_device()
    if options.add_to is not None and (options.out is not None or options.overwrite):
        raise ValueError("--add-to has no effect beside --out and --overwrite: give one of them")
    out = options.add_to or options.out
    for folder in (out, options.save_reconstructions, options.cache):
        if folder is not None:
            check_outputs(folder, [])
    with (
        join_processes(device) as processes,
        only_one(out, "evaluated into") if out is not None and processes.main else nullcontext(),
    ):
        return _evaluate(options, processes, out)


def _report(folder: Path) -> int:
    from ..evaluation.report import check_report, write_report
    from ..evaluation.results import as_text
    from ..evaluation.weights import first_line

    check_report()
    evaluation = _load(folder)
    print(as_text(evaluation))
    try:
        write_report(evaluation, folder)
    except Exception as error:  # whatever a damaged or hostile result leads to
        raise ValueError(f"{folder}: expected a result as ssdd evaluate wrote it, found {first_line(error)}") from error
    return 0


def _evaluate(options: Evaluate, processes: "Processes", out: Path | None) -> int:
    from tqdm.auto import tqdm

    from ..evaluation.distances import read_statistics
    from ..evaluation.metrics import BatchMetrics
    from ..evaluation.report import check_report
    from ..evaluation.results import REPORT, file_name
    from ..evaluation.run import Run, numbered
    from ..runtime.processes import broadcast

    earlier = _earlier(options) if processes.main else None
    models, evaluation_set, sources = _data(options, broadcast(earlier and (earlier.protocol, earlier.data)))
    limit = broadcast(earlier and earlier.data["limit"])
    if options.limit is not None and limit is not None and options.limit != limit:
        raise ValueError(f"expected the --limit of the rows that are there, {limit}, found {options.limit}")
    device = processes.device
    groups = _groups(options, models, evaluation_set, device)
    left_out = LeftOut(options.allow_missing)
    if out is not None:
        left_out.load(lambda _: check_report(), [REPORT], asked=True)
    metrics = BatchMetrics(device, _metrics(options, device, left_out))
    extractors, reference = load_extractors(options.extractors, device, left_out), None
    if options.reference is not None:
        if len(extractors) != 1:
            raise ValueError(f"{options.reference}: expected one extractor in --extractors, whose features it is of")
        reference = read_statistics(options.reference, extractors[0])
    work = Run(
        evaluation_set,
        metrics,
        extractors,
        batch_size=options.batch_size,
        workers=options.workers,
        processes=processes,
        limit=options.limit if limit is None else limit,
        save_to=options.save_reconstructions,
        progress=lambda items, total: tqdm(
            items, total=total, unit="img", disable=not processes.main or bars_are_off()
        ),
        out=out,
        evaluation=earlier,
        cache=options.cache,
        sources=sources,
        reference=reference,
    )
    if processes.main:
        left_out.say()
    work.finish_distances()
    rows = broadcast(earlier.rows if earlier is not None else [])
    missing = _missing(numbered(groups, rows), rows, work)
    if options.save_reconstructions is not None and not options.overwrite:
        labels = [file_name(entry.label) for entries in missing for entry in entries]
        check_outputs(options.save_reconstructions, labels, labels)
    for entries in missing or [[]]:  # without any, the crops are compared with those of the rows that are there
        work.add(entries)
    if not processes.main or work.evaluation is None:
        return 0
    return _show(work.evaluation, out, options.json)


def _missing(groups: "list[list[Entry]]", rows: "list[Row]", work: "Run") -> "list[list[Entry]]":
    """Return the rows that an earlier result does not have; say which it has, and what those lack of this run."""
    missing = []
    for entries in groups:
        for entry in entries:
            for row in filter(entry.same_as, rows):
                lacks = [m for m in work.metrics.metrics if m not in row.image_metrics and m != "pooled_psnr"]
                lacks += [extractor.name for extractor in work.extractors if extractor.name not in row.distances]
                without = f"; it was measured without {', '.join(lacks)}: take another --out for these" if lacks else ""
                if work.processes.main:
                    print(f"{row.label}: this row is there already{without}", file=sys.stderr)
        missing.append([entry for entry in entries if not any(map(entry.same_as, rows))])
    return [entries for entries in missing if entries]


def _show(evaluation: "Evaluation", out: Path | None, as_json: bool) -> int:
    """Print the result and write the page. Return the exit status: 3 if images were skipped."""
    from ..evaluation.report import write_report
    from ..evaluation.results import as_text

    skipped = [*evaluation.data["skipped"], *(b for row in evaluation.rows for b in row.model.get("broken", []))]
    for reason in skipped:
        print(f"skipped {reason}", file=sys.stderr)
    evaluation.finished = True
    if as_json:
        print_json(evaluation.as_dict())
    else:
        print(as_text(evaluation))
    if out is not None:
        with suppress(ImportError):  # it is left out, as was said
            write_report(evaluation, out)
        evaluation.save(out)  # last: a result that is finished is not gone on with
    return SKIPPED if skipped else 0


def _load(folder: Path) -> "Evaluation":
    """Return a result that a table can be made of and rows added to. Raises FileNotFoundError or ValueError."""
    from ..evaluation.results import Evaluation, as_text
    from ..evaluation.weights import first_line

    evaluation = Evaluation.load(folder)
    try:
        _ = evaluation.data["limit"], list(evaluation.data["skipped"]), list(evaluation.data["sources"])
        _ = as_text(evaluation)
    except Exception as error:  # whatever a damaged or hostile result leads to
        raise ValueError(f"{folder}: expected a result as ssdd evaluate wrote it, found {first_line(error)}") from error
    return evaluation


def _earlier(options: Evaluate) -> "Evaluation | None":
    """Return the result to add to: of --add-to, or of an interrupted run in --out."""
    from ..evaluation.results import REPORT, RESULTS

    if options.add_to is not None:
        return _load(options.add_to)
    if options.out is None:
        return None
    if options.overwrite or not (options.out / RESULTS).is_file():
        names = [RESULTS, REPORT]
        check_outputs(options.out, names, [] if options.overwrite else names)
        return None
    evaluation = _load(options.out)
    if evaluation.finished:
        raise OutputExists(
            f"{options.out / RESULTS} exists already; pass --overwrite to replace it, or --add-to for more rows"
        )
    print(f"{options.out}: goes on after {len(evaluation.rows)} rows", file=sys.stderr)
    return evaluation


def _data(
    options: Evaluate, earlier: tuple[dict[str, Any], dict[str, Any]] | None
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
        data = data or list(facts["sources"])
        name = name or protocol["protocol"]
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
    """What cannot be had: left out with a line, or an error where it was asked for and ``allow`` is False."""

    def __init__(self, allow: bool = False) -> None:
        self.allow = allow
        self.reasons: list[str] = []

    def load(self, load: Callable[[S], T], names: Sequence[S], asked: bool) -> list[T]:
        """Return what ``load`` makes of each name, without what is left out."""
        from ..evaluation.weights import MissingWeights

        loaded = []
        for name in names:
            try:
                loaded.append(load(name))
            except (MissingWeights, ImportError) as error:
                if asked and not self.allow:
                    raise ValueError(f"{error}; or pass --allow-missing to leave it out") from error
                self.reasons.append(str(error))
        return loaded

    def say(self) -> None:
        """Print what is left out."""
        for reason in self.reasons:
            print(f"left out: {reason}", file=sys.stderr)


def _groups(
    options: Evaluate, models: Sequence[str], evaluation_set: "EvaluationSet", device: "torch.device"
) -> "list[list[Entry]]":
    """Return the rows of each model: one for each precision, number of steps and level of noise."""
    import torch

    from ..evaluation.autoencoders import (
        JPEG_AUTO,
        Autoencoder,
        PretrainedAutoencoder,
        check_encoder_attached,
        load_autoencoder,
    )
    from ..evaluation.run import Entry
    from ..evaluation.saved_images import SavedImages, images_path

    protocol = evaluation_set.protocol
    dtypes = [torch_dtype(name) for name in dict.fromkeys(options.dtype)]
    noises = list(dict.fromkeys([0.0, *options.latent_noise]))
    groups: list[list[Entry]] = []
    for name in models:
        if (path := images_path(name)) is not None:
            groups.append([Entry(SavedImages(path, evaluation_set.source, protocol))])
            continue
        if name == JPEG_AUTO:
            name = f"jpeg:{_bytes_of_first(groups, protocol)}"
        name = model_of_run(name)
        first = load_autoencoder(name, device, dtypes[0], options.encoder)
        if first.dtype == torch.uint8:  # no network: nothing to choose
            groups.append([Entry(first)])
            continue
        others = [load_autoencoder(name, device, dtype, options.encoder) for dtype in dtypes[1:]]
        choices = (options.steps if first.has_steps else ()) or (None,)
        if pays(options.optimize, min(len(evaluation_set), options.limit or len(evaluation_set))):
            for autoencoder in (first, *others):
                if isinstance(autoencoder, PretrainedAutoencoder):
                    autoencoder.optimize(can_compile_once(device, one_size=protocol.square))
        precisions = [(first, None), *((other, first) for other in others)]
        groups.append([Entry(a, n, encoder, noise) for noise in noises for a, encoder in precisions for n in choices])
    networks = (entry.autoencoder for entries in groups for entry in entries)
    check_encoder_attached([a for a in networks if isinstance(a, Autoencoder)], options.encoder)
    return groups


def _bytes_of_first(groups: "list[list[Entry]]", protocol: "Protocol") -> int:
    """Return how many bytes the first model's latent of a crop has."""
    import torch

    from ..evaluation.autoencoders import Autoencoder

    first = groups[0][0].autoencoder if groups else None
    if not isinstance(first, Autoencoder) or not protocol.square:
        raise ValueError("jpeg:auto takes the bytes of the model before it, on square crops: give jpeg:BYTES")
    return first.latent_bytes(first.encode(torch.zeros(1, 3, protocol.size, protocol.size)))[0]


def _metrics(options: Evaluate, device: "torch.device", left_out: LeftOut) -> "list[Metric]":
    from ..evaluation.dreamsim import dreamsim_metric
    from ..evaluation.metrics import lpips_metric, own_metric

    networks = _LPIPS if options.lpips is None else options.lpips
    metrics = left_out.load(lambda name: lpips_metric(name, device), networks, asked=options.lpips is not None)
    if options.dreamsim:
        metrics += left_out.load(lambda _: dreamsim_metric(device), ["dreamsim"], asked=True)
    return metrics + [own_metric(spec, device) for spec in options.metrics]


def load_extractors(names: Sequence[str] | None, device: "torch.device", left_out: LeftOut) -> "list[Extractor]":
    """Return the extractors of these names, or those of the default whose weights can be had."""
    from ..evaluation.features import load_extractor

    asked = names is not None
    return left_out.load(lambda name: load_extractor(name, device), _EXTRACTORS if names is None else names, asked)
