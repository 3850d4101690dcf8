"""Check what leaves the package: COCO results, supervision's detections, files written whole, stages in seconds."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from pycocotools.coco import COCO

from detector.files import write_bytes, write_json
from detector.structures import Detections, Seconds
from detector.timing import measure

NAMES = ("cat", "dog", "potted plant")


def detections(rows: list[tuple[list[float], float, int]]) -> Detections:
    boxes = torch.tensor([box for box, _, _ in rows], dtype=torch.float32).reshape(-1, 4)
    scores = torch.tensor([score for _, score, _ in rows], dtype=torch.float32)
    labels = torch.tensor([label for _, _, label in rows], dtype=torch.int64)
    return Detections(boxes, scores, labels, (60, 100), NAMES)


TWO = detections([([10, 20, 40.5, 60], 0.75, 2), ([0, 0, 100, 1], 0.5, 0)])


def test_coco_results_by_hand() -> None:
    assert TWO.to_coco(7) == [
        {"image_id": 7, "category_id": 3, "bbox": [10.0, 20.0, 30.5, 40.0], "score": 0.75},
        {"image_id": 7, "category_id": 1, "bbox": [0.0, 0.0, 100.0, 1.0], "score": 0.5},
    ]
    assert [row["category_id"] for row in TWO.to_coco("a", [17, 18, 64])] == [64, 17]
    assert detections([]).to_coco(1) == []


def test_category_ids_are_one_per_class() -> None:
    with pytest.raises(ValueError, match="expected 3 category ids, one per class, got 2"):
        TWO.to_coco(1, [5, 6])


def test_pycocotools_reads_the_results(tmp_path: Path) -> None:
    """pycocotools computes the area of what it loads: width times height, nothing added."""
    rows = json.loads(json.dumps(TWO.to_coco(7)))
    truth = COCO()
    truth.dataset = {"images": [{"id": 7, "height": 60, "width": 100}], "annotations": [], "info": {}}
    truth.dataset["categories"] = [{"id": i + 1, "name": name} for i, name in enumerate(NAMES)]
    truth.createIndex()
    loaded = truth.loadRes(rows)
    assert [a["area"] for a in loaded.loadAnns(loaded.getAnnIds(imgIds=7))] == [30.5 * 40, 100.0]


def test_supervision_gets_every_field() -> None:
    supervision = pytest.importorskip("supervision", reason="supervision is not installed")
    found = TWO.to_supervision()
    assert isinstance(found, supervision.Detections)
    assert found.xyxy.tolist() == [[10, 20, 40.5, 60], [0, 0, 100, 1]]
    assert found.confidence.tolist() == [0.75, 0.5]
    assert found.class_id.tolist() == [2, 0]
    assert found["class_name"].tolist() == ["potted plant", "cat"]
    assert found.area.tolist() == [30.5 * 40, 100]
    assert found[found.class_id == 0]["class_name"].tolist() == ["cat"]
    none = detections([]).to_supervision()
    assert none.is_empty()
    assert len(supervision.Detections.merge([found, none])) == 2


def test_supervision_missing_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)  # what Python itself does for a module known to be missing
    with pytest.raises(ImportError, match="pip install supervision"):
        TWO.to_supervision()


def test_json_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, [{"name": "Käse", "score": 0.5}])
    assert json.loads(path.read_text()) == [{"name": "Käse", "score": 0.5}]
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, float("nan"))
    assert json.loads(path.read_text())[0]["score"] == 0.5
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing_beside(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "inside").touch()
    with pytest.raises(OSError, match="taken"):
        write_bytes(tmp_path / "taken", b"new")  # a file cannot replace a folder
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
    write_bytes(tmp_path / "a", b"old")
    write_bytes(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"new"


def test_measure_adds_up_what_a_stage_took() -> None:
    seconds = Seconds()
    before = time.perf_counter()
    for _ in range(2):
        with measure(seconds, "conv"):
            time.sleep(0.02)
    with measure(seconds, "fc", torch.device("cpu")):
        pass
    assert 0.04 <= seconds.stages["conv"] <= time.perf_counter() - before
    assert 0 <= seconds.stages["fc"] < 0.02
    assert list(seconds.stages) == ["conv", "fc"]


def test_measure_counts_blocks_that_raise_and_nothing_without_seconds() -> None:
    seconds = Seconds()
    with pytest.raises(KeyError, match="out"), measure(seconds, "pool"):
        raise KeyError("out")
    assert list(seconds.stages) == ["pool"]
    with measure(None, "pool"):
        result: list[Any] = [1]
    assert result == [1]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_measure_waits_for_cuda() -> None:
    """Launching a long kernel returns at once; the measured stage must take as long as CUDA's own events say."""
    matrix = torch.randn(6000, 6000, device="cuda")
    (matrix @ matrix).sum().item()
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    seconds = Seconds()
    with measure(seconds, "fc", "cuda"):
        start.record()
        for _ in range(20):
            matrix @ matrix
        end.record()
    assert seconds.stages["fc"] * 1000 >= 0.99 * start.elapsed_time(end)
