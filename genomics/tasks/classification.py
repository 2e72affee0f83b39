"""Sequence classification."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import (
    AUROC,
    Accuracy,
    MatthewsCorrCoef,
)

from core.jobs.optim import Optimisation
from core.jobs.tracking import log_figure
from genomics.tasks.base import (
    DnaTask,
    Pooling,
    encoder_of,
    opposite_strand,
    pool,
    width_of,
)
from genomics.tasks.figures import classification_figure


class SequenceClassification(DnaTask):
    """Which class a DNA sequence belongs to.

    ``model`` gives features a position; they are pooled and mapped to ``classes`` logits.
    ``average_strands`` averages the logits of both strands when not training. ``soft_prompt``
    learns that many vectors before every sequence and the head, and freezes the model (HyenaDNA,
    section 4.4). Batches: ``tokens`` (batch, length), ``sequences`` or None, ``label`` (batch,).
    """

    def __init__(
        self,
        model: nn.Module,
        classes: int = 2,
        pooling: Pooling = "mean",
        average_strands: bool = False,
        soft_prompt: int = 0,
        head_dropout: float = 0.0,
        optimisation: Optimisation = Optimisation(),  # noqa: B008  # read only
    ) -> None:
        super().__init__(optimisation)
        self.save_hyperparameters(ignore=["model"])
        self.model = model
        self.pooling: Pooling = pooling
        self.average_strands = average_strands
        width = width_of(model)
        self.head = nn.Sequential(nn.Dropout(head_dropout), nn.Linear(width, classes))
        self.prompt: nn.Parameter | None = None
        if soft_prompt:
            self.model.requires_grad_(False)
            self.prompt = nn.Parameter(torch.randn(soft_prompt, width) * 0.02)
        kind: Any = {"task": "multiclass", "num_classes": classes}
        scores = {
            "accuracy": Accuracy(**kind),
            "auroc": AUROC(**kind),
            "mcc": MatthewsCorrCoef(**kind),
        }
        self.val_scores = MetricCollection(dict(scores), prefix="val/")
        self.test_scores = MetricCollection(dict(scores), prefix="test/").clone()
        self._seen: list[tuple[Tensor, Tensor]] = []

    def _logits(self, tokens: Tensor, sequences: Any) -> Tensor:
        features = encoder_of(self.model).embed(tokens, sequences, self.prompt)
        return self.head(pool(features, self.pooling, sequences))

    def forward(self, batch: dict[str, Any]) -> Tensor:
        """Logits (batch, classes)."""
        tokens, sequences = batch["tokens"], batch["sequences"]
        logits = self._logits(tokens, sequences)
        if self.average_strands and not self.training:
            logits = (logits + self._logits(opposite_strand(tokens, sequences), sequences)) / 2
        return logits

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch).float(), batch["label"])
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch["label"]))
        return loss

    def _evaluate(
        self, batch: dict[str, Any], scores: Metric | MetricCollection, split: str
    ) -> None:
        logits, label = self(batch).float(), batch["label"]
        self.log(f"{split}/loss", F.cross_entropy(logits, label), batch_size=len(label))
        scores.update(logits.softmax(-1), label)
        self._seen.append((logits.softmax(-1).cpu(), label.cpu()))

    def _finish(self, scores: MetricCollection, split: str) -> None:
        self.log_dict(scores.compute(), prog_bar=True)
        scores.reset()
        probabilities = torch.cat([p for p, _ in self._seen])
        labels = torch.cat([y for _, y in self._seen])
        self._seen.clear()
        if not self.trainer.sanity_checking and self.trainer.is_global_zero:
            figure = classification_figure(probabilities.numpy(), labels.numpy())
            log_figure(self.trainer, figure, f"plots/{split}_classification.png")

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self._evaluate(batch, self.val_scores, "val")

    def on_validation_epoch_end(self) -> None:
        self._finish(self.val_scores, "val")

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self._evaluate(batch, self.test_scores, "test")

    def on_test_epoch_end(self) -> None:
        self._finish(self.test_scores, "test")

    def predict_step(self, batch: dict[str, Any], *_: Any) -> dict[str, Any]:
        """Columns id, those carried over, prediction and one probability a class."""
        probabilities = self(batch).float().softmax(-1)
        columns: dict[str, Any] = {"id": batch["id"], **batch["columns"]}
        columns["prediction"] = probabilities.argmax(-1)
        for k in range(probabilities.shape[1]):
            columns[f"probability_{k}"] = probabilities[:, k].double()
        return columns
