"""State space duality (SSD) in plain PyTorch: the definition, and the chunked form with gradients.

Dao and Gu 2024, "Transformers are SSMs", arXiv 2405.21060; the README derives what is used here.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

CHUNK = 64
# exp of anything below this is zero even in float64. Cutting there keeps a log-decay of minus
# infinity (a hard reset) out of differences of sums, where it would give NaN.
LOWEST_LOG_DECAY = -1000.0


def _zero_padding(x: Tensor, real: Tensor) -> Tensor:
    """``x`` (batch, length, ...) with zeros where not ``real``, also in place of NaN."""
    zero = torch.zeros((), dtype=x.dtype, device=x.device)
    return torch.where(real.reshape(real.shape + (1,) * (x.ndim - 2)), x, zero)


def ssd_recurrent(
    x: Tensor,
    log_decay: Tensor,
    B: Tensor,
    C: Tensor,
    initial_state: Tensor | None = None,
    document: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The definition, token by token; arguments and results as in ``core.ops.ssd.ssd``.

    Computes in the dtype of ``x``; float64 gives the truth that other versions are tested against.
    """
    batch, length, heads, head_dim = x.shape
    state = x.new_zeros(batch, heads, head_dim, B.shape[-1])
    if initial_state is not None:
        state = initial_state.to(x.dtype)
    restart = torch.zeros(batch, length, dtype=torch.bool, device=x.device)
    if document is not None:
        real = document >= 0
        x, log_decay, B, C = (_zero_padding(tensor, real) for tensor in (x, log_decay, B, C))
        restart[:, 1:] = real[:, 1:] & (document[:, 1:] != document[:, :-1])
    outputs = []
    for t in range(length):
        state = state.masked_fill(restart[:, t, None, None, None], 0)
        y, state = ssd_step(x[:, t], log_decay[:, t], B[:, t], C[:, t], state)
        outputs.append(y)
    return torch.stack(outputs, dim=1), state


