"""Check the picture of a training run by its pixels."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import ImageColor

from detector.images import read_image
from detector.plots import STAGE_COLOURS, format_ratio, format_seconds, plot_curves, plot_losses, plot_race, plot_sweep
from tests.sources import REPOSITORY


def rows(count: int, right: float = 0.5) -> list[dict[str, float]]:
    return [
        {
            "epoch": i / 4,
            "loss": 3 / (i + 1),
            "class_loss": 2 / (i + 1),
            "box_loss": 1 / (i + 1),
            "positives_right": right,
        }
        for i in range(count)
    ]


def colour(picture: torch.Tensor, rgb: tuple[int, int, int], near: int = 12) -> torch.Tensor:
    """Return where a picture has a colour, (H, W) bool."""
    return ((picture.int() - torch.tensor(rgb)[:, None, None]).abs() <= near).all(dim=0)


@pytest.mark.parametrize("count", [1, 2, 30])
def test_it_draws_a_picture(tmp_path: Path, count: int) -> None:
    plot_losses(rows(count), tmp_path / "new" / "loss.png")
    picture = read_image(tmp_path / "new" / "loss.png")
    assert picture.shape[1] >= 400
    assert picture.shape[2] >= 800
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["loss.png"]


def test_curves_are_where_their_values_are(tmp_path: Path) -> None:
    """Follow the curve of the right half: 75 % lies above 25 %, at the same distance from the middle."""
    heights = []
    for right in (0.25, 0.75):
        plot_losses(rows(30, right), tmp_path / "loss.png")
        half = read_image(tmp_path / "loss.png")
        half = half[:, :, half.shape[2] // 2 :]
        line = colour(half, (0x1F, 0x4E, 0x79)).sum(dim=1)
        heights.append(int(line.argmax()))
        assert int(line.max()) > half.shape[2] // 2
    assert heights[1] < heights[0]
    left = read_image(tmp_path / "loss.png")[:, :, : half.shape[2]]
    for rgb in ((0x1F, 0x4E, 0x79), (0x4C, 0x9F, 0x70), (0xD1, 0x79, 0x3B)):
        assert int(colour(left, rgb).sum()) > 100
    plot_losses([{**row, "box_loss": 0.0} for row in rows(30)], tmp_path / "loss.png")
    left = read_image(tmp_path / "loss.png")[:, :, : half.shape[2]]
    seen = [int(colour(left, rgb).sum()) for rgb in ((0x1F, 0x4E, 0x79), (0x4C, 0x9F, 0x70), (0xD1, 0x79, 0x3B))]
    assert seen[0] > 100
    assert seen[1:] == [0, 0]


def test_it_leaves_matplotlib_as_it_was(tmp_path: Path) -> None:
    """Draw in a fresh process without a screen: no window system is chosen, no state of pyplot is made."""
    code = (
        "import sys; from detector.plots import plot_curves, plot_losses; from tests.test_plots import Path, rows;"
        "plot_losses(rows(3), Path(sys.argv[1])); print('matplotlib.pyplot' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "loss.png")]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
    assert (tmp_path / "loss.png").stat().st_size > 1000


def test_curves_are_drawn_each_in_a_colour_of_its_own(tmp_path: Path) -> None:
    """Ten curves at ten heights: whole, dashed and dotted in turn, all in the legend."""
    curves = {f"way {number}": ([0.5, 1.0], [0.05 + 0.1 * number] * 2) for number in range(10)}
    plot_curves(curves, "IoU", tmp_path / "recall.png")
    picture = read_image(tmp_path / "recall.png")
    left, legend = picture[:, :, :800], picture[:, :, 850:]
    whole = [(31, 78, 121), (166, 61, 87), (181, 154, 30), (92, 61, 36)]
    dashed, dotted = (
        [(209, 121, 59), (122, 94, 168), (90, 180, 214)],
        [(76, 159, 112), (138, 138, 138), (214, 127, 180)],
    )
    widths = {rgb: int(colour(left, rgb, 6).sum(dim=1).max()) for rgb in (*whole, *dashed, *dotted)}
    assert len({widths[rgb] for rgb in whole}) == 1
    assert all(200 < widths[rgb] < 0.9 * widths[whole[0]] for rgb in (*dashed, *dotted))
    assert all(widths[one] > widths[other] for one in dashed for other in dotted)
    assert all(colour(legend, rgb, 6).any() for rgb in widths)


def test_a_long_name_leaves_room_for_the_curves(tmp_path: Path) -> None:
    def drawn(name: str) -> int:
        plot_curves({name: ([0.5, 1.0], [0.5, 0.5])}, "IoU", tmp_path / "recall.png")
        marks = colour(read_image(tmp_path / "recall.png"), (31, 78, 121))
        return int(marks.sum(dim=1).max())  # of the row of the curve

    short, long = drawn("json:a.json"), drawn(f"json:{'folder/' * 20}boxes.json")
    assert short > long > 500


def test_curves_of_counts_have_a_logarithmic_axis(tmp_path: Path) -> None:
    plot_curves({"one": ([1, 10, 100], [0, 0.4, 0.8])}, "boxes", tmp_path / "log.png")
    marks = colour(read_image(tmp_path / "log.png"), (31, 78, 121)).nonzero()
    marks = marks[marks[:, 1] < 700]  # the legend is to the right
    top, bottom = marks[:, 0].min(), marks[:, 0].max()
    middle = marks[(marks[:, 0] - (top + bottom) / 2).abs() < 3][:, 1].float().mean()
    left, right = marks[marks[:, 0] > bottom - 3][:, 1].min(), marks[marks[:, 0] < top + 3][:, 1].max()
    assert abs(float(middle) - float(left + right) / 2) < 12, "10 is half way from 1 to 100"


EXAMPLE = json.loads(Path(__file__).with_name("benchmark_example.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.00041, "0.410 ms"), (0.0532, "53.2 ms"), (0.142, "142 ms"), (0.9996, "1.00 s"), (14.37, "14.4 s"), (0, "0 ms")],
)
def test_times_have_three_digits(seconds: float, shown: str) -> None:
    assert format_seconds(seconds) == shown


@pytest.mark.parametrize(("ratio", "shown"), [(101.8, "102x"), (9.96, "10x"), (5.31, "5.3x"), (0.82, "0.82x")])
def test_ratios_are_rounded(ratio: float, shown: str) -> None:
    assert format_ratio(ratio) == shown


def test_a_bar_ends_at_its_total_and_is_divided_by_shares(tmp_path: Path) -> None:
    """Race three detectors of 10, 100 and 1000 ms, 3 : 1 of conv and fc: equal steps of the axis, the same division."""
    detectors = {
        str(total): {
            "stages": {"conv": 0.75 * total, "fc": 0.25 * total},
            "total": total,
            "total_without_proposals": total,
        }
        for total in (0.01, 0.1, 1.0)
    }
    plot_race({"detectors": detectors}, tmp_path / "race.png")
    picture = read_image(tmp_path / "race.png")
    conv, fc = (colour(picture, ImageColor.getrgb(STAGE_COLOURS[stage]), 4) for stage in ("conv", "fc"))
    lengths, shares = [], []
    for row in (conv.sum(dim=1) > 60).nonzero().flatten().tolist():
        start, middle = int(conv[row].nonzero().min()), int(fc[row].nonzero().min())
        end = int(fc[row].nonzero().max())
        lengths.append(end - start)
        shares.append((middle - start) / (end - start))
    first, second, third = sorted({length for length in lengths if lengths.count(length) > 10})
    assert second == pytest.approx(2 * first, abs=5), "pixels, edges of bars are white"
    assert third == pytest.approx(3 * first, abs=7)
    assert sorted(shares)[len(shares) // 2] == pytest.approx(0.75, abs=0.01)


def test_a_sweep_has_a_line_for_each_stage(tmp_path: Path) -> None:
    """Draw the example: nothing is cut off at the borders, the flat stage is level, the others rise."""
    plot_sweep(EXAMPLE, tmp_path / "sweep.png")
    picture = read_image(tmp_path / "sweep.png")
    assert tuple(picture.shape[1:]) == (720, 1350)
    for edge in (picture[:, 0], picture[:, -1], picture[:, :, 0], picture[:, :, -1]):
        assert bool((edge == 255).all())
    left = picture[:, :, :1020]
    heights = {}
    for stage in ("conv", "pool", "fc"):
        rows = colour(left, ImageColor.getrgb(STAGE_COLOURS[stage]), 30).nonzero()[:, 0]
        heights[stage] = int(rows.max() - rows.min())
    assert heights["conv"] < 6
    assert min(heights["pool"], heights["fc"]) > 100
