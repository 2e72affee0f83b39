"""Training batches whose order is a function of seed and epoch, so that a stopped run goes on with
the next batch instead of the first."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, DistributedSampler

_LONG = 1 << 20  # examples; a list of so many numbers takes 40 MB
_PIECE = 1 << 14


class _Sampler(DistributedSampler):
    """This rank's indices of an epoch, without the first ``skip``.

    A DistributedSampler also for one process: its order depends on seed and epoch alone, and
    Lightning, which would put its own in place of any other, leaves it. The order of more than
    ``_LONG`` examples is computed piece by piece and never held.
    """

    skip = 0

    def __iter__(self) -> Iterator[Any]:
        skip, self.skip = self.skip, 0
        examples = len(self.dataset)  # type: ignore[arg-type]
        if examples <= _LONG or not self.shuffle:
            return itertools.islice(super().__iter__(), skip, None)
        places = range(self.rank, self.total_size, self.num_replicas)[skip:]
        return self._computed(places, examples)

    def _computed(self, places: range, examples: int) -> Iterator[int]:
        for start in range(0, len(places), _PIECE):
            some = places[start : start + _PIECE]
            # as in the parent, the first examples come again where ranks do not divide them
            at = np.arange(some.start, some.stop, some.step, dtype=np.uint64) % np.uint64(examples)
            yield from permuted(at, examples, (self.seed, self.epoch)).tolist()


def permuted(at: NDArray[np.uint64], length: int, seed: tuple[int, int]) -> NDArray[np.uint64]:
    """The numbers at places ``at`` of a random order of ``length`` numbers, in constant memory.

    A Feistel network over at least as many numbers (Luby and Rackoff 1988); what falls outside goes
    through it again (Black and Rogaway 2002).
    """
    bits = np.uint64(max(1, ((length - 1).bit_length() + 1) // 2))
    mask = (np.uint64(1) << bits) - np.uint64(1)
    keys = np.random.default_rng(seed).integers(0, 1 << 63, 6, dtype=np.uint64)
    found = at.copy()
    outside = np.ones(len(at), bool)
    while outside.any():
        left, right = found[outside] >> bits, found[outside] & mask
        for key in keys:
            left, right = right, left ^ (_mixed(right + key) & mask)
        found[outside] = left << bits | right
        outside = found >= length
    return found


def _mixed(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The output function of splitmix64 (Steele et al. 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


class ResumableLoader(DataLoader):
    """DataLoader for ``train_dataloader`` that can go on within an epoch.

    ``state_dict`` counts the batches handed out; after ``load_state_dict`` the next iteration
    begins behind them. Randomness drawn while an example is made (augmentation) goes on only if it
    is derived from the example's index and the epoch.

    Args:
        dataset: has ``len`` and indexing.
        batch_size: examples a batch on one device.
        shuffle: a new order every epoch.
        seed: of that order; the run's ``seed_everything`` if left out.
        options: of DataLoader: ``num_workers``, ``collate_fn``, ``pin_memory``, ``drop_last``, ...
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        *,
        shuffle: bool = True,
        seed: int | None = None,
        drop_last: bool = False,
        **options: Any,
    ) -> None:
        distributed = dist.is_available() and dist.is_initialized()
        self.order = _Sampler(
            dataset,
            num_replicas=dist.get_world_size() if distributed else 1,
            rank=dist.get_rank() if distributed else 0,
            shuffle=shuffle,
            seed=int(os.environ.get("PL_GLOBAL_SEED", "0")) if seed is None else seed,
        )
        self.batches = 0
        self._resume: dict[str, int] = {}
        super().__init__(
            dataset,
            batch_size,
            sampler=self.order,
            drop_last=drop_last,
            # Of its own, so that starting to iterate draws nothing from the global generator,
            # which must be the same after a resume.
            generator=torch.Generator(),
            **options,
        )

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # A generator: nothing is read until the first batch is asked for. Lightning makes the
        # iterator before it restores a checkpoint and before it sets the epoch.
        assert self.generator is not None
        assert self.batch_size is not None
        resume, self._resume = self._resume, {}
        self.batches = resume["batches"] if resume.get("epoch") == self.order.epoch else 0
        self.order.skip = self.batches * self.batch_size
        self.generator.manual_seed(self.order.seed + self.order.epoch)
        for batch in super().__iter__():
            self.batches += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.order.epoch, "batches": self.batches}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.order.set_epoch(state["epoch"])
        self._resume = dict(state)
