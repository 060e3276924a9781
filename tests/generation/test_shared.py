"""One generator for several processes and for diffusers: samples are shared, gone on with, and the same everywhere."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from PIL import Image

from ssdd.checkpoints.adapters import Interface
from ssdd.checkpoints.identity import identify
from ssdd.evaluation.decoders import load_decoder
from ssdd.generation.model import build_dit
from ssdd.generation.pipeline import LatentDiffusionPipeline, save_pipeline
from ssdd.generation.result import Generator, LatentFacts, load_generator, save_generator
from ssdd.generation.sampling import Sampling, generate_images
from tests.generation.latents import STATISTICS
from tests.process import ranks, start


def save_random_generator(folder: Path, tokenizer: Path) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_dit("tiny/2", (4, 4, 4), 2).eval()
        for parameter in model.parameters():
            parameter.data += torch.randn_like(parameter) * 0.02
    statistics = {**STATISTICS, "latents_convention": "measured"}
    facts = LatentFacts((4, 4, 4), ("cats", "dogs"), statistics, identify(str(tokenizer)))
    save_generator(Generator(model, facts), folder)
    return folder


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    return save_random_generator(tmp_path_factory.mktemp("generator") / "model", tiny_model)


def run(processes: int, *arguments: object) -> str:
    """What ``ssdd generate`` prints on standard output and standard error."""
    ended = ranks("generate", *arguments, count=processes)
    printed = "".join(one.out + one.err for one in ended)
    assert all(one.status == 0 for one in ended), printed
    return printed


def images(folder: Path) -> dict[str, np.ndarray]:
    return {path.name: np.asarray(Image.open(path)) for path in sorted(folder.glob("0*.png"))}


@pytest.mark.slow
def test_two_processes_share_the_samples(saved: Path, tmp_path: Path) -> None:
    """Each made all of them, and one ended with an error."""
    options = ("--count", 205, "--steps", 1, "--batch-size", 16)  # three parts
    assert run(2, "sample", saved, "--out", tmp_path / "two", *options).count("205 samples as png") == 1
    run(1, "sample", saved, "--out", tmp_path / "one", *options)
    one, two = images(tmp_path / "one"), images(tmp_path / "two")
    assert one.keys() == two.keys()
    assert len(one) == 205
    assert all(np.abs(one[name].astype(int) - two[name]).max() <= 1 for name in one), "other samples"
    facts = [json.loads((tmp_path / name / "samples.json").read_text()) for name in ("one", "two")]
    assert facts[0] == facts[1]


@pytest.mark.slow
def test_killed_sampling_goes_on(saved: Path, tmp_path: Path) -> None:
    options = ("sample", saved, "--count", 750, "--steps", 1, "--out", tmp_path / "out", "--format", "npz")
    process = start("generate", *options)
    process.until(lambda: bool(list(tmp_path.glob("out/.parts/0*.npy"))), 240)
    process.send(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "out" / "samples.npz").exists(), "killed too late to see anything"
    kept = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("out/.parts/0*.npy")}
    assert f"{250 * len(kept)} samples were there before" in run(1, *options)
    with np.load(tmp_path / "out" / "samples.npz") as found:
        assert found["arr_0"].shape == (750, 32, 32, 3)
        assert found["arr_1"].tolist() == [0, 1] * 375
    assert not (tmp_path / "out" / ".parts").exists()


@pytest.mark.slow
def test_two_processes_measure_what_one_does(
    saved: Path, tmp_path: Path, picture: Callable[..., np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(9):
        (tmp_path / "photos").mkdir(exist_ok=True)
        Image.fromarray(picture(40, 40, i)).save(tmp_path / "photos" / f"{i}.png")
    home = os.environ.get("TORCH_HOME", "")
    if not list(Path(home).glob("hub/checkpoints/mobilenet_v2-*.pth")):
        pytest.skip("no weights of MobileNetV2 in TORCH_HOME")
    options = ("--data", tmp_path / "photos", "--count", 10, "--steps", 2, "--guidance", 1, 3, "--batch-size", 4)
    options += ("--extractors", "mobilenet_v2-imagenet", "--workers", 0)
    tables = []
    for processes in (1, 2):
        printed = run(processes, "evaluate", saved, *options, "--out", tmp_path / f"{processes}.json")
        tables.append(json.loads((tmp_path / f"{processes}.json").read_text()))
        assert printed.count("best guidance by FD") == 1, "each process prints a table"
    assert tables[0]["reference"] == tables[1]["reference"]
    for one, two in zip(tables[0]["rows"], tables[1]["rows"], strict=True):
        for name, value in one["distances"]["mobilenet_v2-imagenet"].items():
            assert two["distances"]["mobilenet_v2-imagenet"][name] == pytest.approx(value, rel=0.02, abs=0.02), name


@pytest.mark.parametrize("kind", ["ssdd", "kl"])
def test_pipeline_of_diffusers_gives_our_samples(kind: str, tiny_model: Path, tmp_path: Path) -> None:
    tokenizer = tiny_model
    if kind == "kl":
        blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
        tokenizer = tmp_path / "kl"
        AutoencoderKL(**blocks, block_out_channels=(32,) * 4, layers_per_block=2).save_pretrained(tokenizer)
    generator = load_generator(save_random_generator(tmp_path / "model", tokenizer))
    decoder = load_decoder(str(tokenizer))
    save_pipeline(generator, decoder, tmp_path / "pipeline")
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "pipeline", trust_remote_code=True)
    sampling = Sampling(steps=3, guidance=2.0, sampler="heun", seed=5)
    (expected,) = generate_images(generator, decoder, [1, 0, None], sampling)
    options = {"num_inference_steps": 3, "guidance_scale": 2.0, "sampler": "heun", "seed": 5}
    found = pipeline(["dogs", 0, None], **options, output_type="np").images
    assert np.abs(found.astype(int) - expected).max() <= 1
    assert pipeline("cat", num_inference_steps=1).images[0].size == (32, 32)
    with pytest.raises(ValueError, match="expected classes from 0 to 1, found 2"):
        pipeline([2])
    if kind == "kl":
        decoder.model.interface = Interface(frames=True)  # Qwen-Image's: the pipeline would give it latents without
        with pytest.raises(
            ValueError, match="expected a decoder that is called as an AutoencoderKL, found AutoencoderKL"
        ):
            save_pipeline(generator, decoder, tmp_path / "other")


@pytest.fixture(scope="module")
def kl_pipeline(tmp_path_factory: pytest.TempPathFactory) -> LatentDiffusionPipeline:
    """A pipeline around a KL-VAE, which says force_upcast."""
    folder = tmp_path_factory.mktemp("pipeline")
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    vae = AutoencoderKL(**blocks, block_out_channels=(32,) * 4, layers_per_block=2)
    vae.save_pretrained(folder / "kl")
    generator = load_generator(save_random_generator(folder / "model", folder / "kl"))
    return LatentDiffusionPipeline(generator.model, vae, msgspec.to_builtins(generator.facts))


def test_pipeline_makes_an_image_of_every_class(kl_pipeline: LatentDiffusionPipeline) -> None:
    """Of "all" it took the first class alone."""
    options = {"num_inference_steps": 1, "output_type": "latent"}
    found = kl_pipeline("all", **options).images
    assert torch.equal(found, kl_pipeline(["cats", "dogs"], **options).images)
    assert torch.equal(found, kl_pipeline(np.array([0, 1]), **options).images)
    with pytest.raises(ValueError, match="expected a list of classes, one for each image, found 3"):
        kl_pipeline(3)  # type: ignore[arg-type]


def test_pipeline_decodes_in_batches(kl_pipeline: LatentDiffusionPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """All images at once took memory without a bound."""
    sizes, decode = [], kl_pipeline.vae.decode
    monkeypatch.setattr(kl_pipeline.vae, "decode", lambda z: sizes.append(len(z)) or decode(z))
    options = {"num_inference_steps": 1, "output_type": "np"}
    images = kl_pipeline([0, 1] * 20, **options).images
    assert sizes == [32, 8]
    np.testing.assert_allclose(kl_pipeline([0, 1, 0], **options, batch_size=2).images, images[:3], atol=1)
    assert sizes[2:] == [2, 1]
    with pytest.raises(ValueError, match="expected a batch_size of at least 1, found 0"):
        kl_pipeline([0], batch_size=0)


@pytest.mark.parametrize("upcast", [True, False])
def test_pipeline_honours_force_upcast(
    kl_pipeline: LatentDiffusionPipeline, monkeypatch: pytest.MonkeyPatch, upcast: bool
) -> None:
    """The VAE of SDXL overflows in float16."""
    dtypes, vae = [], kl_pipeline.vae
    monkeypatch.setattr(vae, "decode", lambda z: dtypes.append(z.dtype) or SimpleNamespace(sample=z[:, :3]))
    force_upcast = vae.config.force_upcast
    vae.half().register_to_config(force_upcast=upcast)
    kl_pipeline._decode(torch.zeros(1, 4, 4, 4), batch_size=1)
    assert (dtypes, vae.dtype) == ([torch.float32 if upcast else torch.float16], torch.float16)
    vae.float().register_to_config(force_upcast=force_upcast)
