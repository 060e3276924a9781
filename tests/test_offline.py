"""scripts/offline.py: what travels arrives whole or is named, and a run that travelled ends in the same weights."""

import io
import json
import sys
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

SCRIPTS = Path(__file__).parents[1] / "scripts"
sys.path.insert(0, str(SCRIPTS))

from offline import bundles, machine, plan, runs, sending, wheels  # noqa: E402
from offline.store import Store  # noqa: E402

Offline = Callable[..., int]

KIB = 1024


@pytest.fixture(scope="session")
def script() -> ModuleType:
    """scripts/offline.py itself; ``import offline`` is the folder of its parts."""
    import importlib.util

    spec = importlib.util.spec_from_file_location("offline_script", SCRIPTS / "offline.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def offline(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Offline:
    """``offline("pack", ...)`` runs a command in this process; signals of the tests' process are left alone."""
    monkeypatch.setattr(script.signal, "signal", lambda *_: None)

    def run(*arguments: object) -> int:
        status: int = script.main([str(a) for a in arguments])
        return status

    return run


@pytest.fixture
def noise(tmp_path: Path) -> Path:
    """A file of 300 kB that no two pieces of are alike."""
    path = tmp_path / "noise.tar"
    path.write_bytes(np.random.default_rng(0).bytes(300_000))
    return path


def move(source: Path, target: Path, *names: str) -> Path:
    """A folder with some of the packages of another."""
    target.mkdir()
    for name in names:
        (target / name).write_bytes((source / name).read_bytes())
    return target


# ---- pieces and bundles --------------------------------------------------------------------------------------------


def test_packages_come_in_any_order_and_join_to_the_same_file(
    offline: Offline, noise: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A package is over its size, a file changes on the way, or something begins before all is there."""
    packages, work = tmp_path / "packages", tmp_path / "work"
    assert offline("pack", "--data", noise, "--into", packages, "--package-mib", 100 / KIB) == 0
    names = sorted(path.name for path in packages.iterdir())
    assert len(names) >= 3
    assert all((packages / name).stat().st_size <= 100 * KIB for name in names), "a package is too large"

    last = move(packages, tmp_path / "last", names[-1])
    capsys.readouterr()
    assert offline("prepare", "--packages", last, "--work", work) == 75
    told = capsys.readouterr().out
    assert [name in told for name in names] == [True] * (len(names) - 1) + [False], "wrong packages are said to come"
    assert not (work / "data").exists(), "joined from a part of its pieces"

    others = move(packages, tmp_path / "others", *names[:-1])
    assert offline("prepare", "--packages", others, "--work", work) == 0
    assert (work / "data" / "noise.tar").read_bytes() == noise.read_bytes()
    assert not list((work / ".pieces").glob("[0-9a-f]" * 64)), "pieces are kept after they were joined"


@pytest.mark.parametrize("damage", ["a piece", "cut off", "no tar"])
def test_a_damaged_package_is_named_and_asked_for_again(
    offline: Offline, noise: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    """Damage on the way comes into the data, or ends the call with a traceback."""
    good, packages, work = tmp_path / "good", tmp_path / "packages", tmp_path / "work"
    offline("pack", "--data", noise, "--into", good, "--package-mib", 100 / KIB)
    names = sorted(path.name for path in good.iterdir())
    move(good, packages, *names)
    content = bytearray((packages / names[1]).read_bytes())
    if damage == "a piece":
        content[-40 * KIB] ^= 1
    (packages / names[1]).write_bytes({"cut off": content[: -60 * KIB], "no tar": b"\n" * 99}.get(damage, content))

    assert offline("prepare", "--packages", packages, "--work", work) == 75
    told = capsys.readouterr().out
    assert f"damaged: {names[1]}" in told
    assert f"still to come: {names[1]};" in told, "others are asked for, or the damaged one is not"
    assert offline("prepare", "--packages", good, "--work", work) == 0
    assert (work / "data" / "noise.tar").read_bytes() == noise.read_bytes()


@pytest.mark.parametrize(
    "path", ["../x", "data/../../x", "/data/x", "data", "other/x", "data/.x", "data//x", "data/a\\b", "data/\n"]
)
def test_no_path_leads_out_of_the_folder(path: str) -> None:
    """An index that somebody made up writes where it likes."""
    content = {"format": "ssdd-offline-1", "created": "1", "files": [[path, 0, "0" * 64, []]], "bundles": {}}
    text = json.dumps(content).encode()
    with pytest.raises(bundles.BadBundle, match="expected a path"):
        bundles.parse_index(f"index-{bundles.hashlib.sha256(text).hexdigest()}.json", text)


def test_members_with_other_names_and_links_are_refused(tmp_path: Path) -> None:
    """A tar file that is no bundle is unpacked."""
    for name, kind in (("../evil", tarfile.REGTYPE), ("0" * 64, tarfile.SYMTYPE)):
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, "/etc/passwd"
        with tarfile.open(tmp_path / "x.tar", "w") as file:
            file.addfile(member)
        with pytest.raises(bundles.BadBundle, match="expected an index and pieces"):
            list(bundles.read_bundle(tmp_path / "x.tar"))


def test_a_link_in_the_work_folder_is_not_followed(offline: Offline, noise: Path, tmp_path: Path) -> None:
    """A link that lies there already leads the files elsewhere."""
    offline("pack", "--data", noise, "--into", tmp_path / "packages")
    (tmp_path / "work").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "work" / "data").symlink_to(tmp_path / "elsewhere")
    assert offline("prepare", "--packages", tmp_path / "packages", "--work", tmp_path / "work") == 1
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_limit_that_the_index_fills_is_an_error(
    offline: Offline, noise: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Packages of a size that was not allowed are written."""
    assert offline("pack", "--data", noise, "--into", tmp_path / "packages", "--package-mib", 0.01) == 1
    assert "expected bundles of more than 0.01 MiB" in capsys.readouterr().err


# ---- wheels --------------------------------------------------------------------------------------------------------


def test_the_wheels_are_those_that_are_missing_there() -> None:
    """A package that is there goes along (gigabytes of torch), or one that is needed does not."""
    shelf = {
        "diffusers": ("0.40", ["torch>=2", "Zipp-Py>=1", "jax; extra == 'flax'", "colorama; sys_platform == 'win32'"]),
        "zipp-py": ("1.5", ["numpy"]),
        "numpy": ("2.0", []),
        "hub": ("3.1", ["tomli; python_version < '3.11'"]),
    }
    asked = []

    def fetch(requirement: str) -> wheels.Wheel:
        asked.append(requirement)
        name = next(n for n in shelf if requirement.lower().startswith(n))
        return wheels.Wheel(Path(f"{name}.whl"), name, shelf[name][0], tuple(shelf[name][1]))

    found = wheels.missing(
        ["torch>=2.8", "diffusers>=0.36", "hub>=3", "numpy"],
        {"Torch": "2.11.0+cu130", "hub": "2.0", "numpy": ""},
        fetch,
        wheels.Target("3.12", wheels.PLATFORMS),
    )
    assert [wheel.name for wheel in found] == ["diffusers", "hub", "zipp-py"]
    assert asked == ["diffusers>=0.36", "hub>=3", "Zipp-Py>=1"]


def test_lists_of_packages_are_read_as_pip_prints_them(tmp_path: Path) -> None:
    """A line of one of pip's formats is taken for a package, or a package is not found."""
    (tmp_path / "list").write_text("Package  Version\n-------- -------\ntorch    2.11.0\n\nnumpy==2.5\npillow\n")
    assert wheels.read_installed(tmp_path / "list") == {"torch": "2.11.0", "numpy": "2.5", "pillow": ""}


# ---- plans ---------------------------------------------------------------------------------------------------------


def test_the_plan_of_the_repository_is_made_of_settings_that_exist(tmp_path: Path) -> None:
    """On the machine, minutes are lost with a line that cannot be read, or that stops itself."""
    from ssdd.cli.train import parse
    from ssdd.training.config import check

    (tmp_path / "data").mkdir()
    for name in ("b.tar", "a.tar"):
        (tmp_path / "data" / name).touch()
    made: set[str] = set()
    for line in plan.read_plan(SCRIPTS / "plans" / "demo.txt"):
        options = parse(plan.command(line, tmp_path)[1:])
        config = options.recipe
        check(config)
        assert config.data.paths == ("data/a.tar", "data/b.tar")
        assert (config.total_images, config.optimizer.decay_images) == (plan.ENDLESS, 0)
        assert config.model.start_from is None or config.model.start_from in made, "starts from what is not there"
        made.add(str(options.out))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rm -rf x", "expected lines 'ssdd train RECIPE"),
        ("ssdd train a\nssdd train b --out runs/a", "a folder of its own"),
        ("ssdd train a --out ../b", "expected --out runs/NAME"),
        ("ssdd train a --total-images {5}", r"expected \{...min\}"),
        ("ssdd train a --batch-size {5min}", r"expected \{...min\}"),
        ("ssdd train a --optimizer.decay-images {5min}", "with --optimizer.decay-images"),
        ("# nothing", "expected lines"),
    ],
)
def test_a_plan_that_cannot_be_meant_is_refused(tmp_path: Path, text: str, message: str) -> None:
    """It is found out when the machine is there."""
    (tmp_path / "plan.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        plan.read_plan(tmp_path / "plan.txt")


def test_the_end_that_a_run_is_told_changes_no_update_before(tmp_path: Path) -> None:
    """A run that learned of its end late differs from one that knew it from the start."""
    from ssdd.recipes import RECIPES
    from ssdd.training.config import to_json
    from ssdd.training.optimizers import learning_rate

    recipe = RECIPES["tiny-encoder"]()
    before = replace(recipe, total_images=plan.ENDLESS, optimizer=replace(recipe.optimizer, decay_images=0))
    line = plan.parse_line(["tiny-encoder", "--total-images", "{9min}", "--optimizer.decay-images", "{2min}"])
    for left, expected in ((200.0, 4200 + 7600), (-5.0, 4200 + 4560)):  # 0.95 * 40 images/s; the decay comes whole
        (tmp_path / "checkpoints" / "000000004200").mkdir(parents=True, exist_ok=True)
        (tmp_path / "config.json").write_text(to_json(before))
        assert plan.set_end(line, tmp_path, rate=40.0, left=left) == expected
        config = json.loads((tmp_path / "config.json").read_text())
        total, decay = config["total_images"], config["optimizer"]["decay_images"]
        assert (total, decay) == (expected, 4560)
        after = replace(before, total_images=total, optimizer=replace(before.optimizer, decay_images=decay))
        for seen in range(0, 4200, recipe.batch_size):
            assert learning_rate(after, seen) == learning_rate(before, seen), f"another rate at {seen} images"
        last = learning_rate(after, total - recipe.batch_size)
        assert last < 0.01 * recipe.optimizer.learning_rate, "the decay is not at the end"


# ---- the whole way -------------------------------------------------------------------------------------------------

TINY = (
    *("tiny-encoder", "--encoder", "f4c4", "--data.paths", "data/*.tar", "--data.resolution", "16"),
    *("--data.workers", "0", "--loss.lpips", "0", "--optimizer.warmup-images", "16", "--precision", "fp32"),
    *("--average.halflife-images", "16", "--batch-size", "4", "--log.stats-images", "8", "--log.sample-images", "0"),
    *("--total-images", "{0.1min}", "--optimizer.decay-images", "{0.02min}"),
)
"""XXS decoder on 16 px; its end is far enough away that it cannot come before the deadline."""


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    path, random = tmp_path / "photographs.tar", np.random.default_rng(0)
    with tarfile.open(path, "w") as archive:
        for number in range(12):
            file = io.BytesIO()
            Image.fromarray(random.integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(file, "PNG")
            member = tarfile.TarInfo(f"{number:02d}.png")
            member.size = len(file.getvalue())
            archive.addfile(member, io.BytesIO(file.getvalue()))
    return path


def test_a_run_that_changed_machines_is_the_one_that_never_stopped(
    offline: Offline, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Something of a run is lost on its way home and to another machine, or in being told its end."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    packages, first, second, home = (tmp_path / name for name in ("packages", "first", "second", "home"))
    limits = ("--out-mib", "16", "--out-files", "2", "--out-total-mib", "32")
    assert offline("pack", "--data", photographs, "--into", packages) == 0

    with monkeypatch.context() as patch:
        deadline_once_the_end_is_found(patch)
        train = ("run", "--packages", packages, "--work", first, "--measure", "0")
        status = offline(*train, "--out", tmp_path / "out-0", *limits, "--", *TINY)
    assert status == 75, (first / "logs" / "tiny-encoder.log").read_text()
    seen = runs.images_seen(first / "runs" / "tiny-encoder")
    assert seen > 0, "stopped without a checkpoint"

    number = 0
    while status == 75:
        number += 1
        status = offline("fetch", "--work", first, "--out", tmp_path / f"out-{number}", *limits)
    outs = [tmp_path / f"out-{n}" for n in range(number + 1)]
    for out in outs:
        sizes = [path.stat().st_size for path in out.iterdir()]
        assert len(sizes) <= 2
        assert all(size <= 16 * bundles.MIB for size in sizes), "more comes home than fits"
    assert offline("fetch", "--work", first, "--out", tmp_path / "nothing", *limits) == 0
    assert not (tmp_path / "nothing").exists(), "the same is brought twice"

    damaged = next(path for path in sorted(outs[1].iterdir()))
    content = bytearray(damaged.read_bytes())
    content[-2 * bundles.MIB] ^= 1
    damaged.write_bytes(content)
    assert offline("collect", *outs, "--into", home) == 75
    assert (home / "tiny-encoder" / "stats.jsonl").is_file(), "statistics wait for what is heavier"
    assert not (home / "tiny-encoder" / "checkpoints").exists(), "a checkpoint with holes"
    again, have = tmp_path / "again", home / ".pieces" / "received.txt"
    assert offline("fetch", "--work", first, "--out", again, "--have", have) == 0
    assert offline("collect", again, "--into", home) == 0
    assert runs.images_seen(home / "tiny-encoder") == seen

    brought = tmp_path / "brought"
    assert offline("pack", "--runs", home / "tiny-encoder", "--into", brought, "--package-mib", 40) == 0
    train = ("run", "--packages", packages, brought, "--work", second, "--minutes", 5, "--out-files", 32)
    status = offline(*train, "--out", tmp_path / "out-second", "--", *TINY)
    log = (second / "logs" / "tiny-encoder.log").read_text()
    assert status == 0, log
    assert f"resumed at {seen} images" in log
    assert offline("collect", tmp_path / "out-second", "--into", home) == 0

    whole = uninterrupted(second / "runs" / "tiny-encoder", second / "data", tmp_path / "whole")
    weights = "diffusion_pytorch_model.safetensors"
    assert (home / "tiny-encoder" / "model" / weights).read_bytes() == (whole / weights).read_bytes()


def deadline_once_the_end_is_found(patch: pytest.MonkeyPatch) -> None:
    """The deadline comes then, however fast this machine is."""
    train = machine.train

    def patched(lines: list[plan.Line], work: Path, clock: machine.Clock, *more: float) -> list[machine.Outcome]:
        def set_end(*arguments: Any) -> int:
            clock.stop = 0.0
            return plan.set_end(*arguments)

        patch.setattr(machine, "set_end", set_end)
        return train(lines, work, clock, *more)

    patch.setattr(machine, "train", patched)


def uninterrupted(like: Path, data: Path, run: Path) -> Path:
    """The result of the same settings in one go, in this process."""
    from ssdd.cli.train import parse
    from ssdd.training.loop import train

    config = json.loads((like / "config.json").read_text())
    assert config["total_images"] < plan.ENDLESS
    words = [str(data / "photographs.tar") if "*" in word else word for word in TINY]
    words[words.index("--total-images") + 1] = str(config["total_images"])
    words[words.index("--optimizer.decay-images") + 1] = str(config["optimizer"]["decay_images"])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return train(parse(words).recipe, run, torch.device("cpu"))
    finally:
        torch.set_num_threads(threads)


def test_a_run_of_ones_own_is_not_replaced_by_what_comes(offline: Offline, tmp_path: Path) -> None:
    """A run at home with the same name is overwritten."""
    run, home = tmp_path / "work" / "runs" / "mine", tmp_path / "home"
    run.mkdir(parents=True)
    (run / "config.json").write_text("{}")
    sending.send(tmp_path / "work", tmp_path / "out", sending.Limits(8, bundles.MIB, bundles.MIB))
    (home / "mine").mkdir(parents=True)
    assert offline("collect", tmp_path / "out", "--into", home) == 1
    assert not list((home / "mine").iterdir())
    assert Store(home).received(), "what came is lost"
