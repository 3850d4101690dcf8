"""Detect the way of the paper: a support vector machine for each class on a layer, and ridge regressors of the boxes.

He et al. 2015, section 4.1, after Girshick et al. 2014: the network gives features, the machines name regions, and the
regressors read the pooled map. `SPPNet` learns both jointly instead.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .backbones import Trunk
from .boxes import DELTA_STD
from .config import Config
from .pooling import bins
from .regression import BoxRegressor
from .scales import FeaturePyramid
from .sppnet import SPPNet
from .structures import Seconds
from .svm import LinearSVM
from .timing import measure


class MachineNet(SPPNet):
    """Find objects in images, given proposals: the layers of an SPP-net, with support vector machines behind one.

    config: every setting; `svm_layer` names what the machines read: `pool5`, the pyramid of a region (bins * C), `fc6`
    or `fc7`, (hidden), behind their ReLU. `box_regression` corrects boxes by `ridge` regressors on pool5, by the
    `joint` layer of the network, or by `none`. The score of a detection is 1 / (1 + exp(-m)) of its margin m: the order
    of margins in [0, 1], not a probability. Stages as those of SPPNet.
    """

    def __init__(self, config: Config, class_names: Sequence[str], trunk: Trunk | None = None):
        super().__init__(config, class_names, trunk)
        pooled = bins(config.levels) * config.channels
        width = pooled if config.svm_layer == "pool5" else config.hidden
        self.machines = nn.Linear(width, len(class_names)).requires_grad_(False)
        self.ridge = nn.Linear(pooled, 4 * len(class_names)).requires_grad_(False)
        for layer in (self.machines, self.ridge):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def take_machines(self, machine: LinearSVM) -> None:
        """Use support vector machines from now on: K of them, for features of `svm_layer`."""
        with torch.no_grad():
            self.machines.weight.copy_(torch.from_numpy(machine.coef_))
            self.machines.bias.copy_(torch.from_numpy(machine.intercept_))

    def take_regressors(self, regressor: BoxRegressor, scale: float) -> None:
        """Use ridge regressors from now on, which learned from features of pool5 that were multiplied by a scale."""
        std = torch.tensor(DELTA_STD, dtype=torch.float64)[:, None]
        with torch.no_grad():
            self.ridge.weight.copy_((regressor.coef_.double() * scale / std).flatten(0, 1))
            self.ridge.bias.copy_((regressor.intercept_.double() / std[:, 0]).flatten())

    @torch.inference_mode()
    def score(self, pyramid: FeaturePyramid, boxes: Tensor, seconds: Seconds | None = None) -> tuple[Tensor, Tensor]:
        """Pool boxes from the maps and score them; boxes on the same cells are scored once.

        boxes: (R, 4) float32. Returns scores (R, K + 1), the last column 0, and deltas (R, K, 4).
        """
        margins, deltas = self.margins(pyramid, boxes, seconds)
        return squash(margins), deltas

    @torch.inference_mode()
    def margins(self, pyramid: FeaturePyramid, boxes: Tensor, seconds: Seconds | None = None) -> tuple[Tensor, Tensor]:
        """Return the machines' margins (R, K) of (R, 4) boxes, and their deltas (R, K, 4)."""
        pooled, context, rows = self.read(pyramid, boxes, seconds)
        with measure(seconds, "fc", self.trunk.mean.device):
            fc7 = None
            features = pooled.flatten(1)
            if self.config.svm_layer != "pool5" or self.config.box_regression == "joint":
                fc6, fc7 = self.working_head.hidden(pooled, context)
                features = {"pool5": features, "fc6": fc6, "fc7": fc7}[self.config.svm_layer]
            margins = self.machines(features)
            return margins[rows], self._deltas(pooled, fc7)[rows]

    def _deltas(self, pooled: Tensor, fc7: Tensor | None) -> Tensor:
        """Return the corrections of boxes, (D, K, 4) in units of DELTA_STD."""
        classes = len(self.class_names)
        if self.config.box_regression == "none":
            return pooled.new_zeros(len(pooled), classes, 4)
        if self.config.box_regression == "joint" and fc7 is not None:
            corrections = self.working_head.deltas(fc7)
        else:
            corrections = self.ridge(pooled.flatten(1))
        deltas: Tensor = corrections.unflatten(1, (classes, 4))
        return deltas

    @torch.inference_mode()
    def features(self, pyramid: FeaturePyramid, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Return what machines and regressors read of (R, 4) boxes: the layer (R, d) and pool5 (R, bins * C)."""
        pooled, context, rows = self.read(pyramid, boxes)
        flat = pooled.flatten(1)
        if self.config.svm_layer == "pool5":
            return flat[rows], flat[rows]
        fc6, fc7 = self.working_head.hidden(pooled, context)
        return (fc6 if self.config.svm_layer == "fc6" else fc7)[rows], flat[rows]


def squash(margins: Tensor) -> Tensor:
    """Turn margins (R, K) into scores (R, K + 1): 1 / (1 + exp(-m)), and 0 for background, the last column."""
    return torch.cat([margins.sigmoid(), margins.new_zeros(len(margins), 1)], dim=1)
