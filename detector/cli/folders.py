"""Check the folders that a command writes to, before long work starts."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from .workers import ImageFile

_IMAGES = "images.json"


def check_writable(folder: Path, option: str) -> Path:
    """Return a folder that exists and can be written, or can be made; nothing is made yet. Else click.UsageError."""
    place = folder.absolute()
    while not os.path.lexists(place):
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        what = "no permission to write" if place.is_dir() else "no folder"
        raise click.UsageError(f"{option}: expected a folder that can be written, got {folder} ({what} in {place})")
    return folder


def check_images(cache: Path, samples: Sequence[ImageFile], option: str = "--cache") -> None:
    """Note in a cache which files it is made from. Raises ValueError if it holds others under the same names.

    Files are told apart by their size in bytes: a data set that moves keeps its cache, a photo that changes is noticed.
    option: what names the cache on the command line.
    """
    from detector.files import write_json

    path = cache / _IMAGES
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        known = {}
    except ValueError as error:
        raise ValueError(f"{path}: expected JSON, got a damaged file; choose another {option}") from error
    sizes = {sample.image_id: sample.path.stat().st_size for sample in samples}
    for sample in samples:
        was, size = known.get(sample.image_id, sizes[sample.image_id]), sizes[sample.image_id]
        if was != size:
            got = f"that of another {sample.image_id}, of {was} bytes"
            advice = f"choose another {option}, or remove this one if the photo has changed"
            raise ValueError(f"{cache}: expected the cache of {sample.path} ({size} bytes), got {got}; {advice}")
    if sizes.items() - known.items():
        write_json(path, known | sizes)
