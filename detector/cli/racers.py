"""Build the detectors of a race by name, and measure the memory that each needs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from detector.regions import RegionDetector

FIVE_SCALES = (480, 576, 688, 864, 1200)  # He et al. 2015, section 4.1
_RCNN = "rcnn-lite0"  # belongs to voc-lite0
# The child imports what this process would import, wherever it was started.
_PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from detector.cli.racers import print_peak; print_peak(sys.argv[2])"
)


@dataclass(frozen=True, slots=True)
class Choice:
    """Hold what the command line says of how detectors are built."""

    model: str
    rcnn: str | None
    engine: str
    device: str
    max_proposals: int


def _sppnet(choice: Choice) -> RegionDetector:
    return _load(choice.model, "sppnet", choice)


def _sppnet_five_scales(choice: Choice) -> RegionDetector:
    net = _load(choice.model, "sppnet", choice)
    net.config = replace(net.config, scales=FIVE_SCALES)
    return net


def _rcnn(choice: Choice) -> RegionDetector:
    return _load(model_of("rcnn", choice), "rcnn", choice)


def _load(name: str, kind: str, choice: Choice) -> RegionDetector:
    """Load a detector. Raises ValueError that names the file if it is of another kind."""
    from detector.checkpoints import load_detector

    net = load_detector(name, choice.device, choice.engine)
    if net.config.detector != kind:
        option = "--rcnn" if kind == "rcnn" else "--model"
        raise ValueError(f"{option} {name}: expected a detector of kind {kind}, got {net.config.detector}")
    net.config = replace(net.config, max_proposals=choice.max_proposals)
    return net


BUILDERS: dict[str, Callable[[Choice], RegionDetector]] = {
    "sppnet": _sppnet,
    "sppnet-5scale": _sppnet_five_scales,
    "rcnn": _rcnn,
}


def model_of(name: str, choice: Choice) -> str:
    """Return the model that a detector of a race is loaded from. Raises click.UsageError if it must be told."""
    if name != "rcnn":
        return choice.model
    if choice.rcnn is None and choice.model != "voc-lite0":
        made = "sppnet train DATA --detector rcnn"
        raise click.UsageError(
            f"--rcnn: expected the R-CNN that belongs to {choice.model}, as made by {made}, got none"
        )
    return choice.rcnn or _RCNN


def build_racers(names: Sequence[str], choice: Choice) -> dict[str, RegionDetector]:
    """Build detectors by name. Raises click.UsageError if one is unknown or named twice, and ValueError for a file."""
    unknown = [name for name in names if name not in BUILDERS]
    if unknown or len(set(names)) < len(names):
        got = ", ".join(unknown or names)
        raise click.UsageError(f"--detectors: expected names among {', '.join(BUILDERS)}, each once, got {got}")
    racers = {name: BUILDERS[name](choice) for name in names}
    classes = {net.class_names for net in racers.values()}
    if len(classes) > 1:
        raise click.UsageError("--detectors: expected detectors of the same classes, got models that differ")
    return racers


def measure_peak(name: str, choice: Choice, proposals: str, threads: int, photo: Path) -> float | None:
    """Return the most memory, in MB (10^6 bytes), that a process needs to detect in one photo; None if unknown."""
    told = json.dumps([name, asdict(choice), proposals, threads, str(photo)])
    command = [sys.executable, "-c", _PROGRAM, json.dumps(sys.path), told]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        return float(done.stdout)
    except ValueError:
        return None


def print_peak(told: str) -> None:
    """Detect in one photo and print the most memory that this process ever held, in MB."""
    from detector.images import read_image
    from proposals.registry import make_proposer

    from .options import use_threads

    name, fields, proposals, threads, photo = json.loads(told)
    use_threads(threads)
    image = read_image(photo)
    net = BUILDERS[name](Choice(**fields))
    net.predict(image, make_proposer(proposals)(image, Path(photo)))
    click.echo(_peak() / 1e6)


def _peak() -> int:
    """Return the most bytes that this process held; Linux counts what its parent held into ru_maxrss."""
    status = Path("/proc/self/status")
    if status.exists():
        fields = dict(line.split(":", 1) for line in status.read_text(encoding="utf-8").splitlines())
        return int(fields["VmHWM"].split()[0]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
