"""Check the warping of boxes against exact per-pixel arithmetic with fractions."""

from __future__ import annotations

import math
import os
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import numba
import pytest
import torch
from torch import Tensor

from detector.warping import Warper, warp_boxes
from tests.sources import REPOSITORY

MEAN, DEVIATION = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
NORMALISATION = torch.tensor(MEAN), torch.tensor(DEVIATION)
SIZES = [(1, 1), (1, 7), (7, 1), (7, 5), (30, 44)]
# A normalised value is at most 2.7. Its pixels, its weights and each of two interpolations are rounded to float32, by
# 2 ** -24 of at most 5: a dozen such steps stay below this.
ROUNDING = 12 * 5 * 2**-24


def noise(height: int, width: int) -> Tensor:
    """Return an image without any smoothness, so that every wrong neighbour shows."""
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8)


def neighbours(start: float, end: float, length: int, frame: tuple[int, int]) -> list[tuple[int, int, Fraction] | None]:
    """Return per crop pixel the two image pixels it lies between and the second's weight; None outside the image."""
    side, context = frame
    low, high = Fraction(start), Fraction(end)
    half = (high - low) / 2 * Fraction(side, side - 2 * context)
    first = (low + high) / 2 - half
    result: list[tuple[int, int, Fraction] | None] = []
    for j in range(side):
        x = first + (j + Fraction(1, 2)) * 2 * half / side
        if not 0 <= x <= length:
            result.append(None)
            continue
        pixel = math.floor(x - Fraction(1, 2))
        weight = x - Fraction(1, 2) - pixel
        result.append((max(pixel, 0), min(pixel + 1, length - 1), weight))
    return result


def exact_crop(image: Tensor, box: list[float], frame: tuple[int, int]) -> Tensor:
    """Warp a box pixel by pixel without rounding: (3, side, side), rounded to float64 at the end."""
    side = frame[0]
    rows = neighbours(box[1], box[3], int(image.shape[1]), frame)
    columns = neighbours(box[0], box[2], int(image.shape[2]), frame)
    crop = torch.zeros(3, side, side, dtype=torch.float64)
    for c, pixels in enumerate(image.tolist()):
        mean, deviation = (Fraction(float(t[c])) for t in NORMALISATION)
        for i, row in enumerate(rows):
            for j, column in enumerate(columns):
                if row is None or column is None:
                    continue
                top, bottom, v = row
                left, right, u = column
                upper = pixels[top][left] * (1 - u) + pixels[top][right] * u
                lower = pixels[bottom][left] * (1 - u) + pixels[bottom][right] * u
                crop[c, i, j] = float((upper * (1 - v) + lower * v - mean) / deviation)
    return crop


def spans(length: int) -> list[tuple[float, float]]:
    """List intervals inside an axis, at both borders, over each, over both, beyond, and smaller than a pixel.

    The last is eight pixels long, and the middle of its last pixel is the end of the axis.
    Eighths of pixels only: whether a point of the crop lies on the border of the image is then exact, also in floating
    point, if the box is not enlarged or is enlarged to 12 / 8 of its size.
    """
    n = float(length)
    return [
        (0.0, n),
        (n / 4, n / 2),
        (0.0, n / 2),
        (n / 2, n),
        (-n / 2 - 1, n / 4),
        (3 * n / 4, n + 3.5),
        (-n - 0.625, 2 * n + 4.25),
        (n / 2 + 0.125, n / 2 + 0.5),
        (-0.25, 0.125),
        (n + 2, n + 9),
        (-7.5, -3.0),
        (n - 7.5, n + 0.5),
    ]


def boxes_around(height: int, width: int) -> Tensor:
    """Pair the intervals of the two axes in a fixed random order, each of them several times."""
    pairs = [(x, y) for x in spans(width) for y in spans(height)]
    draw = random.Random(height * 100 + width)
    chosen = [pairs[0], pairs[-1], *draw.sample(pairs, 40)]
    return torch.tensor([(x[0], y[0], x[1], y[1]) for x, y in chosen])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("frame", [(12, 2), (8, 0)])
