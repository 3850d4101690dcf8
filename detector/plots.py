"""Draw the course of a training run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .files import replacing

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
