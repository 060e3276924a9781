"""``ssdd generate train | sample | evaluate``: a latent DiT on tokenized data."""

import difflib
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import tyro
from tqdm import tqdm

from ..dtypes import DTYPES, Dtype
from ..files import atomic_path
from ..generation.config import GenerationConfig
from ..recipes.generation import GENERATION_RECIPES, summary
from ..training.config import without_idle
from .common import DEFAULT_MODEL, ModelOptions, check_outputs, parse_options, run_training

if TYPE_CHECKING:
    from ..generation.result import Generator, LatentFacts
    from ..generation.sampling import Sampling

GRID, NPZ, FACTS = "grid.png", "samples.npz", "samples.json"

_USAGE = """usage: ssdd generate train LATENTS [--recipe NAME] [--out RUN] [OPTIONS]
       ssdd generate sample RUN --decoder MODEL [OPTIONS]
       ssdd generate evaluate RUN --decoder MODEL --data PHOTOS... [OPTIONS]

Train a class-conditional DiT on latents that `ssdd tokenize` made, sample it, measure the samples.

recipes of train:
{recipes}

ssdd generate COMMAND --help lists the options of each. Training resumes when its command is run again."""


@dataclass(frozen=True)
class Train:
    """The settings of a recipe, and the folder of the run."""

    recipe: Annotated[GenerationConfig, tyro.conf.arg(name="")]
    out: Path
    """Folder of the run."""


@dataclass(frozen=True)
class SampleOptions:
    """What sampling and evaluation share."""

    run: tyro.conf.Positional[str]
    """Folder of a finished run, or its model/."""
    decoder: str = DEFAULT_MODEL
    """The model that tokenized the data: embedded name, folder, run, or Hugging Face id."""
    classes: str = "all"
    """Numbers or names, such as 1,2,ibis; samples take them in turn."""
    steps: int = 50
    """Steps of the sampler."""
    sampler: Literal["euler", "heun"] = "euler"
    """heun calls the network twice a step, and is of second order."""
    interval: str = "0,1"
    """Times from 0, the image, to 1, noise, between which there is guidance."""
    seed: int = 0
    """Of the noise, with the number of the sample."""
    batch_size: int = 32
    """Samples at a time; no sample depends on it."""
    overwrite: bool = False
    """Replace existing files."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda, cuda:1, ..."""
    dtype: Dtype = "fp32"
    """Precision of both networks."""

    def sampling(self, guidance: float) -> "Sampling":
        """Raises ValueError for numbers out of range."""
        from ..generation.sampling import Sampling

        low, high = _numbers(self.interval, "--interval like 0.1,0.9", 2)
        return Sampling(self.steps, guidance, (low, high), self.sampler, self.seed)

    def load(self) -> "tuple[Generator, Any]":
        """Generator and decoder, which fit. Raises OSError or ValueError with one line."""
        from ..generation.decoding import load_decoder
        from ..generation.result import load_generator

        device = ModelOptions(device=self.device).torch_device()
        generator = load_generator(self.run, device, DTYPES[self.dtype])
        decoder = load_decoder(self.decoder, device, DTYPES[self.dtype])
        generator.facts.check_decoder(decoder)
        return generator, decoder


@dataclass(frozen=True)
class Sample(SampleOptions):
    """Samples as PNG files and a page of them, or as one .npz in the format of the ADM evaluator."""

    count: int = 16
    """Samples."""
    guidance: float = 4.0
    """Scale of classifier-free guidance; 1 for none."""
    out: Path = Path("samples")
    """Folder for the results."""
    npz: bool = False
    """samples.npz (arr_0: images, arr_1: classes) instead of PNG files."""


