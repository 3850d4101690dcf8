"""Check that a detector comes back from its file as it was, and that other files are refused in one sentence."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from detector.checkpoints import FORMAT, list_models, load_detector, read_tensors, save_detector, save_tensors
from detector.config import Config
from detector.sppnet import SPPNet
from proposals.structures import Proposals

NAMES = ("cat", "Hündin", "boat")
JSON = ("5", "null", '"text"', '["a", ["b"]]', "true")  # neither settings nor a list of names
CONFIG = Config(shorter=96, longest=192, channels=8, hidden=16, min_score=0.0, seed=9)


@pytest.fixture(scope="module")
def model() -> SPPNet:
    with torch.random.fork_rng():
        torch.manual_seed(4)
        return SPPNet(CONFIG, NAMES)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "own.safetensors"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def contents(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(file, framework="pt") as opened:
        return {name: opened.get_tensor(name) for name in opened.keys()}, dict(opened.metadata())  # noqa: SIM118


def test_a_detector_comes_back_as_it_was_up_to_half_precision(model: SPPNet, file: Path) -> None:
    save_detector(model, file)
    loaded = load_detector(file)
    assert (loaded.config, loaded.class_names) == (CONFIG, NAMES)
    assert not loaded.training
    assert loaded.learned_state().keys() == model.learned_state().keys()
    for name, value in model.learned_state().items():
        assert loaded.learned_state()[name].dtype == torch.float32
        assert torch.equal(loaded.learned_state()[name], value.half().float())


def test_a_loaded_detector_predicts_what_the_saved_one_does(model: SPPNet, file: Path) -> None:
    """Save twice: after the first time the values are exact in half precision, so that not a bit may change."""
    save_detector(model, file)
    first = load_detector(file)
    save_detector(first, file)
    second = load_detector(str(file))
    assert first.fingerprint() == second.fingerprint()
    image = torch.randint(0, 256, (3, 60, 100), dtype=torch.uint8)
    boxes = torch.tensor([[0.0, 0, 100, 60], [10, 20, 50, 55], [60, 5, 99, 40]])
    one, other = first.predict(image, Proposals(boxes)), second.predict(image, Proposals(boxes))
    assert len(one) > 0
    assert torch.equal(one.boxes, other.boxes)
    assert torch.equal(one.scores, other.scores)


def test_a_file_holds_the_learned_layers_and_what_it_takes_to_use_them(model: SPPNet, file: Path) -> None:
    save_detector(model, file, {"note": "trained on nothing"})
    tensors, metadata = contents(file)
    assert set(tensors) == set(model.learned_state())
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    assert json.loads(metadata["config"]) == CONFIG.to_dict()
    assert json.loads(metadata["class_names"]) == list(NAMES)
    assert (metadata["format"], metadata["trunk"], metadata["note"]) == (FORMAT, CONFIG.trunk, "trained on nothing")
    assert metadata["version"]
    assert file.stat().st_size < 2.2 * sum(p.numel() for p in model.learned_state().values()) + 8192


def test_tensors_of_any_kind_and_layout_come_back(file: Path) -> None:
    tensors = {
        "a.b": torch.randn(3, 4).T,
        "half": torch.randn(5).half(),
        "long": torch.arange(7)[::2],
        "none": torch.zeros(0, 4),
        "learned": torch.nn.Parameter(torch.randn(2)),
    }
    save_tensors(tensors, file, {"key": "ä"})
    loaded, metadata = read_tensors(file)
    assert metadata == {"key": "ä"}
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)


def test_what_cannot_be_written_leaves_the_old_file_and_no_other(file: Path) -> None:
    """Give two names to one storage, which the format does not have."""
    save_tensors({"a": torch.ones(3)}, file, {})
    shared = torch.zeros(3)
    with pytest.raises(RuntimeError, match="share memory"):
        save_tensors({"a": shared, "b": shared}, file, {})
    assert torch.equal(read_tensors(file)[0]["a"], torch.ones(3))
    assert names(file.parent) == [file.name]


@pytest.mark.parametrize("content", ["", "text", "half", "no tail", "header only"])
def test_damaged_files_are_named_in_one_sentence(model: SPPNet, file: Path, content: str) -> None:
    save_detector(model, file)
    whole = file.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    pieces = {"": b"", "text": b"not a model\n" * 20, "half": whole[: len(whole) // 2], "no tail": whole[:-1]}
    file.write_bytes(pieces.get(content, whole[:header]))
    with pytest.raises(ValueError, match=r"own\.safetensors: expected a whole safetensors file, got ") as caught:
        load_detector(file)
    assert "\n" not in str(caught.value)


def without(values: dict[str, Any], key: str) -> dict[str, Any]:
    return {k: v for k, v in values.items() if k != key}


def changed(model: SPPNet, file: Path, what: str) -> None:
    """Write a whole safetensors file that is not a detector of ours, or not quite."""
    save_detector(model, file)
    tensors, metadata = contents(file)
    first = sorted(tensors)[0]
    if what == "no metadata":
        save_file(tensors, file)
        return
    wider = {**CONFIG.to_dict(), "hidden": 17}
    cases: dict[str, tuple[dict[str, Tensor], dict[str, str]]] = {
        "another format": (tensors, {**metadata, "format": "sppnet-0"}),
        "no format": (tensors, without(metadata, "format")),
        "no config": (tensors, without(metadata, "config")),
        "no classes": (tensors, without(metadata, "class_names")),
        "config is text": (tensors, {**metadata, "config": "shorter: 5"}),
        "unknown setting": (tensors, {**metadata, "config": json.dumps({**CONFIG.to_dict(), "wings": 2})}),
        "missing layer": (without(tensors, first), metadata),
        "other shape": (tensors, {**metadata, "config": json.dumps(wider)}),
        "other classes": (tensors, {**metadata, "class_names": json.dumps(NAMES[:2])}),
        "unknown trunk": (tensors, {**metadata, "config": json.dumps({**CONFIG.to_dict(), "trunk": "lenet"})}),
        "unknown layer": (tensors, {**metadata, "config": json.dumps({**CONFIG.to_dict(), "layers": ["blocks.9"]})}),
        "wrong type": (tensors, {**metadata, "config": json.dumps({**CONFIG.to_dict(), "hidden": "many"})}),
        "out of range": (tensors, {**metadata, "config": json.dumps({**CONFIG.to_dict(), "nms": 2})}),
        **{f"config is {text}": (tensors, {**metadata, "config": text}) for text in JSON},
        **{
            f"classes are {text}": (tensors, {**metadata, "class_names": text})
            for text in (*JSON, "{}", "[]", "[1, 2]")
        },
    }
    changed_tensors, changed_metadata = cases[what]
    save_file(changed_tensors, file, changed_metadata)


@pytest.mark.parametrize(
    "what",
    [
        "no metadata",
        "another format",
        "no format",
        "no config",
        "no classes",
        "config is text",
        "unknown setting",
        "missing layer",
        "other shape",
        "other classes",
        "unknown trunk",
        "unknown layer",
        "wrong type",
        "out of range",
        *[f"config is {text}" for text in JSON],
        *[f"classes are {text}" for text in (*JSON, "{}", "[]", "[1, 2]")],
    ],
)
def test_foreign_files_are_named_in_one_sentence(model: SPPNet, file: Path, what: str) -> None:
    changed(model, file, what)
    with pytest.raises(ValueError, match=r"own\.safetensors: expected .*, got ") as caught:
        load_detector(file)
    assert "\n" not in str(caught.value)


def test_missing_files_and_unknown_names_are_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"gone\.safetensors: expected a safetensors file, got nothing there"):
        load_detector(tmp_path / "gone.safetensors")
    with pytest.raises(ValueError, match=r"^expected a model among .* or a \.safetensors file, got nonsense$"):
        load_detector("nonsense")


def test_learned_layers_are_not_mixed_up(model: SPPNet, file: Path) -> None:
    """Tell the values of every layer apart by its number."""
    marked = SPPNet(dataclasses.replace(CONFIG, seed=1), NAMES, model.trunk)
    with torch.no_grad():
        for number, value in enumerate(marked.learned_state().values()):
            value.fill_(number)
    save_detector(marked, file)
    for number, value in enumerate(load_detector(file).learned_state().values()):
        assert bool((value == number).all())


def test_the_models_that_ship_are_listed_and_load() -> None:
    for name in list_models():
        detector = load_detector(name)
        assert len(detector.class_names) > 0
        assert all(bool(torch.isfinite(value).all()) for value in detector.learned_state().values())
