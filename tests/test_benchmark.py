"""Check the race: who runs when, what is remembered, and its numbers against arithmetic done by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from detector.benchmark import compare, describe_detector, summarize, time_stages
from detector.datasets import Sample, open_dataset
from detector.evaluation import bootstrap_map, voc_ap
from detector.images import read_image
from detector.machine import Machine, describe_machine
from detector.racing import Run, race
from detector.sppnet import SPPNet
from detector.structures import BoxScores, Detections, Detector, Seconds
from proposals.structures import Proposals
from proposals.windows import SlidingWindows
from tests.sources import REPOSITORY
from tests.toy import CLASSES, SMALL, draw, small_model, tiny_trunk

EXAMPLE = json.loads((REPOSITORY / "tests" / "benchmark_example.json").read_text())
PEAKS = Machine("cpu", 1, 1, 1.0, "", "", {}, {"float32": 100.0, "bfloat16": 400.0}, 20.0)
NONE = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64), (30, 40), CLASSES)


class Counting:
    """Hand everything on to a detector, and note who was asked to predict."""

    def __init__(self, name: str, detector: SPPNet, calls: list[str]):
        self.name, self.detector, self.calls = name, detector, calls
        self.class_names, self.settings, self.fingerprint = CLASSES, detector.settings, detector.fingerprint

    def predict(self, image: Tensor, proposals: Proposals, seconds: Seconds | None = None) -> Detections:
        self.calls.append(self.name)
        return self.detector.predict(image, proposals, seconds)

    def predict_boxes(self, image: Tensor, boxes: Tensor, seconds: Seconds | None = None) -> BoxScores:
        return self.detector.predict_boxes(image, boxes, seconds)


@pytest.fixture(scope="module")
def nets() -> dict[str, SPPNet]:
    """Return two detectors of different settings."""
    config = replace(SMALL, min_score=0.0)
    return {
        "small": small_model(config, trunk=tiny_trunk()),
        "large": small_model(replace(config, shorter=160, longest=320), 6, tiny_trunk()),
    }


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> tuple[Sample, ...]:
    """Return four annotated photos."""
    return open_dataset(f"voc:{draw(tmp_path_factory.mktemp('data') / 'toy', 16)}:test", CLASSES).samples


def counted(nets: Mapping[str, SPPNet], calls: list[str]) -> dict[str, Detector]:
    return {name: Counting(name, net, calls) for name, net in nets.items()}


def warmed(order: Sequence[str], sizes: Sequence[tuple[int, int]], nets: Mapping[str, SPPNet]) -> list[str]:
    """Return who is called: once more, without being counted, before maps of a size that the trunk has not seen."""
    calls, known = [], set()
    for name, size in zip(order, sizes, strict=True):
        config = nets[name].config
        scale = min(config.shorter / min(size), config.longest / max(size))
        padded = (name, *(-(-round(side * scale) // 32) for side in size))
        calls += [name, name] if padded not in known else [name]
        known.add(padded)
    return calls


def numbers(runs: Sequence[Run]) -> list[Any]:
    return [
        (
            run.racer, run.image_id, run.size, run.proposals, dict(run.stages), run.wall,
            run.detections.boxes.tolist(), run.detections.scores.tolist(), run.detections.labels.tolist(),
        )
        for run in runs
    ]  # fmt: skip


def test_everyone_runs_on_every_image_in_turn(nets: dict[str, SPPNet], samples: tuple[Sample, ...]) -> None:
    calls: list[str] = []
    runs = list(race(counted(nets, calls), SlidingWindows(max_boxes=60), samples, max_proposals=40))
    order = ["small", "large", "large", "small"] * 2
    assert calls == warmed(order, [run.size for run in runs], nets)
    assert [run.racer for run in runs] == order
    assert [run.image_id for run in runs] == [samples[n // 2].image_id for n in range(8)]
    for n, run in enumerate(runs):
        image = read_image(samples[n // 2].path)
        alone = nets[run.racer].predict(image, SlidingWindows(max_boxes=60)(image).top(40))
        assert torch.equal(run.detections.boxes, alone.boxes)
        assert torch.equal(run.detections.scores, alone.scores)
        assert len(alone) > 0
        assert run.detections.image is None
        assert (run.size, run.proposals) == (tuple(image.shape[1:]), 40)
        assert list(run.stages) == ["decode", "proposals", "conv", "pool", "fc", "select"]
        assert all(seconds > 0 for seconds in run.stages.values())
        assert run.seconds() <= run.wall
        assert run.seconds(proposals=False) == pytest.approx(
            run.seconds() - run.stages["decode"] - run.stages["proposals"]
        )


def test_a_race_goes_on_where_it_was_killed(
    nets: dict[str, SPPNet], samples: tuple[Sample, ...], tmp_path: Path
) -> None:
    path, calls, proposer = tmp_path / "race.jsonl", [], SlidingWindows(max_boxes=20)
    first = []
    for run in race(counted(nets, calls), proposer, samples, path):
        first.append(run)
        if len(first) == 3:
            break
    path.write_bytes(path.read_bytes() + b'["small half a li')  # the kill fell into a write
    calls.clear()
    runs = list(race(counted(nets, calls), proposer, samples, path))
    rest = runs[3:]
    assert calls == warmed([run.racer for run in rest], [run.size for run in rest], nets)
    assert len(rest) == 5
    assert numbers(runs[:3]) == numbers(first)
    calls.clear()
    assert numbers(list(race(counted(nets, calls), proposer, samples, path))) == numbers(runs)
    assert calls == []
    others = {**nets, "small": small_model(nets["small"].config, 77, tiny_trunk())}  # the same settings, other weights
    assert len(list(race(counted(others, calls), proposer, samples, path))) == 8
    assert calls == warmed([run.racer for run in runs], [run.size for run in runs], nets)


def run_of(racer: str, image: int, stages: dict[str, float], conv: float | None = None) -> Run:
    operations = None if conv is None else {"conv": conv, "fc": 1e9, "pool": 1e8}
    return Run(racer, f"photo{image}", (30, 40), 9, stages, sum(stages.values()) + 0.5, operations, NONE)


def test_speedups_are_medians_of_paired_ratios() -> None:
    """Ratios without proposals 10, 20 and 90; of the medians it would be 40 / 2 = 20 by luck, of the means 50."""
    slow = [
        run_of("rcnn", i, {"proposals": 1.0, "warp": 4.0, "conv": c}, 8e12) for i, c in enumerate((6.0, 36.0, 86.0))
    ]
    fast = [
        run_of("sppnet", i, {"proposals": 1.0, "conv": c, "fc": 0.5}, 1e11 * (i + 1))
        for i, c in enumerate((0.5, 1.5, 0.5))
    ]
    found = compare(fast[::-1], slow)  # pairs are made by name
    assert (found.conv_fc, found.conv_fc_quartiles) == (20, [15, 55])
    assert found.total == pytest.approx(np.median([11 / 2, 41 / 3, 91 / 2]))
    assert found.total_quartiles == pytest.approx(np.quantile([11 / 2, 41 / 3, 91 / 2], [0.25, 0.75]))
    assert found.limit == 40  # of 80, 40 and 26.7
    assert compare([run_of("sppnet", 0, {"conv": 1.0})], slow).limit is None


def test_times_are_medians_and_a_stage_that_was_not_needed_took_none() -> None:
    runs = [
        run_of("a", 0, {"decode": 0.1, "proposals": 0.2, "conv": 1.0, "extra": 2.0}),
        run_of("a", 1, {"decode": 0.3, "proposals": 0.4, "conv": 5.0, "pool": 1.0}),
        run_of("a", 2, {"decode": 0.2, "proposals": 0.6, "conv": 3.0, "pool": 3.0}),
    ]
    found = time_stages(runs)
    assert found.stages == {"decode": 0.2, "proposals": 0.4, "conv": 3.0, "pool": 1.0, "extra": 0.0}
    assert list(found.stages) == ["decode", "proposals", "conv", "pool", "extra"]
    assert found.quartiles["conv"] == [2, 4]
    assert found.total == pytest.approx(6.7)  # of 3.3, 6.7 and 6.8
    assert found.total_without_proposals == 6
    assert found.quartiles["total"] == pytest.approx([5.0, 6.75])
    assert found.unaccounted == pytest.approx(0.5)


def test_fractions_are_of_the_peak_of_the_engines_type() -> None:
    stages = {"conv": 0.5, "pool": 0.01, "fc": 0.02}
    runs = [run_of("a", i, {k: v * (i + 1) for k, v in stages.items()}, 2e10 * (i + 1)) for i in range(3)]
    for engine, peak in (("onednn", 1e11), ("onednn-bf16", 4e11)):
        report = summarize(runs, {"a": {"engine": engine}}, PEAKS)["detectors"]["a"]
        assert report["operations"] == {"conv": 4e10, "fc": 1e9, "pool": 1e8}
        expected = {"conv": 4e10 / peak, "fc": 1e9 / 0.04 / peak, "pool": 1e8 / 0.02 / 2e10}
        assert report["fractions"] == pytest.approx(expected)
    unknown = summarize([run_of("a", 0, stages)], {"a": {}}, PEAKS)["detectors"]["a"]
    assert (unknown["operations"], unknown["fractions"]) == (None, None)


def test_the_report_has_every_key_and_the_numbers_of_the_evaluators(
    nets: dict[str, SPPNet], samples: tuple[Sample, ...]
) -> None:
    runs = list(race(nets, SlidingWindows(max_boxes=100), samples))
    told = {name: describe_detector(net, "model") for name, net in nets.items()}
    truths = [sample.truth for sample in samples]
    report = json.loads(json.dumps(summarize(runs, told, PEAKS, "large", truths), allow_nan=False))
    assert list(report) == ["images", "detectors", "speedup", "speedups", "map_differences"]
    height, width = samples[1].truth.size
    assert report["images"][1] == {"image": samples[1].image_id, "height": height, "width": width, "proposals": 100}
    example = EXAMPLE["detectors"]["sppnet"]
    for name, row in report["detectors"].items():
        assert row.keys() == {*example, "unaccounted"}
        assert list(row["stages"]) == list(example["stages"])
        assert row["quartiles"].keys() == example["quartiles"].keys()
        assert (row["kind"], row["engine"], row["peak_memory_mb"]) == ("sppnet", "eager", None)
        own = [run.detections for run in runs if run.racer == name]
        assert row["map"]["voc07"] == voc_ap(own, truths, CLASSES).map
        assert (row["map"]["low"], row["map"]["high"]) == bootstrap_map(own, truths, CLASSES)
    assert [report["detectors"][name]["scales"] for name in nets] == [[112], [160]]
    assert report["speedups"].keys() == report["map_differences"].keys() == {"small"}
    assert report["speedups"]["small"].keys() == EXAMPLE["speedups"]["sppnet"].keys()
    assert report["speedup"] == {key: report["speedups"]["small"][key] for key in ("conv_fc", "total")}
    means = [report["detectors"][name]["map"]["voc07"] for name in ("small", "large")]
    difference = report["map_differences"]["small"]
    assert difference["difference"] == pytest.approx(means[0] - means[1])
    assert difference["low"] <= difference["high"]
    alone = summarize(runs, told, PEAKS)
    assert (alone["speedup"], alone["speedups"], alone["map_differences"]) == ({}, {}, {})
    assert alone["detectors"]["small"]["map"] is None
    assert describe_machine(measured=False).to_dict().keys() == EXAMPLE["machine"].keys()
