"""Any schedule of core's mixers as a forecaster."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from core.backbone import Backbone
from timeseries.models.sizes import check_sizes, split_outputs

_SMALL = 1e-5


class MixerForecaster(nn.Module):
    """Patches of one channel -> backbone -> a linear head over all patches; channels share weights.

    With ``normalise`` each window is brought to mean 0 and deviation 1 and the forecast back
    (RevIN, Kim et al. 2022, without its learned affine part). A look-back that is no multiple of
    ``patch`` is padded in front with its first value. Channels do not see each other, as in
    PatchTST (Nie et al. 2023). ``head_dropout`` acts before the head. ``outputs`` above 1 gives as
    many numbers for each value, in a last axis: quantiles, or, without ``normalise``, the
    parameters of a distribution.
    """

    def __init__(
        self,
        backbone: Backbone,
        lookback: int = 0,
        horizon: int = 0,
        patch: int = 8,
        head_dropout: float = 0.0,
        outputs: int = 1,
        normalise: bool = True,
    ) -> None:
        super().__init__()
        check_sizes(lookback=lookback, horizon=horizon, patch=patch, outputs=outputs)
        self.patch, self.outputs, self.normalise = patch, outputs, normalise
        self.pad = -lookback % patch
        patches = (lookback + self.pad) // patch
        self.embedding = nn.Linear(patch, backbone.dim)
        self.position = nn.Parameter(torch.randn(patches, backbone.dim) * 0.02)
        self.backbone = backbone
        self.dropout = nn.Dropout(head_dropout)
        self.head = nn.Linear(patches * backbone.dim, horizon * outputs)

    def forward(self, past: Tensor, past_time: Tensor, future_time: Tensor) -> Tensor:
        """(batch, horizon, channels[, outputs]) from ``past`` (batch, lookback, channels)."""
        rows = past.transpose(1, 2)
        mean, std = torch.zeros_like(rows[..., :1]), torch.ones_like(rows[..., :1])
        if self.normalise:
            mean = rows.mean(2, keepdim=True)
            std = (rows.var(2, keepdim=True, unbiased=False) + _SMALL).sqrt()
        x = ((rows - mean) / std).flatten(0, 1)
        if self.pad:
            x = torch.cat([x[:, :1].expand(-1, self.pad), x], dim=1)
        x = self.embedding(x.unflatten(1, (-1, self.patch))) + self.position
        y = self.head(self.dropout(self.backbone(x).flatten(1)))
        return split_outputs(y.unflatten(0, rows.shape[:2]) * std + mean, self.outputs)
