"""Check the measurement of geometry against the arithmetic of kernels, and every documented trunk against gradients."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor, nn

from detector.backbones import PAD_MULTIPLE, Tap, Trunk, build_trunk
from detector.geometry import linear_copy, measure_geometry

Layer = tuple[int, int, int]  # kernel, stride, padding

# Name of a trunk -> (stride, offset, channels) of its taps, as design and documentation promise them.
DOCUMENTED: dict[str, list[tuple[int, float, int]]] = {
    "efficientnet_lite0": [(16, 15, 112), (32, 31, 320), (32, 31, 1280)],
    "efficientnet_lite1": [(16, 15, 112), (32, 31, 320), (32, 31, 1280)],
    "efficientnet_lite2": [(16, 15, 120), (32, 31, 352), (32, 31, 1280)],
    "alexnet": [(16, 15, 256)],
    "vgg16": [(16, 7.5, 512)],
    "resnet18": [(16, 0, 256), (32, 0, 512)],
    "resnet50": [(16, 0, 1024), (32, 0, 2048)],
    "mobilenet_v3_large": [(16, 0, 112), (32, 0, 960)],
    "zf5": [(16, 20, 256)],
}
LONG = 1536


def stack(layers: Sequence[Layer], pool: bool = False) -> list[tuple[str, nn.Module]]:
    stages: list[tuple[str, nn.Module]] = []
    for i, (kernel, stride, padding) in enumerate(layers):
        channels = 3 if i == 0 else 4
        stages += [(f"conv{i}", nn.Conv2d(channels, 4, kernel, stride, padding)), (f"relu{i}", nn.ReLU())]
    return [*stages, ("pool", nn.MaxPool2d(3, 2, 1))] if pool else stages


def kernel_arithmetic(layers: Sequence[Layer]) -> tuple[int, float, int]:
    """Return stride, offset and receptive field of a stack (Dumoulin and Visin 2016; Araujo et al. 2019)."""
    jump, offset, field = 1, 0.0, 1
    for kernel, stride, padding in layers:
        offset += jump * ((kernel - 1) / 2 - padding)
        field += jump * (kernel - 1)
        jump *= stride
    return jump, offset, field


@st.composite
def kernels(draw: st.DrawFn) -> Layer:
    kernel = draw(st.sampled_from([1, 2, 3, 5, 7]))
    return kernel, draw(st.integers(1, min(kernel, 3))), draw(st.integers(0, kernel // 2))


@given(st.lists(kernels(), min_size=1, max_size=3), st.booleans())
@hypothesis_settings(max_examples=20)
def test_stacks_of_convolutions_have_the_geometry_of_their_kernels(layers: list[Layer], pool: bool) -> None:
    """The largest field of three such layers and a pool is 133 pixels, so 400 pixels hold cells whole."""
    measured, channels = measure_geometry(stack(layers, pool), length=400)
    expected = kernel_arithmetic([*layers, *([(3, 2, 1)] if pool else [])])
    assert (measured.stride, measured.offset, measured.field) == expected
    assert channels == 4


def test_a_field_larger_than_the_image_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^expected a receptive field smaller than 32 pixels, got a larger one$"):
        measure_geometry(stack([(7, 2, 3), (7, 2, 3), (7, 1, 3)]), length=32)


def test_cells_that_do_not_lie_alike_along_both_axes_are_refused() -> None:
    """Measure kernels wider than high: with a stride or a padding of its own along x, no single number fits."""
    wide = nn.Conv2d(3, 4, (1, 7), padding=(0, 3)), nn.Conv2d(4, 4, (7, 1), padding=(3, 0))
    measured, _ = measure_geometry([("across", wide[0]), ("down", wide[1])], length=64)
    assert (measured.stride, measured.offset, measured.field) == (1, 0, 7)
    for conv in (nn.Conv2d(3, 4, 3, stride=(1, 2)), nn.Conv2d(3, 4, 3, padding=(1, 0)), wide[0]):
        with pytest.raises(ValueError, match=r"^expected cells that lie alike along both axes, got Geometry"):
            measure_geometry([("conv", conv)], length=64)


def test_stages_that_do_not_fit_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^expected convolutional stages, .*, got .*$"):
        measure_geometry([("one", nn.Conv2d(3, 4, 3)), ("other", nn.Conv2d(5, 4, 3))], length=64)


def test_a_dilated_kernel_reaches_further() -> None:
    measured, _ = measure_geometry([("conv", nn.Conv2d(3, 4, 3, stride=2, padding="valid", dilation=5))], length=64)
    assert (measured.stride, measured.offset, measured.field) == (2, 5, 11)


def test_measuring_leaves_the_model_alone() -> None:
    stages = stack([(3, 2, 1), (3, 1, 1)], pool=True)
    before = {f"{n}.{k}": v.clone() for n, m in stages for k, v in m.state_dict().items()}
    measure_geometry(stages, length=64)
    assert all(torch.equal(m.state_dict()[k], before[f"{n}.{k}"]) for n, m in stages for k in m.state_dict())
    assert [type(module) for _, module in stages][-1] is nn.MaxPool2d


@cache
def random_trunk(name: str) -> Trunk:
    return build_trunk(name, pretrained=False)


def averaging(trunk: Trunk) -> Trunk:
    """Return the trunk with averages in the place of its weights: its gradients show the whole receptive field."""
    half = torch.full((3,), 127.5)
    return Trunk(trunk.name, linear_copy(trunk.model), trunk.taps, (half, half)).double()


def support(values: Tensor, cell: int, axis: int, image: Tensor) -> tuple[int, int]:
    """Return the first and the last pixel of the image, along an axis (0 for y), that a row of cells depends on."""
    (gradient,) = torch.autograd.grad(values.select(2 + axis, cell).sum(), image, retain_graph=True)
    pixels = gradient[0].sum(dim=(0, 2 - axis)).nonzero()[:, 0]
    return int(pixels[0]), int(pixels[-1])


@pytest.mark.parametrize("name", DOCUMENTED)
@pytest.mark.parametrize("axis", [0, 1])
def test_taps_lie_where_gradients_say(name: str, axis: int) -> None:
    """Measure on a strip of an image, long enough for the largest receptive field, upright and lying."""
    trunk = averaging(random_trunk(name))
    size = (LONG, PAD_MULTIPLE) if axis == 0 else (PAD_MULTIPLE, LONG)
    image = torch.zeros(1, 3, *size, dtype=torch.float64, requires_grad=True)
    for tap, values in zip(trunk.taps, trunk.maps(image), strict=True):
        middle = values.shape[2 + axis] // 2
        for cell in (middle, middle + 1):
            first, last = support(values, cell, axis, image)
            assert first > 0, "the field does not fit"
            assert last < LONG - 1, "the field does not fit"
            assert (first + last) / 2 == tap.offset + tap.stride * cell
        if name not in ("alexnet", "zf5"):  # whose pools lose the last cell
            assert tuple(values.shape[2:]) == (size[0] // tap.stride, size[1] // tap.stride)
        assert values.shape[1] == tap.channels


@pytest.mark.parametrize("name", DOCUMENTED)
def test_taps_are_those_of_the_documentation(name: str) -> None:
    taps: tuple[Tap, ...] = random_trunk(name).taps
    assert [(tap.stride, tap.offset, tap.channels) for tap in taps] == DOCUMENTED[name]


# Name of a trunk that is measured when it is built -> the numbers of its last map, by the arithmetic of its kernels.
OTHERS: dict[str, tuple[int, float, int]] = {
    "squeezenet1_1": (16, 15, 512),
    "mobilenet_v2": (32, 0, 1280),
    "densenet121": (32, 14, 1024),  # whose transitions average 2 x 2 cells: 4 / 2 + 8 / 2 + 16 / 2
    "vgg19": (32, 15.5, 512),
    "resnet34": (32, 0, 512),
    "resnet101": (32, 0, 2048),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_other_models_are_measured_when_they_are_built(name: str) -> None:
    (tap,) = build_trunk(name, pretrained=False).taps
    assert (tap.stride, tap.offset, tap.channels) == OTHERS[name]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "length"), [("squeezenet1_1", 512), ("mobilenet_v2", 1024)])
def test_other_models_lie_where_gradients_say(name: str, length: int) -> None:
    trunk = random_trunk(name)
    (tap,) = trunk.taps
    image = torch.zeros(1, 3, 64, length, dtype=torch.float64, requires_grad=True)
    (values,) = averaging(trunk).maps(image)
    cell = values.shape[3] // 2
    first, last = support(values, cell, 1, image)
    assert 0 < first < last < length - 1
    assert tap.offset + tap.stride * cell == (first + last) / 2
    assert values.shape[1] == tap.channels
