"""``ssdd generate train | sample | evaluate | classes | export``: a latent DiT on tokenized data."""

import itertools
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import tyro
from msgspec import Meta, structs
from tyro.conf import Positional

from ..generation.config import GenerationConfig
from ..recipes.generation import GENERATION_RECIPES, summary
from ..runtime.dtypes import Dtype, torch_dtype
from ..runtime.files import one_after_another
from ..runtime.text import bars_are_off, one_safe_line
from ..training.config import Share, without_idle
from .common import SKIPPED, Count, ModelOptions, Seed, Workers, check_outputs, print_json, run_training
from .parse import Heading, nearest, refuse, subcommands

if TYPE_CHECKING:
    import torch

    from ..evaluation.decoders import LatentDecoder
    from ..generation.output import SampleFiles
    from ..generation.result import Generator
    from ..generation.sampling import Sampling
    from ..runtime.processes import Processes


@dataclass(frozen=True)
class Train:
    """Train a latent DiT. The same command, run again, resumes exactly."""

    recipe: Annotated[GenerationConfig, tyro.conf.arg(name="")]
    out: Path
    """Folder of the run."""

    def checked(self) -> "Train":
        """Return the same without settings that have no effect. Raise ValueError for one that was typed."""
        return replace(self, recipe=without_idle(self.recipe, self.defaults))

    defaults: ClassVar[GenerationConfig] = GenerationConfig()
    """Of the recipe."""


@dataclass(frozen=True)
class GeneratorOptions:
    """A trained generator and its decoder."""

    run: Positional[str]
    """Folder of a finished run, or its model/."""
    decoder: str | None = None
    """Model that decodes: embedded name, folder, run, Hugging Face id, single file, file.py:NAME. By default the one
    that tokenized the data, if it is on this machine."""
    decoding_steps: Count | None = None
    """Steps of the decoder; by default as its model says, mostly one."""
    force: bool = False
    """Take a decoder of another encoder's latents too."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda, cuda:1, ..."""
    dtype: Dtype = "fp32"
    """Precision of all networks."""

    def load(self, device: "torch.device | None" = None, optimize: bool = False) -> "tuple[Generator, LatentDecoder]":
        """Return generator and decoder, which fit. Raises OSError or ValueError with one line."""
        from ..evaluation.decoders import load_decoder_of
        from ..generation.result import load_generator

        device = self.torch_device() if device is None else device
        generator = load_generator(self.run, device, torch_dtype(self.dtype))
        decoder = load_decoder_of(generator.facts.tokenizer, self.decoder, device, torch_dtype(self.dtype), self.force)
        if self.decoding_steps is not None:
            decoder.set_steps(self.decoding_steps)
        if optimize:
            decoder.optimize(torch_dtype(self.dtype))
        return generator, decoder

    def torch_device(self) -> "torch.device":
        """Return the device that ``device`` names. Raises ValueError if there is none of that name."""
        return ModelOptions(device=self.device).torch_device()


@dataclass(frozen=True)
class SampleOptions(GeneratorOptions):
    """What sampling and evaluation share."""

    classes: tuple[str, ...] = ("all",)
    """Numbers, names or unique parts of names, such as 1 tench ibis, or all; samples take them in turn. #10 is the
    number where 10 is the name of another class."""
    steps: Count = 50
    """Steps of the sampler."""
    sampler: Literal["euler", "heun"] = "euler"
    """heun calls the network twice a step, and is of second order."""
    shift: Annotated[float, Meta(gt=0)] = 1.0
    """Shift of the times towards noise, for larger latents (3 in SD3); 1 for equal steps."""
    interval: tuple[Share, Share] = (0.0, 1.0)
    """Times from 0, the image, to 1, noise, between which there is guidance."""
    guide: str | None = None
    """Run of a smaller or earlier generator on the same latents, to guide away from (autoguidance)."""
    seed: Seed = 0
    """Seed of the noise, with the number of the sample."""
    batch_size: Count = 32
    """Samples at a time; no sample depends on it."""
    overwrite: bool = False
    """Replace existing files."""

    def sampling(self, guidance: float) -> "Sampling":
        """Raise ValueError for numbers out of range."""
        from ..generation.sampling import Sampling

        return Sampling(self.steps, guidance, self.interval, self.sampler, self.seed, self.shift)

    def load_guide(self, generator: "Generator") -> "Generator | None":
        """Return the generator to guide away from, if any. Raises OSError or ValueError for one that does not fit."""
        from ..generation.result import load_generator

        if self.guide is None:
            return None
        guide = load_generator(self.guide, generator.model.device, torch_dtype(self.dtype))
        generator.facts.check_guide(guide.facts)
        return guide


