"""Windows of time cut into patches."""

from __future__ import annotations

from torch import Tensor


def patch_count(time: int, length: int, stride: int) -> int:
    """How many patches ``patches`` cuts from ``time`` points; the same errors."""
    if length < 1 or stride < 1:
        raise ValueError(f"patches of length {length} at stride {stride}; give at least 1 for both")
    if time < length:
        raise ValueError(f"{time} points are fewer than a patch of length {length}; shorten it")
    return (time - length) // stride + 1


def patches(x: Tensor, length: int, stride: int) -> Tensor:
    """(batch, time, channels) -> (batch, channels, patches, length), oldest patch first.

    The last patch ends at the last point. Where ``time - length`` is no multiple of ``stride`` the
    oldest points are left out, as in the published PatchTST and PatchTSMixer models of
    transformers. A view if ``x`` allows it. Raises ValueError for a length or stride below 1, or
    for fewer points than one patch.
    """
    time = x.shape[1]
    first = time - length - (patch_count(time, length, stride) - 1) * stride
    return x[:, first:].unfold(1, length, stride).transpose(1, 2)
