"""Describe the machine that a benchmark ran on, and measure what it can do at best.

A stage's share of these peaks says how far it is from the hardware's limit: multiply-adds for the layers, memory
traffic for pooling.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_PACKAGES = ("torch", "torchvision", "numba", "numpy", "opencv-python", "sppnet")
# (M, K, N): products that fill the caches differently, the last one much like fc6 for 2,000 regions
_SHAPES = ((1024, 1024, 1024), (2048, 1024, 2048), (2048, 3200, 1024))
_COPIED = 256 * 2**20  # bytes: more than the last cache of a usual processor holds
_SECONDS = 1.0  # how long one peak is measured

Product = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Machine:
    """Hold what a benchmark's seconds depend on.

    cores: logical processors this process may use. threads: those that torch uses. memory_gb: installed, 10^9 bytes.
    packages: version by name. gemm_gflops: 10^9 floating-point operations per second of a matrix product, by type.
    bandwidth_gbs: 10^9 bytes per second, read and written together. Both are empty, or NaN, if not measured.
    """

    cpu: str
    cores: int
    threads: int
    memory_gb: float
    system: str
    python: str
    packages: Mapping[str, str]
    gemm_gflops: Mapping[str, float]
    bandwidth_gbs: float

    def to_dict(self) -> dict[str, Any]:
        """Return the values as JSON types; what was not measured is None."""
        return {**asdict(self), "bandwidth_gbs": self.bandwidth_gbs if self.bandwidth_gbs > 0 else None}


def describe_machine(measured: bool = True) -> Machine:
    """Describe this machine; with `measured`, take about three seconds to find its peaks with torch's threads."""
    return Machine(
        cpu=_cpu_name(),
        cores=_cores(),
        threads=torch.get_num_threads(),
        memory_gb=round(_memory() / 1e9, 1),
        system=f"{platform.system()}-{platform.release()} {platform.machine()}",
        python=platform.python_version(),
        packages=_versions(),
        gemm_gflops={name: measure_gemm(kind) for name, kind in TYPES.items()} if measured else {},
        bandwidth_gbs=measure_bandwidth() if measured else float("nan"),
    )


def measure_gemm(dtype: torch.dtype, seconds: float = _SECONDS) -> float:
    """Return 10^9 operations per second of the fastest matrix product that torch reaches, over a few shapes.

    A product of (M, K) and (K, N) is 2 M K N operations. float32 takes the better of torch.mm, which is MKL's or
    OpenBLAS's, and oneDNN's, which is more than twice as fast on AMD's processors; bfloat16 takes torch's linear layer.
    """
    generator = torch.Generator().manual_seed(0)
    products = list(_products(dtype))
    share = seconds / (len(_SHAPES) * len(products))
    best = 0.0
    for m, k, n in _SHAPES:
        left = torch.rand(m, k, generator=generator).to(dtype)
        right = torch.rand(n, k, generator=generator).to(dtype)
        for product in products:
            best = max(best, 2 * m * k * n / _fastest(product, left, right, share) / 1e9)
    return best


def measure_bandwidth(seconds: float = _SECONDS) -> float:
    """Return 10^9 bytes per second, read and written together, of copying a large tensor with all threads."""
    source = torch.ones(_COPIED // 4)
    target = torch.empty_like(source)
    return 2 * _COPIED / _fastest(lambda a, b: b.copy_(a), source, target, seconds) / 1e9


def _products(dtype: torch.dtype) -> Iterator[Product]:
    """Yield the ways to compute X W^T that may be the fastest, of those that work here."""
    candidates: list[Product] = [F.linear]
    if dtype == torch.float32:
        candidates = [lambda x, w: torch.mm(x, w.t()), _onednn_product]
    probe = torch.ones(2, 3, dtype=dtype), torch.ones(4, 3, dtype=dtype)
    for product in candidates:
        try:
            with torch.inference_mode():
                product(*probe)
        except (AttributeError, RuntimeError, NotImplementedError):  # this build of torch lacks the operator
            continue
        yield product


def _onednn_product(x: Tensor, w: Tensor) -> Tensor:
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x, w, None, "none", [], "")
    return result


@torch.inference_mode()
def _fastest(call: Product, left: Tensor, right: Tensor, seconds: float) -> float:
    """Return the shortest time of a call in seconds; repeat for so long, at least twice after one that warms up."""
    call(left, right)
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 2 or time.perf_counter() < end:
        start = time.perf_counter()
        call(left, right)
        times.append(time.perf_counter() - start)
    return min(times)


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine() or "unknown"


def _cores() -> int:
    allowed = getattr(os, "sched_getaffinity", None)
    return len(allowed(0)) if allowed else os.cpu_count() or 1


def _memory() -> int:
    """Return the installed memory in bytes, 0 where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return 0


def _versions() -> dict[str, str]:
    """Return the versions of the packages that the seconds depend on; those that are not installed are left out."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
