"""Draw the course of a training run, and what proposals cover."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .files import replacing

_PALETTE = (
    *("#1f4e79", "#d1793b", "#4c9f70", "#a63d57", "#7a5ea8"),
    *("#8a8a8a", "#b59a1e", "#5ab4d6", "#d67fb4", "#5c3d24"),
)
_STYLES = ("-", (0, (5, 1.5)), (0, (1.5, 1)))  # whole, dashed, dotted: neighbours differ where colours are not seen
_LONGEST = 30  # characters of a name in the legend
_COLOURS = {"loss": "#1f4e79", "class_loss": "#4c9f70", "box_loss": "#d1793b"}


def plot_losses(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw the losses, and the part of positives that got their own class, against epochs; a PNG written whole.

    rows: one mapping per line of metrics.jsonl, with epoch, loss, class_loss, box_loss and positives_right.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in rows]
    for name, colour in _COLOURS.items():
        left.plot(epochs, [row[name] for row in rows], color=colour, label=name.replace("_", " "), linewidth=1.2)
    right.plot(epochs, [100 * row["positives_right"] for row in rows], color=_COLOURS["loss"], linewidth=1.2)
    left.set(xlabel="epoch", ylabel="loss per region", ylim=(0, None), title="Training loss")
    left.legend(frameon=False)
    right.set(xlabel="epoch", ylabel="%", ylim=(0, 100), title="Positive regions given their own class")
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
