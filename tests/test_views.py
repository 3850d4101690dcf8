"""Check what of an image each kind of views shows, against the paper's description."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from detector.images import resize_image
from detector.views import VIEWS, Look, plan_views, show_views

LANDSCAPE = (300, 400)


def views_of(looks: list[Look]) -> list[tuple[tuple[int, ...], bool]]:
    """Return every view's box in the resized image, as whole pixels, and whether it is mirrored."""
    found = []
    for look in looks:
        for box, mirrored in zip(look.boxes.tolist(), look.mirrored.tolist(), strict=True):
            x, y = look.crop[:2]
            found.append(
                ((int(box[0] + x), int(box[1] + y), int(box[2] + x), int(box[3] + y)), mirrored or look.flipped)
            )
    return found


def test_the_whole_image_keeps_its_shape_and_a_warp_does_not() -> None:
    (full,), (warp,) = plan_views(LANDSCAPE, "full", 224), plan_views(LANDSCAPE, "warp", 224)
    assert (full.size, full.boxes.tolist()) == ((224, 299), [[0, 0, 299, 224]])
    assert (warp.size, warp.boxes.tolist()) == ((224, 224), [[0, 0, 224, 224]])


def test_a_crop_is_the_centre_of_the_image_at_256() -> None:
    (look,) = plan_views(LANDSCAPE, "crop", 224)
    assert look.resized == (256, 341)
    assert look.crop == (58, 16, 282, 240)


@pytest.mark.parametrize("size", [(300, 400), (401, 300), (240, 700)])
def test_ten_views_of_the_map_are_the_ten_crops_of_the_image(size: tuple[int, int]) -> None:
    (once,) = ten = plan_views(size, "ten", 224)
    crops = plan_views(size, "ten-crop", 224)
    assert len(crops) == 10
    assert once.resized == crops[0].resized == once.size
    assert min(once.size) == 256
    assert sorted(views_of(ten)) == sorted(views_of(crops))
    height, width = once.size
    corners = {(0, 0), (width - 224, 0), (0, height - 224), (width - 224, height - 224)}
    assert {box[:2] for box, mirrored in views_of(ten) if not mirrored} >= corners


def test_the_paper_s_96_views() -> None:
    looks = plan_views(LANDSCAPE, "many", 224)
    assert [min(look.size) for look in looks] == [224, 256, 300, 360, 448, 560]
    assert [len(look.boxes) for look in looks] == [6, 18, 18, 18, 18, 18]
    assert sum(len(look.boxes) for look in looks) == 96
    for look in looks:
        views = views_of([look])
        assert len(set(views)) == len(views)
        assert all((x2 - x1, y2 - y1) == (224, 224) for (x1, y1, x2, y2), _ in views)


@given(st.tuples(st.integers(1, 3000), st.integers(1, 3000)), st.sampled_from(VIEWS), st.integers(1, 300))
def test_views_lie_in_the_picture_whatever_its_shape(size: tuple[int, int], views: str, side: int) -> None:
    for look in plan_views(size, views, side):
        height, width = look.size
        assert 1 <= height <= look.resized[0]
        assert 1 <= width <= look.resized[1]
        boxes = look.boxes
        assert bool((boxes[:, :2] >= 0).all() and (boxes[:, 2:] > boxes[:, :2]).all())
        assert bool((boxes[:, 2] <= width).all() and (boxes[:, 3] <= height).all())


def test_pictures_are_cut_and_mirrored_as_planned(generator: torch.Generator) -> None:
    image = torch.randint(256, (3, 60, 80), generator=generator, dtype=torch.uint8)
    looks = plan_views((60, 80), "ten-crop", 28)
    resized = resize_image(image, looks[0].resized)
    pictures = show_views(image, looks)
    for look, picture in zip(looks, pictures, strict=True):
        x1, y1, x2, y2 = look.crop
        expected = resized[:, y1:y2, x1:x2]
        assert torch.equal(picture, expected.flip(2) if look.flipped else expected)
    assert all(torch.equal(a.flip(2), b) for a, b in zip(pictures[:5], pictures[5:], strict=True))


def test_unknown_views_are_refused() -> None:
    with pytest.raises(ValueError, match="expected views among full, crop, warp, ten-crop, ten, many, got 'eleven'"):
        plan_views(LANDSCAPE, "eleven", 224)
    with pytest.raises(ValueError, match="expected a side of at least 1 pixel, got 0"):
        plan_views(LANDSCAPE, "full", 0)
