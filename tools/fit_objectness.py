"""Fit the score that `proposals.fast` ranks regions by, and write it as a module like `proposals/objectness.py`.

    python tools/fit_objectness.py voc:ROOT:SPLIT [voc:ROOT:SPLIT ...] --out FILE [--images 150] [--seed 1]

Regions are grown in every photo as mode `fast` does it and described by `ranking.describe`. What a network with one
hidden layer learns to tell of each (binary cross-entropy) is 0 for an IoU of at most 0.4 with every annotated object,
difficult ones too, 1 for at least 0.8 with one of them, and rises evenly in between. The regions of an object weigh as
much together as those of any other, since recall counts objects. Give it training lists only. The same arguments give
the same file on the same machine. It takes about a quarter of a second per photo.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_iou
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from detector.datasets import Sample, open_datasets
from detector.files import write_text
from detector.images import read_image
from proposals.colour import shrink
from proposals.fast import MODES, SIDE, grow_hierarchies
from proposals.ranking import FEATURES, describe

UNITS = 24  # of the hidden layer
NONE, WHOLE = 0.4, 0.8  # IoU up to which a region is no object, and from which it is one
REGIONS = 3000  # drawn from each photo, of about ten thousand
EPOCHS, LEAST_STEPS, BATCH, RATE = 8, 400, 8192, 0.02  # few photos are seen more often
ON_A_LINE, INDENT = 12, "    "  # numbers in the written file
Array = np.ndarray[Any, np.dtype[Any]]


class Regions(NamedTuple):
    """Hold features (R, 22) float32, the highest IoU with an object (R,) float32, and which object that is, or -1."""

    features: Tensor
    overlaps: Tensor
    objects: Tensor

    def targets(self) -> Tensor:
        """Return what is to be learned, (R,) float32 in [0, 1]."""
        return ((self.overlaps - NONE) / (WHOLE - NONE)).clamp(0, 1)


def collect(samples: Sequence[Sample], generator: torch.Generator) -> Regions:
    """Return regions drawn from all photos; objects are numbered through all photos."""
    parts, before = [], 0
    for sample in tqdm(samples, unit="photo", dynamic_ncols=True):
        found = describe_photo(sample)
        chosen = torch.randperm(len(found.features), generator=generator)[:REGIONS]
        objects = torch.where(found.objects < 0, -1, found.objects + before)
        parts.append((found.features[chosen], found.overlaps[chosen], objects[chosen]))
        before += len(sample.truth)
    return Regions(*(torch.cat(part) for part in zip(*parts, strict=True)))


def describe_photo(sample: Sample) -> Regions:
    """Return all regions of one photo. An object is that of the highest IoU if it is above NONE."""
    image = np.ascontiguousarray(read_image(sample.path).permute(1, 2, 0).numpy())
    small = shrink(image, SIDE)
    trees = grow_hierarchies(small, MODES["fast"])
    features = torch.from_numpy(np.concatenate([describe(tree) for tree in trees]))
    boxes = torch.from_numpy(np.concatenate([tree.regions[:, :4] for tree in trees])).double()
    scale = torch.tensor([small.shape[1] / image.shape[1], small.shape[0] / image.shape[0]] * 2, dtype=torch.float64)
    if len(sample.truth) == 0:
        return Regions(features, torch.zeros(len(features)), torch.full((len(features),), -1))
    best, which = box_iou(boxes, sample.truth.boxes.double() * scale).max(dim=1)
    return Regions(features, best.float(), torch.where(best > NONE, which, -1))


def weigh(objects: Tensor) -> Tensor:
    """Return a weight for each region, (R,) float32: 1 without object, else equal for each object; the mean is 1."""
    weights, positive = torch.ones(len(objects)), objects >= 0
    shares = 1 / torch.bincount(objects[positive])[objects[positive]].float()
    weights[positive] = shares * (len(shares) / shares.sum())
    return weights


def fit(regions: Regions, generator: torch.Generator) -> tuple[Array, Array]:
    """Return the weights of the hidden layer, (22 + 1, 24), the last row biases, and of the output, (24,).

    The network sees standardised features; the weights returned are for features as they are. The bias of the output
    is left out, since it changes no order.
    """
    targets, importance = regions.targets(), weigh(regions.objects)
    mean, deviation = regions.features.mean(dim=0), regions.features.std(dim=0).clamp(min=1e-6)
    inputs = (regions.features - mean) / deviation
    hidden = torch.randn(FEATURES, UNITS, generator=generator) * (2 / FEATURES) ** 0.5
    output = torch.randn(UNITS, generator=generator) * (1 / UNITS) ** 0.5
    weights = [w.requires_grad_() for w in (hidden, torch.zeros(UNITS), output, torch.zeros(()))]
    optimizer = torch.optim.Adam(weights, RATE)
    per_epoch = -(-len(inputs) // BATCH)
    epochs = max(EPOCHS, -(-LEAST_STEPS // per_epoch))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=epochs * per_epoch)
    for epoch in range(epochs):
        total = 0.0
        for rows in torch.randperm(len(inputs), generator=generator).split(BATCH):
            scores = torch.relu(inputs[rows] @ weights[0] + weights[1]) @ weights[2] + weights[3]
            loss = torch.nn.functional.binary_cross_entropy_with_logits(scores, targets[rows], importance[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += float(loss.detach()) * len(rows)
        print(f"epoch {epoch + 1} of {epochs}: cross-entropy {total / len(inputs):.5f}")
    with torch.no_grad():
        plain = weights[0] / deviation[:, None]
        biases = weights[1] - mean @ plain
        return torch.cat([plain, biases[None]]).numpy(), weights[2].detach().numpy()


def to_source(hidden: Array, output: Array, origin: str) -> str:
    """Return the text of a module with these weights, four digits each; origin: a sentence on how they came."""
    rows = ["[", *(line for row in hidden for line in (f"{INDENT}[", *_lines(row, 2), f"{INDENT}],")), "]"]
    return "\n".join(
        [
            f'"""Hold the weights of the score of regions.\n\n{origin}\n"""',
            "\nfrom __future__ import annotations\n\nimport numpy as np\n\n# fmt: off",
            "# A row per feature of `ranking.describe` and one of biases; a column per hidden unit.",
            "HIDDEN = np.array(" + "\n".join(rows) + ", np.float32)",
            "OUTPUT = np.array([\n" + "\n".join(_lines(output, 1)) + "\n], np.float32)",
            "# fmt: on\n",
        ]
    )


def _lines(values: Array, depth: int) -> list[str]:
    texts = [f"{value:.4g}" for value in values.tolist()]
    return [
        INDENT * depth + ", ".join(texts[start : start + ON_A_LINE]) + "," for start in range(0, len(texts), ON_A_LINE)
    ]


def main() -> None:
    """Read the command line, fit and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("data", nargs="+", help="voc:ROOT:SPLIT; training lists only")
    parser.add_argument("--out", type=Path, required=True, help="the Python file to write")
    parser.add_argument("--images", type=int, help="how many photos, drawn at random (default: all)")
    parser.add_argument("--seed", type=int, default=1, help="of the choice of photos and regions, and of the fit")
    arguments = parser.parse_args()
    if arguments.images is not None and arguments.images < 1:
        parser.error(f"--images: expected at least 1, got {arguments.images}")
    generator = torch.Generator().manual_seed(arguments.seed)
    try:
        dataset = open_datasets(arguments.data)
        chosen = torch.randperm(len(dataset), generator=generator)[: arguments.images].tolist()
        regions = collect([dataset[index] for index in sorted(chosen)], generator)
        print(f"{len(regions.objects)} regions, {(regions.objects >= 0).float().mean():.1%} of them near an object")
        names = ", ".join(f"{Path(spec.split(':')[1]).name} {spec.split(':')[-1]}" for spec in arguments.data)
        origin = f"Fitted by `tools/fit_objectness.py` on {len(chosen)} photos of {names}, seed {arguments.seed}."
        write_text(arguments.out, to_source(*fit(regions, generator), origin))
    except (ValueError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
