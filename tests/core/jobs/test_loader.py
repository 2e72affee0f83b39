"""The order of a data set too long for a list of its numbers."""

from __future__ import annotations

from itertools import chain

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from core.jobs import loader
from core.jobs.loader import ResumableLoader, permuted


@pytest.mark.parametrize("length", [1, 2, 3, 100, 4096, 4097, 70_000])
def test_every_number_comes_once(length: int) -> None:
    at = np.arange(length, dtype=np.uint64)
    found = permuted(at, length, (0, 0))
    assert sorted(found.tolist()) == list(range(length))
    assert permuted(at[length // 2 :], length, (0, 0)).tolist() == found[length // 2 :].tolist()


def test_the_order_looks_random() -> None:
    """Neighbours are as far apart as those of a random order, and seeds and epochs differ."""
    length = 50_000
    at = np.arange(length, dtype=np.uint64)
    orders = [permuted(at, length, seed).astype(np.int64) for seed in ((0, 0), (0, 1), (1, 0))]
    for order in orders:
        assert abs(np.abs(np.diff(order)).mean() / (length / 3) - 1) < 0.02
        assert abs(np.corrcoef(order, at)[0, 1]) < 0.02
        assert abs(np.corrcoef(order[1:], order[:-1])[0, 1]) < 0.02
    assert (orders[0] != orders[1]).mean() > 0.99
    assert (orders[0] != orders[2]).mean() > 0.99


def test_a_long_data_set_goes_on_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "_LONG", 10)
    monkeypatch.setattr(loader, "_PIECE", 7)
    data = TensorDataset(torch.arange(103))

    def batches(of: ResumableLoader) -> list[list[int]]:
        return [batch[0].tolist() for batch in of]

    first = ResumableLoader(data, 8, seed=1)
    whole = batches(first)
    assert sorted(chain(*whole)) == list(range(103))
    again = ResumableLoader(data, 8, seed=1)
    again.load_state_dict({"epoch": 0, "batches": 5})
    assert batches(again) == whole[5:]
    first.order.set_epoch(1)
    assert batches(first) != whole
    ranks = []
    for rank in range(4):
        part = ResumableLoader(data, 8, seed=1)
        part.order = loader._Sampler(data, num_replicas=4, rank=rank, shuffle=True, seed=1)
        ranks.append(list(part.order))
    assert {len(part) for part in ranks} == {26}
    assert set(chain(*ranks)) == set(range(103))
