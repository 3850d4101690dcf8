"""Check that engines compute what the layers themselves compute, and leave these as they were."""

from __future__ import annotations

import copy
import dataclasses
import os
import platform
import re
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
from timm.layers import Conv2dSame
from torch import Tensor, nn

from detector import engines, fusion
from detector.backbones import Trunk, build_trunk
from detector.engines import ENGINES, choose_engine, fast_layers, trunk_maps
from detector.fusion import FusedConv, has_onednn
from detector.heads import PyramidHead
from detector.sppnet import SPPNet
from proposals.structures import Proposals
from tests.contracts import check_detector
from tests.sources import REPOSITORY
from tests.toy import SMALL, small_model

pytestmark = pytest.mark.skipif(not has_onednn(), reason="this PyTorch has no oneDNN")
NO_OPENVINO = pytest.mark.skipif(find_spec("openvino") is None, reason="OpenVINO is not installed")
TRUNKS = ("efficientnet_lite0", "mobilenet_v3_large", "alexnet", "resnet18")
SIZES = ((1, 96, 160), (3, 64, 32))
ONEDNN = ("onednn", "onednn-bf16")
BOXES = torch.tensor([[x, y, x + w, y + h] for x in (0, 30, 70) for y in (3, 40) for w, h in ((25, 45), (60, 30))])


@pytest.fixture(scope="module", params=TRUNKS)
def trunk(request: pytest.FixtureRequest) -> Trunk:
    """Return a trunk as it is built; where weights are random, they keep the size of activations, biases are not 0."""
    if request.param.startswith("efficientnet"):
        return build_trunk(request.param)
    generator = torch.Generator().manual_seed(17)
    trunk = build_trunk(request.param, pretrained=False)
    for conv in (m for m in trunk.modules() if isinstance(m, nn.Conv2d)):
        nn.init.kaiming_normal_(conv.weight, nonlinearity="relu", generator=generator)
        nn.init.normal_(conv.bias, std=0.2, generator=generator)
    return trunk


def smooth(count: int, height: int, width: int) -> Tensor:
    """Return smooth noise in [-1, 1], as photos are."""
    coarse = torch.rand(count, 3, 4, 6, generator=torch.Generator().manual_seed(height * width + count)) * 2 - 1
    return nn.functional.interpolate(coarse, (height, width), mode="bilinear")


def like(trunk: Trunk, dtype: torch.dtype) -> Trunk:
    return trunk.with_model(copy.deepcopy(trunk.model).to(dtype))


def error(maps: list[Tensor], exact: list[Tensor]) -> list[float]:
    """Return each map's root mean square error as a part of the exact map's deviation."""
    return [float((m - e).square().mean().sqrt() / e.std()) for m, e in zip(maps, exact, strict=True)]


@pytest.mark.parametrize("size", SIZES)
@torch.inference_mode()
def test_errors_are_those_of_the_number_type(size: tuple[int, int, int], trunk: Trunk) -> None:
    """Compare with float64. float32 may lose a hundred of its roundings.

    bfloat16 rounds by 2**-9 after every layer: what that costs is the type's, and the engine may lose a quarter more
    than plain layers in bfloat16 do, and 0.15 of the deviation at most.
    """
    x = smooth(*size)
    exact = like(trunk, torch.float64).maps(x.double())
    for name in ONEDNN:
        maps = trunk_maps(like(trunk, torch.float32), choose_engine(name))(x)
        assert {m.dtype for m in maps} == {torch.float32}
        assert [m.shape for m in maps] == [e.shape for e in exact]
        lost = error(maps, exact)
        assert max(lost) < {"onednn": 1e-5, "onednn-bf16": 0.15}[name]
    plain = error(like(trunk, torch.bfloat16).maps(x.bfloat16()), exact)
    assert all(ours < 1.25 * theirs for ours, theirs in zip(lost, plain, strict=True))


