"""Check the page of a benchmark: its numbers, its text, and how a real browser shows it."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageColor

from detector.plots import STAGE_COLOURS
from detector.report import write_report

EXAMPLE = Path(__file__).with_name("benchmark_example.json")
SECTIONS = ["race", "table_10", "stages", "speedups", "fractions", "accuracy", "sweep", "machine", "images"]


@pytest.fixture
def results() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(EXAMPLE.read_text(encoding="utf-8"))
    return content


class Page(HTMLParser):
    """Collect the tags, the ids of sections and the rows of tables of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: dict[str, dict[str, list[str]]] = {}
        self.values: dict[str, dict[str, list[float]]] = {}
        self.words = ""
        self._cells: list[str] = []
        self._numbers: list[float] = []
        self.feed(text)

    @property
    def sections(self) -> list[str]:
        return [str(attributes["id"]) for tag, attributes in self.tags if tag == "section"]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self._cells, self._numbers = [], []
        elif tag in ("td", "th"):
            self._cells.append("")
        elif tag == "data":
            self._numbers.append(float(str(dict(attrs)["value"])))

    def handle_data(self, data: str) -> None:
        self.words += data
        if self._cells:
            self._cells[-1] += data

    def handle_endtag(self, tag: str) -> None:
        if tag == "tr" and self.sections and self._cells:
            self.rows.setdefault(self.sections[-1], {})[self._cells[0]] = self._cells[1:]
            self.values.setdefault(self.sections[-1], {})[self._cells[0]] = self._numbers


def page(results: dict[str, Any], path: Path) -> Page:
    write_report(results, path)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    return Page(path.read_text(encoding="utf-8"))


def test_the_numbers_are_those_of_the_json(results: dict[str, Any], tmp_path: Path) -> None:
    read = page(results, tmp_path / "report.html")
    assert read.sections == SECTIONS
    for stage in STAGE_COLOURS:
        expected = []
        for measured in results["detectors"].values():
            if stage in measured["stages"]:
                expected += [measured["stages"][stage], *measured["quartiles"][stage]]
        assert read.values["stages"][stage] == expected
    for name, ratios in results["speedups"].items():
        expected = [ratios["conv_fc"], *ratios["conv_fc_quartiles"], ratios["total"], *ratios["total_quartiles"]]
        assert read.values["speedups"][name] == [*expected, ratios["limit"]]
        less = results["map_differences"][name]
        found = results["detectors"][name]["map"]
        expected = [found["voc07"], found["low"], found["high"], less["difference"], less["low"], less["high"]]
        assert read.values["accuracy"][name] == expected
    for number, value in enumerate(results["sweep"]["values"]):
        expected = [times["total_without_proposals"][number] for times in results["sweep"]["detectors"].values()]
        assert read.values["sweep"][str(value)] == expected


def test_table_10_is_read_as_in_the_paper(results: dict[str, Any], tmp_path: Path) -> None:
    """Compare what is shown, rounded by hand from the JSON, and the paper's own numbers."""
    rows = page(results, tmp_path / "report.html").rows["table_10"]
    assert rows["mAP, %"] == ["58.0", "59.2", "59.2", "58.1", "59.4", "59.2"]
    assert rows["conv"] == ["53.0 ms", "293 ms", "14.4 s", "58.7 ms", "487 ms", "16.9 s"]
    assert rows["fc"][:3] == ["89.0 ms"] * 3
    assert rows["total"][:3] == ["142 ms", "382 ms", "14.5 s"]
    assert rows["speed-up"] == ["102x", "38x", "–", "142x", "31x", "–"]  # noqa: RUF001


