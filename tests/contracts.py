"""Say what every implementation of an interface owes its callers; the tests of each run these checks."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from detector.datasets import Dataset
from detector.structures import Detector, Seconds
from proposals.structures import Proposals, Proposer


def check_dataset(dataset: Dataset, class_names: Sequence[str] | None = None) -> None:
    """Check ids, paths, sizes, boxes and labels of all samples, and what a subset is."""
    assert len(dataset) == len(dataset.samples) == len(dataset.truths) > 0
    if class_names is not None:
        assert dataset.class_names == tuple(class_names)
    assert len(set(dataset.class_names)) == len(dataset.class_names) > 0
    ids = [sample.image_id for sample in dataset]
    assert len({image_id.casefold() for image_id in ids}) == len(ids)
    assert all(re.fullmatch(r"[\w-][\w.-]*", image_id) for image_id in ids)
    assert dataset.dropped >= 0
    assert dataset.ignored >= 0
    for sample in dataset:
        truth = sample.truth
        with Image.open(sample.path) as image:
            assert truth.size == (image.height, image.width)
        x1, y1, x2, y2 = truth.boxes.unbind(1)
        assert bool(((x1 >= 0) & (y1 >= 0) & (x1 < x2) & (y1 < y2)).all())
        assert bool(((x2 <= truth.size[1]) & (y2 <= truth.size[0])).all())
        assert bool(((truth.labels >= 0) & (truth.labels < len(dataset.class_names))).all())
    assert sum(len(truth) for truth in dataset.truths) > 0
    part = dataset.subset([len(dataset) - 1, 0])
    assert [sample.image_id for sample in part] == [ids[-1], ids[0]]
    assert part[0] is dataset[len(dataset) - 1]
    assert part.class_names == dataset.class_names
    assert len(dataset.subset([])) == 0


def check_proposer(
    proposer: Proposer, images: Sequence[Tensor] = (), path_of: Callable[[int], Path | None] = lambda number: None
) -> None:
    """Check name, settings and boxes, on awkward images and on `images`, (3, H, W) uint8 each.

    path_of: gives the path of each of all these images by its number.
    """
    assert isinstance(proposer, Proposer)
    assert re.fullmatch(r"[a-z][a-z0-9-]*", proposer.name)
    settings = json.dumps(dict(proposer.settings), sort_keys=True)
    assert proposer.settings["proposer"] == proposer.name
    for number, image in enumerate([*awkward_images(), *images]):
        path = path_of(number)
        height, width = image.shape[1:]
        before = image.clone()
        found = proposer(image, path)
        assert isinstance(found, Proposals)
        assert len(found) > 0
        assert found.boxes.dtype == torch.float32
        assert found.boxes.device.type == "cpu"
        x1, y1, x2, y2 = found.boxes.unbind(1)
        assert bool(((x1 >= 0) & (y1 >= 0) & (x1 < x2) & (y1 < y2) & (x2 <= width) & (y2 <= height)).all())
        assert len(found.boxes.unique(dim=0)) == len(found)
        assert torch.equal(image, before), "the image was written to"
        assert torch.equal(proposer(image, path).boxes, found.boxes), "a second call gives other boxes"
        channels_last = image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
        assert torch.equal(proposer(channels_last, path).boxes, found.boxes), "boxes depend on the layout in memory"
    assert json.dumps(dict(proposer.settings), sort_keys=True) == settings
    for wrong in (torch.zeros(1, 8, 9, dtype=torch.uint8), torch.zeros(3, 8, 9), torch.zeros(3, 0, 9).byte()):
        with pytest.raises(ValueError, match=r"expected an image of shape \(3, H, W\) and type uint8, got"):
            proposer(wrong)


def awkward_images() -> list[Tensor]:
    """Return images that break careless proposers: tiny, thin, constant, two-coloured, grey; (3, H, W) uint8 each."""
    generator = torch.Generator().manual_seed(7)

    def noise(*shape: int) -> Tensor:
        return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)

    halves = torch.zeros(3, 45, 70, dtype=torch.uint8)
    halves[:, :, 30:] = torch.tensor([200, 40, 90], dtype=torch.uint8)[:, None, None]
    ramp = torch.arange(80, dtype=torch.uint8).mul(3).expand(3, 50, 80).clone()
    return [
        *(noise(3, *size) for size in ((1, 1), (1, 37), (37, 1), (2, 3), (2, 1500), (1500, 3))),
        torch.full((3, 40, 60), 128, dtype=torch.uint8),
        torch.full((3, 1, 1), 255, dtype=torch.uint8),
        halves,
        noise(1, 33, 52).expand(3, -1, -1).clone(),
        ramp,
    ]


def check_detector(detector: Detector) -> None:
    """Check a detector on a photo-like image that is not square: what comes out, in what order, and for which boxes."""
    assert len(set(detector.class_names)) == len(detector.class_names) > 0
    assert json.loads(json.dumps(dict(detector.settings))) == dict(detector.settings)
    image = torch.randint(0, 256, (3, 90, 150), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    boxes = torch.tensor(
        [[0, 0, 150, 90], [10, 20, 90, 80], [100, 5, 149, 60], [3, 3, 4, 4], [140, 80, 150, 90]]
    ).float()
    before = image.clone(), boxes.clone()
    _check_detections(detector, image, boxes)
    _check_box_scores(detector, image, boxes)
    assert torch.equal(image, before[0])
    assert torch.equal(boxes, before[1])


def _check_detections(detector: Detector, image: Tensor, boxes: Tensor) -> None:
    seconds = Seconds()
    found = detector.predict(image, Proposals(boxes), seconds)
    assert seconds.stages
    assert all(value >= 0 for value in seconds.stages.values())
    assert (found.size, found.class_names) == ((90, 150), tuple(detector.class_names))
    x1, y1, x2, y2 = found.boxes.unbind(1)
    assert bool(((x1 >= 0) & (y1 >= 0) & (x1 < x2) & (y1 < y2) & (x2 <= 150) & (y2 <= 90)).all())
    assert bool(((found.scores >= 0) & (found.scores <= 1)).all())
    assert torch.equal(found.scores, found.scores.sort(descending=True).values)
    assert found.boxes.dtype == found.scores.dtype == torch.float32
    assert found.labels.dtype == torch.int64
    again = detector.predict(image, Proposals(boxes))
    assert torch.equal(again.boxes, found.boxes)
    assert torch.equal(again.scores, found.scores)
    assert len(detector.predict(image, Proposals(boxes[:0]))) == 0


def _check_box_scores(detector: Detector, image: Tensor, boxes: Tensor) -> None:
    scores = detector.predict_boxes(image, boxes)
    assert scores.class_names == tuple(detector.class_names)
    assert torch.equal(scores.boxes, boxes)
    assert tuple(scores.probabilities.shape) == (len(boxes), len(detector.class_names) + 1)
    torch.testing.assert_close(scores.probabilities.sum(dim=1), torch.ones(len(boxes)))
    x1, y1, x2, y2 = scores.refined.unbind(1)
    assert bool(((x1 >= 0) & (y1 >= 0) & (x1 <= x2) & (y1 <= y2) & (x2 <= 150) & (y2 <= 90)).all())
    backwards = detector.predict_boxes(image, boxes.flip(0))
    torch.testing.assert_close(backwards.probabilities.flip(0), scores.probabilities)
    torch.testing.assert_close(backwards.refined.flip(0), scores.refined)
    assert len(detector.predict_boxes(image, boxes[:0])) == 0
    for bad in ([20, 20, 20, 40], [20, 40, 30, 20], [150, 0, 170, 90], [0, -9, 50, 0], [0, 0, math.nan, 9]):
        with pytest.raises(ValueError, match=r"^expected .*, got "):
            detector.predict_boxes(image, torch.tensor([[0, 0, 9, 9], bad], dtype=torch.float32))
