"""Check that classifiers survive the disk, and that files that are none are refused in one sentence."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from detector.checkpoints import list_models, load_detector, read_tensors, save_tensors
from detector.classification import Classifier
from detector.classifier_config import ClassifierConfig
from detector.classifier_files import FORMAT, list_classifiers, load_classifier, save_classifier

CONFIG = ClassifierConfig(trunk="small", pretrained=False, side=32, head="fc", hidden=8)
NAMES = ("cat", "dog")


def saved(path: Path, config: ClassifierConfig = CONFIG) -> Classifier:
    """Write a classifier with random layers; return it."""
    torch.manual_seed(6)
    model = Classifier(config, NAMES, multi_label=True)
    for parameter in model.learned_parameters().values():
        nn.init.normal_(parameter, std=0.1)
    save_classifier(model, path)
    return model


@pytest.mark.parametrize("learn", ["head", "all"])
def test_a_classifier_comes_back_as_it_was(learn: str, tmp_path: Path) -> None:
    model = saved(tmp_path / "a.safetensors", replace(CONFIG, learn=learn))
    again = load_classifier(tmp_path / "a.safetensors", engine="eager")
    assert (again.config, again.class_names, again.multi_label) == (model.config, NAMES, True)
    assert any(name.startswith("trunk.") for name in again.learned_state()) == (learn == "all")
    for name, value in model.learned_state().items():
        assert torch.equal(again.learned_state()[name], value.half().float())
    image = torch.randint(256, (3, 40, 56), dtype=torch.uint8)
    torch.testing.assert_close(again.predict(image).scores, model.predict(image).scores, rtol=0, atol=5e-3)


def test_the_frozen_trunk_is_not_in_the_file(tmp_path: Path) -> None:
    saved(tmp_path / "a.safetensors")
    tensors, metadata = read_tensors(tmp_path / "a.safetensors")
    assert not any(name.startswith("trunk.") for name in tensors)
    assert metadata["format"] == FORMAT


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected a classifier among .* or a \.safetensors file, got nonsense"):
        load_classifier("nonsense")
    with pytest.raises(FileNotFoundError, match=r"gone.safetensors: expected a safetensors file"):
        load_classifier(tmp_path / "gone.safetensors")
    with pytest.raises(
        ValueError, match=f"voc-lite0.safetensors: expected a classifier of format {FORMAT}, got sppnet"
    ):
        load_classifier("voc-lite0")
    saved(tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="expected a detector of format sppnet-1, got sppnet-classifier-1"):
        load_detector(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("class_names", "[]", "expected a list of names as class_names"),
        ("class_names", '["cat", "dog", "owl"]', "expected the layers that its config describes"),
        ("multi_label", '"yes"', "true or false as multi_label"),
        ("config", "{", "expected config, class_names and multi_label as JSON"),
        ("config", '{"trunk": "small", "pretrained": false, "colour": 1}', "expected settings among trunk, layer"),
        ("config", '{"trunk": "big"}', "expected a trunk among"),
    ],
)
def test_damaged_metadata_are_refused_by_the_files_name(field: str, value: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    saved(path)
    tensors, metadata = read_tensors(path)
    save_tensors(tensors, path, metadata | {field: value})
    with pytest.raises(ValueError, match=f"a.safetensors: .*{message}"):
        load_classifier(path)


def test_shipped_classifiers_are_listed_apart_from_detectors() -> None:
    assert "voc-lite0-classifier" in list_classifiers()
    assert not set(list_classifiers()) & set(list_models())
    assert "voc-lite0" in list_models()
