"""Feature extractors: real code on small or random weights; width and hash as promised; one line for a missing file."""

import hashlib
import subprocess
import sys
import time
import urllib.error
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from safetensors.torch import load_file, save_file
from torch import Tensor

from ssdd.evaluation import features, weights
from ssdd.evaluation.features import (
    CLIP_FEATURES,
    INCEPTION,
    MOBILENET,
    Extractor,
    available_extractors,
    load_extractor,
)
from ssdd.evaluation.weights import MissingWeights

has_mobilenet = pytest.mark.skipif(
    MOBILENET not in available_extractors(), reason="no MobileNetV2 in the torch hub cache (TORCH_HOME)"
)


def images(count: int, height: int = 40, width: int = 56, seed: int = 0) -> Tensor:
    """Coarse random colours, uint8 (B, H, W, 3)."""
    noise = torch.rand(count, 3, 5, 7, generator=torch.Generator().manual_seed(seed)) * 255
    return F.interpolate(noise, size=(height, width), mode="bilinear").permute(0, 2, 3, 1).round().to(torch.uint8)


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty torch hub cache, and no network."""

    def offline(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no network here")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("urllib.request.urlopen", offline)
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    return tmp_path / "hub" / "checkpoints"


@pytest.fixture
def dino(tmp_path: Path) -> Path:
    """Folder of a tiny DINOv2 with random weights."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed (ssdd[train])")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 14, "image_size": 42}
    model = transformers.Dinov2Model(transformers.Dinov2Config(**sizes))
    for p in model.parameters():
        p.data.normal_(0, 0.2, generator=torch.Generator().manual_seed(0))
    model.save_pretrained(tmp_path / "dino")
    return tmp_path / "dino"


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """Folder of a tiny CLIP with random weights."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed (ssdd[train])")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "projection_dim": 16}
    vision = {**sizes, "intermediate_size": 64, "patch_size": 14, "image_size": 42}
    text = {**sizes, "intermediate_size": 64, "vocab_size": 50, "bos_token_id": 0, "eos_token_id": 1}
    model = transformers.CLIPModel(transformers.CLIPConfig(vision_config=vision, text_config=text, projection_dim=16))
    for p in model.parameters():
        p.data.normal_(0, 0.2, generator=torch.Generator().manual_seed(0))
    model.save_pretrained(tmp_path / "clip")
    return tmp_path / "clip"


def check_promises(extractor: Extractor, width: int, weights: Path) -> None:
    """What holds for every extractor."""
    batch = images(5)
    found = extractor(batch)
    assert (found.shape, found.dtype, extractor.width) == ((5, width), torch.float32, width), "not the promised width"
    assert torch.isfinite(found).all()
    assert torch.equal(extractor(batch), found), "the same pictures give other features"
    alone = torch.cat([extractor(picture[None]) for picture in batch])
    assert (alone - found).abs().max() < 1e-4 * found.abs().max(), "a picture's features depend on its batch"
    assert (found[0] - found[1]).abs().max() > 1e-3 * found.abs().max(), "two pictures have the same features"
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(extractor(batch), found), "autocast of the caller changes the features"
    assert extractor(batch[:0]).shape == (0, width), "a process without pictures fails"
    assert extractor.sha256 == hashlib.sha256(weights.read_bytes()).hexdigest(), "not the hash of the file"
    assert extractor.sha256 in extractor.identity, "statistics of other weights pass for comparable"
    assert extractor.preprocessing in extractor.identity


def missing(name: str, *parts: str, download: bool = True) -> None:
    """Loading fails within seconds with one line that has all ``parts``."""
    start = time.monotonic()
    with pytest.raises(MissingWeights) as error:
        load_extractor(name, download=download)
    assert time.monotonic() - start < 10, "a user without network waits for minutes"
    assert "\n" not in str(error.value), f"expected one line, found {error.value}"
    for part in (name, *parts):
        assert part in str(error.value), f"{part} is not said: {error.value}"


@has_mobilenet
def test_mobilenet() -> None:
    """FD-MobileNetV2 is not on the mean over H and W of the network's last feature map."""
    extractor = load_extractor(MOBILENET, download=False)
    check_promises(extractor, 1280, Path(torch.hub.get_dir()) / "checkpoints" / "mobilenet_v2-b0353104.pth")
    net = torchvision.models.mobilenet_v2(weights="IMAGENET1K_V1").features.eval()
    x = images(2, 224, 224).permute(0, 3, 1, 2) / 255
    x = torchvision.transforms.functional.normalize(x, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    with torch.no_grad():
        assert torch.allclose(extractor(images(2, 224, 224)), net(x).mean((2, 3)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(224, 224), (37, 300)])
def test_pictures_are_resized_whole_as_documented(size: tuple[int, int]) -> None:
    """A border is cropped away, the filter is another, or 224 pixels are resampled: numbers that nobody else gets."""
    x = images(2, *size, seed=1).permute(0, 3, 1, 2)
    for filter in ("bilinear", "bicubic"):
        found = features._prepared(x, 224, filter, [0.5, 0.4, 0.3], [0.1, 0.2, 0.3])
        mode = torchvision.transforms.InterpolationMode(filter)
        expected = torchvision.transforms.functional.resize(x / 255, [224, 224], mode, antialias=True)
        expected = torchvision.transforms.functional.normalize(expected, [0.5, 0.4, 0.3], [0.1, 0.2, 0.3])
        assert torch.allclose(found, expected, atol=1e-5)


def test_dino(dino: Path) -> None:
    extractor = load_extractor(f"dinov2:{dino}")
    check_promises(extractor, 32, dino / "model.safetensors")
    x = images(2, 224, 224).permute(0, 3, 1, 2) / 255
    x = torchvision.transforms.functional.normalize(x, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    with torch.no_grad():
        expected = extractor.net(pixel_values=x).pooler_output
    assert torch.allclose(extractor(images(2, 224, 224)), expected, rtol=1e-4, atol=1e-5), "not the class token"


def test_dino_in_several_files(dino: Path) -> None:
    """The hash of a large model's weights covers the first file only."""
    transformers = pytest.importorskip("transformers")
    transformers.Dinov2Model.from_pretrained(dino).save_pretrained(dino.parent / "shards", max_shard_size="20KB")
    extractor = load_extractor(f"dinov2:{dino.parent / 'shards'}")
    parts = sorted((dino.parent / "shards").glob("model*.safetensors"))
    assert len(parts) > 1
    assert extractor.sha256 == hashlib.sha256(b"".join(p.read_bytes() for p in parts)).hexdigest()


def test_clip(clip: Path, capfd: pytest.CaptureFixture[str]) -> None:
    extractor = load_extractor(f"clip:{clip}")
    assert capfd.readouterr().err == "", "transformers' report about the text model is shown"
    check_promises(extractor, 16, clip / "model.safetensors")
    assert CLIP_FEATURES in extractor.identity, "CMMD is not computed"
    x = images(2, 42, 42).permute(0, 3, 1, 2) / 255
    mean, std = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    transformers = pytest.importorskip("transformers")
    net = transformers.CLIPModel.from_pretrained(clip).eval()
    with torch.no_grad():
        x = torchvision.transforms.functional.normalize(x, mean, std)
        expected = net.visual_projection(net.vision_model(pixel_values=x).pooler_output)
    expected = expected / expected.norm(dim=1, keepdim=True)
    assert torch.allclose(extractor(images(2, 42, 42)), expected, rtol=1e-4, atol=1e-5)


def test_clip_from_a_file_of_tensors(clip: Path) -> None:
    """The hub has some checkpoints without safetensors."""
    transformers = pytest.importorskip("transformers")
    expected = load_extractor(f"clip:{clip}")(images(2))
    torch.save(transformers.CLIPModel.from_pretrained(clip).state_dict(), clip / "pytorch_model.bin")
    (clip / "model.safetensors").unlink()
    extractor = load_extractor(f"clip:{clip}")
    check_promises(extractor, 16, clip / "pytorch_model.bin")
    assert torch.equal(extractor(images(2)), expected)


@pytest.mark.parametrize("kind", ["clip", "dinov2"])
def test_other_checkpoints_are_named_in_one_line(kind: str, clip: Path, dino: Path) -> None:
    """A cut file ends the command, or its error does not say which one it was."""
    folder = {"clip": clip, "dinov2": dino}[kind]
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    missing(f"{kind}:{folder}", str(folder), "anew")
    (folder / "model.safetensors").write_bytes(whole)
    (folder / "config.json").write_text("")
    missing(f"{kind}:{folder}", str(folder), "anew")


def test_clip_without_some_tensors(clip: Path) -> None:
    weights = load_file(clip / "model.safetensors")
    del weights["vision_model.post_layernorm.weight"]
    save_file(weights, clip / "model.safetensors", {"format": "pt"})
    missing(f"clip:{clip}", "lacks 1 tensors")


@pytest.mark.parametrize(
    ("count", "number"), [(7, "7"), (999, "999"), (3042, "3.0k"), (5000, "5k"), (10_550, "10.5k"), (50_000, "50k")]
)
def test_a_frechet_distance_is_named_with_its_count(count: int, number: str, dino: Path) -> None:
    extractor = load_extractor(f"dinov2:{dino}")
    assert extractor.frechet_name(count) == f"FD-{number} DINOv2"
    extractor.name = INCEPTION
    assert extractor.frechet_name(count) == f"FID-{number}", "the one that is called FID"


@pytest.fixture
def inception(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """torch-fidelity's network with random weights, in the place of its file; the hash is not the one of its name."""
    module = pytest.importorskip(
        "torch_fidelity.feature_extractor_inceptionv3", reason="torch-fidelity is not installed (ssdd[eval])"
    )
    path = cache / "weights-inception-2015-12-05-6726825d.pth"
    with monkeypatch.context() as patch, torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        patch.setattr(module.torch, "load", lambda *_, **__: {})
        patch.setattr(module.FeatureExtractorInceptionV3, "load_state_dict", lambda *_, **__: None)
        net: Any = module.FeatureExtractorInceptionV3("random", ["2048"], feature_extractor_weights_path="none")
    torch.save(net.state_dict(), path)
    return path


def test_inception(inception: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert INCEPTION in available_extractors()
    missing(INCEPTION, str(inception), "is another file than that of https://", "delete it and get it anew")
    monkeypatch.setattr(weights, "sha256", lambda path: "6726825d")
    extractor = load_extractor(INCEPTION)
    assert extractor.title == "Inception"
    check_promises(extractor, 2048, inception)
    theirs = extractor.net(images(2).permute(0, 3, 1, 2).contiguous())[0]
    assert torch.equal(extractor(images(2)), theirs), "torch-fidelity's own call gives other features"


@pytest.mark.parametrize("content", ["cut", "empty", "text", "another network"])
def test_damaged_weights_are_named_and_left_out(
    content: str, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A training ends for a file that only its validation reads, or with a line that does not name the file."""
    path = cache / "mobilenet_v2-b0353104.pth"
    torch.save({"weight": torch.zeros(30_000)}, path)
    whole = path.read_bytes()
    path.write_bytes({"cut": whole[:60_000], "empty": b"", "text": b"<html>", "another network": whole}[content])
    missing(MOBILENET, str(path), "is damaged or no file of its weights", "delete it and get it anew from https://")
    monkeypatch.setattr(features, "available_extractors", lambda: [MOBILENET])
    assert features.cached_extractor() is None
    assert f"left out: {MOBILENET}: {path} is damaged" in caplog.text


def test_missing_weights_are_named_in_one_line(cache: Path) -> None:
    """Offline, with and without the permission to download."""
    assert not {INCEPTION, MOBILENET} & set(available_extractors()), "an extractor is announced that is not there"
    pytest.importorskip("torch_fidelity", reason="torch-fidelity is not installed (ssdd[eval])")
    cases = {INCEPTION: "weights-inception-2015-12-05-6726825d.pth", MOBILENET: "mobilenet_v2-b0353104.pth"}
    for name, file in cases.items():
        missing(name, str(cache / file), "is missing and could not be downloaded (URLError", "https://")
        missing(name, str(cache / file), "is missing; put the file from https://", download=False)
    assert not list(cache.iterdir()), "a failed download leaves a file"


@pytest.mark.parametrize("kind", ["dinov2", "clip"])
@pytest.mark.parametrize("download", [True, False])
def test_missing_checkpoints_are_named_in_one_line(cache: Path, tmp_path: Path, kind: str, download: bool) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed (ssdd[train])")
    (tmp_path / "empty").mkdir()
    tried = "could not be downloaded" if download else "in Hugging Face's cache"
    missing(f"{kind}:nobody/nothing", "nobody/nothing", tried, f"{kind}:FOLDER", download=download)
    missing(f"{kind}:{tmp_path / 'empty'}", "model.safetensors", download=download)


def test_damaged_weights_are_named_in_one_line(cache: Path) -> None:
    """An empty file, an error page instead of weights, or a pickle that would run code."""
    path = cache / "mobilenet_v2-b0353104.pth"
    for content in (b"", b"<html>not found</html>"):
        path.write_bytes(content)
        missing(MOBILENET, str(path), "damaged")
    torch.save({"weight": subprocess.Popen}, path)
    missing(MOBILENET, str(path), "damaged")


def test_settings_of_the_caller_come_back(dino: Path) -> None:
    """Training goes on with other settings after an evaluation."""
    extractor = load_extractor(f"dinov2:{dino}")
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    flags = (torch.backends.cudnn.enabled, torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32)
    try:
        extractor(images(1))
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)
    assert flags == (torch.backends.cudnn.enabled, torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32)
    assert not any(p.requires_grad for p in extractor.net.parameters())
    assert not any(module.training for module in extractor.net.modules()), "dropout is on"


def test_only_8_bit_pictures_are_taken(dino: Path) -> None:
    extractor = load_extractor(f"dinov2:{dino}")
    for wrong in (images(2) / 255, images(2).permute(0, 3, 1, 2), images(2)[0], images(2)[:, :0]):
        with pytest.raises(ValueError, match=r"expected uint8 images \(B, H, W, 3\), found"):
            extractor(wrong)


@pytest.mark.parametrize("name", ["fid", "torchvision:resnet18", "dinov3-base", "dinov2", "clip:", ""])
def test_unknown_extractors_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"expected an extractor of .*, found '{name}'"):
        load_extractor(name)


def test_a_missing_package_is_an_extra(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without torch-fidelity the error does not say what to install."""
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)
    with pytest.raises(ImportError, match=r"torch-fidelity: pip install 'ssdd\[eval\]'"):
        load_extractor(INCEPTION)
