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

import copy
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .backbones import Trunk
from .runtimes import compiled_maps, openvino_maps

ENGINES = ("auto", "eager", "onednn", "onednn-bf16", "compile", "openvino")

Maps = Callable[[Tensor], list[Tensor]]
_FUSED = {nn.ReLU: ("relu", []), nn.ReLU6: ("hardtanh", [0.0, 6.0]), nn.Hardswish: ("hardswish", [])}
# Convolutions and the places of their batch norms, which hold the activations once these are folded, in timm's blocks.
_BLOCKS = {
    "InvertedResidual": (("conv_pw", "bn1"), ("conv_dw", "bn2"), ("conv_pwl", "bn3")),
    "DepthwiseSeparableConv": (("conv_dw", "bn1"), ("conv_pw", "bn2")),
    "EfficientNet": (("conv_stem", "bn1"), ("conv_head", "bn2")),
}


@dataclass(frozen=True, slots=True, eq=False)
class Engine:
    """Hold the way in which a detector computes. dtype: of what is multiplied. fused: whether by oneDNN's kernels."""

    name: str
    dtype: torch.dtype
    fused: bool


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


def has_onednn() -> bool:
    """Tell whether PyTorch has oneDNN and its fused operators."""
    operators = ("_convolution_pointwise", "_linear_pointwise")
    return torch.backends.mkldnn.is_available() and all(hasattr(torch.ops.mkldnn, name) for name in operators)


def multiplies_bfloat16() -> bool:
    """Tell whether this processor multiplies bfloat16 itself, so that it is faster than float32."""
    known = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return _has_onednn_bfloat16() and any(getattr(torch.cpu, name, lambda: False)() for name in known)


def _has_onednn_bfloat16() -> bool:
    """Tell whether oneDNN computes in bfloat16 here at all; it may be told not to use all that a processor can do."""
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return has_onednn() and supported is not None and bool(supported())


def trunk_maps(trunk: Trunk, engine: Engine) -> Maps:
    """Return what maps a normalised (N, 3, H, W) float32 image to one float32 map per tap, by an engine."""
    if engine.name == "openvino":
        return openvino_maps(trunk, engine.dtype)
    if engine.name == "compile":
        return compiled_maps(trunk, engine.dtype)
    if not engine.fused:
        return trunk.maps
    shared = engine.dtype == torch.float32  # converting would convert the trunk's own weights, too
    fast = trunk.with_model(_fuse(trunk.model, shared).to(engine.dtype))

    def maps(x: Tensor) -> list[Tensor]:
        return [m.float() for m in fast.maps(x.to(engine.dtype))]

    return maps


class FusedConv(nn.Module):
    """Convolve and apply an activation in one pass over memory, by oneDNN."""

    def __init__(self, conv: nn.Conv2d, activation: nn.Module | None):
        super().__init__()
        weight = conv.weight.detach().contiguous(memory_format=torch.channels_last)
        self.weight, self.bias = nn.Parameter(weight, requires_grad=False), conv.bias
        self.same = type(conv).__name__ == "Conv2dSame"  # timm's: TF-SAME padding, which depends on the size
        self.padding = [0, 0] if self.same else [int(p) for p in conv.padding]
        self.stride, self.dilation, self.groups = list(conv.stride), list(conv.dilation), conv.groups
        self.operation = _FUSED[type(activation)] if activation is not None else ("none", [])

    def forward(self, x: Tensor) -> Tensor:
        if self.same:
            x = F.pad(x, [*self._same(x.shape[3], 1), *self._same(x.shape[2], 0)])
        name, limits = self.operation
        geometry = (self.padding, self.stride, self.dilation, self.groups)
        done: Tensor = torch.ops.mkldnn._convolution_pointwise(x, self.weight, self.bias, *geometry, name, limits, "")
        return done

    def _same(self, length: int, axis: int) -> tuple[int, int]:
        """Return the padding before and behind that gives ceil(length / stride) outputs, the odd pixel behind."""
        stride, reach = self.stride[axis], (self.weight.shape[2 + axis] - 1) * self.dilation[axis]
        total = max((-(-length // stride) - 1) * stride + reach + 1 - length, 0)
        return total // 2, total - total // 2


def _fuse(model: nn.Module, shared: bool) -> nn.Module:
    """Return a copy of a folded network whose convolutions apply the activations behind them. shared: its weights."""
    known: dict[int, Any] = {id(p): p for p in model.parameters()} if shared else {}
    fused = copy.deepcopy(model, known)
    for parent in list(fused.modules()):
        for conv, place in _pairs(parent):
            before, after = getattr(parent, conv, None), getattr(parent, place, None) if place else None
            if not isinstance(before, nn.Conv2d) or before.padding_mode != "zeros" or isinstance(before.padding, str):
                continue
            follows = type(after) in _FUSED
            setattr(parent, conv, FusedConv(before, after if follows else None))
            if follows and place:
                setattr(parent, place, nn.Identity())
    return fused


def _pairs(parent: nn.Module) -> list[tuple[str, str]]:
    """Return the names of convolutions and of what is sure to be applied behind them, "" if nothing is."""
    if isinstance(parent, nn.Sequential):
        names = [name for name, child in parent.named_children() if not isinstance(child, nn.Identity)]
        return list(zip(names, [*names[1:], ""], strict=True))
    return list(_BLOCKS.get(type(parent).__name__, ()))


class FusedLinear(nn.Module):
    """Apply a linear layer by oneDNN, in the engine's type; (R, inputs) to (R, outputs) float32."""

    def __init__(self, linear: nn.Linear, dtype: torch.dtype):
        super().__init__()
        self.weight = nn.Parameter(linear.weight.detach().to(dtype), requires_grad=False)
        self.bias = nn.Parameter(linear.bias.detach().to(dtype), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        given = x.to(self.weight.dtype)
        done: Tensor = torch.ops.mkldnn._linear_pointwise(given, self.weight, self.bias, "none", [], "")
        return done.float()


Layers = TypeVar("Layers", bound=nn.Module)


def fast_layers(layers: Layers, engine: Engine) -> Layers:
    """Return a copy of learned layers whose linear ones with a bias are computed by an engine."""
    if not engine.fused:
        return layers
    copied = copy.deepcopy(layers).requires_grad_(False)
    for parent in list(copied.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear) and child.bias is not None:
                setattr(parent, name, FusedLinear(child, engine.dtype))
    return copied
