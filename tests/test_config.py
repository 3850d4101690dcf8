"""Check how settings are read, and that nothing wrong in them passes in silence."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from detector.classifier_config import ClassifierConfig
from detector.config import Config, config_from_dict, load_config, load_settings

OTHER = Config(
    trunk="resnet18",
    layers=("layer3", "layer4"),
    shorter=480,
    levels=(4, 2, 1),
    negative_iou=(0.0, 0.3),
    flip=not Config().flip,
    learning_rate=0.00025,
    seed=17,
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "own.yaml"


@pytest.mark.parametrize("config", [Config(), OTHER], ids=["defaults", "others"])
def test_settings_survive_json_and_yaml(config: Config, file: Path) -> None:
    values = config.to_dict()
    assert config_from_dict(json.loads(json.dumps(values)), "here") == config
    file.write_text(yaml.safe_dump(values), encoding="utf-8")
    assert load_config(file) == config
    assert load_config(file).to_dict() == values
    assert list(values) == [field.name for field in dataclasses.fields(Config)]


def test_every_setting_is_documented() -> None:
    words = (Config.__doc__ or "").replace(",", " ").replace(":", " ").split()
    missing = {field.name for field in dataclasses.fields(Config)} - set(words)
    assert missing <= {"learning_rate", "weight_decay", "box_weight", "seed"}, "whose names say it all"


def test_nothing_given_gives_the_defaults(file: Path) -> None:
    file.write_text("# nothing\n", encoding="utf-8")
    assert load_config(None) == load_config(file) == config_from_dict({}, "here") == Config()


def test_overrides_win_over_the_file_and_the_file_over_defaults(file: Path) -> None:
    file.write_text("shorter: 500\nseed: 4\n", encoding="utf-8")
    config = load_config(file, ["seed=5", "hidden = 64", "seed=6"])
    assert (config.shorter, config.seed, config.hidden) == (500, 6, 64)
    assert config == dataclasses.replace(Config(), shorter=500, seed=6, hidden=64)


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("learning_rate=5e-4", "learning_rate", 5e-4),
        ("weight_decay=0", "weight_decay", 0.0),
        ("levels=[6, 2]", "levels", (6, 2)),
        ("layers=[blocks.4]", "layers", ("blocks.4",)),
        ("negative_iou=[0, 0.4]", "negative_iou", (0.0, 0.4)),
        ("flip=false", "flip", False),
        ("trunk=alexnet", "trunk", "alexnet"),
        ("epochs=3", "epochs", 3),
    ],
)
def test_overrides_are_read_as_their_settings_want(text: str, name: str, value: object) -> None:
    found = getattr(load_config(None, [text]), name)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("text", ["shortr=5", "Shorter=5", "=5", "shorter.x=5", "lr=1"])
def test_unknown_overrides_are_refused_by_name(text: str) -> None:
    name = text.partition("=")[0]
    with pytest.raises(ValueError, match=rf"^--set {text}: expected settings among detector, trunk, .*, got {name}$"):
        load_config(None, [text])


def test_unknown_keys_of_a_file_are_refused_by_name(file: Path) -> None:
    file.write_text("shorter: 500\nshortr: 4\n7: 8\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"own\.yaml: expected settings among .*shorter.*, got shortr, 7$"):
        load_config(file)


WRONG_TYPES: list[tuple[str, Any]] = [
    ("shorter", "big"),
    ("shorter", 5.5),
    ("shorter", True),
    ("shorter", None),
    ("shorter", [5]),
    ("flip", 1),
    ("flip", "yes"),
    ("trunk", 5),
    ("nms", "high"),
    ("nms", True),
    ("levels", 6),
    ("levels", []),
    ("levels", ["six"]),
    ("levels", [6, 1.5]),
    ("layers", "blocks.4"),
    ("negative_iou", [0.1]),
    ("negative_iou", [0.1, 0.2, 0.3]),
    ("negative_iou", {"low": 0.1}),
]


@pytest.mark.parametrize(("name", "value"), WRONG_TYPES)
def test_wrong_types_are_refused_by_name(name: str, value: object, file: Path) -> None:
    with pytest.raises(ValueError, match=rf"^here: expected .* for {name}, got "):
        config_from_dict({name: value}, "here")
    file.write_text(yaml.safe_dump({name: value}), encoding="utf-8")
    with pytest.raises(ValueError, match=rf"own\.yaml: expected .* for {name}, got "):
        load_config(file)
    with pytest.raises(ValueError, match=rf"^--set .*: expected .* for {name}, got "):
        load_config(None, [f"{name}={json.dumps(value)}"])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[(n, 0) for n in ("shorter", "longest", "channels", "hidden", "max_proposals", "epochs", "images_per_batch")],
        *[(n, 1.01) for n in ("positive_fraction", "positive_iou", "dropout", "average", "nms", "vote", "min_score")],
        *[(n, -0.01) for n in ("positive_fraction", "dropout", "average", "nms", "vote", "min_score")],
        *[(n, v) for n in ("holdout", "repeat_below", "readable_score") for v in (-0.01, 1.01)],
        ("a rank_prior", -1),
        *[("a C", value) for value in (0, -1.0, float("inf"), float("nan"))],
        ("nms", float("nan")),
        ("regions_per_image", 1),
        ("negative_iou", [0.4, 0.2]),
        ("negative_iou", [-0.1, 0.2]),
        ("negative_iou", [0.1, 0.9]),
    ],
)
def test_values_out_of_range_are_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"expected {name} .*, got "):
        config_from_dict({name.split()[-1]: value}, "here")


def test_settings_that_fit_each_other_only_together_may_be_given_in_any_order(file: Path) -> None:
    pair = ["positive_iou=0.3", "negative_iou=[0.1, 0.3]"]
    for overrides in (pair, pair[::-1]):
        config = load_config(None, overrides)
        assert (config.positive_iou, config.negative_iou) == (0.3, (0.1, 0.3))
    file.write_text("positive_iou: 0.3\n", encoding="utf-8")
    assert load_config(file, pair[1:]) == config
    with pytest.raises(ValueError, match=r"own\.yaml: expected negative_iou as 0 <= low < high <= positive_iou, got "):
        load_config(file)


@pytest.mark.parametrize("text", ["shorter", "", "5"])
def test_overrides_without_a_value_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=rf"^--set: expected key=value, got '{text}'$"):
        load_config(None, [text])


def test_overrides_that_are_no_yaml_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^--set levels=\[6,: expected a YAML value after `=`$"):
        load_config(None, ["levels=[6,"])


@pytest.mark.parametrize("content", [b"shorter: [5\n", b"a: b: c\n", b"\xff\xfe\x00", b"- shorter\n", b"just words\n"])
def test_files_that_are_no_settings_are_named(content: bytes, file: Path) -> None:
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"own\.yaml: expected (YAML|`key: value` lines), got ") as caught:
        load_config(file)
    assert "\n" not in str(caught.value)


def test_yaml_cannot_run_code(file: Path) -> None:
    file.write_text("shorter: !!python/object/apply:os.getpid []\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"own\.yaml: expected YAML, got "):
        load_config(file)


def test_the_recipes_that_come_with_the_source_can_be_read() -> None:
    folder = Path(__file__).resolve().parent.parent / "configs"
    kinds = [(path, Config) for path in folder.glob("*.yaml")]
    kinds += [(path, ClassifierConfig) for path in (folder / "classify").glob("*.yaml")]
    assert {kind for _, kind in kinds} == {Config, ClassifierConfig}
    for path, kind in kinds:
        written = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        read = load_settings(path, (), kind).to_dict()
        assert {key: read[key] for key in written} == written


# What He et al. 2015 say of detection (section 4, appendix A), and what turns off that which they do not have.
PAPER: dict[str, Any] = {
    "detector": "sppnet", "scales": (), "scale_rule": "area", "projection": "paper",
    "levels": (6, 3, 2, 1), "positive_fraction": 0.25, "positive_iou": 0.5, "negative_iou": (0.1, 0.5), "nms": 0.3,
    "max_proposals": 2000, "proposals": "fast", "cascade": 0, "rank_prior": 0.0, "vote": 1.0, "region_mean": False,
    "repeat_below": 0.0, "average": 0.0, "weights": "",
}  # fmt: skip
# Name of a recipe -> trunk, layers, whether its weights are published, channels, hidden units and the shorter side, the
# paper's 688 or that of the shipped model.
PAPER_TRUNKS: dict[str, tuple[Any, ...]] = {
    "zf5": ("zf5", (), False, 256, 4096, 688),
    "alexnet": ("alexnet", (), True, 256, 4096, 688),
    "vgg16": ("vgg16", (), True, 512, 4096, 688),
    "lite0": ("efficientnet_lite0", ("blocks.4", "blocks.6"), True, 64, 1024, 576),
}


def test_the_paper_s_recipes_have_its_values() -> None:
    folder = Path(__file__).resolve().parent.parent / "configs"
    assert {path.stem for path in folder.glob("paper-*.yaml")} == {f"paper-{name}" for name in PAPER_TRUNKS}
    for name, expected in PAPER_TRUNKS.items():
        path = folder / f"paper-{name}.yaml"
        config = load_config(path)
        assert {key: getattr(config, key) for key in PAPER} == PAPER
        got = (config.trunk, config.layers, config.pretrained, config.channels, config.hidden, config.shorter)
        assert got == expected
        text = path.read_text(encoding="utf-8")
        (five,) = (line for line in text.splitlines() if "scales: [" in line)
        assert load_config(path, [f"scales={five.partition('scales: ')[2]}"]).scales == (480, 576, 688, 864, 1200)
        assert config.longest >= 2 * config.shorter, "no photo of usual aspect may be cut short"


def test_another_trunk_has_its_usual_layers_unless_some_are_named() -> None:
    assert load_config(None, ["trunk=resnet18"]).layers == ()
    assert load_config(None, ["trunk=resnet18", "layers=[layer3]"]).layers == ("layer3",)
    assert load_config(None, ["trunk=efficientnet_lite1"]).layers == Config().layers
    config = load_config(None, ["trunk=resnet18"])
    assert config_from_dict(config.to_dict(), "a checkpoint") == config
