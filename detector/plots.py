"""Draw the course of a training run, what proposals cover, and the race of detectors."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PALETTE = (
    *("#1f4e79", "#d1793b", "#4c9f70", "#a63d57", "#7a5ea8"),
    *("#8a8a8a", "#b59a1e", "#5ab4d6", "#d67fb4", "#5c3d24"),
)
_STYLES = ("-", (0, (5, 1.5)), (0, (1.5, 1)))  # whole, dashed, dotted: neighbours differ where colours are not seen
_LONGEST = 30  # characters of a name in the legend
_COLOURS = {"loss": "#1f4e79", "class_loss": "#4c9f70", "box_loss": "#d1793b"}
# The stages of a detector in their order. Colours of Okabe and Ito, told apart by colour-blind readers as well.
STAGE_COLOURS = {
    **{"decode": "#8a8a8a", "proposals": "#e69f00", "warp": "#cc79a7", "conv": "#0072b2"},
    **{"pool": "#009e73", "fc": "#d55e00", "select": "#56b4e9"},
}
BEFORE_DETECTION = ("decode", "proposals")  # what the paper's times leave out
_DETECTOR_COLOURS = ("#1f4e79", "#a63d57", "#5c3d24", "#4c9f70", "#7a5ea8")
_MARKERS = "osD^v"
_INK = "#333333"
_RACE_DPI = 150


def plot_losses(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw the losses, and the part of positives that got their own class, against epochs; a PNG written whole.

    rows: one mapping per line of metrics.jsonl, with epoch, loss, class_loss, box_loss and positives_right. Where no
    boxes were learned, as from a teacher, there is one loss.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in rows]
    boxes = any(row["box_loss"] for row in rows)
    for name in _COLOURS if boxes else ["loss"]:
        values = [row[name] for row in rows]
        left.plot(epochs, values, color=_COLOURS[name], label=name.replace("_", " "), linewidth=1.2)
    right.plot(epochs, [100 * row["positives_right"] for row in rows], color=_COLOURS["loss"], linewidth=1.2)
    left.set(xlabel="epoch", ylabel="loss per region", ylim=(0, None), title="Training loss")
    if boxes:
        left.legend(frameon=False)
    title = "Positive regions given their own class" if boxes else "Regions given the teacher's first choice"
    right.set(xlabel="epoch", ylabel="%", ylim=(0, 100), title=title)
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    with replacing(path) as beside:
        figure.savefig(beside, format="png", dpi=120)


def plot_curves(curves: Mapping[str, tuple[Sequence[float], Sequence[float]]], xlabel: str, path: Path) -> None:
    """Draw recall in percent against `xlabel`, a line for each proposer; a PNG written whole.

    curves: per name, x values and recalls in [0, 1]. Numbers of boxes, which go beyond 1, get a logarithmic axis. Names
    that end with a long path are shortened in the legend.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for number, (name, (xs, ys)) in enumerate(curves.items()):
        colour, style = _PALETTE[number % len(_PALETTE)], _STYLES[number % len(_STYLES)]
        axes.plot(xs, [100 * y for y in ys], color=colour, linestyle=style, linewidth=1.7, label=_shorten(name))
    if max(max(xs) for xs, _ in curves.values()) > 1:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set(xlabel=xlabel, ylabel="recall, %", ylim=(0, 100))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", frameon=False, handlelength=2.6)
    with replacing(path) as beside:
        figure.savefig(beside, format="png", dpi=120)


def _shorten(name: str) -> str:
    """Return a name whose middle is left out if it is long: `json:...folder/boxes.json`."""
    if len(name) <= _LONGEST:
        return name
    start = f"{name.partition(':')[0][: _LONGEST // 2]}:..."
    return start + name[len(start) - _LONGEST :]


def format_seconds(seconds: float) -> str:
    """Return a time with three digits that count, in ms below a second: `0.410 ms`, `53.2 ms`, `14.4 s`."""
    value, unit = (1000 * seconds, "ms") if seconds < 0.9995 else (seconds, "s")
    return f"{value:.0f} {unit}" if value >= 99.95 or value == 0 else f"{value:#.3g} {unit}"


