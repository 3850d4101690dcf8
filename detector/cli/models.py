"""Load the models that a command names, one or several that work together, and let them detect in many photos.

Here is also what proposes regions to them: the same to all, or to each those that it is used to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .folders import check_images
from .interrupts import held_back
from .progress import prepare_proposer, progress_bar

if TYPE_CHECKING:
    from torch import Tensor

    from detector.datasets import Sample
    from detector.ensemble import Ensemble
    from detector.regions import RegionDetector
    from detector.structures import Detections
    from proposals.structures import Proposals, Proposer

    Model = RegionDetector | Ensemble


def load_models(names: Sequence[str], device: str, engine: str) -> Model:
    """Load a detector, or several as one. Raises ValueError for one that is none, or for classes that differ."""
    from detector.checkpoints import load_detector
    from detector.ensemble import Ensemble

    loaded = [load_detector(name, device, engine) for name in names]
    return loaded[0] if len(loaded) == 1 else Ensemble(loaded, names)


def single_model(names: Sequence[str], where: str) -> str:
    """Return the one model that is named. Raises click.UsageError that says where several do not go."""
    if len(names) > 1:
        raise click.UsageError(f"--model: expected one model {where}, got {', '.join(names)}")
    return names[0]


def members(net: Model) -> tuple[RegionDetector, ...]:
    """Return the detectors that a model consists of."""
    from detector.ensemble import Ensemble

    return net.detectors if isinstance(net, Ensemble) else (net,)


class JoinedProposer:
    """Propose regions to several detectors, to each those that it is used to.

    parts: the proposer of each detector; those of one name are one proposer, which runs once per image.
    """

    name = "joined"

    def __init__(self, parts: Sequence[Proposer]):
        self.parts = tuple(parts)

    @property
    def settings(self) -> Mapping[str, Any]:
        """Name everything that shapes the boxes."""
        return {"proposer": self.name, "parts": [dict(part.settings) for part in self.parts]}

    def __call__(self, image: Tensor, path: Path | None = None) -> Proposals:
        """Map a (3, H, W) uint8 image to JoinedProposals."""
        return self.join(lambda part: part(image, path))

    def join(self, propose: Callable[[Proposer], Proposals]) -> Proposals:
        """Join the proposals of every part. propose: gives those of one."""
        from detector.ensemble import join_proposals

        found = {name: propose(part) for name, part in {part.name: part for part in self.parts}.items()}
        return join_proposals([found[part.name] for part in self.parts])


def prepare_proposers(net: Model, name: str | None, threads: int) -> Proposer:
    """Make what proposes regions, and say so if kernels must be compiled.

    name: of a proposer; None for that of the model, or of each of several if they were trained with different ones.
    threads: the most that it uses.
    """
    names = [name] if name else [part.config.proposals for part in members(net)]
    made = {each: prepare_proposer(each, threads) for each in dict.fromkeys(names)}
    return made[names[0]] if len(made) == 1 else JoinedProposer([made[each] for each in names])


def open_source(proposer: Proposer, cache: Path | None, samples: Sequence[Sample]) -> Callable[[Sample], Proposals]:
    """Return what gives the proposals of a photo, from the cache if there is one."""
    from detector.images import read_image
    from proposals.store import ProposalStore

    if cache is None:
        return lambda sample: proposer(read_image(sample.path), sample.path)
    check_images(cache, samples)
    parts = proposer.parts if isinstance(proposer, JoinedProposer) else (proposer,)
    stores = {part.name: ProposalStore(cache / "proposals", part) for part in parts}

    def stored(sample: Sample) -> Proposals:
        image = read_image(sample.path)

        def get(part: Proposer) -> Proposals:
            return stores[part.name].get(sample.image_id, image, sample.path)

        return proposer.join(get) if isinstance(proposer, JoinedProposer) else get(proposer)

    return stored


def detect_photos(
    net: Model,
    samples: Sequence[Sample],
    proposer: Proposer,
    source: Callable[[Sample], Proposals],
    path: Path | None,
) -> list[Detections]:
    """Detect in every photo. path: a journal, by which work that was stopped goes on where it was."""
    from detector.features import settings_key
    from detector.images import read_image
    from detector.journal import Journal

    work = {
        "model": net.fingerprint(),
        "settings": net.settings,
        "engine": net.engine.name,
        "proposals": dict(proposer.settings),
    }
    journal = Journal(path, settings_key(work)) if path else None
    done = sum(str(sample.path) in journal.items for sample in samples) if journal else 0
    found = []
    with progress_bar(len(samples), "detecting", "image", done) as bar, held_back() as check:
        for sample in samples:
            check()
            row = journal.items.get(str(sample.path)) if journal else None
            if row is None:
                row = _freeze(net.predict(read_image(sample.path), source(sample)))
                if journal:
                    journal.add(str(sample.path), row)
                bar.update(1)
            found.append(_thaw(row, net.class_names))
    return found


def _freeze(found: Detections) -> list[Any]:
    """Return detections as plain numbers; every float32 survives exactly."""
    return [found.boxes.tolist(), found.scores.tolist(), found.labels.tolist(), list(found.size)]


def _thaw(row: list[Any], class_names: tuple[str, ...]) -> Detections:
    import torch

    from detector.structures import Detections

    boxes = torch.tensor(row[0], dtype=torch.float32).reshape(-1, 4)
    scores, labels = torch.tensor(row[1], dtype=torch.float32), torch.tensor(row[2], dtype=torch.int64)
    return Detections(boxes, scores, labels, (row[3][0], row[3][1]), class_names)
