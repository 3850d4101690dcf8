"""Measure average precision as COCO does, with COCO's own program: every number comes from pycocotools.

`coco_file_ap` measures result rows against an annotation file and gives what the official script prints for the two,
to the last digit. `coco_ap` measures `Detections` against `GroundTruth`; the two agree where width and height can be
told exactly from the corners. Both can ask faster-coco-eval instead, and say which program counted.
"""

from __future__ import annotations

import contextlib
import io
import math
import reprlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

from ..structures import Detections, GroundTruth
from .coco_tables import (
    Id,
    Row,
    check_ids,
    check_integers,
    complete_annotations,
    is_id,
    name_categories,
    read_tables,
    result_row,
    sound_row,
    unlike_names,
)
from .results import Result, check_lists

PROGRAMS = ("pycocotools", "faster-coco-eval")


@dataclass(frozen=True, slots=True)
class _Program:
    """Hold the two classes of a program that measures, and its name with its version."""

    index: Any
    measure: Any
    title: str


def coco_ap(
    detections: Sequence[Detections],
    truths: Sequence[GroundTruth],
    class_names: Sequence[str],
    areas: Sequence[Tensor] | None = None,
    ious: Sequence[float] | None = None,
    program: str = "pycocotools",
) -> Result:
    """Return AP averaged over IoU 0.50, 0.55 to 0.95 per class and as a mean, and COCO's twelve numbers.

    Objects flagged `difficult` are COCO's crowds. Equal scores of different images count in the order of the images,
    which for COCO itself is that of their ids (so `detector.datasets` orders them); those of one image in the order of
    the detections, or of their places in the file if they know them (`Detections.order`).

    areas: per image the (N,) areas in pixels that sort objects into small, medium and large (COCO: of the mask); by
    default the areas of the boxes, which are larger, so that the numbers by size then differ from COCO's own; the
    others do not depend on it. ious, program: as for `coco_file_ap`.

    Raises ValueError if the lists differ in length or speak of other classes, for IoUs outside (0, 1], and for a
    program that is unknown or not installed.
    """
    check_lists(detections, truths, class_names)
    tables = {
        "images": [{"id": image} for image in range(len(truths))],
        "categories": [{"id": label + 1} for label in range(len(class_names))],
        # ids start at 1, since pycocotools takes 0 for `not matched`
        "annotations": [{**row, "id": number} for number, row in enumerate(_true_rows(truths, areas), start=1)],
    }
    names: dict[Id, str] = dict(enumerate(class_names, start=1))
    return _measure(_program(program), tables, _found_rows(detections), _Scope(names, None, ious))


def coco_file_ap(
    file: Path,
    rows: Sequence[Row],
    categories: Mapping[Id, str] | None = None,
    images: Sequence[Id] | None = None,
    ious: Sequence[float] | None = None,
    program: str = "pycocotools",
) -> Result:
    """Return what the official script prints for an annotation file and result rows, and AP and recall per class.

    The program gets the file and the rows as they are: nothing is rounded, clipped, dropped or put in another order.
    What the file lacks and the program needs is filled in: `area` with width times height of the box, `iscrowd` with 0,
    an annotation's `id` with the next free number. An annotation with the id 0 counts as not found even if it was
    (pycocotools takes 0 for `not matched`); this is kept, for the sake of the same number. Rows of categories that are
    not measured are ignored, as there. Without rows AP is 0 where there are objects and NaN where there are none.

    rows: `{"image_id", "category_id", "bbox": [x, y, width, height], "score"}` each; they are not changed.
    categories: id -> class name of the categories to measure, by default all of the file; those that share a name get
    their id added to it. images: ids of the images to measure, by default all of the file.
    ious: the thresholds over which AP is averaged, in (0, 1], by default 0.50, 0.55 to 0.95; of the twelve numbers,
    AP50 and AP75 are NaN if theirs is not among them.
    program: "pycocotools", or "faster-coco-eval" if that package is installed; the result names it with its version.

    Raises FileNotFoundError if there is no such file, and ValueError if it is no COCO JSON, if an image to measure or
    of a row is not in it, if a row is malformed, for IoUs outside (0, 1], and for a program that is unknown or not
    installed; one sentence each.
    """
    chosen = _program(program)
    tables = read_tables(Path(file))
    complete_annotations(tables["annotations"], f"{file}: annotations")
    check_ids(tables, file)
    if categories is None:
        categories = name_categories(tables["categories"], file)
    known = {image["id"] for image in tables["images"]}
    for wanted in images or ():
        if not is_id(wanted) or wanted not in known:
            raise ValueError(f"{file}: expected images that are in the file, got the id {reprlib.repr(wanted)}")
    results = [result_row(row, place) for place, row in enumerate(rows, start=1)]
    if lost := next((place for place, row in enumerate(results, start=1) if row["image_id"] not in known), 0):
        got = reprlib.repr(results[lost - 1]["image_id"])
        raise ValueError(f"results, row {lost}: expected an image_id that is in {file}, got {got}")
    if chosen.index is not COCO:
        check_integers(tables, results, file)
    return _measure(chosen, tables, results, _Scope(unlike_names(categories), images, ious))


