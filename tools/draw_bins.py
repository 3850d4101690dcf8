"""Draw the bins of a spatial pyramid, and where a well-known formula goes wrong: the pictures of docs/pyramid.md.

    python tools/draw_bins.py --out docs/pictures

Writes three PNG files, pyramid-bins.png, pyramid-windows.png and pyramid-formula.png, and prints the table of the page.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from detector.files import replacing

LEVELS = (6, 3, 2, 1)
LONGEST = 64
SIDES = (2, 3, 4, 6)  # bins per side that the formula is looked at for
DPI = 120
# Colours of Okabe and Ito, told apart by colour-blind readers as well; on paper they differ in brightness.
BLUE, ORANGE, VERMILION, INK = "#0072b2", "#e69f00", "#d55e00", "#333333"
SHARED = {1: "#ffffff", 2: "#fbe3b0", 4: "#e69f00"}  # cells by the number of bins that they lie in
VERDICTS = ("right bins", "right number of bins, wrong cells", "wrong number of bins")
VERDICT_COLOURS = ("#a9d5ee", ORANGE, "#a63d00")

Bins = list[tuple[int, int]]


def right_bins(length: int, n: int) -> Bins:
    """Return the cells [start, end) of each bin: floor(i a / n), ceil((i + 1) a / n); He et al. 2015, appendix A."""
    return [(i * length // n, ((i + 1) * length + n - 1) // n) for i in range(n)]


def sliding_bins(length: int, n: int) -> Bins:
    """Return the windows of win = ceil(a / n) and stride = floor(a / n) that fit; with a stride of 0 only one does."""
    win, stride = (length + n - 1) // n, length // n
    starts = range(0, length - win + 1, stride) if stride else [0]
    return [(start, start + win) for start in starts]


def verdict(length: int, n: int) -> int:
    """Return 0 where the formula gives the right bins, 1 where their number alone is right, 2 where it is wrong."""
    right, sliding = right_bins(length, n), sliding_bins(length, n)
    return 0 if sliding == right else 1 if len(sliding) == n else 2


def draw_map(axes: Axes, n: int, height: int, width: int) -> None:
    """Draw the cells of a map, coloured by the number of bins they lie in, and beside it the bins of both sides."""
    rows, columns = right_bins(height, n), right_bins(width, n)
    for y in range(height):
        for x in range(width):
            count = sum(a <= y < b for a, b in rows) * sum(a <= x < b for a, b in columns)
            axes.add_patch(Rectangle((x, y), 1, 1, facecolor=SHARED[count], edgecolor="#c4c4c4", linewidth=0.7))
    for number, (top, bottom) in enumerate(rows):
        place = -0.55 - 0.55 * (number % 2)
        axes.plot([place, place], [top + 0.1, bottom - 0.1], color=BLUE, linewidth=3.5, solid_capstyle="butt")
    for number, (left, right) in enumerate(columns):
        place = -0.55 - 0.55 * (number % 2)
        axes.plot([left + 0.1, right - 0.1], [place, place], color=BLUE, linewidth=3.5, solid_capstyle="butt")
    i, j = min(1, n - 1), min(2, n - 1)
    (top, bottom), (left, right) = rows[i], columns[j]
    frame = Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=VERMILION, linewidth=2.6, zorder=3)
    axes.add_patch(frame)
    axes.set(xlim=(-1.4, width + 0.1), ylim=(height + 0.1, -1.4), aspect="equal")
    axes.set_title(f"level {n} x {n}: {n * n} bin{'s' if n > 1 else ''}", fontsize=11, color=INK)
    axes.axis("off")


def draw_bins(path: Path, height: int = 10, width: int = 13) -> None:
    """Draw every level of the pyramid on one map."""
    figure = new_figure(7.5, 6.9)
    for axes, n in zip(figure.subplots(2, 2).flat, LEVELS, strict=True):
        draw_map(axes, n, height, width)
    handles = [
        Patch(facecolor=SHARED[1], edgecolor="#c4c4c4", label="cell of one bin"),
        Patch(facecolor=SHARED[2], edgecolor="#c4c4c4", label="of two"),
        Patch(facecolor=SHARED[4], edgecolor="#c4c4c4", label="of four"),
        Patch(facecolor=BLUE, label="rows and columns of each bin"),
        Patch(fill=False, edgecolor=VERMILION, linewidth=2.4, label="one bin"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=5, frameon=False, fontsize=9, columnspacing=1.4)
    save(figure, path)


def draw_windows(path: Path) -> None:
    """Draw, for a row of cells of three lengths, the bins of a level of 6 and the windows that the formula slides."""
    lengths, n = (13, 14, 10), 6
    figure = new_figure(7.5, 5.4)
    for axes, length in zip(figure.subplots(len(lengths), 1), lengths, strict=True):
        win, stride = (length + n - 1) // n, length // n
        for x in range(length):
            axes.add_patch(Rectangle((x, 0), 1, 1, facecolor="white", edgecolor="#a0a0a0", linewidth=0.8))
        kinds = ((right_bins(length, n), 1.45, BLUE, "right"), (sliding_bins(length, n), 3.15, VERMILION, "formula"))
        for bins, start, colour, name in kinds:
            for number, (left, right) in enumerate(bins):
                y = start + 0.6 * (number % 2)
                axes.plot([left + 0.12, right - 0.12], [y, y], color=colour, linewidth=5.5, solid_capstyle="butt")
            axes.text(-0.25, start + 0.3, f"{name}: {len(bins)}", ha="right", va="center", fontsize=10, color=colour)
        answer = VERDICTS[verdict(length, n)]
        title = f"a = {length} cells, n = {n} bins: window {win}, stride {stride} - {answer}"
        axes.set_title(title, fontsize=11, color=INK, loc="left")
        axes.set(xlim=(-2.1, 14.1), ylim=(4.2, -0.15))
        axes.axis("off")
    save(figure, path)


def draw_formula(path: Path) -> None:
    """Draw the verdict on the formula for every length and level."""
    figure = new_figure(7.5, 2.5)
    axes = figure.subplots()
    grid = [[verdict(length, n) for length in range(1, LONGEST + 1)] for n in SIDES]
    edges = [length - 0.5 for length in range(1, LONGEST + 2)]
    palette = ListedColormap(VERDICT_COLOURS)
    axes.pcolormesh(edges, range(len(SIDES) + 1), grid, cmap=palette, vmin=0, vmax=2, edgecolor="white", linewidth=0.8)
    axes.set_yticks([k + 0.5 for k in range(len(SIDES))], [f"n = {n}" for n in SIDES], fontsize=10)
    axes.set_xticks([1, *range(4, LONGEST + 1, 4)])
    axes.set_xlabel("a: cells along a side of the map", fontsize=10)
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.spines[:].set_visible(False)
    handles = [Patch(facecolor=colour, label=name) for colour, name in zip(VERDICT_COLOURS, VERDICTS, strict=True)]
    figure.legend(handles=handles, loc="outside upper center", ncols=3, frameon=False, fontsize=10)
    save(figure, path)


def new_figure(width: float, height: float) -> Figure:
    """Return a white figure of so many inches."""
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a PNG whole."""
    with replacing(path) as beside:
        figure.savefig(beside, format="png", dpi=DPI)


