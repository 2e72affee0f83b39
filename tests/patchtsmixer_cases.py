"""transformers' PatchTSMixer under our names, and inputs shared by the tests of ours."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PatchTSMixerConfig

from timeseries.models.patchtsmixer import PatchTSMixer

SMALL: dict[str, Any] = {"patch_length": 8, "stride": 4, "dim": 12, "expansion": 2, "layers": 2}
ATOL = 1e-5  # float32 through a few matrix products of values around 1


# The published model: its configuration from ours, and its weights under our names

THEIR_NAME = {
    "patch_length": "patch_length",
    "stride": "patch_stride",
    "dim": "d_model",
    "expansion": "expansion_factor",
    "layers": "num_layers",
    "mode": "mode",
    "gated_attention": "gated_attn",
    "attention_heads": "self_attn_heads",
    "positions": "positional_encoding_type",
    "norm": "norm_mlp",
    "scaling": "scaling",
    "dropout": "dropout",
    "head_dropout": "head_dropout",
    "mask_ratio": "random_mask_ratio",
    "mask_channels_together": "channel_consistent_masking",
}
THEIR_VALUE = {"layer": "LayerNorm", "batch": "BatchNorm"}


def published(
    kind: type[nn.Module], lookback: int, horizon: int, channels: int, **ours: Any
) -> Any:
    """transformers' model with random weights, its options given under our names."""
    theirs = {THEIR_NAME[k]: THEIR_VALUE.get(str(v), v) for k, v in ours.items()}
    theirs["self_attn"] = bool(theirs.setdefault("self_attn_heads", 0))
    theirs["use_positional_encoding"] = "positional_encoding_type" in theirs
    theirs["scaling"] = None if theirs.get("scaling") == "none" else theirs.get("scaling", "std")
    config = PatchTSMixerConfig(
        context_length=lookback,
        prediction_length=horizon,
        num_input_channels=channels,
        **{"dropout": 0.0, "head_dropout": 0.0, **theirs},
    )
    model = kind(config)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if "num_batches" in name or ("position" in name and ours["positions"] == "sincos"):
                continue
            value.copy_(torch.rand_like(value) + 0.5 if "running_var" in name else _some(value))
    return model


def _some(value: Tensor) -> Tensor:
    return torch.randn_like(value) * (0.4 if value.ndim == 1 else value.shape[-1] ** -0.5)


BLOCKS = {"channel_feature_mixer": -1, "patch_mixer": 0, "feature_mixer": 1}
RENAMED = (
    (r"\.batchnorm\.", "."),
    (r"gating_block\.attn_layer", "gate.linear"),
    (r"self_attn_layer\.out_proj", "attention.o_proj"),
    (r"self_attn_layer", "attention"),
    (r"norm_attn", "attention_norm"),
    (r"^(model\.)?encoder\.patcher", "encoder.embedding"),
    (r"^(model\.)?encoder\.positional_encoder\.position_enc", "encoder.position"),
    (r"^head\.base_(forecast|pt)_block", "head"),
)


def under_our_names(values: dict[str, Tensor], mode: str) -> dict[str, Tensor]:
    """Tensors by transformers' parameter names -> the same by ours."""
    renamed = {}
    blocks, first = (3, 1) if mode == "mix_channel" else (2, 0)
    for name, value in values.items():
        found = re.search(r"mixers\.(\d+)\.(\w+)\.(.+)", name)
        if found:
            number = blocks * int(found[1]) + BLOCKS[found[2]] + first
            name = f"encoder.mixers.{number}.{found[3]}"
        for theirs, ours in RENAMED:
            name = re.sub(theirs, ours, name)
        renamed[name] = value
    return renamed


def forecaster(lookback: int, horizon: int, channels: int, **options: Any) -> PatchTSMixer:
    options = {**SMALL, "dropout": 0.0, "head_dropout": 0.0, **options}
    return PatchTSMixer(lookback, horizon, channels, **options)


def forecast(model: PatchTSMixer, past: Tensor, features: int = 0) -> Tensor:
    horizon = model.head.out_features
    time = past.new_zeros(past.shape[0], past.shape[1], features)
    return model(past, time, past.new_zeros(past.shape[0], horizon, features))


def window(batch: int, lookback: int, channels: int) -> Tensor:
    return torch.randn(batch, lookback, channels) * 2 + 1
