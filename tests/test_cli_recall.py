"""Check `sppnet recall`: its numbers against a plain computation, its files, and that it continues if stopped."""

from __future__ import annotations

import json
import re
import shutil
import signal
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from click.testing import CliRunner, Result
from torch import Tensor

from detector.cli import main
from detector.datasets import open_datasets
from detector.images import read_image
from proposals.opencv import has_ximgproc
from proposals.registry import PROPOSERS, make_proposer
from proposals.structures import Proposals
from proposals.windows import SlidingWindows
from tests.sources import REPOSITORY
from tests.toy import draw, finish, stop


def recall(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["recall", *map(str, arguments), "--threads", "1"])


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a toy set whose first test photo has a difficult object."""
    folder = draw(tmp_path_factory.mktemp("data") / "toy", 16)
    first = (folder / "ImageSets/Main/test.txt").read_text().split()[0]
    xml = folder / "Annotations" / f"{first}.xml"
    xml.write_text(xml.read_text().replace("<difficult>0", "<difficult>1", 1))
    return folder


def iou(a: list[float], b: list[float]) -> float:
    w = max(min(a[2], b[2]) - max(a[0], b[0]), 0)
    h = max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    return w * h / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - w * h)


def test_numbers_are_those_of_a_plain_computation(toy: Path, tmp_path: Path) -> None:
    spec, out = f"voc:{toy}:test", tmp_path / "out"
    result = recall("--data", spec, "--proposals", "windows, single", "--out", out)
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in out.iterdir()) == ["recall.json", "recall_boxes.png", "recall_iou.png"]
    report = json.loads((out / "recall.json").read_text())
    assert list(report) == ["windows", "single"]
    dataset = open_datasets([spec])
    for name, row in report.items():
        overlaps: dict[str, list[float]] = {}
        early, counts = [], []
        for sample in dataset:
            boxes = make_proposer(name)(read_image(sample.path)).boxes.tolist()
            counts.append(len(boxes))
            truth = zip(sample.truth.boxes.tolist(), sample.truth.labels, sample.truth.difficult, strict=True)
            for box, label, difficult in truth:
                if not difficult:
                    found = [iou(box, other) for other in boxes]
                    overlaps.setdefault(dataset.class_names[label], []).append(max(found))
                    early.append(max(found[:20]))
        best = [value for values in overlaps.values() for value in values]
        assert len(best) == sum(len(truth) for truth in dataset.truths) - 1
        assert row["boxes"] == pytest.approx(sum(counts) / len(counts))
        assert row["most_boxes"] == max(counts)
        for threshold in ("0.5", "0.7", "0.9", "0.975"):
            assert row["recall"][threshold] == sum(value >= float(threshold) for value in best) / len(best)
        assert row["abo"] == pytest.approx(sum(best) / len(best))
        means = {label: sum(values) / len(values) for label, values in overlaps.items()}
        assert row["abo_per_class"] == pytest.approx(means)
        assert row["mabo"] == pytest.approx(sum(means.values()) / len(means))
        assert row["recall_by_count"]["20"] == sum(value >= 0.5 for value in early) / len(early)
        assert 0 < row["seconds"] < 10
    objects = len(dataset), sum(len(truth) for truth in dataset.truths) - 1
    assert "{} images, {} objects that are not difficult".format(*objects) in result.stderr
    check_tables(result.stdout, report, dataset.class_names)


def check_tables(printed: str, report: dict[str, Any], class_names: tuple[str, ...]) -> None:
    """Compare what is printed with recall.json."""
    tables = [table.splitlines() for table in printed.split("\n\n")]
    assert [re.split("  +", table[0]) for table in tables[:3]] == [
        ["proposals", "boxes", "seconds", "IoU 0.5", "IoU 0.7", "IoU 0.9", "ABO", "MABO"],
        ["recall at IoU 0.5", *(f"{how} {n}" for how in ("first", "random") for n in (100, 300, 1000, 2000))],
        ["ABO of class", *report],
    ]
    for number, (name, row) in enumerate(report.items(), start=2):
        shown = [f"{row['boxes']:.0f}", f"{row['seconds']:.3f}"]
        shown += [f"{100 * row['recall'][iou]:.1f}" for iou in ("0.5", "0.7", "0.9")]
        assert tables[0][number].split() == [name, *shown, f"{row['abo']:.3f}", f"{row['mabo']:.3f}"]
        by_count = [row["recall_by_count"], row["recall_shuffled"]]
        early = [f"{100 * recalls[n]:.1f}" for recalls in by_count for n in ("100", "300", "1000", "2000")]
        assert tables[1][number].split() == [name, *early]
    rows = [[label, *(f"{row['abo_per_class'][label]:.3f}" for row in report.values())] for label in class_names]
    assert [line.split() for line in tables[2][2:]] == rows


def test_a_ranking_beats_random_order(toy: Path, tmp_path: Path) -> None:
    assert recall("--data", f"voc:{toy}:train", "--proposals", "fast", "--out", tmp_path).exit_code == 0
    row = json.loads((tmp_path / "recall.json").read_text())["fast"]
    assert row["recall_by_count"]["50"] > row["recall_shuffled"]["50"] + 0.1
    last = list(row["recall_by_count"])[-1]
    assert int(last) >= row["most_boxes"]
    assert row["recall_by_count"][last] == row["recall_shuffled"][last] == row["recall"]["0.5"]


def test_boxes_that_were_lost_are_found_again(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop before the end; damage what a power cut may damage: the boxes of an image that the journal has."""
    arguments = ("--data", f"voc:{toy}:test", "--proposals", "windows,single", "--out", tmp_path / "out")
    assert recall(*arguments[:-1], tmp_path / "whole").exit_code == 0
    with monkeypatch.context() as patch:
        patch.setattr("detector.cli.recall._measure", Mock(side_effect=OSError("disk full")))
        assert recall(*arguments).exit_code == 1
    files = sorted((tmp_path / "out").rglob("*.npz"))
    assert len(files) == 2 * 4
    files[0].write_bytes(files[0].read_bytes()[:40])
    files[-1].unlink()
    result = recall(*arguments)
    assert result.exit_code == 0, result.output
    first, second = (json.loads((tmp_path / name / "recall.json").read_text()) for name in ("whole", "out"))
    for row in (*first.values(), *second.values()):
        del row["seconds"]
    assert first == second


