"""One LightningModule a question."""

from core.jobs.optim import Optimisation
from timeseries.tasks.classification import SeriesClassification
from timeseries.tasks.events import EventModelling
from timeseries.tasks.forecasting import Forecasting
from timeseries.tasks.pretraining import MaskedPretraining
from timeseries.tasks.probabilistic import ProbabilisticForecasting

__all__ = [
    "EventModelling",
    "Forecasting",
    "MaskedPretraining",
    "Optimisation",
    "ProbabilisticForecasting",
    "SeriesClassification",
]