@dataclass(frozen=True)
class Sample(SampleOptions):
    """Samples as PNG files, as one .npz in the format of the ADM evaluator or as tar shards, and a page of them."""

    count: Count = 16
    """Samples."""
    guidance: float = 4.0
    """Scale of classifier-free guidance; 1 for none."""
    height: Count | None = None
    """Pixels from top to bottom; by default the side of the square images of the training. Other sizes are what the
    network makes of them: it has seen those of its latents (ssdd tokenize --buckets)."""
    width: Count | None = None
    """Pixels from left to right, likewise."""
    out: Path = Path("samples")
    """Folder for the results."""
    format: Literal["png", "npz", "tar"] = "png"
    """png: a file each. npz: samples.npz (arr_0: images, arr_1: classes). tar: webdataset shards of 1,000."""


@dataclass(frozen=True)
class Evaluate(SampleOptions):
    """Samples against photographs: FID, KID, precision, recall, density, coverage; a search over guidance."""

    data: tuple[str, ...] = ()
    """Photographs: folders, uncompressed tar files, hf:OWNER/NAME[:SPLIT]."""
    only: str | None = None
    """Only photographs whose name fits a pattern like 'caltech101/*', as for ssdd tokenize."""
    reference: Path | None = None
    """An .npz with mu and sigma of a set (guided-diffusion's, torch-fidelity's) instead of photographs: the Fréchet
    distance on the one extractor that is named."""
    count: Annotated[int, Meta(ge=2)] = 1000
    """Samples for each guidance."""
    shares: Literal["uniform", "data"] = "uniform"
    """uniform: the classes in turn. data: as often as among the photographs, whose folders name their classes."""
    guidance: tuple[float, ...] = (4.0,)
    """Scale of classifier-free guidance, or several such as 1 1.5 2 3 to search."""
    extractors: tuple[str, ...] | None = None
    """Feature extractors, as of ssdd evaluate. By default inception-torch-fidelity (FID is on its features alone) and
    mobilenet_v2-imagenet, where their weights can be had."""
    allow_missing: bool = False
    """Leave out, with a line, extractors that were asked for and cannot be had."""
    out: Path | None = None
    """NAME.json for every number and the protocol, and beside it NAME.png, a plot of a search. A file that is there is
    gone on with."""
    json: bool = False
    """Print what --out writes instead of the table."""
    workers: Workers = 2
    """Processes that read photographs."""


@dataclass(frozen=True)
class Classes:
    """The classes of a generator: a number and a name a line."""

    run: Positional[str]
    """Folder of a finished run, or its model/."""


@dataclass(frozen=True)
class Export(GeneratorOptions):
    """Generator and decoder as one folder that diffusers' DiffusionPipeline.from_pretrained loads."""

    out: Path = Path("pipeline")
    """New folder of the pipeline."""


_COMMANDS = {
    "sample": ("Draw samples.", Sample),
    "evaluate": ("Measure samples against photographs.", Evaluate),
    "classes": ("List the classes of a generator.", Classes),
    "export": ("Write generator and decoder as a pipeline of diffusers.", Export),
}
Options = Train | Sample | Evaluate | Classes | Export


def choose_options(arguments: list[str]) -> tuple[Any, list[str]]:
    """Return the options of ``train``, whose defaults are those of ``--recipe NAME``, or of another command."""
    name = "".join(arguments[:1])
    if name and not name.startswith("-") and name not in ("train", *_COMMANDS):
        refuse("ssdd generate", f"expected a command, found {name!r}; {nearest(name, ('train', *_COMMANDS))}")
    kinds = {each: (text, kind if each == name else Heading) for each, (text, kind) in _COMMANDS.items()}
    summary_of_train, train = "Train a latent DiT on what ssdd tokenize made.", Heading
    if name == "train":
        summary_of_train, train, arguments = _train(arguments)
    return subcommands({"train": (summary_of_train, train), **kinds}), arguments


def _train(arguments: list[str]) -> tuple[str, Any, list[str]]:
    """Return what is said of a recipe, its settings, and the arguments without ``--recipe NAME``."""
    name, rest = "tiny", list(arguments)
    for i, argument in enumerate(arguments):
        if argument.partition("=")[0] == "--recipe":
            name = argument.partition("=")[2] if "=" in argument else "".join(arguments[i + 1 : i + 2])
            del rest[i : i + (1 if "=" in argument else 2)]
            break
    if name not in GENERATION_RECIPES:
        refuse("ssdd generate train", f"expected --recipe NAME, found {name!r}; {nearest(name, GENERATION_RECIPES)}")
    config = GENERATION_RECIPES[name]()
    kind = type("Train", (Train,), {"defaults": config, "__module__": __name__, "__doc__": Train.__doc__})
    recipes = "".join(f"\n  {each:10} {summary(each)}" for each in GENERATION_RECIPES)
    text = f"{Train.__doc__}\n\n--recipe NAME chooses the defaults, here those of {name}:{recipes}"
    return text, kind(config, Path("runs") / f"generate-{name.replace('/', '-')}"), rest