def ssd_step(
    x: Tensor, log_decay: Tensor, B: Tensor, C: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """One token: ``S = exp(log_decay) S + x B^T``, ``y = S C``.

    ``x`` (batch, heads, head_dim), ``log_decay`` (batch, heads), ``B`` and ``C`` (batch, groups,
    state), ``state`` (batch, heads, head_dim, state). Returns y in the dtype of ``x``, and the new
    state in the dtype of ``state``.
    """
    share = x.shape[1] // B.shape[1]
    B = B.to(state.dtype).repeat_interleave(share, dim=1)
    C = C.to(state.dtype).repeat_interleave(share, dim=1)
    decay = log_decay.to(state.dtype).exp()[..., None, None]
    state = decay * state + x.to(state.dtype)[..., :, None] * B[..., None, :]
    return (state * C[..., None, :]).sum(-1).to(x.dtype), state


class _Inputs(NamedTuple):
    """Inputs cut into chunks: (chunks, batch, groups, heads a group, CHUNK, width)."""

    x: Tensor
    B: Tensor
    C: Tensor
    log_decay: Tensor
    segment: Tensor  # (chunks, batch, 1, 1, CHUNK)
    real: Tensor | None  # (batch, length)


class _Decays(NamedTuple):
    """How much of each state a chunk's positions see; zero across segments."""

    within: Tensor  # (..., CHUNK, CHUNK): position s seen by position t
    entry: Tensor  # (..., CHUNK, 1): the entering state seen by position t
    exit: Tensor  # (..., CHUNK, 1): position s seen by the leaving state
    through: Tensor  # (..., 1, 1): the entering state seen by the leaving state


def _chunks(x: Tensor, groups: int, dtype: torch.dtype, real: Tensor | None) -> Tensor:
    """(batch, length, heads, ...) -> (chunks, batch, groups, heads a group, CHUNK, ...), padded."""
    if real is not None:
        x = _zero_padding(x, real)
    batch, length, heads = x.shape[:3]
    count = max(1, -(-length // CHUNK))  # no length still has a state to hand on
    x = torch.nn.functional.pad(
        x.to(dtype), (0, 0) * (x.ndim - 2) + (0, count * CHUNK - length)
    ).reshape(batch, count, CHUNK, groups, heads // groups, *x.shape[3:])
    return x.permute(1, 0, 3, 4, 2, *range(5, x.ndim))


def _merge(chunks: Tensor, length: int) -> Tensor:
    """The inverse of ``_chunks``, without the padding at the end."""
    count, batch, groups, share, size = chunks.shape[:5]
    x = chunks.permute(1, 0, 4, 2, 3, *range(5, chunks.ndim))
    return x.reshape(batch, count * size, groups * share, *chunks.shape[5:])[:, :length]


def _prepare(
    x: Tensor, log_decay: Tensor, B: Tensor, C: Tensor, segments: Tensor | None
) -> _Inputs:
    batch, length, groups = B.shape[:3]
    dtype = torch.promote_types(x.dtype, torch.float32)
    real = None
    code = torch.zeros(batch, length, dtype=torch.int32, device=x.device)
    if segments is not None:
        real = segments >= 0
        code = torch.where(real, segments, -1 - segments)
    # Past the end the last segment goes on, so that the last chunk's leaving state is the row's.
    padding = -length % CHUNK if length else CHUNK
    last = code[:, -1:] if length else code.new_zeros(batch, 1)
    code = torch.cat([code, last.expand(-1, padding)], dim=1)
    return _Inputs(
        _chunks(x, groups, dtype, real),
        _chunks(B, groups, dtype, real),
        _chunks(C, groups, dtype, real),
        _chunks(log_decay, groups, dtype, real).clamp(min=LOWEST_LOG_DECAY),
        code.reshape(batch, code.shape[1] // CHUNK, CHUNK).transpose(0, 1)[:, :, None, None],
        real,
    )


def _decays(inputs: _Inputs, chunk: int) -> _Decays:
    """Every decay is exp of a difference of cumulative sums, at most one by construction.

    Sums and differences are float64: after one large log-decay, float32 sums would leave the
    small differences behind it without digits.
    """
    dtype = inputs.x.dtype
    total = inputs.log_decay[chunk].double().cumsum(-1)
    segment = inputs.segment[chunk]
    entering = inputs.segment[chunk - 1][..., -1:] if chunk else torch.zeros_like(segment[..., :1])
    leaving = segment[..., -1:]
    unseen = (segment[..., :, None] != segment[..., None, :]) | torch.ones(
        CHUNK, CHUNK, dtype=torch.bool, device=total.device
    ).triu(1)
    difference = (total[..., :, None] - total[..., None, :]).to(dtype)
    end = total[..., -1:]
    return _Decays(
        difference.masked_fill_(unseen, -torch.inf).exp_(),
        torch.where(segment == entering, total.exp(), 0).to(dtype)[..., None],
        torch.where(segment == leaving, (end - total).exp(), 0).to(dtype)[..., None],
        torch.where(entering == leaving, end.exp(), 0).to(dtype)[..., None],
    )


def _start(inputs: _Inputs, initial_state: Tensor | None) -> Tensor:
    """The state before the first chunk, (batch, groups, heads a group, head_dim, state)."""
    shape = (*inputs.x.shape[1:4], inputs.x.shape[-1], inputs.B.shape[-1])
    if initial_state is None:
        return inputs.x.new_zeros(shape)
    return initial_state.to(inputs.x.dtype, copy=True).reshape(shape)


def _advance(state: Tensor, x: Tensor, B: Tensor, decays: _Decays) -> Tensor:
    """The state after a chunk."""
    return decays.through * state + (x * decays.exit).transpose(-1, -2) @ B


def ssd_chunked(
    x: Tensor,
    log_decay: Tensor,
    B: Tensor,
    C: Tensor,
    initial_state: Tensor | None = None,
    segments: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The same as the recurrence, a chunk at a time; ``segments`` from ``encode_segments``.

    Computes in float32 (float64 for float64 input), whatever autocast says.
    """
    with torch.autocast(x.device.type, enabled=False):
        inputs = _prepare(x, log_decay, B, C, segments)
        state = _start(inputs, initial_state)
        outputs = []
        for chunk in range(inputs.x.shape[0]):
            decays = _decays(inputs, chunk)
            x_c, B_c, C_c = inputs.x[chunk], inputs.B[chunk], inputs.C[chunk]
            scores = (C_c @ B_c.mT) * decays.within
            outputs.append(scores @ x_c + decays.entry * (C_c @ state.mT))
            state = _advance(state, x_c, B_c, decays)
        y = _merge(torch.stack(outputs), x.shape[1])
        return y.to(x.dtype), state.flatten(1, 2)


def ssd_chunked_backward(
    grad_y: Tensor,
    grad_final: Tensor,
    x: Tensor,
    log_decay: Tensor,
    B: Tensor,
    C: Tensor,
    initial_state: Tensor | None = None,
    segments: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, log_decay, B, C and the initial state.

    The entering states are computed again, then chunks are walked from last to first.
    """
    with torch.autocast(x.device.type, enabled=False):
        inputs = _prepare(x, log_decay, B, C, segments)
        grad_chunks = _chunks(grad_y, B.shape[2], inputs.x.dtype, inputs.real)
        count = inputs.x.shape[0]
        states = [_start(inputs, initial_state)]
        for chunk in range(count - 1):
            decays = _decays(inputs, chunk)
            states.append(_advance(states[-1], inputs.x[chunk], inputs.B[chunk], decays))
        grad_state = grad_final.to(inputs.x.dtype).reshape(states[0].shape)
        collected: list[tuple[Tensor, ...]] = []
        for chunk in reversed(range(count)):
            decays = _decays(inputs, chunk)
            x_c, B_c, C_c = inputs.x[chunk], inputs.B[chunk], inputs.C[chunk]
            *grads, grad_state = _chunk_backward(
                grad_chunks[chunk], grad_state, x_c, B_c, C_c, states.pop(), decays
            )
            collected.append(tuple(grads))
    dx, da, dB, dC = (
        _merge(torch.stack(parts[::-1]), x.shape[1]) for parts in zip(*collected, strict=True)
    )
    if inputs.real is not None:
        da = da.masked_fill(~inputs.real[..., None], 0)
    return (
        dx.to(x.dtype),
        da.to(log_decay.dtype),
        dB.to(B.dtype),
        dC.to(C.dtype),
        grad_state.flatten(1, 2),
    )


def _chunk_backward(
    dy: Tensor, G: Tensor, x: Tensor, B: Tensor, C: Tensor, S: Tensor, decays: _Decays
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """One chunk: gradients of x, log_decay, B, C and of the entering state S.

    ``G`` is the gradient of the leaving state. ``flow`` sums, for every pair s < t, how much the
    output moves with the decay between them: log_decay_k counts each pair with s < k <= t.
    """
    scores = C @ B.mT
    pull = (dy @ x.mT) * decays.within
    x_exit = decays.exit * (B @ G.mT)
    C_entry = decays.entry * (dy @ S)
    B_exit = decays.exit * (x @ G)

    pairs = (scores * pull).tril(-1)
    flow = pairs.sum(-1) - pairs.sum(-2) + (C_entry * C).sum(-1)
    # float64, because these sums take back later what they added earlier.
    log_decay = flow.double().flip(-1).cumsum(-1).flip(-1)
    leaving = (B_exit * B).sum(-1)
    log_decay[..., 1:] += leaving[..., :-1].cumsum(-1)
    log_decay += (decays.through * S * G).sum((-1, -2))[..., None]
    return (
        (scores * decays.within).mT @ dy + x_exit,
        log_decay.to(x.dtype),
        (pull.mT @ C + B_exit).sum(2, keepdim=True),
        (pull @ B + C_entry).sum(2, keepdim=True),
        decays.through * G + (dy * decays.entry).mT @ C,
    )