@dataclass(frozen=True)
class Evaluate(SampleOptions):
    """Samples against photographs: FID, KID, precision, recall, density, coverage; a search over guidance."""

    data: tuple[str, ...] = ()
    """Photographs: folders, uncompressed tar files, hf:OWNER/NAME[:SPLIT]."""
    only: str | None = None
    """Only photographs whose name fits a pattern like 'caltech101/*', as for ssdd tokenize."""
    count: int = 1000
    """Samples for each guidance."""
    guidance: str = "4"
    """Scale of classifier-free guidance, or several such as 1,1.5,2,3 to search."""
    extractors: tuple[str, ...] | None = None
    """Feature extractors, as of ssdd evaluate. By default inception-torch-fidelity (FID is on its features alone) and
    mobilenet_v2-imagenet, where their weights can be had."""
    allow_missing: bool = False
    """Leave out, with a line, extractors that were asked for and cannot be had."""
    out: Path | None = None
    """JSON file for every number and the protocol."""
    workers: int = 2
    """Processes that read photographs."""


def parse(arguments: Sequence[str]) -> Train | Sample | Evaluate:
    """``train | sample | evaluate``, then their options. Wrong usage exits with status 2."""
    command, rest = (arguments[0], list(arguments[1:])) if arguments else ("", [])
    if command == "train":
        return _parse_train(rest)
    if command in ("sample", "evaluate"):
        options: type[Sample] | type[Evaluate] = Sample if command == "sample" else Evaluate
        return parse_options(options, f"generate {command}", rest)
    if command not in ("", "-h", "--help"):
        _wrong_usage(f"expected train, sample or evaluate, found {command!r}")
    print(_USAGE.format(recipes="\n".join(f"  {name:10} {summary(name)}" for name in GENERATION_RECIPES)))
    raise SystemExit(0 if command else 2)


def _parse_train(arguments: list[str]) -> Train:
    """``--recipe NAME`` comes first: the defaults of all other options are its."""
    name, rest = "tiny", list(arguments)
    for i, argument in enumerate(arguments):
        if argument.partition("=")[0] == "--recipe":
            value = argument.partition("=")[2:] if "=" in argument else tuple(arguments[i + 1 : i + 2])
            name = value[-1] if value else ""
            del rest[i : i + (1 if "=" in argument else 2)]
            break
    if name not in GENERATION_RECIPES:
        near = difflib.get_close_matches(name, GENERATION_RECIPES, n=1)
        hint = f"; did you mean {near[0]}?" if near else f", one of {', '.join(GENERATION_RECIPES)}"
        _wrong_usage(f"expected --recipe NAME{hint}, found {name!r}")
    default = Train(GENERATION_RECIPES[name](), Path("runs") / f"generate-{name.replace('/', '-')}")
    description = f"--recipe {name} (one of {', '.join(GENERATION_RECIPES)}): {summary(name)}"
    options = tyro.cli(Train, prog="ssdd generate train", args=rest, default=default, description=description)
    try:
        return replace(options, recipe=without_idle(options.recipe, default.recipe))
    except ValueError as error:
        _wrong_usage(str(error))


def _wrong_usage(message: str) -> NoReturn:
    print(f"ssdd generate: error: {message}", file=sys.stderr)
    raise SystemExit(2)


def run(options: Train | Sample | Evaluate) -> int:
    if isinstance(options, Train):
        from ..generation.task import train_generator

        recipe, out = options.recipe, options.out
        return run_training("generate", lambda: train_generator(recipe, out))
    return _sample(options) if isinstance(options, Sample) else _evaluate(options)


