"""Draw a toy data set in VOC's layout: reddish circles, greenish squares and bluish triangles on noisy backgrounds.

    python tools/make_toy.py FOLDER --images 40 --seed 3

Everything follows from the seed. Boxes in the XML are those of the drawn pixels, 1-based and inclusive as in VOC.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

SHAPES = ("circle", "square", "triangle")
COLOURS = {"circle": (205, 60, 55), "square": (60, 165, 70), "triangle": (60, 85, 200)}
SMALLEST, LARGEST = 45, 115  # pixels, side of a shape's box
GAP = 0.1  # at most this part of a shape's box may lie under another box
Array = np.ndarray[Any, np.dtype[Any]]
Found = tuple[str, tuple[int, int, int, int]]


def make_toy(folder: Path, images: int, seed: int, quality: int = 80) -> None:
    """Write `images` photos of about 200 x 260 pixels with 1 to 4 shapes each; every fourth is a test image.

    quality: of the JPEG files. Raises ValueError unless there are at least two images, one for each split.
    """
    if images < 2:
        raise ValueError(f"expected at least 2 images, one to train and one to test, got {images}")
    folder = Path(folder)
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    splits: dict[str, list[str]] = {"train": [], "test": []}
    for index in range(images):
        name = f"{index:06d}"
        pixels, objects = draw_scene(np.random.default_rng([seed, index]))
        Image.fromarray(pixels).save(folder / "JPEGImages" / f"{name}.jpg", quality=quality)
        xml = annotation(f"{name}.jpg", (pixels.shape[0], pixels.shape[1]), objects)
        (folder / "Annotations" / f"{name}.xml").write_text(xml, encoding="utf-8")
        splits["test" if index % 4 == 1 else "train"].append(name)
    for split, names in splits.items():
        text = "".join(f"{name}\n" for name in names)
        (folder / "ImageSets" / "Main" / f"{split}.txt").write_text(text, encoding="utf-8")


def draw_scene(generator: np.random.Generator) -> tuple[Array, list[Found]]:
    """Return an (H, W, 3) uint8 RGB image and its shapes: names and boxes (x1, y1, x2, y2), x2 and y2 exclusive."""
    height, width = int(generator.integers(170, 231)), int(generator.integers(235, 291))
    pixels = _background(generator, height, width)
    objects: list[Found] = []
    for _ in range(int(generator.integers(1, 5))):
        for _ in range(20):  # a place that is free; a crowded image gets fewer shapes
            side = int(generator.integers(SMALLEST, LARGEST))
            x, y = int(generator.integers(0, width - side)), int(generator.integers(0, height - side))
            if all(_covered((x, y, x + side, y + side), box) <= GAP for _, box in objects):
                objects.append(_draw(generator, pixels, (x, y, side)))
                break
    noise = generator.normal(0, 3, pixels.shape)
    return np.clip(pixels + noise, 0, 255).astype(np.uint8), objects


def _background(generator: np.random.Generator, height: int, width: int) -> Array:
    """Return a gradient between two dull colours with soft spots, (H, W, 3) float64."""
    angle = generator.uniform(0, 2 * math.pi)
    rows, columns = np.mgrid[0:height, 0:width] / max(height, width)
    slope = (rows * math.sin(angle) + columns * math.cos(angle))[..., None]
    grey = generator.uniform(90, 200)
    start, end = (grey + generator.uniform(-25, 25, 3) for _ in range(2))
    spots = generator.normal(0, 18, (6, 8)).astype(np.float32)
    soft = np.asarray(Image.fromarray(spots).resize((width, height), Image.Resampling.BICUBIC), dtype=np.float64)
    pixels: Array = start + (end - start) * slope + soft[..., None]
    return pixels


def _covered(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> float:
    """Return the shared part of two boxes, relative to the smaller."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    smaller = min((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return max(width, 0) * max(height, 0) / smaller


def _draw(generator: np.random.Generator, pixels: Array, place: tuple[int, int, int]) -> Found:
    """Draw a shape of a random kind and shade into `pixels`; return its name and the box of its pixels."""
    name = SHAPES[int(generator.integers(len(SHAPES)))]
    x, y, side = place
    end_x, end_y = x + side - 1, y + side - 1
    mask = Image.new("1", (pixels.shape[1], pixels.shape[0]))
    pen = ImageDraw.Draw(mask)
    if name == "circle":
        pen.ellipse((x, y, end_x, end_y), fill=1)
    elif name == "square":
        pen.rectangle((x, y, end_x, end_y), fill=1)
    else:
        pen.polygon([(x + side // 2, y), (x, end_y), (end_x, end_y)], fill=1)
    inside = np.asarray(mask)
    pixels[inside] = np.array(COLOURS[name]) + generator.uniform(-35, 35, 3)
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    return name, (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)


def annotation(file: str, size: tuple[int, int], objects: list[Found]) -> str:
    """Return the VOC XML of an image of (height, width) pixels."""
    lines = [
        "<annotation>",
        f"  <filename>{file}</filename>",
        f"  <size><width>{size[1]}</width><height>{size[0]}</height><depth>3</depth></size>",
    ]
    for name, (x1, y1, x2, y2) in objects:
        box = f"<xmin>{x1 + 1}</xmin><ymin>{y1 + 1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax>"
        lines.append(f"  <object><name>{name}</name><difficult>0</difficult><bndbox>{box}</bndbox></object>")
    return "\n".join([*lines, "</annotation>", ""])


def main() -> None:
    """Read the command line and draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("folder", type=Path, help="the folder to write JPEGImages, Annotations and ImageSets into")
    parser.add_argument("--images", type=int, default=8, help="how many; every fourth is a test image (default: 8)")
    parser.add_argument("--seed", type=int, default=1, help="the same seed draws the same images (default: 1)")
    parser.add_argument("--quality", type=int, default=80, help="of the JPEG files, 1 to 95 (default: 80)")
    arguments = parser.parse_args()
    try:
        make_toy(arguments.folder, arguments.images, arguments.seed, arguments.quality)
    except (ValueError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
