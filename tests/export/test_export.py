"""``ssdd export``: ONNX files that ONNX Runtime runs at every size, with PyTorch's results."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ssdd.export import files
from ssdd.export.check import check_files
from ssdd.export.files import export_model
from ssdd.export.noise import default_noise
from ssdd.export.trace import OPSETS
from tests.guides import run_blocks

from .conftest import Exported, random_model

pytestmark = pytest.mark.slow

onnx = pytest.importorskip("onnx", reason="needs ssdd[onnx]")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs ssdd[onnx]")

Ssdd = Callable[..., Any]
Tree = Callable[[Path], dict[str, bytes]]


def session(path: Path) -> Any:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def axes(values: Any) -> dict[str, list[str | int]]:
    return {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}


@pytest.mark.parametrize("size", [(1, 8, 8), (3, 40, 24), (1, 264, 200), (2, 104, 72)])
def test_results_are_pytorchs(exported: Exported, size: tuple[int, int, int]) -> None:
    """Other batches and sizes than that of the tracing; more and less than one window."""
    batch, height, width = size
    generator = torch.Generator().manual_seed(1)
    x = 2 * torch.rand(batch, 3, height, width, generator=generator) - 1
    noise = torch.randn(x.shape, generator=generator)
    with torch.inference_mode():
        posterior = exported.model.encode(x).latent_dist
        image = exported.model.decode(posterior.mean, noise=noise, num_inference_steps=1).sample
    mean, logvar = session(exported.folder / "encoder.onnx").run(["mean", "logvar"], {"image": x.numpy()})
    inputs = {"latent": posterior.mean.numpy(), "noise": noise.numpy()}
    (decoded,) = session(exported.folder / "decoder.onnx").run(["image"], inputs)
    for name, found, expected in (("mean", mean, posterior.mean), ("logvar", logvar, posterior.logvar)):
        assert np.abs(found - expected.numpy()).max() < 1e-4, f"another {name}"
    assert np.abs(decoded - image.numpy()).max() < 1e-4, "another image"


def test_files_are_whole(exported: Exported) -> None:
    """Valid for the checker, all weights inside, names of inputs, outputs and axes as documented, nothing else."""
    assert {p.name for p in exported.folder.iterdir()} == {"encoder.onnx", "decoder.onnx", "export.json"}
    image, latent = ["batch", 3, "8*h", "8*w"], ["batch", 4, "h", "w"]
    expected = {
        "encoder.onnx": ({"image": image}, {"mean": latent, "logvar": latent}),
        "decoder.onnx": ({"latent": latent, "noise": image}, {"image": image}),
    }
    for name, (inputs, outputs) in expected.items():
        onnx.checker.check_model(exported.folder / name, full_check=True)
        graph = onnx.load(exported.folder / name, load_external_data=False).graph
        assert not any(t.external_data for t in graph.initializer), f"{name}: weights lie elsewhere"
        assert (axes(graph.input), axes(graph.output)) == (inputs, outputs), f"{name}: other inputs or outputs"
        assert str(Path(files.__file__).parent).encode() not in (exported.folder / name).read_bytes(), (
            f"{name} tells where the source lies"
        )


def test_description(exported: Exported) -> None:
    found = json.loads((exported.folder / "export.json").read_text())
    assert found["model"] == "mine"
    assert (found["spatial_factor"], found["latent_channels"], found["opset"]) == (8, 4, 20)
    assert found["latents"]["scaling_factor"] == 0.5, "the normalisation is lost"
    assert found["noise"]["seed"] == 7, "the noise is another"
    opsets = {o.domain: o.version for o in onnx.load(exported.folder / "decoder.onnx").opset_import}
    assert opsets[""] == 20, "the file has another opset than the description"


def test_check_compares_all_outputs(exported: Exported) -> None:
    found = exported.result.differences
    assert [(d.file, d.output) for d in found] == [
        ("encoder.onnx", "mean"),
        ("encoder.onnx", "logvar"),
        ("decoder.onnx", "image"),
    ]
    assert all(0 < d.largest < 1e-4 for d in found), f"{found}: equal to the last bit, or too far"


def test_check_finds_another_model(exported: Exported) -> None:
    other = random_model()
    with torch.no_grad():
        other.decoder.conv_out.bias += 0.01
    with pytest.raises(ArithmeticError, match=r"decoder\.onnx: expected image .* found 0\.01"):
        check_files(other, exported.folder, "fp32")


@pytest.mark.parametrize(("seed", "height", "width"), [(0, 8, 8), (7, 40, 24), (2**31, 4, 12)])
def test_noise_without_pytorch(seed: int, height: int, width: int) -> None:
    expected = torch.randn((3, height, width), generator=torch.Generator().manual_seed(seed)).numpy()
    assert np.abs(default_noise(seed, height, width) - expected).max() < 1e-5, "other noise than PyTorch's"


def test_noise_of_other_sizes_is_refused() -> None:
    with pytest.raises(ValueError, match="found 3 x 5"):
        default_noise(0, 3, 5)


def test_decoder_alone(ssdd: Ssdd, tmp_path: Path) -> None:
    """A model without an encoder, and a factor with which the last level is rounded up; an older encoder.onnx goes."""
    model = random_model(2, (32, 32, 32), has_encoder=False)
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "encoder.onnx").write_text("of another model")
    (tmp_path / "out" / "mine.txt").write_text("precious")
    command = ("export", "--model", tmp_path / "model", "--out", tmp_path / "out", "--opset", OPSETS[0])
    assert "encoder.onnx exists already; pass --overwrite" in ssdd(*command).error_line()
    result = ssdd(*command, "--overwrite")
    assert result.status == 0, result.err
    assert "decoder.onnx  image" in result.out, f"the difference is not told: {result.out}"
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"decoder.onnx", "export.json", "mine.txt"}

    z, noise = torch.randn(1, 4, 41, 7), torch.randn(1, 3, 82, 14)  # levels of 82, 41 and 21 rows
    with torch.inference_mode():
        expected = model.decode(z, noise=noise, num_inference_steps=1).sample.numpy()
    (found,) = session(tmp_path / "out" / "decoder.onnx").run(None, {"latent": z.numpy(), "noise": noise.numpy()})
    assert np.abs(found - expected).max() < 1e-4, "another image"


def test_half_precision(tmp_path: Path) -> None:
    model = random_model(8, (32, 32), has_encoder=False)
    made = export_model(model, tmp_path / "out", "mine", dtype="fp16")
    assert 1e-4 < made.differences[0].largest < 0.1, "not the same image in half precision"
    assert model.dtype == torch.float32, "the model was changed"
    decoder = onnx.load(tmp_path / "out" / "decoder.onnx").graph
    assert {i.type.tensor_type.elem_type for i in decoder.input} == {onnx.TensorProto.FLOAT}, "inputs are not float32"
    size = (tmp_path / "out" / "decoder.onnx").stat().st_size
    assert size < 3 * sum(p.numel() for p in model.parameters()), "weights are not in half precision"


def test_half_precision_that_overflows(tmp_path: Path, tree: Tree) -> None:
    """ONNX Runtime computes it in float32 on a CPU, so that the check passes and GPUs give noise or black images."""
    model = random_model(8, (32, 32), has_encoder=False)
    with torch.no_grad():
        for name, parameter in model.decoder.named_parameters():
            if name.endswith("conv1.weight"):  # a norm follows
                parameter *= 5e4 / parameter.abs().max()
    with pytest.raises(ArithmeticError, match=r"decoder\.onnx: expected finite numbers in half precision, found NaN"):
        export_model(model, tmp_path / "out", "mine", dtype="fp16")
    assert not tree(tmp_path)


def test_encoder_that_needs_float32_stays_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exported = []
    monkeypatch.setattr(files, "networks", lambda model: exported.append(model) or [])
    for force_upcast in (True, False):
        model = random_model(force_upcast=force_upcast)
        export_model(model, tmp_path / str(force_upcast), "mine", dtype="fp16", check=False)
    dtypes = [(model.encoder.dtype, model.decoder.conv_in.weight.dtype) for model in exported]
    assert dtypes == [(torch.float32, torch.float16), (torch.float16, torch.float16)]


def test_files_are_moved_within_their_folder(tmp_path: Path, tree: Tree) -> None:
    """A folder where a disk or a container's volume is mounted takes no file from beside it."""
    with files._new_files(tmp_path / "a" / "b", overwrite=False) as partial:
        assert partial.parent == tmp_path / "a" / "b"
        (partial / files.FILES[0]).touch()
    assert set(tree(tmp_path)) == {"a", "a/b", f"a/b/{files.FILES[0]}"}
    with pytest.raises(ArithmeticError), files._new_files(tmp_path / "c" / "d", overwrite=False):
        raise ArithmeticError
    assert not (tmp_path / "c").exists(), "a failed export leaves its folder"


