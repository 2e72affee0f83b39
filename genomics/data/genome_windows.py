"""Windows of a genome, for pretraining."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from lightning.pytorch import LightningDataModule
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from core.jobs.errors import DataError, UsageError
from core.jobs.loader import ResumableLoader
from genomics.data.batches import Example, collate_examples
from genomics.data.fasta import Genome
from genomics.data.regions import Region, parse_region
from genomics.data.splits import check_region_splits
from genomics.data.tokenizers import FIRST_BASE, NucleotideTokenizer


@dataclass
class Stage:
    """``epochs`` epochs of windows of ``length`` bases, ``batch_size`` a batch."""

    length: int
    batch_size: int
    epochs: int


class GenomeWindows(LightningDataModule):
    """Windows of ``length`` bases from regions of a FASTA file, split by region.

    ``train``, ``val`` and ``test`` list regions: a chromosome, or ``chromosome:first-last`` counted
    from 1. Regions of two splits that overlap are refused. Training windows start every ``stride``
    bases (``length`` by default), in a new order each epoch; evaluation windows do not overlap.
    Windows with more than ``max_unknown`` of N are left out. ``reverse_complement`` adds the
    opposite strand of every training window. ``stages`` is a sequence-length warm-up (HyenaDNA,
    section 3.2): lengths and batch sizes one after another, the last one to the end; it needs
    ``trainer.reload_dataloaders_every_n_epochs: 1``. ``soft_masked`` says what lower case means.
    """

    def __init__(
        self,
        fasta: str,
        train: list[str],
        val: list[str],
        test: list[str] | None = None,
        length: int = 1024,
        stride: int | None = None,
        batch_size: int = 16,
        num_workers: int = 0,
        reverse_complement: bool = False,
        soft_masked: Literal["keep", "mask"] = "keep",
        max_unknown: float = 0.1,
        stages: list[Stage] | None = None,
    ) -> None:
        super().__init__()
        if length < 2:
            raise UsageError(f"data.length must be at least 2, got {length}")
        self.fasta, self.length, self.batch_size = Path(fasta), length, batch_size
        self.stride = stride or length
        self.num_workers = num_workers
        self.reverse_complement = reverse_complement
        self.max_unknown = max_unknown
        self.stages = stages
        self.tokenizer = NucleotideTokenizer(soft_masked=soft_masked)
        self._texts = {"train": train, "val": val, "test": test or []}
        self.regions: dict[str, list[Region]] = {}

    def setup(self, stage: str) -> None:
        if self.regions:
            return
        self.genome = Genome(self.fasta)
        self.regions = {
            split: [parse_region(text, self.genome.lengths) for text in texts]
            for split, texts in self._texts.items()
        }
        check_region_splits(self.regions)

    def current_stage(self) -> tuple[int, int]:
        """Window length and batch size of this epoch."""
        if not self.stages:
            return self.length, self.batch_size
        if (
            self.trainer is not None
            and getattr(self.trainer, "reload_dataloaders_every_n_epochs", 0) != 1
        ):
            raise UsageError(
                "data.stages changes the windows between epochs; "
                "set trainer.reload_dataloaders_every_n_epochs to 1"
            )
        past = 0
        epoch = self.trainer.current_epoch if self.trainer is not None else 0
        for stage in self.stages:
            past += stage.epochs
            if epoch < past:
                return stage.length, stage.batch_size
        return self.stages[-1].length, self.stages[-1].batch_size

    def windows(self, split: str, length: int, stride: int, both_strands: bool) -> Windows:
        """The windows of a split; DataError if it has none."""
        windows = Windows(self, self.regions[split], length, stride, both_strands)
        if not len(windows):
            raise DataError(
                f"{self.fasta}: data.{split} gives no window of {length} bases with at most "
                f"{self.max_unknown:.0%} N; name longer regions or lower data.length"
            )
        return windows

    def train_dataloader(self) -> DataLoader:
        length, batch_size = self.current_stage()
        stride = max(1, round(self.stride * length / self.length))
        return ResumableLoader(
            self.windows("train", length, stride, self.reverse_complement),
            batch_size,
            num_workers=self.num_workers,
            collate_fn=collate_examples,
            drop_last=False,
        )

    def val_dataloader(self) -> DataLoader:
        return self._in_order("val")

    def test_dataloader(self) -> DataLoader:
        return self._in_order("test")

    def _in_order(self, split: str) -> DataLoader:
        return DataLoader(
            self.windows(split, self.length, self.length, False),
            self.batch_size,
            num_workers=self.num_workers,
            collate_fn=collate_examples,
        )

    def digest_files(self) -> list[Path]:
        return [self.fasta] if self.fasta.is_file() else []


class Windows(Dataset):
    """Windows in the order of their regions, then, if asked for, those of the other strand."""

    def __init__(
        self,
        data: GenomeWindows,
        regions: list[Region],
        length: int,
        stride: int,
        both_strands: bool,
    ) -> None:
        self.genome, self.tokenizer, self.length = data.genome, data.tokenizer, length
        self.regions = regions
        places = [self._places(r, i, stride, data.max_unknown) for i, r in enumerate(regions)]
        self.places = np.concatenate(places) if places else np.zeros((0, 2), np.int64)
        self.both_strands = both_strands

    def _places(
        self, region: Region, number: int, stride: int, max_unknown: float
    ) -> NDArray[np.int64]:
        """(windows, 2) region number and start of those with few enough N."""
        sequence = self.genome.fetch_bytes(region.chrom, region.start, region.end)
        unknown = self.tokenizer.encode(sequence) >= FIRST_BASE + 4
        before = np.concatenate([[0], np.cumsum(unknown)])
        starts = np.arange(0, len(region) - self.length + 1, stride)
        starts = starts[before[starts + self.length] - before[starts] <= max_unknown * self.length]
        return np.stack([np.full_like(starts, number), region.start + starts], axis=1)

    def __len__(self) -> int:
        return len(self.places) * (2 if self.both_strands else 1)

    def __getitem__(self, index: int) -> Example:
        turned, index = divmod(index, len(self.places))
        number, start = self.places[index].tolist()
        chrom = self.regions[number].chrom
        tokens: Any = self.tokenizer.encode(
            self.genome.fetch_bytes(chrom, start, start + self.length), chrom
        )
        if turned:
            tokens = self.tokenizer.reverse_complement(tokens)
        strand = "-" if turned else "+"
        return Example(f"{chrom}:{start + 1}-{start + self.length}{strand}", tokens)
