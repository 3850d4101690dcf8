"""Define classification networks that no other package has, up to their last convolution.

Each is a plain module whose children are its stages in order, named as in the authors' files. Nobody publishes weights
for them in a form that can be fetched, so they start from random ones that are the same on every machine, or from a
safetensors file of the user's (`load_weights`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

SEED = 0  # of random weights


class WithinChannelNorm(nn.Module):
    """Normalise each channel by its own energy nearby: x / (1 + alpha * mean of x^2 over size x size cells)^beta.

    Cells beyond the border count as zero. This is Caffe's LRN with `norm_region: WITHIN_CHANNEL`, which the released
    ZF-5 has; `nn.LocalResponseNorm` looks across channels instead. Maps (N, C, h, w) to the same shape.
    """

    def __init__(self, size: int = 3, alpha: float = 5e-5, beta: float = 0.75):
        super().__init__()
        self.size, self.alpha, self.beta = size, alpha, beta

    def forward(self, x: Tensor) -> Tensor:
        energy = F.avg_pool2d(x.square(), self.size, stride=1, padding=self.size // 2)
        return x * (1 + self.alpha * energy).pow(-self.beta)


class ZF5(nn.Sequential):
    """Compute conv1 to conv5 of ZF-5, the smallest network of the paper (Zeiler and Fergus 2014), as it was released.

    | stage | kernel / stride | padding | channels | centre of cell 0 |
    |---|---|---|---|---|
    | conv1, norm1 | 7 / 2 | 1 | 96 | 3 - 1 = 2 |
    | pool1 | 3 / 2, last window cut | 0 | | + 2 * 1 = 4 |
    | conv2, norm2 | 5 / 2 | 0 | 256 | + 4 * 2 = 12 |
    | pool2 | 3 / 2, last window cut | 0 | | + 8 * 1 = 20 |
    | conv3, conv4, conv5 | 3 / 1 | 1 | 384, 384, 256 | 20 |

    These are the paddings of `Zeiler_conv5.prototxt` in the authors' SPP_net: cells 16 pixels apart, the first centred
    on pixel 20, 13 x 13 of them on an image of 224 x 224, and in general one fewer than sixteenths of a padded image.
    The paper's appendix A speaks of other paddings, floor(k / 2) in every layer; those would put cell 0 on pixel 0.

    Every convolution ends in a ReLU, as part of its stage: the weights are called `conv1.0.weight`, `conv1.0.bias`
    and so on. Input: (N, 3, H, W) RGB, 0 to 1, less ImageNet's mean and divided by its deviation, as the other
    networks here take it; the authors' took BGR from 0 to 255, less 128. To carry theirs over, turn conv1's channels
    round, add sum(w * (mean - 128)) to its bias and multiply w by the deviation, mean and deviation of each channel in
    grey levels; only cells whose field touches the padding then differ. On random weights the norms do almost
    nothing: their alpha is meant for grey levels.
    """

    def __init__(self) -> None:
        stages: dict[str, nn.Module] = {
            "conv1": _rectified(3, 96, (7, 2, 1)),
            "norm1": WithinChannelNorm(),
            "pool1": nn.MaxPool2d(3, 2, ceil_mode=True),
            "conv2": _rectified(96, 256, (5, 2, 0)),
            "norm2": WithinChannelNorm(),
            "pool2": nn.MaxPool2d(3, 2, ceil_mode=True),
            "conv3": _rectified(256, 384, (3, 1, 1)),
            "conv4": _rectified(384, 384, (3, 1, 1)),
            "conv5": _rectified(384, 256, (3, 1, 1)),
        }
        super().__init__()
        for name, stage in stages.items():
            self.add_module(name, stage)
        randomise(self)


class SmallNet(nn.Sequential):
    """Compute five small convolutions that learn from scratch on a processor in minutes: cells of 8 pixels.

    conv1 5 x 5 / 2 with 24 channels, conv2 3 x 3 with 48, pool1 2 x 2 / 2, conv3 3 x 3 with 96, pool2 2 x 2 / 2, conv4
    and conv5 3 x 3 with 96. Cell 0 is centred on pixel 0 + 2 / 2 + 4 / 2 = 3. It has no batch norm, which would have to
    be folded, and so learns as it is.
    """

    def __init__(self) -> None:
        stages: dict[str, nn.Module] = {
            "conv1": _rectified(3, 24, (5, 2, 2)),
            "conv2": _rectified(24, 48, (3, 1, 1)),
            "pool1": nn.MaxPool2d(2),
            "conv3": _rectified(48, 96, (3, 1, 1)),
            "pool2": nn.MaxPool2d(2),
            "conv4": _rectified(96, 96, (3, 1, 1)),
            "conv5": _rectified(96, 96, (3, 1, 1)),
        }
        super().__init__()
        for name, stage in stages.items():
            self.add_module(name, stage)
        randomise(self)


# What `build_trunk` finds here by name.
NETWORKS: dict[str, Callable[[], nn.Module]] = {"small": SmallNet, "zf5": ZF5}


def _rectified(inputs: int, outputs: int, shape: tuple[int, int, int]) -> nn.Sequential:
    """Return a convolution without values yet and its ReLU. shape: kernel, stride and padding."""
    kernel, stride, padding = shape
    conv = nn.utils.skip_init(nn.Conv2d, inputs, outputs, kernel, stride=stride, padding=padding)
    return nn.Sequential(conv, nn.ReLU())


def randomise(model: nn.Module, seed: int = SEED) -> None:
    """Give convolutions normal weights that keep the variance through ReLUs (He et al. 2015), and biases of zero.

    The values depend on the seed alone; the state of torch's global generator is neither read nor changed.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                deviation = (2 / module.weight[0].numel()) ** 0.5
                module.weight.copy_(torch.randn(module.weight.shape, generator=generator) * deviation)
                if module.bias is not None:
                    module.bias.zero_()


def load_weights(model: nn.Module, path: Path, needed: Sequence[str] | None = None) -> None:
    """Load a safetensors file with all of a network's weights, by their names.

    model: the network itself, such as `trunk.model`. Half precision is widened.
    needed: the names that are loaded; the file may hold others then. None for all, and no others.
    Raises FileNotFoundError if the file is not there; ValueError that names it if it is damaged, or if its names or
    shapes are not those of the network. The network is unchanged then.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a safetensors file with weights, got nothing there")
    try:
        state = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path}: expected a whole safetensors file, got a damaged one ({error})") from error
    own = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    got = {name: tuple(value.shape) for name, value in state.items()}
    for name in sorted(own.keys() | got.keys()) if needed is None else needed:
        if own.get(name) != got.get(name):
            if name not in own:
                raise ValueError(f"{path}: expected weights of {', '.join(own)} alone, got {name} as well")
            raise ValueError(f"{path}: expected {name} of shape {own[name]}, got {got.get(name, 'nothing')}")
    model.load_state_dict(state if needed is None else {name: state[name] for name in needed}, strict=needed is None)


def content_key(path: Path) -> str:
    """Return 16 hexadecimal digits that stand for a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:16]
