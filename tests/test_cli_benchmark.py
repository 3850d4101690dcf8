"""Check `sppnet benchmark`: what it writes, how it continues, and what it says of mistakes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from detector.checkpoints import build_detector, save_detector
from detector.cli import main
from tests.toy import CLASSES, SMALL, TOY, small_model

STAGES = {"decode", "proposals", "conv", "pool", "fc", "select"}
RCNN = dataclasses.replace(SMALL, detector="rcnn", region_mean=False)


def benchmark(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["benchmark", *map(str, arguments)])


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return the options that name a small SPP-net and a small R-CNN with random weights."""
    folder = tmp_path_factory.mktemp("models")
    save_detector(small_model(), folder / "spp.safetensors")
    with torch.random.fork_rng():
        torch.manual_seed(2)
        save_detector(build_detector(RCNN, CLASSES), folder / "rcnn.safetensors")
    return ["--model", str(folder / "spp.safetensors"), "--rcnn", str(folder / "rcnn.safetensors")]


@pytest.mark.slow
def test_a_race_on_annotated_photos(models: list[str], tmp_path: Path) -> None:
    few = ["--data", TOY, "--images", "2", "--max-proposals", "30", "--proposals", "single"]
    result = benchmark(*models, *few, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "out" / "benchmark.json").read_text())
    assert found["format"] == "sppnet-benchmark-1"
    assert list(found["detectors"]) == ["sppnet", "sppnet-5scale", "rcnn"]
    assert found["detectors"]["sppnet-5scale"]["scales"] == [480, 576, 688, 864, 1200]
    assert [image["proposals"] for image in found["images"]] == [30, 30]
    for name, detector in found["detectors"].items():
        assert set(detector["stages"]) == (STAGES | {"warp"} if name == "rcnn" else STAGES)
        assert detector["total"] > detector["total_without_proposals"] > 0
        assert detector["kind"] == name.partition("-")[0]
        assert 0 <= detector["map"]["low"] <= detector["map"]["voc07"] <= detector["map"]["high"] <= 1
        assert 100 < detector["peak_memory_mb"] < 20_000
        assert detector["operations"]["conv"] > 0
        assert name in result.stdout
    assert set(found["speedup"]) == {"conv_fc", "total"}
    assert set(found["speedups"]) == set(found["map_differences"]) == {"sppnet", "sppnet-5scale"}
    assert found["settings"]["baseline"] == "rcnn"
    assert found["machine"]["gemm_gflops"].keys() == {"float32", "bfloat16"}
    with Image.open(tmp_path / "out" / "benchmark.png") as picture:
        assert min(picture.size) > 300
    page = (tmp_path / "out" / "report.html").read_text()
    assert "sppnet-5scale" in page
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "benchmark.json",
        "benchmark.png",
        "report.html",
    ]


@pytest.mark.slow
def test_a_sweep_of_proposals(models: list[str], tmp_path: Path) -> None:
    some = ["--data", TOY, "--images", "1", "--detectors", "sppnet", "--no-memory", "--sweep", "proposals"]
    result = benchmark(*models, *some, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    swept = json.loads((tmp_path / "out" / "benchmark.json").read_text())["sweep"]
    assert (swept["kind"], swept["values"]) == ("proposals", [100, 200, 500, 1000, 2000, 4000])
    assert swept["regions"] == sorted(swept["regions"])
    assert swept["regions"][0] == 100
    assert len(swept["detectors"]["sppnet"]["conv"]) == 6
    assert all(value > 0 for value in swept["detectors"]["sppnet"]["total"])
    assert (tmp_path / "out" / "sweep.png").is_file()


def test_without_photos_it_takes_those_of_scikit_image(models: list[str]) -> None:
    result = benchmark(
        *models, "--detectors", "sppnet", "--proposals", "windows", "--max-proposals", "20", "--no-memory"
    )
    assert result.exit_code == 0, result.output
    assert "3 photos that scikit-image installs: a small sample; " in result.stderr
    assert "times as fast" not in result.stdout, "there is nothing to compare with"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--detectors", "sppnet,yolo"], "--detectors: expected names among sppnet, sppnet-5scale, rcnn, each once"),
        (["--detectors", "sppnet,sppnet"], "each once, got sppnet, sppnet"),
        (["--engine", "fast"], "expected an engine among auto, eager, "),
        (["nowhere.jpg"], "nowhere.jpg: expected an image"),
        (["x.jpg", "--data", "voc:a:b"], "expected photos or --data, got both"),
        (["--data", "voc:nowhere:test"], "nowhere"),
    ],
)
def test_mistakes_are_told_in_a_sentence(models: list[str], arguments: list[str], message: str) -> None:
    result = benchmark(*models, *arguments)
    assert result.exit_code in (1, 2)
    assert message in result.stderr
    assert "Traceback" not in result.output


def test_models_that_do_not_fit_are_refused(models: list[str]) -> None:
    result = benchmark("--model", models[3], "--detectors", "sppnet")
    assert "expected a detector of kind sppnet, got rcnn" in result.stderr
    result = benchmark("--model", models[1], "--detectors", "rcnn")
    assert "--rcnn: expected the R-CNN that belongs to " in result.stderr
