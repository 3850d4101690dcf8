"""Draw what an evaluation found: average precision, precision against recall, confusions, errors by cause."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from .evaluation.results import Result
from .files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = np.ndarray[Any, np.dtype[Any]]
Curve = tuple[Array, Array]  # recall, precision

# Colours of Okabe and Ito, told apart by colour-blind readers as well; the first two are the groups of causes too.
METRIC_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#8a8a8a")
FALSE_CAUSES = ("localisation", "class", "duplicate", "background", "class and localisation")
MISSED_CAUSES = ("no proposal", "low score", "regression", "suppressed", "missed")
GROUPS = {"false detections": FALSE_CAUSES, "missed objects": MISSED_CAUSES}
GROUP_COLOURS = {"false detections": "#d55e00", "missed objects": "#0072b2"}
MOST_CONFUSED = 20  # classes in the confusion matrix: more cannot be read
_INK, _QUIET = "#333333", "#6a6a6a"
_DPI = 150
_WIDTH = 9.0  # inches
_LONGEST = 24  # characters of a class name


def plot_class_ap(results: Mapping[str, Result], objects: Mapping[str, int], path: Path) -> None:
    """Draw the average precision of each class as bars, the best by the first metric on top; a PNG written whole.

    Every metric has a colour, and a dashed line for its mean. objects: how many each class has, written at the right;
    classes without objects have no average precision and are left out. Raises ValueError without results.
    """
    if not results:
        raise ValueError("expected the results of at least one metric, got none")
    first = next(iter(results.values()))
    names = sorted(_measured(results), key=lambda name: -_or_zero(first.per_class.get(name, math.nan)))
    thick = 0.8 / len(results)
    row = 0.1 + (0.17 if len(names) <= 30 else 0.14) * len(results)
    figure = _figure(1.1 + len(names) * row)
    axes = figure.subplots()
    for number, (metric, result) in enumerate(results.items()):
        colour = METRIC_COLOURS[number % len(METRIC_COLOURS)]
        values = [100 * _or_zero(result.per_class.get(name, math.nan)) for name in names]
        ys = [row - 0.4 + thick * (number + 0.5) for row in range(len(names))]
        axes.barh(ys, values, height=0.9 * thick, color=colour, label=_label(metric, result))
        for y, value in zip(ys, values, strict=True):
            axes.annotate(f"{value:.1f}", (value, y), **_beside(7.5))
        if math.isfinite(result.map):
            axes.axvline(100 * result.map, color=colour, linestyle=(0, (4, 2)), linewidth=1.2, zorder=0)
    for y, name in enumerate(names):
        text = f"{objects[name]:,}" if name in objects else ""
        axes.text(1.085, y, text, transform=axes.get_yaxis_transform(), ha="right", va="center", fontsize=8.5)
    if objects:
        axes.text(1.085, -0.75, "objects", transform=axes.get_yaxis_transform(), ha="right", fontsize=8.5, color=_QUIET)
    axes.set_yticks(range(len(names)), [_name(name) for name in names], fontsize=9)
    axes.set(xlim=(0, 100), ylim=(len(names) - 0.45, -0.6), xlabel="average precision, %")
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    figure.legend(loc="outside upper left", ncols=4, frameon=False, fontsize=9)
    _save(figure, path)


def plot_precision_recall(curves: Mapping[str, Curve], result: Result, path: Path) -> None:
    """Draw precision against recall, a small picture for each class; a PNG written whole.

    curves: per class recall, ascending, and precision in [0, 1], (D,) each. The thin line is the curve, the thick one
    the best precision at that recall or more, which average precision measures. result: the metric whose average
    precision stands in the titles. Classes whose recall is NaN are left out. Raises ValueError if none is left.
    """
    known = {name: curve for name, curve in curves.items() if not np.isnan(np.asarray(curve[0], dtype=float)).any()}
    if not known:
        raise ValueError("expected the curve of at least one class with objects, got none")
    columns = next(columns for columns, most in ((1, 1), (2, 4), (3, 9), (5, 25), (6, math.inf)) if len(known) <= most)
    rows = -(-len(known) // columns)
    side = {1: 5.0, 2: 3.6, 3: 2.7}.get(columns, 1.85)
    height = 0.6 + rows * side
    figure = _figure(height, layout=None)  # to solve a layout of 80 frames takes seconds
    grid = figure.subplots(rows, columns, squeeze=False)
    figure.subplots_adjust(0.65 / _WIDTH, 0.55 / height, 1 - 0.15 / _WIDTH, 1 - 0.3 / height, 0.2, 0.42 / side)
    for number, (name, (recall, precision)) in enumerate(known.items()):
        axes = grid.flat[number]
        _draw_curve(axes, np.asarray(recall, dtype=float), np.asarray(precision, dtype=float))
        # written once in each row and column, in a last row that is not full as well
        axes.tick_params(labelleft=number % columns == 0, labelbottom=number + columns >= len(known))
        ap = result.per_class.get(name, math.nan)
        title = f"{_name(name)}  {100 * ap:.1f}" if math.isfinite(ap) else _name(name)
        axes.set_title(title, fontsize=9.5 if columns <= 3 else 8.5, color=_INK)
    for axes in list(grid.flat)[len(known) :]:
        axes.set_visible(False)
    figure.text(0.5, 0.1 / height, "recall, %", ha="center", fontsize=9)
    figure.text(0.1 / _WIDTH, 0.5, "precision, %", va="center", rotation=90, fontsize=9)
    _save(figure, path)


def plot_confusion(confusion: Array, class_names: Sequence[str], path: Path) -> None:
    """Draw a confusion matrix, each row coloured by its shares; a PNG written whole.

    confusion: (K + 1, K + 1) counts, rows: what the object is, columns: as what it was detected; the last row holds
    detections of nothing, the last column objects that were not detected. Of more than 20 classes, those that are most
    often taken for another or for which another is taken are shown; shares are those of whole rows even so.
    """
    counts = np.asarray(confusion)
    shown = [*most_confused(counts, MOST_CONFUSED), len(class_names)]
    labels = [*(_name(class_names[k]) for k in shown[:-1]), "background"]
    totals = counts.sum(axis=1, keepdims=True)
    shares = (counts / np.maximum(totals, 1))[np.ix_(shown, shown)]
    cells = counts[np.ix_(shown, shown)]
    grid = min(0.9 * len(shown), 6.6)  # inches; the rest of the width is for names and the scale
    upright = len(shown) > 4
    below = 0.5 + (0.075 * max(map(len, labels)) if upright else 0.2)
    figure = _figure(grid + below, layout="compressed")
    axes = figure.subplots()
    picture = axes.imshow(100 * shares, cmap="Blues", vmin=0, vmax=100)
    _write_counts(axes, cells, shares, grid / len(shown))
    names_at = range(len(shown))
    axes.set_xticks(names_at, labels, rotation=90 if upright else 0, fontsize=8.5)
    axes.set_yticks(names_at, labels, fontsize=8.5)
    axes.set_xticks([at - 0.5 for at in names_at][1:], minor=True)
    axes.set_yticks([at - 0.5 for at in names_at][1:], minor=True)
    axes.grid(which="minor", color="#e4e4e4", linewidth=0.6)
    axes.tick_params(which="both", length=0)
    last = len(shown) - 1.5
    axes.axhline(last, color=_QUIET, linewidth=1)
    axes.axvline(last, color=_QUIET, linewidth=1)
    axes.set(xlabel="detected as", ylabel="true class")
    bar = figure.colorbar(picture, ax=axes, fraction=0.035, pad=0.02, label="% of the row")
    bar.outline.set_visible(False)
    _save(figure, path)


def plot_errors(costs: Mapping[str, float], counts: Mapping[str, int], path: Path) -> None:
    """Draw what repairing each cause alone would add to the mean average precision; a PNG written whole.

    costs: per cause, in parts of one; counts: how many errors have the cause. Raises ValueError if there is no cause.
    """
    groups = {group: [cause for cause in causes if cause in costs] for group, causes in GROUPS.items()}
    groups = {group: causes for group, causes in groups.items() if causes}
    if not groups:
        raise ValueError("expected the cost of at least one cause, got none")
    figure = _figure(0.8 + 0.33 * sum(len(causes) + 1.2 for causes in groups.values()))
    axes = figure.subplots()
    ticks: list[tuple[float, str]] = []
    y = 0.0
    for group, causes in groups.items():
        axes.text(0, y, f" {group}", transform=axes.get_yaxis_transform(), weight="bold", va="center", color=_INK)
        for cause in causes:
            y += 1
            ticks.append((y, cause))
            axes.barh(y, 100 * costs[cause], height=0.72, color=GROUP_COLOURS[group])
            text = f"{100 * costs[cause]:+.1f}   {_plural(counts.get(cause, 0), group)}"
            axes.annotate(text, (max(0.0, 100 * costs[cause]), y), **_beside(8.5))
        y += 1.3
    most = max([0.1, *(100 * costs[cause] for causes in groups.values() for cause in causes)])
    least = min([0.0, *(100 * costs[cause] for causes in groups.values() for cause in causes)])
    axes.set_yticks([at for at, _ in ticks], [cause for _, cause in ticks], fontsize=9)
    axes.set(xlim=(1.1 * least, 1.3 * most), ylim=(y - 0.7, -0.6))
    axes.set_xlabel("points of mAP that repairing this cause alone would win;  beside: how many there are", fontsize=9)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    _save(figure, path)


def _write_counts(axes: Axes, cells: Array, shares: Array, side: float) -> None:
    """Write the counts that are not zero into their cells, as large as fits cells of `side` inches."""
    longest = max(2, *(len(_short(int(count))) for count in cells.flat))
    size = min(10.0, 0.85 * 72 * side / (0.64 * longest))
    for row, column in zip(*np.nonzero(cells), strict=True):
        colour = "white" if shares[row, column] > 0.5 else _INK
        text = _short(int(cells[row, column]))
        axes.text(column, row, text, ha="center", va="center", fontsize=size, color=colour)


def most_confused(confusion: Array, most: int) -> list[int]:
    """Return at most `most` classes, in their order: those with the most confusions with other classes.

    confusion: (K + 1, K + 1) counts as in `plot_confusion`. Between equals, the classes missed more often come first.
    """
    between = np.asarray(confusion)[:-1, :-1].astype(float)
    np.fill_diagonal(between, 0)
    confused = between.sum(axis=0) + between.sum(axis=1)
    order = np.lexsort((-np.asarray(confusion)[:-1, -1], -confused))
    return sorted(int(label) for label in order[:most])


def _draw_curve(axes: Axes, recall: Array, precision: Array) -> None:
    if len(recall):
        best = np.maximum.accumulate(precision[::-1])[::-1]
        xs, ys = np.concatenate([[0.0], recall]), np.concatenate([best[:1], best])
        axes.fill_between(100 * xs, 100 * ys, step="pre", color=METRIC_COLOURS[0], alpha=0.12, linewidth=0)
        axes.plot(100 * recall, 100 * precision, color=METRIC_COLOURS[0], linewidth=0.7, alpha=0.6)
        axes.plot(100 * xs, 100 * ys, color=METRIC_COLOURS[0], linewidth=1.5, drawstyle="steps-pre")
    else:
        axes.text(50, 50, "no detections", ha="center", va="center", fontsize=8, color=_QUIET)
    axes.set(xlim=(0, 102), ylim=(0, 102), xticks=(0, 50, 100), yticks=(0, 50, 100))
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _measured(results: Mapping[str, Result]) -> list[str]:
    """List the classes of which any metric knows the average precision, in the order of the results."""
    pairs = ((name, ap) for result in results.values() for name, ap in result.per_class.items())
    return list(dict.fromkeys(name for name, ap in pairs if math.isfinite(ap)))


def _label(metric: str, result: Result) -> str:
    mean = f", mean {100 * result.map:.1f}" if math.isfinite(result.map) else ""
    return _plain(f"{metric}{mean}")


def _or_zero(value: float) -> float:
    return value if math.isfinite(value) else 0.0


def _short(count: int) -> str:
    """Return a count in at most four characters: `9999`, `12k`."""
    return str(count) if count < 10_000 else f"{count / 1000:.0f}k"


def _plural(count: int, group: str) -> str:
    return f"{count:,} {group.split()[-1]}" if count != 1 else f"1 {group.split()[-1].removesuffix('s')}"


def _beside(size: float) -> dict[str, Any]:
    """Return how a text stands to the right of a point."""
    return {
        **{"xytext": (4, 0), "textcoords": "offset points", "va": "center_baseline"},
        **{"fontsize": size, "color": _INK, "annotation_clip": False},
        "bbox": {"facecolor": "white", "edgecolor": "none", "pad": 0.6},  # over the lines of the means
    }


def _name(name: str) -> str:
    """Return a class name of bearable length that matplotlib does not take for a formula."""
    return _plain(name if len(name) <= _LONGEST else f"{name[: _LONGEST - 3]}...")


def _plain(text: str) -> str:
    return text.replace("$", r"\$")


def _figure(height: float, layout: Literal["constrained", "compressed"] | None = "constrained") -> Figure:
    """Return a figure of this height in inches that no window system and no global state knows."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, height), layout=layout)
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG, whole or not at all."""
    with replacing(path) as beside:
        figure.savefig(beside, format="png", dpi=_DPI)
