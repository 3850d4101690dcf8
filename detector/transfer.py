"""Begin with the layers of a trained detector: all that fit, but for those that name other classes."""

from __future__ import annotations

import torch

from .regions import RegionDetector

_CASCADE = "head.coarse."
_CLASS_LAYERS = ("head.classes.", "head.deltas.", _CASCADE)
_MACHINES = ("machines.", "ridge.")


def take_layers(model: RegionDetector, start: RegionDetector) -> None:
    """Copy the learned layers of `start` into `model`, which may know other classes.

    The layers whose outputs are classes come along if the classes are the same, and stay as they are otherwise; support
    vector machines and ridge regressors always stay. Raises ValueError if any other layer is missing in one of the two
    or has another shape, or if the layers read another trunk.
    """
    if _trunk(model) != _trunk(start):
        raise ValueError(f"--start: expected the trunk of its layers, {_trunk(start)}, got {_trunk(model)}")
    learned = start.learned_state()
    dropped = [n for n in learned.keys() - model.learned_state().keys() if not n.startswith((*_MACHINES, _CASCADE))]
    if dropped:
        raise ValueError(f"--start: expected settings that fit its layers, got others ({min(dropped)})")
    optional = _MACHINES if model.class_names == start.class_names else (*_MACHINES, *_CLASS_LAYERS)
    with torch.no_grad():
        for name, value in model.learned_state().items():
            if name.startswith(optional):
                continue
            fits = name in learned and learned[name].shape == value.shape
            if not fits and not name.startswith(_CASCADE):  # a cascade may be new
                raise ValueError(f"--start: expected settings that fit its layers, got others ({name})")
            if fits:
                value.copy_(learned[name])


def _trunk(model: RegionDetector) -> str:
    """Return the words for what a detector's layers read."""
    trunk = model.trunk
    return " ".join([trunk.name, *(tap.layer for tap in trunk.taps), *([f"({trunk.origin})"] if trunk.origin else [])])
