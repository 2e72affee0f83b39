"""Backbones: a schedule of blocks over token and channel mixers."""

from core.backbone.backbone import Backbone, Block, LanguageModel, scale_residual_init
from core.backbone.channel import MLP, GatedMLP
from core.backbone.dropout import Dropout
from core.backbone.schedule import parse_schedule

__all__ = [
    "MLP",
    "Backbone",
    "Block",
    "Dropout",
    "GatedMLP",
    "LanguageModel",
    "parse_schedule",
    "scale_residual_init",
]