def spans(lengths: list[int]) -> str:
    """Return whole numbers with neighbours joined: 1-5, 8-11, 29."""
    parts: list[list[int]] = []
    for length in lengths:
        if parts and parts[-1][-1] == length - 1:
            parts[-1].append(length)
        else:
            parts.append([length])
    return ", ".join(str(p[0]) if len(p) == 1 else f"{p[0]}-{p[-1]}" for p in parts) or "none"


def table() -> str:
    """Return the table of the page: per level, how many lengths are right, and for which the number is wrong."""
    lines = [
        "| n | right bins | right number, wrong cells | wrong number | a with a wrong number |",
        "|--:|--:|--:|--:|---|",
    ]
    for n in SIDES:
        found = [verdict(length, n) for length in range(1, LONGEST + 1)]
        wrong = spans([length for length, v in enumerate(found, start=1) if v == 2])
        lines.append(f"| {n} | {found.count(0)} | {found.count(1)} | {found.count(2)} | {wrong} |")
    return "\n".join(lines)


def main() -> None:
    """Draw the pictures into a folder and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where the pictures go")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    draw_bins(options.out / "pyramid-bins.png")
    draw_windows(options.out / "pyramid-windows.png")
    draw_formula(options.out / "pyramid-formula.png")
    print(table())


if __name__ == "__main__":
    main()
