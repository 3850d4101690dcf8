"""Measure how many annotated objects a proposer covers: `python tools/measure_recall.py voc:ROOT:SPLIT...`."""

from __future__ import annotations

import argparse
import json
import statistics
import time

import torch
from tqdm import tqdm

from detector.datasets import open_datasets
from detector.images import read_image
from proposals.recall import average_best_overlap, best_overlaps, recall_at
from proposals.registry import PROPOSERS, make_proposer
from proposals.structures import Proposals

COUNTS = (100, 300, 1000, 2000)


def main() -> None:
    """Print recall at IoU 0.5, 0.7, 0.9 and the average best overlap by number of boxes, without difficult objects."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", nargs="+", metavar="DATA", help="voc:ROOT:SPLIT or coco:JSON:IMAGES")
    parser.add_argument("--proposals", default="fast", choices=sorted(PROPOSERS), help="which proposer (default: fast)")
    arguments = parser.parse_args()
    proposer = make_proposer(arguments.proposals)
    dataset = open_datasets(arguments.data)
    found, objects, seconds = [], [], []
    for sample in tqdm(dataset.samples, unit="image", dynamic_ncols=True):
        image = read_image(sample.path)
        start = time.perf_counter()
        found.append(proposer(image))
        seconds.append(time.perf_counter() - start)
        objects.append(sample.truth.boxes[~sample.truth.difficult])
    rows = {"images": len(found), "objects": sum(map(len, objects)), "seconds per image": statistics.median(seconds)}
    rows["boxes per image"] = statistics.mean(map(len, found))
    print(json.dumps(rows))
    for count in COUNTS:
        print(json.dumps({"boxes": count, **measure([one.top(count) for one in found], objects)}))


def measure(found: list[Proposals], objects: list[torch.Tensor]) -> dict[str, float]:
    """Return recall at three overlaps and the average best overlap."""
    overlaps = best_overlaps(found, objects)
    recalls = recall_at(overlaps, (0.5, 0.7, 0.9))
    names = ("recall 0.5", "recall 0.7", "recall 0.9")
    return {**dict(zip(names, map(float, recalls), strict=True)), "ABO": float(average_best_overlap(overlaps))}


if __name__ == "__main__":
    main()
