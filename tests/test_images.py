"""Check what is read from image files of every kind, and what is refused, by the values of pixels."""

from __future__ import annotations

import os
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, features

from detector.images import MAX_PIXELS, ImageError, read_image

COLOURS = {"red": (250, 10, 20), "green": (15, 240, 30), "blue": (5, 25, 245), "grey": (120, 130, 140)}


def quadrants() -> np.ndarray[Any, Any]:
    """Return a 48 x 80 picture of four flat quarters: red, green above blue, grey."""
    picture = np.empty((48, 80, 3), dtype=np.uint8)
    picture[:24, :40], picture[:24, 40:] = COLOURS["red"], COLOURS["green"]
    picture[24:, :40], picture[24:, 40:] = COLOURS["blue"], COLOURS["grey"]
    return picture


def hwc(image: torch.Tensor) -> np.ndarray[Any, Any]:
    return image.permute(1, 2, 0).numpy()


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def write_png16(path: Path, values: np.ndarray[Any, Any], colour_type: int) -> None:
    """Write (H, W, channels) uint16 values as a PNG of 16 bits, by the PNG specification."""
    height, width, _ = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    chunks = png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)


def refusal(path: Path) -> str:
    """Return the message that reading a file is refused with: one sentence that names the file."""
    with pytest.raises(ImageError) as caught:
        read_image(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: expected ")
    assert "\n" not in message
    return message


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tif", "a.ppm", "a.gif", "lossless.webp"])
def test_lossless_formats_keep_every_pixel(tmp_path: Path, name: str) -> None:
    options = {"lossless": True} if name.endswith("webp") else {}
    Image.fromarray(quadrants()).save(tmp_path / name, **options)
    image = read_image(tmp_path / name)
    assert (image.dtype, tuple(image.shape), image.stride()) == (torch.uint8, (3, 48, 80), (1, 240, 3))
    assert np.array_equal(hwc(image), quadrants())


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.jpg", {"quality": 95}),
        ("progressive.jpg", {"quality": 95, "progressive": True}),
        ("a.webp", {"quality": 95}),
        ("a.tif", {"compression": "jpeg", "quality": 95}),
        ("a.jp2", {}),
    ],
)
def test_lossy_formats_keep_colours(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    Image.fromarray(quadrants()).save(tmp_path / name, **options)
    assert np.abs(hwc(read_image(tmp_path / name)).astype(int) - quadrants()).mean() < 3


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")
def test_avif(tmp_path: Path) -> None:
    Image.fromarray(quadrants()).save(tmp_path / "a.avif", quality=95)
    assert np.abs(hwc(read_image(tmp_path / "a.avif")).astype(int) - quadrants()).mean() < 3


def test_cmyk_jpeg_with_and_without_adobes_marker(tmp_path: Path) -> None:
    """Full cyan is no red: both kinds of file store 255 - ink."""
    inks = np.zeros((32, 64, 4), dtype=np.uint8)
    inks[:, :32, 0], inks[:, 32:, 3] = 255, 128
    Image.fromarray(inks, "CMYK").save(tmp_path / "adobe.jpg", quality=95)
    content = (tmp_path / "adobe.jpg").read_bytes()
    start = content.index(b"\xff\xee")
    assert content[start + 4 : start + 9] == b"Adobe"
    end = start + 2 + int.from_bytes(content[start + 2 : start + 4], "big")
    (tmp_path / "plain.jpg").write_bytes(content[:start] + content[end:])
    for name in ("adobe.jpg", "plain.jpg"):
        pixels = hwc(read_image(tmp_path / name)).astype(int)
        assert np.abs(pixels[:, :28] - (0, 255, 255)).max() <= 3
        assert np.abs(pixels[:, 36:] - (127, 127, 127)).max() <= 3


def test_cmyk_tiff_is_not_inverted(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 5), (255, 0, 0, 0)).save(tmp_path / "a.tif")
    assert hwc(read_image(tmp_path / "a.tif"))[2, 3].tolist() == [0, 255, 255]


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("L", 77, (77, 77, 77)),
        ("1", 1, (255, 255, 255)),
        ("LA", (100, 255), (100, 100, 100)),
        ("LA", (100, 0), (255, 255, 255)),
        ("RGBA", (200, 0, 50, 0), (255, 255, 255)),
        ("RGBA", (200, 0, 50, 255), (200, 0, 50)),
        ("RGBA", (200, 0, 50, 51), (244, 204, 214)),  # c * 0.2 + 255 * 0.8
        ("I;16", 65535, (255, 255, 255)),
        ("I;16", 32896, (128, 128, 128)),  # 128 * 257
        ("I;16", 128, (0, 0, 0)),
        ("I;16", 129, (1, 1, 1)),  # nearest, not cut off
    ],
)
def test_png_modes(tmp_path: Path, mode: str, colour: Any, expected: tuple[int, int, int]) -> None:
    Image.new(mode, (7, 5), colour).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    assert image.shape == (3, 5, 7)
    assert np.abs(hwc(image).astype(int) - expected).max() <= (1 if mode == "RGBA" else 0)


