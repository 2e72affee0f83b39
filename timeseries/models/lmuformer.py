"""LMUFormer (Liu, Datta, Li and Beerel 2024, arXiv 2402.04882): a classifier that can stream.

Where this departs from the authors' code (zeyuliu1037/LMUFormer):

- Convolutions look back only. Theirs pad both sides, so each of the five sees one step ahead.
- Any length and window; theirs are 128 steps.
- Logits come out for every prefix; the last ones are what their training uses.
- A spiking model streams what it trained on. Their recurrent form leaves out the normalisation and
  the neurons behind the memory.
- Weights start as PyTorch's layers do; theirs of linear layers are truncated normal, 0.02 wide.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from core.mixers.base import Mixer, at_least_float32
from core.mixers.lmu import LMU, LegendreMemory
from core.sequences import Sequences

KERNEL = 3  # taps of the convolutions in the patch embedding


class Stream(nn.Module):
    """A layer (batch, time, dim) -> the same layout that remembers what went before.

    As in the mixers, ``forward`` with ``state`` returns (output, state after the last step), and
    without it the output alone, from an empty past.
    """

    def init_state(self, batch: int, *, device: Any = None, dtype: Any = None) -> Any:
        raise NotImplementedError


class Chain(Stream):
    """Layers one after another; the state is a list, None for a layer that remembers nothing.

    ``real`` (batch, time) says which steps are no padding, to the layers that ask for it.
    """

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def init_state(self, batch: int, *, device: Any = None, dtype: Any = None) -> list[Any]:
        return [
            layer.init_state(batch, device=device, dtype=dtype)
            if isinstance(layer, Stream | Mixer)
            else None
            for layer in self.layers
        ]

    def forward(
        self, x: Tensor, *, state: list[Any] | None = None, real: Tensor | None = None
    ) -> Any:
        after: list[Any] = []
        for i, layer in enumerate(self.layers):
            if state is not None and state[i] is not None:
                x, new = layer(x, state=state[i])
            elif isinstance(layer, BatchNorm | Chain | SpikingLMU):
                x, new = layer(x, real=real), None
            else:
                x, new = layer(x), None
            after.append(new)
        return x if state is None else (x, after)


class Residual(Chain):
    """x + the chain of x."""

    def forward(
        self, x: Tensor, *, state: list[Any] | None = None, real: Tensor | None = None
    ) -> Any:
        if state is None:
            return x + super().forward(x, real=real)
        y, state = super().forward(x, state=state)
        return x + y, state


class CausalConv(Stream):
    """A convolution over the last ``KERNEL`` steps; the state holds all of them but the newest."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(inputs, outputs, KERNEL, bias=False)

    def init_state(self, batch: int, *, device: Any = None, dtype: Any = None) -> Tensor:
        return torch.zeros(batch, KERNEL - 1, self.conv.in_channels, device=device, dtype=dtype)

    def forward(self, x: Tensor, *, state: Tensor | None = None) -> Any:
        before = x.new_zeros(len(x), KERNEL - 1, x.shape[-1]) if state is None else state
        x = torch.cat([before.to(x.dtype), x], 1)
        y = self.conv(x.transpose(1, 2)).transpose(1, 2)
        return y if state is None else (y, x[:, 1 - KERNEL :])


class BatchNorm(nn.BatchNorm1d):
    """Batch norm of (batch, time, dim) over the real steps; one vector a channel in eval mode.

    In training mode padding comes out as zeros.
    """

    def forward(self, x: Tensor, *, real: Tensor | None = None) -> Tensor:
        if real is None or not self.training:
            return super().forward(x.flatten(0, 1)).view(x.shape)
        normed = super().forward(x[real])
        return normed.new_zeros(x.shape).index_put((real,), normed)


