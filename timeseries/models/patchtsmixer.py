"""TSMixer (Ekambaram et al. 2023, arXiv 2306.09364), published as PatchTSMixer.

Where transformers' PatchTSMixer departs from the paper, and what is done here:

- The online reconciliation heads are not in transformers. They are here
  (``timeseries.models.reconciliation``), off by default.
- The paper gates after each MLP. transformers' channel mixer gates before its MLP, and so does the
  authors' earlier code. Here as in transformers, so that published weights give published values.
- Self attention over patches, position encodings, batch norm and mean scaling are transformers'
  additions to a model of MLPs and layer norms. They are options here with transformers' arithmetic,
  off by default; its heads for distributions, classes and regression are left out.
- In pretraining transformers allows overlapping patches, where a masked value shows in the next
  patch, and rounding may mask every patch of a window. Both are refused here; which patches are
  masked is otherwise the same.
- transformers draws linear weights with deviation 0.02. Here they start as PyTorch's own, as in the
  authors' earlier code.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.backbone import MLP, Dropout
from core.mixers.attention import Attention
from timeseries.models.mixing_step import mixing_step
from timeseries.models.patches import patch_count, patches
from timeseries.models.reconciliation import (
    ChannelReconciliation,
    GatedAttention,
    PatchReconciliation,
    hierarchy_loss,
    patch_sums,
)
from timeseries.models.sizes import check_sizes

Mode = Literal["common_channel", "mix_channel"]
Norm = Literal["layer", "batch"]
Positions = Literal["none", "sincos", "random"]
Scaling = Literal["std", "mean", "none"]

_CHANNELS, _PATCHES, _FEATURES = 1, 2, 3  # axes of (batch, channels, patches, dim)


class FeatureNorm(nn.Module):
    """Layer norm over the last axis, or batch norm of each of its features over all others."""

    def __init__(self, kind: Norm, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim) if kind == "layer" else nn.BatchNorm1d(dim)

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) -> the same."""
        return self.norm(x.flatten(0, -2)).view_as(x)


