"""``ssdd doctor``: it runs here, and a device that computes wrongly is told."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch

from ssdd.cli import checkup
from ssdd.cli.checkup import RoundTrip

Ssdd = Callable[..., Any]


@pytest.mark.slow
def test_json_of_this_machine(ssdd: Ssdd) -> None:
    result = ssdd("doctor", "--json", "--no-compile")
    assert result.status == 0, result.err
    found = json.loads(result.out)
    assert found["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert any(name.startswith("torch.compile on cpu") for name in found["quick_paths"])
    cpu = {trip["dtype"]: trip for trip in found["round_trips"] if trip["device"] == "cpu"}
    assert cpu["fp32"]["db"] == pytest.approx(120)
    assert 40 < cpu["bf16"]["db"] < 70, "no reconstruction in half precision is that near or far"


def test_wrong_device_is_told(ssdd: Ssdd, monkeypatch: pytest.MonkeyPatch) -> None:
    trips = [
        RoundTrip("cpu", "fp32", False, 120.0, 1.0),
        RoundTrip("mps", "bf16", False, 12.5, 0.5),
        RoundTrip("cuda:0", "fp16", False, None, None, "RuntimeError: no kernel image is available"),
    ]
    monkeypatch.setattr(checkup, "round_trips", lambda compile: trips)
    result = ssdd("doctor", "--no-compile")
    assert result.status == 1
    assert "WRONG: expected at least 30 dB" in result.out
    assert "RuntimeError: no kernel image is available" in result.out


def test_nothing_is_compiled_on_request(ssdd: Ssdd, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the compiler hangs, so does the command."""

    def can_compile(device: torch.device) -> bool:
        raise AssertionError("the compiler was started")

    monkeypatch.setattr(checkup, "can_compile", can_compile)
    monkeypatch.setattr(checkup, "round_trips", lambda compile: [])
    result = ssdd("doctor", "--no-compile")
    assert result.status == 0
    assert "torch.compile on cpu: not tried, as --no-compile asks" in result.out


@pytest.mark.slow
def test_error_of_a_device_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkup, "devices", lambda: [torch.device("cpu"), torch.device("meta")])
    trips = checkup.round_trips(compile=False)
    wrong = [trip for trip in trips if trip.device == "meta"]
    assert wrong
    assert all(trip.error and not trip.right for trip in wrong)
    assert all(trip.right for trip in trips if trip.device == "cpu")
