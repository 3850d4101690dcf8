"""Check box regression against the R-CNN formula, and projection against a search over all cells, box by box."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from detector.boxes import DELTA_STD, PROJECTIONS, decode, encode, project
from detector.features import flip_map
from detector.sampling import mirror
from detector.structures import FeatureMap

Box = tuple[float, float, float, float]

# The rules that `project_side` knows; those of the paper and of its code have a file of their own, test_projections.py.
OURS = ("nearest", "inside")

sides = st.floats(1, 800, width=32)
corners = st.floats(0, 500, width=32)
# Whole eighths of pixels and whole 32nds of scale: exact in float32 and in every step of a projection in float64.
eighths = st.integers(-200, 6000).map(lambda n: n / 8)
scales = st.integers(4, 96).map(lambda n: n / 32)


@st.composite
def boxes(draw: st.DrawFn) -> Box:
    x, y = draw(corners), draw(corners)
    return x, y, x + draw(sides), y + draw(sides)


@st.composite
def exact_boxes(draw: st.DrawFn) -> Box:
    x, y = draw(eighths), draw(eighths)
    width, height = (draw(st.integers(1, 3000)) / 8 for _ in range(2))
    return x, y, x + width, y + height


@st.composite
def maps(draw: st.DrawFn) -> FeatureMap:
    size = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    offsets = st.sampled_from([0.0, 7.5, 15.0, 31.0, -4.5])
    offset = draw(st.one_of(offsets, st.tuples(offsets, offsets)))
    scale = draw(scales), draw(scales)
    return FeatureMap(torch.zeros(1, *size), draw(st.sampled_from([4, 16, 32])), offset, scale)


def rcnn_deltas(box: Box, target: Box) -> list[float]:
    """Compute (tx, ty, tw, th) of one pair of boxes (Girshick et al. 2014, appendix C, equations 6 to 9)."""
    px, py = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    gx, gy = (target[0] + target[2]) / 2, (target[1] + target[3]) / 2
    pw, ph = box[2] - box[0], box[3] - box[1]
    gw, gh = target[2] - target[0], target[3] - target[1]
    return [(gx - px) / pw, (gy - py) / ph, math.log(gw / pw), math.log(gh / ph)]


def rcnn_box(box: Box, deltas: list[float]) -> list[float]:
    """Apply (tx, ty, tw, th) to one box (Girshick et al. 2014, appendix C, equations 1 to 4)."""
    width, height = box[2] - box[0], box[3] - box[1]
    x, y = width * deltas[0] + (box[0] + box[2]) / 2, height * deltas[1] + (box[1] + box[3]) / 2
    width, height = width * math.exp(deltas[2]), height * math.exp(deltas[3])
    return [x - width / 2, y - height / 2, x + width / 2, y + height / 2]


@given(boxes(), boxes())
def test_encode_follows_the_formula(box: Box, target: Box) -> None:
    deltas = encode(torch.tensor([box]), torch.tensor([target]))
    unscaled = [float(v) * s for v, s in zip(deltas[0], DELTA_STD, strict=True)]
    assert unscaled == pytest.approx(rcnn_deltas(box, target), rel=1e-4, abs=1e-3)


@given(boxes(), st.lists(st.floats(-2, 2, width=32), min_size=4, max_size=4))
def test_decode_follows_the_formula(box: Box, deltas: list[float]) -> None:
    scaled = torch.tensor([[v / s for v, s in zip(deltas, DELTA_STD, strict=True)]])
    assert decode(torch.tensor([box]), scaled)[0].tolist() == pytest.approx(rcnn_box(box, deltas), rel=1e-4, abs=1e-2)


@given(boxes(), boxes())
def test_decode_undoes_encode(box: Box, target: Box) -> None:
    """Leave out pairs whose sides differ more than decode lets them grow."""
    assume(all((target[i + 2] - target[i]) / (box[i + 2] - box[i]) < 62.5 for i in (0, 1)))
    deltas = encode(torch.tensor([box]), torch.tensor([target]))
    assert decode(torch.tensor([box]), deltas)[0].tolist() == pytest.approx(target, rel=1e-4, abs=1e-2)


def test_no_deltas_leave_boxes_where_they_are() -> None:
    given_boxes = torch.tensor([[10.0, 20.0, 50.0, 40.0], [0.0, 0.0, 1.0, 3.0]])
    assert torch.equal(decode(given_boxes, torch.zeros(2, 4)), given_boxes)
    assert torch.equal(encode(given_boxes, given_boxes), torch.zeros(2, 4))


def test_sides_grow_at_most_62_5_fold_and_shrink_freely() -> None:
    box = torch.tensor([[100.0, 200.0, 110.0, 204.0]])
    huge = decode(box, torch.tensor([[0.0, 0.0, 1e4, 1e30]]))[0]
    assert [float(huge[2] - huge[0]), float(huge[3] - huge[1])] == pytest.approx([625, 250], rel=1e-5)
    tiny = decode(box, torch.tensor([[0.0, 0.0, -1e4, -1e4]]))[0]
    assert tiny.tolist() == [105, 202, 105, 202]


def test_deltas_per_class_are_decoded_class_by_class() -> None:
    some = torch.tensor([[10.0, 20.0, 50.0, 40.0], [5.0, 0.0, 15.0, 90.0], [0.0, 7.0, 3.0, 8.0]])
    deltas = torch.randn(3, 5, 4)
    together = decode(some, deltas)
    assert tuple(together.shape) == (3, 5, 4)
    for k in range(5):
        assert torch.equal(together[:, k], decode(some, deltas[:, k]))


Grid = tuple[Fraction, int]  # offset and stride of the cells along one axis


def grid(feature_map: FeatureMap, axis: int) -> Grid:
    offset = feature_map.offset
    return Fraction(offset[axis] if isinstance(offset, tuple) else offset), feature_map.stride


def nearest_cell(position: Fraction, cells: Grid) -> int:
    """Search the cell whose centre is nearest to a pixel of the resized image, beyond the map too; the later of two."""
    return min(cells_near(position, position, cells), key=lambda j: (abs(centre(j, cells) - position), -j))


def cells_near(first: Fraction, last: Fraction, cells: Grid) -> range:
    """Return all cells between two pixels and some more on either side."""
    low, high = ((p - cells[0]) / cells[1] for p in (first, last))
    return range(math.floor(low) - 2, math.ceil(high) + 3)


def centre(cell: int, cells: Grid) -> Fraction:
    return cells[0] + cells[1] * cell


def project_side(low: float, high: float, axis: int, feature_map: FeatureMap, rule: str) -> tuple[int, int]:
    """Project one side of one box, axis 0 for y and 1 for x, by searching; the same rules as `project`, in words."""
    scale, count = Fraction(feature_map.scale[axis]), feature_map.values.shape[1 + axis]
    first, last = Fraction(low) * scale, Fraction(high) * scale - 1
    own = grid(feature_map, axis)
    if rule == "nearest":
        cells = range(nearest_cell(first, own), nearest_cell(last, own) + 1)
    else:
        inside = [j for j in cells_near(first, last, own) if first <= centre(j, own) <= last]
        cells = range(inside[0], inside[-1] + 1) if inside else range(0)
    if not cells:
        middle = nearest_cell((first + last) / 2, own)
        cells = range(middle, middle + 1)
    return min(max(cells[0], 0), count - 1), min(max(cells[-1], 0), count - 1) + 1


@pytest.mark.parametrize("rule", OURS)
@given(st.lists(exact_boxes(), min_size=1, max_size=6), maps())
def test_projection_equals_a_search_over_the_cells(rule: str, some: list[Box], feature_map: FeatureMap) -> None:
    windows = project(torch.tensor(some), feature_map, rule)
    assert windows.dtype == torch.int64
    for (x1, y1, x2, y2), window in zip(some, windows.tolist(), strict=True):
        left, right = project_side(x1, x2, 1, feature_map, rule)
        top, bottom = project_side(y1, y2, 0, feature_map, rule)
        assert window == [left, top, right, bottom]


@pytest.mark.parametrize("rule", PROJECTIONS)
@given(st.lists(boxes(), min_size=1, max_size=6), maps())
def test_windows_are_inside_the_map_and_never_empty(rule: str, some: list[Box], feature_map: FeatureMap) -> None:
    x1, y1, x2, y2 = project(torch.tensor(some), feature_map, rule).unbind(1)
    height, width = feature_map.values.shape[1:]
    assert bool(((x1 >= 0) & (x1 < x2) & (x2 <= width)).all())
    assert bool(((y1 >= 0) & (y1 < y2) & (y2 <= height)).all())


# A map of 3 x 5 cells, 16 pixels apart, the first centred on (7.5, 7.5): cell j has the pixels 16 j to 16 j + 15.
GRID = FeatureMap(torch.zeros(1, 3, 5), 16, 7.5, (1.0, 1.0))


@pytest.mark.parametrize(
    ("box", "nearest", "inside"),
    [
        ((0, 0, 80, 48), (0, 0, 5, 3), (0, 0, 5, 3)),
        ((16, 16, 32, 32), (1, 1, 2, 2), (1, 1, 2, 2)),
        ((17, 17, 31, 31), (1, 1, 2, 2), (1, 1, 2, 2)),
        ((15, 15, 33, 33), (0, 0, 3, 3), (1, 1, 2, 2)),
        ((64, 32, 80, 48), (4, 2, 5, 3), (4, 2, 5, 3)),
        ((78, 46, 80, 48), (4, 2, 5, 3), (4, 2, 5, 3)),
        ((0, 0, 2, 2), (0, 0, 1, 1), (0, 0, 1, 1)),
        ((40, 20, 40.5, 20.5), (2, 1, 3, 2), (2, 1, 3, 2)),
        ((8, 8, 23, 23), (0, 0, 2, 2), (0, 0, 1, 1)),
        ((9, 9, 24, 24), (0, 0, 2, 2), (1, 1, 2, 2)),
        ((-90, -50, 300, 200), (0, 0, 5, 3), (0, 0, 5, 3)),
        ((-90, -50, -80, -40), (0, 0, 1, 1), (0, 0, 1, 1)),
        ((200, 200, 210, 210), (4, 2, 5, 3), (4, 2, 5, 3)),
        ((60, 0, 300, 16), (3, 0, 5, 1), (4, 0, 5, 1)),
    ],
)
def test_projection_by_hand(box: Box, nearest: tuple[int, ...], inside: tuple[int, ...]) -> None:
    boxes_ = torch.tensor([box], dtype=torch.float32)
    assert project(boxes_, GRID)[0].tolist() == list(nearest)
    assert project(boxes_, GRID, "inside")[0].tolist() == list(inside)


def test_height_and_width_have_scales_of_their_own() -> None:
    feature_map = FeatureMap(torch.zeros(1, 8, 10), 16, 7.5, (2.0, 0.5))
    assert project(torch.tensor([[64.0, 8.0, 160.0, 24.0]]), feature_map)[0].tolist() == [2, 1, 5, 3]


@pytest.mark.parametrize("rule", PROJECTIONS)
def test_boxes_are_projected_one_by_one(rule: str) -> None:
    feature_map = FeatureMap(torch.zeros(1, 20, 31), 16, 15.0, (1.237, 1.241))
    some = torch.rand(50, 4) * torch.tensor([300.0, 200.0, 100.0, 100.0])
    some[:, 2:] += some[:, :2]
    order = torch.randperm(50)
    windows = project(some, feature_map, rule)
    assert torch.equal(project(some[order], feature_map, rule), windows[order])
    assert torch.equal(torch.cat([project(box[None], feature_map, rule) for box in some]), windows)
    assert tuple(project(some[:0], feature_map, rule).shape) == (0, 4)


def has_ties(box: Box, feature_map: FeatureMap) -> bool:
    """Tell whether a side's end or middle is equally far from two cells: there, mirroring changes the choice."""
    for axis, (low, high) in enumerate(((box[1], box[3]), (box[0], box[2]))):
        scale = Fraction(feature_map.scale[axis])
        first, last = Fraction(low) * scale, Fraction(high) * scale - 1
        offset, stride = grid(feature_map, axis)
        for position in (first, last, (first + last) / 2):
            if ((position - offset) / stride) % 1 == Fraction(1, 2):
                return True
    return False


@pytest.mark.parametrize("rule", OURS)
@given(exact_boxes(), maps(), st.integers(1, 40))
def test_mirrored_boxes_fall_on_mirrored_cells(rule: str, box: Box, feature_map: FeatureMap, units: int) -> None:
    """Take image widths that a scale of n / 32 resizes to whole pixels."""
    assume(not has_ties(box, feature_map))
    image_width, cells = 32 * units, feature_map.values.shape[2]
    there: Tensor = project(torch.tensor([box]), feature_map, rule)
    back = project(mirror(torch.tensor([box]), image_width), flip_map(feature_map, image_width), rule)
    assert torch.equal(back, mirror(there, cells))


def test_unknown_rules_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^expected a projection among nearest, inside, paper, code, got 'outside'$"):
        project(torch.zeros(1, 4), GRID, "outside")
