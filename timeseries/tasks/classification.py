"""Classification of whole series."""

from __future__ import annotations

from typing import Any

import lightning as L
import pyarrow as pa
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MetricCollection
from torchmetrics.classification import Accuracy, F1Score

from core.jobs.optim import Optimisation, adamw
from core.jobs.tracking import log_figure, log_table
from timeseries.data.labelled import LabelledSeriesData
from timeseries.tasks.baselines import baseline_predictions
from timeseries.tasks.figures import confusion_figure, prefix_figure
from timeseries.tasks.prefixes import PrefixCurve, at_end, prefix_logits, prefix_steps


class SeriesClassification(L.LightningModule):
    """Which class a series belongs to.

    ``model`` maps (values, sequences) to logits (batch, classes), or (batch, time, classes), one
    answer after each step, of which the last real one counts. ``classes`` comes from the data where
    it is 0. Batches: ``values`` (batch, time, channels), ``sequences`` or None, ``label`` (batch,).

    Metrics: ``accuracy``, ``macro_f1``; in the test also those of two baselines that are fitted to
    the same training series (``timeseries.tasks.baselines``), and ``accuracy_at_25``, 50, 75 and
    100 per cent of each test series' steps. All twentieths are a figure and a table; a model with
    ``step`` is fed one step at a time for it. On long series the nearest neighbour and the prefixes
    may take longer than training: ``baselines`` and ``prefixes`` leave them out.

    Raises ValueError for fewer than two classes.
    """

    def __init__(
        self,
        model: nn.Module,
        classes: int = 0,
        optimisation: Optimisation = Optimisation(),  # noqa: B008  # read only
        baselines: bool = True,
        prefixes: bool = True,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["model"])
        self.model = model
        self.optimisation = optimisation
        self.baselines, self.prefixes = baselines, prefixes
        if classes < 2:
            raise ValueError(f"SeriesClassification: classes must be at least 2, got {classes}")
        kind: Any = {"task": "multiclass", "num_classes": classes}
        scores = {
            "accuracy": Accuracy(**kind, average="micro"),
            "macro_f1": F1Score(**kind, average="macro"),
        }
        self.val_scores = MetricCollection(dict(scores), prefix="val/")
        self.test_scores = MetricCollection(dict(scores), prefix="test/").clone()
        self.baseline_scores = MetricCollection(dict(scores), prefix="test/").clone()
        self.curve = PrefixCurve()
        self._seen: list[tuple[Tensor, Tensor]] = []

    def forward(self, batch: dict[str, Any]) -> Tensor:
        """Logits (batch, classes)."""
        values, sequences = batch["values"], batch["sequences"]
        return at_end(self.model(values, sequences), sequences)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch).float(), batch["label"])
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch["label"]))
        return loss

    def _evaluate(self, batch: dict[str, Any], scores: MetricCollection, split: str) -> None:
        logits, label = self(batch).float(), batch["label"]
        self.log(f"{split}/loss", F.cross_entropy(logits, label), batch_size=len(label))
        scores.update(logits, label)
        self._seen.append((logits.argmax(-1).cpu(), label.cpu()))

    def _finish(self, scores: MetricCollection, split: str) -> None:
        self.log_dict(scores.compute(), prog_bar=True)
        scores.reset()
        predicted, labels = (torch.cat(part).numpy() for part in zip(*self._seen, strict=True))
        self._seen.clear()
        if not self.trainer.sanity_checking and self.trainer.is_global_zero:
            figure = confusion_figure(predicted, labels, self._data().classes)
            log_figure(self.trainer, figure, f"plots/{split}_confusion.png")

    def _data(self) -> LabelledSeriesData:
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, LabelledSeriesData)
        return data

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self._evaluate(batch, self.val_scores, "val")

    def on_validation_epoch_end(self) -> None:
        self._finish(self.val_scores, "val")

    # Test

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self._evaluate(batch, self.test_scores, "test")
        if not self.prefixes:
            return
        values, sequences = batch["values"], batch["sequences"]
        answers = prefix_logits(self.model, values, sequences).argmax(-1)
        self.curve.update(answers, batch["label"], prefix_steps(values, sequences))

    def on_test_epoch_end(self) -> None:
        tested = sum(len(label) for _, label in self._seen) * self.trainer.world_size
        self._finish(self.test_scores, "test")
        if self.baselines:
            self._score_baselines(tested)
        if self.prefixes:
            self._finish_curve()

    def _finish_curve(self) -> None:
        table = self.curve.table()
        self.curve.reset()
        for share, accuracy in table.gather_every(5, offset=4)["share", "accuracy"].iter_rows():
            self.log(f"test/accuracy_at_{100 * share:.0f}", accuracy)
        if self.trainer.is_global_zero:
            log_table(self.trainer, table, "tables/test_accuracy_by_prefix.csv")
            log_figure(self.trainer, prefix_figure(table), "plots/test_accuracy_by_prefix.png")

    def _score_baselines(self, tested: int) -> None:
        """The baselines' metrics on the series that the model was tested on."""
        data = self._data()
        test = data.split("test")[:tested]
        labels = torch.tensor(data.numbers(test), device=self.device)
        for name, predicted in baseline_predictions(data, test).items():
            answers = torch.from_numpy(predicted).to(self.device)
            scores = self.baseline_scores(answers, labels)
            self.log_dict({f"{key}_{name}": value for key, value in scores.items()})
            self.baseline_scores.reset()

    def predict_step(self, batch: dict[str, Any], *_: Any) -> dict[str, Any]:
        """Columns id, prediction, one probability a class, and actual where it is known."""
        probabilities = self(batch).float().softmax(-1).cpu()
        chosen = probabilities.argmax(-1).tolist()
        columns: dict[str, Any] = {"id": batch["id"]}
        columns["prediction"] = [batch["classes"][k] for k in chosen]
        for k, name in enumerate(batch["classes"]):
            columns[f"probability_{name}"] = probabilities[:, k].double()
        columns["actual"] = pa.array(batch["actual"], pa.string())
        return columns

    def configure_optimizers(self) -> Any:
        steps = int(self.trainer.estimated_stepping_batches)
        return adamw(self, steps=steps, **vars(self.optimisation))
