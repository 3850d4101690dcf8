"""Check that the caches are filled once, survive being stopped and damaged, and give back what was computed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from detector.images import ImageError, read_image
from detector.preparation import Caches, one_thread_each, prepare
from proposals.registry import make_proposer
from tests.toy import draw, make_caches, small_model, tiny_trunk, toy_samples

SAMPLES = toy_samples()


def fresh(folder: Path) -> Caches:
    return make_caches(folder, small_model(trunk=tiny_trunk()))


def files(folder: Path) -> dict[Path, int]:
    """Return all files and when they were written."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_every_image_is_done_once_and_counted(tmp_path: Path) -> None:
    caches, counts = fresh(tmp_path), []
    assert not any(map(caches.complete, SAMPLES))
    prepare(SAMPLES, caches, 2, counts.append)
    assert (counts[0], sum(counts)) == (0, len(SAMPLES))
    assert all(map(caches.complete, SAMPLES))
    written = files(tmp_path)
    assert len(written) == 2 * len(SAMPLES) + 1  # and the proposals' settings
    counts.clear()
    prepare(SAMPLES, fresh(tmp_path), 2, counts.append)
    assert counts == [len(SAMPLES)]
    assert files(tmp_path) == written


def test_what_is_read_is_what_was_computed(tmp_path: Path) -> None:
    caches, model = fresh(tmp_path), small_model(trunk=tiny_trunk())
    prepare(SAMPLES, caches, 1, lambda _: None)
    for sample in SAMPLES[:3]:
        image = read_image(sample.path)
        maps, boxes = caches.read(sample)
        assert torch.equal(boxes, make_proposer("fast")(image).boxes)
        for ours, theirs in zip(maps, model.extractor(image), strict=True):
            assert torch.equal(ours.values, theirs.values.half())
            assert (ours.stride, ours.offset, ours.scale) == (theirs.stride, theirs.offset, theirs.scale)


def test_a_run_that_was_stopped_goes_on_with_what_is_missing(tmp_path: Path) -> None:
    caches = fresh(tmp_path / "stopped")

    def stop(count: int) -> None:
        if sum(map(caches.complete, SAMPLES)) >= 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(SAMPLES, caches, 1, stop)
    before = files(tmp_path / "stopped")
    assert 2 <= sum(map(caches.complete, SAMPLES)) < len(SAMPLES)
    prepare(SAMPLES, caches, 1, lambda _: None)
    after = files(tmp_path / "stopped")
    assert {path: after[path] for path in before} == before
    prepare(SAMPLES, fresh(tmp_path / "whole"), 2, lambda _: None)
    for path in after:
        if path.suffix == ".npz":
            whole = tmp_path / "whole" / path.relative_to(tmp_path / "stopped")
            assert path.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("keep", [0, 40, -9])
def test_damaged_files_are_made_again_with_the_same_content(tmp_path: Path, keep: int) -> None:
    """Training must not depend on whether a file was read or had to be computed again, precision included."""
    caches, sample = fresh(tmp_path), SAMPLES[0]
    caches.fill(sample)
    maps, boxes = caches.read(sample)
    values = [m.values.float().clone() for m in maps]
    for path in (caches.features.path(sample.image_id), caches.proposals.path(sample.image_id)):
        content = path.read_bytes()
        path.unlink()  # the old file stays what the open maps read from
        path.write_bytes(content[:keep])
        again, boxes_again = caches.read(sample)
        assert torch.equal(boxes_again, boxes)
        for ours, expected in zip(again, values, strict=True):
            assert torch.equal(ours.values.float(), expected)
            layer = torch.nn.Linear(ours.values.shape[0], 2)
            layer(ours.values.float().permute(1, 2, 0)).sum().backward()  # a map of inference mode would refuse
        assert torch.equal(caches.read(sample)[0][0].values.float(), values[0])


def test_a_damaged_photo_is_named_and_stops_the_work(tmp_path: Path) -> None:
    root = draw(tmp_path / "toy", 8)
    samples = toy_samples(f"voc:{root}:train")
    samples[2].path.write_bytes(samples[2].path.read_bytes()[:500])
    before = torch.get_num_threads()
    with pytest.raises(ImageError, match=rf"{samples[2].path.name}: expected a whole image"):
        prepare(samples, fresh(tmp_path / "caches"), 2, lambda _: None)
    assert torch.get_num_threads() == before
    assert not list((tmp_path / "caches").rglob(".*"))


def test_threads_are_given_back() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    with pytest.raises(ValueError, match="x"), one_thread_each():
        assert torch.get_num_threads() == 1
        raise ValueError("x")
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)
