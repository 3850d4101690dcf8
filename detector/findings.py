"""Name what can be wrong with a data set, and what is done about it; opening and checking share these words.

A finding is either repaired by a stated rule or refused. A `Ledger` takes the findings of a reading: one that is strict
raises at the first that is refused, so that a data set is opened as it should be or not at all; one that is not strict
keeps them all, so that they can be listed.
"""

from __future__ import annotations

import logging
import os
import re
from dataclasses import dataclass
from typing import Any

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Kind:
    """Describe one kind of finding.

    title: what is counted, in the plural. rule: how it is repaired, None if it is refused. remedy: what the user can do
    where it is refused. absent: refused because a file is not there. expected: common enough in sound data sets that
    opening one mentions it at the level of information only.
    """

    title: str
    rule: str | None = None
    remedy: str = ""
    absent: bool = False
    expected: bool = False

    @property
    def refused(self) -> bool:
        """Tell whether a data set with such a finding cannot be opened."""
        return self.rule is None

    @property
    def outcome(self) -> str:
        """Return `repaired: RULE` or `refused: REMEDY`."""
        return f"refused: {self.remedy}" if self.rule is None else f"repaired: {self.rule}"


# In the order in which they are listed: what is refused first, from the whole to the parts.
KINDS: dict[str, Kind] = {
    "missing-list": Kind("missing lists or folders", remedy="correct the name of the data set", absent=True),
    "damaged-list": Kind("lists that cannot be read", remedy="write it again, or get the whole file"),
    "missing-annotation": Kind(
        "missing annotation files", remedy="restore the file, or take the image off the list", absent=True
    ),
    "damaged-annotation": Kind("damaged annotation files", remedy="restore the file, or take the image off the list"),
    "damaged-object": Kind("objects that cannot be read", remedy="correct the object, or remove it"),
    "damaged-entry": Kind("entries that cannot be read", remedy="correct the entry, or remove it"),
    "repeated-image-id": Kind("image ids that are not unique", remedy="give every image an id of its own"),
    "repeated-category-id": Kind("category ids that are not unique", remedy="give every category an id of its own"),
    "unknown-category": Kind("objects of categories not listed", remedy="list the category, or remove the object"),
    "missing-image": Kind("missing images", remedy="restore the file, or take the image off the list", absent=True),
    "damaged-image": Kind("damaged images", remedy="restore the file, or take the image off the list"),
    "damaged-pixels": Kind("images whose pixels are damaged", remedy="restore the file; it ends what reads it"),
    "repeated-image": Kind("images that occur twice", remedy="leave it in one place only"),
    "no-objects": Kind("data without any object to use", remedy="annotate objects, or choose other classes"),
    "other-size": Kind("sizes that are not the image's", "the size of the image file counts"),
    "no-size": Kind("annotations without a size", "the size of the image file counts", expected=True),
    "no-area": Kind("boxes of no area", "left out"),
    "outside": Kind("boxes wholly outside of the image", "left out"),
    "partly-outside": Kind("boxes partly outside of the image", "clipped to the image"),
    "unknown-class": Kind("objects of unknown classes", "left out", expected=True),
    "unlisted-image": Kind("objects of images not listed", "left out"),
    "repeated-object-id": Kind("object ids that are not unique", "each counts as an object of its own"),
    "listed-twice": Kind("images listed more than once", "read once"),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """Hold one finding of a kind (a key of KINDS).

    text: `expected ..., got ...`, without the name of the file. object: which one, if it is about one. count: how many
    it stands for.
    """

    kind: str
    file: str
    text: str
    object: str = ""
    count: int = 1

    @property
    def sentence(self) -> str:
        """Return one line that names the file, the object and what is wrong with it; any terminal can show it."""
        where = f" in {self.object}" if self.object else ""
        return _one_line(f"{self.file}: {self.text}{where}")

    def to_dict(self) -> dict[str, Any]:
        """Return the finding as JSON types."""
        row = {"kind": self.kind, "file": _one_line(self.file), "text": _one_line(self.text)}
        return row | {"object": _one_line(self.object), "count": self.count}


class Ledger:
    """Take findings. counts: how many there are of each kind; findings: all of them, unless it is strict.

    A strict ledger raises at a finding that is refused: FileNotFoundError where a file is missing, else ValueError.
    Of the others it keeps the first of each kind only, since a file may hold a million of them. photos: whether the
    images themselves must be there; without, one that is missing is no finding.
    """

    def __init__(self, strict: bool, photos: bool = True) -> None:
        self.strict, self.photos = strict, photos
        self.counts: dict[str, int] = {}
        self.findings: list[Finding] = []

    def add(self, kind: str, file: str | os.PathLike[str], text: str, object: str = "", count: int = 1) -> None:
        """Take a finding."""
        finding = Finding(kind, str(file), text, object, count)
        if self.strict and KINDS[kind].refused:
            raise (FileNotFoundError if KINDS[kind].absent else ValueError)(finding.sentence)
        if not self.strict or kind not in self.counts:
            self.findings.append(finding)
        self.counts[kind] = self.counts.get(kind, 0) + count

    @property
    def refused(self) -> int:
        """Return how many findings were refused."""
        return sum(count for kind, count in self.counts.items() if KINDS[kind].refused)

    def log(self) -> None:
        """Log what was repaired, one line for each kind with the first of them."""
        for kind, count in self.counts.items():
            level = logging.INFO if KINDS[kind].expected else logging.WARNING
            first = next(finding for finding in self.findings if finding.kind == kind)
            logger.log(level, "%d %s, %s; the first: %s", count, KINDS[kind].title, KINDS[kind].outcome, first.sentence)


def _one_line(text: str) -> str:
    """Return a text without control characters and lone surrogates, which a damaged file may hold."""
    shown = text.encode(errors="backslashreplace").decode()
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+", " ", shown)