def run(options: Options) -> int:
    if isinstance(options, Train):
        from ..generation.task import train_generator

        recipe, out = options.recipe, options.out
        return run_training("generate", lambda: train_generator(recipe, out))
    if isinstance(options, Classes):
        from ..generation.result import read_facts

        for number, name in enumerate(read_facts(options.run).classes):
            print(f"{number}\t{one_safe_line(name)}")
        return 0
    if isinstance(options, Export):
        from ..generation.pipeline import save_pipeline

        save_pipeline(*options.load(), options.out)
        print(f"diffusers pipeline in {options.out}")
        return 0
    return _sample(options) if isinstance(options, Sample) else _evaluate(options)


_PART_SIZES = {"png": 100, "npz": 250}
_MANY = 256
"""Samples from which on compiling the decoder pays."""


def _sample(options: Sample) -> int:
    """Make this process' parts of the samples; whoever finishes the last part completes the result."""
    from tqdm.auto import tqdm

    from ..generation.evaluation import balanced_labels
    from ..generation.output import FACTS, FILES, GRID, TAR_PART, begin
    from ..generation.result import parse_classes, read_facts
    from ..generation.sampling import generate_images

    rank, processes = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if options.overwrite and processes > 1:
        raise ValueError("expected one process for --overwrite, found several: remove the folder instead")
    sampling = options.sampling(options.guidance)
    labels = balanced_labels(parse_classes(options.classes, read_facts(options.run)), options.count)
    check_outputs(options.out, [GRID, FACTS])
    device = _local_device(options)
    generator, decoder = options.load(device, optimize=options.count >= _MANY)
    guide = options.load_guide(generator)
    grid = generator.latent_grid(options.height, options.width)
    if guide is not None:
        guide.latent_grid(options.height, options.width)
    how = {**_how(sampling, labels), "latent_grid": list(grid)}
    part_size = _PART_SIZES.get(options.format, TAR_PART)
    if options.format == "png":  # its parts need not be the same when more processes go on with them
        part_size = min(part_size, -(-options.count // processes))
    files = FILES[options.format](options.out, labels, part_size)
    begin(
        files,
        {**_models(options, generator, decoder, guide), "format": options.format, **how},
        options.overwrite,
    )
    own = {part: numbers for part in files.parts[rank::processes] if (numbers := files.missing(part))}
    todo = sum(map(len, own.values()))
    if kept := sum(map(len, files.parts[rank::processes])) - todo:
        print(f"{kept:,} samples were there before", file=sys.stderr)
    with tqdm(total=todo, unit="img", disable=rank > 0 or bars_are_off()) as bar:

        def images(numbers: Sequence[int]) -> Iterator[tuple[int, Any]]:
            chosen = [labels[number] for number in numbers]
            batches = generate_images(generator, decoder, chosen, sampling, numbers, options.batch_size, guide, grid)
            for number, image in zip(numbers, itertools.chain.from_iterable(batches), strict=True):
                yield number, image
                bar.update()

        for part, numbers in own.items():
            files.write(part, images(numbers))
    return _finish(options, files)


def _finish(options: Sample, files: "SampleFiles") -> int:
    """Complete the result if all parts are there, which several processes may find at the same time."""
    from ..data.images import save_image
    from ..generation.output import COLUMNS, GRID, ROWS, draw_page

    if missing := sum(bool(files.missing(part)) for part in files.parts):
        print(f"{missing} of {len(files.parts)} parts are still being made by other processes", file=sys.stderr)
        return 0
    with one_after_another(options.out):
        if not (files.is_finished() and (options.out / GRID).exists()):
            files.finish()
            page = draw_page(files.read(min(COLUMNS * ROWS, options.count)))
            save_image(options.out / GRID, page, overwrite=True)
            print(f"{options.count:,} samples as {options.format} and {GRID} in {options.out}")
        elif os.environ.get("WORLD_SIZE", "1") == "1":
            print(f"{options.count:,} samples are in {options.out}")
    return 0


def _evaluate(options: Evaluate) -> int:
    from ..runtime.processes import join_processes

    with join_processes(None if options.device == "auto" else options.torch_device()) as processes:
        return _evaluate_shared(options, processes)


def _evaluate_shared(options: Evaluate, processes: "Processes") -> int:
    from tqdm.auto import tqdm

    from ..data.sources import open_source
    from ..evaluation.protocols import EvaluationSet
    from ..evaluation.results import describe_extractor
    from ..generation import evaluation
    from ..generation.result import parse_classes, read_facts
    from ..runtime.processes import broadcast, check_same
    from .evaluate import LeftOut, load_extractors

    if bool(options.data) == (options.reference is not None):
        found = "both" if options.data else "neither"
        raise ValueError(
            f"expected photographs to compare with, --data, or their statistics, --reference; found {found}"
        )
    if options.out is not None:
        if options.out.suffix != ".json":
            raise ValueError(f"{options.out}: expected --out NAME.json (a plot is NAME.png), found another ending")
        check_outputs(options.out.parent, [options.out.name])
    samplings = [options.sampling(guidance) for guidance in options.guidance]
    facts = read_facts(options.run)
    classes = parse_classes(options.classes, facts)
    source = open_source(options.data).matching(options.only) if options.data else None
    labels, shares = evaluation.balanced_labels(classes, options.count), "the chosen classes in turn"
    if options.shares == "data":
        if source is None or options.classes != ("all",):
            raise ValueError("expected --data and all classes for --shares data")
        counts = evaluation.photograph_classes(source, facts.classes)
        if processes.main and (others := len(source) - counts.total()):
            print(f"{others:,} of {len(source):,} photographs are of no class of the generator", file=sys.stderr)
        labels, shares = evaluation.proportional_labels(counts, options.count, options.seed), "as the photographs"
    generator, decoder = options.load(processes.device, optimize=options.count >= _MANY)
    guide = options.load_guide(generator)
    left_out = LeftOut(options.allow_missing)
    extractors = load_extractors(options.extractors, generator.model.device, left_out)
    if processes.main:
        left_out.say()
    if not extractors:
        raise ValueError("expected at least one feature extractor, found the weights of none")
    models = _models(options, generator, decoder, guide) | evaluation.describe_labels(labels, shares)
    models["sampling"] = {name: value for name, value in samplings[0].describe().items() if name != "guidance"}
    models["extractors"] = [describe_extractor(extractor, options.count) for extractor in extractors]
    check_same(models | {"photographs": None if source is None else len(source)})
    search = evaluation.SearchFile(options.out, models, options.overwrite)
    if processes.main:
        search.check(samplings)  # before any work

    def progress(items: Iterable[Any], total: int) -> Iterable[Any]:
        return tqdm(items, total=total, disable=not processes.main or bars_are_off())

    if source is not None:
        evaluation_set = EvaluationSet(source, evaluation.reference_protocol(evaluation.image_side(generator)))
        reference = evaluation.measure_reference(
            evaluation_set, extractors, options.batch_size, options.workers, progress, processes
        )
    elif options.reference is not None and len(extractors) == 1:
        reference = evaluation.published_reference(options.reference, extractors[0])
    else:
        raise ValueError(f"{options.reference}: expected one extractor in --extractors, whose features it is of")
    results: list[evaluation.GuidedResult] = []
    if processes.main:
        search.facts = evaluation.describe(reference, labels, shares, models)
        results = search.kept()
    for sampling in samplings:
        if broadcast(any(row.sampling == sampling for row in results)):
            continue
        row = evaluation.measure_samples(
            generator, decoder, labels, sampling, reference, options.batch_size, progress, processes, guide
        )
        if row is not None:
            results = search.write([*results, row])
    if not processes.main:
        return 0
    for reason in reference.skipped:
        print(f"skipped {reason}", file=sys.stderr)
    if options.json:
        print_json(search.content(results))
    else:
        print(evaluation.as_text(results, reference, labels, shares))
    return SKIPPED if reference.skipped else 0


def _local_device(options: SampleOptions) -> "torch.device":
    """Return this process' own GPU, where several processes share a machine's."""
    import torch

    device = options.torch_device()
    if device == torch.device("cuda") and "LOCAL_RANK" in os.environ:
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    return device


def _models(
    options: SampleOptions, generator: "Generator", decoder: "LatentDecoder", guide: "Generator | None"
) -> dict[str, Any]:
    """Return what generator, guide and decoder are, by content; the decoder's digest has its steps in it."""
    steps = {} if options.decoding_steps is None else {"decoding_steps": options.decoding_steps}
    return {
        "generator_sha256": generator.digest,
        "guide_sha256": None if guide is None else guide.digest,
        **steps,
        "decoder": decoder.identity.name,
        "decoder_sha256": decoder.sha256,
        "dtype": options.dtype,
        "tokenizer": structs.asdict(generator.facts.tokenizer),
    }


def _how(sampling: "Sampling", labels: Sequence[int | None]) -> dict[str, Any]:
    return {"count": len(labels), "sampling": sampling.describe(), "labels": list(labels)}
