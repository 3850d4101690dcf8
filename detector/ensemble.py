"""Combine detectors: each scores its windows, then non-maximum suppression works on those of all of them at once.

He, Zhang, Ren, Sun: Spatial Pyramid Pooling in Deep Convolutional Networks for Visual Recognition, section 4.4: score
all candidate windows by each model, then suppress on the union of the two sets of scored windows, with their scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from proposals.structures import Proposals

from .classes import match_classes
from .config import Config
from .engines import Engine
from .features import settings_key
from .regions import RegionDetector, check_given, refine_given
from .selection import suppress
from .structures import BoxScores, Detections, Seconds
from .timing import measure


@dataclass(frozen=True, slots=True, eq=False)
class JoinedProposals(Proposals):
    """Hold the regions of one image that are proposed to each of several detectors; `boxes` are those of all of them.

    parts: the proposals of each detector, in the order of the detectors.
    """

    parts: tuple[Proposals, ...]


def join_proposals(parts: Sequence[Proposals]) -> JoinedProposals:
    """Give each of several detectors proposals of its own. parts: one or more, in the order of the detectors."""
    return JoinedProposals(torch.cat([part.boxes for part in parts]), tuple(parts))


class Ensemble:
    """Find objects by several detectors that know the same classes.

    detectors: two or more; classes are matched by name and reported in the order and spelling of the first detector,
    whose config also says how the union is suppressed: min_score, nms, vote and max_detections. Scores are compared as
    they are, each weighed by rank as its own detector does. Nothing is computed in common: n detectors take n times
    as long.
    names: what messages call the detectors, by default `model 1`, `model 2`, ...
    Raises ValueError for fewer than two detectors, or classes that differ.
    """

    def __init__(self, detectors: Sequence[RegionDetector], names: Sequence[str] | None = None):
        if len(detectors) < 2:
            raise ValueError(f"expected two models or more to combine, got {len(detectors)}")
        self.detectors = tuple(detectors)
        names = names or [f"model {number}" for number in range(1, len(detectors) + 1)]
        first = self.detectors[0].class_names
        self._columns = [
            _columns(net.class_names, first, (name, names[0])) for net, name in zip(self.detectors, names, strict=True)
        ]

    @property
    def class_names(self) -> tuple[str, ...]:
        """Return the K classes, as the first detector calls them."""
        return self.detectors[0].class_names

    @property
    def config(self) -> Config:
        """Return the first detector's config, by which the union is suppressed."""
        return self.detectors[0].config

    @property
    def engine(self) -> Engine:
        """Return how the first detector computes."""
        return self.detectors[0].engine

    @property
    def settings(self) -> Mapping[str, Any]:
        """Name every setting and the classes of every detector, as JSON types."""
        return {"models": [{**net.settings, "classes": list(net.class_names)} for net in self.detectors]}

    @property
    def readable_score(self) -> float:
        """Return the score from which a detection is worth drawing: the first detector's."""
        return self.detectors[0].readable_score

    def fingerprint(self) -> str:
        """Return 16 hexadecimal digits that stand for the learned values of all detectors, in their order."""
        return settings_key({"models": [net.fingerprint() for net in self.detectors]})

    @torch.inference_mode()
    def predict(self, image: Tensor, proposals: Proposals, seconds: Seconds | None = None) -> Detections:
        """Find the objects in a (3, H, W) uint8 image among its proposals.

        proposals: of all detectors, or JoinedProposals with those of each. seconds: collects the time of the stages,
        that of all detectors together.
        Returns at most max_detections Detections of score >= min_score, best first, equal scores in the order of the
        detectors, with the image for drawing. Raises ValueError for proposals of another number of detectors.
        """
        found = []
        for net, columns, part in zip(self.detectors, self._columns, self._parts(proposals), strict=True):
            boxes, scores, labels = net.collect(image, part, self.config.min_score, seconds)
            found.append((boxes, scores, columns.argsort()[labels]))
        size = (int(image.shape[1]), int(image.shape[2]))
        with measure(seconds, "select"):
            boxes, scores, labels = (torch.cat(parts) for parts in zip(*found, strict=True))
            kept = suppress((boxes, scores, labels), size, self.config)
        return Detections(*kept, size, self.class_names, image)

    @torch.inference_mode()
    def candidates(self, image: Tensor, proposals: Proposals) -> tuple[Tensor, Tensor, Tensor]:
        """Return what the selection chooses from: proposals (R, 4), scores (R, K) and refined boxes (R, K, 4).

        These are what `RegionDetector.candidates` returns of each detector, one after another, so that a proposal of
        all detectors comes once for each.
        """
        found = []
        for net, columns, part in zip(self.detectors, self._columns, self._parts(proposals), strict=True):
            boxes, scores, refined = net.candidates(image, part)
            found.append((boxes, scores[:, columns], refined[:, columns]))
        boxes, scores, refined = (torch.cat(parts) for parts in zip(*found, strict=True))
        return boxes, scores, refined

    @torch.inference_mode()
    def predict_boxes(self, image: Tensor, boxes: Tensor, seconds: Seconds | None = None) -> BoxScores:
        """Score boxes that the user brought, in the given order, by the mean of the detectors' probabilities.

        A box that is given is neither dropped nor suppressed, so there is no union to choose from: the mean is what
        gives every box one distribution over the classes. The first detector's regressor of the class that is then
        most probable refines it.
        boxes: as for `RegionDetector.predict_boxes`, which refuses the same ones.
        """
        check_given(boxes, image)
        scored = [net.score_image(image, boxes, seconds) for net in self.detectors]
        with measure(seconds, "select"):
            background = torch.tensor([len(self.class_names)])
            rows = [p.cpu()[:, torch.cat([c, background])] for (p, _), c in zip(scored, self._columns, strict=True)]
            mean = torch.stack(rows).mean(dim=0)
            refined = refine_given(boxes, mean[:, :-1].argmax(dim=1), scored[0][1].cpu(), image)
        return BoxScores(boxes, mean, refined, self.class_names)

    def _parts(self, proposals: Proposals) -> tuple[Proposals, ...]:
        """Return the proposals of each detector."""
        if not isinstance(proposals, JoinedProposals):
            return (proposals,) * len(self.detectors)
        if len(proposals.parts) != len(self.detectors):
            raise ValueError(f"expected proposals for {len(self.detectors)} models, got {len(proposals.parts)}")
        return proposals.parts


def _columns(own: Sequence[str], first: Sequence[str], names: tuple[str, str]) -> Tensor:
    """Return the place, among a detector's own classes, of each of the first detector's: (K,) int64.

    names: of the detector and of the first one. Raises ValueError that names both if they know other classes.
    """
    places, known = match_classes(first, own), match_classes(own, first)
    missing, more = [name for name in first if name not in places], [name for name in own if name not in known]
    if missing or more:
        parts = [f"{word} {', '.join(found)}" for word, found in (("without", missing), ("with", more)) if found]
        raise ValueError(f"expected {names[0]} to know the classes of {names[1]}, got a model {' and '.join(parts)}")
    return torch.tensor([places[name] for name in first], dtype=torch.int64)
