"""Short causal depthwise convolution, in whole, in pieces and over packed documents."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from core.sequences import Sequences


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    sequences: Sequences | None = None,
    state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """y_t = bias + sum_j weight[:, j] x_{t - (taps - 1) + j}, within one document.

    ``x`` (batch, length, dim), ``weight`` (dim, taps), ``bias`` (dim,); ``state`` (batch, taps - 1,
    dim) holds the inputs before ``x``, zeros if not given. Returns ``y`` like ``x`` and the state
    after it. The order of taps is that of ``nn.Conv1d``.
    """
    taps = weight.shape[1]
    if state is None:
        state = x.new_zeros(x.shape[0], taps - 1, x.shape[2])
    padded = torch.cat([state.to(x.dtype), x], dim=1)
    after = padded[:, padded.shape[1] - (taps - 1) :]
    if sequences is None:
        y = F.conv1d(padded.transpose(1, 2), weight[:, None], bias, groups=weight.shape[0])
        return y.transpose(1, 2), after
    length = x.shape[1]
    document = F.pad(sequences.document, (taps - 1, 0), value=-1)
    y = torch.zeros_like(x) if bias is None else bias.to(x.dtype).expand_as(x)
    for tap in range(taps):
        same = document[:, tap : tap + length] == sequences.document
        shifted = padded[:, tap : tap + length]
        y = y + torch.where(same[..., None], shifted, 0) * weight[:, tap].to(x.dtype)
    return sequences.zero_padding(y), after
