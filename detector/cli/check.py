"""Check data sets: `sppnet check voc:ROOT:SPLIT`."""

from __future__ import annotations

import itertools
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .folders import check_writable
from .progress import progress_bar

if TYPE_CHECKING:
    from detector.findings import Finding
    from detector.inspection import Inspection

_EXAMPLES = 3
_PATIENCE = 2.0  # seconds before progress is shown


@click.command()
@click.argument("data", nargs=-1, required=True, metavar="DATA...")
@click.option("--classes", type=click.Path(path_type=Path), metavar="FILE", help="Known classes, one name per line.")
@click.option("--model", metavar="NAME|FILE", help="Take the classes that this model knows.")
@click.option("--pixels", is_flag=True, help="Decode every image, too; without, its header is read.")
@click.option("--all", "every", is_flag=True, help="List every finding, not the first few of each kind.")
@click.option("--json", "file", type=click.Path(dir_okay=False, path_type=Path), help="Write all findings to a file.")
@click.pass_context
def check(
    ctx: click.Context,
    data: tuple[str, ...],
    classes: Path | None,
    model: str | None,
    pixels: bool,
    every: bool,
    file: Path | None,
) -> None:
    """Check annotated photos completely, and say what sppnet does about what is wrong.

    DATA is voc:ROOT:SPLIT or coco:JSON:IMAGES; several are checked as one list of photos. All files are read to the
    end: missing or damaged images and annotations, sizes that are not the image's, boxes outside of the image or of
    no area, ids that are not unique, images that occur twice, and, with --classes or --model, objects of other
    classes.

    Every finding is either repaired, by the rule that is printed, whenever the data are opened by train, evaluate and
    the others, or refused: then they stop at the first, and it must be put right.

    The exit code is 0 if nothing is refused and 1 if something is.

    \b
    sppnet check voc:VOC2007:trainval
    sppnet check coco:annotations/instances_val2017.json:val2017 --model voc-lite0 --pixels --json findings.json
    """
    from detector.files import write_json
    from detector.inspection import inspect_datasets

    if classes is not None and model is not None:
        raise click.UsageError("expected --classes or --model, got both")
    if file is not None:
        check_writable(file.parent, "--json")
    names = _known_classes(classes, model)
    with _Progress() as progress:
        inspection = inspect_datasets(data, names, pixels, progress.update)
    click.echo(format_inspection(inspection, every))
    if file is not None:
        write_json(file, inspection.to_dict())
        click.echo(f"written: {file}")
    ctx.exit(1 if inspection.refused else 0)


def format_inspection(inspection: Inspection, every: bool = False) -> str:
    """Return a table of the kinds of findings, the first few of each or all of them below it, and a summary."""
    from detector.findings import KINDS

    counts = inspection.counts
    lines = []
    if counts:
        width = max(len(KINDS[kind].title) for kind in counts)
        lines += [f"{'found'.ljust(width)}  {'count':>7}  what sppnet does", "-" * (width + 27)]
        lines += [f"{KINDS[kind].title.ljust(width)}  {counts[kind]:>7}  {KINDS[kind].outcome}" for kind in counts]
        for kind, found in itertools.groupby(inspection.findings, key=lambda finding: finding.kind):
            lines += ["", f"{KINDS[kind].title}:", *_examples(list(found), every)]
        lines.append("")
    objects, classes = sum(inspection.objects.values()), sum(count > 0 for count in inspection.objects.values())
    lines.append(
        f"{inspection.images} image{_s(inspection.images)}, {objects} object{_s(objects)} "
        f"of {classes} class{'e' * (classes != 1)}{_s(classes)}: "
        f"{inspection.refused} refused, {inspection.repaired} repaired"
    )
    return "\n".join(lines)


def _s(count: int) -> str:
    return "" if count == 1 else "s"


def _examples(found: list[Finding], every: bool) -> list[str]:
    shown = found if every else found[:_EXAMPLES]
    lines = [f"  {finding.sentence}" for finding in shown]
    return lines if len(shown) == len(found) else [*lines, f"  ... and {len(found) - len(shown)} more (--all)"]


def _known_classes(file: Path | None, model: str | None) -> tuple[str, ...] | None:
    """Return the classes of a file or of a model, None without either."""
    if model is not None:
        from detector.checkpoints import load_detector

        return load_detector(model, engine="eager").class_names
    if file is None:
        return None
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise FileNotFoundError(f"{file}: expected a file with one class name per line, got no such file") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: expected a text file with one class name per line, got other bytes") from error
    names = tuple(line.strip() for line in lines if line.strip())
    if not names:
        raise ValueError(f"{file}: expected one class name per line, got none")
    return names


class _Progress:
    """Show a bar for each round over the images if the work as a whole takes long."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._bar: Any = None

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
            sys.stderr.flush()

    def update(self, done: int, total: int) -> None:
        """Note that so many images of a round are done."""
        if self._bar is None and time.monotonic() - self._start > _PATIENCE:
            self._bar = progress_bar(total, "checking", "image", done)
        elif self._bar is not None:
            if total != self._bar.total or done < self._bar.n:
                self._bar.close()
                self._bar = progress_bar(total, "checking", "image", done - 1)
            self._bar.update(done - self._bar.n)
