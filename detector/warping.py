"""Warp boxes of an image to crops of one size, with context around them: what R-CNN shows its trunk.

The crop of S x S pixels (224) has a frame of c pixels of context (16) on each side, so the box is enlarged about its
centre by S / (S - 2 c) (Girshick et al. 2014, appendix A, D). Crop pixel (i, j) is the bilinear interpolation of the
image at the centre of its share of the enlarged window (X1, Y1, X2, Y2): x = X1 + (j + 0.5) (X2 - X1) / S, y likewise,
without averaging when the window is larger than the crop, as in R-CNN's released code. Image pixel p covers [p, p + 1).
A point outside [0, W] x [0, H] has the mean colour, which normalisation makes 0; closer to the border than half a
pixel, the border pixel stands for the missing neighbour.

Interpolation is separable: a source row is resampled once for all crop rows that lie beside it, three channels at a
time, and crop rows are blended from two such rows.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any, cast

import numba
import numpy as np
import torch
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic
from torch import Tensor

from .structures import check_boxes

SIDE, CONTEXT = 224, 16

# One of numba's threading layers aborts the process when two Python threads start parallel work at the same time.
_PARALLEL = threading.Lock()


def warp_boxes(
    image: Tensor, boxes: Tensor, normalisation: tuple[Tensor, Tensor], side: int = SIDE, context: int = CONTEXT
) -> Tensor:
    """Warp boxes of one image, each with `context` crop pixels around it, to (R, 3, side, side) float32.

    See Warper for the arguments, the result and the errors.
    """
    return Warper(image, normalisation, side, context)(boxes)


class Warper:
    """Warp boxes of one image to normalised crops; batches of boxes share one normalised copy of the image.

    image: (3, H, W) uint8 on the CPU, any memory layout. The copy takes 12 bytes a pixel.
    normalisation: mean and deviation, (3,) each, in units of the pixels; a crop's value is (pixel - mean) / deviation.
    side: of the crops, in pixels. context: pixels of each side of a crop that lie around the box; twice that is less
    than the side.
    Raises ValueError for anything else.
    """

    def __init__(
        self, image: Tensor, normalisation: tuple[Tensor, Tensor], side: int = SIDE, context: int = CONTEXT
    ) -> None:
        _check(image, normalisation, side, context)
        self.side, self.context = side, context
        self._size = int(image.shape[1]), int(image.shape[2])
        self._values = _normalise(image, *normalisation).numpy()

    def __call__(self, boxes: Tensor, out: Tensor | None = None) -> Tensor:
        """Return the crops of (R, 4) float32 boxes as (R, 3, side, side) float32, channels last in memory.

        out: the crops of an earlier call with at least as many boxes, to be overwritten: it can take longer to get
        fresh memory than to fill it. Boxes may lie partly or wholly outside the image.
        Raises ValueError for a box that is empty or not finite, and for crops of another shape or layout.
        As many threads as numba gives the calling thread share the crops; the values do not depend on how many.
        """
        check_boxes(boxes)
        positive = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
        if not bool(positive.all()):
            raise ValueError(f"expected boxes of positive width and height, got {boxes[~positive][0].tolist()}")
        crops = self._memory(len(boxes), out)
        rows = crops.view(len(boxes), self.side, 3 * self.side).numpy()
        table = np.ascontiguousarray(boxes.detach().numpy())
        work = self._values, self._size, table, (self.side, self.context), rows
        if len(boxes) == 0:
            pass
        elif numba.get_num_threads() == 1:
            _warp(*work)
        else:
            with _PARALLEL:
                _warp_parallel(*work)
        return crops.permute(0, 3, 1, 2)

    def _memory(self, count: int, out: Tensor | None) -> Tensor:
        """Return memory for so many crops, (count, side, side, 3), of `out` if it is given."""
        if out is None:
            # numpy asks for huge pages: hundreds of crops from torch.empty take three times as long
            memory = np.empty(count * self.side * self.side * 3, dtype=np.float32)
            return torch.from_numpy(memory).view(count, self.side, self.side, 3)
        shape = 3, self.side, self.side
        fits = out.ndim == 4 and out.shape[1:] == shape and len(out) >= count and out.dtype == torch.float32
        if not fits or not out.permute(0, 2, 3, 1).is_contiguous():
            got = f"{tuple(out.shape)} {out.dtype} with strides {out.stride()}"
            raise ValueError(f"expected at least {count} float32 crops {shape}, channels last in memory, got {got}")
        return out.detach()[:count].permute(0, 2, 3, 1)


def is_compiled() -> bool:
    """Tell whether the kernel that warping needs lies on disk, newer than its source, so that nobody has to wait.

    Which kernel that is depends on whether numba gives the calling thread one thread or more.
    """
    source, kernel = Path(__file__), cast(Any, _warp if numba.get_num_threads() == 1 else _warp_parallel)
    compiled = Path(kernel.stats.cache_path).glob(f"{source.stem}.{kernel.__name__}-*.nbi")
    return any(file.stat().st_mtime >= source.stat().st_mtime for file in compiled)


def _check(image: Tensor, normalisation: tuple[Tensor, Tensor], side: int, context: int) -> None:
    if image.ndim != 3 or image.shape[0] != 3 or image.dtype != torch.uint8 or image.numel() == 0:
        raise ValueError(f"expected an image of shape (3, H, W) and type uint8, got {tuple(image.shape)} {image.dtype}")
    mean, deviation = normalisation
    if mean.shape != (3,) or deviation.shape != (3,):
        raise ValueError(f"expected 3 means and 3 deviations, got {tuple(mean.shape)} and {tuple(deviation.shape)}")
    if not bool(torch.isfinite(mean).all() & torch.isfinite(deviation).all() & (deviation > 0).all()):
        raise ValueError(f"expected finite means, positive deviations, got {mean.tolist()} and {deviation.tolist()}")
    if context < 0 or side <= 2 * context:
        raise ValueError(f"expected a side of more than two contexts, got a side of {side} and a context of {context}")


def _normalise(image: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    """Return an image's normalised pixels, row by row, (H W 3 + 1,) float32: `_mix` reads one value past a pixel."""
    height, width = image.shape[1:]
    values = torch.zeros(height * width * 3 + 1)
    rows = values[:-1].view(height, width * 3)
    torch.sub(image.permute(1, 2, 0).reshape(height, -1), mean.detach().float().repeat(width), out=rows)
    rows.div_(deviation.detach().float().repeat(width))
    return values


