"""What a variant does, as a model sees it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from core.jobs.errors import UsageError
from core.jobs.optim import Optimisation
from core.jobs.tracking import log_figure
from core.objectives import next_token_targets
from genomics.data.tokenizers import FIRST_BASE
from genomics.tasks.base import DnaTask, opposite_strand
from genomics.tasks.classification import SequenceClassification
from genomics.tasks.figures import variant_figure
from genomics.tasks.pretraining import sequence_log_likelihood


class _Drawn:
    """The scores of a run by kind of variant, for its figure: counts in bins, not the scores."""

    def __init__(self) -> None:
        self.scores: dict[str, list[float]] = {}

    def add(self, refs: list[str], alts: list[str], scores: Tensor) -> None:
        for ref, alt, score in zip(refs, alts, scores.tolist(), strict=True):
            kept = self.scores.setdefault(kind_of(ref, alt), [])
            if len(kept) < 20_000:
                kept.append(score)


def kind_of(ref: str, alt: str) -> str:
    """SNV, MNV, insertion or deletion."""
    if len(ref) == len(alt):
        return "SNV" if len(ref) == 1 else "MNV"
    return "insertion" if len(alt) > len(ref) else "deletion"


class VariantLikelihood(DnaTask):
    """score = log p(window with ALT) - log p(window with REF), in nats, by a next-token model.

    Both windows are read whole, so a variant is charged for what follows it too. N is no target.
    ``average_strands`` averages the score of both strands. Negative scores: the model finds ALT
    less likely. Batches: ``ref`` and ``alt`` tokens (batch, length), ``columns`` to carry over.
    """

    def __init__(self, model: nn.Module, average_strands: bool = False) -> None:
        super().__init__(Optimisation())
        if not getattr(model, "causal", True):
            raise UsageError(
                "VariantLikelihood needs a next-token model (causal: true); "
                "for a classifier use genomics.tasks.VariantHeadDifference"
            )
        self.save_hyperparameters(ignore=["model"])
        self.model = model
        self.average_strands = average_strands
        self._drawn = _Drawn()

    def _log_likelihood(self, tokens: Tensor) -> Tensor:
        known = (tokens >= FIRST_BASE) & (tokens < FIRST_BASE + 4)
        likelihood, _ = sequence_log_likelihood(
            self.model(tokens), next_token_targets(tokens, ~known)
        )
        return likelihood

    def predict_step(self, batch: dict[str, Any], *_: Any) -> dict[str, Any]:
        """Columns id, those carried over, and score."""
        ref, alt = batch["ref"], batch["alt"]
        score = self._log_likelihood(alt) - self._log_likelihood(ref)
        if self.average_strands:
            turned = self._log_likelihood(opposite_strand(alt))
            score = (score + turned - self._log_likelihood(opposite_strand(ref))) / 2
        columns = batch["columns"]
        self._drawn.add(columns["ref"], columns["alt"], score)
        return {"id": batch["id"], **columns, "score": score}

    def on_predict_epoch_end(self) -> None:
        _draw(self, self._drawn)


class VariantHeadDifference(SequenceClassification):
    """score_k = logit_k(window with ALT) - logit_k(window with REF), by a trained classifier.

    Takes the checkpoint of ``SequenceClassification`` as it is.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._drawn = _Drawn()

    def predict_step(self, batch: dict[str, Any], *_: Any) -> dict[str, Any]:
        """Columns id, those carried over, score (the last class) and one difference a class."""
        ref = self({"tokens": batch["ref"], "sequences": None})
        alt = self({"tokens": batch["alt"], "sequences": None})
        difference = (alt - ref).double()
        columns = {"id": batch["id"], **batch["columns"], "score": difference[:, -1]}
        for k in range(difference.shape[1]):
            columns[f"score_{k}"] = difference[:, k]
        self._drawn.add(batch["columns"]["ref"], batch["columns"]["alt"], difference[:, -1])
        return columns

    def on_predict_epoch_end(self) -> None:
        _draw(self, self._drawn)


def _draw(task: DnaTask, drawn: _Drawn) -> None:
    if drawn.scores and task.trainer.is_global_zero:
        log_figure(task.trainer, variant_figure(drawn.scores), "plots/variant_scores.png")
    drawn.scores = {}
