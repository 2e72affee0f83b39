"""Embeddings of sequences."""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

from core.jobs.optim import Optimisation
from core.jobs.tracking import log_figure
from genomics.tasks.base import DnaTask, encoder_of, opposite_strand, pool
from genomics.tasks.figures import embedding_figure

_DRAWN = 5000  # rows kept for the figure


class Embeddings(DnaTask):
    """Vectors of sequences: the mean or last position, or one a position.

    ``average_strands`` averages those of both strands (not with ``position``).
    """

    def __init__(
        self,
        model: nn.Module,
        pooling: Literal["mean", "last", "max", "position"] = "mean",
        average_strands: bool = False,
    ) -> None:
        super().__init__(Optimisation())
        self.save_hyperparameters(ignore=["model"])
        self.model = model
        self.pooling = pooling
        self.average_strands = average_strands
        self._drawn: list[Any] = []

    def predict_step(self, batch: dict[str, Any], *_: Any) -> dict[str, Any]:
        """Columns id, those carried over, and embedding: floats, or a list of them a position."""
        tokens, sequences = batch["tokens"], batch["sequences"]
        encoder = encoder_of(self.model)
        features = encoder.embed(tokens, sequences).float()
        if self.pooling == "position":
            lengths = [tokens.shape[1]] * len(tokens)
            if sequences is not None:
                lengths = sequences.real.sum(1).tolist()
            rows = [f[:n].tolist() for f, n in zip(features, lengths, strict=True)]
            return {"id": batch["id"], **batch["columns"], "embedding": rows}
        pooled = pool(features, self.pooling, sequences)
        if self.average_strands:
            turned = encoder.embed(opposite_strand(tokens, sequences), sequences).float()
            pooled = (pooled + pool(turned, self.pooling, sequences)) / 2
        if len(self._drawn) * len(tokens) < _DRAWN:
            self._drawn.append(pooled.cpu().numpy())
        return {"id": batch["id"], **batch["columns"], "embedding": pooled}

    def on_predict_epoch_end(self) -> None:
        if self._drawn and self.trainer.is_global_zero:
            figure = embedding_figure(self._drawn)
            log_figure(self.trainer, figure, "plots/embeddings.png")
        self._drawn.clear()
