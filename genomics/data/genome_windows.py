"""Windows of a genome, for pretraining."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from lightning.pytorch import LightningDataModule, LightningModule
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from core.jobs.errors import DataError, UsageError
from core.jobs.loader import ResumableLoader
from genomics.data.batches import Example, collate_examples
from genomics.data.fasta import Genome
from genomics.data.regions import Region, parse_region
from genomics.data.splits import check_region_splits
from genomics.data.tokenizers import FIRST_BASE, NucleotideTokenizer
from genomics.data.windows import tile


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

    def check_input(self, stage: str, task: LightningModule) -> None:
        """As of ``RecordDataModule``: what is wrong with the files is said before a run begins."""
        self.setup(stage)

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

    def windows(self, split: str, length: int, stride: int, both_strands: bool) -> WindowTokens:
        """The windows of a split; DataError if it has none."""
        windows = WindowTokens(self, self.regions[split], length, stride, both_strands)
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


class WindowTokens(Dataset):
    """Windows in the order of their regions, then, if asked for, those of the other strand.

    The last window of a region that does not divide evenly is filled with N: the bases behind it
    may belong to another split.
    """

    def __init__(
        self,
        data: GenomeWindows,
        regions: list[Region],
        length: int,
        stride: int,
        both_strands: bool,
    ) -> None:
        self.genome, self.tokenizer = data.genome, data.tokenizer
        self.both_strands = both_strands
        laid = [tile([region], length, stride) for region in regions]
        self.windows = tile(regions, length, stride)
        self.ends = np.repeat([r.end for r in regions], [len(w) for w in laid])
        keep = [self._unknown(i) <= data.max_unknown * length for i in range(len(self.windows))]
        self.windows = self.windows.select(np.array(keep, bool))
        self.ends = self.ends[np.array(keep, bool)]

    def _text(self, index: int) -> bytes:
        window = self.windows[index]
        end = min(window.end, int(self.ends[index]))
        return self.genome.fetch_bytes(window.chrom, window.start, end).ljust(len(window), b"N")

    def _unknown(self, index: int) -> int:
        """How many of a window's bases the tokenizer reads as N."""
        return int((self.tokenizer.encode(self._text(index)) >= FIRST_BASE + 4).sum())

    def __len__(self) -> int:
        return len(self.windows) * (2 if self.both_strands else 1)

    def __getitem__(self, index: int) -> Example:
        turned, index = divmod(index, len(self.windows))
        window = self.windows[index]
        tokens: NDArray[np.integer] = self.tokenizer.encode(self._text(index), str(window))
        if turned:
            tokens = self.tokenizer.reverse_complement(tokens)
        return Example(f"{window}{'-' if turned else '+'}", tokens)