@pytest.mark.parametrize("name", [pytest.param("onednn"), "onednn-bf16"])
@torch.inference_mode()
def test_a_trunk_is_left_as_it_was(name: str, trunk: Trunk) -> None:
    """Compare values and layout in memory, which decides how the trunk itself rounds."""
    x = smooth(1, 64, 96)
    trunk = like(trunk, torch.float32)
    before, expected = copy.deepcopy(trunk.state_dict()), trunk.maps(x)
    trunk_maps(trunk, choose_engine(name))(x)
    for key, value in trunk.state_dict().items():
        assert torch.equal(value, before[key])
        assert (value.dtype, value.stride()) == (before[key].dtype, before[key].stride())
    assert all(torch.equal(one, other) for one, other in zip(trunk.maps(x), expected, strict=True))


def test_only_float32_weights_are_shared() -> None:
    trunk = build_trunk("mobilenet_v3_large", pretrained=False).to(memory_format=torch.channels_last)
    own = {p.data_ptr() for p in trunk.parameters()}
    assert {p.data_ptr() for p in fusion.fuse(trunk.model, True).parameters()} == own
    assert not {p.data_ptr() for p in fusion.fuse(trunk.model, False).parameters()} & own


@pytest.mark.slow
@NO_OPENVINO
@torch.inference_mode()
def test_openvino_gives_the_same_maps() -> None:
    """Let OpenVINO lose twice what plain layers of its number type lose: both round, but not in the same places."""
    trunk, engine = build_trunk("efficientnet_lite0"), choose_engine("openvino")
    compute = trunk_maps(trunk, engine)
    for size in ((1, 96, 160), (2, 64, 32)):
        x = smooth(*size)
        exact = like(trunk, torch.float64).maps(x.double())
        plain = error(like(trunk, engine.dtype).maps(x.to(engine.dtype)), exact)
        lost = error(compute(x), exact)
        assert all(ours < max(2 * theirs, 1e-5) for ours, theirs in zip(lost, plain, strict=True))


def test_every_activation_of_the_default_trunk_is_fused() -> None:
    trunk = build_trunk("efficientnet_lite0")
    before = [type(m) for m in trunk.model.modules()]
    assert sum(issubclass(kind, nn.Hardtanh) for kind in before) > 30
    fused = fusion.fuse(trunk.model, True)
    assert not any(isinstance(m, nn.Hardtanh | nn.Conv2d) for m in fused.modules())
    operations = [m.operation[0] for m in fused.modules() if isinstance(m, FusedConv)]
    assert operations.count("hardtanh") == sum(issubclass(kind, nn.Hardtanh) for kind in before)
    assert [type(m) for m in trunk.model.modules()] == before, "fused in the copy, not in the trunk"


def test_convolutions_that_are_not_known_to_be_padded_by_zeros_stay() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), nn.ReLU(), nn.Conv2d(4, 5, 3, padding="same"),
        nn.ReLU6(), nn.Conv2d(5, 4, 1), nn.Identity(), nn.Hardswish(), nn.Conv2d(4, 2, 1), nn.Tanh(),
    ).eval()  # fmt: skip
    fused, x = fusion.fuse(model, True), smooth(1, 17, 23)
    kinds = ["Conv2d", "ReLU", "Conv2d", "ReLU6", "FusedConv", "Identity", "Identity", "FusedConv", "Tanh"]
    assert [type(m).__name__ for m in fused] == kinds
    with torch.inference_mode():
        torch.testing.assert_close(fused(x), model(x), rtol=1e-5, atol=1e-6)


CONVOLUTIONS = {
    "plain": {"kernel_size": 3, "padding": 1},
    "depthwise": {"kernel_size": 5, "padding": 2, "groups": 6},
    "grouped": {"kernel_size": 3, "groups": 3, "bias": False},
    "dilated": {"kernel_size": 3, "dilation": 2, "stride": 2},
    "oblong": {"kernel_size": (5, 3), "stride": (1, 2), "padding": (2, 0)},
}


