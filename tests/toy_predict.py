"""A task and a data module whose predictions can be worked out by hand: score = value + 1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer

from core.jobs.data import Record, RecordDataModule, SkipRecord
from core.jobs.shards import load_predictions


def write_input(file: Path, records: int) -> Path:
    """Record n is named rn and has the value n / 2."""
    file.write_text("".join(f"r{n} {n / 2}\n" for n in range(records)))
    return file


class ToyData(RecordDataModule):
    """Lines of id and value; the records at the places in ``skip`` cannot be predicted, those in
    ``reasons`` for the reason that stands there."""

    input_columns = {"id": "string", "value": "double"}  # noqa: RUF012
    exports = (".txt",)

    def __init__(
        self,
        file: str,
        batch_size: int = 4,
        num_workers: int = 0,
        skip: tuple[int, ...] = (),
        reasons: Mapping[int, str] = MappingProxyType({}),
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers)
        self.file = file
        self.reasons = {f"r{place}": f"r{place} is on the list" for place in skip}
        self.reasons |= {f"r{place}": reason for place, reason in reasons.items()}

    def setup(self, stage: str) -> None:
        self.lines = [line.split() for line in Path(self.file).read_text().splitlines()]

    def predict_records(self) -> Sequence[Record]:
        return [{"id": name, "value": float(value)} for name, value in self.lines]

    def encode(self, record: Record) -> Any:
        if record["id"] in self.reasons:
            raise SkipRecord(self.reasons[record["id"]])
        return record["id"], torch.tensor([record["value"], 1.0])

    def collate(self, examples: list[Any]) -> Any:
        ids, values = zip(*examples, strict=True)
        return {"id": list(ids), "x": torch.stack(values)}

    def digest_files(self) -> list[Path]:
        return [Path(self.file)]

    def export(self, dataset: Path, target: Path) -> None:
        for score in load_predictions(dataset).collect()["score"]:
            with target.open("a") as stream:
                stream.write(f"{float(score)}\n")


class ToyTask(LightningModule):
    """Remembers the batches it saw; may give several rows for a record."""

    def __init__(self, rows: int = 1) -> None:
        super().__init__()
        self.rows = rows
        self.batches: list[list[str]] = []
        self.linear = torch.nn.Linear(2, 1, bias=False)
        with torch.no_grad():
            self.linear.weight.copy_(torch.tensor([[2.0, 1.0]]))

    @property
    def seen(self) -> int:
        return sum(map(len, self.batches))

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        self.batches.append(batch["id"])
        x = batch["x"].repeat_interleave(self.rows, dim=0)
        ids = [name for name in batch["id"] for _ in range(self.rows)]
        return {
            "id": ids,
            "score": self.linear(x)[:, 0],
            "pair": x.double().numpy(),
            "label": ["odd" if name[-1] in "13579" else "even" for name in ids],
        }


def toy_trainer(**options: Any) -> Trainer:
    return Trainer(
        **{
            "accelerator": "cpu",
            "devices": 1,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            **options,
        }
    )
