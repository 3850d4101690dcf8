"""Find the images that a command line means, and name the pictures to write."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from detector.images import SUFFIXES

_LARGEST_JPEG = 65500  # pixels of a side: libjpeg's JPEG_MAX_DIMENSION


def find_images(paths: Sequence[str]) -> tuple[list[str], list[str]]:
    """Expand files, folders and globs into image files, each once, in the order given; folders and globs are sorted.

    A folder stands for the files in it, not below it, whose suffix is an image's; hidden ones are left out. A file
    that is named, or matched by a glob, counts whatever its suffix. Returns the files and one sentence for every
    path that stands for none.
    """
    files: dict[str, str] = {}
    problems = []
    for path in paths:
        found = _expand(path)
        if not found:
            problems.append(f"{path}: expected an image, a folder of images or a glob that matches some, got none")
        for file in found:
            files.setdefault(os.path.abspath(file), file)  # noqa: PTH100 (a link keeps its own name)
    return list(files.values()), problems


def _expand(path: str) -> list[str]:
    name = str(Path(path).expanduser()) if path.startswith("~") else path  # a quoted ~ reaches us as it is
    if Path(name).is_dir():
        return _images_in(name)
    if os.path.lexists(name):
        return [name]
    found = []
    for match in sorted(glob.glob(name, recursive=True)):  # noqa: PTH207 (absolute patterns, too)
        found += _images_in(match) if Path(match).is_dir() else [match]
    return found


def _images_in(folder: str) -> list[str]:
    entries = sorted(entry.path for entry in os.scandir(folder) if entry.is_file() and not entry.name.startswith("."))
    return [path for path in entries if Path(path).suffix.lower() in SUFFIXES]


class PictureNames:
    """Give every input a picture name in a folder that is its own and no input's.

    The picture of STEM.png is STEM.png, that of any other file STEM.jpg; if that is taken, STEM-2.jpg and so on.
    A picture with a side of more pixels than a JPEG can have is a PNG, too.
    """

    def __init__(self, folder: Path, inputs: Iterable[str]) -> None:
        self._folder = folder
        self._taken = {_key(path) for path in inputs}

    def choose(self, path: str, size: tuple[int, int], ending: str = "") -> Path:
        """Return the path of a picture of (height, width) pixels for an input; the ending is that of its stem."""
        stem, png = Path(path).stem + ending, Path(path).suffix.lower() == ".png" or max(size) > _LARGEST_JPEG
        suffix = ".png" if png else ".jpg"
        target, number = self._folder / f"{stem}{suffix}", 1
        while _key(target) in self._taken:
            number += 1
            target = self._folder / f"{stem}-{number}{suffix}"
        self._taken.add(_key(target))
        return target


def _key(path: str | Path) -> str:
    """Return what two names of one file have in common, also where case does not count."""
    return os.path.realpath(path).casefold()