def test_crops_equal_the_definition(size: tuple[int, int], frame: tuple[int, int]) -> None:
    image, boxes = noise(*size), boxes_around(*size)
    crops = warp_boxes(image, boxes, NORMALISATION, *frame)
    for box, crop in zip(boxes.tolist(), crops, strict=True):
        difference = (crop.double() - exact_crop(image, box, frame)).abs().max()
        assert float(difference) < ROUNDING, box


@pytest.mark.parametrize("frame", [(12, 2), (11, 3), (7, 1)])
def test_crops_of_any_boxes_equal_the_definition(frame: tuple[int, int], generator: torch.Generator) -> None:
    """Draw boxes of any coordinates: positions and weights are then rounded too, those in float64."""
    image = noise(19, 31)
    corners = (torch.rand(60, 2, 2, generator=generator) * 1.6 - 0.3).sort(dim=1).values * torch.tensor([31.0, 19.0])
    boxes = corners.flatten(1)
    crops = warp_boxes(image, boxes, NORMALISATION, *frame)
    expected = torch.stack([exact_crop(image, box, frame) for box in boxes.tolist()])
    assert float((crops.double() - expected).abs().max()) < ROUNDING
    assert bool((expected == 0).any(dim=(1, 2, 3)).any()), "no box sticks out"


@pytest.mark.parametrize("frame", [(12, 2), (28, 2), (224, 16)])
def test_windows_of_whole_pixels_give_the_pixels(frame: tuple[int, int]) -> None:
    side, context = frame
    image = noise(side + 9, side + 30)
    x, y, inner = 17, 5, side - 2 * context
    box = torch.tensor([[x + context, y + context, x + context + inner, y + context + inner]]).float()
    (crop,) = warp_boxes(image, box, NORMALISATION, *frame)
    mean, deviation = (t.view(3, 1, 1) for t in NORMALISATION)
    assert torch.equal(crop, (image[:, y : y + side, x : x + side] - mean) / deviation)


def test_the_usual_frame_is_that_of_the_paper() -> None:
    """Warp the whole of a white image: 16 pixels of the mean colour lie around it."""
    image = torch.full((3, 96, 192), 255, dtype=torch.uint8)
    (crop,) = warp_boxes(image, torch.tensor([[0.0, 0.0, 192.0, 96.0]]), NORMALISATION)
    white = ((255 - NORMALISATION[0]) / NORMALISATION[1]).view(3, 1, 1)
    expected = torch.zeros(3, 224, 224)
    expected[:, 16:208, 16:208] = white
    assert torch.equal(crop, expected)


@pytest.mark.parametrize(
    "box", [(60, 3, 80, 20), (3, 40, 20, 55), (-50, 3, -20, 20), (3, -60, 20, -20), (1e30, 0, 2e30, 9)]
)
def test_outside_the_image_is_the_mean_colour(box: tuple[float, ...]) -> None:
    crops = warp_boxes(noise(30, 44), torch.tensor([(2.0, 2.0, 40.0, 28.0), box]), NORMALISATION, 12, 2)
    assert bool(crops[0].any())
    assert torch.equal(crops[1], torch.zeros(3, 12, 12))


def test_the_mirrored_box_of_the_mirrored_image_gives_the_mirrored_crop() -> None:
    height, width = 30, 44
    image, boxes = noise(height, width), boxes_around(height, width)
    crops = warp_boxes(image, boxes, NORMALISATION, 12, 2)
    x1, y1, x2, y2 = boxes.unbind(1)
    across = warp_boxes(image.flip(2), torch.stack([width - x2, y1, width - x1, y2], dim=1), NORMALISATION, 12, 2)
    down = warp_boxes(image.flip(1), torch.stack([x1, height - y2, x2, height - y1], dim=1), NORMALISATION, 12, 2)
    turned = warp_boxes(image.transpose(1, 2), boxes[:, [1, 0, 3, 2]], NORMALISATION, 12, 2)
    for other in (across.flip(3), down.flip(2), turned.transpose(2, 3)):
        assert float((other - crops).abs().max()) < 2 * ROUNDING


