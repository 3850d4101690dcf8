"""Check the pictures of explanations: what is coloured, how strongly, and that the rest of the photo stays."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from detector.explanation import Explanation
from detector.explanation_drawing import AGAINST, FOR, draw_explanation, tint

NAMES = ("cat", "a  long\nname of a class " * 4)


def made(boxes: list[list[float]], values: list[float], region: list[float], label: int = 0) -> Explanation:
    """Return an explanation with a pyramid of one level for each bin."""
    contributions = torch.tensor(values, dtype=torch.float64)
    margin = 0.25 + sum(values)
    score = float(torch.tensor(margin).sigmoid())
    return Explanation(
        label, score, margin, 1.0, 0.25, torch.tensor(region), (1,) * len(values), contributions,
        torch.tensor(boxes, dtype=torch.float64),
    )  # fmt: skip


def photo(size: tuple[int, int]) -> Tensor:
    return torch.randint(256, (3, *size), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def test_what_is_for_is_warm_and_what_is_against_is_cool() -> None:
    """The two bins have equal areas; the second adds half as much, against the detection."""
    image = photo((200, 300))
    one = made([[20, 60, 60, 100], [200, 60, 240, 100]], [2.0, -1.0], [100, 120, 180, 180])
    picture = draw_explanation(image, one, NAMES)
    assert picture.shape[1] > 200
    assert picture.shape[2] == 300
    weights = torch.tensor([0.299, 0.587, 0.114])
    grey = (image.float() * weights[:, None, None]).sum(dim=0)
    got = picture[:, :200].float()
    for x, colour, opacity in ((20, FOR, 0.85), (200, AGAINST, 0.425)):
        expected = torch.tensor(colour)[:, None, None] * opacity + (1 - opacity) * grey[60:100, x : x + 40]
        assert float((got[:, 60:100, x : x + 40] - expected).abs().max()) <= 1.5
    plain = torch.ones(200, 300, dtype=torch.bool)
    for x1, y1, x2, y2 in ((20, 60, 60, 100), (200, 60, 240, 100), (96, 116, 184, 184)):
        plain[y1:y2, x1:x2] = False
    assert float((got - grey)[:, plain].abs().max()) <= 1
    border = got[:, 120:180, 100:180]
    assert bool((border[:, 0] == 255).all())
    assert bool((border[:, :, -1] == 255).all())


def test_the_photo_is_seen_through_every_colour() -> None:
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    for value in (-1.0, 1.0):
        assert len(np.unique(tint(grey, np.full((16, 16), value)))) > 30
    assert np.array_equal(tint(grey, np.zeros((16, 16))), grey)


@pytest.mark.parametrize("size", [(1, 1), (5, 400), (400, 5), (60, 90)])
@pytest.mark.parametrize("label", [0, 1])
def test_every_size_has_a_picture(size: tuple[int, int], label: int) -> None:
    height, width = size
    image = photo(size)
    for value in (0.0, -3.0):
        one = made([[0, 0, width, height]], [value], [0, 0, width, height], label)
        picture = draw_explanation(image, one, NAMES)
        assert picture.dtype == torch.uint8
        assert picture.shape[1] > height
        assert picture.shape[2] >= max(width, 200)
        caption = picture[:, height:]
        assert bool((caption < 90).all(dim=0).any())
        assert bool((caption[:, :, -1] == 255).all())  # no line of text runs out of the picture
    assert torch.equal(image, photo(size))
