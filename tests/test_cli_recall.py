"""Check `sppnet recall`: its numbers against a plain computation, its files, and that it continues if stopped."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from detector.cli import main
from detector.datasets import open_datasets
from detector.images import read_image
from proposals.registry import make_proposer
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
        for threshold in ("0.5", "0.7", "0.9", "0.975"):
            assert row["recall"][threshold] == sum(value >= float(threshold) for value in best) / len(best)
        assert row["abo"] == pytest.approx(sum(best) / len(best))
        means = {label: sum(values) / len(values) for label, values in overlaps.items()}
        assert row["abo_per_class"] == pytest.approx(means)
        assert row["mabo"] == pytest.approx(sum(means.values()) / len(means))
        assert row["recall_by_count"]["20"] == sum(value >= 0.5 for value in early) / len(early)
        assert 0 < row["seconds"] < 10
    lines = result.stdout.splitlines()
    assert lines[0].split()[:3] == ["proposals", "boxes", "seconds"]
    assert [line.split()[0] for line in lines[2:4]] == ["windows", "single"]
    assert f"{report['single']['abo']:.3f}" in lines[3].split()
    assert "ABO of class" in result.stdout


def test_a_ranking_beats_random_order(toy: Path, tmp_path: Path) -> None:
    assert recall("--data", f"voc:{toy}:train", "--proposals", "fast", "--out", tmp_path).exit_code == 0
    row = json.loads((tmp_path / "recall.json").read_text())["fast"]
    assert row["recall_by_count"]["50"] > row["recall_shuffled"]["50"] + 0.1
    assert row["recall_by_count"]["4000"] == row["recall_shuffled"]["4000"] == row["recall"]["0.5"]


def test_without_out_it_prints_only(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = recall("--data", f"voc:{toy}:test", "--proposals", f"annotations:{toy}")
    assert result.exit_code == 0, result.output
    (row,) = (
        line.split() for line in result.stdout.splitlines() if line.startswith("annotations:") and "100.0" in line
    )
    assert row[3:8] == ["100.0", "100.0", "100.0", "1.000", "1.000"]
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
    data = [] if "--data" in arguments else ["--data", f"voc:{toy}:test"]
    result = CliRunner().invoke(main, ["recall", *data, *arguments])
    assert result.exit_code == code
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