class Spike(torch.autograd.Function):
    """1 where x >= 0, else 0; the gradient is that of sigmoid(4 x)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return (x >= 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        soft = torch.sigmoid(4 * x)
        return grads[0] * 4 * soft * (1 - soft)


class LIF(Stream):
    """Leaky integrate-and-fire neurons, one a channel: currents in, spikes (0 or 1) out.

    v <- v + (x - v) / tau; a spike where v >= threshold, which sets v back to 0. Gradients do not
    pass through the reset. The state is v (batch, dim).
    """

    def __init__(self, dim: int, *, tau: float = 2.0, threshold: float = 1.0) -> None:
        super().__init__()
        if tau < 1:
            raise ValueError(f"LIF: tau must be at least 1 step, got {tau}")
        self.dim, self.tau, self.threshold = dim, tau, threshold

    def init_state(self, batch: int, *, device: Any = None, dtype: Any = None) -> Tensor:
        return at_least_float32(torch.zeros(batch, self.dim, device=device, dtype=dtype))

    def forward(self, x: Tensor, *, state: Tensor | None = None) -> Any:
        current = at_least_float32(x)
        v = torch.zeros_like(current[:, 0]) if state is None else state
        spikes = []
        for now in current.unbind(1):
            v = v + (now - v) / self.tau
            spike: Tensor = Spike.apply(v - self.threshold)
            v = v * (1 - spike.detach())
            spikes.append(spike)
        y = torch.stack(spikes, 1).to(x.dtype)
        return y if state is None else (y, v)


class SpikingLMU(Stream):
    """The parallel LMU with normalisation and neurons in place of f1, behind the memory, and as f2.

    Spikes (batch, time, dim) in and out; the memory itself is not binary.
    """

    def __init__(self, dim: int, order: int, theta: float, tau: float) -> None:
        super().__init__()
        self.encode = Chain(nn.Linear(dim, 1), BatchNorm(1), LIF(1, tau=tau))
        self.memory = LegendreMemory(order, theta)
        self.recall = Chain(BatchNorm(order), LIF(order, tau=tau))
        self.decode = Chain(nn.Linear(order + dim, dim), BatchNorm(dim), LIF(dim, tau=tau))

    def init_state(self, batch: int, *, device: Any = None, dtype: Any = None) -> tuple[Any, ...]:
        chains = (self.encode, self.recall, self.decode)
        states = [c.init_state(batch, device=device, dtype=dtype) for c in chains]
        return (*states, self.memory.init_state(batch, 1, device=device))

    def forward(
        self, x: Tensor, *, state: tuple[Any, ...] | None = None, real: Tensor | None = None
    ) -> Any:
        if state is None:
            m, _ = self.memory(self.encode(x, real=real))
            m = self.recall(m.flatten(2).to(x.dtype), real=real)
            return self.decode(torch.cat([m, x], -1), real=real)
        encode, recall, decode, memory = state
        u, encode = self.encode(x, state=encode)
        m, memory = self.memory(u, memory)
        m, recall = self.recall(m.flatten(2).to(x.dtype), state=recall)
        y, decode = self.decode(torch.cat([m, x], -1), state=decode)
        return y, (encode, recall, decode, memory)


class PrefixMean(Stream):
    """The mean of the steps so far; the state is their sum (batch, dim) and number (batch, 1)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def init_state(
        self, batch: int, *, device: Any = None, dtype: Any = None
    ) -> tuple[Tensor, Tensor]:
        shape = {"device": device, "dtype": torch.float64}  # a stream may be long
        return torch.zeros(batch, self.dim, **shape), torch.zeros(batch, 1, **shape)

    def forward(self, x: Tensor, *, state: tuple[Tensor, Tensor] | None = None) -> Any:
        total, seen = state or self.init_state(len(x), device=x.device)
        totals = total[:, None] + x.double().cumsum(1)
        steps = torch.arange(1, x.shape[1] + 1, device=x.device, dtype=torch.float64)
        counts = seen + steps
        y = (totals / counts[..., None]).to(x.dtype)
        return y if state is None else (y, (totals[:, -1], counts[:, -1:]))


def _embedding(channels: int, dim: int, spiking: bool, tau: float) -> list[nn.Module]:
    """Four convolutions, and a fifth on a residual branch in the place of position embeddings."""
    convolutions = [CausalConv(channels, dim), *(CausalConv(dim, dim) for _ in range(3))]
    last = CausalConv(dim, dim)
    layers: list[nn.Module] = []
    if not spiking:
        for conv in convolutions:
            layers += [conv, nn.ReLU(), BatchNorm(dim)]
        return [*layers, Residual(last)]
    for conv in convolutions[:-1]:
        layers += [conv, BatchNorm(dim), LIF(dim, tau=tau)]
    return [*layers, convolutions[-1], Residual(BatchNorm(dim), LIF(dim, tau=tau), last)]


