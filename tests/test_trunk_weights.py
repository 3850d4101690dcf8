"""Check where trunks take their weights from: a seed, a file or the published ones, and that caches tell them apart."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from detector.backbones import build_trunk
from detector.checkpoints import build_detector, load_detector, save_detector
from detector.classification import Classifier
from detector.classifier_config import ClassifierConfig
from detector.classifier_files import load_classifier, save_classifier
from detector.classifier_training import LookExtractor
from detector.cli import main
from detector.config import Config
from detector.crops import CropCaches
from detector.features import Extractor, settings_key
from detector.networks import ZF5, SmallNet, randomise
from detector.rcnn import RCNN
from proposals.registry import make_proposer
from proposals.store import ProposalStore
from tests.test_backbones import pixels, with_lived_in_norms
from tests.toy import CLASSES, SMALL, TOY, tiny_trunk, toy_samples

TINY = dataclasses.replace(SMALL, trunk="small", layers=(), pretrained=False)


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def other_small(path: Path) -> SmallNet:
    """Write weights of the small network that are not its usual random ones; return it."""
    model = SmallNet()
    randomise(model, seed=7)
    save_file(model.state_dict(), path)
    return model


def same(first: nn.Module, second: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_lite0"])
def test_random_weights_depend_on_the_seed_alone(name: str) -> None:
    torch.manual_seed(1)
    drawn = torch.rand(3)
    torch.manual_seed(1)
    first = build_trunk(name, pretrained=False, seed=4)
    assert torch.equal(torch.rand(3), drawn), "the global generator must not be touched"
    assert same(first, build_trunk(name, pretrained=False, seed=4))
    other = build_trunk(name, pretrained=False, seed=5)
    assert not same(first, other)
    assert (first.origin, other.origin) == ("random 4", "random 5")
    torch.manual_seed(4)
    theirs = timm.create_model(f"tf_{name}") if name.startswith("eff") else torchvision.models.get_model(name)
    fresh = [m.weight for m in theirs.modules() if isinstance(m, nn.Conv2d)]
    ours = [m.weight for m in first.modules() if isinstance(m, nn.Conv2d)]
    for weight, folded in zip(fresh, ours, strict=True):  # a fresh norm divides by sqrt(1 + eps) only
        torch.testing.assert_close(folded, weight, rtol=1e-3, atol=0)


def test_networks_of_this_package_have_a_seed_of_their_own() -> None:
    for name, model in (("zf5", ZF5()), ("small", SmallNet())):
        trunk = build_trunk(name, pretrained=False, seed=9)
        assert same(trunk.model, model)
        assert trunk.origin == build_trunk(name, pretrained=False, seed=8).origin == "random 0"


@pytest.mark.parametrize("pretrained", [True, False])
def test_a_file_gives_a_network_of_this_package_its_weights(pretrained: bool, tmp_path: Path) -> None:
    file = tmp_path / "mine.safetensors"
    model = other_small(file)
    trunk = build_trunk("small", pretrained=pretrained, weights=file)
    assert same(trunk.model, model)
    assert trunk.origin == hashlib.sha256(file.read_bytes()).hexdigest()[:16]
    assert trunk.with_model(SmallNet()).origin == trunk.origin
    save_file({**model.state_dict(), "fc6.weight": torch.zeros(2, 2)}, file)
    with pytest.raises(
        ValueError, match=r"mine\.safetensors: expected weights of conv1.* alone, got fc6\.weight as well$"
    ):
        build_trunk("small", weights=file)
    with pytest.raises(ValueError, match=r"^expected pretrained=False .*--set pretrained=false or --set weights=FILE"):
        build_trunk("zf5")


def test_a_file_gives_a_torchvision_network_its_weights(tmp_path: Path) -> None:
    """Write a model's state, whole and cut behind the last tap: the trunk computes what the unfolded model does."""
    model = with_lived_in_norms(torchvision.models.resnet18()).float()
    whole, image = state(model), pixels((64, 96))
    needed = ("conv1.", "bn1.", "layer1.", "layer2.", "layer3.")
    cut = {k: v for k, v in whole.items() if k.startswith(needed) and not k.endswith("num_batches_tracked")}
    for tensors, tolerance in ((whole, 1e-3), (cut, 1e-3), ({k: v.half() for k, v in cut.items()}, 2e-2)):
        save_file(tensors, tmp_path / "mine.safetensors")
        trunk = build_trunk("resnet18", ("layer3",), weights=str(tmp_path / "mine.safetensors"))
        with torch.inference_mode():
            x = model.maxpool(model.relu(model.bn1(model.conv1(trunk.normalise(image)))))  # type: ignore[operator]
            expected = model.layer3(model.layer2(model.layer1(x)))  # type: ignore[operator]
            atol = tolerance * float(expected.abs().max())
            torch.testing.assert_close(trunk(image)[0], expected, rtol=tolerance, atol=atol)
        assert trunk.origin == hashlib.sha256((tmp_path / "mine.safetensors").read_bytes()).hexdigest()[:16]


