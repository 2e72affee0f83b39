"""One LightningModule a question."""

from core.jobs.optim import Optimisation
from timeseries.tasks.anomalies import AnomalyScores
from timeseries.tasks.classification import SeriesClassification
from timeseries.tasks.events import EventModelling
from timeseries.tasks.forecasting import Forecasting
from timeseries.tasks.imputation import Imputation
from timeseries.tasks.pretraining import MaskedPretraining
from timeseries.tasks.probabilistic import ProbabilisticForecasting

__all__ = [
    "AnomalyScores",
    "EventModelling",
    "Forecasting",
    "Imputation",
    "MaskedPretraining",
    "Optimisation",
    "ProbabilisticForecasting",
    "SeriesClassification",
]
