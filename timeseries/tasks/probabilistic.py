"""Quantiles and distributions, by pytorch-forecasting's losses."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from core.jobs.errors import UsageError
from core.jobs.optim import Optimisation
from timeseries.tasks.base import ForecastTask, Outcome
from timeseries.tasks.errors import QuantileErrors


class ProbabilisticForecasting(ForecastTask):
    """Forecasts of quantiles, direct or of a distribution.

    ``distribution`` is one of pytorch_forecasting.metrics: ``QuantileLoss``, or the loss of a
    distribution of standardised values, each by itself (``NormalDistributionLoss``,
    ``ImplicitQuantileNetworkDistributionLoss``), with arguments as there; its ``quantiles`` rise
    and hold 0.5. ``model`` gives ``outputs`` numbers for each value: as many as
    there are quantiles, or as the distribution has parameters. Quantiles that cross are put in
    order (Chernozhukov et al. 2010). The point forecast is the median.

    Further metrics: ``wql``, the weighted quantile loss in the data's units, mean over quantiles;
    ``crps``, twice the mean quantile loss, standardised, which comes near the CRPS as far as the
    quantiles are dense. The intervals lie between a quantile and its mirror image.
    """

    def __init__(
        self,
        model: nn.Module,
        distribution: nn.Module,
        horizon: int = 0,
        channels: int = 0,
        season: int = 0,
        optimisation: Optimisation = Optimisation(),  # noqa: B008  # read only
    ) -> None:
        loss, parameters = _checked(model, distribution)
        quantiles = [float(q) for q in loss.quantiles]
        mirrored = [(q, round(1 - q, 9)) for q in quantiles if q < 0.5]
        pairs = [(quantiles.index(a), quantiles.index(b)) for a, b in mirrored if b in quantiles]
        levels = [round(quantiles[b] - quantiles[a], 9) for a, b in pairs]
        super().__init__(model, horizon, channels, season, levels, quantiles, optimisation)
        self.save_hyperparameters(ignore=["model", "distribution"])
        self.distribution, self.parametric = loss, bool(parameters)
        self.lower, self.upper = [a for a, _ in pairs], [b for _, b in pairs]
        self.quantile_errors = QuantileErrors(quantiles, self.horizon)

    def parameters_of(self, batch: dict[str, Any]) -> Tensor:
        """What the loss takes: (batch * channels, horizon, numbers), one channel a row."""
        y = self.raw(batch).transpose(1, 2).flatten(0, 1)
        return _in_place(self.distribution, y) if self.parametric else y

    def outcome(self, batch: dict[str, Any]) -> Outcome:
        ordered = self.distribution.to_quantiles(self.parameters_of(batch)).sort(-1).values
        rows = ordered.unflatten(0, (len(batch["past"]), -1))
        quantiles = rows.permute(3, 0, 2, 1)
        median = quantiles[self.quantiles.index(0.5)]
        return Outcome(median, quantiles[self.lower], quantiles[self.upper], quantiles)

    def _loss(self, batch: dict[str, Any]) -> Tensor:
        truth = batch["future"].transpose(1, 2).flatten(0, 1)
        return self.distribution.loss(self.parameters_of(batch), truth).mean()

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        loss = self._loss(batch)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch["past"]))
        return loss

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        self.log("val/loss", self._loss(batch), batch_size=len(batch["past"]))

    def tested(self, batch: dict[str, Any], found: Outcome, batch_idx: int) -> None:
        super().tested(batch, found, batch_idx)
        self.quantile_errors.update(found.quantiles, batch["future"], batch["mean"], batch["std"])

    def on_test_epoch_end(self) -> None:
        super().on_test_epoch_end()
        values = self.quantile_errors.totals()
        self.log_dict({f"test/{name}": value for name, value in values.items()})
        self.quantile_errors.reset()

    def errors_by_step(self) -> dict[str, Tensor]:
        found = self.quantile_errors.compute()
        return super().errors_by_step() | {k: v.view(self.horizon) for k, v in found.items()}


def _in_place(distribution: Any, y: Tensor) -> Tensor:
    """What the loss takes of a model's numbers (rows, horizon, numbers) for values that stay on
    their scale. Raises AssertionError if it wants them on another one."""
    from pytorch_forecasting.data.encoders import TorchNormalizer

    unscaled = y.new_tensor([0.0, 1.0]).expand(len(y), 2)
    same = TorchNormalizer(method="identity")
    return distribution.rescale_parameters(y, target_scale=unscaled, encoder=same)


def _checked(model: nn.Module, distribution: nn.Module) -> tuple[Any, int]:
    """The loss and how many parameters its distribution has; 0 if it gives quantiles directly."""
    from pytorch_forecasting.metrics import (
        DistributionLoss,
        MultivariateDistributionLoss,
        QuantileLoss,
    )

    name = type(distribution).__name__
    if not isinstance(distribution, DistributionLoss | QuantileLoss):
        raise UsageError(
            f"model.distribution is {name}; give pytorch_forecasting.metrics.QuantileLoss or a "
            "distribution's loss from there"
        )
    loss: Any = distribution
    quantiles = list(loss.quantiles)
    if 0.5 not in quantiles or quantiles != sorted(set(quantiles)):
        raise UsageError(f"the quantiles of {name} are {quantiles}; they must rise and hold 0.5")
    parameters = len(loss.distribution_arguments) if isinstance(loss, DistributionLoss) else 0
    other = "give NormalDistributionLoss or QuantileLoss"
    if isinstance(loss, MultivariateDistributionLoss):
        raise UsageError(f"a forecast by {name} depends on the other windows of a batch; {other}")
    if parameters:
        try:
            _in_place(loss, torch.zeros(1, 1, parameters))
        except AssertionError as error:
            raise UsageError(f"{name} is not for standardised values; {other}") from error
    if parameters and getattr(model, "normalise", False):
        raise UsageError(
            f"the parameters of {name} cannot be brought back from a normalised window; set "
            "normalise of the model to false"
        )
    outputs = getattr(model, "outputs", 1)
    if outputs != (parameters or len(quantiles)):
        raise UsageError(
            f"{name} needs {parameters or len(quantiles)} outputs and {type(model).__name__} gives "
            f"{outputs}; set outputs of the model"
        )
    return loss, parameters
