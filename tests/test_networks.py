"""Check the networks defined here: their shapes, their norm against loops, their weights on file and from the seed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from detector.backbones import Tap, build_trunk
from detector.networks import ZF5, WithinChannelNorm, load_weights, randomise


def test_zf5_has_the_released_geometry() -> None:
    """Give 13 x 13 cells for 224 pixels, 16 pixels apart, the first on pixel 20; in general one fewer than H / 16."""
    trunk = build_trunk("zf5", pretrained=False)
    assert trunk.taps == (Tap("conv5", 16, 20.0, 256),)
    with torch.inference_mode():
        for height, width in ((224, 224), (32, 96), (64, 320)):
            values = trunk(torch.zeros(1, 3, height, width, dtype=torch.uint8))[0]
            assert tuple(values.shape) == (1, 256, height // 16 - 1, width // 16 - 1)
            assert float(values.min()) >= 0, "the tap lies behind the ReLU"


def test_zf5_has_the_layers_of_the_prototxt() -> None:
    shapes = {name: tuple(value.shape) for name, value in ZF5().state_dict().items() if name.endswith("weight")}
    assert shapes == {
        "conv1.0.weight": (96, 3, 7, 7),
        "conv2.0.weight": (256, 96, 5, 5),
        "conv3.0.weight": (384, 256, 3, 3),
        "conv4.0.weight": (384, 384, 3, 3),
        "conv5.0.weight": (256, 384, 3, 3),
    }


def test_the_norm_looks_at_its_own_channel_only() -> None:
    """Add up squares in loops; what lies beyond the border is zero but counted, as in Caffe."""
    norm = WithinChannelNorm(3, 0.5, 0.75)
    x = torch.randn(1, 2, 3, 5, dtype=torch.float64)
    found = norm(x)
    for c in range(2):
        for i in range(3):
            for j in range(5):
                near = [(a, b) for a in range(i - 1, i + 2) for b in range(j - 1, j + 2) if 0 <= a < 3 and 0 <= b < 5]
                energy = sum(float(x[0, c, a, b]) ** 2 for a, b in near) / 9
                assert float(found[0, c, i, j]) == pytest.approx(float(x[0, c, i, j]) / (1 + 0.5 * energy) ** 0.75)


def test_random_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(1)
    first = ZF5().state_dict()
    drawn = torch.rand(3)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(3), drawn), "the global generator must not be touched"
    second = ZF5().state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1, bias=False))
    randomise(other, seed=1)
    before = other[0].weight.clone()
    randomise(other, seed=2)
    assert not torch.equal(before, other[0].weight)


def test_activations_neither_fade_nor_grow() -> None:
    """Put noise through: the mean square of every convolution's output stays within a factor of five."""
    x = torch.randn(2, 3, 96, 160, generator=torch.Generator().manual_seed(0))
    model, squares = ZF5(), []
    with torch.inference_mode():
        for name, stage in model.named_children():
            x = stage(x)
            if name.startswith("conv"):
                squares.append(float(x.square().mean()))
    assert all(0.2 < square < 12 for square in squares), squares


def test_there_are_no_published_weights() -> None:
    with pytest.raises(
        ValueError, match=r"^expected pretrained=False or a safetensors file of your own for zf5, .* got"
    ):
        build_trunk("zf5")
    with pytest.raises(ValueError, match=r"^expected layers of zf5 among conv5, got conv4$"):
        build_trunk("zf5", ("conv4",), pretrained=False)


def test_weights_of_the_user_are_loaded(tmp_path: Path) -> None:
    """Save other random weights, in half precision: the trunk computes what the model that they came from does."""
    model, file = ZF5(), tmp_path / "mine.safetensors"
    randomise(model, seed=7)
    save_file({name: value.half() for name, value in model.state_dict().items()}, file)
    trunk = build_trunk("zf5", pretrained=False)
    pixels = torch.randint(0, 256, (1, 3, 64, 96), dtype=torch.uint8)
    with torch.inference_mode():
        random = trunk(pixels)[0]
        load_weights(trunk.model, file)
        expected = model(trunk.normalise(pixels))
        torch.testing.assert_close(trunk(pixels)[0], expected, rtol=0.02, atol=0.02 * float(expected.max()))
        assert float((random - expected).abs().max()) > 0.5 * float(expected.max())


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    model, file = ZF5(), tmp_path / "bad.safetensors"
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(
        FileNotFoundError, match=r"bad.safetensors: expected a safetensors file with weights, got nothing"
    ):
        load_weights(model, file)
    file.write_bytes(b"not tensors at all")
    with pytest.raises(ValueError, match=r"bad.safetensors: expected a whole safetensors file, got a damaged one"):
        load_weights(model, file)
    save_file({**before, "conv2.0.weight": torch.zeros(256, 96, 3, 3)}, file)
    with pytest.raises(ValueError, match=r"expected conv2.0.weight of shape \(256, 96, 5, 5\), got \(256, 96, 3, 3\)$"):
        load_weights(model, file)
    save_file({**before, "fc6.weight": torch.zeros(2, 2)}, file)
    with pytest.raises(
        ValueError, match=r"bad.safetensors: expected weights of conv1.*, conv5.0.bias alone, got fc6.weight as well$"
    ):
        load_weights(model, file)
    save_file({name: value for name, value in before.items() if name != "conv1.0.bias"}, file)
    with pytest.raises(ValueError, match=r"expected conv1.0.bias of shape \(96,\), got nothing$"):
        load_weights(model, file)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert load_file(file).keys() == before.keys() - {"conv1.0.bias"}
