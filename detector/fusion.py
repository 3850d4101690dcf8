"""Compute convolutions and linear layers by oneDNN's operators, each with the activation behind it, for detection only.

The weights are laid out for the processor once, before the first call, not in every call.
"""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_OPERATORS = (
    "_convolution_pointwise",
    "_linear_pointwise",
    "_reorder_convolution_weight",
    "_reorder_linear_weight",
)
_FUSED = {nn.ReLU: ("relu", []), nn.ReLU6: ("hardtanh", [0.0, 6.0]), nn.Hardswish: ("hardswish", [])}
# Convolutions and the places of their batch norms, which hold the activations once these are folded, in timm's blocks.
_BLOCKS = {
    "InvertedResidual": (("conv_pw", "bn1"), ("conv_dw", "bn2"), ("conv_pwl", "bn3")),
    "DepthwiseSeparableConv": (("conv_dw", "bn1"), ("conv_pw", "bn2")),
    "EfficientNet": (("conv_stem", "bn1"), ("conv_head", "bn2")),
}


def has_onednn() -> bool:
    """Tell whether PyTorch has oneDNN and its fused operators."""
    return torch.backends.mkldnn.is_available() and all(hasattr(torch.ops.mkldnn, name) for name in _OPERATORS)


class FusedConv(nn.Module):
    """Convolve and apply an activation in one pass over memory, by oneDNN.

    A convolution of 1 x 1 is the product of two matrices, for which oneDNN needs less time.
    """

    def __init__(self, conv: nn.Conv2d, activation: nn.Module | None):
        super().__init__()
        weight = conv.weight.detach().contiguous(memory_format=torch.channels_last)
        self.weight, self.bias = nn.Parameter(weight, requires_grad=False), conv.bias
        self.same = type(conv).__name__ == "Conv2dSame"  # timm's: TF-SAME padding, which depends on the size
        self.padding = [0, 0] if self.same else [int(p) for p in conv.padding]
        self.stride, self.dilation, self.groups = list(conv.stride), list(conv.dilation), conv.groups
        self.operation = _FUSED[type(activation)] if activation is not None else ("none", [])
        plain = self.stride == [1, 1] and self.padding == [0, 0] and self.groups == 1
        self.pointwise = plain and weight.shape[2:] == (1, 1)
        self._prepared: tuple[Tensor, ...] = ()  # in a tuple, so that it is no part of the module
        self._packed: tuple[Any, ...] = ()  # a kernel and the padding that it is for

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W), channels last in memory, to (N, C', H', W')."""
        if self.pointwise:
            return self._multiply(x)
        if not self.same:
            return self._convolve(x, self.weight, self.padding)
        if self._halves_evenly(x):
            margin = self.weight.shape[2] // 2
            return self._convolve(x, self._widened(), [margin, margin])
        x = F.pad(x, [*self._margins(x.shape[3], 1), *self._margins(x.shape[2], 0)])
        return self._convolve(x, self.weight, self.padding)

    def _convolve(self, x: Tensor, weight: Tensor, padding: list[int]) -> Tensor:
        geometry = (padding, self.stride, self.dilation, self.groups)
        if not self._packed:  # laid out as oneDNN likes it for this size, right for every other, too
            self._packed = (torch.ops.mkldnn._reorder_convolution_weight(weight, *geometry, list(x.shape)), *padding)
        kernel = self._packed[0] if self._packed[1:] == tuple(padding) else weight
        done: Tensor = torch.ops.mkldnn._convolution_pointwise(x, kernel, self.bias, *geometry, *self.operation, "")
        return done

    def _multiply(self, x: Tensor) -> Tensor:
        if not self._prepared:
            self._prepared = (torch.ops.mkldnn._reorder_linear_weight(self.weight.flatten(1)),)
        count, _, height, width = x.shape
        cells = x.permute(0, 2, 3, 1).flatten(0, 2)
        done: Tensor = torch.ops.mkldnn._linear_pointwise(cells, self._prepared[0], self.bias, *self.operation, "")
        return done.view(count, height, width, -1).permute(0, 3, 1, 2)

    def _halves_evenly(self, x: Tensor) -> bool:
        """Tell whether this is a depthwise layer of stride 2 and x has an even size, so that `_widened` serves."""
        odd = all(side % 2 for side in self.weight.shape[2:]) and self.weight.shape[2] == self.weight.shape[3]
        even = x.shape[2] % 2 == 0 and x.shape[3] % 2 == 0
        return self.stride == [2, 2] and self.dilation == [1, 1] and self.groups > 1 and odd and even

    def _widened(self) -> Tensor:
        """Return the kernel with a row of zeros above and a column of zeros to the left.

        TF-SAME pads an even size by one pixel more behind than before. The larger kernel makes that the same padding
        on both sides, which oneDNN does itself: no padded copy of the map, which took as long as the layer.
        """
        if not self._prepared:
            wide = F.pad(self.weight, [1, 0, 1, 0]).contiguous(memory_format=torch.channels_last)
            self._prepared = (wide,)
        return self._prepared[0]

    def _margins(self, length: int, axis: int) -> tuple[int, int]:
        """Return the padding before and behind that gives ceil(length / stride) outputs, the odd pixel behind."""
        stride, reach = self.stride[axis], (self.weight.shape[2 + axis] - 1) * self.dilation[axis]
        total = max((-(-length // stride) - 1) * stride + reach + 1 - length, 0)
        return total // 2, total - total // 2


def fuse(model: nn.Module, shared: bool) -> nn.Module:
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
    """Apply a linear layer and perhaps an activation by oneDNN, in one type; (R, inputs) to (R, outputs) float32."""

    def __init__(self, linear: nn.Linear, dtype: torch.dtype):
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach().to(dtype))
        self.dtype = dtype
        self.bias = nn.Parameter(linear.bias.detach().to(dtype), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        done: Tensor = torch.ops.mkldnn._linear_pointwise(x.to(self.dtype), self.weight, self.bias, "none", [], "")
        return done.float()


Layers = TypeVar("Layers", bound=nn.Module)


def fuse_linear(layers: Layers, dtype: torch.dtype) -> Layers:
    """Return a copy of learned layers whose linear ones with a bias are computed by oneDNN in a type."""
    copied = copy.deepcopy(layers).requires_grad_(False)
    for parent in list(copied.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear) and child.bias is not None:
                setattr(parent, name, FusedLinear(child, dtype))
    return copied
