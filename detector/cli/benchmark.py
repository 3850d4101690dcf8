"""Race detectors side by side: `sppnet benchmark [IMAGES...] [--data voc:ROOT:SPLIT]`."""

from __future__ import annotations

import datetime
import shlex
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .folders import check_writable
from .inputs import find_images
from .interrupts import held_back
from .progress import compile_kernels, prepare_proposer, progress_bar
from .racers import BUILDERS, Choice, build_racers, measure_peak, model_of
from .table import format_table10

if TYPE_CHECKING:
    from detector.racing import Photo, Run
    from detector.structures import Detector, GroundTruth
    from proposals.structures import Proposer

FORMAT = "sppnet-benchmark-1"
_UNFINISHED = "unfinished"
# photos that scikit-image installs: those of the README's first command
_SAMPLE = ("astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg")
_FEW, _FEWEST = 20, 3  # photos that are raced if --images does not say it, and without any that were named


@click.command()
@click.argument("images", nargs=-1, metavar="[IMAGES]...")
@click.option("--data", multiple=True, metavar="DATA", help="Annotated photos; may be repeated.")
@click.option("--images", "count", type=click.IntRange(1), help=f"How many of the photos to race [default: {_FEW}].")
@click.option("--detectors", default=",".join(BUILDERS), show_default=True, metavar="NAMES", help="With commas.")
@click.option("--model", default="voc-lite0", show_default=True, metavar="NAME|FILE", help="The SPP-net.")
@click.option("--rcnn", metavar="NAME|FILE", help="The R-CNN [default: the one that belongs to the model].")
@click.option("--proposals", default="fast", show_default=True, metavar="NAME", help="How regions are proposed.")
@click.option("--max-proposals", type=click.IntRange(1), default=2000, show_default=True, help="Regions of an image.")
@click.option("--engine", default="auto", show_default=True, metavar="NAME", help="What computes the layers.")
@click.option("--sweep", type=click.Choice(["proposals", "scale"]), help="Measure how times grow, too.")
@click.option("--memory/--no-memory", default=True, help="Measure peak memory, each in a process of its own.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Folder for numbers, plots and report.")
@click.option("--device", default="cpu", show_default=True, help="Where the layers run: cpu, cuda, cuda:1, ...")
@click.option("--threads", type=click.IntRange(1), help="Processor cores to use [default: all].")
def benchmark(
    images: tuple[str, ...],
    data: tuple[str, ...],
    count: int | None,
    detectors: str,
    model: str,
    rcnn: str | None,
    proposals: str,
    max_proposals: int,
    engine: str,
    sweep: str | None,
    memory: bool,
    out: Path | None,
    device: str,
    threads: int | None,
) -> None:
    """Race detectors on the same photos, stage by stage, and print a table like table 10 of the paper.

    IMAGES are files, folders or globs; DATA is voc:ROOT:SPLIT or coco:JSON:IMAGES, whose objects also give the mean
    average precision (VOC07, 11 points) and its 95 % interval. Without either, photos that scikit-image installs are
    raced: enough to see the difference, too few to measure it. --images takes that many, evenly spaced.

    Every photo is given to each detector in turn, beginning with another one each time; each reads the file and
    proposes regions for itself. Before that, each sees the first photo once without being measured. Times are medians
    over photos, with quartiles. How many times a detector is faster than rcnn is the median of the ratios of single
    photos, and the limit is what the operations of the layers before pooling alone would allow.

    --sweep proposals repeats the race with the first 100, 200, 500, 1000, 2000 and 4000 boxes of the proposer quality;
    --sweep scale with the shorter side of the photo at 224, 300, 480, 576, 688, 864 and 1200 pixels.

    --out gets benchmark.json, benchmark.png, with a sweep also sweep.png, and report.html, which needs no other file.
    With --out, the same command continues what was stopped or killed.

    \b
    sppnet benchmark
    sppnet benchmark --data voc:VOC2007:test --images 20 --out runs/race
    """
    from detector.engines import choose_engine

    from .options import check_device, use_threads

    if images and data:
        raise click.UsageError("expected photos or --data, got both")
    if out is not None:
        check_writable(out, "--out")
    choice = Choice(model, rcnn, engine, check_device(device), max(max_proposals, _most(sweep)))
    choose_engine(engine, device)
    names = [name.strip() for name in detectors.split(",")]
    cores = use_threads(threads)
    racers = build_racers(names, choice)
    proposer = prepare_proposer(proposals, cores)
    photos, truths, told = _find(images, data, count, next(iter(racers.values())).class_names)
    if not images and not data:
        what = "a small sample; sppnet benchmark --data voc:ROOT:SPLIT --images 20 measures properly"
        click.echo(f"{len(photos)} photos that scikit-image installs: {what}", err=True)
    compile_kernels(proposer)
    job = _Job(racers, proposer, photos, max_proposals)
    with tempfile.TemporaryDirectory(prefix="sppnet-benchmark-") as beside:
        folder = Path(beside) if out is None else out / _UNFINISHED
        try:
            results = job.run(choice, truths, sweep, folder)
            if memory:
                for name in names:
                    peak = measure_peak(name, choice, proposals, cores, photos[0].path)
                    results["detectors"][name]["peak_memory_mb"] = peak
        except KeyboardInterrupt:
            what = "the same command continues" if out else "with --out it could continue"
            click.echo(f"stopped; {what}", err=True)
            raise
    settings: dict[str, Any] = {"command": _typed(), "data": told, "proposals": proposals}
    settings |= {"max_proposals": max_proposals, "engine": engine, "baseline": "rcnn" if "rcnn" in names else None}
    results["settings"] = settings
    click.echo(format_table10(results))
    if out is not None:
        _write(results, out)


