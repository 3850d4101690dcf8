"""Name the classes of VOC and COCO and match names across data sets.

Names are compared without regard to case, and spaces, underscores and hyphens count as the same: `Dining-Table`,
`dining_table` and VOC's `diningtable` are one class.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

VOC_CLASSES: tuple[str, ...] = (
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)

# In the order of COCO's category ids (1 to 90, with gaps).
_COCO = """
person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign,
parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella, handbag,
tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard, surfboard,
tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange, broccoli, carrot,
hot dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv, laptop, mouse, remote,
keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase, scissors, teddy bear,
hair drier, toothbrush
"""
COCO_CLASSES: tuple[str, ...] = tuple(" ".join(name.split()) for name in _COCO.split(","))

VOC_TO_COCO: dict[str, str] = {
    "aeroplane": "airplane",
    "diningtable": "dining table",
    "motorbike": "motorcycle",
    "pottedplant": "potted plant",
    "sofa": "couch",
    "tvmonitor": "tv",
}
COCO_TO_VOC: dict[str, str] = {coco: voc for voc, coco in VOC_TO_COCO.items()}

# Other spellings of the same 20 + 60 classes.
_SYNONYMS: dict[str, str] = {
    "cellphone": "cell phone",
    "doughnut": "donut",
    "hair dryer": "hair drier",
    "mobile phone": "cell phone",
    "motor bike": "motorbike",
    "television": "tvmonitor",
    "tv monitor": "tvmonitor",
}


def canonical(name: str) -> str:
    """Return the one spelling under which a class is compared: VOC's name if it is one of VOC's, else lower case.

    `Airplane` gives `aeroplane`, `Traffic_Light` gives `traffic light`, an unknown name itself in lower case with
    single spaces. Applying it twice changes nothing.
    """
    key = re.sub(r"[\s_-]+", " ", name).strip().casefold()
    key = _SYNONYMS.get(key, key)
    return COCO_TO_VOC.get(key, key)


def match_classes(names: Iterable[str], wanted: Sequence[str]) -> dict[str, int]:
    """Map each of `names` that is one of the `wanted` classes, under any spelling, to its index among them.

    Names that are not wanted are absent from the result. Raises ValueError if two of the wanted names are empty or
    mean the same class.
    """
    index: dict[str, int] = {}
    for position, name in enumerate(wanted):
        key = canonical(name)
        if not key or key in index:
            other = f"{wanted[index[key]]!r} and {name!r}" if key else repr(name)
            raise ValueError(f"expected distinct class names that are not empty, got {other}")
        index[key] = position
    return {name: index[canonical(name)] for name in names if canonical(name) in index}


def spellings(names: Iterable[str]) -> tuple[str, ...]:
    """Return one spelling per class for all the names found in some data sets, sorted.

    A class of VOC or COCO gets its canonical name; any other keeps the way it was written (`RBC`), the first in the
    alphabet if there are several.
    """
    known = {canonical(name) for name in (*VOC_CLASSES, *COCO_CLASSES)}
    chosen: dict[str, str] = {}
    for name in sorted(names):
        key = canonical(name)
        chosen.setdefault(key, key if key in known else name)
    return tuple(chosen[key] for key in sorted(chosen))
