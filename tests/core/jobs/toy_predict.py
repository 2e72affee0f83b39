"""A task and a data module whose predictions can be worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from core.jobs.data import Record, RecordDataModule, SkipRecord


class ToyData(RecordDataModule):
    """Records r0, r1, ... with a value; every ``skip_every``-th cannot be predicted."""

    input_columns = {"id": "string", "value": "double"}  # noqa: RUF012
    exports = (".txt",)

    def __init__(
        self, file: str, batch_size: int = 4, num_workers: int = 0, skip_every: int = 0
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers)
        self.file = file
        self.skip_every = skip_every

    def setup(self, stage: str) -> None:
        self.values = [float(line) for line in Path(self.file).read_text().split()]

    def predict_records(self) -> Sequence[Record]:
        return [{"id": f"r{i}", "value": value} for i, value in enumerate(self.values)]

    def encode(self, record: Record) -> Any:
        if self.skip_every and int(record["id"][1:]) % self.skip_every == 0:
            raise SkipRecord("its number may not be predicted")
        return record["id"], torch.tensor([record["value"], 1.0])

    def collate(self, examples: list[Any]) -> Any:
        ids, values = zip(*examples, strict=True)
        return {"id": list(ids), "x": torch.stack(values)}

    def digest_files(self) -> list[Path]:
        return [Path(self.file)]

    def export(self, dataset: Path, target: Path) -> None:
        from core.jobs.shards import load_predictions

        scores = load_predictions(dataset).collect()["score"]
        target.write_text("".join(f"{score}\n" for score in scores))


class ToyTask(LightningModule):
    """score = 2 value + 1; counts the records it sees, may give several rows per record."""

    def __init__(self, rows: int = 1) -> None:
        super().__init__()
        self.rows = rows
        self.seen = 0
        self.linear = torch.nn.Linear(2, 1, bias=False)
        with torch.no_grad():
            self.linear.weight.copy_(torch.tensor([[2.0, 1.0]]))

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        self.seen += len(batch["id"])
        score: Tensor = self.linear(batch["x"])[:, 0]
        return {
            "id": [name for name in batch["id"] for _ in range(self.rows)],
            "score": score.repeat_interleave(self.rows),
            "pair": batch["x"].repeat_interleave(self.rows, dim=0),
            "label": [
                "odd" if name[-1] in "13579" else "even"
                for name in batch["id"]
                for _ in range(self.rows)
            ],
        }


def trainer(**options: Any) -> Trainer:
    return Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"devices": 1, **options},
    )
