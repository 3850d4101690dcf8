"""Check what is said of the machine against the system, and its peaks against plain measurements."""

from __future__ import annotations

import json
import os
import time
from dataclasses import FrozenInstanceError
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from detector import machine
from detector.machine import TYPES, describe_machine, measure_bandwidth, measure_gemm


def test_the_description_is_that_of_the_system() -> None:
    found = describe_machine(measured=False)
    assert found.threads == torch.get_num_threads()
    assert 1 <= found.cores <= (os.cpu_count() or 1)
    assert found.packages["torch"] == version("torch")
    assert found.packages["numpy"] == version("numpy")
    assert found.cpu
    info = Path("/proc/cpuinfo")
    if info.exists() and "model name" in info.read_text():
        assert f": {found.cpu}\n" in info.read_text()
    memory = Path("/proc/meminfo")
    if memory.exists():
        total = int(memory.read_text().split("MemTotal:")[1].split()[0]) * 1024
        assert found.memory_gb == pytest.approx(total / 1e9, rel=0.01, abs=0.1)
    with pytest.raises(FrozenInstanceError):
        found.cores = 1  # type: ignore[misc]


def test_what_was_not_measured_is_left_out_of_json() -> None:
    values = json.loads(json.dumps(describe_machine(measured=False).to_dict(), allow_nan=False))
    assert list(values) == [
        *("cpu", "cores", "threads", "memory_gb", "system", "python", "packages", "gemm_gflops", "bandwidth_gbs")
    ]
    assert (values["gemm_gflops"], values["bandwidth_gbs"]) == ({}, None)


@pytest.mark.parametrize("kind", TYPES)
def test_products_are_products(kind: str) -> None:
    generator = torch.Generator().manual_seed(3)
    x, w = (torch.randn(n, 17, generator=generator) for n in (5, 11))
    ways = list(machine._products(TYPES[kind]))
    assert ways
    for way in ways:
        with torch.inference_mode():
            found = way(x.to(TYPES[kind]), w.to(TYPES[kind]))
        assert tuple(found.shape) == (5, 11)
        exact = x.to(TYPES[kind]).double() @ w.to(TYPES[kind]).double().T
        # a bfloat16 has 8 bits: half a unit in the last place of numbers up to 16
        torch.testing.assert_close(found.double(), exact, rtol=0, atol=0.04 if kind == "bfloat16" else 1e-5)


def test_one_product_that_this_build_lacks_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        raise AttributeError("'_OpNamespace' 'mkldnn' object has no attribute '_linear_pointwise'")

    monkeypatch.setattr(machine, "_onednn_product", missing)
    assert len(list(machine._products(torch.float32))) == 1
    assert measure_gemm(torch.float32, seconds=0.01) > 0


def test_a_rate_is_the_work_over_the_shortest_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every call take a known time: the rates are then arithmetic."""
    monkeypatch.setattr(machine, "_fastest", lambda *arguments: 0.5)
    assert measure_bandwidth() == pytest.approx(2 * 256 * 2**20 / 0.5 / 1e9)
    assert measure_gemm(torch.float32) == pytest.approx(2 * 2048 * 3200 * 1024 / 0.5 / 1e9)


def test_the_shortest_time_leaves_out_the_first_call() -> None:
    calls = []

    def call(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        time.sleep(0 if len(calls) == 1 else 0.02)  # the first is the fastest, and must not count
        return x

    one = torch.ones(1)
    assert 0.02 <= machine._fastest(call, one, one, 0.0) < 10
    assert len(calls) == 3
