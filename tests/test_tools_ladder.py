"""Check that the program that climbs the paper's ladder measures what `sppnet evaluate` would, and each rung once."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from detector.checkpoints import load_detector, save_detector
from detector.cli.train_machines import build, settings_of
from detector.datasets import open_dataset
from detector.ensemble import Ensemble
from detector.evaluation import evaluate
from detector.images import read_image
from detector.machines import MachineNet
from proposals.registry import make_proposer
from tests.sources import REPOSITORY
from tests.test_datasets import load_tool
from tests.toy import CLASSES, SMALL, small_model

TEST = f"voc:{REPOSITORY / 'data' / 'toy'}:test"


def machines(seed: int) -> MachineNet:
    """Return a detector of toy shapes, at two scales, whose machines and regressors are random."""
    settings = settings_of(SMALL, None, ["svm_layer=fc6", "scales=[96,140]", "min_score=0.4", "region_mean=false"])
    net = build(small_model(replace(SMALL, region_mean=False)), settings)
    generator = torch.Generator().manual_seed(seed)
    for part in (net.machines, net.ridge):
        part.weight.copy_(0.05 * torch.randn(part.weight.shape, generator=generator))
    return net


def test_rungs_are_measured_once_and_as_from_the_photos(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    tool = load_tool("ladder")
    paths = [tmp_path / f"{seed}.safetensors" for seed in (1, 2)]
    for seed, path in zip((1, 2), paths, strict=True):
        save_detector(machines(seed), path)
    dataset = open_dataset(TEST, CLASSES)
    rungs = [
        tool.Rung("one", (paths[0],), {}),
        tool.Rung("one as it is", (paths[0],), {"box_regression": "none"}),
        tool.Rung("both", tuple(paths), {}),
    ]
    measuring = tool.Measuring(dataset, tmp_path / "test", tmp_path / "ladder.json", 1)
    for rung in rungs:
        measuring.measure(rung, (96, 140))
    rows = json.loads((tmp_path / "ladder.json").read_text())
    assert list(rows) == [f"{rung.title}, five scales" for rung in rungs]
    proposer = make_proposer("fast")
    nets = [load_detector(path) for path in (paths[0], *paths)]
    nets[1].config = replace(nets[1].config, box_regression="none")
    for net, row in zip((*nets[:2], Ensemble([nets[0], nets[2]])), rows.values(), strict=True):
        images = [read_image(sample.path) for sample in dataset]
        found = [net.predict(image, proposer(image)) for image in images]
        expected = evaluate(found, dataset.truths, CLASSES, ["voc07"])["voc07"].map
        assert row["map"] == pytest.approx(expected, abs=0.02)  # maps were rounded to float16 on disk
        assert row["low"] <= row["map"] <= row["high"]
    assert f"{100 * rows['both, five scales']['map']:6.2f}" in capsys.readouterr().out
    for path in paths:
        path.unlink()
    again = tool.Measuring(dataset, tmp_path / "test", tmp_path / "ladder.json", 1)
    again.measure(rungs[0], (96, 140))  # finds it done: there is no model to do it with
