"""Training a DiT: it learns, resumes exactly, leaves a folder that loads, and refuses what cannot work."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ssdd.checkpoints.identity import LatentIdentity, identify
from ssdd.generation import task
from ssdd.generation.config import GenerationConfig
from ssdd.generation.data import LatentStream, latent_batches
from ssdd.generation.model import null_class
from ssdd.generation.result import load_generator
from ssdd.generation.stage import LatentStage
from ssdd.generation.task import export_generator
from ssdd.training.checkpoint import read_checkpoint
from ssdd.training.config import LogConfig, differences, to_json
from ssdd.training.export import find_checkpoint
from ssdd.training.random import BatchRandom
from ssdd.training.watch import TrainingStopped
from tests.generation.conftest import SMALL, stop_third_update
from tests.generation.latents import STATISTICS, MemoryLatents, random_latents, two_classes
from tests.training.runs import figures, newest, stats

Train = Callable[..., Path]
CPU = torch.device("cpu")
MUON = replace(SMALL.optimizer, name="muon")


def draws(count: int) -> BatchRandom:
    return BatchRandom(0, 0, count, CPU)


def test_loss_decreases_on_two_classes(two: Path) -> None:
    lines = stats(two)
    assert lines[-1]["flow"] < 0.2 * lines[0]["flow"], [line["flow"] for line in lines]
    assert {"total", "flow", "gradient", "learning_rate", "skipped_updates"} <= lines[0].keys()


@pytest.mark.parametrize("network", ["dit", "lightning"])
def test_each_network_learns(train: Train, tmp_path: Path, network: str) -> None:
    """As ``two`` does, in a third of its time; the folder of the run loads."""
    optimizer = replace(SMALL.optimizer, learning_rate=3e-3)
    log = LogConfig(stats_images=160, sample_images=0, checkpoint_images=960)
    settings = {"network": network, "total_images": 960, "batch_size": 16, "optimizer": optimizer, "log": log}
    train(tmp_path / "run", two_classes(), **settings)
    losses = [line["flow"] for line in stats(tmp_path / "run")]
    assert losses[-1] < 0.35 * losses[0], losses
    config = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert (config["_class_name"], config["rope"]) == ("LatentTransformer", network == "lightning")
    assert load_generator(tmp_path / "run").facts.classes == ("plus", "minus")


@pytest.mark.parametrize(
    ("shape", "factor", "patch"),
    [
        ((4, 8, 8), 8, 2),  # f8c4, KL-VAE
        ((4, 5, 7), 8, 1),
        ((4, 4, 6), 16, 1),  # f16c4
        ((16, 4, 4), 16, 1),  # f16c16
        ((64, 2, 2), 32, 1),  # f32c64
        ((32, 8, 8), 8, 2),  # FLUX.2
    ],
)
def test_latents_of_any_tokenizer(
    train: Train, tmp_path: Path, shape: tuple[int, int, int], factor: int, patch: int
) -> None:
    """A size without a patch, statistics of each channel: the network sees latents of about mean 0 and deviation 1."""
    channels = shape[0]
    mean, std = torch.linspace(-3, 3, channels), torch.linspace(0.5, 4, channels)
    means = mean[:, None, None] + std[:, None, None] * torch.randn(8, *shape)
    statistics = {
        "latents_mean": mean.tolist(),
        "latents_std": std.tolist(),
        "scaling_factor": 0.4,
        "shift_factor": 0.1,
    }
    data = MemoryLatents(means, [0] * 8, ["all"], statistics, LatentIdentity("none", "0" * 64, factor, channels))
    train(tmp_path / "run", data, network="lightning", size="tiny", total_images=4)
    generator = load_generator(tmp_path / "run")
    assert (generator.model.config.patch_size, generator.facts.latent_shape) == (patch, shape)
    stage = LatentStage(replace(SMALL, network="dit", size="tiny"), data)
    stream = LatentStream(data, 0)
    batch = stream.batch(range(8))
    x = stage.normalized(batch, torch.zeros(8, *shape))
    torch.testing.assert_close(x.std(dim=(0, 2, 3)), torch.ones(channels), atol=0.4, rtol=0)
    torch.testing.assert_close(generator.facts.denormalize(x), batch.mean, atol=1e-4, rtol=1e-4)


def test_an_earlier_generator_is_exported(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint gives other weights than its averaged ones, or those of a run whose latents were exchanged."""
    run = train(tmp_path / "run", random_latents()).parent
    export_generator(find_checkpoint(run, 12), tmp_path / "earlier")
    average = read_checkpoint(run / "checkpoints" / f"{12:012d}")[0]["average"]
    earlier, last = load_generator(tmp_path / "earlier"), load_generator(run)
    state = earlier.model.state_dict()
    assert average
    assert all(torch.equal(state[name], tensor) for name, tensor in average.items())
    assert earlier.facts == last.facts
    assert earlier.digest != last.digest
    last.facts.check_guide(earlier.facts)
    monkeypatch.setattr(task, "LatentDataset", lambda folder: replace(random_latents(), digest="5" * 64))
    with pytest.raises(ValueError, match="expected the latents that this run began with, found others"):
        export_generator(find_checkpoint(run, 12), tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_run_of_before_there_was_a_choice_goes_on(train: Train, tmp_path: Path) -> None:
    """Its settings do not name a network: it is diffusers'."""
    settings = {"optimizer": replace(SMALL.optimizer, warmup_images=4)}  # the run can grow longer
    train(tmp_path / "whole", random_latents(), total_images=24, **settings)
    train(tmp_path / "cut", random_latents(), total_images=12, **settings)
    path = tmp_path / "cut" / "config.json"
    saved = json.loads(path.read_text())
    assert saved.pop("network") == "diffusers"
    path.write_text(json.dumps(saved))
    with pytest.raises(ValueError, match=r"other settings \(network: diffusers -> lightning\)"):
        train(tmp_path / "cut", random_latents(), total_images=24, network="lightning", **settings)
    train(tmp_path / "cut", random_latents(), total_images=24, **settings)
    assert newest(tmp_path / "whole") == newest(tmp_path / "cut")


def test_loss_is_flow_matching_on_normalised_latents() -> None:
    """v = x - noise at (1 - t) x + t noise, t = sigmoid(n), x = (z - 1) * 0.5; a fresh DiT predicts zero."""
    data = random_latents()
    stage = LatentStage(replace(SMALL, label_dropout=0.0), data)
    batch = LatentStream(data, 0).batch(range(6))
    seen: dict[str, torch.Tensor] = {}

    def network(x: torch.Tensor, timestep: torch.Tensor, class_labels: torch.Tensor, **_: object) -> tuple:
        seen.update(x=x, timestep=timestep, labels=class_labels)
        return stage.model(x, timestep=timestep, class_labels=class_labels, return_dict=False)

    loss = stage.losses(network, batch, draws(6), seen=0)
    random = draws(6)
    noise, _, t = random.normal(4, 4, 4), random.normal(4, 4, 4), torch.sigmoid(random.normal())
    x, s = (batch.mean - 1) * 0.5, t[:, None, None, None]
    torch.testing.assert_close(seen["x"], (1 - s) * x + s * noise, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(seen["timestep"], 1000 * t)
    assert torch.equal(seen["labels"], batch.labels)
    torch.testing.assert_close(loss.total.detach(), (x - noise).square().mean(), atol=1e-5, rtol=1e-5)


def test_labels_are_hidden_at_the_given_rate_by_the_runs_own_chance() -> None:
    """diffusers' own dropout would hide some more, by torch's global generator."""
    data = random_latents(2000)
    batch = LatentStream(data, 0).batch(range(2000))
    for rate in (0.0, 0.3, 1.0):
        stage = LatentStage(replace(SMALL, label_dropout=rate), data)
        stage.model.train()
        given: list[torch.Tensor] = []

        def network(x: torch.Tensor, class_labels: torch.Tensor, **_: object) -> tuple:
            given.append(class_labels)  # noqa: B023
            return (x,)

        stage.losses(network, batch, draws(2000), seen=0)
        assert float((given[0] == 3).double().mean()) == pytest.approx(rate, abs=0.03)
        example = stage.example(CPU)
        before = torch.random.get_rng_state()
        stage.losses(stage.model, example, draws(1), seen=0)
        assert torch.equal(before, torch.random.get_rng_state()), "the global generator is drawn from in training"
    rows = stage.model.transformer_blocks[0].norm1.emb.class_embedder.embedding_table.num_embeddings
    assert (null_class(stage.model), rows) == (3, 4), "no row for an image without a label"


def test_posterior_is_sampled_or_its_mean() -> None:
    data = random_latents()
    batch = LatentStream(data, 0).batch(range(3))
    wide = replace(batch, logvar=torch.zeros_like(batch.logvar))
    noise = torch.randn(3, 4, 4, 4)
    sampled = LatentStage(SMALL, data).normalized(wide, noise)
    mean = LatentStage(replace(SMALL, posterior="mean"), data).normalized(wide, noise)
    torch.testing.assert_close(mean, (wide.mean - 1) * 0.5)
    torch.testing.assert_close(sampled, (wide.mean + noise - 1) * 0.5)


def test_every_pass_is_another_order_of_all() -> None:
    stream = LatentStream(random_latents(7, classes=7), 3)
    passes = [stream.batch(range(k, k + 7)).labels.tolist() for k in (0, 7)]
    assert sorted(passes[0]) == sorted(passes[1]) == list(range(7))
    assert passes[0] != passes[1]
    whole = [next(latent_batches(stream, 4, 6, 0)).labels.tolist()]
    parts = [next(latent_batches(stream, 4, 6, 0, rank, 2)).labels.tolist() for rank in (0, 1)]
    assert whole[0] == parts[0] + parts[1], "two processes see other latents than one"


@pytest.mark.parametrize(
    "settings",
    [{}, {"microbatch": 2}, {"network": "dit"}, {"network": "lightning", "optimizer": MUON}],
    ids=["plain", "microbatch", "dit", "lightning-muon"],
)
def test_interrupted_run_resumes_bit_for_bit(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, object]
) -> None:
    """Data, noise, hidden labels, average and optimiser go on as if nothing had been."""
    train(tmp_path / "whole", random_latents(), **settings)
    stop_third_update(monkeypatch)
    with pytest.raises(TrainingStopped, match="at 12 images"):
        train(tmp_path / "cut", random_latents(), **settings)
    train(tmp_path / "cut", random_latents(), **settings)
    assert newest(tmp_path / "whole") == newest(tmp_path / "cut")
    assert stats(tmp_path / "whole") == stats(tmp_path / "cut")
    weights = [load_file(tmp_path / run / "model" / "diffusion_pytorch_model.safetensors") for run in ("whole", "cut")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_other_data_are_refused(train: Train, tmp_path: Path) -> None:
    train(tmp_path / "run", random_latents(), total_images=12)
    with pytest.raises(ValueError, match="expected the 12 latents that this run began with, found 13"):
        train(tmp_path / "run", random_latents(13), total_images=12)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": LatentIdentity("other", "2" * 64, 8, 4)}, "the encoder of the latents that this run began with"),
        ({"digest": "3" * 64}, "the latents that this run began with"),
        ({"statistics": STATISTICS | {"scaling_factor": 0.6}}, "the latents that this run began with"),  # encoded anew
        ({"classes": ["class2", "class1", "class0"]}, "the classes in order that this run began with"),
    ],
)
def test_latents_of_as_many_others_are_refused(
    train: Train, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    """The weights learnt the old latents, and the result would have the new statistics and names."""
    train(tmp_path / "run", random_latents(), total_images=12)
    with pytest.raises(ValueError, match=message):
        train(tmp_path / "run", bad(**changes), total_images=12)
    renamed = replace(random_latents(), model=LatentIdentity("moved/elsewhere", "0" * 64, 8, 4))
    train(tmp_path / "run", renamed, total_images=12)


def test_result_says_what_its_latents_are(train: Train, tmp_path: Path) -> None:
    model = train(tmp_path / "run", random_latents(classes=0), total_images=4)
    facts = json.loads((model / "generation.json").read_text())
    assert facts["latent_shape"] == [4, 4, 4]
    assert facts["statistics"] == {**STATISTICS, "latents_convention": "measured"}
    assert facts["tokenizer"]["spatial_factor"] == 8
    assert json.loads((model / "config.json").read_text())["_class_name"] == "DiTTransformer2DModel"
    loaded = load_generator(tmp_path / "run")
    assert loaded.facts.classes == ()
    assert not loaded.model.training
    with pytest.raises(FileNotFoundError, match=r"expected a trained generator, found no generation\.json"):
        load_generator(tmp_path)


def test_diverged_run_leaves_its_latents(train: Train, tmp_path: Path) -> None:
    optimizer = replace(SMALL.optimizer, learning_rate=1e30, clip=1e30, warmup_images=0)
    log = LogConfig(stats_images=100, sample_images=0, checkpoint_images=100)
    with pytest.raises(FloatingPointError, match="not finite"):
        train(tmp_path / "run", random_latents(), optimizer=optimizer, total_images=100, nonfinite_limit=3, log=log)
    saved = load_file(tmp_path / "run" / "nonfinite" / "latents.safetensors")
    assert saved["mean"].shape == (4, 4, 4, 4)
    assert saved["labels"].shape == (4,)


def test_grids_of_samples_while_it_trains(train: Train, tmp_path: Path, tiny_model: Path) -> None:
    log = LogConfig(stats_images=8, sample_images=4, sample_count=2, checkpoint_images=8)
    data = replace(random_latents(), model=identify(str(tiny_model)))
    train(tmp_path / "run", data, total_images=4, decoder=str(tiny_model), log=log)
    assert [p.name for p in (tmp_path / "run" / "samples").iterdir()] == ["000000000004.png"]


def test_grids_by_another_encoders_decoder_are_refused(train: Train, tmp_path: Path, tiny_model: Path) -> None:
    log = LogConfig(stats_images=8, sample_images=4, sample_count=2, checkpoint_images=8)
    with pytest.raises(ValueError, match=r"a decoder of the encoder that made the latents, none.*found .*tiny-model"):
        train(tmp_path / "run", random_latents(), total_images=4, decoder=str(tiny_model), log=log)
    train(tmp_path / "forced", random_latents(), total_images=4, decoder=str(tiny_model), log=log, force=True)
    assert len(list((tmp_path / "forced" / "samples").iterdir())) == 1


def bad(**changes: object) -> object:
    data = random_latents()
    for name, value in changes.items():
        setattr(data, name, value)
    return data


@pytest.mark.parametrize(
    ("data", "settings", "message"),
    [
        (bad(statistics={}), {}, "expected the latents' statistics"),
        (bad(statistics={**STATISTICS, "scaling_factor": 1.0, "shift_factor": 0.0}), {}, "latents' statistics"),
        (bad(statistics={**STATISTICS, "latents_mean": [0.0], "latents_std": [1.0]}), {}, "statistics of 4 channels"),
        (bad(labels=[3] * 12), {}, "expected a class from 0 to 2, found 3"),
        (random_latents(side=7), {}, "multiple of the patch 2, found 7 x 7: use --size tiny/1"),
        (bad(means=torch.zeros(12, 4, 4, 6)), {}, "needs square latents, found 4 x 6"),
        (bad(means=torch.zeros(0, 4, 4, 4)), {}, "expected latents to train on, found none"),
        (random_latents(), {"size": "M/2"}, "expected a DiT size like XL/2"),
        (random_latents(), {"label_dropout": 1.5}, "expected label_dropout of at most 1, found 1.5"),
        (random_latents(), {"decoder": "nowhere", "log": LogConfig(sample_images=8)}, "nowhere: expected"),
    ],
)
def test_what_cannot_be_trained(
    train: Train, tmp_path: Path, data: object, settings: dict[str, object], message: str
) -> None:
    """One clear line, and no result."""
    with pytest.raises((ValueError, OSError), match=message) as caught:
        train(tmp_path / "run", data, **settings)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "model").exists()


