"""Time what the race rests on, in alternation: the trunk by every engine, pooling beside torchvision, warping.

    python tools/compare_engines.py PHOTO... [--engines eager,onednn,onednn-bf16] [--repeats 20]

PHOTO: images of about 500 x 375 pixels; each is resized to a shorter side of 576 for the trunk. Prints medians in ms.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torchvision.ops import roi_pool

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from detector.allocation import keep_freed_memory
from detector.checkpoints import load_detector
from detector.config import Config
from detector.engines import choose_engine, trunk_maps
from detector.images import read_image
from detector.pooling import spatial_pyramid_pool
from detector.rcnn import RCNN
from detector.sppnet import SPPNet
from proposals import make_proposer

LEVELS = (6, 3, 2, 1)


def main() -> None:
    """Parse the arguments, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", nargs="+")
    parser.add_argument("--engines", default="eager,onednn,onednn-bf16")
    parser.add_argument("--repeats", type=int, default=20)
    given = parser.parse_args()
    keep_freed_memory()
    net = load_detector("voc-lite0", engine="eager")
    if not isinstance(net, SPPNet):
        raise SystemExit("expected voc-lite0 to be an SPP-net")
    images = [read_image(name) for name in given.photos]
    with torch.inference_mode():
        compare_engines(net, images, given.engines.split(","), given.repeats)
        compare_pooling(net, images[0], given.repeats)


def compare_engines(net: SPPNet, images: list[torch.Tensor], engines: list[str], repeats: int) -> None:
    """Print the time of the trunk on whole images and on 16 crops, by every engine, and how far its maps are off."""
    crops = RCNN(Config(detector="rcnn"), net.class_names, net.trunk).warper(images[0])
    boxes = make_proposer("fast")(images[0]).boxes[:16]
    batch = crops(boxes)
    aspect = net.config.longest / net.config.shorter
    whole = [net.extractor.at(net.config.shorter, aspect).pixels(image) for image in images]
    maps = {name: trunk_maps(net.trunk, choose_engine(name)) for name in engines}
    exact = net.trunk.maps(whole[0])
    for kind, inputs, each in (("image", whole, 1), ("crop", [batch], len(boxes))):
        calls = {name: [lambda x=x, f=f: f(x) for x in inputs] for name, f in maps.items()}
        for name, value in alternate(calls, repeats).items():
            print(f"{kind:6} {name:14} {1000 * value / each:8.2f} ms")
    for name, compute in maps.items():
        off = [float((a - b).norm() / a.norm()) for a, b in zip(exact, compute(whole[0]), strict=True)]
        print(f"{name:14} maps differ by {', '.join(f'{part:.1e}' for part in off)} of their norm")


def compare_pooling(net: SPPNet, image: torch.Tensor, repeats: int) -> None:
    """Print the time of the pyramid of all proposals, by our kernel and by four calls of torchvision's roi_pool."""
    pyramid = net.feature_maps(image)
    boxes = make_proposer("fast")(image).boxes
    windows = pyramid.locate(boxes, net.config.scale_rule, net.config.projection)[0][:, 1:]
    values = pyramid.fine[0].values
    inclusive = windows.float() - torch.tensor([0.0, 0, 1, 1])
    plain = values.contiguous()[None]
    calls: dict[str, list[Callable[[], object]]] = {
        "ours": [lambda: spatial_pyramid_pool(values, windows, LEVELS)],
        "roi_pool": [lambda: [roi_pool(plain, [inclusive], n) for n in LEVELS]],
    }
    times = alternate(calls, max(repeats // 2, 3))
    print(f"pool {len(windows)} windows x {len(values)} channels: ours {1000 * times['ours']:.2f} ms,", end=" ")
    print(f"four roi_pool {1000 * times['roi_pool']:.1f} ms, {times['roi_pool'] / times['ours']:.0f} times")


def alternate(calls: dict[str, list[Callable[[], object]]], repeats: int) -> dict[str, float]:
    """Return the median seconds of each entry's calls, all entries in turn; the first round is not counted."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeats + 1):
        for name, own in calls.items():
            call = own[turn % len(own)]
            start = time.perf_counter()
            call()
            if turn:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


if __name__ == "__main__":
    main()
