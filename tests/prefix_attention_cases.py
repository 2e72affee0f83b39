"""Inputs, brute force and plain PyTorch for the tests of prefix attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from core.ops.prefix_attention import PrefixState, prefix_attention


def draw(
    batch: int,
    length: int,
    heads: int,
    head_dim: int,
    *,
    dtype: torch.dtype = torch.float64,
    device: str = "cpu",
    seed: int = 0,
    scale: float = 1.0,
) -> dict[str, Tensor]:
    """Random inputs by name, ``m``, ``u`` and ``w`` those of a carried state.

    ``scale`` multiplies scores and ``m``, which are standard normal.
    """
    generator = torch.Generator(device).manual_seed(seed)
    wide = torch.promote_types(dtype, torch.float32)

    def normal(*shape: int, to: torch.dtype = wide) -> Tensor:
        return torch.randn(shape, generator=generator, device=device).to(to)

    return {
        "scores": scale * normal(batch, length, heads),
        "values": normal(batch, length, heads, head_dim, to=dtype),
        "m": scale * normal(batch, heads),
        "u": 1 + torch.rand(batch, heads, generator=generator, device=device).to(wide),
        "w": normal(batch, heads, head_dim),
    }


def softmax_of_prefixes(
    scores: Tensor,
    values: Tensor,
    initial_state: PrefixState | None = None,
    document: Tensor | None = None,
) -> tuple[Tensor, PrefixState]:
    """The op as masked softmax over a square of scores, products in the dtype of ``values``.

    A carried state is one more position, of score ``m + log u`` and value ``w / u``. ``document``
    must have no padding before its end; the final state is the op's up to the choice of ``m``.
    """
    real = torch.ones(scores.shape[:2], dtype=torch.bool, device=scores.device)
    if document is None:
        document = real.int()
    else:
        real = document >= 0
        values = torch.where(real[..., None, None], values, 0)
        document = torch.where(real, document, document.amax(1, keepdim=True))
    scores = torch.where(real[..., None], scores, -torch.inf)
    seen = (document[:, :, None] == document[:, None, :]).tril()
    if initial_state is not None:
        m, u, w = initial_state
        scores = torch.cat([(m.detach() + u.log())[:, None], scores], 1)
        values = torch.cat([(w / u[..., None])[:, None].to(values.dtype), values], 1)
        seen = torch.cat([(document == document[:, :1])[..., None], seen], 2)
    logits = scores.transpose(1, 2)[:, :, None].masked_fill(~seen[:, None], -torch.inf)
    weights = logits.softmax(-1).to(values.dtype)
    out = (weights @ values.transpose(1, 2)).transpose(1, 2)
    last = logits[:, :, -1]
    m = last.amax(-1).detach()
    last = (last - m[..., None]).exp()
    w = (last[:, :, None] @ values.transpose(1, 2).to(last.dtype))[:, :, 0]
    return torch.where(real[..., None, None], out, 0), PrefixState(m, last.sum(-1), w)


def run(
    function: Callable[..., tuple[Tensor, PrefixState]],
    inputs: dict[str, Tensor],
    *,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> dict[str, Tensor]:
    """Output, final state and gradients by name, for fixed random gradients of the results.

    The state comes as ``log u + m`` and ``w / u``, which do not depend on the choice of ``m``.
    With ``dtype`` everything is cast to it, the gradients of the results too.
    """
    leaves = {
        name: tensor.detach().to(dtype or tensor.dtype).requires_grad_(name != "m")
        for name, tensor in inputs.items()
    }
    if "m" in leaves:
        options["initial_state"] = PrefixState(leaves.pop("m"), leaves["u"], leaves["w"])
    out, state = function(leaves["scores"], leaves["values"], **options)
    size, mean = state.u.log() + state.m, state.w / state.u[..., None]
    generator = torch.Generator(out.device).manual_seed(1)

    def gradient(result: Tensor) -> Tensor:
        noise = torch.randn(result.shape, generator=generator, device=out.device)
        # Rounded as values are, so that every version is given the same gradient.
        return noise.to(inputs["values"].dtype).to(result.dtype)

    given = [gradient(result) for result in (out, size, mean)]
    document = options.get("document")
    if document is not None:  # a gradient that arrives in padding must not matter
        given[0] = given[0].masked_fill((document < 0)[..., None, None], 0)
    grads = torch.autograd.grad((out, size, mean), list(leaves.values()), given)
    named = {f"gradient of {name}": grad for name, grad in zip(leaves, grads, strict=True)}
    return {"output": out.detach(), "size": size.detach(), "mean": mean.detach(), **named}


def plain(inputs: dict[str, Tensor], **options: Any) -> dict[str, Tensor]:
    """What plain PyTorch makes of it in the dtype of values, to judge largest errors by.

    Half precision: masked softmax throughout in that dtype. float32: the chunked form, whose sums
    are as long as a kernel's.
    """
    if inputs["values"].dtype != torch.float32:
        return run(softmax_of_prefixes, inputs, **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LONGSPAN_OPS", "reference")
        return run(prefix_attention, inputs, **options)