def _sample(options: Sample) -> int:
    from ..data.images import save_image
    from ..generation.evaluation import balanced_labels, image_side
    from ..generation.output import png_name, write_npz, write_pngs
    from ..generation.sampling import generate_images

    if options.count < 1:
        raise ValueError(f"expected a count of at least 1, found {options.count}")
    files = [NPZ] if options.npz else [png_name(i) for i in range(options.count)]
    names = [*files, GRID, FACTS]
    check_outputs(options.out, names, [] if options.overwrite else names)
    sampling = options.sampling(options.guidance)
    generator, decoder = options.load()
    labels = balanced_labels(_classes(options.classes, generator.facts), options.count)
    batches = generate_images(generator, decoder, labels, sampling, batch_size=options.batch_size)
    shown = _progress(batches, -(-options.count // options.batch_size))
    if options.npz:
        side = image_side(generator, decoder)
        page = write_npz(options.out / NPZ, shown, labels, side, options.overwrite)
    else:
        page = write_pngs(options.out, shown, options.overwrite)
    save_image(options.out / GRID, page.draw(), overwrite=options.overwrite)
    facts = {**_models(options, generator), "sampling": sampling.describe(), "labels": labels}
    with atomic_path(options.out / FACTS, options.overwrite) as path:
        path.write_text(json.dumps(facts, indent=1) + "\n")
    print(f"{options.count} samples, {NPZ if options.npz else 'PNG files'} and {GRID} in {options.out}")
    return 0


def _evaluate(options: Evaluate) -> int:
    from ..data.sources import open_source
    from ..evaluation.protocols import EvaluationSet
    from ..generation import evaluation
    from .evaluate import LeftOut, load_extractors

    if not options.data:
        raise ValueError("expected photographs to compare with: pass --data FOLDER_OR_TAR ...")
    if options.out is not None:
        check_outputs(options.out.parent, [options.out.name], [] if options.overwrite else [options.out.name])
    guidances = _numbers(options.guidance, "--guidance like 1,1.5,2,3")
    sampling = options.sampling(guidances[0])
    if options.count < 2:
        raise ValueError(f"expected a count of at least 2, found {options.count}")
    generator, decoder = options.load()
    labels = evaluation.balanced_labels(_classes(options.classes, generator.facts), options.count)
    left_out = LeftOut(options.allow_missing)
    extractors = load_extractors(options.extractors, generator.model.device, left_out)
    left_out.say()
    if not extractors:
        raise ValueError("expected at least one feature extractor, found the weights of none")
    protocol = evaluation.reference_protocol(evaluation.image_side(generator, decoder))
    evaluation_set = EvaluationSet(open_source(options.data).matching(options.only), protocol)
    reference = evaluation.measure_reference(evaluation_set, extractors, options.batch_size, options.workers, _progress)
    results = evaluation.measure_samples(
        generator, decoder, labels, sampling, guidances, reference, options.batch_size, _progress
    )
    for skipped in reference.census.skipped:
        print(f"skipped {skipped.reason}", file=sys.stderr)
    print(evaluation.as_text(results, reference, labels))
    if options.out is not None:
        content = evaluation.as_dict(results, reference, labels, _models(options, generator))
        with atomic_path(options.out, options.overwrite) as path:
            path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
    return 1 if reference.census.skipped else 0


def _progress(items: Iterable[Any], total: int) -> Iterable[Any]:
    return tqdm(items, total=total)


def _models(options: SampleOptions, generator: "Generator") -> dict[str, Any]:
    return {
        "generator": options.run,
        "decoder": options.decoder,
        "dtype": options.dtype,
        "tokenizer": generator.facts.tokenizer,
    }


def _classes(text: str, facts: "LatentFacts") -> list[int]:
    """Numbers of the classes that ``--classes`` names. Raises ValueError for one that there is not."""
    if text == "all":
        return list(range(len(facts.classes)))
    found = []
    for part in (part.strip() for part in text.split(",")):
        if part in facts.classes:
            found.append(facts.classes.index(part))
        elif part.lstrip("-").isdecimal():
            found.append(int(part))
        else:
            raise ValueError(f"expected --classes all, or numbers or names of classes, found {part!r}")
    facts.check_labels(found)
    return found


def _numbers(text: str, expected: str, count: int | None = None) -> list[float]:
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(f"expected {expected}, found {text!r}") from error
    if count is not None and len(found) != count:
        raise ValueError(f"expected {expected}, found {text!r}")
    return found
