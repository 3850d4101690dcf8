"""Test the toy set, drawn and committed, and the shared photos as data sets."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from detector.classes import VOC_CLASSES
from detector.datasets import open_dataset, open_datasets
from detector.images import read_image
from tests.contracts import check_dataset
from tests.test_datasets import REPOSITORY, load_tool

TOOL = REPOSITORY / "tools" / "make_toy.py"


def test_toy_images_hold_what_their_boxes_say(tmp_path: Path) -> None:
    load_tool("make_toy").make_toy(tmp_path / "toy", images=12, seed=5)
    train, test = (open_dataset(f"voc:{tmp_path / 'toy'}:{split}") for split in ("train", "test"))
    check_dataset(train, ("circle", "square", "triangle"))
    check_dataset(test)
    assert (len(train), len(test)) == (9, 3)
    for sample in train:
        image = read_image(sample.path).float()
        assert image.shape[1] != image.shape[2]
        assert 1 <= len(sample.truth) <= 4
        for box, label in zip(sample.truth.boxes.int().tolist(), sample.truth.labels.tolist(), strict=True):
            x1, y1, x2, y2 = box
            centre = image[:, (y1 + y2) // 2 - 3 : (y1 + y2) // 2 + 3, (x1 + x2) // 2 - 3 : (x1 + x2) // 2 + 3]
            # red, green, blue leads in circles, squares, triangles
            assert int(centre.mean(dim=(1, 2)).argmax()) == label


def test_the_seed_decides_the_toy_set(tmp_path: Path) -> None:
    make_toy = load_tool("make_toy").make_toy
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        make_toy(tmp_path / name, 4, seed)
    files = {name: sorted((tmp_path / name).rglob("*.*")) for name in "abc"}
    content = {name: [path.read_bytes() for path in paths] for name, paths in files.items()}
    assert content["a"] == content["b"]
    assert content["a"] != content["c"]
    with pytest.raises(ValueError, match="at least 2 images"):
        make_toy(tmp_path / "d", 1, 1)


def test_the_committed_toy_set_is_what_the_program_draws(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, str(TOOL), str(tmp_path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    committed = REPOSITORY / "data" / "toy"
    names = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*.*"))
    assert names == sorted(path.relative_to(committed) for path in committed.rglob("*.*"))
    for name in names:
        if name.suffix != ".jpg":
            assert (tmp_path / name).read_text() == (committed / name).read_text()
            continue
        drawn, kept = (read_image(folder / name).float().numpy() for folder in (tmp_path, committed))
        assert np.abs(drawn - kept).mean() < 2  # another libjpeg may round otherwise
    assert sum(path.stat().st_size for path in committed.rglob("*.*")) < 60_000
    check_dataset(open_datasets([f"voc:{committed}:train", f"voc:{committed}:test"]), ("circle", "square", "triangle"))


def test_the_program_says_what_is_wrong(tmp_path: Path) -> None:
    command = [sys.executable, str(TOOL), str(tmp_path / "x"), "--images", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith("expected at least 2 images, one to train and one to test, got 1")


@pytest.mark.parametrize(("year", "split", "objects"), [("2007", "test", (1009, 234)), ("2012", "val", (674, 99))])
def test_shared_voc(shared_data: Path, year: str, split: str, objects: tuple[int, int]) -> None:
    """The shared data's table counts the objects: not difficult, difficult."""
    dataset = open_dataset(f"voc:{shared_data / f'VOC{year}'}:{split}", VOC_CLASSES)
    check_dataset(dataset, VOC_CLASSES)
    difficult = torch.cat([truth.difficult for truth in dataset.truths])
    assert (int((~difficult).sum()), int(difficult.sum())) == objects
    assert (dataset.dropped, dataset.ignored) == (0, 0)


def test_shared_coco_joins_voc(shared_data: Path) -> None:
    coco = f"coco:{shared_data / 'coco/annotations/instances_val2017.json'}:{shared_data / 'coco/val2017'}"
    dataset = open_datasets([coco, f"voc:{shared_data / 'custom/BCCD'}:trainval"])
    check_dataset(dataset)
    assert {"RBC", "WBC", "Platelets"} < set(dataset.class_names)
    assert "airplane" not in dataset.class_names
    assert dataset.dropped == 2  # BCCD's boxes of no area
    assert open_dataset(coco, VOC_CLASSES).ignored > 0