@pytest.mark.parametrize(("colour_type", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_png_of_16_bits(tmp_path: Path, colour_type: int, channels: int) -> None:
    """Grey, RGB, grey with alpha, RGB with alpha; opaque, so that the colour is v / 257."""
    values = np.random.default_rng(3).integers(0, 65536, (6, 9, channels)).astype(np.uint16)
    if channels in (2, 4):
        values[..., -1] = 65535
    write_png16(tmp_path / "a.png", values, colour_type)
    expected = np.broadcast_to(values[..., : 1 if channels < 3 else 3] / 257, (6, 9, 3))
    assert np.abs(hwc(read_image(tmp_path / "a.png")) - expected).max() <= 1


def test_palette_with_transparency(tmp_path: Path) -> None:
    picture = Image.new("P", (6, 4), 1)
    picture.putpalette([0, 0, 0, 10, 200, 30, 90, 90, 90])
    picture.paste(2, (3, 0, 6, 4))
    picture.save(tmp_path / "opaque.png")
    picture.save(tmp_path / "clear.png", transparency=1)
    assert hwc(read_image(tmp_path / "opaque.png"))[0, [0, 5]].tolist() == [[10, 200, 30], [90, 90, 90]]
    assert hwc(read_image(tmp_path / "clear.png"))[0, [0, 5]].tolist() == [[255, 255, 255], [90, 90, 90]]


def test_tiff_of_16_bits_and_of_several_pages(tmp_path: Path) -> None:
    Image.new("I;16", (4, 3), 257 * 40).save(tmp_path / "deep.tif")
    assert hwc(read_image(tmp_path / "deep.tif"))[1, 1].tolist() == [40, 40, 40]
    pages = [Image.new("RGB", (4, 3), colour) for colour in ("red", "blue")]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    assert hwc(read_image(tmp_path / "pages.tif"))[1, 1].tolist() == [255, 0, 0]


# orientation -> the quarters at top left, top right, bottom left, bottom right of the upright picture, from the table
# of the EXIF specification: the stored row 0 and column 0 are at (top, left), (top, right), (bottom, right), ...
UPRIGHT = {
    1: ("red", "green", "blue", "grey"),
    2: ("green", "red", "grey", "blue"),
    3: ("grey", "blue", "green", "red"),
    4: ("blue", "grey", "red", "green"),
    5: ("red", "blue", "green", "grey"),
    6: ("blue", "red", "grey", "green"),
    7: ("grey", "green", "blue", "red"),
    8: ("green", "grey", "red", "blue"),
}


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path: Path, orientation: int, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(quadrants()).save(path, exif=exif, **({} if suffix in ("png", "tif") else {"quality": 95}))
    pixels = hwc(read_image(path)).astype(int)
    height, width = (48, 80) if orientation < 5 else (80, 48)
    assert pixels.shape == (height, width, 3)
    corners = [pixels[y, x] for y in (9, height - 10) for x in (9, width - 10)]
    for corner, name in zip(corners, UPRIGHT[orientation], strict=True):
        assert np.abs(corner - COLOURS[name]).max() <= 8


@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0"])
def test_damaged_exif_data_do_not_spoil_the_picture(tmp_path: Path, exif: bytes) -> None:
    Image.fromarray(quadrants()).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(hwc(read_image(tmp_path / "a.png")), quadrants())


def test_orientation_outside_the_table_counts_as_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 99
    Image.fromarray(quadrants()).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(hwc(read_image(tmp_path / "a.png")), quadrants())


def noise() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 90, 3)).astype(np.uint8))


