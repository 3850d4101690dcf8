"""Hold every proposer to the contract, and each to what is its own."""

from __future__ import annotations

import re
import warnings
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
import selectivesearch
import torch
from skimage import data
from torch import Tensor
from torchvision.ops import box_iou

from proposals import opencv
from proposals.opencv import MODES, OpenCVSelectiveSearch, has_ximgproc
from proposals.package import PackageSelectiveSearch
from proposals.registry import PROPOSERS, make_proposer
from proposals.windows import STEPS, SlidingWindows, make_windows
from tests.contracts import check_proposer

needs_ximgproc = pytest.mark.skipif(not has_ximgproc(), reason="needs a contrib build of OpenCV: no ximgproc in this")


@pytest.fixture(scope="module")
def photo() -> Tensor:
    """Return a (3, 120, 180) photo of a cup of coffee."""
    small = cv2.resize(data.coffee(), (180, 120), interpolation=cv2.INTER_AREA)
    return torch.from_numpy(small).permute(2, 0, 1).contiguous()


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=needs_ximgproc) if n.startswith("opencv") else n for n in PROPOSERS]
)
def test_proposers_keep_the_contract(name: str, photo: Tensor) -> None:
    check_proposer(make_proposer(name), [photo])


@pytest.mark.parametrize("proposer", [SlidingWindows, PackageSelectiveSearch])
@pytest.mark.parametrize("most", [1, 5, 60])
def test_at_most_max_boxes_are_kept(proposer: type, most: int, photo: Tensor) -> None:
    boxes = proposer(max_boxes=most)(photo).boxes
    assert len(boxes) == most if proposer is PackageSelectiveSearch else 1 <= len(boxes) <= most
    assert proposer(max_boxes=most).settings != proposer(max_boxes=most + 1).settings


@pytest.mark.parametrize("proposer", [SlidingWindows, PackageSelectiveSearch])
def test_no_boxes_at_all_are_refused(proposer: type) -> None:
    with pytest.raises(ValueError, match="expected max_boxes of at least 1, got 0"):
        proposer(max_boxes=0)


@pytest.mark.parametrize("size", [(300, 400), (91, 500), (700, 260)])
def test_windows_are_the_densest_grid_that_fits(size: tuple[int, int]) -> None:
    counts = [len(make_windows(size, step)) for step in STEPS]
    assert counts == sorted(counts, reverse=True)
    for most in (counts[0] + 5, counts[0] - 1, counts[2], counts[-1], counts[-1] - 1):
        found = SlidingWindows(most)(torch.zeros(3, *size, dtype=torch.uint8))
        assert len(found) == max((count for count in counts if count <= most), default=most)


def test_windows_cover_the_image_with_the_steps_that_are_asked_for() -> None:
    windows = make_windows((300, 400), 0.25)
    assert windows[0].tolist() == [0, 0, 400, 300]
    areas = np.prod(windows[:, 2:] - windows[:, :2], axis=1)
    assert areas[0] == areas.max()
    sides = windows[:, 2:] - windows[:, :2]
    for w, h in np.unique(sides, axis=0).tolist():
        kind = windows[(sides == (w, h)).all(axis=1)]
        for axis, side, length in ((0, w, 400), (1, h, 300)):
            starts = np.unique(kind[:, axis])
            assert (starts[0], starts[-1] + side) == (0, length)
            assert np.diff(starts).max(initial=0) <= 0.25 * side + 1


@pytest.mark.parametrize("ratio", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("relative", [0.15, 0.3, 0.6])
def test_windows_find_objects_of_many_shapes(relative: float, ratio: float) -> None:
    generator = np.random.default_rng(0)
    found = SlidingWindows(20000)(torch.zeros(3, 300, 400, dtype=torch.uint8)).boxes
    side = relative * (300 * 400) ** 0.5
    w, h = side * ratio**0.5, side / ratio**0.5
    for x, y in zip(generator.uniform(0, 400 - w, 20), generator.uniform(0, max(300 - h, 0), 20), strict=True):
        assert box_iou(found, torch.tensor([[x, y, x + w, y + h]], dtype=torch.float32)).max() > 0.5


def test_the_package_gives_boxes_of_whole_regions() -> None:
    """Its own rects stop one pixel short: a region of columns 0 to 29 gets the width 29."""
    image = np.zeros((40, 70, 3), np.uint8)
    image[:, 30:] = (250, 30, 30)
    boxes = PackageSelectiveSearch()(torch.from_numpy(image).permute(2, 0, 1)).boxes
    assert boxes[:, 0].min() == boxes[:, 1].min() == 0
    assert boxes[:, 2].max() == 70
    assert boxes[:, 3].max() == 40


def test_the_package_boxes_are_its_rects_and_one_more_pixel(photo: Tensor) -> None:
    image = photo.permute(1, 2, 0).numpy()
    expected = set()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for scale in (50, 100, 200):
            _, regions = selectivesearch.selective_search(image, scale=scale, sigma=0.8, min_size=20)
            expected |= {(x, y, x + w + 1, y + h + 1) for x, y, w, h in (region["rect"] for region in regions)}
    boxes = PackageSelectiveSearch()(photo).boxes
    assert {tuple(box) for box in boxes.tolist()} == expected
    assert len(expected) > 100


def test_the_package_leaves_warnings_as_they_were(photo: Tensor) -> None:
    before = list(warnings.filters)
    with ThreadPoolExecutor(4) as pool:
        found = [result.boxes for result in pool.map(PackageSelectiveSearch(), [photo] * 6)]
    assert warnings.filters == before
    assert all(torch.equal(boxes, found[0]) for boxes in found)


@pytest.mark.skipif(has_ximgproc(), reason="this OpenCV has ximgproc")
@pytest.mark.parametrize("mode", MODES)
def test_a_missing_ximgproc_is_named_with_what_to_install(mode: str) -> None:
    with pytest.raises(ValueError, match="contrib build") as error:
        make_proposer(f"opencv-{mode}")
    message = str(error.value)
    assert re.match(
        r"expected a contrib build of OpenCV, which has ximgproc, got OpenCV [\d.]+\S* without it: ", message
    )
    assert "opencv-contrib-python" in message
    assert "two OpenCV wheels must not be installed side by side" in message
    assert "\n" not in message


def test_an_unknown_mode_of_opencv_is_refused() -> None:
    with pytest.raises(
        ValueError, match="expected a mode of single, fast, quality and max_boxes of at least 1, got 'x'"
    ):
        OpenCVSelectiveSearch("x")


@needs_ximgproc
def test_opencv_boxes_come_from_large_to_small(photo: Tensor) -> None:
    boxes = OpenCVSelectiveSearch("fast", 10_000)(photo).boxes
    sides = boxes[:, 2:] - boxes[:, :2]
    areas = sides.prod(dim=1)
    assert boxes[0].tolist() == [0, 0, 180, 120]
    assert bool((areas[1:] <= areas[:-1]).all())
    assert torch.equal(OpenCVSelectiveSearch("fast", 20)(photo).boxes, boxes[:20])


@needs_ximgproc
def test_modes_of_opencv_search_ever_more(photo: Tensor) -> None:
    counts = [len(OpenCVSelectiveSearch(mode, 100_000)(photo)) for mode in opencv.MODES]
    assert counts[0] < counts[1] < counts[2]
