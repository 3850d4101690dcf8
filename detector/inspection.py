"""Check data sets completely: find all that opening them would repair or refuse, and say where it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .datasets import join_trees
from .findings import KINDS, Finding, Ledger
from .images import ImageError, read_image
from .trees import Record, Watch, ignore_progress, read_tree


@dataclass(frozen=True, slots=True, eq=False)
class Inspection:
    """Hold what was found in some data sets.

    specs: their names. images: how many they list. objects: how many objects of each class could be used, by the name
    of the class. findings: all of them, in the order of KINDS.
    """

    specs: tuple[str, ...]
    images: int
    objects: dict[str, int]
    findings: tuple[Finding, ...]

    @property
    def counts(self) -> dict[str, int]:
        """Return how many there are of each kind that was found, in the order of KINDS."""
        counts: Counter[str] = Counter()
        for finding in self.findings:
            counts[finding.kind] += finding.count
        return dict(counts)

    @property
    def refused(self) -> int:
        """Return how many findings keep the data sets from being opened."""
        return sum(count for kind, count in self.counts.items() if KINDS[kind].refused)

    @property
    def repaired(self) -> int:
        """Return how many findings are repaired when the data sets are opened."""
        return sum(self.counts.values()) - self.refused

    def to_dict(self) -> dict[str, Any]:
        """Return the inspection as JSON types."""
        kinds = {
            kind: {"title": KINDS[kind].title, "count": count, "outcome": KINDS[kind].outcome}
            for kind, count in self.counts.items()
        }
        return {
            "data": list(self.specs),
            "images": self.images,
            "objects": self.objects,
            "refused": self.refused,
            "repaired": self.repaired,
            "kinds": kinds,
            "findings": [finding.to_dict() for finding in self.findings],
        }


def inspect_datasets(
    specs: Sequence[str],
    class_names: Sequence[str] | None = None,
    pixels: bool = False,
    watch: Watch = ignore_progress,
) -> Inspection:
    """Check data sets as `open_datasets` reads them, to the end, whatever is found.

    class_names: report objects of other classes. pixels: decode every image, too; else only its header is read, as when
    a data set is opened. watch: is called after each image with how many of one data set are done, and of how many.

    Raises ValueError if a name of a data set is none, or the class names are not distinct.
    """
    ledger = Ledger(strict=False)
    trees = [read_tree(spec, ledger, watch) for spec in specs]
    dataset = join_trees(specs, trees, class_names, False, ledger)
    records = [record for tree in trees for record in tree.records]
    if pixels:
        _decode(records, ledger, watch)
    objects = Counter(dict.fromkeys(dataset.class_names, 0))
    for truth in dataset.truths:
        objects.update(dataset.class_names[label] for label in truth.labels.tolist())
    order = {kind: place for place, kind in enumerate(KINDS)}
    findings = sorted(ledger.findings, key=lambda finding: order[finding.kind])
    return Inspection(tuple(specs), len(records), dict(objects), tuple(findings))


def _decode(records: Sequence[Record], ledger: Ledger, watch: Watch) -> None:
    """Decode the images whose headers are whole, each file once."""
    paths = list(dict.fromkeys(record.path for record in records if record.size is not None))
    for done, path in enumerate(paths, 1):
        try:
            read_image(path)
        except ImageError as error:
            ledger.add("damaged-pixels", path, str(error).removeprefix(f"{path}: "))
        watch(done, len(paths))
