"""Filling in by what is seen nearby, on tensors (batch, time, channels)."""

from __future__ import annotations

import torch
from torch import Tensor


def neighbours(seen: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers of the last step that is seen up to each step, -1 for none, and of the first that is
    from it on, ``time`` for none; (batch, time, channels) each."""
    time = seen.shape[1]
    step = torch.arange(time, device=seen.device)[None, :, None].expand(seen.shape)
    before = torch.where(seen, step, -1).cummax(1).values
    after = torch.where(seen, step, time).flip(1).cummin(1).values.flip(1)
    return before, after


def linear(values: Tensor, seen: Tensor) -> Tensor:
    """``values`` where they are ``seen``, between them the straight line, before the first and
    behind the last that value; 0 in a channel without any."""
    before, after = neighbours(seen)
    time = values.shape[1]
    step = torch.arange(time, device=seen.device)[None, :, None]
    low = torch.where(before < 0, after, before).clamp(max=time - 1)
    high = torch.where(after == time, low, after)
    left, right = values.gather(1, low), values.gather(1, high)
    share = (step - low) / (high - low).clamp(min=1)
    found = left + (right - left) * share.clamp(0, 1).to(values.dtype)
    return torch.where((before < 0) & (after == time), 0, found)


def previous(values: Tensor, seen: Tensor) -> Tensor:
    """The last value seen; before the first one, that; 0 in a channel without any."""
    before, after = neighbours(seen)
    time = values.shape[1]
    at = torch.where(before < 0, after, before)
    return torch.where(at == time, 0, values.gather(1, at.clamp(max=time - 1)))