def test_latent_of_another_channel_count_is_named() -> None:
    data = random_latents()
    stream = LatentStream(data, 0)
    item = data[0]
    data.__class__ = type("Odd", (type(data),), {"__getitem__": lambda self, i: item | {"mean": item["mean"][:3]}})
    with pytest.raises(ValueError, match=r"0000: expected a latent \(4, 4, 4\) of 4 channels"):
        next(latent_batches(stream, 0, 4, 0))


def test_odd_grids_by_patches_of_one(train: Train, tmp_path: Path) -> None:
    train(tmp_path / "run", random_latents(side=3), size="tiny/1", total_images=4)
    assert load_generator(tmp_path / "run").facts.latent_shape == (4, 3, 3)


def test_settings_that_may_change() -> None:
    config = GenerationConfig(latents="a")
    config.check()
    moved = replace(config, latents="b", workers=0, decoder="c", microbatch=2)
    assert differences(moved, to_json(config)) == []
    other = replace(config, size="B/2", label_dropout=0.2)
    assert differences(other, to_json(config)) == ["label_dropout: 0.1 -> 0.2", "size: S/2 -> B/2"]


def test_other_latents_in_a_finished_runs_folder(train: Train, tmp_path: Path) -> None:
    """As many latents of something else pass for those that the model was trained on."""
    run, data = tmp_path / "run", two_classes()
    train(run, data, total_images=8)
    before = {path: path.read_bytes() for path in run.iterdir() if path.is_file()}
    train(run, data, total_images=8)
    other = two_classes()
    other.classes = other.classes[::-1]
    with pytest.raises(ValueError, match="that this run began with, found others"):
        train(run, other, total_images=8)
    assert {path: path.read_bytes() for path in run.iterdir() if path.is_file()} == before


def test_compiling_without_a_compiler(train: Train, tmp_path: Path, no_compiler: None) -> None:
    """A training on a machine without g++ ends at its first update."""
    with pytest.warns(UserWarning, match=r"torch\.compile does not work here"):
        train(tmp_path / "run", two_classes(), total_images=8, compile=True)
    assert (tmp_path / "run" / "model").is_dir()


@pytest.mark.slow
@pytest.mark.parametrize("network", ["diffusers", "lightning"])
def test_compiled_run_is_the_same_run(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: str
) -> None:
    train(tmp_path / "eager", two_classes(), total_images=8, network=network)
    compile_module = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compile_module(self, backend="aot_eager"))
    train(tmp_path / "compiled", two_classes(), total_images=8, compile=True, network=network)
    torch._dynamo.reset()
    for a, b in zip(figures(tmp_path / "eager"), figures(tmp_path / "compiled"), strict=True):
        assert b == pytest.approx(a, rel=1e-3)
