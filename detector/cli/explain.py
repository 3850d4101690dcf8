"""Say why something was found: what `sppnet detect --explain` adds to its results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from torch import Tensor

    from detector.explanation import Explanation
    from detector.machines import MachineNet

    from .inputs import PictureNames
    from .models import Model

MOST_PICTURES = 10  # of one photo, those of the best scores


def check_explainable(net: Model) -> MachineNet:
    """Return a model whose scores fall apart into bins. Raises click.UsageError for another one."""
    from detector.explanation import check_linear

    try:
        return check_linear(net)
    except ValueError as error:
        raise click.UsageError(f"--explain: {error}") from error


def add_explanations(
    entry: dict[str, Any],
    explanations: Sequence[Explanation],
    image: Tensor,
    class_names: tuple[str, ...],
    names: PictureNames | None,
) -> None:
    """Enter the explanations in a photo's entry of detections.json, and draw those of the best scores.

    explanations: one of each detection of the entry, in their order. names: of pictures; None to draw none.
    """
    from detector.drawing import save_image
    from detector.explanation_drawing import draw_explanation

    rows = entry["detections"]
    for row, explanation in zip(rows, explanations, strict=True):
        row["explanation"] = explanation.to_dict()
    if names is None:
        return
    best = sorted(range(len(rows)), key=lambda i: -explanations[i].score)[:MOST_PICTURES]
    for number, i in enumerate(best, 1):
        picture = draw_explanation(image, explanations[i], class_names)
        size = int(picture.shape[1]), int(picture.shape[2])
        target = names.choose(entry["image"], size, f"-explained-{number}")
        save_image(picture, target)
        rows[i]["explanation"]["picture"] = target.name
