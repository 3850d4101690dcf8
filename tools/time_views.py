"""Time what a classifier looks at: ten views cut from one map against ten crops of the image, and the others.

Every photo is given to each kind of views in turn; medians over the photos. The time does not depend on what the head
has learned, so one classifier serves for every side.

    python tools/time_views.py PHOTO... --sides 224,384
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

import click
import torch
from torch import Tensor

from detector.classification import Classifier
from detector.classifier_files import load_classifier
from detector.cli.options import use_threads
from detector.files import write_json
from detector.images import read_image
from detector.structures import Seconds
from detector.timing import measure
from detector.views import VIEWS

ROUNDS = 2  # the first makes the kernels of each photo's size


def time_views(net: Classifier, images: Sequence[Tensor], side: int) -> dict[str, float]:
    """Return the median milliseconds of classifying an image that is in memory, by every kind of views."""
    times: dict[str, list[float]] = {views: [] for views in VIEWS}
    for number in range(ROUNDS):
        for image in images:
            for views, kept in times.items():
                seconds = Seconds()
                with measure(seconds, "total"):
                    net.predict(image, views, side)
                if number == ROUNDS - 1:
                    kept.append(1000 * seconds.stages["total"])
    return {views: statistics.median(kept) for views, kept in times.items()}


@click.command()
@click.argument("photos", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False))
@click.option("--sides", default="224,384", show_default=True, help="Sides of a view in pixels, with commas.")
@click.option("--model", default="voc-lite0-classifier", show_default=True, help="A shipped classifier or a file.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Folder for times.json.")
def main(photos: tuple[str, ...], sides: str, model: str, out: Path | None) -> None:
    """Time every kind of views on PHOTOS, with all threads and with one; print milliseconds and a ratio."""
    cores = use_threads(None)
    net = load_classifier(model)
    images = [read_image(path) for path in photos]
    found = []
    for side in (int(word) for word in sides.split(",")):
        for threads in dict.fromkeys((cores, 1)):
            use_threads(threads)
            times = time_views(net, images, side)
            line = ", ".join(f"{views} {time:.1f}" for views, time in times.items())
            click.echo(
                f"{side} pixels, {threads} threads, ms: {line}; ten-crop / ten {times['ten-crop'] / times['ten']:.2f}"
            )
            found.append({"side": side, "threads": threads, "milliseconds": times})
            torch.set_num_threads(cores)
    if out is not None:
        write_json(out / "times.json", found)


if __name__ == "__main__":
    main()
