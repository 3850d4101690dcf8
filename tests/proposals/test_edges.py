"""Find the edges of drawn images."""

from __future__ import annotations

import math
from pathlib import Path

import cv2
import numpy as np
import pytest

from proposals.edges import find_edges, find_structured_edges, load_forest, steepest, thin
from tests.proposals.forest import write_forest

has_forests = hasattr(getattr(cv2, "ximgproc", None), "createStructuredEdgeDetection")


def draw_line(degrees: float) -> np.ndarray:
    """Return a (90, 130, 3) image, dark on one side of a line through its middle and bright on the other.

    degrees: where the bright side lies, clockwise from the x axis.
    """
    y, x = np.mgrid[0:90, 0:130]
    angle = math.radians(degrees)
    side = (x - 64.5) * math.cos(angle) + (y - 44.5) * math.sin(angle) > 0
    return np.where(side[..., None], (210, 180, 60), (40, 60, 90)).astype(np.uint8)


@pytest.mark.parametrize("degrees", [0, 30, 60, 90, 120, 150, 180, 270])
def test_an_edge_lies_on_its_line_and_points_across_it(degrees: float) -> None:
    strength, direction = find_edges(draw_line(degrees))
    angle = math.radians(degrees)
    y, x = np.nonzero(strength > 0.5)
    assert len(y) > 60
    assert np.abs((x - 64.5) * math.cos(angle) + (y - 44.5) * math.sin(angle)).max() < 1.5
    turned = np.abs(direction[y, x] - angle % math.pi)
    assert np.minimum(turned, math.pi - turned)[(y > 5) & (y < 84) & (x > 5) & (x < 124)].max() < math.radians(8)


def test_values_keep_their_ranges() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    for image in (noise, noise[:1], noise[:, :1], noise[:1, :1], np.zeros((20, 30, 3), np.uint8)):
        strength, direction = find_edges(image)
        assert strength.shape == direction.shape == image.shape[:2]
        assert strength.dtype == direction.dtype == np.float32
        assert strength.min() >= 0
        assert strength.max() <= 1
        assert direction.min() >= 0
        assert direction.max() < math.pi


def test_a_lonely_edge_is_stronger_than_those_of_a_texture() -> None:
    image = np.full((120, 200, 3), 120, np.uint8)
    image[:, :80:4] = image[:, 1:80:4] = 160  # stripes as strong as the edge at column 150
    image[:, 150:] = 160
    strength, _ = find_edges(image)
    assert strength[60, 147:153].max() > 2 * strength[60, 20:60].max()


def test_the_steepest_channel_decides() -> None:
    generator = np.random.default_rng(1)
    across, down = (generator.normal(size=(7, 9, 3)).astype(np.float32) for _ in range(2))
    strength, direction = steepest(across, down)
    lengths = np.hypot(across, down)
    assert strength == pytest.approx(lengths.max(axis=2), abs=1e-6)
    best = lengths.argmax(axis=2)[..., None]
    dx, dy = (np.take_along_axis(values, best, axis=2)[..., 0] for values in (across, down))
    assert np.abs(np.cos(direction) * dy - np.sin(direction) * dx).max() < 1e-5, "parallel to the gradient"


def test_thinning_keeps_the_crest() -> None:
    x = np.arange(40, dtype=np.float32)
    ridge = np.exp(-((x - 17.2) ** 2) / 20)[None].repeat(12, axis=0).astype(np.float32)
    thinned = thin(ridge, np.zeros_like(ridge))
    assert [np.flatnonzero(row).tolist() for row in thinned] == [[17]] * 12
    assert thinned[:, 17] == pytest.approx(ridge[:, 17])
    upright = thin(np.ascontiguousarray(ridge.T), np.full(ridge.T.shape, np.pi / 2, np.float32))
    assert np.array_equal(upright, thinned.T)


@pytest.mark.skipif(has_forests, reason="this OpenCV finds structured edges")
def test_a_forest_without_contrib_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^expected a contrib build of OpenCV, which finds structured edges"):
        load_forest(tmp_path / "model.yml.gz")


@pytest.mark.skipif(not has_forests, reason="needs a contrib build of OpenCV: no ximgproc in this")
def test_a_missing_or_wrong_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.yml\.gz: expected a model of structured edges"):
        load_forest(tmp_path / "none.yml.gz")
    (tmp_path / "text.yml").write_text("no model\n")
    with pytest.raises(ValueError, match=r"text.yml: expected a model of structured edges .* got something else"):
        load_forest(tmp_path / "text.yml")


@pytest.mark.skipif(not has_forests, reason="needs a contrib build of OpenCV: no ximgproc in this")
@pytest.mark.parametrize("degrees", [0, 30, 60, 120, 150])
def test_edges_of_a_forest_lie_on_their_line_and_point_across_it(degrees: float, tmp_path: Path) -> None:
    """The forest draws squares of 8 pixels on the line, so a place is known by half of that and directions roughly."""
    forest = load_forest(write_forest(tmp_path / "model.yml.gz"))
    strength, direction = find_structured_edges(draw_line(degrees), forest)
    assert strength.shape == direction.shape == (90, 130)
    assert strength.dtype == direction.dtype == np.float32
    assert 0.1 < strength.max() <= 1
    assert 0 <= direction.min() <= direction.max() <= math.pi
    angle = math.radians(degrees)
    y, x = np.nonzero(strength > 0.1)
    inner = (y > 9) & (y < 80) & (x > 9) & (x < 120)
    assert inner.sum() > 60
    assert np.median(np.abs((x - 64.5) * math.cos(angle) + (y - 44.5) * math.sin(angle))[inner]) < 4
    turned = np.abs(direction[y, x] - angle)[inner]
    assert np.median(np.minimum(turned, math.pi - turned)) < math.radians(15)


@pytest.mark.skipif(not has_forests, reason="needs a contrib build of OpenCV: no ximgproc in this")
@pytest.mark.parametrize("size", [(1, 1), (2, 40), (40, 3), (15, 16)])
def test_a_forest_takes_images_smaller_than_its_patches(size: tuple[int, int], tmp_path: Path) -> None:
    image = np.random.default_rng(3).integers(0, 256, (*size, 3), np.uint8)
    strength, direction = find_structured_edges(image, load_forest(write_forest(tmp_path / "model.yml.gz")))
    assert strength.shape == direction.shape == size
    assert np.isfinite(strength).all()
    assert np.isfinite(direction).all()
