"""Check the page of an evaluation: its numbers, its text, and how a real browser shows it."""

from __future__ import annotations

import base64
import io
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from detector.evaluation import Result
from detector.evaluation.errors import ErrorReport
from detector.evaluation_plots import GROUP_COLOURS, METRIC_COLOURS
from detector.evaluation_report import Findings, Picture, save_plots, write_evaluation_report
from detector.failures import ADVICE, DETECTION, OBJECT, PROPOSAL, draw_failure
from detector.structures import Detections
from tests.test_evaluation_plots import where
from tests.test_report import Page, run

SECTIONS = ["classes", "table", "sizes", "curves", "confusion", "errors", "misses", "alarms"]
PLOTS = ["ap", "confusion", "curves", "errors"]
NAMES = ("cat", "dog", "traffic light")


def picture(kind: str, caption: str) -> Picture:
    """Draw a failure on noise that is no photo, 300 x 400 pixels."""
    photo = torch.randint(60, 90, (3, 300, 400), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    boxes = torch.tensor([[20.0, 30, 200, 250], [150, 100, 390, 280]])
    found = Detections(boxes, torch.tensor([0.9, 0.4]), torch.tensor([0, 1]), (300, 400), NAMES)
    return Picture(kind, caption, draw_failure(photo, torch.tensor([60.0, 80, 180, 240]), found, boxes + 7))


@pytest.fixture
def findings() -> Findings:
    """Return all that a report may hold; `traffic light` has no objects."""
    nan = math.nan
    recall = {"cat": 0.9, "dog": 0.75, "traffic light": nan}
    sizes = {"small": 0.1234, "medium": 0.5, "large": nan}
    voc = Result(0.61237, {"cat": 0.71237, "dog": 0.51237, "traffic light": nan}, "voc07", recall=recall, sizes=sizes)
    coco = Result(0.4, {"cat": 0.35, "dog": 0.45, "traffic light": nan}, "coco", (), recall={**recall, "cat": 0.95})
    costs = {cause: 0.003 * number for number, cause in enumerate(ADVICE)}
    counts = {cause: 7 * number for number, cause in enumerate(ADVICE)}
    steps = np.linspace(0.05, 0.9, 18)
    return Findings(
        title="What voc-lite0 found",
        facts=[("data", "voc:photos:test"), ("images", "12"), ("measured by", "pycocotools 2.0.11")],
        results={"voc07": voc, "coco": coco},
        class_names=NAMES,
        intervals={"voc07": (0.55555, 0.66666)},
        objects={"cat": 1200, "dog": 34},
        curves={
            "cat": (steps, 1 - steps**2),
            "dog": (steps, 1 - steps),
            "traffic light": (np.full(2, nan), np.zeros(2)),
        },
        confusion=np.array([[9, 2, 0, 1], [3, 7, 0, 2], [0, 0, 0, 0], [40, 3, 1, 0]]),
        errors=ErrorReport(0.61237, (), costs, counts),
        pictures=[picture("miss", "a.jpg: cat"), picture("false alarm", "b.jpg: dog"), picture("miss", "c.jpg: cat")],
    )


def page(findings: Findings, path: Path) -> Page:
    write_evaluation_report(findings, path)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    return Page(path.read_text(encoding="utf-8"))


def test_the_numbers_are_those_of_the_findings(findings: Findings, tmp_path: Path) -> None:
    read = page(findings, tmp_path / "report.html")
    assert read.sections == SECTIONS
    assert read.rows["table"]["cat"] == ["1,200", "71.2", "35.0", "90.0", "95.0"]
    assert read.values["table"]["cat"] == [1200, 0.71237, 0.35, 0.9, 0.95]
    assert read.rows["table"]["traffic light"] == ["–"] * 5  # noqa: RUF001
    assert read.values["table"]["mean"] == pytest.approx([1234, 0.61237, 0.4, 0.825, 0.85])
    assert read.rows["sizes"] == {"": ["voc07"], "small": ["12.3"], "medium": ["50.0"], "large": ["–"]}  # noqa: RUF001
    for number, cause in enumerate(ADVICE):
        count, cost, advice = read.rows["errors"][cause]
        assert (count, cost) == (f"{7 * number}", f"{0.3 * number:+.1f}")
        assert advice == ADVICE[cause].replace("`", "")
    for words in ("mAP (voc07): 61.2 %, 95 % interval 55.6 to 66.7", "mAP (coco): 40.0 %", "pycocotools 2.0.11"):
        assert words in read.words


def test_equal_recalls_are_shown_once(findings: Findings, tmp_path: Path) -> None:
    voc = findings.results["voc07"]
    same = replace(findings, results={"voc07": voc, "voc10": replace(voc, metric="voc10")})
    assert page(same, tmp_path / "report.html").rows["table"][""] == ["objects", "AP, voc07", "AP, voc10", "recall"]


def test_pictures_are_inside_and_nothing_is_fetched(findings: Findings, tmp_path: Path) -> None:
    read = page(findings, tmp_path / "report.html")
    assert {"script", "link", "iframe", "object", "embed"}.isdisjoint(tag for tag, _ in read.tags)
    for tag, attributes in read.tags:
        assert not any(name.startswith("on") for name in attributes), tag
        for name in ("src", "href", "srcset", "action"):
            assert (attributes.get(name) or "data:").startswith("data:")
    assert not re.search(r"url\(|@import|https?://", (tmp_path / "report.html").read_text(encoding="utf-8"))
    sizes = []
    for attributes in (attributes for tag, attributes in read.tags if tag == "img"):
        kind, content = str(attributes["src"]).split(";base64,")
        opened = Image.open(io.BytesIO(base64.b64decode(content, validate=True)))
        assert kind == f"data:image/{str(opened.format).lower()}"
        assert attributes["alt"]
        sizes.append(opened.size)
    assert [width for width, _ in sizes[:4]] == [1350] * 4
    assert sizes[4:] == [(480, 360)] * 3


def test_the_plots_are_files(findings: Findings, tmp_path: Path) -> None:
    files = save_plots(findings, tmp_path / "plots")
    assert sorted(files) == PLOTS
    assert sorted(path.name for path in (tmp_path / "plots").iterdir()) == [f"{name}.png" for name in PLOTS]
    for path in files.values():
        with Image.open(path) as plot:
            assert plot.width == 1350
            assert 200 < plot.height < 1500
            assert np.asarray(plot.convert("L")).std() > 5
        assert 5_000 < path.stat().st_size < 300_000


def test_what_is_missing_leaves_no_shell(findings: Findings, tmp_path: Path) -> None:
    bare = Result(math.nan, dict.fromkeys(NAMES, math.nan), "voc07")
    nothing = Findings(
        title="Nothing", facts=[], results={"voc07": bare}, class_names=NAMES, intervals={}, objects={}, curves={}
    )
    read = page(nothing, tmp_path / "report.html")
    assert read.sections == ["table"]
    assert "not known: no objects" in read.words
    assert not re.search("nan|None", read.words)
    assert save_plots(nothing, tmp_path) == {}
    empty = replace(findings, errors=ErrorReport(0.5, (), {}, {}), confusion=np.zeros((4, 4), int), pictures=())
    assert page(empty, tmp_path / "report.html").sections == ["classes", "table", "sizes", "curves"]


def test_text_from_outside_stays_text(findings: Findings, tmp_path: Path) -> None:
    """Put markup and a formula into every text there is: no tag of it comes out, and the plots are drawn."""
    evil = "<script>alert(1)</script>\"'&$x$"
    names = (f"{evil}a", f"{evil}b", f"{evil}c")
    new = dict(zip(NAMES, names, strict=True))
    voc = findings.results["voc07"]
    spoilt = replace(
        findings,
        title=evil,
        facts=[(evil, evil)],
        results={evil: replace(voc, per_class={new[name]: ap for name, ap in voc.per_class.items()})},
        class_names=names,
        intervals={evil: (0.1, 0.2)},
        objects={new[name]: count for name, count in findings.objects.items()},
        curves={new[name]: curve for name, curve in findings.curves.items()},
        errors=ErrorReport(0.5, (), {evil: 0.1, "class": 0.2}, {evil: 1}),
        pictures=[replace(shown, caption=evil) for shown in findings.pictures],
    )
    read = page(spoilt, tmp_path / "report.html")
    plain = page(findings, tmp_path / "report.html")
    assert {tag for tag, _ in read.tags} <= {tag for tag, _ in plain.tags}
    assert read.words.count(evil) > 10


def test_wrong_findings_are_refused(findings: Findings) -> None:
    with pytest.raises(ValueError, match=r"expected a confusion matrix of shape \(4, 4\), got \(3, 3\)"):
        replace(findings, confusion=np.zeros((3, 3), int))
    with pytest.raises(ValueError, match="expected the results of at least one metric, got none"):
        replace(findings, results={})
    with pytest.raises(ValueError, match="expected a picture of a miss or a false alarm, got 'hit'"):
        picture("hit", "")


@pytest.mark.parametrize("width", [1000, 500])
def test_a_browser_shows_it(findings: Findings, tmp_path: Path, width: int) -> None:
    """Open the page in a real browser, on a wide window and on a narrow one: sections, plots and pictures are there."""
    browser = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
    if browser is None:
        pytest.skip("needs a browser, and there is no chromium or google-chrome on PATH")
    write_evaluation_report(findings, tmp_path / "report.html")
    address, shot = (tmp_path / "report.html").as_uri(), tmp_path / "shot.png"
    run(browser, tmp_path, f"--screenshot={shot}", f"--window-size={width},6000", address)
    shown = Page(run(browser, tmp_path, "--dump-dom", address))
    assert shown.sections == SECTIONS
    assert shown.values["table"]["cat"][1] == 0.71237
    pixels = np.asarray(Image.open(shot).convert("RGB")).astype(int)
    assert pixels.shape == (6000, width, 3)
    assert pixels.std() > 10
    for colour in (*METRIC_COLOURS[:2], *GROUP_COLOURS.values(), OBJECT, DETECTION, PROPOSAL):
        assert where(pixels, colour, near=14).sum() > 60, colour
    last = np.flatnonzero((pixels < 250).any(axis=(1, 2)))[-1]
    assert last < 5990, "the page is cut off"