def test_example_of_the_guide(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, picture: Any
) -> None:
    """The code in docs/export.md, on a photograph, gives what the model gives."""
    (tmp_path / "onnx").symlink_to(exported.folder)
    np.save(tmp_path / "photo.npy", picture(48, 80))
    monkeypatch.chdir(tmp_path)
    names = run_blocks("docs/export.md")
    x = torch.from_numpy(picture(48, 80)).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.inference_mode():
        z = exported.model.encode(x).latent_dist.mode()
        expected = exported.model.decode(z, noise=torch.from_numpy(names["noise"]), num_inference_steps=1).sample
    assert np.abs(names["decoded"] - expected.numpy()).max() < 1e-3, "the example decodes another image"
    assert names["result"].shape == (48, 80, 3)
    assert names["result"].dtype == np.uint8


def test_errors_leave_nothing(
    ssdd: Ssdd, tmp_path: Path, tree: Tree, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("export", "--out", tmp_path / "out", "--model")
    assert "nowhere" in ssdd(*command, "nowhere").error_line(), "the model is not named"
    assert "expected --opset of at least 18, found 3" in ssdd(*command, tiny_model, "--opset", 3).err
    (tmp_path / "file").touch()
    line = ssdd("export", "--out", tmp_path / "file", "--model", tiny_model).error_line()
    assert "expected a folder for the results" in line
    monkeypatch.setattr(files, "networks", lambda model: [])  # quick; the check fails all the same
    monkeypatch.setattr(files, "check_files", lambda *_: (_ for _ in ()).throw(ArithmeticError("decoder.onnx: far")))
    assert "decoder.onnx: far" in ssdd(*command, tiny_model).error_line()
    assert set(tree(tmp_path)) == {"file"}, "something was written"
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with files._new_files(Path("."), overwrite=False) as partial:  # it has no name to make a temporary one of
        (partial / files.FILES[0]).touch()
    assert (tmp_path / "here" / files.FILES[0]).exists()


def test_missing_package(ssdd: Ssdd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find(name))
    line = ssdd("export", "--out", tmp_path / "out").error_line()
    assert "found no onnxscript: pip install 'ssdd[onnx]'" in line, f"the way out is not told: {line}"
    assert not (tmp_path / "out").exists()
