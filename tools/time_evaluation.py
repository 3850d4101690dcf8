"""Time the average precision of VOC on as many detections as a whole test set may have.

    python tools/time_evaluation.py [--classes 18] [--detections 30000] [--images 4952]

Boxes are random; 12,032 objects, as many as the 20 classes of VOC2007 test have, are spread over the images.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch

from detector.evaluation import voc_ap
from detector.structures import Detections, GroundTruth

SIZE = (375, 500)
OBJECTS = 12_032


def boxes(generator: np.random.Generator, count: int) -> torch.Tensor:
    """Return (count, 4) float32 boxes inside an image."""
    corners = np.sort(generator.random((count, 2, 2)), axis=1) * SIZE[::-1]
    return torch.from_numpy(corners.reshape(count, 4).astype(np.float32))


def main() -> None:
    """Make detections and objects, measure them, and print seconds and memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, default=18)
    parser.add_argument("--detections", type=int, default=30_000, help="of each class")
    parser.add_argument("--images", type=int, default=4952)
    options = parser.parse_args()
    generator = np.random.default_rng(0)
    names = tuple(f"class{k}" for k in range(options.classes))
    total = options.classes * options.detections
    counts = np.bincount(generator.integers(0, options.images, total), minlength=options.images)
    found, truths = [], []
    for count in counts.tolist():
        labels = torch.from_numpy(generator.integers(0, options.classes, count))
        scores = torch.from_numpy(np.sort(generator.random(count).astype(np.float32))[::-1].copy())
        found.append(Detections(boxes(generator, count), scores, labels, SIZE, names))
    for count in np.bincount(generator.integers(0, options.images, OBJECTS), minlength=options.images).tolist():
        labels = torch.from_numpy(generator.integers(0, options.classes, count))
        difficult = torch.from_numpy(generator.random(count) < 0.2)
        truths.append(GroundTruth(boxes(generator, count), labels, difficult, SIZE))
    start = time.perf_counter()
    result = voc_ap(found, truths, names)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(f"{total} detections, {OBJECTS} objects, {options.images} images: {seconds:.2f} s for {result.metric}")
    print(f"at most {peak / 1e6:.0f} MB in all; mean average precision {100 * result.map:.2f} %")


if __name__ == "__main__":
    main()