def test_a_file_gives_a_timm_network_its_weights(tmp_path: Path) -> None:
    model = with_lived_in_norms(timm.create_model("tf_efficientnet_lite0")).float()
    save_file(state(model), tmp_path / "mine.safetensors")
    trunk = build_trunk("efficientnet_lite0", ("blocks.4",), weights=tmp_path / "mine.safetensors")
    with torch.inference_mode():
        x = trunk.normalise(pixels((64, 96)))
        expected = model.blocks[:5](model.bn1(model.conv_stem(x)))  # type: ignore[index, operator]
        torch.testing.assert_close(trunk.maps(x)[0], expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


def test_files_that_do_not_fit_are_refused_by_name(tmp_path: Path) -> None:
    file, whole = tmp_path / "bad.safetensors", state(torchvision.models.resnet18())
    with pytest.raises(
        FileNotFoundError, match=r"bad\.safetensors: expected .* of the trunk resnet18, got nothing there$"
    ):
        build_trunk("resnet18", weights=file)
    file.write_bytes(b"not tensors at all")
    with pytest.raises(ValueError, match=r"bad\.safetensors: expected a whole safetensors file, got a damaged one"):
        build_trunk("resnet18", weights=file)
    missing = "layer4.1.bn2.running_var"
    save_file({name: value for name, value in whole.items() if name != missing}, file)
    with pytest.raises(ValueError, match=rf"^\S+bad\.safetensors: expected {missing} of shape \(512,\), got nothing$"):
        build_trunk("resnet18", weights=file)
    assert build_trunk("resnet18", ("layer3",), weights=file).taps[0].channels == 256
    save_file({**whole, "conv1.weight": torch.zeros(64, 3, 3, 3)}, file)
    with pytest.raises(ValueError, match=r"expected conv1\.weight of shape \(64, 3, 7, 7\), got \(64, 3, 3, 3\)$"):
        build_trunk("resnet18", ("layer3",), weights=file)


def test_caches_of_published_weights_keep_their_names(tmp_path: Path) -> None:
    """Compare with the folders that versions without these settings made."""
    config = Config()
    extractor = Extractor(build_trunk(config.trunk, config.layers), config.shorter, config.longest)
    assert settings_key(extractor.settings) == "ed93937d91b22ccc"
    looks = LookExtractor(Classifier(ClassifierConfig(), ("a", "b"), False))
    assert settings_key(looks.settings) == "ebad70e41ed97af9"
    crops = CropCaches(ProposalStore(tmp_path, make_proposer("fast")), RCNN(Config(detector="rcnn"), CLASSES), tmp_path)
    assert crops.path(toy_samples()[0]).parent.name == "36b71ae0e7d883bf"


def test_caches_tell_weights_apart(tmp_path: Path) -> None:
    keys = set()
    for origin in ("", "random 0", "random 1", "0123456789abcdef"):
        trunk = tiny_trunk(2)
        trunk.origin = origin
        config = dataclasses.replace(SMALL, detector="rcnn", region_mean=False)
        crops = CropCaches(ProposalStore(tmp_path, make_proposer("fast")), RCNN(config, CLASSES, trunk), tmp_path)
        keys.add(crops.path(toy_samples()[0]).parent.name)
        keys.add(settings_key(Extractor(trunk, 64, 128).settings))
        keys.add(settings_key(LookExtractor(Classifier(ClassifierConfig(), CLASSES, False, trunk)).settings))
    assert len(keys) == 12


def test_models_find_the_same_trunk_again_or_say_what_is_missing(tmp_path: Path) -> None:
    weights, saved = tmp_path / "mine.safetensors", tmp_path / "model.safetensors"
    other_small(weights)
    config = dataclasses.replace(TINY, weights=str(weights))
    detector = build_detector(config, CLASSES)
    save_detector(detector, saved)
    assert same(load_detector(saved, engine="eager").trunk.model, detector.trunk.model)
    classifier = Classifier(ClassifierConfig(trunk="small", weights=str(weights), head="fc"), CLASSES, False)
    save_classifier(classifier, tmp_path / "classifier.safetensors")
    assert same(load_classifier(tmp_path / "classifier.safetensors", engine="eager").trunk.model, detector.trunk.model)
    weights.unlink()
    for load, file in ((load_detector, saved), (load_classifier, tmp_path / "classifier.safetensors")):
        with pytest.raises(
            FileNotFoundError, match=r"mine\.safetensors: expected .* of the trunk small, got nothing there$"
        ):
            load(file, engine="eager")
    photo = next(iter(toy_samples())).path
    told = CliRunner().invoke(main, ["detect", str(photo), "--model", str(saved), "--out", str(tmp_path / "found")])
    assert told.exit_code == 1
    assert "mine.safetensors: expected the file of weights of the trunk small, got nothing there" in told.stderr
    assert "Traceback" not in told.output


def train(out: Path, *settings: str) -> Result:
    """Learn from the eight drawn photos for two epochs; runs beside each other share their cache."""
    quick = ("shorter=112", "longest=224", "channels=8", "hidden=16", "epochs=2", "max_proposals=100")
    options = [option for setting in (*quick, *settings) for option in ("--set", setting)]
    place = ["--out", str(out), "--cache", str(out.parent / "cache")]
    return CliRunner().invoke(main, ["train", TOY, *place, "--threads", "1", *options])


@pytest.mark.slow
@pytest.mark.parametrize("detector", ["sppnet", "rcnn"])
@pytest.mark.parametrize("trunk", ["zf5", "alexnet"])
def test_random_trunks_learn_from_the_command_line(trunk: str, detector: str, tmp_path: Path) -> None:
    result = train(tmp_path / "run", f"trunk={trunk}", "pretrained=false", "seed=3", f"detector={detector}")
    assert result.exit_code == 0, result.stderr
    net = load_detector(tmp_path / "run" / "model.safetensors", engine="eager")
    expected = build_trunk(trunk, pretrained=False, seed=3)
    assert same(net.trunk, expected)
    assert net.config.pretrained is False
    assert net.trunk.origin == ("random 0" if trunk == "zf5" else "random 3")


def test_a_file_s_weights_are_used_from_the_command_line(tmp_path: Path) -> None:
    """Learn from random and from own weights with one cache: the maps of the two must not be mixed up."""
    file, maps = tmp_path / "mine.safetensors", tmp_path / "cache" / "maps"
    model = other_small(file)
    assert train(tmp_path / "run", "trunk=small", "pretrained=false").exit_code == 0
    (first,) = maps.iterdir()
    result = train(tmp_path / "own", "trunk=small", f"weights={file}")
    assert result.exit_code == 0, result.stderr
    assert same(load_detector(tmp_path / "own" / "model.safetensors", engine="eager").trunk.model, model)
    (second,) = set(maps.iterdir()) - {first}
    names = [path.name for path in sorted(first.iterdir())]
    assert names == [path.name for path in sorted(second.iterdir())]
    assert len(names) == 6
    for name in names:
        assert not torch.equal(load_file(first / name)["0"], load_file(second / name)["0"])


def test_what_nobody_publishes_is_refused_before_the_work(tmp_path: Path) -> None:
    result = train(tmp_path / "run", "trunk=zf5")
    assert result.exit_code == 1
    assert "--set pretrained=false or --set weights=FILE" in result.stderr
    assert not list(tmp_path.iterdir())