def test_memory_layout_makes_no_difference() -> None:
    image, boxes = noise(30, 44), boxes_around(30, 44)
    crops = warp_boxes(image, boxes, NORMALISATION, 12, 2)
    last = image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    strided = noise(60, 88)[:, ::2, ::2].copy_(image)
    for layout in (last, strided, image.transpose(1, 2).contiguous().transpose(1, 2)):
        assert torch.equal(warp_boxes(layout, boxes, NORMALISATION, 12, 2), crops)
    assert torch.equal(warp_boxes(image, boxes.T.contiguous().T, NORMALISATION, 12, 2), crops)
    assert crops.is_contiguous(memory_format=torch.channels_last)
    assert (tuple(crops.shape), crops.dtype) == ((42, 3, 12, 12), torch.float32)


def test_batches_of_one_image_give_the_same_crops() -> None:
    """Warp in batches, into fresh memory and into memory that is used again; the image may change meanwhile."""
    image, boxes = noise(30, 44), boxes_around(30, 44)
    expected = warp_boxes(image, boxes, NORMALISATION, 12, 2)
    crops = Warper(image, NORMALISATION, 12, 2)
    image.zero_()
    assert torch.equal(torch.cat([crops(batch) for batch in boxes.split(7)]), expected)
    memory = torch.full((7, 12, 12, 3), math.nan).permute(0, 3, 1, 2)
    for batch, part in zip(boxes.split(7), expected.split(7), strict=True):
        again = crops(batch, memory)
        assert torch.equal(again, part)
        assert again.data_ptr() == memory.data_ptr()


@pytest.mark.skipif(int(numba.config.NUMBA_NUM_THREADS) < 2, reason="numba has one thread here")
def test_one_thread_and_two_give_the_same_bits() -> None:
    image, boxes = noise(30, 44), boxes_around(30, 44)
    results = []
    for count in (1, 2):
        with ThreadPoolExecutor(1, initializer=numba.set_num_threads, initargs=(count,)) as pool:
            results.append(pool.submit(warp_boxes, image, boxes, NORMALISATION).result())
    assert torch.equal(*results)


@pytest.mark.parametrize("count", [1, int(numba.config.NUMBA_NUM_THREADS)])
def test_python_threads_may_warp_at_the_same_time(count: int) -> None:
    crops, boxes = Warper(noise(30, 44), NORMALISATION, 64, 4), boxes_around(30, 44)
    expected = crops(boxes)
    with ThreadPoolExecutor(4, initializer=numba.set_num_threads, initargs=(count,)) as pool:
        results = list(pool.map(crops, [boxes] * 24))
    assert all(torch.equal(result, expected) for result in results)


def run(program: str, **environment: str) -> list[str]:
    """Run a program in a process of its own and return the words that it prints."""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=REPOSITORY,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.slow
def test_python_threads_may_warp_at_the_same_time_with_any_threading_layer(tmp_path: Path) -> None:
    """Run with the threading layer that aborts the process if two threads start parallel work at the same time."""
    program = (
        "import numba, torch; from concurrent.futures import ThreadPoolExecutor; from detector.warping import Warper\n"
        "image = torch.arange(3 * 9 * 11).to(torch.uint8).reshape(3, 9, 11)\n"
        "crops = Warper(image, (torch.zeros(3), torch.ones(3)))\n"
        "boxes = torch.tensor([[1.0, 2.0, 8.0, 7.0]]).repeat(60, 1)\n"
        "with ThreadPoolExecutor(4) as pool: print(sum(len(c) for c in pool.map(crops, [boxes] * 12)))\n"
        "print(numba.threading_layer())"
    )
    chosen = {"NUMBA_THREADING_LAYER": "workqueue", "NUMBA_NUM_THREADS": "2", "NUMBA_CACHE_DIR": str(tmp_path)}
    assert run(program, **chosen) == ["720", "workqueue"]


