"""Propose regions and keep them: `sppnet propose PATH... --out DIR`."""

from __future__ import annotations

import hashlib
import os
import re
import statistics
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .folders import check_images, check_writable
from .inputs import find_images
from .interrupts import held_back
from .progress import compile_kernels, prepare_proposer, progress_bar
from .workers import Finished, ImageFile, Runner, Work, propose_here, propose_in_processes

if TYPE_CHECKING:
    from proposals.store import ProposalStore

_INDEX = "index.json"
_CACHED = "proposals"  # folder of a cache of `sppnet train` and `sppnet evaluate`
_LONGEST = 60  # characters of a stem in a file name: file systems allow 255 bytes


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder for the boxes.")
@click.option("--proposals", default="fast", show_default=True, metavar="NAME", help="How regions are proposed.")
@click.option("--workers", type=click.IntRange(1), help="Images worked on at a time [default: as many as cores].")
@click.pass_context
def propose(ctx: click.Context, paths: tuple[str, ...], out: Path, proposals: str, workers: int | None) -> None:
    """Propose regions of photos and keep them, one small file for each.

    PATH is an image file, a folder, whose images are taken but not those of folders in it, a quoted glob, or annotated
    photos as voc:ROOT:SPLIT or coco:JSON:IMAGES, of which only the photos are looked at.

    \b
    NAME is one of
      single, fast, quality          our selective search: ever more hierarchies, ever more boxes
      edgeboxes                      boxes that hold whole contours; edgeboxes:MODEL finds edges by a trained model
      selectivesearch                the PyPI package
      opencv-single, -fast, -quality OpenCV's, where a contrib build is installed
      windows                        a grid, without a look at the image
      json:FILE, mat:FILE            boxes from a file, in JSON or MATLAB's format
      annotations:ROOT               the annotated objects of a VOC tree

    The boxes are in DIR/KEY, where KEY stands for all settings that shape them: settings.json says which they are,
    index.json which file holds the boxes of which image. A file holds "boxes", (R, 4) whole numbers x1, y1, x2, y2,
    best first, and "scale", by which they must be divided; proposals.store.load_proposals reads it.

    What is there already is not computed again, so the same command continues what was stopped or killed. Annotated
    photos proposed into CACHE/proposals are found by `sppnet train` and `sppnet evaluate` with --cache CACHE;
    CACHE/images.json then tells them, as ever, which photos those are.

    A file that cannot be used is named on stderr, the others are processed, and the exit code is 1.

    \b
    sppnet propose photos/ --out boxes
    sppnet propose voc:VOC2007:trainval --out cache/proposals --proposals quality --workers 4
    """
    from tqdm import tqdm

    from proposals.kernels import usable_cores
    from proposals.store import ProposalStore

    check_writable(out, "--out")
    files, problems = _find(paths, out)
    if not files:
        raise click.UsageError(f"expected at least one image, got none from {', '.join(paths)}", ctx)
    for problem in problems:
        click.echo(f"sppnet: {problem}", err=True)
    proposer = prepare_proposer(proposals, usable_cores(), pyramid=False)
    store = ProposalStore(out, proposer)
    _check_images(out, files)
    missing = [file for file in files if store.load(file.image_id) is None]
    workers = min(workers or usable_cores(), max(len(missing), 1))
    compile_kernels(proposer)
    run: Runner = propose_here if workers == 1 else propose_in_processes
    finished: list[Finished] = []
    try:
        with progress_bar(len(files), "proposing", "image", len(files) - len(missing)) as bar, held_back() as check:
            for result in run(Work(proposals, out, store), missing, workers):
                check()
                finished.append(result)
                bar.update(1)
                if result.problem:
                    tqdm.write(f"sppnet: {result.problem}", file=sys.stderr)
    except KeyboardInterrupt:
        click.echo("stopped; the same command continues", err=True)
        raise
    finally:
        _write_index(store, files)
    _report(store, files, finished)
    ctx.exit(1 if problems or any(result.problem for result in finished) else 0)


@dataclass(frozen=True, slots=True)
class _File:
    image_id: str
    path: Path


def _find(paths: Sequence[str], out: Path) -> tuple[list[ImageFile], list[str]]:
    """Return the images that the command line means, with ids that are unique and safe as file names, and problems.

    Annotated photos have the ids of their data set. Others have their stem, and some digits of a hash of the path
    behind it where another image has that id, in this run or in an earlier one in `out`, or where it is unsafe.
    """
    from detector.datasets import open_datasets

    specs = [path for path in paths if path.startswith(("voc:", "coco:"))]
    names, problems = find_images([path for path in paths if path not in specs])
    files: list[ImageFile] = [*open_datasets(specs)] if specs else []
    taken = Counter(file.image_id.casefold() for file in files) + Counter(Path(name).stem.casefold() for name in names)
    known = {os.path.realpath(file.path) for file in files}
    earlier = _earlier(out)
    for name in names:
        real, stem = os.path.realpath(name), Path(name).stem
        if real in known:
            continue
        safe = re.sub(r"[^\w.-]", "_", stem).lstrip(".")[:_LONGEST] or "_"
        others = earlier.get(stem.casefold(), set()) - {real}
        digits = "" if safe == stem and taken[stem.casefold()] == 1 and not others else f"-{_digits(real)}"
        files.append(_File(f"{safe}{digits}", Path(name)))
    return files, problems


def _digits(path: str) -> str:
    return hashlib.sha256(os.fsencode(path)).hexdigest()[:8]


def _earlier(out: Path) -> dict[str, set[str]]:
    """Return, by id in lower case, the real paths of all images whose boxes `out` has, whatever proposed them."""
    found: dict[str, set[str]] = {}
    for index in out.glob(f"*/{_INDEX}"):
        for path, file in _read_index(index).items():
            found.setdefault(Path(file).stem.casefold(), set()).add(os.path.realpath(path))
    return found


def _check_images(out: Path, files: Sequence[ImageFile]) -> None:
    """Raise ValueError if `out` has boxes of other images under the same ids; note the sizes of these.

    Annotated photos in CACHE/proposals are noted in CACHE, too, where `sppnet train` and `sppnet evaluate` look.
    """
    there = [file for file in files if file.path.is_file()]  # what is missing is named when its turn comes
    if out.name == _CACHED:
        check_images(out.parent, [file for file in there if not isinstance(file, _File)], "--out")
    check_images(out, there, "--out")


def _write_index(store: ProposalStore, files: Sequence[ImageFile]) -> None:
    """Note which file holds the boxes of which image, by its whole path, for all that are there and earlier ones."""
    from detector.files import write_json

    path = store.folder / _INDEX
    there = [file for file in files if store.path(file.image_id).is_file()]
    index = _read_index(path) | {str(file.path.absolute()): f"{file.image_id}.npz" for file in there}
    if index:
        write_json(path, index)


def _read_index(path: Path) -> dict[str, str]:
    """Return the file of every image; nothing if there is no index or it is damaged: the boxes are what counts."""
    import json

    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {str(name): str(file) for name, file in index.items()} if isinstance(index, dict) else {}


def _report(store: ProposalStore, files: Sequence[ImageFile], finished: Sequence[Finished]) -> None:
    counts = [len(found) for found in map(store.load, (file.image_id for file in files)) if found is not None]
    if not counts:
        return
    line = f"{len(counts)} image{'s' * (len(counts) != 1)}, {statistics.median(counts):g} boxes each (median)"
    seconds = [result.seconds for result in finished if not result.problem]
    if seconds:
        line += f", {statistics.median(seconds):.3f} s each for {len(seconds)} of them"
    click.echo(f"{line}: {store.folder}")