class AxisMixer(nn.Module):
    """x + MLP(norm(x)) along one axis of (batch, channels, patches, dim), gated.

    ``size`` is the axis' length. With ``heads`` the patches also attend to each other beside the
    MLP, and the sum of the two is normed.
    """

    def __init__(
        self,
        axis: int,
        size: int,
        dim: int,
        expansion: int,
        dropout: float,
        gated: bool,
        norm: Norm,
        heads: int,
    ) -> None:
        super().__init__()
        self.axis = axis
        self.norm = FeatureNorm(norm, dim)
        self.mlp = MLP(size, expand=expansion, approximate="none", dropout=dropout)
        self.dropout = Dropout(dropout)
        self.gate = GatedAttention(size) if gated else nn.Identity()
        self.attention = self.attention_norm = None
        if heads:
            self.attention = Attention(
                dim, causal=False, heads=heads, rotary_base=None, bias=True, dropout=dropout
            )
            self.attention_norm = FeatureNorm(norm, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, patches, dim) -> the same."""
        if self.training and self._in_one():
            norm, gate = self.norm.norm, getattr(self.gate, "linear", None)
            assert isinstance(norm, nn.LayerNorm)
            return mixing_step(x, self.axis, norm, self.mlp, self.dropout, gate)
        normed = self.norm(x)
        y = normed.transpose(self.axis, -1)
        if self.axis == _CHANNELS:
            y = self.dropout(self.mlp(self.gate(y)))
        else:
            y = self.gate(self.dropout(self.mlp(y)))
        y = y.transpose(self.axis, -1)
        if self.attention is not None and self.attention_norm is not None:
            attended = self.attention(normed.flatten(0, 1)).unflatten(0, x.shape[:2])
            y = self.attention_norm(y + attended)
        return x + y

    def _in_one(self) -> bool:
        """Whether ``mixing_step`` stands for all of it: it calls no layer, it takes their weights
        and rates."""
        _, *layers = self.modules()
        return (
            self.axis != _CHANNELS
            and [type(m) for m in layers] in _IN_ONE
            and all(m.training and not _hooks(m) for m in layers)
            and max(self.mlp.dropout.p, self.dropout.p) < 1
        )


_PLAIN = [FeatureNorm, nn.LayerNorm, MLP, nn.Linear, nn.Linear, Dropout, Dropout]
_IN_ONE = ([*_PLAIN, nn.Identity], [*_PLAIN, GatedAttention, nn.Linear])  # in order of modules()


def _hooks(m: nn.Module) -> bool:
    return any((m._forward_pre_hooks, m._forward_hooks, m._backward_pre_hooks, m._backward_hooks))


class PatchTSMixerEncoder(nn.Module):
    """Patches -> a linear embedding -> layers that mix patches, then features.

    ``mode`` "common_channel" treats channels alike and apart (the paper's CI-TSMixer);
    "mix_channel" mixes them first in each layer (IC-TSMixer). ``expansion`` widens each MLP.
    ``attention_heads`` above 0 adds self attention over patches. ``positions`` are added to the
    embedding: fixed sines and cosines, or learned from a random start.

    The defaults are the paper's for ETT, which it gives more dropout and fewer layers than the
    rest (8 layers, dropout 0.1). The published ETTh1 checkpoints have ``stride`` 16, ``dim`` 48,
    ``expansion`` 3, ``layers`` 2 and dropout 0.5.
    """

    position: Tensor | None

    def __init__(
        self,
        lookback: int,
        channels: int,
        *,
        patch_length: int = 16,
        stride: int = 8,
        dim: int = 32,
        expansion: int = 2,
        layers: int = 3,
        dropout: float = 0.7,
        mode: Mode = "common_channel",
        gated_attention: bool = True,
        norm: Norm = "layer",
        attention_heads: int = 0,
        positions: Positions = "none",
    ) -> None:
        super().__init__()
        check_sizes(lookback=lookback, channels=channels, dim=dim, layers=layers)
        check_sizes(expansion=expansion)
        _check_choices(mode=(mode, Mode), norm=(norm, Norm), positions=(positions, Positions))
        self.patch_length, self.stride = patch_length, stride
        self.patches = patch_count(lookback, patch_length, stride)
        self.embedding = nn.Linear(patch_length, dim)
        if positions == "random":
            self.position = nn.Parameter(torch.randn(self.patches, dim) * 0.1)
        else:
            table = _sincos(self.patches, dim) if positions == "sincos" else None
            self.register_buffer("position", table)
        axes = [(_PATCHES, self.patches), (_FEATURES, dim)]
        if mode == "mix_channel":
            axes.insert(0, (_CHANNELS, channels))
        self.mixers = nn.Sequential()
        for _ in range(layers):
            for axis, size in axes:
                heads = attention_heads if axis == _PATCHES else 0
                self.mixers.append(
                    AxisMixer(axis, size, dim, expansion, dropout, gated_attention, norm, heads)
                )

    def cut(self, x: Tensor) -> Tensor:
        """(batch, lookback, channels) -> (batch, channels, patches, patch_length)."""
        return patches(x, self.patch_length, self.stride)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, patches, patch_length) -> (batch, channels, patches, dim)."""
        x = self.embedding(x)
        return self.mixers(x if self.position is None else x + self.position)


def _check_choices(**choices: tuple[str, Any]) -> None:
    for name, (given, literal) in choices.items():
        if given not in get_args(literal):
            raise ValueError(f"{name} is {given!r}; give one of {', '.join(get_args(literal))}")


def _sincos(length: int, dim: int) -> Tensor:
    """(length, dim) sines and cosines, brought to mean 0 and deviation 0.1 as in transformers."""
    angle = torch.arange(length)[:, None] * torch.exp(
        torch.arange(0, dim, 2) * (-math.log(10_000) / dim)
    )
    table = torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)[:, :dim]
    table = table - table.mean()
    return table / (10 * table.std())


