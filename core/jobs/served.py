"""The script MLflow runs to load a logged predictor (models from code); never imported."""

import mlflow

from core.jobs.pyfunc import PredictorModel

mlflow.models.set_model(PredictorModel())
