"""Check the plots of an evaluation and the pictures of failures by their pixels."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageColor

from detector.evaluation import Result
from detector.evaluation_plots import (
    FALSE_CAUSES,
    GROUP_COLOURS,
    METRIC_COLOURS,
    MISSED_CAUSES,
    MOST_CONFUSED,
    most_confused,
    plot_class_ap,
    plot_confusion,
    plot_errors,
    plot_precision_recall,
)
from detector.failures import DETECTION, OBJECT, PROPOSAL, draw_failure
from detector.structures import Detections

NAMES = [f"class {number}" for number in range(80)]
WIDTH = 1350


def opened(path: Path) -> np.ndarray:
    """Return the pixels of a PNG, (H, W, 3), of the width of all plots and not blank; nothing else lies beside it."""
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    assert pixels.shape[1] == WIDTH
    assert pixels.std() > 5
    return pixels


def where(pixels: np.ndarray, colour: str | tuple[int, ...], near: int = 6) -> np.ndarray:
    """Return where the pixels have a colour, (H, W) bool."""
    rgb = ImageColor.getrgb(colour) if isinstance(colour, str) else colour
    return (np.abs(pixels - np.array(rgb[:3])) <= near).all(axis=2)


def bars(pixels: np.ndarray, colour: str) -> list[int]:
    """Return the lengths in pixels of the bars of a colour, from top to bottom; the legend's patch is left out."""
    rows = where(pixels[70:], colour).sum(axis=1)
    rows = np.where(rows > 25, rows, 0)
    edges = np.flatnonzero(np.diff((rows > 0).astype(int), prepend=0, append=0))
    return [int(np.median(rows[start:end])) for start, end in zip(edges[::2], edges[1::2], strict=True)]


def test_bars_are_as_long_as_the_precisions_and_sorted(tmp_path: Path) -> None:
    """Two metrics: bars in the order of the first, in proportion to their values; a class without objects has none."""
    voc = Result(0.5, {"a": 0.25, "b": 0.75, "c": math.nan, "d": 0.5}, "voc07")
    coco = Result(0.3, {"a": 0.4, "b": 0.3, "c": math.nan, "d": 0.2}, "coco")
    plot_class_ap({"voc07": voc, "coco": coco}, {"a": 10, "b": 2000, "d": 7}, tmp_path / "new" / "ap.png")
    pixels = opened(tmp_path / "new" / "ap.png")
    first, second = bars(pixels, METRIC_COLOURS[0]), bars(pixels, METRIC_COLOURS[1])
    unit = first[0] / 0.75
    assert np.allclose(first, np.array([0.75, 0.5, 0.25]) * unit, atol=3)
    assert np.allclose(second, np.array([0.3, 0.2, 0.4]) * unit, atol=3)


def test_many_classes_fit(tmp_path: Path) -> None:
    result = Result(0.5, {name: (number + 10) / 100 for number, name in enumerate(NAMES)}, "coco")
    plot_class_ap({"coco": result}, dict.fromkeys(NAMES, 3), tmp_path / "ap.png")
    lengths = bars(opened(tmp_path / "ap.png"), METRIC_COLOURS[0])
    assert len(lengths) == 80
    assert lengths == sorted(lengths, reverse=True)


@pytest.mark.parametrize("count", [1, 3, 7, 20, 80])
def test_every_class_has_its_curve(tmp_path: Path, count: int) -> None:
    """Draw precision 1 up to recall 1/2: half of each frame is filled, whatever the number of frames."""
    curve = (np.linspace(0.1, 0.5, 5), np.ones(5))
    result = Result(0.5, dict.fromkeys(NAMES[:count], 0.5), "voc10")
    plot_precision_recall(dict.fromkeys(NAMES[:count], curve), result, tmp_path / "curves.png")
    pixels = opened(tmp_path / "curves.png")
    half = float(where(pixels, (224, 237, 245), near=4).mean())
    plot_precision_recall(dict.fromkeys(NAMES[:count], (curve[0] * 2, curve[1])), result, tmp_path / "curves.png")
    whole = float(where(opened(tmp_path / "curves.png"), (224, 237, 245), near=4).mean())
    assert whole > 0.3 * min(1.0, count / 7)
    assert half / whole == pytest.approx(0.5, abs=0.05)


def test_curves_without_points_or_objects(tmp_path: Path) -> None:
    result = Result(0.0, {"a": 0.0}, "voc07")
    nothing, unknown = (np.empty(0), np.empty(0)), (np.full(3, np.nan), np.zeros(3))
    plot_precision_recall({"a": nothing, "b": unknown}, result, tmp_path / "curves.png")
    assert where(opened(tmp_path / "curves.png"), METRIC_COLOURS[0]).sum() == 0
    with pytest.raises(ValueError, match="expected the curve of at least one class with objects, got none"):
        plot_precision_recall({"b": unknown}, result, tmp_path / "curves.png")


