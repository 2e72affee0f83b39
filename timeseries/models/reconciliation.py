"""Heads that revise a forecast: across channels, and by its sums over patches.

The online reconciliation heads of TSMixer (Ekambaram et al. 2023, arXiv 2306.09364), which
transformers leaves out. Of the first the authors published a later form in granite-tsfm,
``ForecastChannelHeadMixer``, which can also put the end of the look-back before the forecast; here
there are zeros. Of the second they published no code: it follows the paper's description.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from timeseries.models.patches import patches
from timeseries.models.sizes import check_sizes


class GatedAttention(nn.Module):
    """x * softmax(linear(x)) over a last axis of ``size``."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(size, size)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.linear(x).softmax(-1)


class ChannelReconciliation(nn.Module):
    """Revises each point of a forecast by all channels around it: the paper's cross-channel
    forecast reconciliation head.

    A window is ``context`` points before the point, the point, and ``context`` points after it,
    zeros beyond the horizon. The windows of all channels pass gated attention and one linear map to
    a value for each channel, which is added to the forecast.

    Raises ValueError for a negative ``context``.
    """

    def __init__(self, channels: int, context: int = 1) -> None:
        super().__init__()
        if context < 0:
            raise ValueError(f"channel context is {context} points a side; give 0 or more")
        self.context = context
        features = channels * (2 * context + 1)
        self.gate = GatedAttention(features)
        self.linear = nn.Linear(features, channels)

    def forward(self, forecast: Tensor) -> Tensor:
        """(batch, horizon, channels) -> the same."""
        padded = F.pad(forecast, (0, 0, self.context, self.context))
        windows = patches(padded, 2 * self.context + 1, 1).transpose(1, 2)
        return forecast + self.linear(self.gate(windows.flatten(2)))


class PatchReconciliation(nn.Module):
    """Revises each patch of a forecast by a forecast of its sum: the paper's online hierarchical
    patch reconciliation head.

    One linear map of the whole horizon forecasts the sum of each patch. A second one, the same for
    all patches, turns the points of a patch and its forecast sum into what is added to the points.
    Channels share both. The result's sums are not the forecast sums: ``hierarchy_loss`` draws the
    two together. A horizon that is no multiple of ``patch_length`` ends with a shorter patch.
    """

    def __init__(self, horizon: int, patch_length: int) -> None:
        super().__init__()
        check_sizes(horizon=horizon, patch_length=patch_length)
        self.patch_length = patch_length
        self.aggregate = nn.Linear(horizon, -(-horizon // patch_length))
        self.correct = nn.Linear(patch_length + 1, patch_length)

    def forward(self, forecast: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, horizon, channels) -> revised forecast, the same shape, and forecast sums
        (batch, patches, channels)."""
        x = forecast.transpose(1, 2)
        sums = self.aggregate(x)
        points = _segments(x, self.patch_length)
        joined = torch.cat([points, sums[..., None].to(points.dtype)], dim=-1)
        revised = x + self.correct(joined).flatten(2)[..., : x.shape[-1]]
        return revised.transpose(1, 2), sums.transpose(1, 2)


def patch_sums(x: Tensor, patch_length: int) -> Tensor:
    """(batch, time, channels) -> (batch, patches, channels): sums of neighbouring, disjoint patches
    from the first point on; the last patch may be shorter."""
    return _segments(x.transpose(1, 2), patch_length).sum(-1).transpose(1, 2)


def hierarchy_loss(forecast: Tensor, sums: Tensor, future: Tensor, patch_length: int) -> Tensor:
    """Squared error of the points, of the sums, and between the two levels (the paper's loss of the
    hierarchical head).

    mse(forecast, future) + mse(sums, S future) / n + mse(S forecast, sums) / n, where S is
    ``patch_sums`` and n is ``patch_length`` squared, the scale of a squared sum. ``forecast`` and
    ``future`` are (batch, horizon, channels), ``sums`` (batch, patches, channels), on one scale.
    """
    points = F.mse_loss(forecast, future)
    level = F.mse_loss(sums, patch_sums(future, patch_length))
    between = F.mse_loss(patch_sums(forecast, patch_length), sums)
    return points + (level + between) / patch_length**2


def _segments(x: Tensor, length: int) -> Tensor:
    """(..., time) -> (..., patches, length), zeros after the last point."""
    return F.pad(x, (0, -x.shape[-1] % length)).unflatten(-1, (-1, length))
