"""As much of ComfyUI as the node pack asks for, by the names and signatures that ComfyUI has."""

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

PACK = Path(__file__).parents[2] / "integrations" / "comfyui"
CPU = torch.device("cpu")


class InterruptProcessingException(Exception):
    """What ComfyUI raises where a user stops a workflow."""


class ModelPatcher:
    def __init__(
        self, model: nn.Module, load_device: torch.device, offload_device: torch.device, size: int = 0
    ) -> None:
        self.model, self.load_device, self.offload_device = model, load_device, offload_device
        self.model.device = offload_device  # type: ignore[assignment]


@dataclass
class FakeComfyUI:
    """What ComfyUI was asked for.

    Attributes:
        folders: ``folder_paths``: the folders of each kind of model.
        loaded: the memory that each call of ``load_models_gpu`` asked for.
        progress: done and total of every step of a progress bar.
        interrupted: whether the user has stopped the workflow.
        vae_dtype: that ComfyUI chooses.
    """

    folders: dict[str, list[str]]
    loaded: list[int] = field(default_factory=list)
    progress: list[tuple[int, int]] = field(default_factory=list)
    interrupted: bool = False
    vae_dtype: torch.dtype = torch.float32

    def load_models_gpu(
        self, models: list[ModelPatcher], memory_required: int = 0, force_full_load: bool = False
    ) -> None:
        assert force_full_load, "modules that are not ComfyUI's own would be left on two devices"
        for patcher in models:
            patcher.model.to(patcher.load_device)
            patcher.model.device = patcher.load_device  # type: ignore[assignment]
        self.loaded.append(memory_required)

    def stop_if_interrupted(self) -> None:
        if self.interrupted:
            raise InterruptProcessingException

    def add_folder(self, kind: str, folder: str, is_default: bool = False) -> None:
        self.folders.setdefault(kind, []).append(folder)

    def progress_bar(self) -> type:
        steps = self.progress

        class ProgressBar:
            def __init__(self, total: int) -> None:
                self.total, self.current = total, 0

            def update_absolute(self, value: int, total: int | None = None) -> None:
                self.total = total or self.total
                self.current = min(value, self.total)
                steps.append((self.current, self.total))

            def update(self, value: int) -> None:
                self.update_absolute(self.current + value)

        return ProgressBar

    @contextmanager
    def installed(self, models: Path) -> Iterator[Any]:
        """Make its modules importable, and give the node pack as ComfyUI's loader imports it."""
        management = {
            "load_models_gpu": self.load_models_gpu,
            "throw_exception_if_processing_interrupted": self.stop_if_interrupted,
            "vae_device": lambda: CPU,
            "vae_offload_device": lambda: CPU,
            "intermediate_device": lambda: CPU,
            "vae_dtype": lambda device=None, allowed_dtypes=(): self.vae_dtype,
        }
        paths = {
            "models_dir": str(models),
            "add_model_folder_path": self.add_folder,
            "get_folder_paths": lambda kind: list(self.folders[kind]),
        }
        with pytest.MonkeyPatch.context() as patch:
            comfy = _module(patch, "comfy", {})
            comfy.model_management = _module(patch, "comfy.model_management", management)
            comfy.model_patcher = _module(patch, "comfy.model_patcher", {"ModelPatcher": ModelPatcher})
            comfy.utils = _module(patch, "comfy.utils", {"ProgressBar": self.progress_bar()})
            _module(patch, "folder_paths", paths)
            name = str(PACK).replace(".", "_x_")
            spec = importlib.util.spec_from_file_location(name, PACK / "__init__.py")
            assert spec is not None
            assert spec.loader is not None
            pack = importlib.util.module_from_spec(spec)
            patch.setitem(sys.modules, name, pack)
            before = set(sys.modules)
            spec.loader.exec_module(pack)
            yield pack
            for added in set(sys.modules) - before:
                if added.startswith(name):
                    del sys.modules[added]


def _module(patch: pytest.MonkeyPatch, name: str, attributes: dict[str, Any]) -> Any:
    module = ModuleType(name)
    vars(module).update(attributes)
    patch.setitem(sys.modules, name, module)
    return module