class PatchTSMixer(nn.Module):
    """Forecasts each channel of a window from its patches, by MLPs alone.

    Each window is brought to mean 0 and deviation 1 and the forecast back (RevIN, Kim et al. 2022,
    without its learned affine part); ``scaling`` "mean" divides by the mean absolute value instead,
    "none" leaves values as they are. One linear head over all patches serves all channels.

    ``reconcile_channels`` then revises the forecast by ``channel_context`` points of all channels
    on each side, ``reconcile_patches`` by forecasts of its sums over ``patch_length`` points; the
    scale is restored last. The second is to be trained with ``training_loss``.

    ``encoder`` are the options of ``PatchTSMixerEncoder``, which takes the weights of a
    ``PatchTSMixerPretraining`` built with the same ones (its ``stride`` is 16 by default):
    ``model.encoder.load_state_dict(pretraining.encoder.state_dict())``.

    Calendar features change nothing. With batch norm a window's forecast depends on its batch in
    training, and only there. Raises ValueError for a size below 1, for a look-back below one patch,
    for heads that do not divide ``dim``, and for a name that is none of the choices.
    """

    def __init__(
        self,
        lookback: int = 0,
        horizon: int = 0,
        channels: int = 0,
        time_features: int = 0,
        head_dropout: float = 0.7,
        scaling: Scaling = "std",
        reconcile_channels: bool = False,
        channel_context: int = 1,
        reconcile_patches: bool = False,
        **encoder: Any,
    ) -> None:
        super().__init__()
        check_sizes(horizon=horizon)  # the encoder checks the others
        _check_choices(scaling=(scaling, Scaling))
        self.scaling: Scaling = scaling
        self.encoder = PatchTSMixerEncoder(lookback, channels, **encoder)
        self.head_dropout = Dropout(head_dropout)
        self.head = nn.Linear(self.encoder.patches * self.encoder.embedding.out_features, horizon)
        self.channel_head = self.patch_head = None
        if reconcile_channels:
            self.channel_head = ChannelReconciliation(channels, channel_context)
        if reconcile_patches:
            self.patch_head = PatchReconciliation(horizon, self.encoder.patch_length)

    def forward(self, past: Tensor, past_time: Tensor, future_time: Tensor) -> Tensor:
        """(batch, horizon, channels) from ``past`` (batch, lookback, channels)."""
        return self.with_sums(past)[0]

    def with_sums(self, past: Tensor) -> tuple[Tensor, Tensor | None]:
        """Forecast (batch, horizon, channels) and, with ``reconcile_patches``, the forecast sums of
        its patches (batch, patches, channels), both on the scale of ``past``."""
        location, scale = window_scale(past, self.scaling)
        hidden = self.encoder(self.encoder.cut((past - location) / scale))
        y = self.head(self.head_dropout(hidden.flatten(2))).transpose(1, 2)
        if self.channel_head is not None:
            y = self.channel_head(y)
        if self.patch_head is None:
            return y * scale + location, None
        y, sums = self.patch_head(y)
        points = patch_sums(torch.ones_like(y[:1, :, :1]), self.encoder.patch_length)
        return y * scale + location, sums * scale + points * location

    def training_loss(
        self, past: Tensor, past_time: Tensor, future_time: Tensor, future: Tensor
    ) -> Tensor:
        """Mean squared error of the forecast; with ``reconcile_patches`` the paper's loss over
        points and sums (``hierarchy_loss``). ``future`` is (batch, horizon, channels)."""
        forecast, sums = self.with_sums(past)
        if sums is None:
            return F.mse_loss(forecast, future)
        return hierarchy_loss(forecast, sums, future, self.encoder.patch_length)


