"""Check that the presets are what the paper and its released code say, and what wins over what."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from detector.config import Config, load_config
from detector.presets import PRESETS, preset
from tests.sources import REPOSITORY

# He et al. 2015, section 4.1, and where it is silent the authors' spp_finetune_voc.m and pascal_finetune_fc_spm_solver.
# 128 windows are 4 photos of 32 here; `learn` of fc is "only the fc layers".
SAID: dict[str, Any] = {
    "learn": "fc", "optimizer": "sgd", "weight_decay": 0.0005, "positive_fraction": 0.25, "positive_iou": 0.5,
    "negative_iou": (0.1, 0.5), "random_scale": True, "flip": True, "dropout": 0.5, "repeat_below": 0.0, "average": 0.0,
    "box_weight": 0.0, "images_per_batch": 4, "regions_per_image": 32,
}  # fmt: skip
RATES: dict[str, dict[str, Any]] = {
    "paper": {"learning_rate": 0.0001, "rate_drops": (250_000 / 300_000,)},
    "code": {"learning_rate": 0.001, "rate_drops": (30_000 / 90_000, 60_000 / 90_000)},
}
RECIPES = [None, *(f"paper-{trunk}" for trunk in ("zf5", "alexnet", "vgg16", "lite0"))]


@pytest.mark.parametrize("name", ["paper", "code"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_preset_is_what_its_source_says_with_every_recipe(recipe: str | None, name: str) -> None:
    path = REPOSITORY / "configs" / f"{recipe}.yaml" if recipe else None
    config = load_config(path, [], preset(name))
    expected = SAID | RATES[name]
    got = {key: getattr(config, key) for key in expected}
    assert got.pop("rate_drops") == pytest.approx(expected.pop("rate_drops"), rel=1e-12)
    assert got == expected
    assert config.images_per_batch * config.regions_per_image == 128
    if path:  # and the recipe keeps what it says itself
        written = yaml.safe_load(path.read_text(encoding="utf-8"))
        read = config.to_dict()
        assert {key: read[key] for key in written} == written


def test_presets_leave_all_other_settings_as_they_are() -> None:
    assert set(PRESETS) == set(RATES)
    for name in PRESETS:
        assert preset(name).keys() == SAID.keys() | RATES[name].keys()
        changed = {k for k, v in load_config(None, [], preset(name)).to_dict().items() if v != Config().to_dict()[k]}
        assert changed <= preset(name).keys()


def test_a_file_wins_over_a_preset_and_an_override_over_both(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("dropout: 0.25\nlearning_rate: 0.5\n")
    config = load_config(path, ["learning_rate=0.75", "flip=false"], preset("code"))
    assert (config.weight_decay, config.dropout, config.learning_rate, config.flip) == (0.0005, 0.25, 0.75, False)
    assert load_config(path, [], preset("code")).learning_rate == 0.5
    assert load_config(None, [], preset("code")).dropout == 0.5
    assert load_config(path, []).weight_decay == Config().weight_decay


def test_what_a_caller_changes_stays_with_him() -> None:
    mine = preset("code")
    mine["learning_rate"] = 7.0
    assert preset("code")["learning_rate"] == 0.001


@pytest.mark.parametrize("name", ["", "Paper", "spp"])
def test_an_unknown_preset_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"expected a preset among paper, code, got '{name}'"):
        preset(name)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("learn=head", "expected a learn among all, fc, got 'head'"),
        ("optimizer=adam", "expected a optimizer among adamw, sgd"),
        ("rate_drops=[0.6, 0.3]", "expected rate_drops in (0, 1), ascending, got (0.6, 0.3)"),
        ("rate_drops=[0.0]", "expected rate_drops in (0, 1), ascending"),
        ("rate_drops=[1.0]", "expected rate_drops in (0, 1), ascending"),
        ("rate_drops=0.5", "expected a list for rate_drops"),
        ("random_scale=2", "expected bool for random_scale"),
        ("region_mean=true", "expected learn=all for rcnn and with region_mean"),
        ("detector=rcnn", "expected learn=all for rcnn and with region_mean"),
    ],
)
def test_wrong_settings_beside_a_preset_are_refused_by_name(setting: str, message: str) -> None:
    with pytest.raises(ValueError) as error:
        load_config(None, [setting], preset("paper"))
    assert f"--set {setting}: {message}" in str(error.value)
