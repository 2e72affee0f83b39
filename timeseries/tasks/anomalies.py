"""Scores of how unusual each value and each stamp of a series is."""

from __future__ import annotations

import itertools
import warnings
from typing import Any, Literal, NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchmetrics import Metric

from core.jobs.errors import UsageError
from core.jobs.optim import Optimisation
from core.jobs.tracking import log_figure, log_table
from timeseries.data.anomalies import AnomalyWindows
from timeseries.data.tiled import TiledSeries
from timeseries.tasks.calibration import Calibration, check_count
from timeseries.tasks.detection import baseline_errors, detection_metrics, events
from timeseries.tasks.figures import Watched, anomalies_figure
from timeseries.tasks.ranks import of_all_ranks
from timeseries.tasks.reconstruction import Reconstruction

_KEPT = 1 << 13  # stamps of the validation span, for the p-values
_PANELS = 4
_AROUND = 60  # stamps on each side of what a panel shows
_NEAR = 12  # of which so many settle its channel


class Stamps(NamedTuple):
    """``errors`` and ``expected`` (stamps, channels), standardised; number of the ``series`` and
    ``row`` (stamps,)."""

    errors: NDArray
    expected: NDArray
    series: NDArray
    row: NDArray


class StampErrors(Metric):
    """The errors of every stamp and what was expected there, gathered from all processes.

    Update with what ``Stamps`` holds, as tensors; ``compute`` gives each stamp once, in the order
    of series and rows.
    """

    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        for name in Stamps._fields:
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, *given: Tensor) -> None:
        for name, value in zip(Stamps._fields, given, strict=True):
            getattr(self, name).append(value)

    def compute(self) -> Stamps:
        # a list of parts, or their concatenation where processes were brought together
        found = [getattr(self, name) for name in Stamps._fields]
        whole = [torch.cat(x) if isinstance(x, list) else x for x in found]
        errors, expected, series, row = (x.cpu().numpy() for x in whole)
        _, first = np.unique(np.stack([series, row]), axis=1, return_index=True)
        return Stamps(
            errors[first].astype(float), expected[first].astype(float), series[first], row[first]
        )


