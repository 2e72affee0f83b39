"""Forecasters."""

from timeseries.models.dlinear import DLinear
from timeseries.models.mixer import MixerForecaster

FORECASTERS = (DLinear, MixerForecaster)

__all__ = ["FORECASTERS", "DLinear", "MixerForecaster"]