def format_ratio(ratio: float) -> str:
    """Return how many times as fast: `102x`, `5.3x`, `0.82x`."""
    return f"{ratio:.0f}x" if ratio >= 9.95 else f"{ratio:.2g}x" if ratio < 0.995 else f"{ratio:.1f}x"


def plot_race(results: Mapping[str, Any], path: Path) -> None:
    """Draw the time of each detector and of its stages on a logarithmic axis; a PNG written whole.

    results: the content of benchmark.json, times in seconds. Lengths on a logarithmic axis do not add up, so bars are
    not stacked end to end on it: a detector's bar ends at its total on the axis, and is divided inside by the shares of
    its stages. The stages' own times are dots on rows of their own, with lines from quartile to quartile.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    detectors = results["detectors"]
    count = sum(3 + len(measured["stages"]) for measured in detectors.values())
    figure = Figure(figsize=(9, 0.9 + 0.235 * count), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    start, end = _limits(detectors)
    axes.set_xscale("log")
    ticks: list[tuple[float, str]] = []
    y = 0.0
    for name, measured in detectors.items():
        title = _plain(_shorten(name))
        axes.text(0, y, f" {title}", transform=axes.get_yaxis_transform(), weight="bold", va="center", color=_INK)
        speedups = results.get("speedups", {}).get(name, {})
        for label, key, ratio in (("all stages", "total", "total"), ("proposals not counted", *_WITHOUT)):
            y += 1
            ticks.append((y, label))
            _draw_total(axes, y, measured, key, start)
            text = f"{format_seconds(measured[key])}" + (f"   {format_ratio(speedups[ratio])}" if speedups else "")
            _write_beside(axes, measured[key], y, text, weight="bold")
        for stage, seconds in _in_order(measured["stages"]):
            y += 1
            ticks.append((y, stage))
            _draw_stage(axes, y, stage, seconds, measured.get("quartiles", {}).get(stage))
        y += 1.35
    axes.set_yticks([at for at, _ in ticks], [label for _, label in ticks], fontsize=9)
    axes.tick_params(axis="y", length=0)
    axes.set(xlim=(start, end), ylim=(y - 0.6, -0.7), xlabel=_explain(results))
    axes.xaxis.label.set_fontsize(9)
    _set_time_axis(axes.xaxis)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


def plot_sweep(results: Mapping[str, Any], path: Path) -> None:
    """Draw how the time of each detector grows with the swept value, both axes logarithmic; a PNG written whole.

    results: the content of benchmark.json with a sweep. Thick lines are totals without decoding and proposals, with the
    power of the swept value that fits them best; thin lines are the stages of the first SPP-net.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    sweep = results["sweep"]
    values, detectors = sweep["values"], sweep["detectors"]
    figure = Figure(figsize=(9, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set_xscale("log")
    axes.set_yscale("log", nonpositive="mask")
    for number, (name, times) in enumerate(detectors.items()):
        colour, marker = _DETECTOR_COLOURS[number % 5], _MARKERS[number % 5]
        label = _plain(f"total, {_shorten(name)}") + _growth(values, times["total_without_proposals"])
        style: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 5, "linewidth": 2.2, "zorder": 3}
        axes.plot(values, times["total_without_proposals"], label=label, **style)
    kinds = {name: measured.get("kind") for name, measured in results["detectors"].items()}
    first = next((name for name in detectors if kinds.get(name) == "sppnet"), None)
    for stage, seconds in _in_order(detectors[first] if first is not None else {}):
        if stage not in BEFORE_DETECTION and any(value > 0 for value in seconds):
            label = _plain(f"{stage}, {_shorten(str(first))}")
            axes.plot(values, seconds, color=STAGE_COLOURS[stage], linewidth=1, label=label)
    words = {"proposals": "proposals per image", "scale": "shorter side of the resized image, pixels"}
    axes.set(xlabel=words.get(sweep["kind"], sweep["kind"]), ylabel="median time per image, proposals not counted")
    if len(values) <= 12:
        axes.set_xticks(values, [f"{value:g}" for value in values])
        axes.minorticks_off()
    _set_time_axis(axes.yaxis)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", frameon=False, handlelength=2.6, fontsize=9)
    _save(figure, path)


_WITHOUT = ("total_without_proposals", "conv_fc")  # the names of one quantity: as a time and as a ratio


def _in_order(stages: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the stages there are with their values, in the order in which they run."""
    return ((stage, stages[stage]) for stage in STAGE_COLOURS if stage in stages)


def _limits(detectors: Mapping[str, Any]) -> tuple[float, float]:
    """Return the ends of the axis in seconds: from 1 ms or less to the slowest total, with room for its label."""
    shortest = min([1e-3, *(t for measured in detectors.values() for t in measured["stages"].values() if t > 0)])
    start = 10.0 ** math.floor(math.log10(shortest) + 1e-9)
    slowest = max(start * 10, *(measured["total"] for measured in detectors.values()))
    return start, start * (slowest / start) ** 1.22


def _draw_total(axes: Axes, y: float, measured: Mapping[str, Any], key: str, start: float) -> None:
    """Draw a bar from the start of the axis to a total, divided by the shares of the stages in it."""
    left_out = BEFORE_DETECTION if key == _WITHOUT[0] else ()
    stages = [(stage, seconds) for stage, seconds in _in_order(measured["stages"]) if stage not in left_out]
    whole = sum(seconds for _, seconds in stages)
    done, left = 0.0, start
    for stage, seconds in stages if whole > 0 and measured[key] > start else ():
        done += seconds
        right = start * (measured[key] / start) ** (done / whole)
        axes.barh(y, right - left, left=left, height=0.74, color=STAGE_COLOURS[stage], edgecolor="white", linewidth=0.5)
        left = right


def _draw_stage(axes: Axes, y: float, stage: str, seconds: float, quartiles: Sequence[float] | None) -> None:
    """Draw the median of a stage as a dot, its quartiles as the ends of a line, and its time beside them."""
    last = seconds
    if quartiles is not None and quartiles[0] > 0:
        axes.plot(quartiles, [y, y], color=STAGE_COLOURS[stage], linewidth=3, alpha=0.45, solid_capstyle="butt")
        last = max(seconds, quartiles[1])
    if seconds > 0:
        axes.plot([seconds], [y], color=STAGE_COLOURS[stage], marker="o", markersize=6, clip_on=False)
    _write_beside(axes, last, y, format_seconds(seconds), weight="normal")


def _write_beside(axes: Axes, x: float, y: float, text: str, weight: str) -> None:
    """Write a text to the right of a point; of a point at zero, which the axis lacks, at the start of the axis."""
    left = {"xycoords": ("axes fraction", "data")} if x <= 0 else {}
    style: dict[str, Any] = {"fontsize": 8.5, "weight": weight, "color": _INK, "va": "center_baseline", **left}
    axes.annotate(text, (max(x, 0), y), xytext=(7, 0), textcoords="offset points", **style)


def _explain(results: Mapping[str, Any]) -> str:
    """Return the words below the race."""
    baseline = results.get("settings", {}).get("baseline")
    ratio = f";  x: times as fast as {_plain(_shorten(str(baseline)))}" if results.get("speedups") else ""
    return (
        f"median time per image, logarithmic{ratio}\n"
        "bars end at their total and are divided by the shares of the stages;  dots: medians of stages, with quartiles"
    )


def _growth(values: Sequence[float], times: Sequence[float]) -> str:
    """Return the power of `values` that fits `times` best (least squares of logarithms), as part of a label."""
    if len(set(values)) < 2 or min(*values, *times) <= 0:
        return ""
    xs, ys = [math.log(value) for value in values], [math.log(time) for time in times]
    x, y = sum(xs) / len(xs), sum(ys) / len(ys)
    power = sum((a - x) * (b - y) for a, b in zip(xs, ys, strict=True)) / sum((a - x) ** 2 for a in xs)
    return f"\n(grows with power {power:.2f})"


def _set_time_axis(axis: Any) -> None:
    """Label an axis of seconds with 1 ms, 10 ms, ..., 1 s, 10 s."""
    axis.set_major_formatter(lambda value, _: f"{1000 * value:g} ms" if value < 0.9995 else f"{value:g} s")


def _plain(text: str) -> str:
    """Return a text that matplotlib does not take for a formula."""
    return text.replace("$", r"\$")


def _save(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG, whole or not at all."""
    with replacing(path) as beside:
        figure.savefig(beside, format="png", dpi=_RACE_DPI)