class AnomalyScores(Reconstruction):
    """How far each value is from what a model expects that does not see it.

    ``folds`` passes hide every ``folds``-th block of ``block`` steps, so that each value is hidden
    once: with ``hide`` ``stamps`` all channels together, with ``channels`` one after the other, in
    so many times the passes, each expected from the others as well. Its errors, on the standardised
    scale, are compared with those on the validation span, of all series together, which are kept
    with the weights (``timeseries.tasks.calibration``): a ``score`` above 1 is an alarm, and clean
    stamps give one with the probability ``false_alarms``, as far as they are like the validation
    span, which also chose the checkpoint. A stamp's score is its worst channel's, with alarms at
    the same rate. What is unusual for longer than a ``block`` hides behind its own neighbours; a
    shorter block expects more exactly. ``channels`` and ``season`` come from the data where they
    are 0.

    Metrics: ``alarm_rate`` of stamps; where the data has labels or injects anomalies, those of
    ``timeseries.tasks.detection``, also with the name of a baseline, calibrated alike. A tracked
    test stores them by kind of anomaly as ``tables/test_by_kind.csv``.
    """

    errors: Tensor

    def __init__(
        self,
        model: nn.Module,
        channels: int = 0,
        season: int = 0,
        folds: int = 4,
        block: int = 12,
        hide: Literal["stamps", "channels"] = "channels",
        false_alarms: float = 0.001,
        optimisation: Optimisation = Optimisation(),  # noqa: B008  # read only
    ) -> None:
        super().__init__(model, optimisation)
        self.save_hyperparameters(ignore=["model"])
        self.season, self.folds, self.block, self.hide = season, folds, block, hide
        self.false_alarms = false_alarms
        self.register_buffer("errors", torch.full((_KEPT, channels), torch.nan))
        self._seen: list[Tensor] = []
        self._stamps = StampErrors()

    def check(self) -> None:
        """Raises UsageError for settings that hide nothing or alarm never or always. Not on
        construction, where the command line's parser would hide the error behind its own."""
        if self.folds < 2 or self.block < 1:
            raise UsageError("model.folds must be at least 2, model.block at least 1")
        least = 1 / (_KEPT + 1)
        if not least <= self.false_alarms < 1:
            raise UsageError(
                f"model.false_alarms is {self.false_alarms:g}; give a share of stamps below 1, and "
                f"{least:.2g} at the least, since the errors of {_KEPT} stamps are kept"
            )

    def check_data(self, stage: str, data: TiledSeries) -> None:
        """Raises UsageError for settings with which ``data`` cannot be scored in a ``stage``."""
        self.check()
        if self.block >= data.tiling.length:
            raise UsageError(
                f"model.block is {self.block} and data.tiling.length {data.tiling.length}; a block "
                "must be shorter than a window, or all of it is hidden at once"
            )
        if stage in ("test", "predict"):
            if data.fitted is None:  # nothing came out of a checkpoint
                raise UsageError(f"{stage} needs --ckpt_path, which knows the usual errors")
        elif data.path is not None:
            series = data.series(data.path)
            spans = [one.values[slice(*data.tiling.spans(one)["val"])] for one in series]
            values = np.concatenate(spans)
            for name, count in zip(series[0].channels, (~np.isnan(values)).sum(0), strict=True):
                if len(values):  # what is wrong with an empty span, the data says
                    check_count(int(count), self.false_alarms, name)

    def setup(self, stage: str) -> None:
        self.check()

    def expected(self, batch: dict[str, Any]) -> Tensor:
        """(batch, time, channels), each value from a pass that did not see it."""
        values = batch["values"]
        fold = torch.arange(values.shape[1], device=values.device) // self.block % self.folds
        channel = torch.arange(values.shape[2], device=values.device)
        together = [channel >= 0] if self.hide == "stamps" else [channel == c for c in channel]
        expected = torch.zeros_like(values)
        for k, which in itertools.product(range(self.folds), together):
            here = ((fold == k)[:, None] & which).expand_as(values)
            expected = torch.where(here, self.filled(batch, here), expected)
        return expected

    def _errors(self, batch: dict[str, Any], expected: Tensor) -> Tensor:
        """(batch, time, channels), not a number where a value is missing."""
        return torch.where(batch["known"], (batch["values"] - expected).abs(), torch.nan)

    # Validation

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self._seen.append(self._errors(batch, self.expected(batch))[batch["own"]].cpu())

    def on_validation_epoch_end(self) -> None:
        errors = of_all_ranks(torch.cat(self._seen))
        self._seen.clear()
        self.log("val/mae", errors.nanmean(), prog_bar=True, sync_dist=True)
        self.log("val/mse", errors.square().nanmean(), prog_bar=True, sync_dist=True)
        if self.trainer.sanity_checking:
            return
        # drawn, since every n-th might be the same hour of each day
        drawn = torch.randperm(len(errors), generator=torch.Generator().manual_seed(0))[:_KEPT]
        kept = errors[drawn.sort().values]
        self.errors.fill_(torch.nan)
        self.errors[: len(kept)] = kept
        self.calibration()

    def calibration(self, names: tuple[str, ...] = ()) -> Calibration:
        """Of the validation span. Raises UsageError before there was one, or if it was too
        short."""
        errors = self.errors.double().cpu().numpy()
        errors = errors[~np.isnan(errors).all(1)]
        if not len(errors):
            raise UsageError("nothing is known of usual errors; run fit first")
        return Calibration(errors, self.false_alarms, names)

    # Test

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        expected, own = self.expected(batch), batch["own"]
        step = torch.arange(own.shape[1], device=own.device)
        row = (batch["row"][:, None] + step)[own]
        series = batch["number"][:, None].expand(own.shape)[own]
        self._stamps.update(self._errors(batch, expected)[own], expected[own], series, row)

    def on_test_epoch_end(self) -> None:
        stamps = self._stamps.compute()
        self._stamps.reset()
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, AnomalyWindows)
        assert data.fitted is not None
        calibration = self.calibration(data.fitted.channels)
        score = calibration.scores(stamps.errors).stamp
        self.log("test/alarm_rate", float((score[~np.isnan(score)] > 1).mean()))
        kinds = data.tested()[1]
        kind = np.array([kinds[s][r] for s, r in zip(stamps.series, stamps.row, strict=True)])
        if data.kinds:
            self._detected(data, stamps, kind, {"model": score, **self._baselines(data, stamps)})
        if self.trainer.is_global_zero:
            panels = watched(data, stamps, kind, score, calibration.thresholds)
            log_figure(self.trainer, anomalies_figure(panels), "plots/test_anomalies.png")

    def _baselines(self, data: AnomalyWindows, stamps: Stamps) -> dict[str, NDArray]:
        """Scores of stamps (stamps,), calibrated on the validation span like the model's."""
        assert data.path is not None
        assert data.fitted is not None
        clean: dict[str, list[NDArray]] = {}
        tested: dict[str, list[NDArray]] = {}
        pairs = zip(data.series(data.path), data.tested()[0], strict=True)
        for number, (before, after) in enumerate(pairs):
            scale = data.fitted.scale(before)
            usual = slice(*data.tiling.spans(before)["val"])
            rows = stamps.row[stamps.series == number]
            for one, at, parts in ((before, usual, clean), (after, rows, tested)):
                values = (one.values - scale.mean) / scale.std
                for name, errors in baseline_errors(values, self.season).items():
                    parts.setdefault(name, []).append(errors[at])
        found = {}
        for name, errors_before in clean.items():
            try:
                calibration = Calibration(np.concatenate(errors_before), self.false_alarms)
            except UsageError:  # beside empty values it has fewer than the model
                few = "has too few values on the validation span for model.false_alarms"
                warnings.warn(f"{name} {few}; it is left out", stacklevel=2)
                continue
            found[name] = calibration.scores(np.concatenate(tested[name])).stamp
        return found

    def _detected(
        self, data: AnomalyWindows, stamps: Stamps, kind: NDArray, scores: dict[str, NDArray]
    ) -> None:
        """Log the metrics of all methods on the stamps that all of them score."""
        use = (kind >= 0) & ~np.isnan(np.stack(list(scores.values()))).any(0)
        event = events(stamps.series, stamps.row, kind)
        rows = []
        for method, score in scores.items():
            ending = "" if method == "model" else f"_{method}"
            found = detection_metrics(score[use], kind[use] > 0, event[use], score[use] > 1)
            self.log_dict({f"test/{key}{ending}": value for key, value in found.items()})
            for number, name in enumerate(data.kinds, start=1):
                only = use & ((kind == 0) | (kind == number))
                label, some = kind[only] == number, score[only]
                found = detection_metrics(some, label, event[only], some > 1)
                counts = {"stamps": int(label.sum())}
                rows.append({"kind": name, "method": method, **counts, **found})
        log_table(self.trainer, pl.DataFrame(rows), "tables/test_by_kind.csv")

    # Prediction

    def predict_step(self, batch: dict[str, Any], *_: Any) -> dict[str, Any]:
        """One row for each stamp and channel: id, series, stamp, channel, value, expected, score,
        p_value and flag, and the same of the stamp; nulls where the value is missing."""
        expected, own = self.expected(batch), batch["own"]
        errors = self._errors(batch, expected)[own].double().cpu().numpy()
        found = self.calibration(tuple(batch["channels"])).scores(errors)
        channels = len(batch["channels"])
        window = np.nonzero(own.cpu().numpy())[0]
        original = expected.double() * batch["std"][:, None] + batch["mean"][:, None]

        def each(values: NDArray) -> NDArray:
            return np.repeat(values, channels)

        def column(values: NDArray) -> pa.Array:
            return pa.array(values.ravel(), from_pandas=True)

        def flag(scores: NDArray) -> pa.Array:
            return pa.array(scores.ravel() > 1, mask=np.isnan(scores.ravel()))

        return {
            "id": [batch["id"][i] for i in each(window)],
            "series": [batch["series"][i] for i in each(window)],
            "stamp": each(np.stack(batch["stamps"])[own.cpu().numpy()]),
            "channel": list(batch["channels"]) * len(window),
            "value": column(batch["original"][own].cpu().numpy()),
            "expected": column(original[own].cpu().numpy()),
            "score": column(found.channel),
            "p_value": column(found.channel_p),
            "flag": flag(found.channel),
            "stamp_score": column(each(found.stamp)),
            "stamp_p_value": column(each(found.stamp_p)),
            "stamp_flag": flag(each(found.stamp)),
        }