def test_the_confusion_matrix_shades_shares_of_rows(tmp_path: Path) -> None:
    """Six classes: all found (dark), except the third, which is missed; one has a hundred times as many objects."""
    counts = np.diag([5, 5, 0, 5, 5, 500, 0])
    counts[2, 6] = 5
    plot_confusion(counts, NAMES[:6], tmp_path / "confusion.png")
    pixels = opened(tmp_path / "confusion.png")
    dark = where(pixels, (8, 48, 107), near=3)[:, : WIDTH * 4 // 5]  # without the scale at the right
    columns = np.flatnonzero(dark.sum(axis=0) > 40)
    assert len(np.split(columns, np.flatnonzero(np.diff(columns) > 3) + 1)) == 6
    per_column = dark.sum(axis=0)[columns]
    assert per_column.max() < 1.3 * np.median(per_column)


def test_of_many_classes_the_most_confused_are_shown(tmp_path: Path) -> None:
    counts = np.diag([100] * 81)
    counts[-1] = 10_000
    pairs = [(3, 70), (12, 15), (40, 41)]
    for number, (row, column) in enumerate(pairs):
        counts[row, column] = 9 - number
    assert most_confused(counts, 6) == [3, 12, 15, 40, 41, 70]
    assert most_confused(counts, 2) == [3, 70]
    counts[7, -1] = 50
    assert most_confused(counts, 7) == [3, 7, 12, 15, 40, 41, 70]
    plot_confusion(counts, NAMES, tmp_path / "confusion.png")
    pixels = opened(tmp_path / "confusion.png")
    assert len(most_confused(counts, MOST_CONFUSED)) == MOST_CONFUSED
    assert 1000 < pixels.shape[0] < 1500


def test_bars_of_errors_have_the_colours_of_their_groups(tmp_path: Path) -> None:
    costs = {cause: 0.01 * (number + 1) for number, cause in enumerate((*FALSE_CAUSES, *MISSED_CAUSES))}
    plot_errors({**costs, "something else": 1.0}, dict.fromkeys(costs, 12), tmp_path / "errors.png")
    pixels = opened(tmp_path / "errors.png")
    false, missed = (bars(pixels, colour) for colour in GROUP_COLOURS.values())
    assert np.allclose(false, np.arange(1, 6) * missed[-1] / 10, atol=3)
    assert np.allclose(missed, np.arange(6, 11) * missed[-1] / 10, atol=3)
    with pytest.raises(ValueError, match="expected the cost of at least one cause, got none"):
        plot_errors({"something else": 1.0}, {}, tmp_path / "errors.png")


def test_costs_of_nothing_are_drawn(tmp_path: Path) -> None:
    plot_errors({"duplicate": 0.0, "missed": -0.02}, {"duplicate": 1, "missed": 0}, tmp_path / "errors.png")
    assert len(bars(opened(tmp_path / "errors.png"), GROUP_COLOURS["missed objects"])) == 1


def failure(target: list[float] | None, boxes: list[list[float]], proposals: list[list[float]]) -> np.ndarray:
    """Draw on a grey photo of 400 x 800 pixels, which becomes one of 240 x 480."""
    found = Detections(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.linspace(0.9, 0.5, len(boxes)),
        torch.zeros(len(boxes), dtype=torch.int64),
        (400, 800),
        ("cat",),
    )
    drawn = draw_failure(
        torch.full((3, 400, 800), 128, dtype=torch.uint8),
        None if target is None else torch.tensor(target, dtype=torch.float32),
        found,
        torch.tensor(proposals, dtype=torch.float32).reshape(-1, 4),
    )
    assert drawn.shape == (3, 240, 480)
    assert drawn.dtype == torch.uint8
    return drawn.permute(1, 2, 0).numpy().astype(int)


def extent(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Return (left, top, right, bottom) of what is true, right and bottom inclusive."""
    ys, xs = np.nonzero(mask)
    return int(xs.min()), int(ys.min()), int(xs.max()), int(ys.max())


def test_a_failure_shows_each_box_in_its_place_and_colour() -> None:
    """Lines lie outside of their boxes: [100, 200) x 0.6 = [60, 120) is enclosed by a line of three pixels."""
    pixels = failure([100, 150, 200, 300], [[300, 100, 500, 350]], [[600, 50, 700, 200]])
    assert extent(where(pixels, OBJECT, 0)) == (60 - 2, 90 - 2, 119 + 2, 179 + 2)
    assert extent(where(pixels, PROPOSAL, 0)) == (360, 30, 419, 119)
    red = where(pixels, DETECTION, 0)
    red[:59] = False  # the label lies above
    assert extent(red) == (180 - 1, 60 - 1, 299 + 1, 209 + 1)
    assert where(pixels, (255, 255, 255), 40).sum() > 20  # the label's letters
    dashes = where(pixels, OBJECT, 0)[89]
    assert 0.4 < dashes[58:122].mean() < 0.9
    assert dashes[58]
    assert dashes[121]


def test_a_failure_at_the_border_stays_visible() -> None:
    pixels = failure([0, 0, 800, 400], [[-20, 0, 800, 420]], [])
    yellow = where(pixels, OBJECT, 0)
    left, top, right, bottom = extent(yellow)
    assert left < 6
    assert top < 6
    assert right > 473
    assert bottom > 233
    assert yellow[:, :6].any(axis=1).mean() > 0.5


def test_labels_do_not_cover_each_other() -> None:
    """Three detections of one box: three plates, each with its letters."""
    pixels = failure(None, [[200, 150, 400, 300]] * 3, [])
    one = failure(None, [[200, 150, 400, 300]], [])
    letters, single = (int(where(picture, (255, 255, 255), 40).sum()) for picture in (pixels, one))
    assert letters > 2.4 * single
    assert where(pixels, OBJECT, 0).sum() == where(pixels, PROPOSAL, 0).sum() == 0


def test_a_failure_without_boxes_is_the_photo_and_a_tiny_one_is_refused() -> None:
    assert (failure(None, [], []) == 128).all()
    nothing = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64), (4, 9), ())
    with pytest.raises(ValueError, match="expected a picture of at least 16 pixels, got 8"):
        draw_failure(torch.zeros(3, 4, 9, dtype=torch.uint8), None, nothing, torch.zeros(0, 4), 8)
    strip = draw_failure(
        torch.zeros(3, 1, 900, dtype=torch.uint8), torch.tensor([3.0, 0, 9, 1]), nothing, torch.zeros(0, 4)
    )
    assert strip.shape == (3, 1, 480)
