"""Any schedule of core's mixers as a classifier of series."""

from __future__ import annotations

from torch import Tensor, nn

from core.backbone import Backbone
from core.sequences import Sequences
from timeseries.models.sizes import check_sizes


class MixerClassifier(nn.Module):
    """Steps -> backbone -> mean over the real steps -> one linear layer.

    ``dropout`` acts before the last layer. Raises ValueError for a size below 1.
    """

    def __init__(
        self, backbone: Backbone, channels: int = 0, classes: int = 0, dropout: float = 0.0
    ) -> None:
        super().__init__()
        check_sizes(channels=channels, classes=classes)
        self.embedding = nn.Linear(channels, backbone.dim)
        self.backbone = backbone
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(backbone.dim, classes))

    def forward(self, x: Tensor, sequences: Sequences | None = None) -> Tensor:
        """(batch, time, channels) -> logits (batch, classes)."""
        if sequences is None:
            return self.head(self.backbone(self.embedding(x)).mean(1))
        features = self.backbone(self.embedding(sequences.zero_padding(x)), sequences=sequences)
        lengths = sequences.real.sum(1, keepdim=True).clamp(min=1)
        return self.head(sequences.zero_padding(features).sum(1) / lengths)
