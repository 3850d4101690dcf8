"""Read photographs into tensors and resize them.

An image is (3, H, W) uint8 RGB, upright. The tensors made here are channels last in memory: permuted views of one
(H, W, 3) array, so that neither reading nor resizing copies the pixels twice. Pillow decodes, OpenCV resizes; both
are used in RGB order, and BGR occurs nowhere in the package.
"""

from __future__ import annotations

import os
import re
import stat
import warnings
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError
from torch import Tensor

from .structures import Size

MAX_PIXELS = 100_000_000
SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib", ".tif", ".tiff"}
    | {".gif", ".pbm", ".pgm", ".ppm", ".pnm", ".jp2", ".avif"}
)
# Formats that Pillow decodes by itself. Others are refused: EPS, for one, is a program that Ghostscript would run.
_FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "BMP", "DIB", "TIFF", "GIF", "PPM", "JPEG2000", "AVIF")
# EXIF orientation -> what makes the picture upright (EXIF 2.32, tag 274: where the first row and column belong).
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageError(ValueError):
    """Say in one sentence which file is not a usable image, and why."""


def read_image(path: str | os.PathLike[str]) -> Tensor:
    """Read an image file as a (3, H, W) uint8 RGB tensor, upright, channels last in memory.

    The EXIF orientation is applied, transparency is laid on white, 16 bits become 8 (65535 becomes 255), CMYK is
    converted (JPEG stores its inks inverted, with Adobe's marker or without, as browsers assume). Of an animation or
    a file of several pages, the first is read. Colour profiles are ignored.

    Raises ImageError, one sentence that names the file, if it is missing, no image, empty, truncated, damaged, or has
    more than 100 megapixels; the last is read from the header, before any pixel is decoded.
    """
    file = Path(path)
    _check_file(file)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with _open(file) as image:
            _load(file, image)
            pixels = np.array(_upright(_to_rgb(file, image), image))
    return torch.from_numpy(pixels).permute(2, 0, 1)


def scaled_size(size: Size, shorter: int, longest: int) -> Size:
    """Scale (height, width) so that the shorter side is `shorter`, or the longer side `longest` if that is smaller.

    The aspect is kept up to rounding to whole pixels; no side is less than 1.
    """
    low, high = min(size), max(size)
    target, source = (shorter, low) if shorter * high <= longest * low else (longest, high)
    height, width = (max(1, int(side * target / source + 0.5)) for side in size)
    return height, width


def resize_image(image: Tensor, size: Size) -> Tensor:
    """Resize a (3, H, W) uint8 image to (3, *size) uint8, channels last in memory.

    Averages the covered pixels when shrinking (OpenCV's INTER_AREA), interpolates linearly otherwise: training and
    prediction share this function, so that a trunk always sees the same pixels.
    """
    height, width = int(image.shape[1]), int(image.shape[2])
    if (height, width) == size:
        return image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    shrinks = size[0] <= height and size[1] <= width
    pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
    resized = cv2.resize(pixels, (size[1], size[0]), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return torch.from_numpy(resized).permute(2, 0, 1)


def to_pillow(image: Tensor) -> Image.Image:
    """Return a Pillow copy of a (3, H, W) uint8 RGB image."""
    return Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).cpu().numpy()))


def from_pillow(image: Image.Image) -> Tensor:
    """Return a Pillow RGB image as a (3, H, W) uint8 tensor, channels last in memory."""
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def _check_file(path: Path) -> None:
    try:
        status = path.stat()
    except FileNotFoundError:
        raise ImageError(f"{path}: expected an image file, got no such file") from None
    except (OSError, ValueError) as error:
        raise ImageError(f"{path}: expected a readable image file, got {_reason(error)}") from error
    if not stat.S_ISREG(status.st_mode):
        what = "a folder" if stat.S_ISDIR(status.st_mode) else "something that is not a file"
        raise ImageError(f"{path}: expected an image file, got {what}")
    if status.st_size == 0:
        raise ImageError(f"{path}: expected an image file, got an empty one (0 bytes)")


def _open(path: Path) -> ImageFile.ImageFile:
    """Open an image and check its size; no pixel is decoded yet."""
    Image.init()
    try:
        image = Image.open(path, formats=[name for name in _FORMATS if name in Image.OPEN])
    except UnidentifiedImageError as error:
        raise ImageError(f"{path}: expected an image, got a file that is none or whose start is damaged") from error
    except Image.DecompressionBombError as error:
        pixels = re.search(r"(\d+) pixels", str(error))
        raise _too_large(path, int(pixels[1]) if pixels else None) from error
    except Exception as error:  # a decoder fed with damaged bytes may raise anything
        raise _damaged(path, error) from error
    if image.width * image.height > MAX_PIXELS:
        image.close()
        raise _too_large(path, image.width * image.height)
    return image


def _load(path: Path, image: ImageFile.ImageFile) -> None:
    try:
        image.load()
    except Exception as error:  # a decoder fed with damaged bytes may raise anything
        raise _damaged(path, error) from error


def _too_large(path: Path, pixels: int | None) -> ImageError:
    got = "more" if pixels is None else f"{pixels / 1e6:.6g} megapixels"
    return ImageError(f"{path}: expected an image of at most {MAX_PIXELS / 1e6:.6g} megapixels, got {got}")


def _damaged(path: Path, error: Exception) -> ImageError:
    return ImageError(f"{path}: expected a whole image, got a truncated or damaged one ({_reason(error)})")


def _reason(error: Exception) -> str:
    text = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return " ".join(text.split())


def _to_rgb(path: Path, image: Image.Image) -> Image.Image:
    """Convert any mode of Pillow to RGB: deep grey is scaled to 8 bits, transparency is laid on white."""
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _deep_grey_to_rgb(path, image)
    if image.mode in ("F", "LAB"):
        kind = "floating point" if image.mode == "F" else "LAB"
        raise ImageError(f"{path}: expected grey, RGB, CMYK or palette pixels of 8 or 16 bits, got {kind} ones")
    if image.has_transparency_data or image.mode in ("RGBa", "La"):
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _deep_grey_to_rgb(path: Path, image: Image.Image) -> Image.Image:
    values: np.ndarray[Any, Any] = np.asarray(image).astype(np.int64)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise ImageError(f"{path}: expected pixels of 8 or 16 bits, got values from {low} to {high}")
    return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")


def _upright(rgb: Image.Image, source: Image.Image) -> Image.Image:
    """Turn or mirror as the EXIF orientation of `source` says; unreadable EXIF data count as upright."""
    try:
        orientation = source.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # the pixels are whole: damaged metadata are no reason to refuse them
        return rgb
    return rgb.transpose(_TURNS[orientation]) if orientation in _TURNS else rgb
