"""Pretraining on DNA: the next base, or masked bases."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from core.jobs.errors import UsageError
from core.jobs.optim import Optimisation
from core.jobs.tracking import log_figure
from core.objectives import (
    IGNORE,
    Masking,
    bits_per_token,
    next_token_targets,
    token_loss,
)
from genomics.data.tokenizers import FIRST_BASE, MASK
from genomics.tasks.base import DnaTask
from genomics.tasks.figures import context_figure

_LAST_BASE = FIRST_BASE + 3  # A, C, G, T; N is never a target


class Pretraining(DnaTask):
    """A language model of DNA.

    ``objective``: ``next`` predicts the base after each (the model must be causal), ``masked``
    hides ``mask_rate`` of the bases (the model must not be). N and padding are no targets. Logs
    ``bits_per_base`` and ``perplexity`` over A, C, G, T, and draws bits by position.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Literal["next", "masked"] = "next",
        mask_rate: float = 0.15,
        optimisation: Optimisation = Optimisation(),  # noqa: B008  # read only
    ) -> None:
        super().__init__(optimisation)
        if getattr(model, "causal", objective == "next") != (objective == "next"):
            raise UsageError(
                f"objective {objective!r} needs a model with causal: "
                f"{str(objective == 'next').lower()}; change model.causal or the objective"
            )
        self.save_hyperparameters(ignore=["model"])
        self.model = model
        self.objective = objective
        self.masking = Masking(MASK, FIRST_BASE, _LAST_BASE, rate=mask_rate)
        self._nats: Tensor | None = None
        self._counts: Tensor | None = None

    def _loss_parts(
        self, batch: dict[str, Any], generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        tokens = batch["tokens"]
        base = (tokens >= FIRST_BASE) & (tokens <= _LAST_BASE)
        if self.objective == "next":
            inputs, targets = tokens, next_token_targets(tokens, ~base)
        else:
            inputs, targets = self.masking(tokens, base, generator)
        return self.model(inputs, batch["sequences"]), targets

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        loss = token_loss(*self._loss_parts(batch))
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch["tokens"]))
        return loss

    def _evaluate(self, batch: dict[str, Any], batch_idx: int) -> None:
        # the same positions are masked in every evaluation, so that epochs compare
        generator = torch.Generator(self.device).manual_seed(batch_idx)
        logits, targets = self._loss_parts(batch, generator)
        nats = torch.nn.functional.cross_entropy(
            logits.float().transpose(1, 2), targets.long(), ignore_index=IGNORE, reduction="none"
        ).double()
        counted = targets != IGNORE
        if self._nats is None or self._counts is None or len(self._nats) < nats.shape[1]:
            self._grow(nats.shape[1])
        assert self._nats is not None
        assert self._counts is not None
        self._nats[: nats.shape[1]] += nats.sum(0).cpu()
        self._counts[: nats.shape[1]] += counted.sum(0).cpu()

    def _grow(self, length: int) -> None:
        nats, counts = torch.zeros(length, dtype=torch.float64), torch.zeros(length)
        if self._nats is not None and self._counts is not None:
            nats[: len(self._nats)], counts[: len(self._counts)] = self._nats, self._counts
        self._nats, self._counts = nats, counts

    def _finish(self, split: str) -> None:
        if self._nats is None or self._counts is None:
            return
        total = torch.stack([self._nats.sum(), self._counts.sum().double()]).to(
            device=self.device, dtype=torch.float32
        )
        total = self.trainer.strategy.reduce(total, reduce_op="sum")
        loss = float(total[0] / total[1].clamp(min=1))
        self.log(f"{split}/loss", loss)
        self.log(f"{split}/bits_per_base", bits_per_token(loss), prog_bar=True)
        self.log(f"{split}/perplexity", float(torch.exp(torch.tensor(loss))))
        if not self.trainer.sanity_checking and self.trainer.is_global_zero:
            figure = context_figure(self._nats.numpy(), self._counts.numpy())
            log_figure(self.trainer, figure, f"plots/{split}_bits_by_position.png")
        self._nats = self._counts = None

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self._evaluate(batch, batch_idx)

    def on_validation_epoch_end(self) -> None:
        self._finish("val")

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self._evaluate(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        self._finish("test")

    def predict_step(self, batch: dict[str, Any], *_: Any) -> dict[str, Any]:
        """Columns id, log_likelihood (nats over the predicted bases) and bases (their number)."""
        if self.objective != "next":
            raise UsageError(
                "only a next-token model gives likelihoods; use genomics.tasks.Embeddings"
            )
        logits, targets = self._loss_parts(batch)
        likelihood, counted = sequence_log_likelihood(logits, targets)
        return {"id": batch["id"], "log_likelihood": likelihood, "bases": counted}


def sequence_log_likelihood(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of log p over a row's targets (batch,) in float64 nats, and the number of targets.

    The probabilities are over A, C, G, T alone.
    """
    bases = logits[..., FIRST_BASE : _LAST_BASE + 1].double().log_softmax(-1)
    known = targets != IGNORE
    index = torch.where(known, targets - FIRST_BASE, 0).long()
    chosen = bases.gather(-1, index[..., None])[..., 0]
    return torch.where(known, chosen, 0).sum(1), known.sum(1)