def window_scale(past: Tensor, scaling: Scaling) -> tuple[Tensor, Tensor]:
    """Location and scale of each window's channels, (batch, 1, channels) each."""
    if scaling == "std":
        variance, mean = torch.var_mean(past, dim=1, keepdim=True, correction=0)
        return mean, (variance + 1e-5).sqrt()
    zero = torch.zeros_like(past[:, :1])
    if scaling == "mean":
        return zero, past.abs().mean(1, keepdim=True).clamp_min(1e-10)
    return zero, zero + 1


class Reconstruction(NamedTuple):
    """What masked pretraining compares, on the scale of the normalised window.

    ``values`` and ``patches`` (batch, channels, patches, patch_length) are the reconstruction and
    the truth; ``mask`` (batch, channels, patches) is True where the model did not see the patch.
    """

    values: Tensor
    patches: Tensor
    mask: Tensor


class PatchTSMixerPretraining(nn.Module):
    """Reconstructs patches that are masked at random (the paper's pretrain workflow).

    ``mask_ratio`` of a window's patches, rounded up but not all of them, are set to 0 after the
    window is normalised; ``mask_channels_together`` masks the same ones in all channels. Masks are
    drawn in evaluation too: give ``forward`` a mask for the same result twice.

    ``encoder`` are the options of ``PatchTSMixerEncoder``. Raises ValueError for a size below 1,
    for fewer than two patches, for a ratio outside (0, 1), and for patches that overlap.
    """

    def __init__(
        self,
        lookback: int = 0,
        channels: int = 0,
        head_dropout: float = 0.7,
        scaling: Scaling = "std",
        mask_ratio: float = 0.5,
        mask_channels_together: bool = True,
        stride: int = 16,
        **encoder: Any,
    ) -> None:
        super().__init__()
        _check_choices(scaling=(scaling, Scaling))
        self.scaling: Scaling = scaling
        self.encoder = PatchTSMixerEncoder(lookback, channels, stride=stride, **encoder)
        length = self.encoder.patch_length
        if stride < length:
            raise ValueError(
                f"stride is {stride} and patch_length {length}: a masked value would show in the "
                "next patch; give a stride of at least patch_length"
            )
        if self.encoder.patches < 2:
            raise ValueError(
                f"lookback {lookback} gives one patch of {length}; masking needs two or more"
            )
        if not 0 < mask_ratio < 1:
            raise ValueError(f"mask_ratio is {mask_ratio}; give a share between 0 and 1")
        self.mask_ratio, self.mask_channels_together = mask_ratio, mask_channels_together
        self.head_dropout = Dropout(head_dropout)
        self.head = nn.Linear(self.encoder.embedding.out_features, length)

    def forward(self, past: Tensor, mask: Tensor | None = None) -> Reconstruction:
        """``past`` (batch, lookback, channels), ``mask`` (batch, channels, patches), True = masked;
        drawn at random if None."""
        location, scale = window_scale(past, self.scaling)
        cut = self.encoder.cut((past - location) / scale)
        if mask is None:
            mask = self.draw_mask(cut)
        hidden = self.encoder(cut.masked_fill(mask[..., None], 0))
        return Reconstruction(self.head(self.head_dropout(hidden)), cut, mask)

    def draw_mask(self, cut: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """A random mask for patches (batch, channels, patches, patch_length)."""
        batch, channels, count, _ = cut.shape
        # The small number is for ratios such as 0.7 that float64 holds a little too large.
        masked = min(count - 1, math.ceil(count * self.mask_ratio - 1e-9))
        rows = 1 if self.mask_channels_together else channels
        order = torch.rand(batch, rows, count, generator=generator, device=cut.device).argsort(-1)
        return (order.argsort(-1) >= count - masked).expand(-1, channels, -1)


def masked_loss(result: Reconstruction) -> Tensor:
    """Mean squared error over the masked patches alone."""
    error = (result.values - result.patches).square().mean(-1)
    return (error * result.mask).sum() / result.mask.sum()
