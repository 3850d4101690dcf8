"""Train a classifier behind a frozen trunk: the maps of all images are kept on disk, and only the head learns.

The head learns in seconds to minutes from vectors in memory, so nothing of it is kept until it is finished.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .classification import Classifier, classification_loss, mirrored_bins
from .features import FeatureStore
from .images import read_image
from .labels import LabelledImage
from .optimizers import learning_rate
from .structures import FeatureMap
from .svm import LinearSVM
from .trees import header_size
from .views import plan_views

_FOLDS = 3
Watch = Callable[[int], None]


@dataclass(frozen=True, slots=True, eq=False)
class LookExtractor:
    """Compute the maps of a classifier's looks at an image, for `features.FeatureStore`."""

    model: Classifier

    @property
    def settings(self) -> Mapping[str, Any]:
        """Name everything that shapes the maps; its hash keys the cache."""
        config, trunk = self.model.config, self.model.trunk
        layer = self.model.tap.layer
        named = {"format": 1, "trunk": trunk.name, "layer": layer, "views": config.views, "side": config.side}
        return named | ({"origin": trunk.origin} if trunk.origin else {})

    def __call__(self, image: Tensor) -> tuple[FeatureMap, ...]:
        """Return one map per look at a (3, H, W) uint8 image."""
        config = self.model.config
        looks = plan_views((int(image.shape[1]), int(image.shape[2])), config.views, config.side)
        return tuple(self.model.feature_maps(image, looks))


@dataclass(frozen=True, slots=True, eq=False)
class MapCache:
    """Give the vectors of images' views, from maps on disk if they are there, else computed and kept."""

    store: FeatureStore
    model: Classifier

    def complete(self, sample: LabelledImage) -> bool:
        """Say whether the maps of an image are on disk; a damaged file shows when it is read, and is made again."""
        return self.store.path(sample.image_id).exists()

    def fill(self, sample: LabelledImage) -> None:
        """Compute and keep the maps. Raises ImageError for a file that is not a whole image."""
        self.store.compute(sample.image_id, read_image(sample.path))

    @torch.inference_mode()
    def vectors(self, sample: LabelledImage) -> Tensor:
        """Return what the head reads of an image's views, (V, D) float32."""
        maps = self.store.load(sample.image_id)
        if maps is None:
            self.fill(sample)
            maps = self.store.load(sample.image_id)
        assert maps is not None
        config, device = self.model.config, self.model.trunk.mean.device
        looks = plan_views(header_size(sample.path), config.views, config.side)
        moved = [m.with_values(m.values.float().to(device)) for m in maps]
        return self.model.pool_views(moved, looks)


def read_vectors(samples: Sequence[LabelledImage], cache: MapCache, report: Watch) -> Tensor:
    """Return the vectors of all images' views, (N, V, D) float32 on the CPU.

    V is the largest number of views; of an image with fewer, such as a narrow one, they are repeated.
    report: is given the number of images that were read since it was last called.
    """
    sizes = (plan_views(header_size(s.path), cache.model.config.views, cache.model.config.side) for s in samples)
    most = max(sum(len(look.boxes) for look in looks) for looks in sizes)
    vectors = torch.empty(len(samples), most, cache.model.length)
    for row, sample in enumerate(samples):
        views = cache.vectors(sample)
        vectors[row] = views[torch.arange(most) % len(views)]
        report(1)
    return vectors


def fit_head(model: Classifier, vectors: Tensor, labels: Tensor, report: Callable[[str], None]) -> None:
    """Let the head of a classifier learn. vectors: (N, V, D). labels: (N, K) int8, 1, -1, or 0 for left out.

    report: is given a line of text every now and then.
    """
    if model.config.flip:  # a vector's bins in mirrored order are the vector of the mirrored map
        vectors = torch.cat([vectors, mirror_vectors(vectors, model.config.levels)], dim=1)
    if model.config.head == "svm":
        _fit_machines(model, vectors, labels, report)
    else:
        _fit_layers(model, vectors, labels, report)
    model.eval()


def mirror_vectors(vectors: Tensor, levels: Sequence[int]) -> Tensor:
    """Return the vectors (..., D) of mirrored views."""
    order = mirrored_bins(levels)
    mirrored: Tensor = vectors.unflatten(-1, (len(order), -1))[..., order, :].flatten(-2)
    return mirrored


def _machine(model: Classifier) -> LinearSVM:
    config = model.config
    return LinearSVM(C=config.C, positive_weight=config.positive_weight, bias_multiplier=1.0, seed=config.seed)


def _fit_machines(model: Classifier, vectors: Tensor, labels: Tensor, report: Callable[[str], None]) -> None:
    """Fit a support vector machine for each class, and what makes probabilities of their margins."""
    report("support vector machines")
    machine = _fitted(model, vectors, labels)
    head = model.head
    assert isinstance(head, nn.Linear)
    with torch.no_grad():
        head.weight.copy_(torch.as_tensor(machine.coef_))
        head.bias.copy_(torch.as_tensor(machine.intercept_))
    report("probabilities")
    model.slope.copy_(torch.ones(len(model.class_names)))
    slope, shift = calibrate(cross_margins(model, vectors, labels), labels.numpy())
    model.slope.copy_(torch.from_numpy(slope))
    model.shift.copy_(torch.from_numpy(shift))


