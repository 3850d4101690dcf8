"""Compute the convolutional maps of an image, once per image, and keep them on disk for training.

`Extractor` computes; `FeatureStore` has the same job with a folder behind it. Both give one `FeatureMap` per tap.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from .backbones import PAD_MULTIPLE, Trunk
from .files import replacing
from .images import resize_image, scaled_size
from .structures import FeatureMap

FORMAT = 1


@dataclass(frozen=True, slots=True, eq=False)
class Extractor:
    """Map an image to its feature maps at one scale.

    trunk: the convolutional layers. shorter: the shorter side of the resized image in pixels.
    longest: the most its longer side may have, in pixels. engine: computes the layers; the default is to call them.
    dtype: of the pixels that the engine is given.
    """

    trunk: Trunk
    shorter: int
    longest: int
    engine: Callable[[Tensor], list[Tensor]] | None = None
    dtype: torch.dtype = torch.float32

    def at(self, shorter: int, aspect: float) -> Extractor:
        """Return the extractor of another scale. aspect: the most the longer side may be of the shorter one."""
        return self if shorter == self.shorter else replace(self, shorter=shorter, longest=round(shorter * aspect))

    @property
    def settings(self) -> Mapping[str, Any]:
        """Name everything that shapes the maps; its hash keys the cache."""
        layers = [tap.layer for tap in self.trunk.taps]
        named = {
            "format": FORMAT,
            "trunk": self.trunk.name,
            "layers": layers,
            "shorter": self.shorter,
            "longest": self.longest,
        }
        return named | ({"origin": self.trunk.origin} if self.trunk.origin else {})

    def pixels(self, image: Tensor) -> Tensor:
        """Return what the trunk reads of a (3, H, W) uint8 image: resized, normalised, padded, (1, 3, H', W')."""
        height, width = image.shape[1:]
        resized = resize_image(image, scaled_size((height, width), self.shorter, self.longest))
        device = self.trunk.mean.device
        if device.type == "cpu":
            return lay_out(resized, self.trunk.normalised.to(self.dtype))
        x = pad_to_multiple(self.trunk.normalise(resized[None].to(device)), PAD_MULTIPLE)
        return x.contiguous(memory_format=torch.channels_last)

    @torch.inference_mode()
    def __call__(self, image: Tensor) -> tuple[FeatureMap, ...]:
        """Map a (3, H, W) uint8 image to one FeatureMap per tap of the trunk."""
        height, width = image.shape[1:]
        size = scaled_size((height, width), self.shorter, self.longest)
        scale = (size[0] / height, size[1] / width)
        compute = self.engine or self.trunk.maps
        maps = compute(self.pixels(image))
        taps = self.trunk.taps
        return tuple(FeatureMap(m[0], tap.stride, tap.offset, scale) for m, tap in zip(maps, taps, strict=True))


def lay_out(image: Tensor, table: Tensor, multiple: int = PAD_MULTIPLE) -> Tensor:
    """Look up every pixel of a (3, H, W) uint8 image, channels last, in one pass over memory, with zeros behind.

    table: (256, 3), what each value of each channel becomes, float32 or bfloat16. Returns (1, 3, H', W'), channels
    last, H' and W' the next multiples of `multiple`.
    """
    _, height, width = image.shape
    padded = torch.empty(height + -height % multiple, width + -width % multiple, 3, dtype=table.dtype)
    padded[height:], padded[:, width:] = 0, 0
    pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
    cv2.LUT(pixels, _bits(table.contiguous())[None], dst=_bits(padded)[:height, :width])
    return padded.permute(2, 0, 1)[None]


def _bits(values: Tensor) -> np.ndarray[Any, Any]:
    """Return an array on the same memory; bfloat16, which numpy does not know, as the 16 bits it is made of."""
    return values.view(torch.int16).numpy().view(np.uint16) if values.dtype == torch.bfloat16 else values.numpy()


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Pad (N, C, H, W) with zeros, the mean colour after normalisation, at the right and the bottom."""
    height, width = x.shape[-2:]
    return F.pad(x, (0, -width % multiple, 0, -height % multiple))


def flip_map(feature_map: FeatureMap, width: int) -> FeatureMap:
    """Mirror a map of an image left to right; the mirrored map has the geometry that the mirrored image sees.

    width: of the original image in pixels. Pixel x of the resized image becomes (resized width - 1 - x), so the
    last cell's centre becomes the first one's.
    """
    resized = round(width * feature_map.scale[1])
    offset_y, offset_x = feature_map.offsets
    last = offset_x + feature_map.stride * (feature_map.values.shape[2] - 1)
    mirrored = (offset_y, resized - 1 - last)
    return FeatureMap(feature_map.values.flip(2), feature_map.stride, mirrored, feature_map.scale)


def values_key(values: Mapping[str, Tensor]) -> str:
    """Return 16 hexadecimal digits that stand for named tensors."""
    digest = hashlib.sha256()
    for name, value in values.items():
        digest.update(name.encode() + value.detach().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def settings_key(settings: Mapping[str, Any]) -> str:
    """Return 16 hexadecimal digits that stand for JSON-serialisable settings."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


class MapSource(Protocol):
    """Compute feature maps of an image."""

    @property
    def settings(self) -> Mapping[str, Any]: ...

    def __call__(self, image: Tensor) -> tuple[FeatureMap, ...]: ...


@dataclass(frozen=True, slots=True, eq=False)
class FeatureStore:
    """Keep feature maps on disk: float16, one safetensors file per image, written whole or not at all.

    folder: where `KEY/IMAGE.safetensors` lie; KEY is the hash of the extractor's settings.
    """

    folder: Path
    extractor: MapSource

    def path(self, image_id: str) -> Path:
        """Return the file that holds the maps of an image."""
        return self.folder / settings_key(self.extractor.settings) / f"{image_id}.safetensors"

    def load(self, image_id: str) -> tuple[FeatureMap, ...] | None:
        """Read the maps of an image; None if they are not there or the file is damaged."""
        path = self.path(image_id)
        try:
            with safe_open(path, framework="pt") as file:
                geometry = json.loads(file.metadata()["maps"])
                values = [file.get_tensor(str(i)) for i in range(len(geometry))]
            return tuple(
                FeatureMap(v.permute(2, 0, 1), int(g[0]), float(g[1]), (float(g[2]), float(g[3])))
                for v, g in zip(values, geometry, strict=True)
            )
        except (OSError, SafetensorError, LookupError, TypeError, ValueError, RuntimeError):
            return None

    def compute(self, image_id: str, image: Tensor) -> tuple[FeatureMap, ...]:
        """Compute the maps of an image and write them, (h, w, C) float16."""
        maps = self.extractor(image)
        tensors = {str(i): m.values.permute(1, 2, 0).half().contiguous().cpu() for i, m in enumerate(maps)}
        geometry = json.dumps([[m.stride, m.offset, *m.scale] for m in maps])
        with replacing(self.path(image_id)) as beside:
            save_file(tensors, beside, metadata={"maps": geometry})
        return maps
