"""Documents as the recurrent ops take them: which positions share a state."""

from __future__ import annotations

import torch
from torch import Tensor


def encode_segments(document: Tensor) -> Tensor:
    """``document`` (batch, length) as int32 codes: who shares a state, and who is padding.

    The state restarts where a document starts, except at position 0. A position's segment is the
    number of restarts up to it; the code is the segment, or ``-1 - segment`` in padding. Codes are
    contiguous, however ``document`` lies in memory: kernels read them without strides.
    """
    real = document >= 0
    restart = real.clone()
    restart[:, 1:] &= document[:, 1:] != document[:, :-1]
    restart[:, :1] = False
    segment = restart.cumsum(1, dtype=torch.int32)
    return torch.where(real, segment, -1 - segment).contiguous()
