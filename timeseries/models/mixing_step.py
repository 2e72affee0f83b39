"""A step of PatchTSMixer in training that holds a third less for the backward pass.

Autograd would also hold the norm's output and the MLP's hidden values after GELU and dropout. Here
they are computed again, by one layer norm and elementwise steps. A step is one node of autograd's
graph, which takes the host less time than the twenty that it stands for.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.backbone import MLP
from core.backbone.dropout import drop, drop_again

aten = torch.ops.aten


def mixing_step(
    x: Tensor, axis: int, norm: nn.LayerNorm, mlp: MLP, dropout: nn.Dropout, gate: nn.Linear | None
) -> Tensor:
    """x + gated(dropout(mlp(norm(x)))) in training, the MLP and the gate along ``axis``, the norm
    along the last one. (..., dim) -> the same.

    gated(y) is y * softmax(gate(y)), or y without a gate. ``mlp`` has the exact GELU. Takes the
    layers' weights and rates and calls none of them. Raises RuntimeError for second derivatives
    and, as PyTorch words it, for the transforms of torch.func.
    """
    rates = (mlp.dropout.p, dropout.p)
    layers = [norm, mlp.fc1, mlp.fc2] + ([] if gate is None else [gate])
    weights = [tensor for layer in layers for tensor in (layer.weight, layer.bias)]
    return _MixingStep.apply(x, axis, norm.eps, rates, *weights)


class _MixingStep(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, axis: int, eps: float, rates: tuple[float, float], *weights: Tensor
    ) -> Tensor:
        scale, shift, weight1, bias1, weight2, bias2, *gate = weights
        x = x.to(scale.dtype)
        normed = torch.native_layer_norm(x, x.shape[-1:], scale, shift, eps)[0].transpose(axis, -1)
        hidden = torch.addmm(bias1, normed.flatten(0, -2), weight1.t())
        active, kept_hidden = _drop(F.gelu(hidden), rates[0])
        y, kept = _drop(torch.addmm(bias2, active, weight2.t()), rates[1])
        held = [x, hidden, kept_hidden, kept, scale, shift, weight1, weight2]
        if gate:
            share = torch.addmm(gate[1], y, gate[0].t()).softmax(-1)
            held += [y, share, gate[0]]
            y = y * share
        ctx.save_for_backward(*held)
        ctx.settings = axis, eps, rates
        return x + y.view(normed.shape).transpose(axis, -1)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Any, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError("PatchTSMixer in training has no second derivatives; call eval()")
        x, hidden, kept_hidden, kept, scale, shift, weight1, weight2, *gate = ctx.saved_tensors
        axis, eps, rates = ctx.settings
        kind, size = hidden.dtype, x.shape[-1:]
        if kind != x.dtype:  # autocast, which the backward pass runs without
            weight1, weight2 = weight1.to(kind), weight2.to(kind)
        grad = grad_out.transpose(axis, -1)
        shape = grad.shape
        grad = grad.flatten(0, -2)
        to_gate: tuple[Tensor, ...] = ()
        if gate:
            y, share, gate_weight = gate
            grad = grad.to(share.dtype)
            inner = aten._softmax_backward_data(grad * y, share, -1, share.dtype).to(kind)
            to_gate = inner.t() @ y, inner.sum(0)
            grad = (grad * share).to(kind).addmm_(inner, gate_weight.to(kind))
        grad = _drop_again(grad.to(kind), kept, rates[1])
        to_weight2 = grad.t() @ _drop_again(F.gelu(hidden), kept_hidden, rates[0])
        to_bias2 = grad.sum(0)
        grad = _drop_again(grad @ weight2, kept_hidden, rates[0])
        grad = aten.gelu_backward(grad, hidden)
        normed, mean, rstd = torch.native_layer_norm(x, size, scale, shift, eps)
        to_weight1 = grad.t() @ normed.transpose(axis, -1).flatten(0, -2).to(kind)
        to_bias1 = grad.sum(0)
        grad = (grad @ weight1).view(shape).transpose(axis, -1).to(x.dtype)
        to_x, to_scale, to_shift = aten.native_layer_norm_backward(
            grad, x, size, mean, rstd, scale, shift, [True] * 3
        )
        to_layers = to_scale, to_shift, to_weight1, to_bias1, to_weight2, to_bias2, *to_gate
        return to_x.add_(grad_out), None, None, None, *to_layers


def _drop(x: Tensor, rate: float) -> tuple[Tensor, Tensor | None]:
    return drop(x, rate) if rate else (x, None)


def _drop_again(x: Tensor, kept: Tensor | None, rate: float) -> Tensor:
    return x if kept is None else drop_again(x, kept, rate)
