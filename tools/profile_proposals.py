"""Say where the time of our selective search goes: `python tools/profile_proposals.py PHOTO... [--mode fast]`.

Every stage is timed on one thread, on all photos, and the medians per photo are printed. Beside each is the time that
moving its data through memory once would take, at the bandwidth that a copy of 256 MB reaches on this machine: a stage
far above it is held back by arithmetic or by waiting for single values, not by bandwidth.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from detector.images import read_image
from proposals.colour import COLOUR_COLUMNS, COLUMNS, find_bins, gradients, shrink, smooth_colours
from proposals.fast import MODES, SIDE, SIGMA, Mode, choose
from proposals.grouping import count_bins, find_neighbours, group, measure_regions
from proposals.objectness import HIDDEN, OUTPUT
from proposals.ranking import describe, score, without_repeats
from proposals.segmentation import edge_weights, segment, sort_edges


class Stages:
    """Add up seconds and bytes per stage of one photo."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.bytes: dict[str, int] = defaultdict(int)

    def run(self, stage: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """Time a call; count the bytes of the arrays that go in and come out."""
        start = time.perf_counter()
        result = function(*arguments)
        self.seconds[stage] += time.perf_counter() - start
        outputs = result if isinstance(result, tuple) else (result,)
        self.bytes[stage] += sum(value.nbytes for value in (*arguments, *outputs) if isinstance(value, np.ndarray))
        return result


def profile(image: np.ndarray, mode: Mode, most: int) -> Stages:
    """Do what `SelectiveSearch` does, stage by stage."""
    stages, boxes, scores = Stages(), [], []
    small = stages.run("shrink", shrink, image, SIDE)
    slopes = stages.run("gradients", gradients, small)
    for space in mode.spaces:
        colours, smooth = stages.run("colours", smooth_colours, small, space, SIGMA)
        weights = stages.run("edge weights", edge_weights, smooth)
        order = stages.run("sorting of edges", sort_edges, weights)
        bins = stages.run("histogram bins", find_bins, colours, *slopes)
        for k, min_size in mode.grains:
            labels = stages.run("segmentation", segment, weights, order, small.shape[:2], float(k), min_size)
            regions = stages.run("boxes of regions", measure_regions, labels)
            counts = stages.run("histograms", count_bins, labels, bins, COLUMNS)
            pairs = stages.run("neighbours", find_neighbours, labels)
            for strategy in mode.strategies:
                weight = np.array(strategy, np.float64)
                tree = stages.run("grouping", group, regions, counts, pairs, COLOUR_COLUMNS, weight)
                scores.append(stages.run("scores", score, stages.run("scores", describe, tree), HIDDEN, OUTPUT))
                boxes.append(tree.regions[:, :4])
    ordered = np.concatenate(boxes)[np.argsort(-np.concatenate(scores), kind="stable")]
    stages.run("thinning", choose, stages.run("thinning", without_repeats, ordered), mode, most)
    return stages


def bandwidth() -> float:
    """Return bytes per second that a copy reads and writes."""
    source = np.ones(1 << 28, np.uint8)
    target = np.empty_like(source)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        np.copyto(target, source)
        times.append(time.perf_counter() - start)
    return 2 * source.nbytes / statistics.median(times)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("photos", nargs="+", type=Path, metavar="PHOTO")
    parser.add_argument("--mode", default="fast", choices=sorted(MODES), help="default: fast")
    arguments = parser.parse_args()
    try:
        images = [np.ascontiguousarray(read_image(path).permute(1, 2, 0).numpy()) for path in arguments.photos]
    except (ValueError, OSError) as error:
        parser.error(str(error))
    mode = MODES[arguments.mode]
    profile(images[0], mode, mode.max_boxes)  # compiles
    found = [profile(image, mode, mode.max_boxes) for image in images]
    speed = bandwidth()
    print(f"{len(images)} photos, mode {arguments.mode}, one thread, medians; memory copies at {speed / 1e9:.1f} GB/s")
    print(f"{'stage':18}{'ms':>8}{'at bandwidth':>14}")
    for stage in found[0].seconds:
        milliseconds = 1000 * statistics.median(one.seconds[stage] for one in found)
        limit = 1000 * statistics.median(one.bytes[stage] for one in found) / speed
        print(f"{stage:18}{milliseconds:8.2f}{limit:14.2f}")
    print(f"{'sum':18}{1000 * statistics.median(sum(one.seconds.values()) for one in found):8.2f}")


if __name__ == "__main__":
    main()