def _type_mix(_: Any, target: Any, k: Any, values: Any, pixels: Any, weight: Any) -> Any:
    """Write a + weight (b - a) to target[k : k + 4], a and b the four float32 values from each of two pixels on.

    It is one vector operation instead of three scalar ones, which halves the time of a crop. The fourth value is
    that of the next channel in memory and means nothing.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        four = ir.VectorType(ir.FloatType(), 4)

        def pointer(position: int, index: Any) -> Any:
            array = cgutils.create_struct_proxy(signature.args[position])(context, builder, arguments[position])
            return builder.bitcast(builder.gep(array.data, [index]), four.as_pointer())

        a, b = (builder.load(pointer(2, builder.extract_value(arguments[3], n)), align=4) for n in (0, 1))
        weights = ir.Constant(four, ir.Undefined)
        for n in range(4):
            weights = builder.insert_element(weights, arguments[4], ir.Constant(ir.IntType(32), n))
        mixed = builder.fadd(a, builder.fmul(weights, builder.fsub(b, a)))
        builder.store(mixed, pointer(0, arguments[1]), align=4)
        return context.get_dummy_value()

    return types.void(target, k, values, pixels, weight), generate


_mix: Any = intrinsic(_type_mix)


@numba.njit(cache=True, nogil=True)
def _place(start: Any, end: Any, length: Any, frame: Any, neighbours: Any, weights: Any) -> Any:
    """Find the crop pixels that see the image along one axis, [first, last), and what each of them sees.

    start, end: of the box. length: of the image. frame: the crop's side and context.
    neighbours (side, 2) gets each crop pixel's two image pixels, weights (side,) the weight of the second.
    """
    side, context = frame
    centre = (np.float64(start) + np.float64(end)) / 2
    half = (np.float64(end) - np.float64(start)) / 2 * side / (side - 2 * context)
    first, last = 0, 0
    for j in range(side):
        position = centre - half + (j + 0.5) * (2 * half) / side
        if position < 0:
            first, last = j + 1, j + 1
        elif position <= length:
            last = j + 1
            below = np.floor(position - 0.5)
            weights[j] = np.float32(position - 0.5 - below)
            neighbours[j, 0] = max(np.int64(below), 0)
            neighbours[j, 1] = min(np.int64(below) + 1, length - 1)
    return first, last


@numba.njit(cache=True, nogil=True)
def _resample(values: Any, start: Any, neighbours: Any, weights: Any, span: Any, row: Any) -> None:
    """Interpolate the image row that begins at values[start] at the crop's columns span[0] to span[1] - 1."""
    first, last = span
    for j in range(first, last):
        pixels = (start + 3 * neighbours[j, 0], start + 3 * neighbours[j, 1])
        _mix(row, 3 * j, values, pixels, weights[j])
    row[3 * last] = 0  # the last fourth value


@numba.njit(cache=True, nogil=True)
def _crop(values: Any, size: Any, box: Any, frame: Any, crop: Any) -> None:
    """Fill a crop (side, 3 side) with the box's share of the image."""
    height, width = size
    side = frame[0]
    columns, column_weights = np.empty((side, 2), np.int64), np.empty(side, np.float32)
    lines, line_weights = np.empty((side, 2), np.int64), np.empty(side, np.float32)
    span = _place(box[0], box[2], width, frame, columns, column_weights)
    top, bottom = _place(box[1], box[3], height, frame, lines, line_weights)
    crop[:top] = 0
    crop[bottom:] = 0
    rows = np.zeros((2, 3 * side + 1), np.float32)  # two image rows, resampled; 0 outside the image
    above, below = -1, -1  # their numbers
    k = 0  # rows[k] is the upper one
    for i in range(top, bottom):
        if lines[i, 0] != above:
            above = lines[i, 0]
            if above == below:  # the window has moved down by one image row
                k, below = 1 - k, -1
            else:
                _resample(values, 3 * width * above, columns, column_weights, span, rows[k])
        if lines[i, 1] != below:
            below = lines[i, 1]
            _resample(values, 3 * width * below, columns, column_weights, span, rows[1 - k])
        weight, a, b, target = line_weights[i], rows[k], rows[1 - k], crop[i]
        for m in range(3 * side):
            target[m] = a[m] + weight * (b[m] - a[m])


@numba.njit(cache=True, nogil=True)
def _warp(values: Any, size: Any, boxes: Any, frame: Any, crops: Any) -> None:
    """Fill crops (R, side, 3 side) in one thread."""
    for r in range(boxes.shape[0]):
        _crop(values, size, boxes[r], frame, crops[r])


@numba.njit(cache=True, nogil=True, parallel=True)
def _warp_parallel(values: Any, size: Any, boxes: Any, frame: Any, crops: Any) -> None:
    """Fill crops (R, side, 3 side); threads share the boxes."""
    for r in numba.prange(boxes.shape[0]):
        _crop(values, size, boxes[r], frame, crops[r])
