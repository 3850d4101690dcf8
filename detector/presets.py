"""Name the ways in which the paper and its released code fine-tune the fully connected layers.

He et al. 2015, section 4.1, and the authors' `finetuning/spp_finetune_voc.m` with
`model-defs/pascal_finetune_fc_spm_solver.prototxt`. They agree on what a mini-batch is: 128 windows, a quarter of them
positive (IoU with an object of at least 0.5), the others negative ([0.1, 0.5)). Where the text is silent (momentum,
weight decay, mirrored images, a random scale for every window), `paper` follows the code.

| | paper | code |
|---|---|---|
| learning rate | 1e-4, then 1e-5 | 1e-3, then 1e-4, then 1e-5 |
| mini-batches at each | 250,000, then 50,000 | 30,000 each |

A run here is as long as `epochs` says; the rates fall at the same parts of it. One difference of both is left out: the
code keeps the snapshot that does best on the test set.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_BOTH: Mapping[str, Any] = {
    "learn": "fc",
    "optimizer": "sgd",
    "weight_decay": 5e-4,
    "images_per_batch": 4,
    "regions_per_image": 32,
    "positive_fraction": 0.25,
    "positive_iou": 0.5,
    "negative_iou": [0.1, 0.5],
    "repeat_below": 0.0,
    "flip": True,
    "random_scale": True,
    "dropout": 0.5,
    "box_weight": 0.0,
    "average": 0.0,
}
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "paper": {**_BOTH, "learning_rate": 1e-4, "rate_drops": [250 / 300]},
    "code": {**_BOTH, "learning_rate": 1e-3, "rate_drops": [1 / 3, 2 / 3]},
}


def preset(name: str) -> dict[str, Any]:
    """Return the settings of a preset by its name. Raises ValueError for an unknown one."""
    if name not in PRESETS:
        raise ValueError(f"expected a preset among {', '.join(PRESETS)}, got {name!r}")
    return dict(PRESETS[name])
