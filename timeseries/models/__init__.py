"""Forecasters, classifiers and what fills in."""

from timeseries.models.autoformer import Autoformer
from timeseries.models.classifier import MixerClassifier
from timeseries.models.cnn import ConvClassifier
from timeseries.models.dlinear import DLinear
from timeseries.models.events import EventModel
from timeseries.models.imputer import MixerImputer
from timeseries.models.informer import Informer
from timeseries.models.lmuformer import LMUFormer
from timeseries.models.mixer import MixerForecaster
from timeseries.models.patchtsmixer import PatchTSMixer, PatchTSMixerPretraining
from timeseries.models.pytorch_forecasting_models import DeepAR, NHiTS, TemporalFusionTransformer
from timeseries.models.statistical import StatisticalForecaster

FORECASTERS = (
    Autoformer,
    DeepAR,
    DLinear,
    Informer,
    MixerForecaster,
    NHiTS,
    PatchTSMixer,
    TemporalFusionTransformer,
)

__all__ = [
    "FORECASTERS",
    "Autoformer",
    "ConvClassifier",
    "DLinear",
    "DeepAR",
    "EventModel",
    "Informer",
    "LMUFormer",
    "MixerClassifier",
    "MixerForecaster",
    "MixerImputer",
    "NHiTS",
    "PatchTSMixer",
    "PatchTSMixerPretraining",
    "StatisticalForecaster",
    "TemporalFusionTransformer",
]
