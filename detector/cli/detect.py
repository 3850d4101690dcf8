"""Find objects in photos: `sppnet detect PATH... --out DIR`."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from torch import Tensor

    from detector.explanation import Explanation
    from detector.machines import MachineNet
    from detector.structures import BoxScores, Detections, Seconds
    from proposals.given import GivenBoxes
    from proposals.structures import Proposer

    from .inputs import PictureNames
    from .models import Model

_STAGES = ("proposals", "warp", "conv", "pool", "fc", "select", "total")
_log = logging.getLogger(__name__)


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder for the results.")
@click.option("--score", type=click.FloatRange(0, 1), help="Least score of a detection [default: the model's choice].")
@click.option("--proposals", metavar="NAME", help="How regions are proposed [default: as the model was trained].")
@click.option("--max-proposals", type=click.IntRange(1), help="Most regions of an image [default: the model's, 2000].")
@click.option(
    "--model",
    multiple=True,
    default=("voc-lite0",),
    show_default=True,
    metavar="NAME|FILE",
    help="A shipped model or a file; several are combined.",
)
@click.option("--boxes", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Score these boxes (JSON).")
@click.option(
    "--engine", default="auto", show_default=True, help="How it computes: eager, onednn, ... [detector.engines]"
)
@click.option("--device", default="cpu", show_default=True, help="Where the layers run: cpu, cuda, cuda:1, ...")
@click.option("--threads", type=click.IntRange(1), help="Processor cores to use [default: all].")
@click.option("--json-only", is_flag=True, help="Draw nothing, write detections.json only.")
@click.option("--explain", is_flag=True, help="Say what in the region makes each score: for models of svm on pool5.")
@click.pass_context
def detect(
    ctx: click.Context,
    paths: tuple[str, ...],
    out: Path,
    score: float | None,
    proposals: str | None,
    max_proposals: int | None,
    model: tuple[str, ...],
    boxes: Path | None,
    engine: str,
    device: str,
    threads: int | None,
    json_only: bool,
    explain: bool,
) -> None:
    """Find objects in photos and draw them.

    PATH is an image file (JPEG, PNG, WebP, BMP, TIFF, ...), a folder, whose images are taken but not those of
    folders in it, or a quoted glob, in which ** stands for any folders. No image is read twice, none is overwritten.

    DIR/detections.json lists, for every image, its detections with label, score and box [x1, y1, x2, y2] in pixels,
    and the seconds that each stage took; it is written when all images are done. The picture of STEM.png is
    DIR/STEM.png, that of any other file DIR/STEM.jpg, and DIR/STEM-2.jpg if that name is taken.

    Several --model that know the same classes work together, as `sppnet evaluate` says; boxes that are given then get
    the mean of their probabilities.

    --boxes takes {"cat.jpg": [[x1, y1, x2, y2], ...], ...} or a COCO-style list of {"image_id" or "file_name",
    "bbox": [x, y, width, height]}. Images are matched by path, file name or stem. Every box comes back, in its order
    and whatever its score, with the probability of each class; --score and --proposals do not apply.

    --explain takes a model of kind svm on pool5 (sppnet train --detector svm --set svm_layer=pool5 ...). Its margin is
    an intercept and a sum over the bins of the region's pyramid: 6 x 6, 3 x 3, 2 x 2 and 1 x 1. Each detection's
    "explanation" in detections.json lists what every bin adds and where it lies, and the sums of the levels;
    DIR/STEM-explained-1.jpg and so on, for the ten best detections of a photo, show it as a heat map.

    A file that cannot be used is named on stderr, the others are processed, and the exit code is 1.

    \b
    sppnet detect photos/ "more/**/*.jpg" --out found
    """
    from proposals.given import read_boxes

    from .explain import check_explainable
    from .folders import check_writable
    from .inputs import PictureNames, find_images
    from .models import prepare_proposers, single_model
    from .options import check_device, use_threads
    from .progress import announce_compiling

    files, problems = find_images(paths)
    if not files:
        raise click.UsageError(f"expected at least one image, got none from {', '.join(paths)}", ctx)
    if boxes and boxes.resolve() == (out / "detections.json").resolve():
        raise click.UsageError(f"expected --boxes to be another file than the result, got {boxes} for both", ctx)
    if explain:
        single_model(model, "with --explain")
    given = read_boxes(boxes) if boxes else None
    check_writable(out, "--out")
    cores = use_threads(threads)
    net = _load(model, (check_device(device), engine), score, max_proposals)
    linear = check_explainable(net) if explain else None
    proposer = None if given else prepare_proposers(net, proposals, cores)
    if given:
        announce_compiling()
    job = _Job(net, proposer, given, net.readable_score if score is None else score, linear)
    job.warm_up()
    out.mkdir(parents=True, exist_ok=True)
    failed = _run(job, files, problems, out, None if json_only else PictureNames(out, files))
    ctx.exit(1 if failed else 0)


def _load(models: Sequence[str], where: tuple[str, str], score: float | None, max_proposals: int | None) -> Model:
    """Load a detector, or several as one; let it return what the options ask for."""
    from .models import load_models, members

    net = load_models(models, *where)
    for part in members(net):
        least = part.config.min_score if score is None else min(score, part.config.min_score)
        part.config = replace(part.config, min_score=least, max_proposals=max_proposals or part.config.max_proposals)
    return net


def _run(job: _Job, files: list[str], problems: list[str], out: Path, names: PictureNames | None) -> bool:
    """Process every image, then write detections.json; return whether anything had to be left out."""
    from tqdm import tqdm

    from detector.drawing import save_image
    from detector.files import write_json

    from .explain import add_explanations
    from .interrupts import held_back

    for problem in problems:
        click.echo(f"sppnet: {problem}", err=True)
    entries = []
    with held_back() as check:
        for path in tqdm(files, unit="image", dynamic_ncols=True, disable=None if len(files) > 1 else True):
            check()
            try:
                image, entry, found, explanations = job.process(path)
            except ValueError as error:
                _log.debug("left out %s", path, exc_info=True)
                tqdm.write(f"sppnet: {' '.join(str(error).split())}", file=sys.stderr)
                continue
            entries.append(entry)
            if names is not None:
                save_image(_picture(image, found), names.choose(path, (entry["height"], entry["width"])))
            if job.linear is not None:
                add_explanations(entry, explanations, image, job.linear.class_names, names)
        check()
    write_json(out / "detections.json", entries)
    count = sum(len(entry["detections"]) for entry in entries)
    pictures = "" if names is None else f", pictures in {out}"
    counts = f"{_number(count, 'detection')} in {_number(len(entries), 'image')}"
    click.echo(f"{counts}: {out / 'detections.json'}{pictures}")
    return bool(problems) or len(entries) < len(files)


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _picture(image: Tensor, found: Detections | BoxScores) -> Tensor:
    from detector.drawing import draw_boxes, draw_detections
    from detector.structures import BoxScores

    return draw_boxes(image, found) if isinstance(found, BoxScores) else draw_detections(image, found)


@dataclass(frozen=True, slots=True)
class _Job:
    """Hold what every image is processed with; either a proposer or boxes are given.

    linear: the model again if its scores are to be explained.
    """

    net: Model
    proposer: Proposer | None
    given: GivenBoxes | None
    score: float
    linear: MachineNet | None = None

    def process(self, path: str) -> tuple[Tensor, dict[str, Any], Detections | BoxScores, list[Explanation]]:
        """Return an image, its entry in detections.json, what was found, and why if that was asked for.

        Raises ValueError that names the file.
        """
        from detector.images import read_image
        from detector.structures import Seconds

        image = read_image(path)
        boxes = None if self.given is None else self.given.of(path)
        seconds = Seconds()
        try:
            found, explanations = self._find(image, path, boxes, seconds)
        except ValueError as error:
            raise ValueError(str(error) if path in str(error) else f"{path}: {error}") from error
        stages = [stage for stage in _STAGES if stage != "warp" or stage in seconds.stages]
        times = {stage: round(seconds.stages.get(stage, 0.0), 6) for stage in stages}
        height, width = image.shape[1:]
        rows = found.to_dicts()
        entry = {"image": path, "height": height, "width": width, "detections": rows, "seconds": times}
        return image, entry, found, explanations

    def _find(
        self, image: Tensor, path: str, boxes: list[list[float]] | None, seconds: Seconds
    ) -> tuple[Detections | BoxScores, list[Explanation]]:
        import torch

        from detector.explanation import detect_traced, explain, explain_boxes
        from detector.timing import measure

        if self.proposer is None:
            given = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
            with measure(seconds, "total"):
                scores = self.net.predict_boxes(image, given, seconds)
            return scores, [] if self.linear is None else explain_boxes(self.linear, image, scores)
        with measure(seconds, "total"):
            with measure(seconds, "proposals"):
                proposals = self.proposer(image, Path(path))
            if self.linear is None:
                return self.net.predict(image, proposals, seconds).above(self.score), []
            traced = detect_traced(self.linear, image, proposals, seconds).above(self.score)
        return traced.detections, explain(self.linear, traced)

    def warm_up(self) -> None:
        """Process a tiny image, so that no photo's seconds include compilation."""
        import torch

        from proposals.structures import Proposals

        image = (torch.arange(3 * 96 * 128) * 7919 % 256).to(torch.uint8).reshape(3, 96, 128)
        boxes = torch.tensor([[8.0, 8.0, 120.0, 88.0]])
        if self.proposer is None:
            self.net.predict_boxes(image, boxes)
            return
        with contextlib.suppress(ValueError):  # boxes that are read from a file are there for the photos only
            self.proposer(image)
        self.net.predict(image, Proposals(boxes))
