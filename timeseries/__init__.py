"""Long time series: forecasts, missing values, anomalies, classes, events; on ``core``."""
