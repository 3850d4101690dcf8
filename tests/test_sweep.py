"""Check what a sweep changes, and that its table holds the medians of its runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from detector.datasets import Sample, open_dataset
from detector.images import read_image
from detector.structures import Detections
from detector.sweep import VALUES, Limited, at_scale, summarize_sweep, sweep
from proposals.windows import SlidingWindows
from tests.contracts import check_detector
from tests.sources import REPOSITORY
from tests.toy import CLASSES, SMALL, draw, small_model, tiny_trunk

EXAMPLE = json.loads((REPOSITORY / "tests" / "benchmark_example.json").read_text())
CONFIG = replace(SMALL, min_score=0.0, max_proposals=4000)


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> tuple[Sample, ...]:
    """Return one photo and another."""
    return open_dataset(f"voc:{draw(tmp_path_factory.mktemp('data') / 'toy', 16)}:test", CLASSES).samples[:2]


def equal(a: Detections, b: Detections) -> bool:
    return torch.equal(a.boxes, b.boxes) and torch.equal(a.scores, b.scores) and torch.equal(a.labels, b.labels)


def test_another_scale_is_the_detector_of_that_config_and_shares_its_weights(samples: tuple[Sample, ...]) -> None:
    net = small_model(CONFIG, trunk=tiny_trunk())
    resized = at_scale(net, 96)
    check_detector(resized)
    made = small_model(replace(CONFIG, shorter=96, longest=192), trunk=tiny_trunk())
    image = read_image(samples[0].path)
    proposals = SlidingWindows(max_boxes=50)(image)
    assert equal(resized.predict(image, proposals), made.predict(image, proposals))
    assert not equal(resized.predict(image, proposals), net.predict(image, proposals))
    assert (net.config.shorter, resized.settings["shorter"], resized.settings["longest"]) == (112, 96, 192)
    kept = {name: value.data_ptr() for name, value in net.state_dict().items() if value.numel()}
    assert {name: value.data_ptr() for name, value in resized.state_dict().items() if value.numel()} == kept


def test_a_detector_that_has_no_single_scale_stays_as_it_is() -> None:
    several = small_model(replace(CONFIG, scales=(96, 112)), trunk=tiny_trunk())
    assert at_scale(several, 300) is several
    limited = Limited(several, 7)
    assert at_scale(limited, 300) is limited


def test_a_limited_detector_sees_the_first_proposals(samples: tuple[Sample, ...]) -> None:
    net = small_model(CONFIG, trunk=tiny_trunk())
    check_detector(Limited(net, 2000))
    image = read_image(samples[0].path)
    proposals = SlidingWindows(max_boxes=50)(image)
    assert equal(Limited(net, 7).predict(image, proposals), net.predict(image, proposals.top(7)))
    assert Limited(net, 7).fingerprint() == net.fingerprint()
    assert Limited(net, 7).settings != Limited(net, 8).settings


@pytest.mark.parametrize("kind", VALUES)
def test_the_table_holds_medians_for_every_value(
    kind: str, samples: tuple[Sample, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(VALUES, "scale", (64, 96, 160))  # the real ones take a minute
    nets, path = (
        {"net": small_model(CONFIG, trunk=tiny_trunk()), "other": small_model(CONFIG, 8, tiny_trunk())},
        tmp_path / "sweep.jsonl",
    )
    proposer = SlidingWindows(max_boxes=700)
    runs = list(sweep(kind, nets, proposer, samples, path, max_proposals=50))
    values = VALUES[kind]
    assert list(values) == sorted(set(values))
    assert len(runs) == 2 * 2 * len(values)
    table = json.loads(json.dumps(summarize_sweep(kind, runs, list(nets)), allow_nan=False))
    assert table.keys() == {*EXAMPLE["sweep"], "regions"}
    assert (table["kind"], table["values"], list(table["detectors"])) == (kind, list(values), ["net", "other"])
    counts = [len(proposer(read_image(sample.path))) for sample in samples]
    limits = values if kind == "proposals" else [50] * len(values)
    assert table["regions"] == [np.median([min(count, limit) for count in counts]) for limit in limits]
    for name, columns in table["detectors"].items():
        assert columns.keys() == EXAMPLE["sweep"]["detectors"]["sppnet"].keys()
        for i, value in enumerate(values):
            own = [run for run in runs if run.racer == f"{name} at {value}"]
            assert [run.image_id for run in own] == [sample.image_id for sample in samples]
            assert columns["conv"][i] == np.median([run.stages["conv"] for run in own]) > 0
            assert columns["total"][i] == np.median([sum(run.stages.values()) for run in own])
            assert columns["total_without_proposals"][i] < columns["total"][i]
    again = list(sweep(kind, nets, proposer, samples, path, max_proposals=50))
    assert [run.stages for run in again] == [run.stages for run in runs]