def _block(
    dim: int, order: int, theta: float, hidden: int, spiking: bool, tau: float
) -> list[nn.Module]:
    """LMU, then channel mixer (convolutions of one tap), each on a residual branch."""
    project, up, down = nn.Linear(dim, dim), nn.Linear(dim, hidden), nn.Linear(hidden, dim)
    if spiking:
        first = LIF(dim, tau=tau, threshold=0.5)
        memory = SpikingLMU(dim, order, theta, tau)
        second, third = LIF(dim, tau=tau), LIF(hidden, tau=tau)
        return [
            Residual(BatchNorm(dim), first, memory, project, BatchNorm(dim)),
            Residual(BatchNorm(dim), second, up, BatchNorm(hidden), third, down),
        ]
    return [
        Residual(LMU(dim, order=order, theta=theta), project, BatchNorm(dim)),
        Residual(up, BatchNorm(hidden), nn.GELU(), down, BatchNorm(dim), nn.ReLU()),
    ]


class LMUFormer(nn.Module):
    """(batch, time, channels) -> logits (batch, time, classes), those at t from the steps up to t.

    ``theta`` is the window of the memories in steps (the paper's data: 128), ``order`` their number
    of coefficients (0: ``dim``, or twice that when spiking), ``expand`` the widening of the channel
    mixer. ``spiking`` puts neurons with time constant ``tau`` in place of the activations: only
    zeros and ones enter the body's linear layers and convolutions after the first; the residual
    stream stays real-valued. Series shorter than the batch's longest are padded at the end; the
    logits of padding mean nothing.

    Raises ValueError if ``channels``, ``classes`` or another size is below 1.
    """

    def __init__(
        self,
        channels: int = 0,
        classes: int = 0,
        *,
        dim: int = 256,
        depth: int = 1,
        theta: float = 128.0,
        order: int = 0,
        expand: float = 4.0,
        spiking: bool = False,
        tau: float = 2.0,
    ) -> None:
        super().__init__()
        hidden = int(expand * dim)
        order = order or (2 * dim if spiking else dim)
        sizes = {"channels": channels, "classes": classes, "dim": dim, "depth": depth}
        for name, size in {**sizes, "expand * dim": hidden}.items():
            if size < 1:
                raise ValueError(f"LMUFormer: {name} must be at least 1, got {size}")
        self.channels = channels
        layers = _embedding(channels, dim, spiking, tau)
        for _ in range(depth):
            layers += _block(dim, order, theta, hidden, spiking, tau)
        if spiking:
            layers += [BatchNorm(dim), LIF(dim, tau=tau)]
        self.body = Chain(*layers, PrefixMean(dim))
        self.head = nn.Linear(dim, classes)

    def forward(self, x: Tensor, sequences: Sequences | None = None) -> Tensor:
        """Logits for every prefix: ``[:, t]`` is the answer after step t."""
        self._check(x)
        if sequences is None:
            return self.head(self.body(x))
        return self.head(self.body(sequences.zero_padding(x), real=sequences.real))

    def init_state(self, batch: int, *, device: Any = None, dtype: Any = None) -> list[Any]:
        """The state before the first step of ``batch`` streams; device and dtype as the weights."""
        weight = self.head.weight
        return self.body.init_state(
            batch, device=device or weight.device, dtype=dtype or weight.dtype
        )

    def extend(self, x: Tensor, state: list[Any]) -> tuple[Tensor, list[Any]]:
        """The next steps (batch, time, channels) of a stream -> their logits, the state after them.

        Equals ``forward`` over the whole in eval mode, up to rounding; a spiking neuron within
        rounding of its threshold may fire in one and not in the other.
        """
        self._check(x)
        features, state = self.body(x, state=state)
        return self.head(features), state

    def step(self, x: Tensor, state: list[Any]) -> tuple[Tensor, list[Any]]:
        """One step (batch, channels) and the state before it -> logits (batch, classes), state."""
        logits, state = self.extend(x[:, None], state)
        return logits[:, 0], state

    def _check(self, x: Tensor) -> None:
        if x.ndim != 3 or x.shape[1] < 1 or x.shape[2] != self.channels:
            raise ValueError(
                f"LMUFormer: x must be (batch, time >= 1, {self.channels}), got {tuple(x.shape)}"
            )
