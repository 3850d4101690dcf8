"""Run the trunk and the learned layers of a finished detector fast, on the CPU.

| engine | what it does | needs |
|---|---|---|
| eager | the modules as they are, batch norm folded, float32 | nothing; the only one on CUDA |
| onednn | oneDNN's kernels, activations fused into the convolutions, float32 | PyTorch built with oneDNN (x86, arm) |
| onednn-bf16 | the same in bfloat16, sums in float32 | a CPU that multiplies bfloat16 (AVX512-BF16, AMX) |
| auto | the last of these three that this machine can run | nothing |
| compile | `torch.compile`, weights frozen, for the trunk; else as auto | a C++ compiler, and a minute of waiting |
| openvino | OpenVINO for the trunk; else as auto | `pip install "sppnet[openvino]"` |

`eager` is what trains and fills caches. The others never change what was learned: they work on copies.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TypeVar

import torch
from torch import Tensor, nn

from .backbones import Trunk
from .fusion import fuse, fuse_linear, has_onednn
from .runtimes import compiled_maps, openvino_maps

ENGINES = ("auto", "eager", "onednn", "onednn-bf16", "compile", "openvino")

Maps = Callable[[Tensor], list[Tensor]]


@dataclass(frozen=True, slots=True, eq=False)
class Engine:
    """Hold the way in which a detector computes. dtype: of what is multiplied. fused: whether by oneDNN's kernels."""

    name: str
    dtype: torch.dtype
    fused: bool

    @property
    def reads(self) -> torch.dtype:
        """Return the type in which the trunk reads pixels without converting them once more."""
        return self.dtype if self.name.startswith("onednn") else torch.float32


def choose_engine(name: str, device: torch.device | str = "cpu") -> Engine:
    """Return an engine by name. Raises ValueError for an unknown one or one that this machine cannot run."""
    on_cpu = torch.device(device).type == "cpu"
    if name not in ENGINES:
        raise ValueError(f"expected an engine among {', '.join(ENGINES)}, got {name!r}")
    if name not in ("auto", "eager") and not on_cpu:
        raise ValueError(f"expected the engine eager on {device}, got {name}")
    if name.startswith("onednn") and not has_onednn():
        raise ValueError(f"expected a PyTorch with oneDNN for the engine {name}, got one without")
    if name == "onednn-bf16" and not _has_onednn_bfloat16():
        raise ValueError(
            "expected a processor on which oneDNN computes in bfloat16 for the engine onednn-bf16, got none"
        )
    if name == "openvino" and find_spec("openvino") is None:
        raise ValueError('expected OpenVINO for the engine openvino: install it with `pip install "sppnet[openvino]"`')
    fused = name != "eager" and on_cpu and has_onednn()
    halves = fused and name != "onednn" and (name == "onednn-bf16" or multiplies_bfloat16())
    if name == "auto":
        name = "eager" if not fused else "onednn-bf16" if halves else "onednn"
    return Engine(name, torch.bfloat16 if halves else torch.float32, fused)


def multiplies_bfloat16() -> bool:
    """Tell whether this processor multiplies bfloat16 itself, so that it is faster than float32."""
    known = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return _has_onednn_bfloat16() and any(getattr(torch.cpu, name, lambda: False)() for name in known)


def _has_onednn_bfloat16() -> bool:
    """Tell whether oneDNN computes in bfloat16 here at all; it may be told not to use all that a processor can do."""
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return has_onednn() and supported is not None and bool(supported())


def trunk_maps(trunk: Trunk, engine: Engine) -> Maps:
    """Return what maps normalised (N, 3, H, W) images to one float32 map per tap, by an engine.

    The images are float32, or of the type that the engine reads.
    """
    if engine.name == "openvino":
        return openvino_maps(trunk, engine.dtype)
    if engine.name == "compile":
        return compiled_maps(trunk, engine.dtype)
    if not engine.fused:
        return trunk.maps
    shared = engine.dtype == torch.float32  # converting would convert the trunk's own weights, too
    fast = trunk.with_model(fuse(trunk.model, shared).to(engine.dtype))

    def maps(x: Tensor) -> list[Tensor]:
        return [m.float() for m in fast.maps(x.to(engine.dtype))]

    return maps


Layers = TypeVar("Layers", bound=nn.Module)


def fast_layers(layers: Layers, engine: Engine) -> Layers:
    """Return a copy of learned layers whose linear ones with a bias are computed by an engine."""
    if not engine.fused:
        return layers
    return fuse_linear(layers, engine.dtype)