@dataclass(frozen=True, slots=True)
class _Scope:
    """Hold what is to be measured: category id -> name, ids of images (None: all), IoUs (None: COCO's)."""

    names: Mapping[Id, str]
    images: Sequence[Id] | None
    ious: Sequence[float] | None


def _measure(program: _Program, tables: dict[str, Any], rows: list[dict[str, Any]], scope: _Scope) -> Result:
    """Let a program measure rows that are checked; it may change them."""
    if scope.ious is not None and (not scope.ious or not all(0 < iou <= 1 for iou in scope.ious)):
        raise ValueError(f"expected IoU thresholds in (0, 1], at least one, got {list(scope.ious)}")
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Found annotation id 0")  # faster-coco-eval; see coco_file_ap
        truth = program.index()
        truth.dataset = tables
        truth.createIndex()
        measure = program.measure(truth, _found(program, truth, rows), "bbox")
        measure.params.catIds = list(scope.names)
        if scope.images is not None:
            measure.params.imgIds = list(scope.images)
        if scope.ious is not None:
            measure.params.iouThrs = np.array(scope.ious, dtype=np.float64)
        measure.evaluate()
        measure.accumulate()
        measure.summarize()
    # (T thresholds, R recalls, K classes, A areas, M limits), (T, K, A, M): all areas, 100 detections per image
    precision, recall = measure.eval["precision"][:, :, :, 0, -1], measure.eval["recall"][:, :, 0, -1]
    place = {category: k for k, category in enumerate(measure.params.catIds)}  # sorted by the program
    stats = tuple(float(value) if value > -1 else math.nan for value in measure.stats)
    return Result(
        stats[0],
        {name: _mean(precision[:, :, place[category]]) for category, name in scope.names.items()},
        "coco",
        stats,
        recall={name: _mean(recall[:, place[category]]) for category, name in scope.names.items()},
        sizes=dict(zip(("small", "medium", "large"), stats[3:6], strict=True)),
        program=program.title,
    )


def _found(program: _Program, truth: Any, rows: list[dict[str, Any]]) -> Any:
    """Return the program's index of result rows; loadRes of pycocotools fails for none."""
    if rows:
        return truth.loadRes(rows)
    nothing = program.index()
    nothing.dataset = {**truth.dataset, "annotations": []}
    nothing.createIndex()
    return nothing


def _mean(values: Any) -> float:
    """Return the mean without the places that the programs mark with -1."""
    known = values[values > -1]
    return float(np.mean(known)) if known.size else math.nan


def _program(name: str) -> _Program:
    if name == "pycocotools":
        return _Program(COCO, COCOeval, f"pycocotools {version('pycocotools')}")
    if name != "faster-coco-eval":
        raise ValueError(f"expected one of the programs {', '.join(PROGRAMS)}, got {name!r}")
    try:
        import faster_coco_eval as fast
    except ImportError as error:
        wanted = "pip install 'faster-coco-eval>=1.6'"
        raise ValueError(f"expected the package faster-coco-eval, got none: install it with {wanted}") from error
    return _Program(fast.COCO, fast.COCOeval_faster, f"faster-coco-eval {fast.__version__}")


def _true_rows(truths: Sequence[GroundTruth], areas: Sequence[Tensor] | None) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for image, truth in enumerate(truths):
        boxes = [_xywh(box) for box in truth.boxes.tolist()]
        sizes = [w * h for _, _, w, h in boxes] if areas is None else areas[image].tolist()
        columns = zip(boxes, truth.labels.tolist(), truth.difficult.tolist(), sizes, strict=True)
        rows += [
            {"image_id": image, "category_id": label + 1, "bbox": box, "iscrowd": int(crowd), "area": area}
            for box, label, crowd, area in columns
        ]
    return rows


def _found_rows(detections: Sequence[Detections]) -> list[dict[str, Any]]:
    rows = []
    for image, found in enumerate(detections):
        columns = zip(found.boxes.tolist(), found.labels.tolist(), found.scores.tolist(), strict=True)
        mine = [sound_row(image, label + 1, _xywh(box), score) for box, label, score in columns]
        places = range(len(mine)) if found.order is None else np.argsort(found.order.cpu().numpy(), kind="stable")
        rows += [mine[place] for place in places]
    return rows


def _xywh(box: Sequence[float]) -> list[float]:
    x1, y1, x2, y2 = box
    return [x1, y1, x2 - x1, y2 - y1]
