"""Fit the score that `proposals.fast` ranks regions by, and write it as a module like `proposals/objectness.py`.

    python tools/fit_objectness.py voc:ROOT:SPLIT [voc:ROOT:SPLIT ...] --out FILE [--images 150] [--seed 1]

Regions are grown in every photo as the proposer does it, described by `ranking.describe`, and called an object if they
overlap an annotated one (difficult ones too) by an IoU of at least 0.5. A network with one hidden layer learns to tell
(binary cross-entropy). The regions of an object weigh as much together as those of any other, since recall counts
objects. Give it training lists only. The same arguments give the same file on the same machine.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_iou

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from detector.datasets import Sample, open_datasets
from detector.files import write_text
from detector.images import read_image
from proposals.colour import SPACES, shrink
from proposals.fast import SIDE, grow_hierarchies
from proposals.ranking import FEATURES, describe

UNITS = 24  # of the hidden layer
OVERLAP = 0.5  # IoU from which a region counts as an object
REGIONS = 3000  # drawn from each photo, of about ten thousand
EPOCHS, BATCH, RATE = 12, 4096, 0.02
ON_A_LINE, INDENT = 12, "    "  # numbers in the written file
Array = np.ndarray[Any, np.dtype[Any]]


def collect(samples: Sequence[Sample], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return features (R, 22) float32 and objects (R,) int64 of regions drawn from all photos.

    Objects are numbered through all photos; -1 is none.
    """
    features, objects, before = [], [], 0
    for number, sample in enumerate(samples, 1):
        found, overlapped = describe_photo(sample)
        chosen = torch.randperm(len(found), generator=generator)[:REGIONS]
        features.append(found[chosen])
        objects.append(torch.where(overlapped < 0, -1, overlapped + before)[chosen])
        before += len(sample.truth)
        print(f"\r{number} of {len(samples)} photos", end="", flush=True)
    print()
    return torch.cat(features), torch.cat(objects)


def describe_photo(sample: Sample) -> tuple[Tensor, Tensor]:
    """Return features (R, 22) of all regions of one photo, and the object that each overlaps by half or more, or -1."""
    image = np.ascontiguousarray(read_image(sample.path).permute(1, 2, 0).numpy())
    small = shrink(image, SIDE)
    trees = [tree for space in SPACES for tree in grow_hierarchies(small, space)]
    features = torch.from_numpy(np.concatenate([describe(tree) for tree in trees]))
    boxes = torch.from_numpy(np.concatenate([tree.regions[:, :4] for tree in trees])).double()
    scale = torch.tensor([small.shape[1] / image.shape[1], small.shape[0] / image.shape[0]] * 2, dtype=torch.float64)
    if len(sample.truth) == 0:
        return features, torch.full((len(features),), -1)
    best, which = box_iou(boxes, sample.truth.boxes.double() * scale).max(dim=1)
    return features, torch.where(best >= OVERLAP, which, -1)


def weigh(objects: Tensor) -> Tensor:
    """Return a weight for each region, (R,) float32: 1 without object, else equal for each object; the mean is 1."""
    weights, positive = torch.ones(len(objects)), objects >= 0
    shares = 1 / torch.bincount(objects[positive])[objects[positive]].float()
    weights[positive] = shares * (len(shares) / shares.sum())
    return weights


def fit(features: Tensor, objects: Tensor, generator: torch.Generator) -> tuple[Array, Array]:
    """Return the weights of the hidden layer, (22 + 1, 24), the last row biases, and of the output, (24,).

    The network sees standardised features; the weights returned are for features as they are. The bias of the output
    is left out, since it changes no order.
    """
    labels, importance = (objects >= 0).float(), weigh(objects)
    mean, deviation = features.mean(dim=0), features.std(dim=0).clamp(min=1e-6)
    inputs = (features - mean) / deviation
    hidden = torch.randn(FEATURES, UNITS, generator=generator) * (2 / FEATURES) ** 0.5
    output = torch.randn(UNITS, generator=generator) * (1 / UNITS) ** 0.5
    weights = [w.requires_grad_() for w in (hidden, torch.zeros(UNITS), output, torch.zeros(()))]
    optimizer = torch.optim.Adam(weights, RATE)
    steps = EPOCHS * -(-len(inputs) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    for epoch in range(EPOCHS):
        total = 0.0
        for rows in torch.randperm(len(inputs), generator=generator).split(BATCH):
            scores = torch.relu(inputs[rows] @ weights[0] + weights[1]) @ weights[2] + weights[3]
            loss = torch.nn.functional.binary_cross_entropy_with_logits(scores, labels[rows], importance[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += float(loss.detach()) * len(rows)
        print(f"epoch {epoch + 1} of {EPOCHS}: cross-entropy {total / len(inputs):.5f}")
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
        features, objects = collect([dataset[index] for index in sorted(chosen)], generator)
        print(f"{len(objects)} regions, {(objects >= 0).float().mean():.1%} of them objects")
        names = ", ".join(f"{Path(spec.split(':')[1]).name} {spec.split(':')[-1]}" for spec in arguments.data)
        origin = f"Fitted by `tools/fit_objectness.py` on {len(chosen)} photos of {names}, seed {arguments.seed}."
        write_text(arguments.out, to_source(*fit(features, objects, generator), origin))
    except (ValueError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
