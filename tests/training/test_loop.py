"""The loop: it learns, writes a model that loads, leaves what a person looks at, and refuses what cannot work."""

import dataclasses
import json
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

from ssdd import AutoencoderSSDD
from ssdd.nn.fast import norm_compiled
from ssdd.training import state
from ssdd.training.config import FlowConfig, TrainConfig, to_json
from ssdd.training.loop import train
from tests.training.runs import exported, figures, stats

Small = Callable[..., TrainConfig]

NO_GAN = ("--loss.adversarial", "0")


def validated(photographs: Path) -> tuple[str, ...]:
    """Return the options of a validation on six photographs."""
    return ("--validation.paths", str(photographs), "--validation.count", "6")


def test_flow_run_leaves_what_a_person_wants(
    small: Small, photographs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A model that loads, with its latents' statistics, and a record of how it came about."""
    run = tmp_path / "run"
    with caplog.at_level("INFO"):
        model = train(small("--log.sample-images", "12", "--log.sample-count", "3", *validated(photographs)), run)
    ae = AutoencoderSSDD.from_pretrained(model)
    assert (ae.config.sample_size, ae.config.num_inference_steps) == (16, 8)
    single = small("--one-step-share", "0.5").build_stage(objectives=False)
    assert single.default_steps == 1, "a model that was trained for one step too takes eight"
    z = ae.normalize_latents(ae.encode(torch.rand(4, 3, 16, 16) * 2 - 1).latent_dist.mode())
    assert 0.2 < z.std() < 5, "the stored statistics don't normalise the latents"

    lines = [json.loads(line) for line in (run / "stats.jsonl").read_text().splitlines()]
    assert [line["images"] for line in lines] == [8, 16, 24]
    expected = {"total", "flow", "kl", "gradient", "learning_rate", "images_per_second", "utilisation"}
    assert expected | {"skipped_updates", "broken_images"} <= lines[0].keys()
    assert all(0 < line["utilisation"] < 1 for line in lines)

    assert "trained and 0 frozen parameters" in caplog.text, "the start says nothing about the model's size"
    assert "GFLOP a training image" in caplog.text
    environment = json.loads((run / "environment.jsonl").read_text())
    assert environment["packages"]["torch"] == torch.__version__.split("+")[0] or environment["packages"]["torch"]
    assert environment["processes"] == 1
    assert json.loads((run / "config.json").read_text())["batch_size"] == 4
    assert sorted(p.name for p in (run / "samples").iterdir()) == ["000000000012.png", "000000000024.png"]
    grid = Image.open(run / "samples" / "000000000024.png")
    assert grid.size == (3 * 16 + 2 * 4, 3 * 16 + 2 * 4), "expected originals, 1 step and 8 steps of three images"


@pytest.mark.slow
def test_tensorboard_scalars_and_pictures(small: Small, photographs: Path, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    train(small("--log.sample-images", "12", "--validation.images", "12", *validated(photographs)), tmp_path / "run")
    events = accumulator.EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert [e.step for e in events.Scalars("total")] == [8, 16, 24], "the clock is not images seen"
    assert [e.step for e in events.Scalars("validation/psnr_8")] == [12, 24]
    assert [e.step for e in events.Images("samples")] == [12, 24]


@pytest.mark.parametrize("failure", ["at its import", "later"])
def test_a_broken_tracker_is_left_out(
    failure: str, small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A protobuf that does not fit raises TypeError at the import, and ends a training for the sake of its curves."""
    raises = "raise TypeError('Descriptors cannot be created directly')"
    content = {
        "at its import": raises,
        "later": f"Image = object\ndef init(**_): pass\ndef log(*_, **__): {raises}\ndef finish(): {raises}",
    }[failure]
    (tmp_path / "wandb.py").write_text(content)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    train(small("--log.to", "wandb", "--total-images", "8"), tmp_path / "run")
    sys.modules.pop("wandb", None)
    assert (tmp_path / "run" / "model").is_dir()
    assert [line["images"] for line in stats(tmp_path / "run")] == [8]
    assert caplog.text.count("wandb is left out: Descriptors cannot be created directly") == 1


def test_tensorboard_that_cannot_be_imported(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "tensorboard.py").write_text("raise SystemError('built for another Python')")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in sys.modules if name.split(".")[0] == "tensorboard" or "utils.tensorboard" in name]:
        monkeypatch.delitem(sys.modules, name)
    train(small("--total-images", "8"), tmp_path / "run")
    assert "tensorboard is left out: built for another Python" in caplog.text


def test_training_learns(small: Small, start: tuple[str, ...], tmp_path: Path) -> None:
    """The loss does not fall: a sign, a detached tensor, a step that isn't taken."""
    options = (*start, "--optimizer.learning-rate", "2e-3", "--total-images", "640", "--batch-size", "8")
    train(small(*options, "--log.stats-images", "128", "--log.checkpoint-images", "1000"), tmp_path / "run")
    lines = stats(tmp_path / "run")
    assert lines[-1]["flow"] < 0.6 * lines[0]["flow"], [line["flow"] for line in lines]


def test_kl_vae_then_frozen_encoder(small: Small, tmp_path: Path) -> None:
    """The second stage must take the first one's encoder and statistics, bit for bit, and leave them alone."""
    train(small(*NO_GAN, recipe="tiny-kl-vae"), tmp_path / "encoder")
    vae = AutoencoderKL.from_pretrained(tmp_path / "encoder" / "model", low_cpu_mem_usage=False)
    options = ("--encoder", str(tmp_path / "encoder"))
    ae = AutoencoderSSDD.from_pretrained(train(small(*options, recipe="tiny-pretraining"), tmp_path / "decoder"))
    x = torch.rand(1, 3, 16, 16) * 2 - 1
    torch.testing.assert_close(ae.encode(x).latent_dist.mean, vae.encode(x).latent_dist.mean, atol=1e-5, rtol=1e-5)
    for ours, theirs in (("conv_in.weight", "encoder.conv_in.weight"), ("moments.bias", "quant_conv.bias")):
        assert torch.equal(ae.encoder.state_dict()[ours], vae.state_dict()[theirs])
    assert ae.config.scaling_factor == vae.config.scaling_factor, "the latents are the same, their statistics are not"
    names = load_file(sorted((tmp_path / "decoder" / "checkpoints").iterdir())[-1] / "model.safetensors").keys()
    assert not [n for n in names if not n.startswith("decoder.")], "a frozen network is in the checkpoint"


@pytest.mark.slow
def test_start_from_another_run(small: Small, tmp_path: Path) -> None:
    """Fine-tuning would start from random weights."""
    first = train(small(), tmp_path / "first")
    options = ("--model.start-from", str(tmp_path / "first"), "--optimizer.learning-rate", "0")
    second = train(small(*options), tmp_path / "second")
    a, b = AutoencoderSSDD.from_pretrained(first), AutoencoderSSDD.from_pretrained(second)
    assert all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


def test_other_settings_in_the_same_folder_are_refused(small: Small, tmp_path: Path) -> None:
    """Two experiments would be mixed in one folder."""
    train(small("--total-images", "4"), tmp_path / "run")
    with pytest.raises(ValueError, match=r"other settings \(seed: 0 -> 1; total_images: 4 -> 8\)"):
        train(small("--total-images", "8", "--seed", "1"), tmp_path / "run")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(ValueError, match="found other files"):
        train(small(), tmp_path / "mine")


@pytest.mark.parametrize(
    ("recipe", "options", "message"),
    [
        ("tiny-pretraining", ("--encoder", "f8c4"), "a frozen encoder must come from somewhere"),
        ("tiny-encoder", ("--data.resolution", "18"), "multiple of the encoder's factor 4, found 18"),
        ("tiny-pretraining", ("--encoder", "nowhere"), "nowhere: expected"),
        ("tiny-encoder", ("--model.decoder", "XXL"), "expected a decoder size"),
        ("tiny-kl-vae", ("--data.resolution", "18", *NO_GAN), "multiple of the encoder's factor 4"),
        ("tiny-kl-vae", ("--loss.adversarial", "0.5"), "a PatchGAN needs 24 pixels"),
        ("tiny-encoder", ("--parallel", "fsdp"), "expected several processes for --parallel fsdp"),
        ("tiny-encoder", ("--validation.paths", "nowhere", "--validation.count", "8"), "nowhere: expected"),
        ("tiny-finetuning", ("--model.start-from", "runs/nowhere"), "runs/nowhere: .* train nowhere first"),
    ],
)
def test_what_cannot_start_leaves_nothing(
    small: Small, tmp_path: Path, recipe: str, options: tuple[str, ...], message: str
) -> None:
    """One line, and no folder in the way of the next try."""
    with pytest.raises((ValueError, OSError), match=message):
        train(small(*options, recipe=recipe), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_names_that_contradict_the_start_are_refused(small: Small, tmp_path: Path) -> None:
    """A run called f16c4-S that trains f8c4-B because its start was one."""
    train(small("--total-images", "4"), tmp_path / "first")
    start = ("--model.start-from", str(tmp_path / "first"))
    with pytest.raises(ValueError, match="expected an encoder f16c4, found f4c4"):
        train(small(*start, "--encoder", "f16c4"), tmp_path / "run")
    with pytest.raises(ValueError, match="expected a decoder of size S"):
        train(small(*start, "--model.decoder", "S"), tmp_path / "run")


def test_diverged_run_stops_with_what_it_saw(small: Small, tmp_path: Path) -> None:
    """A run that has gone to NaN must not go on for days, nor keep its ruined weights as a checkpoint."""
    options = ("--optimizer.learning-rate", "1e30", "--optimizer.clip", "1e30", "--optimizer.warmup-images", "0")
    options += ("--log.sample-images", "8", "--validation.count", "1", "--validation.share", "0.1")  # of NaN
    more = ("--total-images", "400", "--nonfinite-limit", "3", "--log.checkpoint-images", "100")
    with pytest.raises(FloatingPointError, match="updates in a row had a loss or gradient that is not finite"):
        train(small(*options, *more), tmp_path / "run")
    report = json.loads((tmp_path / "run" / "nonfinite" / "report.json").read_text())
    assert report["in_a_row"] >= 3
    assert report["skipped_updates"] >= 3
    images = load_file(tmp_path / "run" / "nonfinite" / "images.safetensors")["images"]
    assert images.shape == (4, 3, 16, 16)
    assert images.dtype == torch.uint8
    assert (tmp_path / "run" / "nonfinite" / "model.safetensors").is_file()
    assert not list((tmp_path / "run").glob("checkpoints/*")), "ruined weights are a checkpoint to resume from"


@pytest.mark.parametrize(("bad", "counted"), [(4, [0, 1, 1]), (7, [0, 0, 1])])
def test_single_bad_batch_is_skipped_and_counted(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: int, counted: list[int]
) -> None:
    """One batch that gives NaN ends a run of days, or goes by unnoticed."""
    build, calls = FlowConfig.build_stage, 0

    def poisoned(config: FlowConfig) -> object:
        stage = build(config)
        losses = stage.losses

        def third_is_nan(*args: object, **kwargs: object) -> object:
            nonlocal calls
            calls += 1
            found = losses(*args, **kwargs)  # type: ignore[arg-type]
            if calls != bad:  # the first call counts operations; the seventh is the last update
                return found
            return dataclasses.replace(found, total=found.total * float("nan"))

        stage.losses = third_is_nan  # type: ignore[method-assign]
        return stage

    monkeypatch.setattr(FlowConfig, "build_stage", poisoned)
    train(small(), tmp_path / "run")
    lines = stats(tmp_path / "run")
    assert [line["skipped_updates"] for line in lines] == counted
    assert all(line["total"] == line["total"] for line in lines), "the mean of the interval is NaN"
    assert "NaN" not in (tmp_path / "run" / "stats.jsonl").read_text(), "sizes of parts of a bad update"
    assert all(w.isfinite().all() for w in exported(tmp_path / "run").values())


def test_divergence_in_the_last_interval(small: Small, tmp_path: Path) -> None:
    """A run shorter than a log interval ends with status 0 and a model of NaN."""
    options = ("--optimizer.learning-rate", "1e30", "--optimizer.clip", "1e30", "--optimizer.warmup-images", "0")
    with pytest.raises(FloatingPointError, match="not finite"):
        train(small(*options, "--log.stats-images", "1000"), tmp_path / "run")
    assert not (tmp_path / "run" / "model").exists()


def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole networks are compiled."""
    monkeypatch.setattr(state, "can_compile", lambda device: True)
    compile_networks = state.compile_networks
    monkeypatch.setattr(
        state, "compile_networks", lambda stage, config, _: compile_networks(stage, config, torch.device("cuda"))
    )


@pytest.mark.parametrize("recipe", ["tiny-encoder", "tiny-kl-vae"])
def test_compiling_without_a_compiler(small: Small, tmp_path: Path, recipe: str, no_compiler: None) -> None:
    """A training on a machine without g++ ends at its first update."""
    with pytest.warns(UserWarning, match=r"torch\.compile does not work here"):
        train(small("--compile", "--total-images", "8", *NO_GAN, recipe=recipe), tmp_path / "run")
    assert (tmp_path / "run" / "model").is_dir()


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["tiny-encoder", "tiny-kl-vae"])
def test_compiled_run_is_the_same_run(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: str
) -> None:
    """Compiling changes names in checkpoints, breaks the second backward pass of the adaptive weight, or the result."""
    options = ("--data.resolution", "32", "--loss.adversarial", "0.5", "--loss.adversarial-from-images", "0")
    # Rounding decides the sign of Adam's first step where a gradient is next to nothing: a small one.
    options += ("--total-images", "8", "--log.stats-images", "4", "--optimizer.learning-rate", "1e-4")
    train(small(*options, recipe=recipe), tmp_path / "eager")
    as_on_a_gpu(monkeypatch)
    compile_module = torch.nn.Module.compile
    # the backend that traces and differentiates, but generates no code: the part that a change here can break
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compile_module(self, backend="aot_eager"))
    train(small(*options, "--compile", recipe=recipe), tmp_path / "compiled")
    torch._dynamo.reset()
    for a, b in zip(figures(tmp_path / "eager"), figures(tmp_path / "compiled"), strict=True):
        assert b == pytest.approx(a, rel=1e-3)
    assert exported(tmp_path / "eager").keys() == exported(tmp_path / "compiled").keys()


@pytest.mark.slow
def test_compiled_norms_give_the_same_run(small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU, where whole networks are not compiled."""
    options = ("--data.resolution", "32", "--total-images", "16", "--log.stats-images", "8")
    monkeypatch.setattr(torch.nn.Module, "compile", None)
    train(small(*options), tmp_path / "eager")
    taken: list[torch.Size] = []
    forward = norm_compiled.norm_silu
    monkeypatch.setattr(norm_compiled, "norm_silu", lambda x, *rest: taken.append(x.shape) or forward(x, *rest))
    train(small(*options, "--compile"), tmp_path / "compiled")
    assert taken
    for a, b in zip(figures(tmp_path / "eager"), figures(tmp_path / "compiled"), strict=True):
        assert b == pytest.approx(a, rel=1e-3)


class NoticeReading(TorchDispatchMode):
    """Notes where the host asks a tensor for its value, which makes it wait for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.places: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func is torch.ops.aten._local_scalar_dense.default:
            place = [f for f in traceback.extract_stack() if "/ssdd/" in f.filename][-1]
            self.places.append(f"{place.filename}:{place.lineno} {place.line}")
        return func(*args, **(kwargs or {}))


@pytest.mark.slow
def test_host_reads_the_device_at_log_steps_only(small: Small, tmp_path: Path) -> None:
    """An ``item()`` in the step makes a GPU idle in every update."""
    readings = []
    for updates in (4, 8):  # one log step in each
        options = ("--total-images", str(4 * updates), "--log.stats-images", str(4 * updates))
        with NoticeReading() as notice:
            train(small(*options, "--optimizer.name", "adamw"), tmp_path / str(updates))
        readings.append(notice.places)
    assert len(readings[0]) == len(readings[1]), f"more updates, more readings: {set(readings[1])}"


def test_run_that_never_started_takes_other_settings(small: Small, tmp_path: Path) -> None:
    """A first command that failed before its first checkpoint stands in the way of the corrected one."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(to_json(small("--seed", "3")))
    train(small("--total-images", "4"), tmp_path / "run")
    assert json.loads((tmp_path / "run" / "config.json").read_text())["seed"] == 0
