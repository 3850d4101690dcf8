"""Check the program that probes what layers know of regions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from detector.boxes import project
from detector.checkpoints import load_detector
from detector.datasets import open_dataset
from detector.pooling import spatial_pyramid_pool
from detector.reduced import ReducedCaches
from detector.sppnet import SPPNet
from proposals.registry import make_proposer
from proposals.store import ProposalStore
from tests.test_datasets import load_tool
from tests.toy import TOY


def test_precision_is_1_of_what_tells_objects_apart_and_their_part_of_what_does_not() -> None:
    tool = load_tool("probe_layers")
    draw = np.random.default_rng(0)
    labels = draw.integers(-1, 2, 900)
    noise = draw.standard_normal((900, 8)).astype(np.float32)
    telling = noise + 12 * np.eye(8, dtype=np.float32)[labels + 1]
    parts = labels[:600], labels[600:]
    assert tool.precision(telling[:600], telling[600:], parts) == pytest.approx(1)
    assert tool.precision(noise[:600], noise[600:], parts) == pytest.approx(1 / 3, abs=0.08)


@pytest.mark.slow
def test_layers_are_described_and_told_in_a_table(tmp_path: Path) -> None:
    """Compare pool5 with the pyramid pooled from the maps; run the program on eight drawn photos."""
    tool = load_tool("probe_layers")
    net = load_detector("voc-lite0")
    assert isinstance(net, SPPNet)
    caches = ReducedCaches.of(net, ProposalStore(tmp_path / "proposals", make_proposer("fast")), tmp_path / "maps")
    sample = open_dataset(TOY).samples[0]
    found, labels = tool.Probe(net, caches).describe(sample, 0)
    objects = int((labels >= 0).sum())
    assert objects == int((~sample.truth.difficult).sum()) > 0
    assert labels[:objects].tolist() == sample.truth.labels[~sample.truth.difficult].tolist()
    assert 0 < len(labels) - objects <= tool.NEGATIVES
    assert {len(values) for values in found.values()} == {len(labels)}
    fine = caches.read(sample)[0].fine[0]
    windows = project(sample.truth.boxes[~sample.truth.difficult].float(), fine, net.config.projection)
    pooled = spatial_pyramid_pool(fine.values, windows, net.config.levels)
    torch.testing.assert_close(found["pool5"][:objects], pooled.flatten(1))
    result = CliRunner().invoke(tool.main, ["voc-lite0", TOY, "--cache", str(tmp_path)])
    assert result.exit_code == 0, result.stderr
    rows = [line.rsplit(maxsplit=2) for line in result.stdout.splitlines()]
    assert [row[0] for row in rows] == list(found)
    assert [int(row[1]) for row in rows] == [values.shape[1] for values in found.values()]
    assert all(0 < float(row[2]) <= 100 for row in rows)
