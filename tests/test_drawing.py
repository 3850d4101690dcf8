"""Check drawn boxes and labels by the pixels that changed, and look of colours by standard formulas."""

from __future__ import annotations

import io
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.color import rgb2lab
from torch import Tensor

from detector.drawing import (
    class_colour,
    draw_boxes,
    draw_detections,
    encode_png,
    font_size,
    line_width,
    save_image,
    text_colour,
)
from detector.images import read_image
from detector.structures import BoxScores, Detections

NAMES = tuple(f"class{k}" for k in range(30))
Row = tuple[list[float], float, int]


def flat(height: int, width: int, colour: int = 127) -> Tensor:
    return torch.full((3, height, width), colour, dtype=torch.uint8)


def detections(image: Tensor, rows: list[Row]) -> Detections:
    boxes = torch.tensor([box for box, _, _ in rows], dtype=torch.float32).reshape(-1, 4)
    scores = torch.tensor([score for _, score, _ in rows], dtype=torch.float32)
    labels = torch.tensor([label for _, _, label in rows], dtype=torch.int64)
    return Detections(boxes, scores, labels, (image.shape[1], image.shape[2]), NAMES, image)


def drawn(image: Tensor, rows: list[Row]) -> np.ndarray[Any, Any]:
    """Return the picture as (H, W, 3) after checking what always holds."""
    before = image.clone()
    picture = draw_detections(image, detections(image, rows))
    assert (picture.dtype, picture.shape) == (torch.uint8, image.shape)
    assert torch.equal(image, before)
    return picture.permute(1, 2, 0).numpy()


def mask(picture: np.ndarray[Any, Any], label: int) -> np.ndarray[Any, Any]:
    """Return where a picture has exactly the colour of a class."""
    return (picture == class_colour(label)).all(axis=-1)


def extent(where: np.ndarray[Any, Any]) -> tuple[int, int, int, int]:
    """Return x1, y1, x2, y2, exclusive, of what is marked."""
    ys, xs = np.nonzero(where)
    return int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1


@pytest.mark.parametrize(("height", "width", "thickness"), [(60, 80, 1), (375, 500, 2), (600, 400, 2), (1500, 900, 5)])
def test_a_box_is_drawn_inward_from_its_border(height: int, width: int, thickness: int) -> None:
    x1, y1, x2, y2 = width // 4, height // 2, width - 7, height - 5
    picture = drawn(flat(height, width), [([x1, y1, x2, y2], 0.9, 3)])
    colour = mask(picture, 3)
    assert line_width(height, width) == thickness
    band = colour[y1:y2, x1:x2]
    assert band[-thickness:].all()
    assert band[:, :thickness].all()
    assert band[:, -thickness:].all()
    assert band[:thickness].all()
    assert not band[thickness:-thickness, thickness:-thickness].any()
    assert extent(colour)[0] == x1
    assert extent(colour)[2:] == (max(x2, extent(colour)[2]), y2)
    rim = max(1, thickness // 4)
    untouched = picture[y1 + thickness + rim : y2 - thickness - rim, x1 + thickness + rim : x2 - thickness - rim]
    assert (untouched == 127).all()


def test_the_border_of_the_image_can_be_a_box() -> None:
    picture = drawn(flat(300, 200), [([0, 0, 200, 300], 0.9, 2)])
    colour = mask(picture, 2)
    assert colour[30:, 0].all()
    assert colour[30:, -1].all()
    assert colour[-1].all()


@pytest.mark.parametrize("background", [0, 127, 255])
@pytest.mark.parametrize("label", range(20))
def test_boxes_and_labels_stand_out_on_any_background(label: int, background: int) -> None:
    """Colour and rim of a line, plate and text of a label differ by WCAG's contrast of 3; one of the two does from
    the background, even where that has the class's own colour."""
    image = torch.tensor(class_colour(label), dtype=torch.uint8)[:, None, None].repeat(1, 90, 200)
    image[:, :, 100:] = background
    for left in (20, 120):
        picture = drawn(image, [([left, 40, left + 60, 80], 0.5, label)])
        edge = picture[65, left - 1 : left + 3].tolist()
        assert max(contrast(pixel, image[:, 65, left - 1].tolist()) for pixel in edge) >= 3
    assert contrast(list(class_colour(label)), list(text_colour(class_colour(label)))) >= 4.5


def contrast(a: list[int], b: list[int]) -> float:
    """Return the contrast ratio of two sRGB colours, 1 to 21 (WCAG 2.1)."""

    def luminance(colour: list[int]) -> float:
        parts = [v / 12.92 if v <= 0.03928 else ((v + 0.055) / 1.055) ** 2.4 for v in (c / 255 for c in colour)]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def test_twenty_colours_differ_clearly() -> None:
    colours = np.array([class_colour(k) for k in range(20)], dtype=float) / 255
    lab = rgb2lab(colours[None])[0]
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(lab, 2)) > 40
    assert len({class_colour(k) for k in range(200)}) == 200
    assert all(0 <= c <= 255 for k in range(200) for c in class_colour(k))


def test_a_label_says_class_and_score() -> None:
    """Names and scores that differ give plates that differ; their widths follow the text."""
    plates = []
    for score, label in ((0.93, 3), (0.94, 3), (0.93, 13)):
        picture = drawn(flat(300, 400), [([50, 100, 350, 250], score, label)])
        above = picture[:99]
        plates.append((extent((above != 127).any(axis=-1)), above.tobytes()))
    (a, pixels_a), (b, pixels_b), (c, _) = plates
    assert a == b
    assert pixels_a != pixels_b
    assert c[2] - c[0] > a[2] - a[0]
    assert a[:2] == (50, 99 - (a[3] - a[1]))