def test_nothing_is_fetched_and_nothing_runs(results: dict[str, Any], tmp_path: Path) -> None:
    read = page(results, tmp_path / "report.html")
    assert {"script", "link", "iframe", "object", "embed"}.isdisjoint(tag for tag, _ in read.tags)
    for tag, attributes in read.tags:
        assert not any(name.startswith("on") for name in attributes), tag
        for name in ("src", "href", "srcset", "action"):
            assert (attributes.get(name) or "data:").startswith("data:")
    assert not re.search(r"url\(|@import|https?://", (tmp_path / "report.html").read_text(encoding="utf-8"))
    pictures = [attributes["src"] for tag, attributes in read.tags if tag == "img"]
    assert len(pictures) == 2
    for source in pictures:
        content = base64.b64decode(str(source).removeprefix("data:image/png;base64,"), validate=True)
        assert Image.open(io.BytesIO(content)).size[0] == 9 * 150


def test_text_from_outside_stays_text(results: dict[str, Any], tmp_path: Path) -> None:
    """Put markup into every text there is, names of fields and detectors too: no tag of it comes out."""
    evil = "<script>alert(1)</script>\"'&$x$"

    def spoil(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: value[key] if key == "format" else spoil(value[key]) for key in value}
        return (
            [spoil(entry) for entry in value] if isinstance(value, list) else evil if isinstance(value, str) else value
        )

    spoilt = spoil(results)
    spoilt["detectors"][evil] = spoilt["detectors"].pop("sppnet")
    spoilt["sweep"]["detectors"][evil] = spoilt["sweep"]["detectors"].pop("sppnet")
    spoilt["speedups"][evil] = spoilt["speedups"].pop("sppnet")
    spoilt["machine"]["packages"][evil] = spoilt["settings"][evil] = evil
    read = page(spoilt, tmp_path / "report.html")
    plain = page(results, tmp_path / "report.html")
    assert {tag for tag, _ in read.tags} == {tag for tag, _ in plain.tags}
    assert read.words.count(evil) > 20


def test_what_is_missing_leaves_no_shell(results: dict[str, Any], tmp_path: Path) -> None:
    results.update(speedup={}, speedups={}, map_differences={}, sweep=None, images=[])
    results["settings"]["baseline"] = None
    results["detectors"] = {"sppnet": {**results["detectors"]["sppnet"], "map": None, "fractions": None}}
    results["detectors"]["sppnet"].update(operations=None, peak_memory_mb=None)
    read = page(results, tmp_path / "report.html")
    assert read.sections == ["race", "table_10", "stages", "machine"]
    assert "None" not in read.words
    assert "peak memory" not in read.rows["stages"]


def test_another_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"report.html: expected results of format 'sppnet-benchmark-1', got None"):
        write_report({}, tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []


def run(browser: str, folder: Path, *options: str) -> str:
    common = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"]
    command = [browser, *common, f"--user-data-dir={folder / 'profile'}", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    return done.stdout


def test_a_browser_shows_it(results: dict[str, Any], tmp_path: Path) -> None:
    """Open the page in a real browser, on a wide window: nothing is blank, the bars have their colours."""
    chrome = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
    browser = chrome or shutil.which("firefox")
    if browser is None:
        pytest.skip("needs a browser, and there is no chromium, google-chrome or firefox on PATH")
    (tmp_path / "out").mkdir()
    write_report(results, tmp_path / "report.html")
    address, shot = (tmp_path / "report.html").as_uri(), tmp_path / "out" / "shot.png"
    if chrome:
        run(browser, tmp_path, f"--screenshot={shot}", "--window-size=1000,3600", address)
        shown = Page(run(browser, tmp_path, "--dump-dom", address))
        assert shown.sections == SECTIONS
        assert shown.values["stages"]["conv"][0] == results["detectors"]["sppnet"]["stages"]["conv"]
    else:
        options = [
            "--headless",
            "--profile",
            str(tmp_path / "out"),
            "--window-size=1000,3600",
            "--screenshot",
            str(shot),
        ]
        subprocess.run([browser, *options, address], capture_output=True, check=True, timeout=120)
    pixels = np.asarray(Image.open(shot).convert("RGB")).astype(int)
    assert pixels.shape[1] == 1000
    assert pixels.std() > 10
    for stage, colour in STAGE_COLOURS.items():
        near = (np.abs(pixels - np.array(ImageColor.getrgb(colour))) <= 10).all(axis=2)
        assert near.sum() > 60, stage
