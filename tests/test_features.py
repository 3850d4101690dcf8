"""Check where cells lie on the image, that an image is computed once, and that maps survive the disk."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from detector.backbones import Tap, Trunk, build_trunk
from detector.boxes import project
from detector.features import Extractor, FeatureStore, flip_map, pad_to_multiple, settings_key
from detector.images import resize_image, scaled_size
from detector.sampling import mirror
from detector.structures import FeatureMap

MEAN = 128
NORMALISATION = torch.full((3,), float(MEAN)), torch.full((3,), 64.0)


class Averages(nn.Module):
    """Average 8 x 8 pixels, then 3 x 3 of these: a trunk that looks the same in a mirror, cells at 3.5 + 8 j."""

    def __init__(self) -> None:
        super().__init__()
        smooth = nn.Conv2d(3, 3, 3, padding=1, groups=3, bias=False)
        nn.init.constant_(smooth.weight, 1 / 9)
        nn.init.constant_(smooth.weight[:, :, 1, 1], 2 / 9)
        self.features = nn.Sequential(nn.AvgPool2d(8), smooth, nn.AvgPool2d(2))


def averages(layers: tuple[str, ...] = ("features.1", "features.2")) -> Trunk:
    taps = {"features.1": Tap("features.1", 8, 3.5, 3), "features.2": Tap("features.2", 16, 7.5, 3)}
    return Trunk("averages", Averages(), tuple(taps[layer] for layer in layers), NORMALISATION)


def noise(height: int, width: int) -> Tensor:
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8)


@pytest.mark.parametrize(("size", "resized"), [((120, 200), (90, 150)), ((201, 97), (186, 90)), ((40, 300), (27, 200))])
def test_scale_is_that_of_the_size_really_resized_to(size: tuple[int, int], resized: tuple[int, int]) -> None:
    assert scaled_size(size, 90, 200) == resized
    fine, coarse = Extractor(averages(), 90, 200)(noise(*size))
    padded = [32 * math.ceil(side / 32) for side in resized]
    for feature_map, stride, offset in ((fine, 8, 3.5), (coarse, 16, 7.5)):
        assert feature_map.scale == (resized[0] / size[0], resized[1] / size[1])
        assert tuple(feature_map.values.shape) == (3, padded[0] // stride, padded[1] // stride)
        assert (feature_map.stride, feature_map.offset) == (stride, offset)
        assert feature_map.values.dtype == torch.float32


def test_padding_is_the_mean_colour_at_the_right_and_the_bottom() -> None:
    x = torch.randn(1, 3, 33, 64)
    padded = pad_to_multiple(x, 32)
    assert tuple(padded.shape) == (1, 3, 64, 64)
    assert torch.equal(padded[..., :33, :], x)
    assert not bool(padded[..., 33:, :].any())
    assert pad_to_multiple(x[..., :32, :], 32).shape == (1, 3, 32, 64)
    grey = torch.full((3, 40, 70), MEAN, dtype=torch.uint8)
    assert not bool(Extractor(averages(), 40, 70)(grey)[0].values.any()), "padding differs from a grey image"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [(40, 70), (64, 33), (31, 96)])
def test_pixels_are_those_that_the_trunk_normalises(size: tuple[int, int], dtype: torch.dtype) -> None:
    """Compare with resizing, normalising, padding and converting, one after the other; three means and deviations."""
    normalisation = torch.tensor([123.7, 116.3, 103.5]), torch.tensor([58.4, 57.1, 57.4])
    trunk, image = Trunk("averages", Averages(), averages().taps, normalisation), noise(*size)
    extractor = Extractor(trunk, 50, 96, dtype=dtype)
    resized = resize_image(image, scaled_size(size, 50, 96))[None]
    expected = pad_to_multiple((resized.float() - trunk.mean) / trunk.std, 32).to(dtype)
    pixels = extractor.pixels(image)
    assert torch.equal(pixels, expected)
    assert pixels.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("size", "shorter"), [((96, 160), 96), ((90, 150), 180), ((170, 100), 50)])
@pytest.mark.parametrize("tap", [0, 1])
def test_a_bright_spot_lights_the_cell_it_lies_on(size: tuple[int, int], shorter: int, tap: int) -> None:
    """Put a spot on the centre of every fifth cell inside the image: no other cell may answer more."""
    extractor = Extractor(averages(), shorter, 1000)
    base = torch.full((3, *size), MEAN, dtype=torch.uint8)
    geometry = extractor(base)[tap]
    scale_y, scale_x = geometry.scale
    spots = 0
    for i in range(geometry.values.shape[1]):
        for j in range(geometry.values.shape[2]):
            y = int((geometry.offset + geometry.stride * i) / scale_y)
            x = int((geometry.offset + geometry.stride * j) / scale_x)
            if (7 * i + j) % 5 == 0 and y + 2 <= size[0] and x + 2 <= size[1]:
                image = base.clone()
                image[:, y : y + 2, x : x + 2] = 255
                answer = extractor(image)[tap].values.sum(dim=0)
                assert divmod(int(answer.argmax()), answer.shape[1]) == (i, j)
                spots += 1
    assert spots >= 3


def test_a_spot_lights_a_real_trunk_where_its_geometry_says() -> None:
    """Find the centroid of the change that spots make: over many spots it must not lean by half a cell or more."""
    extractor = Extractor(build_trunk("efficientnet_lite0", ("blocks.4",)), 256, 512)
    base = torch.full((3, 128, 192), MEAN, dtype=torch.uint8)
    (before,) = extractor(base)
    leans = []
    for y, x in ((40, 50), (53, 101), (66, 77), (75, 133), (81, 60), (61, 120)):
        image = base.clone()
        image[:, y - 3 : y + 3, x - 3 : x + 3] = 255
        change = (extractor(image)[0].values - before.values).square().sum(dim=0)
        rows, columns = (torch.arange(n) for n in change.shape)
        cell = float((change.sum(1) * rows).sum() / change.sum()), float((change.sum(0) * columns).sum() / change.sum())
        spot = (y * before.scale[0] - 0.5, x * before.scale[1] - 0.5)
        leans.append([before.offset + before.stride * c - s for c, s in zip(cell, spot, strict=True)])
    mean = torch.tensor(leans).mean(dim=0)
    assert float(mean.abs().max()) < before.stride / 2


def test_the_trunk_runs_once_per_image_however_many_taps_it_has() -> None:
    trunk = averages()
    calls: list[int] = []
    trunk.model.features[0].register_forward_hook(lambda *_: calls.append(1))  # type: ignore[index, union-attr]
    assert len(Extractor(trunk, 64, 128)(noise(64, 96))) == 2
    assert len(calls) == 1


def test_images_are_not_changed_and_their_layout_does_not_matter() -> None:
    image = noise(50, 81)
    before = image.clone()
    last = image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    extractor = Extractor(averages(), 64, 128)
    for one, other in zip(extractor(image), extractor(last), strict=True):
        assert torch.equal(one.values, other.values)
        assert not one.values.requires_grad
    assert torch.equal(image, before)


def same(one: FeatureMap, other: FeatureMap) -> bool:
    return (one.stride, one.offsets, one.scale) == (other.stride, other.offsets, other.scale)


def test_store_gives_back_what_it_computed(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, Extractor(averages(), 64, 128))
    assert store.load("a") is None
    computed = store.compute("a", noise(50, 81))
    loaded = store.load("a")
    assert loaded is not None
    for one, other in zip(loaded, computed, strict=True):
        assert torch.equal(one.values, other.values.half())
        assert same(one, other)
    assert store.path("a").is_file()
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [store.path("a")]


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "none"])
def test_damaged_files_are_computed_again(tmp_path: Path, damage: str) -> None:
    store, image = FeatureStore(tmp_path, Extractor(averages(), 64, 128)), noise(50, 81)
    store.compute("a", image)
    path = store.path("a")
    whole = path.read_bytes()
    pieces = {"cut": [whole[:n] for n in (1, 7, 8, 60, len(whole) - 1)], "empty": [b""], "text": [b"no map" * 99]}
    for piece in pieces.get(damage, []):
        path.write_bytes(piece)
        assert store.load("a") is None
    if damage == "none":
        path.unlink()
        path.mkdir()
        assert store.load("a") is None
        path.rmdir()
    store.compute("a", image)
    assert path.read_bytes() == whole


MAP = torch.zeros(4, 6, 3, dtype=torch.float16)


@pytest.mark.parametrize(
    ("tensors", "geometry"),
    [
        ({"0": MAP}, None),
        ({"0": MAP}, "8, 3.5"),
        ({"0": MAP}, "8"),
        ({"0": MAP}, "[[]]"),
        ({"0": MAP}, "[[8, 3.5, 1.0]]"),
        ({"0": MAP}, "[[8, [3.5], 1.0, 1.0]]"),
        ({"0": MAP}, "[[8, null, 1.0, 1.0]]"),
        ({"0": MAP}, "[[0, 3.5, 1.0, 1.0]]"),
        ({"0": MAP}, "[[8, 3.5, -1.0, 1.0]]"),
        ({"0": MAP}, '[{"stride": 8}]'),
        ({"1": MAP}, "[[8, 3.5, 1.0, 1.0]]"),
        ({"0": MAP[0]}, "[[8, 3.5, 1.0, 1.0]]"),
    ],
)
def test_whole_files_that_hold_no_maps_count_as_damaged(
    tmp_path: Path, tensors: dict[str, Tensor], geometry: str | None
) -> None:
    store, image = FeatureStore(tmp_path, Extractor(averages(), 64, 128)), noise(50, 81)
    path = store.path("a")
    path.parent.mkdir()
    save_file(tensors, path, {"maps": geometry} if geometry else None)
    assert store.load("a") is None
    save_file({"0": MAP}, path, {"maps": json.dumps([[8, 3.5, 1.0, 1.0]])})
    assert store.load("a") is not None
    store.compute("a", image)
    assert len(store.load("a") or ()) == 2


def test_every_setting_has_a_key_of_its_own(tmp_path: Path) -> None:
    base = Extractor(averages(), 64, 128)
    other = Trunk("other", Averages(), averages().taps, NORMALISATION)
    extractors = [
        base,
        dataclasses.replace(base, shorter=65),
        dataclasses.replace(base, longest=129),
        dataclasses.replace(base, trunk=other),
        dataclasses.replace(base, trunk=averages(("features.1",))),
        dataclasses.replace(base, trunk=averages(("features.2", "features.1"))),
    ]
    assert len({settings_key(e.settings) for e in extractors}) == len(extractors)
    assert len({FeatureStore(tmp_path, e).path("a").parent for e in extractors}) == len(extractors)
    assert settings_key(Extractor(averages(), 64, 128).settings) == settings_key(base.settings)


def test_keys_do_not_depend_on_the_order_of_settings() -> None:
    assert settings_key({"a": 1, "b": [2, 3]}) == settings_key({"b": [2, 3], "a": 1})
    assert settings_key({"a": 1, "b": [2, 3]}) != settings_key({"a": 1, "b": [3, 2]})
    assert len(settings_key({})) == 16


@pytest.mark.parametrize("width", [96, 81, 150])
def test_flipping_changes_nothing_along_y(width: int) -> None:
    """Give the map different offsets: the one along y stays, rows keep their order, columns are reversed."""
    feature_map = FeatureMap(torch.randn(2, 5, 9), 16, (-4.5, 7.5), (0.5, 0.75))
    flipped = flip_map(feature_map, width)
    assert torch.equal(flipped.values, torch.stack(list(feature_map.values.unbind(2))[::-1], dim=2))
    assert flipped.offsets == (-4.5, round(0.75 * width) - 1 - (7.5 + 16 * 8))
    assert (flipped.stride, flipped.scale) == (16, (0.5, 0.75))


@pytest.mark.parametrize("width", [96, 81, 150])
def test_flipping_twice_changes_nothing(width: int) -> None:
    for feature_map in Extractor(averages(), 64, 256)(noise(64, width)):
        twice = flip_map(flip_map(feature_map, width), width)
        assert torch.equal(twice.values, feature_map.values)
        assert same(twice, feature_map)


def test_a_flipped_map_is_the_map_of_the_flipped_image() -> None:
    """Take a width that leaves no padding and a trunk that looks the same in a mirror."""
    extractor, image = Extractor(averages(), 64, 128), noise(64, 96)
    for flipped, expected in zip([flip_map(m, 96) for m in extractor(image)], extractor(image.flip(2)), strict=True):
        torch.testing.assert_close(flipped.values, expected.values)
        assert same(flipped, expected)


@pytest.mark.parametrize("size", [(64, 88), (40, 72)])
def test_a_flipped_map_of_a_padded_image_lies_where_the_flipped_image_has_it(size: tuple[int, int]) -> None:
    """Compare windows of boxes inside the image: the same cells, whose numbers begin elsewhere along x only."""
    extractor, image = Extractor(averages(("features.1",)), min(size), 128), noise(*size)
    boxes = torch.tensor([[16.0, 8.0, 40.0, 32.0], [24.0, 16.0, 56.0, 24.0], [32.0, 9.0, 40.0, 31.0]])
    (plain,), (expected,) = extractor(image), extractor(image.flip(2))
    flipped = flip_map(plain, size[1])
    there = project(mirror(boxes, size[1]), flipped)
    wanted = project(mirror(boxes, size[1]), expected)
    for (x1, y1, x2, y2), (u1, v1, u2, v2) in zip(there.tolist(), wanted.tolist(), strict=True):
        torch.testing.assert_close(flipped.values[:, y1:y2, x1:x2], expected.values[:, v1:v2, u1:u2])
