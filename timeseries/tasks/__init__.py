"""One LightningModule a question."""

from core.jobs.optim import Optimisation
from timeseries.tasks.forecasting import Forecasting

__all__ = ["Forecasting", "Optimisation"]
