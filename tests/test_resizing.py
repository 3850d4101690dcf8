"""Check sizes and resampling against PyTorch's own, and the way to Pillow and back."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from detector.images import from_pillow, resize_image, scaled_size, to_pillow


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((375, 500), (576, 768)),
        ((500, 375), (768, 576)),
        ((480, 640), (576, 768)),
        ((100, 1000), (115, 1152)),
        ((1000, 100), (1152, 115)),
        ((576, 1152), (576, 1152)),
        ((1, 5000), (1, 1152)),
        ((1, 1), (576, 576)),
        ((4000, 6000), (576, 864)),
    ],
)
def test_scaled_size(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert scaled_size(size, 576, 1152) == expected


@given(st.integers(1, 9000), st.integers(1, 9000), st.integers(1, 900), st.integers(1, 1500))
def test_scaled_size_keeps_its_promises(height: int, width: int, shorter: int, longest: int) -> None:
    size = scaled_size((height, width), shorter, longest)
    assert min(size) == shorter or max(size) == longest
    assert min(size) <= shorter or shorter > longest
    assert 1 <= max(size) <= max(longest, 1)
    assert scaled_size((width, height), shorter, longest) == size[::-1]
    scale = max(size) / max(height, width)
    assert abs(min(height, width) * scale - min(size)) <= 1 + min(height, width) / max(height, width)


def test_shrinking_averages_the_covered_pixels() -> None:
    image = torch.randint(0, 256, (3, 12, 20), dtype=torch.uint8)
    small = resize_image(image, (4, 5))
    mean = torch.nn.functional.avg_pool2d(image[None].float(), (3, 4))[0]
    assert (small.dtype, tuple(small.shape), small.stride()) == (torch.uint8, (3, 4, 5), (1, 15, 3))
    assert (small.float() - mean).abs().max() <= 0.51


@pytest.mark.parametrize("size", [(24, 30), (12, 41), (24, 7)])
def test_enlarging_interpolates_linearly(size: tuple[int, int]) -> None:
    image = torch.randint(0, 256, (3, 12, 20), dtype=torch.uint8)
    resized = resize_image(image, size).float()
    linear = torch.nn.functional.interpolate(image[None].float(), size, mode="bilinear", align_corners=False)[0]
    assert (resized - linear).abs().max() <= 1


def test_resizing_accepts_any_layout_and_leaves_the_image_alone() -> None:
    image = torch.randint(0, 256, (3, 12, 20), dtype=torch.uint8)
    before = image.clone()
    last = image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    for size in ((6, 11), (12, 20), (1, 1), (30, 50)):
        assert torch.equal(resize_image(image, size), resize_image(last, size))
    same = resize_image(last, (12, 20))
    assert torch.equal(same, before)
    assert torch.equal(image, before)


def test_pillow_round_trip() -> None:
    image = torch.randint(0, 256, (3, 5, 9), dtype=torch.uint8)
    assert to_pillow(image).size == (9, 5)
    assert torch.equal(from_pillow(to_pillow(image)), image)
