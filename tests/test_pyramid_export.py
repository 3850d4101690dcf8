"""Check that the pooling layer computes the same in TorchScript, in torch.export and in ONNX Runtime, at any size."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from detector.pyramid import SpatialPyramidPool

MODES = ["max", "average"]
PYRAMIDS = [(6, 3, 2, 1), (5, 3)]
EXAMPLE = (2, 3, 24, 40)  # what the exporters see
UNSEEN = [(1, 3, 1, 1), (3, 3, 1, 1), (1, 3, 7, 13), (3, 3, 7, 13), (1, 3, 64, 2), (3, 3, 5, 48), (1, 3, 101, 67)]

script_is_deprecated = pytest.mark.filterwarnings(r"ignore:`torch\.jit\.\w+` is deprecated:FutureWarning")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Pool small maps with one thread: two would mostly wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def small_network(levels: tuple[int, ...], mode: str) -> nn.Sequential:
    """Return a classifier of three classes with the pooling layer inside, as a user would build it."""
    pool = SpatialPyramidPool(levels, mode)
    layers = [nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(), pool, nn.Linear(pool.output_size(8), 3)]
    return nn.Sequential(*layers).eval()


@script_is_deprecated
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("levels", PYRAMIDS)
def test_torchscript_computes_the_same(levels: tuple[int, ...], mode: str, tmp_path: Path) -> None:
    network = small_network(levels, mode)
    scripted = torch.jit.script(network)
    torch.jit.save(scripted, tmp_path / "network.pt")
    loaded = torch.jit.load(tmp_path / "network.pt")
    layer = SpatialPyramidPool(levels, mode)
    traced = torch.jit.trace(layer, torch.randn(EXAMPLE))
    for shape in UNSEEN:
        values = torch.randn(shape)
        for module in (scripted, loaded):
            assert torch.equal(module(values), network(values)), shape
        assert torch.equal(traced(values), layer(values)), shape
        assert torch.equal(torch.jit.script(layer)(values[0]), layer(values[0])), shape


@script_is_deprecated
def test_a_scripted_layer_learns_and_refuses_what_is_no_map() -> None:
    layer = SpatialPyramidPool()
    scripted = torch.jit.script(layer)
    for shape in ((2, 3, 7, 13), (1, 2, 1, 4)):
        ours, theirs = (torch.randn(shape).requires_grad_() for _ in range(2))
        theirs.data.copy_(ours.data)
        upstream = torch.randn(shape[0], layer.output_size(shape[1]))
        layer(ours).backward(upstream)
        scripted(theirs).backward(upstream)
        assert ours.grad is not None
        assert theirs.grad is not None
        assert torch.equal(ours.grad, theirs.grad)
    with pytest.raises(torch.jit.Error, match="got 2 dimensions"):
        scripted(torch.zeros(4, 5))
    with pytest.raises(torch.jit.Error, match="at least 1 x 1 cells, got 0 x 5"):
        scripted(torch.zeros(1, 2, 0, 5))


@pytest.mark.parametrize("mode", MODES)
def test_an_exported_program_computes_the_same(mode: str) -> None:
    layer, dim = SpatialPyramidPool(mode=mode), torch.export.Dim
    shapes = ({0: dim("batch"), 2: dim("height"), 3: dim("width")},)
    program = torch.export.export(layer, (torch.randn(EXAMPLE),), dynamic_shapes=shapes).module()
    for shape in UNSEEN:
        values = torch.randn(shape)
        assert torch.equal(program(values), layer(values)), shape


def assert_runs_in_onnx(network: nn.Module, path: Path) -> None:
    """Compare with ONNX Runtime at sizes and batches that the exporter has not seen; float32 may round otherwise."""
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs ONNX Runtime to run what was exported")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (image,) = session.get_inputs()
    for shape in UNSEEN:
        values = torch.randn(shape)
        (found,) = session.run(None, {image.name: values.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), network(values).detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("levels", "mode"),
    [
        ((6, 3, 2, 1), "max"),
        ((5, 3), "average"),
        pytest.param((5, 3), "max", marks=pytest.mark.slow),
        pytest.param((6, 3, 2, 1), "average", marks=pytest.mark.slow),
    ],
)
def test_onnx_computes_the_same(levels: tuple[int, ...], mode: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="needs onnxscript, with which PyTorch exports to ONNX")
    network, dim = small_network(levels, mode), torch.export.Dim
    shapes = ({0: dim("batch"), 2: dim("height"), 3: dim("width")},)
    path = tmp_path / "network.onnx"
    torch.onnx.export(network, (torch.randn(EXAMPLE),), path, dynamo=True, dynamic_shapes=shapes, verbose=False)
    assert_runs_in_onnx(network, path)


@pytest.mark.filterwarnings(
    "ignore:You are using the legacy TorchScript-based ONNX export:DeprecationWarning",
    "ignore:The feature will be removed. Please remove usage of this function:DeprecationWarning",
)
@pytest.mark.parametrize("mode", MODES)
def test_the_exporter_of_older_versions_computes_the_same(mode: str, tmp_path: Path) -> None:
    pytest.importorskip("onnx", reason="needs onnx, with which PyTorch exports by TorchScript")
    network, path = small_network((6, 3, 2, 1), mode), tmp_path / "network.onnx"
    axes = {"image": {0: "batch", 2: "height", 3: "width"}}
    options = {"input_names": ["image"], "dynamic_axes": axes, "dynamo": False}
    torch.onnx.export(network, (torch.randn(EXAMPLE),), str(path), **options)
    assert_runs_in_onnx(network, path)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("levels", [(6, 3, 2, 1), (4, 2, 1), (5, 3)])
def test_the_slices_that_are_exported_equal_the_layer(
    levels: tuple[int, ...], mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pool in PyTorch as in an export, every height up to 64 with some widths; means of float64 round by 2**-52."""
    layer = SpatialPyramidPool(levels, mode)
    maps: list[Tensor] = [torch.randn(1, 2, height, width).double() for height in range(1, 65) for width in (1, 7, 29)]
    expected = [layer(values) for values in maps]
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
    for values, vector in zip(maps, expected, strict=True):
        torch.testing.assert_close(layer(values), vector, rtol=0, atol=0 if mode == "max" else 1e-13)