def _typed() -> str:
    """Return the command line, also if it came through tools/benchmark.py."""
    words = sys.argv[1:] if "benchmark" in sys.argv[1:3] else ["benchmark", *sys.argv[1:]]
    return shlex.join(["sppnet", *words])


@dataclass(frozen=True, slots=True)
class _Photo:
    image_id: str
    path: Path


def _find(
    images: Sequence[str], data: Sequence[str], count: int | None, class_names: Sequence[str]
) -> tuple[Sequence[Photo], Sequence[GroundTruth] | None, list[str]]:
    """Return the photos to race on, evenly spaced, their objects if they are annotated, and what to call them."""
    from detector.datasets import open_datasets

    if data:
        dataset = open_datasets(data, class_names)
        chosen = _spread(len(dataset), count or _FEW)
        return [dataset[i] for i in chosen], [dataset.truths[i] for i in chosen], list(data)
    if images:
        names, problems = find_images(images)
        if problems:
            raise click.UsageError(problems[0])
    else:
        import skimage

        names = [str(Path(skimage.__file__).parent / "data" / name) for name in _SAMPLE]
    taken = Counter(Path(name).name for name in names)
    photos = [_Photo(Path(name).name if taken[Path(name).name] == 1 else name, Path(name)) for name in names]
    chosen = _spread(len(photos), count or (_FEW if images else _FEWEST))
    return [photos[i] for i in chosen], None, [photos[i].path.name for i in chosen]


def _spread(total: int, wanted: int) -> list[int]:
    """Return up to `wanted` numbers below `total`, evenly spaced."""
    if wanted >= total:
        return list(range(total))
    return [(2 * i + 1) * total // (2 * wanted) for i in range(wanted)]


def _most(sweep: str | None) -> int:
    from detector.sweep import VALUES

    return max(VALUES["proposals"]) if sweep == "proposals" else 0


@dataclass(frozen=True, slots=True)
class _Job:
    """Hold a race: who, on which photos, with which proposals."""

    racers: Mapping[str, Detector]
    proposer: Proposer
    photos: Sequence[Photo]
    max_proposals: int

    def run(
        self, choice: Choice, truths: Sequence[GroundTruth] | None, sweep: str | None, folder: Path
    ) -> dict[str, Any]:
        """Race, and sweep if that is wanted; return the content of benchmark.json but for the settings."""
        import torch

        from detector.benchmark import describe_detector, summarize
        from detector.machine import describe_machine
        from detector.racing import race
        from detector.sweep import VALUES, summarize_sweep
        from detector.sweep import sweep as sweep_race

        machine = describe_machine(measured=choice.device == "cpu")
        runs = race(self.racers, self.proposer, self.photos, folder / "race.jsonl", self.max_proposals)
        done = self._watch(runs, len(self.racers), "racing")
        told = {name: describe_detector(net, model_of(name, choice)) for name, net in self.racers.items()}
        results = summarize(done, told, machine, truths=truths)
        swept = None
        if sweep:
            cores = torch.get_num_threads()
            proposer = prepare_proposer("quality", cores, pyramid=False) if sweep == "proposals" else self.proposer
            compile_kernels(proposer)
            more = sweep_race(sweep, self.racers, proposer, self.photos, folder / "sweep.jsonl", self.max_proposals)
            entries = len(self.racers) * len(VALUES[sweep])
            swept = summarize_sweep(sweep, self._watch(more, entries, "sweeping"), list(self.racers))
        date = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        return {"format": FORMAT, "date": date, "machine": machine.to_dict(), **results, "sweep": swept}

    def _watch(self, runs: Iterator[Run], entries: int, title: str) -> list[Run]:
        done = []
        with progress_bar(len(self.photos) * entries, title, "run") as bar, held_back() as check:
            for run in runs:
                check()
                done.append(run)
                bar.update(1)
        return done


def _write(results: Mapping[str, Any], out: Path) -> None:
    """Write the numbers, the pictures and the page."""
    import shutil

    from detector.files import write_json
    from detector.plots import plot_race, plot_sweep
    from detector.report import write_report

    write_json(out / "benchmark.json", dict(results))
    plot_race(results, out / "benchmark.png")
    names = ["benchmark.json", "benchmark.png"]
    if results["sweep"]:
        plot_sweep(results, out / "sweep.png")
        names.append("sweep.png")
    write_report(results, out / "report.html")
    shutil.rmtree(out / _UNFINISHED, ignore_errors=True)
    click.echo(f"written: {', '.join(str(out / name) for name in [*names, 'report.html'])}")
