"""Say what photos show: `sppnet classify PATH...`."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from detector.classification import Classifier

DEFAULT = "voc-lite0-classifier"
_log = logging.getLogger(__name__)


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option(
    "--model", default=DEFAULT, show_default=True, metavar="NAME|FILE", help="A shipped classifier or a file."
)
@click.option(
    "--top", default=5, show_default=True, type=click.IntRange(1), help="How many classes of an image to tell."
)
@click.option("--views", help="full, crop, warp, ten-crop, ten or many [default: as the model was trained].")
@click.option("--side", type=click.IntRange(1), help="Pixels of a view's side [default: as the model was trained].")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Folder for classifications.json.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON in place of lines.")
@click.option(
    "--engine", default="auto", show_default=True, help="How it computes: eager, onednn, ... [detector.engines]"
)
@click.option("--device", default="cpu", show_default=True, help="Where the layers run: cpu, cuda, cuda:1, ...")
@click.option("--threads", type=click.IntRange(1), help="Processor cores to use [default: all].")
@click.pass_context
def classify(
    ctx: click.Context,
    paths: tuple[str, ...],
    model: str,
    top: int,
    views: str | None,
    side: int | None,
    out: Path | None,
    as_json: bool,
    engine: str,
    device: str,
    threads: int | None,
) -> None:
    """Say what photos of any size show, without cropping or warping them.

    PATH is an image file, a folder, whose images are taken but not those of folders in it, or a quoted glob.

    A line for each image names its most probable classes and their scores in [0, 1]. The scores of one image sum to 1,
    unless the model was trained on images that show several classes: then each says by itself whether the class is
    there. The convolutional layers see the image once, whole, its shorter side SIDE pixels (--views full). The views of
    `ten` and `many` are ten views, or about 96 at six scales, that are cut from the same maps; `crop`, `warp` and
    `ten-crop` cut or warp the image itself, as networks of one input size need it.

    --out DIR writes DIR/classifications.json, a list of {"image", "height", "width", "classes": [{"label", "score"}],
    "seconds"}, when all images are done; --json prints the same list. A file that cannot be used is named on stderr,
    the others are processed, and the exit code is 1.

    \b
    sppnet classify cat.jpg
    sppnet classify photos/ --views ten --top 3 --out named
    """
    from detector.classifier_files import load_classifier
    from detector.files import write_json

    from .folders import check_writable
    from .inputs import find_images
    from .options import check_device, use_threads
    from .progress import announce_compiling

    files, problems = find_images(paths)
    if not files:
        raise click.UsageError(f"expected at least one image, got none from {', '.join(paths)}", ctx)
    if out is not None:
        check_writable(out, "--out")
    use_threads(threads)
    net = load_classifier(model, check_device(device), engine)
    announce_compiling()
    entries = _run(net, files, problems, (views, side, top), not as_json)
    if out is not None:
        write_json(out / "classifications.json", entries)
        click.echo(f"written: {out / 'classifications.json'}", err=as_json)
    if as_json:
        click.echo(json.dumps(entries, indent=2))
    ctx.exit(1 if problems or len(entries) < len(files) else 0)


def _run(
    net: Classifier, files: list[str], problems: list[str], asked: tuple[str | None, int | None, int], tell: bool
) -> list[dict[str, Any]]:
    """Classify every image; return the entries of classifications.json. asked: views, side and number of classes."""
    import torch
    from tqdm import tqdm

    from .interrupts import held_back

    for problem in problems:
        click.echo(f"sppnet: {problem}", err=True)
    net.predict(torch.zeros(3, 96, 128, dtype=torch.uint8), *asked[:2])  # no photo's seconds include compilation
    entries = []
    hidden = None if len(files) > 1 and not (tell and sys.stdout.isatty()) else True
    with held_back() as check:
        for path in tqdm(files, unit="image", dynamic_ncols=True, disable=hidden):
            check()
            try:
                entries.append(_classify(net, path, asked))
            except ValueError as error:
                _log.debug("left out %s", path, exc_info=True)
                tqdm.write(f"sppnet: {' '.join(str(error).split())}", file=sys.stderr)
                continue
            if tell:
                names = ", ".join(f"{row['label']} {row['score']:.2f}" for row in entries[-1]["classes"])
                tqdm.write(f"{path}: {names}")
        check()
    return entries


def _classify(net: Classifier, path: str, asked: tuple[str | None, int | None, int]) -> dict[str, Any]:
    """Return an image's entry in classifications.json. Raises ValueError that names the file."""
    from detector.images import read_image
    from detector.structures import Seconds
    from detector.timing import measure

    views, side, top = asked
    image, seconds = read_image(path), Seconds()
    with measure(seconds, "total"):
        found = net.predict(image, views, side, seconds)
    height, width = image.shape[1:]
    times = {stage: round(value, 6) for stage, value in seconds.stages.items()}
    return {"image": path, "height": height, "width": width, "classes": found.to_dicts(top), "seconds": times}
