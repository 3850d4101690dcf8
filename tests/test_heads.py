"""Check what the learning layers promise: shapes, gradients, and maps of taps laid on each other by geometry."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck
from torch.func import functional_call
from torch.nn.functional import conv2d, grid_sample, pad

from detector.heads import PyramidHead, Reduction, align
from detector.pooling import bins, spatial_pyramid_pool
from detector.structures import FeatureMap

SCALE = (1.5, 1.25)


def a_map(channels: int, size: tuple[int, int], stride: int, offset: float | tuple[float, float]) -> FeatureMap:
    return FeatureMap(torch.randn(channels, *size), stride, offset, SCALE)


# Size, stride and offset of a source and of the map that it is laid on.
PAIRS = [
    (((4, 7), 32, 31.0), ((8, 14), 16, 15.0)),
    (((4, 7), 32, 0.0), ((8, 14), 16, 0.0)),
    (((5, 3), 16, 7.5), ((9, 6), 8, 3.5)),
    (((5, 3), 16, 7.5), ((6, 4), 16, -4.5)),
    (((3, 5), 32, (31.0, -12.0)), ((6, 10), 16, (15.0, 4.0))),
]


@pytest.fixture(params=PAIRS, ids=str)
def pair(request: pytest.FixtureRequest) -> tuple[FeatureMap, FeatureMap]:
    """Return a source of 3 channels and a target of 2."""
    source, target = request.param
    return a_map(3, *source), a_map(2, *target)


def test_align_equals_grid_sample(pair: tuple[FeatureMap, FeatureMap]) -> None:
    """Give PyTorch the target's cell centres, in the source's cells, as fractions of the way to its last cell."""
    source, target = pair
    positions = []
    for axis in (1, 2):
        count = source.values.shape[axis]
        centres = target.offsets[axis - 1] + target.stride * torch.arange(target.values.shape[axis])
        positions.append((centres - source.offsets[axis - 1]) / source.stride / (count - 1) * 2 - 1)
    y, x = torch.meshgrid(*positions, indexing="ij")
    expected = grid_sample(
        source.values[None], torch.stack([x, y], dim=2)[None], "bilinear", padding_mode="border", align_corners=True
    )[0]
    aligned = align(source.values.permute(1, 2, 0), source, target)
    torch.testing.assert_close(aligned.permute(2, 0, 1), expected, rtol=1e-5, atol=1e-5)


def test_align_puts_every_pixel_where_it_was(pair: tuple[FeatureMap, FeatureMap]) -> None:
    """Let the source say where its cells are: between them, the target's cells must read where they are themselves."""
    source, target = pair

    def places(feature_map: FeatureMap) -> Tensor:
        sides = zip(feature_map.offsets, feature_map.values.shape[1:], strict=True)
        y, x = (offset + feature_map.stride * torch.arange(n) for offset, n in sides)
        return torch.stack(torch.meshgrid(y.float(), x.float(), indexing="ij"), dim=2)

    there, wanted = align(places(source), source, target), places(target)
    first, last = places(source)[0, 0], places(source)[-1, -1]
    torch.testing.assert_close(there, wanted.maximum(first).minimum(last))


def test_align_onto_itself_changes_nothing() -> None:
    feature_map = a_map(3, (5, 9), 16, 15.0)
    cells = feature_map.values.permute(1, 2, 0)
    assert torch.equal(align(cells, feature_map, feature_map), cells)


def test_align_of_a_single_cell_spreads_it() -> None:
    source, target = a_map(3, (1, 1), 32, 31.0), a_map(1, (2, 3), 16, 15.0)
    cells = source.values.permute(1, 2, 0)
    assert torch.equal(align(cells, source, target), cells.expand(2, 3, 3))


def taps(channels: Sequence[int]) -> list[FeatureMap]:
    sizes, strides, offsets = [(6, 10), (3, 5), (3, 5)], [16, 32, 32], [15.0, 31.0, 31.0]
    return [a_map(c, *rest) for c, *rest in zip(channels, sizes, strides, offsets, strict=False)]


