"""Write what an evaluation found as one HTML page that people can read, and its plots as PNG."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from .evaluation.results import Result
from .evaluation_plots import (
    GROUP_COLOURS,
    GROUPS,
    MOST_CONFUSED,
    Array,
    Curve,
    plot_class_ap,
    plot_confusion,
    plot_errors,
    plot_precision_recall,
)
from .failures import ADVICE, DETECTION, OBJECT, PROPOSAL
from .images import to_pillow
from .pages import Markup, data, escape, image, note, percent, plot, points, section, swatch, table, write_page

if TYPE_CHECKING:
    from .evaluation.errors import ErrorReport

KINDS = ("miss", "false alarm")
_QUALITY = 85  # of the photos, as JPEG: 40 kB each
_STYLE = """
.lead { margin: .3rem 0; } .lead b, code { white-space: nowrap; }
.causes th:first-child, .causes :is(th, td):last-child { text-align: left; }
.causes td:last-child { white-space: normal; min-width: 17rem; }
.failures { display: grid; gap: 1rem 1.2rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 18rem), 1fr)); }
.failures figure { margin: 0; break-inside: avoid; } .failures img { min-width: 0; border-radius: 3px; }
figcaption { font-size: .85rem; line-height: 1.35; margin-top: .3rem; } 
.key > span { display: inline-block; margin-right: 1.2rem; }
@media (max-width: 40rem) { .causes, .causes tbody, .causes thead { display: block; }
  .causes tr { display: grid; grid-template-columns: 1fr 4.2rem 4.6rem; border-bottom: 1px solid var(--line); }
  .causes :is(th, td) { border: 0; } .causes thead th { white-space: normal; }
  .causes :is(th, td):last-child { grid-column: 1 / -1; padding-top: 0; } .causes thead th:last-child { display: none; }
}
"""


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """Hold one failure to look at. kind: "miss" or "false alarm"; image: (3, h, w) uint8 with everything drawn."""

    kind: str
    caption: str
    image: Tensor

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"expected a picture of a {' or a '.join(KINDS)}, got {self.kind!r}")


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Findings:
    """Hold all that the report tells; what is empty or None has no section.

    facts: (name, text) pairs about the data, the detector and the program that measured. results: by metric; intervals:
    the 95 % bootstrap interval of the mean, by metric. objects: number by class; a class without objects may be left
    out. curves: recall and precision by class, (D,) each. confusion: (K + 1, K + 1) counts, rows: truth, columns:
    detected, background last. errors: causes, costs, counts. pictures: the worst first.
    """

    title: str
    facts: Sequence[tuple[str, str]]
    results: Mapping[str, Result]
    class_names: Sequence[str]
    intervals: Mapping[str, tuple[float, float]]
    objects: Mapping[str, int]
    curves: Mapping[str, Curve]
    confusion: Array | None = None
    errors: ErrorReport | None = None
    pictures: Sequence[Picture] = ()

    def __post_init__(self) -> None:
        if not self.results:
            raise ValueError("expected the results of at least one metric, got none")
        side = len(self.class_names) + 1
        if self.confusion is not None and self.confusion.shape != (side, side):
            raise ValueError(f"expected a confusion matrix of shape {(side, side)}, got {self.confusion.shape}")


def write_evaluation_report(findings: Findings, path: Path) -> None:
    """Write the page, whole or not at all. Numbers stand in `data` elements whose `value` is unrounded."""
    with TemporaryDirectory() as folder:
        plots = {name: drawn.read_bytes() for name, drawn in save_plots(findings, Path(folder)).items()}
    parts = [
        _header(findings),
        section("classes", "Average precision of each class", _plot(plots, "ap", "Bars of AP, class by class.")),
        section("table", "Class by class", _classes(findings)),
        section("sizes", "By the size of the objects", _sizes(findings)),
        section("curves", "Precision against recall", _curves(findings, plots)),
        section("confusion", "What is taken for what", _confusion(findings, plots)),
        section("errors", "Errors by cause", _errors(findings, plots)),
        section("misses", "The worst misses", _pictures(findings, KINDS[0])),
        section("alarms", "The worst false alarms", _pictures(findings, KINDS[1])),
    ]
    write_page(path, findings.title, parts, _STYLE)


def save_plots(findings: Findings, folder: Path) -> dict[str, Path]:
    """Write the plots that there are data for as ap.png, curves.png, confusion.png and errors.png into a folder.

    Returns the file of each by its name without the suffix. The folder is made if it is missing.
    """
    first = next(iter(findings.results.values()))
    known = any(not np.isnan(np.asarray(recall, dtype=float)).any() for recall, _ in findings.curves.values())
    draw: dict[str, Callable[[Path], None]] = {}
    if any(math.isfinite(ap) for result in findings.results.values() for ap in result.per_class.values()):
        draw["ap"] = lambda path: plot_class_ap(findings.results, findings.objects, path)
    if known:
        draw["curves"] = lambda path: plot_precision_recall(findings.curves, first, path)
    confusion, errors = findings.confusion, findings.errors
    if confusion is not None and confusion.any():
        draw["confusion"] = lambda path: plot_confusion(confusion, findings.class_names, path)
    if errors is not None and _causes(errors):
        draw["errors"] = lambda path: plot_errors(errors.costs, errors.counts, path)
    files = {name: folder / f"{name}.png" for name in draw}
    for name, drawing in draw.items():
        drawing(files[name])
    return files


def _plot(plots: Mapping[str, bytes], name: str, words: str) -> Markup:
    return plot(plots[name], words) if name in plots else Markup("")


def _header(findings: Findings) -> Markup:
    leads = []
    for metric, result in findings.results.items():
        ends = findings.intervals.get(metric)
        mean = f"{data(_number(result.map), percent)} %" if math.isfinite(result.map) else "not known: no objects"
        lead = f"mAP ({escape(metric)}): <b>{mean}</b>"
        if ends is not None and all(map(math.isfinite, ends)):
            lead += f", 95 % interval <b>{data(float(ends[0]), percent)} to {data(float(ends[1]), percent)}</b>"
        leads.append(f'<p class="lead">{lead}</p>')
    words = "Intervals: where 95 % of the means lie if the photos are drawn again at random (bootstrap over images)."
    facts = table([], [[name, text] for name, text in findings.facts], "", "words facts")
    lines = "\n".join(leads)
    quiet = note(words if findings.intervals else "")
    return Markup(f"<header>\n<h1>{escape(findings.title)}</h1>\n{lines}\n{quiet}\n{facts}\n</header>")


def _classes(findings: Findings) -> Markup:
    """Lay out objects, AP and recall of each class; a recall that repeats the one before it is shown once."""
    results = findings.results
    recalls: dict[str, Mapping[str, float]] = {}
    for metric, result in results.items():
        if result.recall and not any(_same(result.recall, known) for known in recalls.values()):
            recalls[metric] = result.recall
    heads = ["", "objects", *(f"AP, {metric}" for metric in results)]
    heads += ["recall" if len(recalls) == 1 else f"recall, {metric}" for metric in recalls]
    columns = [result.per_class for result in results.values()] + list(recalls.values())
    rows: list[list[object]] = [
        [name, _count(findings.objects.get(name)), *(data(_number(column.get(name)), percent) for column in columns)]
        for name in findings.class_names
    ]
    means = [_number(result.map) for result in results.values()] + [_mean(recall) for recall in recalls.values()]
    total = sum(findings.objects.values()) if findings.objects else None
    strong = [Markup(f"<b>{data(value, percent)}</b>") for value in means]
    rows.append([Markup("<b>mean</b>"), Markup(f"<b>{_count(total)}</b>"), *strong])
    words = "In per cent. The mean is over the classes that have objects; the number of objects is their sum."
    return table(heads, rows, words)


def _sizes(findings: Findings) -> Markup:
    known = {metric: result.sizes for metric, result in findings.results.items() if result.sizes}
    names = list(dict.fromkeys(name for sizes in known.values() for name in sizes))
    rows = [[name, *(data(_number(sizes.get(name)), percent) for sizes in known.values())] for name in names]
    words = "mAP in per cent. Small: less than 32 x 32 pixels; large: more than 96 x 96, as COCO divides them."
    return table(["", *known], rows, words)


def _curves(findings: Findings, plots: Mapping[str, bytes]) -> Markup:
    if "curves" not in plots:
        return Markup("")
    words = (
        f"Beside the names: AP, {next(iter(findings.results))}. Thin: the curve itself. Thick: the best precision at "
        "that recall or more, which AP measures."
    )
    return Markup(_plot(plots, "curves", "Curves of precision against recall for each class.") + note(words))


def _confusion(findings: Findings, plots: Mapping[str, bytes]) -> Markup:
    if "confusion" not in plots:
        return Markup("")
    words = (
        "Rows: what is there, columns: as what it was detected. The colour is the share of the row. Last column: not "
        "detected. Last row: detections where no object is."
    )
    if len(findings.class_names) > MOST_CONFUSED:
        words += f" Of the {len(findings.class_names)} classes, the {MOST_CONFUSED} most often confused are shown."
    return Markup(_plot(plots, "confusion", "Matrix of classes against detected classes.") + note(words))


def _errors(findings: Findings, plots: Mapping[str, bytes]) -> Markup:
    errors = findings.errors
    if errors is None or "errors" not in plots:
        return Markup("")
    rows: list[list[object]] = []
    for group, causes in GROUPS.items():
        for cause in (cause for cause in causes if cause in errors.costs):
            cost = data(float(errors.costs[cause]), points)
            rows.append(
                [swatch(GROUP_COLOURS[group], cause), _count(errors.counts.get(cause, 0)), cost, _prose(ADVICE[cause])]
            )
    together = [cause for cause in errors.costs if cause not in ADVICE]
    rows += [
        [cause, _count(errors.counts.get(cause)), data(float(errors.costs[cause]), points), ""] for cause in together
    ]
    key = "".join(f"<span>{swatch(colour, group)}</span>" for group, colour in GROUP_COLOURS.items())
    words = (
        f"mAP is {percent(errors.baseline)} % as it stands. Points: what mAP would win if this cause alone were "
        "repaired (Bolya et al. 2020, TIDE). They do not add up, since one repair may make another matter more."
    )
    heads = ["cause", "errors", "points of mAP", "what to do about it"]
    picture = _plot(plots, "errors", "Bars of the mAP that repairing each cause would win.")
    return Markup(f'{picture}<p class="quiet key">{key}</p>{table(heads, rows, words, "causes")}')


def _prose(text: str) -> Markup:
    """Return a text in which what stands between backquotes is set as code."""
    pieces = [
        escape(piece) if i % 2 == 0 else f"<code>{escape(piece)}</code>" for i, piece in enumerate(text.split("`"))
    ]
    return Markup("".join(pieces))


def _causes(errors: ErrorReport) -> list[str]:
    return [cause for causes in GROUPS.values() for cause in causes if cause in errors.costs]


def _pictures(findings: Findings, kind: str) -> Markup:
    shown = [picture for picture in findings.pictures if picture.kind == kind]
    if not shown:
        return Markup("")
    target = "the missed object, dashed" if kind == KINDS[0] else "the nearest object, dashed"
    words = {target: OBJECT, "detections, with scores": DETECTION, "the best proposals, thin": PROPOSAL}
    key = "".join(
        f"<span>{swatch('#{:02x}{:02x}{:02x}'.format(*colour), text)}</span>" for text, colour in words.items()
    )
    figures = "\n".join(
        f"<figure>{image(_jpeg(picture.image), picture.caption, 'jpeg')}"
        f"<figcaption>{escape(picture.caption)}</figcaption></figure>"
        for picture in shown
    )
    return Markup(f'<p class="quiet key">{key}</p>\n<div class="failures">\n{figures}\n</div>')


def _jpeg(photo: Tensor) -> bytes:
    buffer = io.BytesIO()
    to_pillow(photo).save(buffer, "JPEG", quality=_QUALITY, subsampling=0)  # thin coloured lines stay sharp
    return buffer.getvalue()


def _number(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def _mean(values: Mapping[str, float]) -> float | None:
    known = [value for value in values.values() if math.isfinite(value)]
    return sum(known) / len(known) if known else None


def _same(one: Mapping[str, float], other: Mapping[str, float]) -> bool:
    return one.keys() == other.keys() and all(np.isclose(one[k], other[k], atol=1e-12, equal_nan=True) for k in one)


def _count(count: int | None) -> Markup:
    return data(count, lambda value: f"{value:,}")
