"""Refit one class of a trained detector with new photos: `sppnet refit MODEL --class NAME --out NEW.safetensors`."""

from __future__ import annotations

from pathlib import Path

import click

from .folders import check_writable

_FOLDER = click.Path(file_okay=False, path_type=Path)
_FILE = click.Path(dir_okay=False, path_type=Path)


@click.command()
@click.argument("model", metavar="MODEL")
@click.option("--class", "name", required=True, metavar="NAME", help="The class to refit.")
@click.option("--out", required=True, type=_FILE, metavar="NEW.safetensors", help="The new model.")
@click.option("--background", multiple=True, metavar="FOLDER|GLOB", help="Photos without an object of the class.")
@click.option("--boxes", multiple=True, metavar="DATA", help="New photos with all objects of the class annotated.")
@click.option("--data", multiple=True, metavar="DATA", help="What MODEL was trained on; softmax models need it.")
@click.option("--examples", type=_FILE, metavar="FILE", help="What the machines of MODEL learned from [beside MODEL].")
@click.option("--check", multiple=True, metavar="FOLDER|GLOB", help="Count false alarms in these photos, too.")
@click.option("--test", multiple=True, metavar="DATA", help="Measure AP of all classes on these, before and after.")
@click.option("--cache", type=_FOLDER, help="Folder of proposals and maps [default: cache beside NEW.safetensors].")
@click.option(
    "--hold",
    type=click.FloatRange(0),
    help="Softmax models: how strongly the class is held where it was [default: 0.3].",
)
@click.option("--score", type=click.FloatRange(0, 1), help="From which score a detection counts [default: MODEL's].")
@click.option("--threads", type=click.IntRange(1), help="Processor cores to use [default: all].")
def refit(
    model: str,
    name: str,
    out: Path,
    background: tuple[str, ...],
    boxes: tuple[str, ...],
    data: tuple[str, ...],
    examples: Path | None,
    check: tuple[str, ...],
    test: tuple[str, ...],
    cache: Path | None,
    hold: float | None,
    score: float | None,
    threads: int | None,
) -> None:
    """Refit one class of a trained detector with new photos, in seconds, and say what became of every class.

    --background names photos without an object of the class, in which MODEL sees some nevertheless: the regions that
    look like the class are mined from them. --boxes names annotated photos, voc:ROOT:SPLIT or coco:JSON:IMAGES, whose
    objects of the class are new positives. One of the two is needed, both may be repeated.

    A model with support vector machines (`sppnet train --detector svm`) trains the machine of the class anew, from
    where it stood. It needs the rows that the machines learned from: NEW.examples.safetensors or
    examples.safetensors beside MODEL, or --examples. The new rows are written beside the new model, so that it can be
    refitted again.

    Any other model refits the row of the class in the last layer. It needs --data, the photos it was trained on, of
    which at most 300 tell what the class should not forget. A larger --hold keeps more of its AP and of its false
    alarms.

    The weights of the other classes stay as they are, bit for bit. The scores of a softmax model add up to 1, so that
    they and the AP of other classes can still move a little; with machines they cannot.

    False alarms are detections of the class in --background, counted before and after. The model has learned from
    these photos: --check names others. --test measures average precision (voc07). NEW.json holds all that is printed.

    Proposals and maps of all photos are kept in the cache; --cache RUN/cache takes those of the run that made MODEL. An
    interrupted command leaves no model, and its cache is used again.

    \b
    sppnet refit voc-lite0 --class dog --background bears/ --data voc:VOC2007:trainval --out runs/dog.safetensors
    sppnet refit runs/svm/model.safetensors --class cat --background garden/ --out runs/svm/cat.safetensors
    sppnet refit runs/svm/cat.safetensors --class cow --boxes coco:cows.json:cows --out runs/svm/cow.safetensors
    """
    from .options import use_threads
    from .refit_one import Options, refit_one

    if not background and not boxes:
        raise click.UsageError("expected --background or --boxes, the new photos, got neither")
    if out.suffix != ".safetensors":
        raise click.UsageError(f"--out: expected a name that ends in .safetensors, got {out}")
    check_writable(out.parent, "--out")
    cache = check_writable(cache or out.parent / "cache", "--cache")
    options = Options(_model_file(model), name, out, cache, examples, hold, score, use_threads(threads))
    refit_one(options, {"background": background, "boxes": boxes, "data": data, "check": check, "test": test})


def _model_file(model: str) -> Path:
    from detector.checkpoints import find_model, list_models

    return find_model(model, "model", list_models())