def test_every_proposer_has_its_turn_and_one_call_that_does_not_count(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def note(self: SlidingWindows, image: Tensor, path: Path | None = None) -> Proposals:
        calls.append((self.max_boxes, path.name if path else ""))
        time.sleep(0.2 if len(calls) <= 2 else 0)  # as compilation would take: in the call that does not count
        return Proposals(torch.tensor([[0.0, 0.0, 9.0, 9.0]]))

    for number, name in enumerate(("windows", "single"), start=1):
        monkeypatch.setitem(PROPOSERS, name, partial(SlidingWindows, max_boxes=number))
    monkeypatch.setattr(SlidingWindows, "__call__", note)
    assert recall("--data", f"voc:{toy}:test", "--proposals", "windows,single", "--out", tmp_path).exit_code == 0
    paths = [sample.path.name for sample in open_datasets([f"voc:{toy}:test"])]
    assert len(paths) == 4
    order = [1, 2, 2, 1, 1, 2, 2, 1]
    expected = [(1, paths[0]), (2, paths[0]), *((order[n], paths[n // 2]) for n in range(8))]
    assert calls == expected
    assert all(row["seconds"] < 0.1 for row in json.loads((tmp_path / "recall.json").read_text()).values())


def test_without_out_it_prints_only(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = recall("--data", f"voc:{toy}:test", "--proposals", f"annotations:{toy}")
    assert result.exit_code == 0, result.output
    row, early = (line.split() for line in result.stdout.splitlines() if line.startswith("annotations:"))
    assert row[3:] == ["100.0", "100.0", "100.0", "1.000", "1.000"]
    assert early[1:] == ["100.0"] * 8
    assert "written" not in result.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_what_was_stopped_or_killed_continues_with_the_same_numbers(toy: Path, tmp_path: Path) -> None:
    program = [sys.executable, str(REPOSITORY / "tools" / "recall.py"), "--data", f"voc:{toy}:train"]
    program += ["--proposals", "quality,windows", "--threads", "1", "--out"]
    done, _ = finish([*program, str(tmp_path / "whole")])
    assert done.returncode == 0, done.stderr
    out = tmp_path / "out"

    def lines() -> int:
        path = out / "unfinished" / "seconds.jsonl"
        return len(path.read_text().splitlines()) if path.exists() else 0

    code, errors = stop([*program, str(out)], signal.SIGINT, lambda: lines() > 3)
    assert (code, errors[-1]) == (130, "interrupted")
    assert "stopped; the same command continues" in errors
    first = lines()
    code, _ = stop([*program, str(out)], signal.SIGKILL, lambda: lines() > first + 2)
    assert code == -signal.SIGKILL
    assert first < lines() < 25
    done, _ = finish([*program, str(out)])
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in out.iterdir()) == ["recall.json", "recall_boxes.png", "recall_iou.png"]

    def numbers(folder: Path) -> Any:
        rows = json.loads((folder / "recall.json").read_text())
        return {name: {key: value for key, value in row.items() if key != "seconds"} for name, row in rows.items()}

    assert numbers(out) == numbers(tmp_path / "whole")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--proposals", "fast,dowsing"], 1, "expected a proposer named single, fast"),
        (["--proposals", "fast, fast"], 2, "--proposals: expected every name once, got fast, fast"),
        (["--proposals", "fast,json:none.json"], 1, "none.json: "),
        pytest.param(
            ["--proposals", "fast,opencv-fast"],
            1,
            "expected a contrib build of OpenCV",
            marks=pytest.mark.skipif(has_ximgproc(), reason="OpenCV's selective search is there"),
        ),
        (["--data", "voc:hard:all"], 2, "voc:hard:all: expected objects that are not difficult, got none"),
        ([], 2, "Missing option '--data'"),
        (["--data", "toy"], 1, "toy: expected voc:ROOT:SPLIT or coco:JSON:IMAGES"),
        (["--out", "file/out"], 2, "--out: expected a folder that can be written, got file/out"),
        (["--threads", "0"], 2, "Invalid value for '--threads'"),
    ],
)
def test_mistakes_are_told_in_one_line(
    arguments: list[str], code: int, message: str, toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    shutil.copytree(toy, "hard")
    for xml in Path("hard/Annotations").iterdir():
        xml.write_text(xml.read_text().replace("<difficult>0", "<difficult>1"))
    shutil.copy("hard/ImageSets/Main/test.txt", "hard/ImageSets/Main/all.txt")
    before = sorted(tmp_path.rglob("*"))
    data = [] if "--data" in arguments or not arguments else ["--data", f"voc:{toy}:test"]
    result = CliRunner().invoke(main, ["recall", *data, *arguments])
    assert result.exit_code == code
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_the_help_names_every_column() -> None:
    text = " ".join(CliRunner().invoke(main, ["recall", "--help"]).stdout.split())
    for part in ("--data", "--proposals", "--out", "--threads", "average best overlap (ABO)", "MABO", "recall_iou.png"):
        assert part in text
    text = " ".join(CliRunner().invoke(main, ["propose", "--help"]).stdout.split())
    for part in ("--proposals", "--out", "--workers", "json:FILE", "annotations:ROOT", "settings.json", "index.json"):
        assert part in text
    listed = CliRunner().invoke(main, ["--help"]).stdout
    assert "sppnet propose photos/ --out boxes" in listed
    assert "sppnet recall --data voc:VOC2007:test" in listed
