"""Forecasts of long time series, on the mixers and jobs of ``core``."""
