"""The built wheel, installed alone in an empty folder: what a user gets from ``pip install ssdd``."""

import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path, PurePosixPath

import pytest

import ssdd

ROOT = Path(__file__).resolve().parents[1]
EMBEDDED = "ssdd/checkpoints/embedded"
MODELS = {"ssdd-f8c4-demo": 4, "ssdd-flux2-demo": 32}
"""Latent channels of the models in the package."""
PICKLES = {".pt", ".pth", ".pkl", ".ckpt", ".bin"}


def _run(command: list[str], cwd: Path, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, f"{command} exited with {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def _tracked(folder: str = ".") -> list[str]:
    """Files of the repository that git tracks, relative to its root."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a git checkout")
    return [name for name in _run(["git", "ls-files", "-z", folder], ROOT).split("\0") if name]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    isolation = ["--no-isolation"] if importlib.util.find_spec("hatchling") else []
    _run([sys.executable, "-m", "build", "--wheel", *isolation, "--outdir", str(out), str(ROOT)], out)
    (path,) = out.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        return Parser().parsestr(archive.read(f"ssdd-{ssdd.__version__}.dist-info/METADATA").decode())


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the installed wheel and nothing else."""
    target = tmp_path_factory.mktemp("wheel") / "site"
    pip = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--no-index", "--no-deps"]
    _run([*pip, "--target", str(target), str(wheel)], target.parent)
    return target


@pytest.fixture
def installed(site: Path, tmp_path: Path):
    """Runs Python with arguments, away from the checkout, on the installed wheel and without network.

    PYTHONPATH precedes site-packages, so the wheel comes before an editable installation of the checkout.
    """
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    env |= {"PYTHONPATH": str(site), "HF_HUB_OFFLINE": "1"}

    def run(*arguments: str) -> str:
        return _run([sys.executable, "-P", *arguments], tmp_path, env)

    return run


def test_installed_package_is_the_one_from_the_wheel(installed, site):
    file, version = installed("-c", "import ssdd; print(ssdd.__file__); print(ssdd.__version__)").splitlines()
    assert Path(file).resolve() == (site / "ssdd" / "__init__.py").resolve()
    assert version == ssdd.__version__


def test_metadata(metadata):
    assert metadata["Name"] == "ssdd"
    assert metadata["Version"] == ssdd.__version__
    assert metadata["License-Expression"] == "Apache-2.0 AND MIT", "the weights of taef2 are not ours"
    assert metadata["Requires-Python"] == ">=3.11"


def test_wheel_has_license_and_type_marker(names):
    licenses = f"ssdd-{ssdd.__version__}.dist-info/licenses"
    of_taef2 = f"{licenses}/src/{EMBEDDED}/taef2/LICENSE"
    assert {f"{licenses}/LICENSE", f"{licenses}/NOTICE", of_taef2, "ssdd/py.typed"} <= names


def test_wheel_has_the_whole_package_and_only_that(names):
    tracked = {name.removeprefix("src/") for name in _tracked("src/ssdd")}
    assert tracked - names == set()
    assert {PurePosixPath(name).parts[0] for name in names} == {"ssdd", f"ssdd-{ssdd.__version__}.dist-info"}


@pytest.mark.parametrize("model", [*MODELS, "taef2"])
def test_wheel_has_the_embedded_weights(names, model):
    folder = f"{EMBEDDED}/{model}"
    assert any(name.startswith(f"{folder}/") and name.endswith(".safetensors") for name in names)
    assert f"{folder}/README.md" in names


def test_help_of_the_installed_module_and_script(installed, site):
    assert "demo" in installed("-m", "ssdd", "--help")
    assert "demo" in installed(str(site / "bin" / "ssdd"), "--help")


@pytest.mark.parametrize("model", MODELS)
def test_embedded_model_reconstructs(installed, site, model):
    program = f"""
import torch, ssdd
from ssdd import AutoencoderSSDD

ae = AutoencoderSSDD.from_pretrained("{model}").eval()
x = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
with torch.no_grad():
    z = ae.encode(x).latent_dist.mode()
    y = ae.decode(z, num_inference_steps=1).sample
assert z.shape == (1, {MODELS[model]}, 8, 8), z.shape
assert y.shape == x.shape, y.shape
assert torch.isfinite(y).all()
print(ssdd.__file__)
"""
    file = installed("-c", program).splitlines()[-1]
    assert Path(file).resolve().is_relative_to(site.resolve())


def test_repository_has_no_pickles():
    assert [name for name in _tracked() if PurePosixPath(name).suffix.lower() in PICKLES] == []
