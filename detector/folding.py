"""Fold batch norms into the convolutions before them, which then compute the same in one layer instead of two."""

from __future__ import annotations

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights


def fold_batch_norm(model: nn.Module) -> None:
    """Fold every batch norm that follows a convolution into it, in place; activations stay where they were."""
    for parent in list(model.modules()):
        previous: tuple[str, nn.Module] | None = None
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Identity):
                continue
            if isinstance(child, nn.BatchNorm2d) and previous and isinstance(previous[1], nn.Conv2d):
                conv = previous[1]
                if conv.out_channels == child.num_features:
                    _fold(conv, child)
                    setattr(parent, name, getattr(child, "act", nn.Identity()))
            previous = (name, child)


def _fold(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError("expected a batch norm with running statistics, got one without")
    weight, bias = fuse_conv_bn_weights(
        conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
    conv.weight, conv.bias = nn.Parameter(weight), nn.Parameter(bias)