@pytest.mark.parametrize("channels", [(7,), (7, 12), (7, 12, 20)])
def test_reduction_gives_one_map_with_the_geometry_of_the_finest(channels: tuple[int, ...]) -> None:
    maps = taps(channels)
    reduced, _ = Reduction(channels, 8).eval()(maps)
    assert tuple(reduced.values.shape) == (8, 6, 10)
    assert reduced.values.dtype == torch.float32
    assert (reduced.stride, reduced.offset, reduced.scale) == (16, 15.0, SCALE)
    assert bool(torch.isfinite(reduced.values).all())
    assert reduced.values.permute(1, 2, 0).is_contiguous(), "pooling would have to copy it"


def test_every_tap_matters_to_the_reduction() -> None:
    maps, reduction = taps((7, 12)), Reduction((7, 12), 8).eval()
    before = reduction(maps)[0].values
    for i in range(2):
        changed = list(maps)
        changed[i] = FeatureMap(
            maps[i].values + 3 * torch.randn_like(maps[i].values), maps[i].stride, maps[i].offset, SCALE
        )
        assert not torch.equal(reduction(changed)[0].values, before)


@pytest.mark.parametrize("channels", [(7,), (7, 12, 20)])
def test_reduction_is_the_sum_of_standardised_taps(channels: tuple[int, ...]) -> None:
    """Standardise, weigh and lay the taps on each other with PyTorch; the last tap comes back standardised."""
    images = [taps(channels) for _ in range(3)]
    for maps in images:
        for m in maps:
            m.values.mul_(3).add_(torch.arange(len(m.values))[:, None, None])
    reduction = Reduction(channels, 8).eval()
    for linear in reduction.linears:
        torch.nn.init.normal_(linear.bias)  # type: ignore[arg-type]
    reduction.measure(images)
    total = torch.zeros(8, 6, 10)
    for i, linear in enumerate(reduction.linears):
        everything = torch.cat([maps[i].values.flatten(1) for maps in images], dim=1)
        deviation, mean = torch.std_mean(everything, dim=1, correction=0)
        standard = (images[1][i].values - mean[:, None, None]) / deviation[:, None, None]
        weighed = conv2d(standard[None], linear.weight[:, :, None, None], linear.bias)  # type: ignore[index, arg-type]
        ys, xs = (16 * torch.arange(n) + 15.0 for n in (6, 10))
        offset, stride = images[1][i].offsets[0], images[1][i].stride
        ys, xs = ((p - offset) / stride / (n - 1) * 2 - 1 for p, n in zip((ys, xs), standard.shape[1:], strict=True))
        y, x = torch.meshgrid(ys, xs, indexing="ij")
        places = torch.stack([x, y], dim=2)[None]
        total = total + grid_sample(weighed, places, "bilinear", padding_mode="border", align_corners=True)[0]
    reduced, last = reduction(images[1])
    torch.testing.assert_close(reduced.values, total.relu(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(last.values, standard, rtol=1e-4, atol=1e-4)
    assert (last.stride, last.offset, last.scale) == (images[1][-1].stride, images[1][-1].offset, SCALE)


def test_what_is_measured_are_mean_and_deviation_over_all_cells_of_all_images() -> None:
    """Take images of different sizes: every cell counts the same, whichever image it is in."""
    sizes = [(3, 5), (1, 9), (8, 2)]
    images = [[a_map(4, (h, w), 16, 15.0), a_map(6, (2 * h, w), 32, 31.0)] for h, w in sizes]
    for first, second in images:
        first.values.mul_(torch.tensor([1.0, 20, 5, 100])[:, None, None]).add_(3)
        second.values.add_(torch.arange(6)[:, None, None] * 50)
    reduction = Reduction((4, 6), 8)
    reduction.measure(iter(images))
    for i in range(2):
        cells = torch.cat([maps[i].values.double().flatten(1) for maps in images], dim=1)
        deviation, mean = torch.std_mean(cells, dim=1, correction=0)
        torch.testing.assert_close(reduction.get_buffer(f"mean{i}"), mean.float())
        expected = deviation.maximum(deviation.mean() / 10).float()
        torch.testing.assert_close(reduction.get_buffer(f"deviation{i}"), expected, rtol=1e-4, atol=0)
    assert float(reduction.get_buffer("deviation0")[0]) > 2, "a channel that hardly varies is not blown up"


def test_measured_maps_may_have_any_unit() -> None:
    """Shift every channel of every tap and stretch it up to fivefold: what was measured takes it back."""
    channels = (7, 12)
    images = [taps(channels) for _ in range(3)]
    stretched = []
    factors = [(1 + 4 * torch.rand(c, 1, 1), torch.randn(c, 1, 1)) for c in channels]
    for maps in images:
        moved = [m.values * factor + shift for m, (factor, shift) in zip(maps, factors, strict=True)]
        stretched.append([FeatureMap(v, m.stride, m.offset, SCALE) for v, m in zip(moved, maps, strict=True)])
    one, other = Reduction(channels, 8).eval(), Reduction(channels, 8).eval()
    other.load_state_dict(one.state_dict())
    one.measure(images)
    other.measure(stretched)
    for maps, moved_maps in zip(images, stretched, strict=True):
        for found, expected in zip(other(moved_maps), one(maps), strict=True):
            assert bool(expected.values.any())
            torch.testing.assert_close(found.values, expected.values, rtol=1e-4, atol=1e-4)


def test_channels_that_never_vary_are_measured_without_infinities() -> None:
    maps = taps((7,))
    maps[0].values[2] = 5.0
    reduction = Reduction((7,), 8).eval()
    reduction.measure([maps])
    assert all(bool(torch.isfinite(m.values).all()) for m in reduction(maps))


@pytest.mark.parametrize("levels", [(6, 3, 2, 1), (4, 2), (1,)])
@pytest.mark.parametrize("regions", [0, 1, 9])
def test_head_gives_scores_and_boxes_per_class(levels: tuple[int, ...], regions: int) -> None:
    head = PyramidHead((8, levels), 12, 16, 5, 0.5).eval()
    pooled, context = torch.randn(regions, bins(levels), 8), torch.randn(regions, 16)
    logits, deltas = head(pooled, context)
    assert (tuple(logits.shape), tuple(deltas.shape)) == ((regions, 6), (regions, 5, 4))
    assert logits.dtype == deltas.dtype == torch.float32
    order = torch.arange(regions).flip(0)
    flipped_logits, flipped_deltas = head(pooled[order], context[order])
    torch.testing.assert_close(flipped_logits, logits[order])
    torch.testing.assert_close(flipped_deltas, deltas[order])


def test_a_new_head_leaves_boxes_about_where_they_are_and_prefers_no_class() -> None:
    head = PyramidHead((8, (2, 1)), 12, 64, 5, 0.0).eval()
    logits, deltas = head(torch.rand(50, 5, 8), torch.randn(50, 64))
    assert float(deltas.detach().abs().max()) < 0.1
    assert float(logits.detach().softmax(dim=1).max()) < 0.5


def test_dropout_is_for_training_only() -> None:
    head, given = PyramidHead((8, (2, 1)), 12, 64, 5, 0.5), (torch.rand(4, 5, 8), torch.randn(4, 64))
    head.train()
    assert not torch.equal(head(*given)[0], head(*given)[0])
    head.eval()
    assert torch.equal(head(*given)[0], head(*given)[0])


def test_every_bin_is_normalised_by_itself() -> None:
    """Stretch and shift all channels of one bin: nothing changes; of one channel: something does."""
    head = PyramidHead((8, (2, 1)), 0, 16, 5, 0.0).eval()
    pooled, none = 5 * torch.rand(3, 5, 8), torch.zeros(3, 0)
    logits = head(pooled, none)[0]
    stretched = pooled.clone()
    stretched[:, 2] = stretched[:, 2] * 7 + 3
    torch.testing.assert_close(head(stretched, none)[0], logits, rtol=1e-3, atol=1e-6)
    stretched[:, 2, 4] += 9
    assert not torch.allclose(head(stretched, none)[0], logits, rtol=1e-3, atol=1e-6)


# Windows of cells of the fine map, 6 x 10 cells at 16 / 15, under which the coarse one has 3 x 5 at 32 / 31.
WINDOWS = torch.tensor([[0, 0, 10, 6], [2, 1, 6, 3], [9, 5, 10, 6], [1, 0, 2, 6], [3, 2, 4, 3]])


@pytest.mark.parametrize("repeats", [1, 40], ids=["few regions", "many regions"])
def test_context_is_the_mean_over_the_window_times_a_layer(repeats: int) -> None:
    """Paint cells as squares of pixels, the last ones up to the fine map's end, and average the window's pixels."""
    fine, coarse = taps((7, 12))
    head = PyramidHead((8, (2, 1)), 12, 16, 5, 0.0)
    # Pixel p of the picture is pixel p + 7 of the image, where the first fine cell begins; the first coarse cell
    # begins 8 pixels later and takes these, the last one ends 8 pixels later than the last fine one
    picture = coarse.values.repeat_interleave(32, dim=1).repeat_interleave(32, dim=2)
    picture = pad(picture[None], (8, 0, 8, 0), mode="replicate")[0, :, : 6 * 16, : 10 * 16]
    means = torch.stack([picture[:, 16 * y1 : 16 * y2, 16 * x1 : 16 * x2].mean((1, 2)) for x1, y1, x2, y2 in WINDOWS])
    assert head.context is not None
    expected = means @ head.context.weight.T
    read = head.read_context(coarse, fine, WINDOWS.repeat(repeats, 1))
    assert read.dtype == torch.float32
    torch.testing.assert_close(read, expected.repeat(repeats, 1), rtol=1e-5, atol=1e-5)
    assert tuple(head.read_context(coarse, fine, WINDOWS[:0]).shape) == (0, 16)


def test_context_has_the_gradients_of_its_definition() -> None:
    fine, coarse = (m.with_values(m.values.double()) for m in taps((2, 3)))
    head = PyramidHead((8, (2, 1)), 3, 4, 5, 0.0).double()
    assert head.context is not None

    def read(values: Tensor, weight: Tensor) -> Tensor:
        return functional_call(
            head, {"context.weight": weight}, (coarse.with_values(values), fine, WINDOWS), strict=False
        )

    head.forward = head.read_context  # type: ignore[assignment]
    assert gradcheck(read, (coarse.values.requires_grad_(), head.context.weight))


def test_context_is_added_to_what_fc6_reads() -> None:
    head = PyramidHead((8, (2, 1)), 12, 16, 5, 0.0).eval()
    pooled, context = torch.rand(4, 5, 8), torch.randn(4, 16)
    expected = head(pooled, context)
    with torch.no_grad():
        head.fc6.bias.add_(context[2])
    for found, wanted in zip(head(pooled[2:3], torch.zeros(1, 16)), expected, strict=True):
        torch.testing.assert_close(found[0], wanted[2])
    assert not torch.allclose(expected[0][2], head(pooled[2:3], context[2:3])[0][0])


def test_a_head_without_context_reads_none() -> None:
    head, (fine, coarse) = PyramidHead((8, (2, 1)), 0, 16, 5, 0.0).eval(), taps((7, 12))
    assert not any(name.startswith("context") for name in head.state_dict())
    context = head.read_context(coarse, fine, WINDOWS)
    assert len(context) == len(WINDOWS)
    logits, deltas = head(torch.rand(5, 5, 8), context)
    assert (tuple(logits.shape), tuple(deltas.shape)) == ((5, 6), (5, 5, 4))


def test_gradients_reach_all_that_learns() -> None:
    """Follow both losses from the head through pooling and alignment to every layer and back to every tap."""
    maps = taps((7, 12, 20))
    maps = [FeatureMap(m.values.requires_grad_(), m.stride, m.offset, m.scale) for m in maps]
    reduction, head = Reduction((7, 12, 20), 8).train(), PyramidHead((8, (3, 1)), 20, 32, 5, 0.1).train()
    fine, coarse = reduction(maps)
    pooled = spatial_pyramid_pool(fine.values, WINDOWS, (3, 1))
    logits, deltas = head(pooled, head.read_context(coarse, fine, WINDOWS))
    (logits[:, 0].sum() + deltas[:, 2].square().sum()).backward()
    named = {**dict(reduction.named_parameters(prefix="reduction")), **dict(head.named_parameters(prefix="head"))}
    assert [n for n, p in named.items() if p.grad is None or not bool(p.grad.any())] == []
    assert all(m.values.grad is not None and bool(m.values.grad.any()) for m in maps)