@pytest.mark.parametrize("name", ["a.jpg", "progressive.jpg", "a.png", "a.webp", "a.bmp", "a.tif", "lzw.tif"])
@pytest.mark.parametrize("part", [0.3, 0.6, 0.9])
def test_truncated_files(tmp_path: Path, name: str, part: float) -> None:
    options = {"progressive.jpg": {"progressive": True}, "lzw.tif": {"compression": "tiff_lzw"}}.get(name, {})
    whole, cut = tmp_path / name, tmp_path / f"cut-{name}"
    noise().save(whole, **options)
    read_image(whole)
    cut.write_bytes(whole.read_bytes()[: int(part * whole.stat().st_size)])
    message = refusal(cut)
    assert "truncated or damaged" in message or "start is damaged" in message


def test_damage_in_the_middle_of_a_png(tmp_path: Path) -> None:
    noise().save(tmp_path / "a.png")
    content = bytearray((tmp_path / "a.png").read_bytes())
    content[len(content) // 2] ^= 0xFF
    (tmp_path / "a.png").write_bytes(content)
    assert "truncated or damaged" in refusal(tmp_path / "a.png")


def test_what_is_no_image(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("This is not a photograph.\n")
    (tmp_path / "start.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    (tmp_path / "page.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    assert refusal(tmp_path / "empty.jpg").endswith("got an empty one (0 bytes)")
    assert "expected an image, got a file that is none" in refusal(tmp_path / "text.jpg")
    assert "start is damaged" in refusal(tmp_path / "start.jpg")
    assert "expected an image, got a file that is none" in refusal(tmp_path / "page.eps")
    assert refusal(tmp_path / "missing.jpg").endswith("got no such file")
    assert refusal(tmp_path).endswith("got a folder")
    os.mkfifo(tmp_path / "pipe.jpg")
    assert refusal(tmp_path / "pipe.jpg").endswith("got something that is not a file")


def test_pixels_of_other_kinds(tmp_path: Path) -> None:
    Image.new("F", (4, 3), 0.5).save(tmp_path / "float.tif")
    Image.new("I", (4, 3), 70000).save(tmp_path / "deep.tif")
    assert refusal(tmp_path / "float.tif").endswith("got floating point ones")
    assert refusal(tmp_path / "deep.tif").endswith("got values from 70000 to 70000")


@pytest.mark.parametrize(("width", "height"), [(60000, 60000), (12000, 10000), (10001, 10000)])
def test_a_bomb_is_refused_by_its_header(tmp_path: Path, width: int, height: int) -> None:
    """The file has a header only, so anything that decoded it would complain of truncation instead."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", zlib.compress(b"\0" * 99)))
    message = refusal(tmp_path / "bomb.png")
    assert message.endswith(f"at most 100 megapixels, got {width * height / 1e6:.6g} megapixels")


def test_the_largest_size_is_let_through(tmp_path: Path) -> None:
    """Exactly 100 megapixels, for which Pillow would warn, pass the check and fail for their missing rows only."""
    side = round(MAX_PIXELS**0.5)
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0))
    (tmp_path / "large.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", zlib.compress(b"\0" * 99)))
    assert "truncated or damaged" in refusal(tmp_path / "large.png")


def test_pillows_warnings_stay_inside(tmp_path: Path) -> None:
    """A palette with bytes for transparency and a large but allowed picture both make Pillow warn."""
    Image.new("1", (9600, 9600)).save(tmp_path / "large.png")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with Image.open(tmp_path / "large.png") as image:
            assert image.size == (9600, 9600)
        assert [w.category for w in caught] == [Image.DecompressionBombWarning]
        caught.clear()
        assert read_image(tmp_path / "large.png").shape == (3, 9600, 9600)
        assert caught == []


def test_the_callers_tensor_is_writable(tmp_path: Path) -> None:
    Image.fromarray(quadrants()).save(tmp_path / "a.png")
    image = read_image(str(tmp_path / "a.png"))
    image[:, 0, 0] = 7
    assert image[:, 0, 0].tolist() == [7, 7, 7]
