"""Forecasters."""

from timeseries.models.dlinear import DLinear
from timeseries.models.mixer import MixerForecaster

__all__ = ["DLinear", "MixerForecaster"]
