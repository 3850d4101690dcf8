"""Train a detector, or a classifier: `sppnet train DATA... --out RUN`."""

from __future__ import annotations

from pathlib import Path

import click

from .folders import check_writable
from .runs import Place, next_step

_TASKS = ["detect", "classify", "pretrain"]
_FOLDER = click.Path(file_okay=False, path_type=Path)


@click.command()
@click.argument("data", nargs=-1, required=True, metavar="DATA...")
@click.option("--out", required=True, type=_FOLDER, metavar="RUN", help="Folder of the run; made if missing.")
@click.option("--task", type=click.Choice(_TASKS), default="detect", show_default=True, help="What to learn.")
@click.option("--config", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="YAML file of settings.")
@click.option("--detector", type=click.Choice(["sppnet", "rcnn", "svm"]), help="Kind of detector [default: sppnet].")
@click.option("--start", metavar="NAME|FILE", help="Begin with the layers of this detector.")
@click.option("--preset", type=click.Choice(["paper", "code"]), help="Fine-tune as the paper or its code does.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one setting; may be repeated.")
@click.option("--classes", metavar="NAMES", help="Learn these classes, comma separated [default: all of DATA].")
@click.option("--cache", type=_FOLDER, help="Folder of proposals and maps; runs may share it [default: RUN/cache].")
@click.option("--save-every", type=click.FloatRange(0), default=60, show_default=True, help="Seconds between states.")
@click.option("--device", default="cpu", show_default=True, help="Where the layers run: cpu, cuda, cuda:1, ...")
@click.option("--threads", type=click.IntRange(1), help="Processor cores to use [default: all].")
def train(
    data: tuple[str, ...],
    out: Path,
    task: str,
    config: Path | None,
    detector: str | None,
    start: str | None,
    preset: str | None,
    overrides: tuple[str, ...],
    classes: str | None,
    cache: Path | None,
    save_every: float,
    device: str,
    threads: int | None,
) -> None:
    """Train a detector, or a classifier, on annotated photos.

    DATA is voc:ROOT:SPLIT, where ROOT holds JPEGImages, Annotations and ImageSets/Main/SPLIT.txt, or
    coco:JSON:IMAGES, an instances file and the folder of its images. Several are joined by class name; airplane and
    aeroplane, couch and sofa, ... are the same. Objects of other classes than --classes are ignored.

    First, proposals and convolutional maps of all photos are computed and kept in the cache, about 2 MB a photo (7 MB
    for R-CNN); then the layers behind the pyramid learn from them. Both can be stopped at any moment: the same
    command continues with what is on disk, and ends with the same weights. The result is RUN/model.safetensors,
    beside it metrics.jsonl, loss.png and run.json, which tells what the run was made from. The cache may be deleted
    then. With --set holdout=0.1, every tenth photo is left out of learning and the model measured on it:
    RUN/holdout.json.

    --task classify learns what whole photos show, with settings of its own (`detector.classifier_config`). DATA is then
    folder:ROOT, a folder of photos for each class, csv:FILE with the columns path and label, or one of those above.
    The head learns from cached maps behind the frozen trunk, or with --set learn=all all layers from the photos, at
    several sizes.

    --start begins with the layers of a trained detector, those that name classes only if the classes are the same.
    --preset fine-tunes the fully connected layers as the paper or its released code does (`detector.presets`): the
    layers before the pyramid stay, so that their maps are cached, at every one of the scales if there are several.
    --config and --set change single settings of a preset.

    --task pretrain teaches the layers behind the trunk what the trunk's own ImageNet classifier says of crops; the
    annotations of DATA are not used. The result is what the paper's detector is before it is fine-tuned: a --start.

    --detector svm is the paper's own form: a support vector machine for each class, with hard negatives, on a layer of
    the network that --start names (--set svm_layer=pool5, fc6 or fc7; --set C=0.001, the paper's, weighs errors), and
    ridge regressors of the boxes (--set box_regression=ridge, joint or none). It takes minutes from the cache of the
    run that made the network, and continues like any run, but for the regressors, whose minute is done in one go.
    RUN/examples.safetensors keeps what the machines learned from.

    Settings are those of the shipped model unless --config or --set changes them; a wrong name prints all names.

    \b
    sppnet train voc:VOC2007:trainval --out runs/voc
    sppnet train coco:instances.json:images --out runs/mine --set epochs=20
    sppnet train voc:data/toy:train --out runs/toy --config configs/toy.yaml
    sppnet train folder:photos --task classify --out runs/kinds
    sppnet train voc:VOC2007:trainval --task pretrain --out runs/pretrained
    sppnet train voc:VOC2007:trainval --start runs/pretrained/model.safetensors --preset code --out runs/tuned
    sppnet train voc:VOC2007:trainval --detector svm --start voc-lite0 --out runs/svm
    """
    from detector.config import load_config
    from detector.presets import PRESETS

    from .options import check_device, use_threads

    check_device(device)
    check_writable(out, "--out")
    cache = check_writable(cache or out / "cache", "--cache")
    place = Place(out, cache, device, use_threads(threads), save_every)
    if task == "classify":
        from .train_classifier import train_classifier

        if detector or start or preset:
            raise click.UsageError("--task classify: expected no --detector, --start or --preset, got one")
        train_classifier(data, config, overrides, classes, place)
        return
    if detector == "svm":
        if start is None or preset or task != "detect" or device != "cpu":
            raise click.UsageError(
                "--detector svm: expected --start MODEL, no --preset, the task detect and the device cpu, got others"
            )
        from .train_machines import train_machines

        path = train_machines(data, (start, classes), (config, overrides), place)
    else:
        from .train_detector import Plan, train_detector

        if task == "pretrain" and (detector or preset):
            raise click.UsageError("--task pretrain: expected no --detector and no --preset, got one")
        defaults = {"cascade": 0, "repeat_below": 0.0} if task == "pretrain" else PRESETS.get(preset or "", {})
        named = [*overrides, *([f"detector={detector}"] if detector else [])]
        path = train_detector(
            data, Plan(load_config(config, named, defaults), classes, start, task == "pretrain"), place
        )
    click.echo(path)
    click.echo(next_step(path, data[0], task == "pretrain"), err=True)