@pytest.mark.parametrize("case", CONVOLUTIONS)
@pytest.mark.parametrize("activation", [None, nn.ReLU(), nn.ReLU6(), nn.Hardswish()])
@torch.inference_mode()
def test_a_fused_convolution_is_the_convolution_and_its_activation(case: str, activation: nn.Module | None) -> None:
    """Scale the input so that ReLU6 and Hardswish cut at both ends."""
    conv = nn.Conv2d(6, 12, **CONVOLUTIONS[case])
    x = 12 * torch.randn(2, 6, 13, 18)
    expected = activation(conv(x)) if activation else conv(x)
    assert float(conv(x).max()) > 6
    torch.testing.assert_close(FusedConv(conv, activation)(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (1, 2)])
@torch.inference_mode()
def test_padding_is_that_of_timm_at_every_size(kernel: int, stride: int, dilation: int) -> None:
    conv = Conv2dSame(2, 3, kernel, stride=stride, dilation=dilation)
    fused = FusedConv(conv, None)
    for height in range(1, 41):
        x = torch.randn(1, 2, height, (height + 16) % 40 + 1)
        torch.testing.assert_close(fused(x), conv(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("name", "within"), [("onednn", 1e-5), ("onednn-bf16", 0.02)])
@torch.inference_mode()
def test_learned_layers_compute_the_same(name: str, within: float) -> None:
    """Compare parts of the norm, of some and of no regions."""
    head = PyramidHead((8, (6, 3, 2, 1)), 0, 64, 5, 0.5, True).eval()
    fast = fast_layers(head, choose_engine(name))
    for count in (30, 0):
        pooled, context, coarse = torch.rand(count, 50, 8), torch.zeros(count, 0), torch.rand(count, 10, 8)
        exact = [*head(pooled, context), head.read_coarse(coarse)]
        found = [*fast(pooled, context), fast.read_coarse(coarse)]
        for one, other in zip(found, exact, strict=True):
            assert (one.dtype, one.shape) == (torch.float32, other.shape)
            assert float((one - other).norm()) <= within * float(other.norm())


@pytest.mark.parametrize("name", ONEDNN)
def test_the_head_that_learns_is_not_touched(name: str) -> None:
    head = PyramidHead((8, (6, 3, 2, 1)), 7, 64, 5, 0.5, True)
    head.fc7.requires_grad_(False)
    before = {key: (p.detach().clone(), p.requires_grad, p.data_ptr()) for key, p in head.named_parameters()}
    fast = fast_layers(head, choose_engine(name))
    assert not any(p.requires_grad for p in fast.parameters())
    assert not {p.data_ptr() for p in fast.parameters()} & {p.data_ptr() for p in head.parameters()}
    for key, p in head.named_parameters():
        assert torch.equal(p, before[key][0])
        assert (p.requires_grad, p.data_ptr()) == before[key][1:]
    with torch.no_grad():
        for p in head.parameters():
            p.add_(1)
        assert not any(torch.equal(p.float(), head.get_parameter(key)) for key, p in fast.named_parameters())


def test_the_eager_engine_is_the_layers() -> None:
    head, trunk = PyramidHead((8, (2, 1)), 0, 16, 5, 0.0), build_trunk("alexnet", pretrained=False)
    eager = choose_engine("eager")
    assert fast_layers(head, eager) is head
    assert trunk_maps(trunk, eager) == trunk.maps


def test_engines_that_cannot_run_are_refused() -> None:
    with pytest.raises(ValueError, match=rf"expected an engine among {', '.join(ENGINES)}, got 'fast'"):
        choose_engine("fast")
    for name in ENGINES[2:]:
        with pytest.raises(ValueError, match=f"expected the engine eager on cuda, got {name}"):
            choose_engine(name, "cuda")
    assert choose_engine("auto", "cuda").name == "eager"


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the oneDNN of x86 can be told to use an older processor")
def test_bfloat16_is_refused_where_onednn_cannot_compute_it() -> None:
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2", "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", "from detector.engines import choose_engine; choose_engine('onednn-bf16')"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert re.fullmatch(r"ValueError: expected .*, got .*", done.stderr.splitlines()[-1] if done.stderr else "")


@pytest.mark.parametrize(
    "name", ["eager", *ONEDNN, "auto", pytest.param("openvino", marks=[pytest.mark.slow, NO_OPENVINO])]
)
def test_detectors_keep_their_promises_with_every_engine(name: str) -> None:
    model = small_model()
    model.use_engine(name)
    check_detector(model)
    if name == "auto":
        fastest = choose_engine("onednn-bf16" if engines.multiplies_bfloat16() else "onednn")
        assert dataclasses.astuple(model.engine) == dataclasses.astuple(fastest)


def confident(**settings: object) -> SPPNet:
    """Return a small detector whose scores and boxes differ from region to region."""
    model = small_model(dataclasses.replace(SMALL, vote=1.0, min_score=0.2, **settings))
    for layer in (model.head.classes, model.head.deltas):
        nn.init.normal_(layer.weight, std=0.3, generator=torch.Generator().manual_seed(12))
    return model


def photo() -> Tensor:
    """Return a picture whose colours change smoothly, with grain; (3, 90, 140) uint8."""
    generator = torch.Generator().manual_seed(3)
    coarse = torch.rand(1, 3, 12, 18, generator=generator) * 255
    smoothed = nn.functional.interpolate(coarse, (90, 140), mode="bicubic")
    return (smoothed + 8 * torch.randn(1, 3, 90, 140, generator=generator)).clamp(0, 255).to(torch.uint8)[0]


@pytest.mark.parametrize("settings", [{}, {"scales": (80, 112)}, {"cascade": 8}])
def test_detections_are_those_of_the_eager_engine(settings: dict[str, object]) -> None:
    """Allow float32 what it rounds; bfloat16, whose maps are a few percent off, 0.05 of a score."""
    model, image, proposals = confident(**settings), photo(), Proposals(BOXES.float())
    fingerprint, state = model.fingerprint(), list(model.state_dict())
    exact, scores = model.predict(image, proposals), model.predict_boxes(image, proposals.boxes).probabilities
    assert len(exact) > 5
    assert float(exact.scores.std()) > 0.05
    for name, within in (("onednn", 1e-4), ("onednn-bf16", 0.05)):
        model.use_engine(name)
        found = model.predict_boxes(image, proposals.boxes).probabilities
        assert not torch.equal(found, scores), "the engine was not used"
        torch.testing.assert_close(found, scores, rtol=0, atol=within)
        assert (model.fingerprint(), list(model.state_dict())) == (fingerprint, state)
        if name == "onednn":
            found = model.predict(image, proposals)
            assert torch.equal(found.labels, exact.labels)
            torch.testing.assert_close(found.scores, exact.scores, rtol=0, atol=1e-4)
            torch.testing.assert_close(found.boxes, exact.boxes, rtol=0, atol=1e-2)
    model.use_engine("eager")
    again = model.predict(image, proposals)
    assert all(torch.equal(getattr(again, name), getattr(exact, name)) for name in ("boxes", "scores", "labels"))


@pytest.mark.parametrize("name", ONEDNN)
def test_training_reads_the_float32_layers(name: str) -> None:
    """Pool and classify the same maps for learning with and without the engine: bit by bit the same."""
    model = confident()
    maps = tuple(m.with_values(m.values.clone()) for m in model.extractor(photo()))
    pooled, context = model.pool_regions(maps, BOXES.float())
    logits, deltas = model.head(pooled, context)
    model.use_engine(name)
    assert len(model.predict(photo(), Proposals(BOXES.float()))) > 0
    again = model.pool_regions(maps, BOXES.float())
    assert torch.equal(again[0], pooled)
    assert all(torch.equal(one, other) for one, other in zip(model.head(*again), (logits, deltas), strict=True))
    assert all(p.requires_grad and p.dtype == torch.float32 for p in model.learned_parameters().values())
