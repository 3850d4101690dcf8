"""Check that cached reduced maps are the detector's own, rounded once, and that what shapes them names their files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from detector.engines import choose_engine
from detector.evaluation import evaluate
from detector.images import read_image
from detector.machine_training import Examples, fit_machines, fit_regressors
from detector.machines import MachineNet
from detector.mining import MiningRule
from detector.preparation import prepare
from detector.reduced import ReducedCaches
from detector.scales import FeaturePyramid
from detector.sppnet import SPPNet
from detector.structures import FeatureMap
from detector.svm import LinearSVM
from detector.validation import measure_held_out
from proposals.structures import Proposals
from tests.noise import SCALES, TINY, WIDTH, photos, settings
from tests.toy import CLASSES, tiny_trunk

CONFIG = settings("code", "learn=all")


def net_of(kind: type[SPPNet] = SPPNet, **changes: Any) -> SPPNet:
    """Return a detector whose learned values are random, statistics too."""
    net = kind(replace(CONFIG, **changes), CLASSES, tiny_trunk(2))
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for name, value in net.learned_state().items():
            if not name.startswith(("machines.", "ridge.")):
                spread = torch.rand(value.shape, generator=generator)
                value.copy_(0.5 + spread if "deviation" in name else (spread - 0.5) / 3)
    return net


def rounded(pyramid: FeaturePyramid) -> FeaturePyramid:
    """Return maps of values that float16 has."""
    fine, coarse = (
        tuple(m.with_values(m.values.half().float()) for m in part) for part in (pyramid.fine, pyramid.coarse)
    )
    return FeaturePyramid(fine, coarse, pyramid.size)


def assert_same(ours: tuple[FeatureMap, ...], theirs: tuple[FeatureMap, ...]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a.values, b.values)
        assert (a.values.dtype, a.stride, a.offset, a.scale) == (torch.float32, b.stride, b.offset, b.scale)


@pytest.mark.parametrize("region_mean", [False, True])
@pytest.mark.parametrize("scales", [(), (96,), SCALES])
@pytest.mark.parametrize("engine", ["eager", "auto"])
def test_what_is_read_is_what_the_detector_sees(
    tmp_path: Path, region_mean: bool, scales: tuple[int, ...], engine: str
) -> None:
    """Compare with the detector on the photo, exactly but for one rounding to float16."""
    samples, proposals = photos(tmp_path / "photos", 2)
    net = net_of(region_mean=region_mean, scales=scales)
    net.use_engine(engine)
    caches = ReducedCaches.of(net, proposals, tmp_path / "maps")
    assert not caches.complete(samples[0])
    prepare(samples, caches, 2, lambda _: None)
    for sample in samples:
        assert caches.complete(sample)
        pyramid, boxes = caches.read(sample)
        expected = rounded(net.feature_maps(read_image(sample.path)))
        assert len(pyramid.fine) == max(1, len(scales))
        assert pyramid.size == expected.size == sample.truth.size
        assert_same(pyramid.fine, expected.fine)
        assert_same(pyramid.coarse, expected.coarse if region_mean else ())
        assert torch.equal(boxes, proposals.boxes[sample.image_id])
        assert not any(m.values.is_inference() for m in pyramid.fine)
        moved = pyramid.to("meta")
        assert {m.values.device.type for m in (*moved.fine, *moved.coarse)} == {"meta"}
        assert (moved.size, len(moved.coarse)) == (pyramid.size, len(pyramid.coarse))


def test_a_damaged_or_missing_file_is_made_again(tmp_path: Path) -> None:
    samples, proposals = photos(tmp_path / "photos", 1)
    caches = ReducedCaches.of(net_of(), proposals, tmp_path / "maps")
    caches.fill(samples[0])
    whole = {store.path("0"): store.path("0").read_bytes() for store in caches.stores}
    times = {path: path.stat().st_mtime_ns for path in whole}
    assert len(whole) == 3
    before = caches.read(samples[0])[0]
    first, second, third = whole
    second.write_bytes(whole[second][: len(whole[second]) // 2])
    third.unlink()
    assert not caches.complete(samples[0])
    assert_same(caches.read(samples[0])[0].fine, before.fine)
    assert {path: path.read_bytes() for path in whole} == whole
    assert first.stat().st_mtime_ns == times[first]
    third.unlink()
    caches.fill(samples[0])
    assert caches.complete(samples[0])
    assert {path: path.read_bytes() for path in whole} == whole


def test_all_that_shapes_a_map_is_in_its_name(tmp_path: Path) -> None:
    _, proposals = photos(tmp_path / "photos", 1)

    def paths(net: SPPNet) -> list[str]:
        return [str(store.path("0")) for store in ReducedCaches.of(net, proposals, tmp_path).stores]

    usual = paths(net_of())
    assert len(set(usual)) == 3
    assert paths(net_of()) == usual
    assert paths(net_of(scales=SCALES[1:])) == usual[1:]
    assert paths(net_of(hidden=99, learn="fc", dropout=0.1, projection="code")) == usual  # shapes no map
    changed = [net_of(region_mean=True), net_of(longest=128)]
    for name in ("reduction.linears.1.weight", "reduction.mean0", "reduction.deviation1"):
        changed.append(net_of())
        with torch.no_grad():
            changed[-1].learned_state()[name].flatten()[0] += 0.25
    if choose_engine("auto").name != "eager":
        changed.append(net_of())
        changed[-1].use_engine("auto")
    seen = [paths(net)[0] for net in changed]
    assert len({*seen, usual[0]}) == len(seen) + 1


@pytest.mark.parametrize("region_mean", [False, True])
def test_held_out_photos_are_measured_from_reduced_maps(tmp_path: Path, region_mean: bool) -> None:
    samples, proposals = photos(tmp_path / "photos", 3)
    net = net_of(region_mean=region_mean, min_score=0.0)
    caches = ReducedCaches.of(net, proposals, tmp_path / "maps")
    counted: list[int] = []
    ours = measure_held_out(net, samples, caches, counted.append)
    found = [
        net.detect(rounded(net.feature_maps(read_image(s.path))), Proposals(proposals.boxes[s.image_id]))
        for s in samples
    ]
    theirs = evaluate(found, [s.truth for s in samples], CLASSES, ["voc07", "voc10"])
    assert sum(counted) == 3
    assert min(len(f) for f in found) > 0
    assert {name: result.map for name, result in ours.items()} == {n: theirs[n].map for n in ("voc07", "voc10")}
    plain = measure_held_out(net, samples, proposals, counted.append)  # from the photos, without rounding
    assert plain["voc07"].map == pytest.approx(ours["voc07"].map, abs=0.02)


@pytest.mark.parametrize("region_mean", [False, True])
def test_machines_learn_from_reduced_maps_at_several_scales(tmp_path: Path, region_mean: bool) -> None:
    """Compare what machines read with the layers on rounded maps; then fit all that learns."""
    samples, proposals = photos(tmp_path / "photos", 6)
    net = net_of(MachineNet, detector="svm", svm_layer="fc6", region_mean=region_mean)
    assert isinstance(net, MachineNet)
    examples = Examples(net, samples, ReducedCaches.of(net, proposals, tmp_path / "maps"))
    for sample, regions in zip(samples, examples, strict=True):
        boxes = proposals.boxes[sample.image_id]
        pyramid = rounded(net.feature_maps(read_image(sample.path)))
        features, pooled = net.features(pyramid, boxes)
        assert torch.equal(torch.from_numpy(regions.features), features)
        assert pooled.shape == (len(boxes), 50 * 8)
    assert int(boxes.max()) == WIDTH
    fit_machines(examples, LinearSVM(), MiningRule(), lambda _: None)
    fit_regressors(examples, "spp", lambda _: None)
    assert bool(net.machines.weight.any())
    assert bool(net.ridge.weight.any())


def test_settings_of_the_tests_are_those_of_one_detector() -> None:
    """Guard the comparisons: layers are tiny, at three scales whose longer side is not cut short."""
    assert CONFIG.scales == SCALES
    assert CONFIG.longest / CONFIG.shorter > 120 / 90
    assert "hidden=16" in TINY