def test_plates_have_text_of_readable_size() -> None:
    for height, width in ((60, 80), (375, 500), (4000, 6000)):
        assert font_size(height, width) >= 10
        assert 2.5 <= font_size(height, width) / line_width(height, width) <= 12
    assert font_size(375, 500) == 14
    assert font_size(4000, 6000) == 157


def plate(height: int, width: int, score: float, label: int) -> np.ndarray[Any, Any]:
    """Return the whole plate of a label, as it is above a box that has room."""
    picture = drawn(flat(height, width), [([20, 60, 90, height - 5], score, label)])[:59]
    x1, y1, x2, y2 = extent((picture != 127).any(axis=-1))
    return picture[y1:y2, x1:x2]


def count(picture: np.ndarray[Any, Any], part: np.ndarray[Any, Any]) -> int:
    """Return in how many places a picture has exactly the pixels of a part."""
    views = np.lib.stride_tricks.sliding_window_view(picture, part.shape)[:, :, 0]
    return int((views == part).all(axis=(2, 3, 4)).sum())


@pytest.mark.parametrize("box", [[0, 0, 30, 20], [170, 0, 200, 25], [0, 130, 40, 150], [165, 120, 200, 150]])
def test_plates_stay_inside_the_image(box: list[float]) -> None:
    assert count(drawn(flat(150, 200), [(box, 0.5, 7)]), plate(150, 200, 0.5, 7)) == 1


def test_equal_boxes_get_labels_beside_each_other() -> None:
    """Eight detections of one box: every plate is there, and whole."""
    picture = drawn(flat(300, 400), [([60, 60, 260, 200], 0.9 - k / 10, k) for k in range(8)])
    assert [count(picture, plate(300, 400, 0.9 - k / 10, k)) for k in range(8)] == [1] * 8


def test_higher_scores_lie_on_top() -> None:
    rows: list[Row] = [([20, 20, 150, 110], 0.3, 1), ([20, 20, 150, 110], 0.8, 2)]
    for order in (rows, rows[::-1]):
        picture = drawn(flat(160, 200), order)
        assert mask(picture, 2)[60, 20]
        assert not mask(picture, 1)[60, 20]


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 3), (1, 400), (400, 1), (9, 14), (60, 80)])
def test_tiny_images(height: int, width: int) -> None:
    picture = drawn(flat(height, width), [([0, 0, width, height], 0.9, 0), ([0, 0, 1, 1], 0.8, 4)])
    assert (picture != 127).any()


def test_a_huge_image() -> None:
    picture = drawn(flat(4000, 6000), [([1000, 1000, 5000, 3500], 0.9, 0)])
    colour = mask(picture, 0)
    assert colour[1000:1021, 1000:5000].all()
    assert colour[2000].sum() == 2 * line_width(4000, 6000)
    assert 150 <= (colour[:1000].any(axis=1)).sum() <= 250  # the plate's height


@pytest.mark.parametrize("box", [[-50, -20, 30, 40], [90, 50, 900, 700], [5.2, 5.2, 5.3, 5.3], [200, 200, 210, 210]])
def test_boxes_outside_the_image_or_without_a_pixel(box: list[float]) -> None:
    assert (drawn(flat(80, 120), [(box, 0.5, 6)]) != 127).any()


def test_nothing_found_draws_nothing() -> None:
    assert (drawn(flat(80, 120), []) == 127).all()


def test_given_boxes_are_grey_where_background_wins() -> None:
    image = flat(100, 300)
    boxes = torch.tensor([[10, 40, 90, 90], [180, 40, 290, 90]], dtype=torch.float32)
    probabilities = torch.tensor([[0.1, 0.7, 0.2], [0.2, 0.1, 0.7]])
    picture = draw_boxes(image, BoxScores(boxes, probabilities, boxes, ("cat", "dog"))).permute(1, 2, 0).numpy()
    assert mask(picture, 1)[80, 10]
    assert picture[80, 180].tolist() == [128, 128, 128]
    assert not mask(picture[:, 150:], 0).any()


def test_the_picture_for_notebooks_and_files(tmp_path: Path) -> None:
    image = torch.randint(0, 256, (3, 40, 70), dtype=torch.uint8)
    found = detections(image, [([5, 15, 60, 35], 0.9, 8)])
    picture = draw_detections(image, found)
    png = found._repr_png_()
    assert png == encode_png(picture)
    with Image.open(io.BytesIO(png or b"")) as opened:
        assert opened.format == "PNG"
        assert np.array_equal(np.asarray(opened), picture.permute(1, 2, 0).numpy())
    save_image(picture, tmp_path / "a.PNG")
    assert torch.equal(read_image(tmp_path / "a.PNG"), picture)
    for name, kind in (("a.jpg", "JPEG"), ("a.webp", "WEBP")):
        save_image(flat(40, 70), tmp_path / name)
        with Image.open(tmp_path / name) as opened:
            assert (opened.format, opened.size) == (kind, (70, 40))
        assert (read_image(tmp_path / name).int() - 127).abs().max() <= 1
    with pytest.raises(ValueError, match=r"a\.txt: expected .* got \.txt"):
        save_image(picture, tmp_path / "a.txt")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.PNG", "a.jpg", "a.webp"]


def test_without_an_image_there_is_no_picture() -> None:
    found = detections(flat(4, 5), [])
    assert Detections(found.boxes, found.scores, found.labels, (4, 5), NAMES)._repr_png_() is None