def _fitted(model: Classifier, vectors: Tensor, labels: Tensor) -> LinearSVM:
    """Fit the machines of all views; raises ValueError for a class without images that show it, or that do not."""
    rows = labels[:, None].expand(-1, vectors.shape[1], -1).flatten(0, 1).contiguous()
    return _machine(model).fit(vectors.flatten(0, 1).contiguous().numpy(), rows.numpy())


def cross_margins(model: Classifier, vectors: Tensor, labels: Tensor) -> np.ndarray[Any, Any]:
    """Return the mean margins (N, K) of images whose machines were fitted without them, in three parts."""
    part = np.random.default_rng([model.config.seed, 7]).permutation(len(vectors)) % _FOLDS
    margins = np.zeros(labels.shape)
    for number in range(_FOLDS):
        held, kept = torch.from_numpy(part == number), torch.from_numpy(part != number)
        both = ((labels[kept] > 0).any(dim=0) & (labels[kept] < 0).any(dim=0)).numpy()  # what this part can teach
        if held.any() and both.any():
            machine = _fitted(model, vectors[kept], labels[kept][:, both])
            margins[np.ix_(part == number, both)] = machine.decision_function(vectors[held].mean(dim=1).numpy())
    return margins


def calibrate(margins: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> tuple[Any, Any]:
    """Fit sigmoid(slope * margin + shift) to what images show, class by class: two (K,) float32 (Platt 1999).

    margins: (N, K) of images that the machines did not learn from. labels: (N, K) int8, 1, -1, 0 for left out. The
    targets are Platt's, (positives + 1) / (positives + 2) and 1 / (negatives + 2), and the slope is at least 0.01, so
    that a better margin is always a better score. A class without positives or negatives keeps a slope of 1.
    """
    from scipy.optimize import minimize

    slope, shift = np.ones(margins.shape[1], np.float32), np.zeros(margins.shape[1], np.float32)
    for k in range(margins.shape[1]):
        shows, known = labels[:, k] > 0, labels[:, k] != 0
        positives, negatives = int(shows.sum()), int((known & ~shows).sum())
        if not positives or not negatives:
            continue
        target = np.where(shows, (positives + 1) / (positives + 2), 1 / (negatives + 2))[known]
        x = margins[known, k]

        def loss(p: Any, x: Any = x, target: Any = target) -> tuple[float, Any]:
            z = p[0] * x + p[1]
            difference = 1 / (1 + np.exp(-np.clip(z, -500, 500))) - target
            value = np.logaddexp(0, z) - target * z
            return float(value.sum()), np.array([(difference * x).sum(), difference.sum()])

        start = np.array([1.0, np.log((positives + 1) / (negatives + 1))])
        found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=[(0.01, None), (None, None)])
        slope[k], shift[k] = found.x
    return slope, shift


def _fit_layers(model: Classifier, vectors: Tensor, labels: Tensor, report: Callable[[str], None]) -> None:
    """Fit the fully connected layers by AdamW; an epoch shows one view of every image, drawn by the seed."""
    config = model.config
    device = model.trunk.mean.device
    generator = torch.Generator().manual_seed(config.seed)
    torch.manual_seed(config.seed)  # dropout draws from torch's own generator
    optimizer = torch.optim.AdamW(model.head.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    size = min(config.images_per_batch, len(vectors))
    steps = config.epochs * (len(vectors) // size)
    model.head.train()
    step = 0
    for epoch in range(config.epochs):
        order = torch.randperm(len(vectors), generator=generator)
        view = torch.randint(vectors.shape[1], (len(vectors),), generator=generator)
        total = 0.0
        for rows in order[: len(order) // size * size].split(size):
            optimizer.param_groups[0]["lr"] = learning_rate(config, step, steps)
            logits = model.head(vectors[rows, view[rows]].to(device))
            loss = classification_loss(logits, labels[rows].to(device), model.multi_label)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            total += float(loss.detach()) * size / len(order)
            step += 1
        report(f"epoch {epoch + 1} of {config.epochs}, loss {total:.4f}")


def train_head(
    model: Classifier, samples: Sequence[LabelledImage], folder: Path, watch: tuple[Watch, Callable[[str], None]]
) -> Tensor:
    """Read the vectors of images from the cache in a folder, and let the head learn from them; return the vectors.

    watch: told the number of images read, and lines of text while the head learns.
    """
    cache = MapCache(FeatureStore(folder, LookExtractor(model)), model)
    vectors = read_vectors(samples, cache, watch[0])
    fit_head(model, vectors, torch.stack([sample.labels for sample in samples]), watch[1])
    return vectors
