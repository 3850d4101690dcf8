"""Check that stages are timed by the clock on the wall, whatever happens in them."""

from __future__ import annotations

import time

import pytest

from detector.structures import Seconds
from detector.timing import measure


def test_a_stage_takes_as_long_as_the_clock_says() -> None:
    seconds = Seconds()
    start = time.perf_counter()
    with measure(seconds, "conv"):
        time.sleep(0.05)
    around = time.perf_counter() - start
    assert 0.05 <= seconds.stages["conv"] <= around


def test_stages_are_apart_and_add_up() -> None:
    seconds = Seconds()
    for stage in ("pool", "fc", "pool"):
        with measure(seconds, stage):
            time.sleep(0.01)
    assert list(seconds.stages) == ["pool", "fc"]
    assert seconds.stages["pool"] >= 0.02
    assert seconds.stages["fc"] >= 0.01


def test_a_stage_inside_another_counts_for_both() -> None:
    seconds = Seconds()
    with measure(seconds, "total"), measure(seconds, "conv"):
        time.sleep(0.01)
    assert seconds.stages["total"] >= seconds.stages["conv"] >= 0.01


def test_a_stage_that_fails_is_timed_and_fails() -> None:
    seconds = Seconds()
    with pytest.raises(KeyError, match="lost"), measure(seconds, "conv"):
        time.sleep(0.01)
        raise KeyError("lost")
    assert seconds.stages["conv"] >= 0.01


def test_nothing_is_measured_for_nobody() -> None:
    reached = []
    with measure(None, "conv"):
        reached.append(1)
    with pytest.raises(KeyError), measure(None, "conv"):
        raise KeyError("lost")
    assert reached == [1]
