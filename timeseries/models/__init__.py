"""Forecasters."""

from timeseries.models.autoformer import Autoformer
from timeseries.models.dlinear import DLinear
from timeseries.models.informer import Informer
from timeseries.models.lmuformer import LMUFormer
from timeseries.models.mixer import MixerForecaster
from timeseries.models.patchtsmixer import PatchTSMixer, PatchTSMixerPretraining

FORECASTERS = (Autoformer, DLinear, Informer, MixerForecaster, PatchTSMixer)

__all__ = [
    "FORECASTERS",
    "Autoformer",
    "DLinear",
    "Informer",
    "LMUFormer",
    "MixerForecaster",
    "PatchTSMixer",
    "PatchTSMixerPretraining",
]