def watched(
    data: AnomalyWindows, stamps: Stamps, kind: NDArray, score: NDArray, thresholds: NDArray
) -> list[Watched]:
    """What to draw: the first anomaly of each kind, then the highest scores, and around each the
    channel with the greatest error."""
    assert data.fitted is not None
    places = [int(np.flatnonzero(kind == k)[0]) for k in np.unique(kind[kind > 0])]
    for place in map(int, np.argsort(np.nan_to_num(-score, nan=np.inf))):
        if len(places) >= _PANELS:
            break
        if all(abs(place - other) > 2 * _AROUND for other in places):
            places.append(place)
    panels = []
    for place in places:
        at = np.arange(max(0, place - _AROUND), min(len(score), place + _AROUND))
        at = at[stamps.series[at] == stamps.series[place]]
        near = at[(kind[at] == kind[place]) & (np.abs(at - place) < _NEAR)]
        if kind[place] <= 0:
            near = np.array([place])
        errors = np.nan_to_num(stamps.errors[near]) / thresholds
        channel = int(errors.max(0).argmax())
        one, rows = data.tested()[0][stamps.series[place]], stamps.row[at]
        what = data.kinds[kind[place] - 1] if kind[place] > 0 else "one of the highest scores"
        scale = data.fitted.scale(one)
        panels.append(
            Watched(
                one.stamps[rows],
                f"{what}: {one.name}, {one.channels[channel]}",
                one.values[rows, channel],
                stamps.expected[at, channel] * scale.std[channel] + scale.mean[channel],
                score[at],
                kind[at] > 0,
            )
        )
    return panels