def test_no_boxes() -> None:
    crops = warp_boxes(noise(30, 44), torch.zeros(0, 4), NORMALISATION, 12, 2)
    assert (tuple(crops.shape), crops.dtype) == ((0, 3, 12, 12), torch.float32)
    assert crops.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("box", [(5, 3, 5, 9), (5, 3, 9, 3), (9, 3, 5, 9), (5, 9, 9, 3)])
def test_boxes_without_a_size_are_refused(box: tuple[float, ...]) -> None:
    boxes = torch.tensor([(1, 1, 2, 2), box]).float()
    with pytest.raises(ValueError, match=r"^expected boxes of positive width and height, got \[" + f"{box[0]}.0, "):
        warp_boxes(noise(30, 44), boxes, NORMALISATION)


@pytest.mark.parametrize("boxes", [torch.zeros(4), torch.ones(1, 5), torch.ones(1, 4).long(), torch.ones(2, 4) / 0])
def test_boxes_that_are_no_table_are_refused(boxes: Tensor) -> None:
    with pytest.raises(ValueError, match=r"^expected (boxes of shape \(R, 4\)|finite boxes)"):
        warp_boxes(noise(30, 44), boxes, NORMALISATION)


@pytest.mark.parametrize("image", [torch.zeros(3, 4, 5), noise(4, 5)[:1], noise(4, 5)[None], noise(4, 0), noise(0, 5)])
def test_images_of_another_kind_are_refused(image: Tensor) -> None:
    with pytest.raises(ValueError, match=r"^expected an image of shape \(3, H, W\) and type uint8, got "):
        Warper(image, NORMALISATION)


@pytest.mark.parametrize(
    ("mean", "deviation"), [([0.0], [1.0] * 3), ([0.0] * 3, [1.0, 1.0, 0.0]), ([math.nan] * 3, [1.0] * 3)]
)
def test_normalisations_that_are_none_are_refused(mean: list[float], deviation: list[float]) -> None:
    with pytest.raises(ValueError, match=r"^expected (3|finite) means"):
        Warper(noise(4, 5), (torch.tensor(mean), torch.tensor(deviation)))


@pytest.mark.parametrize("frame", [(32, 16), (12, -1), (0, 0)])
def test_frames_without_room_for_a_box_are_refused(frame: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"^expected a side of more than two contexts, got a side of "):
        Warper(noise(4, 5), NORMALISATION, *frame)


@pytest.mark.parametrize("out", [torch.zeros(2, 3, 12, 12), torch.zeros(1, 12, 12, 3).permute(0, 3, 1, 2)])
def test_memory_that_does_not_fit_is_refused(out: Tensor) -> None:
    with pytest.raises(ValueError, match=r"^expected at least 2 float32 crops \(3, 12, 12\), channels last"):
        Warper(noise(4, 5), NORMALISATION, 12, 2)(torch.tensor([[0.0, 0, 1, 1], [1, 1, 2, 3]]), out)


@pytest.mark.slow
@pytest.mark.parametrize("count", ["1", "2"])
def test_is_compiled_looks_where_numba_caches(count: str, tmp_path: Path) -> None:
    program = (
        "import torch; from detector import warping; print(warping.is_compiled())\n"
        "image, boxes = torch.zeros(3, 5, 7, dtype=torch.uint8), torch.tensor([[1.0, 1.0, 5.0, 4.0]])\n"
        "warping.warp_boxes(image, boxes, (torch.zeros(3), torch.ones(3)))\n"
        "print(warping.is_compiled())"
    )
    told = [run(program, NUMBA_CACHE_DIR=str(tmp_path), NUMBA_NUM_THREADS=count) for _ in range(2)]
    assert told == [["False", "True"], ["True", "True"]]
