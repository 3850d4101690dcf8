"""Hand a trunk to other programs that run networks: torch's compiler and OpenVINO."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .backbones import Trunk

Maps = Callable[[Tensor], list[Tensor]]


class _Maps(nn.Module):
    """Return a trunk's maps as a tuple, which exporters want."""

    def __init__(self, trunk: Trunk):
        super().__init__()
        self.trunk = trunk

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.trunk.maps(x))


def compiled_maps(trunk: Trunk, dtype: torch.dtype) -> Maps:
    """Return what maps a normalised (N, 3, H, W) float32 image to float32 maps, compiled by torch at the first call.

    It is compiled once for all sizes, its weights frozen into it. Raises what torch raises if there is no C++ compiler.
    """
    model = _Maps(trunk.with_model(copy.deepcopy(trunk.model))).to(dtype).eval()
    compiled = torch.compile(model, dynamic=True, options={"freezing": True})

    def maps(x: Tensor) -> list[Tensor]:
        return [m.float() for m in compiled(x.to(dtype))]

    return maps


def openvino_maps(trunk: Trunk, dtype: torch.dtype) -> Maps:
    """Return what maps a normalised (N, 3, H, W) float32 image to float32 maps by OpenVINO, on torch's threads."""
    import openvino

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tracing, about shapes that stay dynamic
        model: Any = openvino.convert_model(_Maps(trunk).eval(), example_input=torch.zeros(1, 3, 64, 96))
    settings = {
        "INFERENCE_PRECISION_HINT": "bf16" if dtype == torch.bfloat16 else "f32",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled: Any = openvino.compile_model(model, "CPU", settings)

    def maps(x: Tensor) -> list[Tensor]:
        found = compiled(x.numpy())
        return [torch.from_numpy(found[i].copy()) for i in range(len(trunk.taps))]

    return maps
