"""Measure where the cells of a convolutional map lie on the image, by the support of a cell's gradient.

One axis is measured at a time, on an image one pixel across: every kernel is reduced to that axis. What a cell depends
on along an axis does not depend on the other one, and a long image holds the largest receptive fields.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

_LENGTH = 6144


@dataclass(frozen=True, slots=True)
class Geometry:
    """Hold the stride of a map's cells, the centre of cell 0, and the side of its receptive field, in pixels."""

    stride: int
    offset: float
    field: int


def measure_geometry(stages: Sequence[tuple[str, nn.Module]], length: int = _LENGTH) -> tuple[Geometry, int]:
    """Measure the geometry of the last stage's map, and count its channels.

    The stages are copied and made linear with positive weights, so that every pixel of a receptive field has a
    positive gradient and no other pixel has any; the field's middle is the cell's centre.
    length: of the test image in pixels; the receptive field must fit inside it.
    Raises ValueError if it does not, if the cells do not lie on a regular grid or not on the same one along both axes,
    or if the stages do not fit each other.
    """
    (rows, channels), (columns, _) = (_measure_axis(stages, axis, length) for axis in (0, 1))
    if rows != columns:
        raise ValueError(f"expected cells that lie alike along both axes, got {rows} and {columns}")
    return rows, channels


def _measure_axis(stages: Sequence[tuple[str, nn.Module]], axis: int, length: int) -> tuple[Geometry, int]:
    """Measure the geometry along one axis, 0 for y and 1 for x, and count the channels."""
    network = nn.Sequential(*(linear_copy(stage) for _, stage in stages)).double()
    _reduce_to_axis(network, axis)
    size = (length, 1) if axis == 0 else (1, length)
    image = torch.ones(1, 3, *size, dtype=torch.float64, requires_grad=True)
    try:
        values = network(image)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"expected convolutional stages, each of which takes the map before it, got {reason}"
        ) from error
    if values.ndim != 4:
        raise ValueError(f"expected a map of shape (1, C, h, w), got {tuple(values.shape)}")
    line = values.sum(dim=(0, 1, 3 - axis))
    middle = len(line) // 2
    centres, field = [], 0
    for cell in (middle, middle + 1):
        (gradient,) = torch.autograd.grad(line[min(cell, len(line) - 1)], image, retain_graph=True)
        pixels = gradient.sum(dim=(0, 1, 3 - axis)).nonzero()[:, 0]
        first, last = int(pixels[0]), int(pixels[-1])
        if first == 0 or last == length - 1:
            raise ValueError(f"expected a receptive field smaller than {length} pixels, got a larger one")
        centres.append((first + last) / 2)
        field = last - first + 1
    stride = centres[1] - centres[0]
    if stride != int(stride) or stride < 1:
        raise ValueError(f"expected cells a whole number of pixels apart, got {stride}")
    return Geometry(int(stride), centres[0] - stride * middle, field), int(values.shape[1])


def _reduce_to_axis(network: nn.Module, axis: int) -> None:
    """Cut every kernel of a linear copy to one cell across the axis, in place; its stride there becomes 1."""
    neutral = {"kernel_size": 1, "stride": 1, "padding": 0, "dilation": 1}
    for part in network.modules():
        if not isinstance(part, nn.Conv2d | nn.AvgPool2d):
            continue
        for name, value in neutral.items():
            old = getattr(part, name, None)
            if isinstance(old, int | tuple):  # "same" and "valid" padding fit any kernel
                along = old if isinstance(old, int) else old[axis]
                setattr(part, name, (along, value) if axis == 0 else (value, along))
        if isinstance(part, nn.Conv2d):
            part.weight = nn.Parameter(part.weight.detach().sum(dim=3 - axis, keepdim=True))


class _Positive(nn.Module):
    """Stand in for a normalisation, an activation or a gate: the identity."""

    def forward(self, x: Tensor, *_: object) -> Tensor:
        return x


def linear_copy(module: nn.Module) -> nn.Module:
    """Copy a module with positive averaging weights, average instead of maximum pooling, and no other functions."""
    result = copy.deepcopy(module).eval()
    if not isinstance(result, nn.Conv2d):
        result = _replace(result)
    for part in result.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.constant_(part.weight, 1.0 / part.weight[0].numel())
            if part.bias is not None:
                nn.init.zeros_(part.bias)
    return result


def _replace(module: nn.Module) -> nn.Module:
    if isinstance(module, nn.MaxPool2d):
        return nn.AvgPool2d(module.kernel_size, module.stride, module.padding, module.ceil_mode)
    kind = type(module).__name__
    keep = isinstance(module, nn.Conv2d | nn.AvgPool2d)
    leaf = not any(True for _ in module.children())
    if not keep and (leaf or "SqueezeExcit" in kind or isinstance(module, nn.modules.batchnorm._NormBase)):
        return _Positive()
    for name, child in module.named_children():
        setattr(module, name, _replace(child))
    return module
