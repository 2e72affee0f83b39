"""Any schedule of core's mixers as a model that fills in what is missing."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from core.backbone import Backbone
from timeseries.models.interpolation import linear
from timeseries.models.sizes import check_sizes


class MixerImputer(nn.Module):
    """Steps -> backbone -> one linear layer, added to the straight line between what is seen.

    A step is embedded from all its channels (the line where a value is missing), which of them are
    seen, and the calendar. The last layer begins at 0, so that training begins at linear
    interpolation and levels that drift need not be learned. Mixers should look both ways
    (``causal: false``). ``dropout`` acts before the last layer. Raises ValueError for a size
    below 1.
    """

    def __init__(
        self, backbone: Backbone, channels: int = 0, time_features: int = 0, dropout: float = 0.0
    ) -> None:
        super().__init__()
        check_sizes(channels=channels)
        self.embedding = nn.Linear(2 * channels + time_features, backbone.dim)
        self.backbone = backbone
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(backbone.dim, channels)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, values: Tensor, seen: Tensor, time: Tensor) -> Tensor:
        """(batch, time, channels) from ``values`` of that shape, of which those that are not
        ``seen`` change nothing, and features ``time`` (batch, time, features)."""
        line = linear(values, seen)
        x = self.embedding(torch.cat([line, seen.to(line.dtype), time], -1))
        return line + self.head(self.dropout(self.backbone(x)))
