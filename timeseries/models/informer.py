"""Informer (Zhou et al. 2021, arXiv 2012.07436).

The paper, the authors' code (github.com/zhouhaoyi/Informer2020) and transformers' Informer differ.
The published ETTh1 results come from the authors' code, so that is what is followed:

- Measure of a query (equation 4): the maximum over sampled keys minus their sum divided by the
  number of all keys. The paper has the mean over the sample. Each query has its own sample of
  ``factor * ceil(ln(length))`` keys, drawn with replacement and shared by the heads; transformers
  draws ``length`` keys once for all queries, and so holds every score, and counts ceil(ln(1 +
  length)).
- Causal ProbSparse: the measure sees later keys as well. A query that is not chosen gets the sum of
  the values so far, not their mean (the paper allows it, Algorithm 1).
- ``mix`` lays the decoder's heads out as (heads, length) before they are read as (length, dim), so
  that a step holds features of several steps: the authors' trick (their issue 205), not in the
  paper and not in transformers.
- Attention weights are dropped in full attention only; transformers drops them in ProbSparse too.
- Values are embedded by a circular convolution of width 3, and a layer norm ends encoder and
  decoder. transformers has a linear embedding with a layer norm behind it, and none at the end.
- The decoder starts from the end of the look-back; transformers' is fed the true future.
- ``variant`` "autoformer" is the copy in github.com/thuml/Autoformer (until November 2024), which
  the published tables with a look-back of 96 ran: ProbSparse attention to the encoder's output as
  well, ``mix`` in every ProbSparse attention, and a wider padding in the distilling, which leaves
  one step more. Its embeddings' missing biases are not followed.
- The paper's replica stacks of the encoder on halved inputs are not built: the authors' commands
  for ETTh1 do not use them.

Ours alone: where the sample would be as large as the sequence, all keys are taken once and the
choice is exact; in eval mode the sample is always the same.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.backbone import MLP, Dropout
from core.mixers.attention import Attention
from core.mixers.base import at_least_float32
from timeseries.models.sizes import check_sizes

Kind = Literal["prob", "full"]
Variant = Literal["authors", "autoformer"]
CUDA_COPY = 2**24  # numbers of sampled keys that exist at a time


# ProbSparse attention


def log_count(factor: int, length: int) -> int:
    """``factor * ceil(ln(length))``, between 1 and ``length``: queries chosen, keys sampled."""
    return min(max(1, factor * math.ceil(math.log(length))), length)


def sampled_keys(
    length: int, count: int, *, keys: int | None = None, fresh: bool, device: torch.device
) -> Tensor:
    """For each of ``length`` queries, ``count`` numbers of keys, of which there are as many as
    queries unless ``keys`` says otherwise: (length, count).

    ``fresh`` draws from PyTorch's generator of the device, which ``torch.manual_seed`` repeats;
    otherwise the numbers depend on the sizes only, whatever the device.
    """
    keys = length if keys is None else keys
    if count >= keys:
        return torch.arange(keys, device=device).expand(length, keys)
    if fresh:
        return torch.randint(keys, (length, count), device=device)
    fixed = torch.Generator().manual_seed(0)
    return torch.randint(keys, (length, count), generator=fixed).to(device)


def keys_together(query: Tensor) -> int:
    """How many keys of each query's sample are looked up at a time."""
    return max(1, CUDA_COPY // query.numel()) if query.is_cuda else 1


@torch.no_grad()
def sparsity(query: Tensor, key: Tensor, sample: Tensor) -> Tensor:
    """How far each query is from looking at all keys alike: (batch, heads, length).

    The largest of its scores with the keys of ``sample`` (length, count), minus their sum divided
    by the number of all keys.
    """
    query, key = at_least_float32(query), at_least_float32(key)
    extremes = in_place if query.device.type == "cpu" else by_copies
    most, total = extremes(query, key, sample)
    return most - total / key.shape[2]


def by_copies(query: Tensor, key: Tensor, sample: Tensor) -> tuple[Tensor, Tensor]:
    """Largest and sum of each query's scores with its ``sample``, as in `sparsity`. Holds a copy of
    the keys at a time; of small ones on a GPU several, for fewer launches."""
    most = query.new_full(query.shape[:-1], -math.inf)
    total = torch.zeros_like(most)
    for chosen in sample.split(keys_together(query), dim=1):
        score = key[:, :, chosen].mul_(query.unsqueeze(3)).sum(-1)  # in the copy's place
        most, total = torch.maximum(most, score.amax(-1)), total + score.sum(-1)
    return most, total


def in_place(query: Tensor, key: Tensor, sample: Tensor) -> tuple[Tensor, Tensor]:
    """What `by_copies` gives, on a CPU: a product of queries and keys that computes the entries of
    a sparse matrix alone reads the keys where they lie. Holds the scores of the sample."""
    (length, count), keys = sample.shape, key.shape[2]
    entry = torch.arange(length)[:, None] * keys + sample
    entry, place = entry.unique(return_inverse=True)  # keys drawn twice are one entry
    place = place.flatten()
    rows = torch.searchsorted(entry, torch.arange(length + 1) * keys)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta", UserWarning)
        wanted = torch.sparse_csr_tensor(
            rows, entry % keys, query.new_zeros(len(entry)), (length, keys), check_invariants=True
        )
    scores = [
        torch.sparse.sampled_addmm(wanted, q, k.T, beta=0).values().index_select(0, place)
        for queries, theirs in zip(query, key, strict=True)
        for q, k in zip(queries, theirs, strict=True)
    ]
    score = torch.stack(scores).view(*query.shape[:3], count)
    return score.amax(-1), score.sum(-1)


def prob_sparse_attention(
    query: Tensor, key: Tensor, value: Tensor, *, sample: Tensor, active: int, causal: bool
) -> Tensor:
    """Softmax attention of the ``active`` queries with the largest measure (Algorithm 1).

    All (batch, heads, length, head_dim), queries and keys of lengths of their own unless
    ``causal``. The other queries get the mean of the values; if ``causal``, the sum of those up to
    their own place. ``sample`` is as in `sparsity`.
    """
    top = sparsity(query, key, sample).topk(active, dim=-1).indices[..., None]
    rows = top.expand(-1, -1, -1, query.shape[-1])
    if causal:
        mask = torch.arange(key.shape[2], device=key.device) <= top
        lazy = at_least_float32(value).cumsum(2).to(value.dtype)
    else:
        mask, lazy = None, value.mean(2, keepdim=True).expand_as(query)
    attended = F.scaled_dot_product_attention(query.gather(2, rows), key, value, attn_mask=mask)
    return lazy.scatter(2, rows, attended)


# Encoder and decoder


@dataclass(frozen=True)
class LayerOptions:
    """What all layers share. ``mix`` acts in the decoder's self attention, and in every ProbSparse
    attention of the variant "autoformer".

    Raises ValueError naming what is out of range.
    """

    dim: int
    heads: int
    feedforward: int
    dropout: float
    attention: Kind = "prob"
    factor: int = 5
    mix: bool = True
    variant: Variant = "authors"

    def __post_init__(self) -> None:
        check_sizes(dim=self.dim, heads=self.heads, feedforward=self.feedforward)
        check_sizes(factor=self.factor)
        if self.dim % self.heads:
            raise ValueError(f"dim is {self.dim} and heads {self.heads}; heads must divide dim")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; it must lie in [0, 1)")
        for option, given, known in (
            ("attention", self.attention, get_args(Kind)),
            ("variant", self.variant, get_args(Variant)),
        ):
            if given not in known:
                raise ValueError(f"{option} is {given!r}; give one of {', '.join(known)}")

    @property
    def copied(self) -> bool:
        """Whether the decoder looks at the encoder by ProbSparse attention, all of it mixed."""
        return self.variant == "autoformer" and self.attention == "prob"


class InformerAttention(nn.Module):
    """ProbSparse or full attention of x (batch, length, dim), to itself or to ``memory`` (batch,
    any length, dim): the shape of x. ``causal`` is for the first only."""

    def __init__(self, options: LayerOptions, *, causal: bool) -> None:
        super().__init__()
        self.options, self.causal = options, causal
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (
            nn.Linear(options.dim, options.dim) for _ in range(4)
        )

    def forward(self, x: Tensor, memory: Tensor | None = None) -> Tensor:
        options = self.options
        source = x if memory is None else memory
        query, key, value = (
            project(given).unflatten(-1, (options.heads, -1)).transpose(1, 2)
            for project, given in ((self.q_proj, x), (self.k_proj, source), (self.v_proj, source))
        )
        if options.attention == "prob":
            length, keys = x.shape[1], source.shape[1]
            active, count = (log_count(options.factor, size) for size in (length, keys))
            sample = sampled_keys(length, count, keys=keys, fresh=self.training, device=x.device)
            out = prob_sparse_attention(
                query, key, value, sample=sample, active=active, causal=self.causal
            )
        else:
            dropout = options.dropout if self.training else 0.0
            out = F.scaled_dot_product_attention(
                query, key, value, dropout_p=dropout, is_causal=self.causal
            )
        if not (options.mix and (self.causal or options.copied)):
            out = out.transpose(1, 2)
        return self.o_proj(out.reshape(x.shape))


class InformerLayer(nn.Module):
    """Self attention, in the decoder cross attention, and an MLP, each added and then normed."""

    def __init__(self, options: LayerOptions, *, decoder: bool) -> None:
        super().__init__()
        dim, rate = options.dim, options.dropout
        self.attention = InformerAttention(options, causal=decoder)
        self.attention_norm = nn.LayerNorm(dim)
        self.cross = self.cross_norm = None
        if decoder:
            self.cross = (
                InformerAttention(options, causal=False)
                if options.copied
                else Attention(
                    dim,
                    causal=False,
                    heads=options.heads,
                    rotary_base=None,
                    bias=True,
                    dropout=rate,
                )
            )
            self.cross_norm = nn.LayerNorm(dim)
        expand = options.feedforward / dim
        self.mlp = MLP(dim, expand=expand, approximate="none", dropout=rate)
        self.mlp_norm = nn.LayerNorm(dim)
        self.dropout = Dropout(rate)

    def forward(self, x: Tensor, memory: Tensor | None = None) -> Tensor:
        """(batch, length, dim) -> the same; ``memory`` (batch, any length, dim) in the decoder."""
        x = self.attention_norm(x + self.dropout(self.attention(x)))
        if self.cross is not None and self.cross_norm is not None:
            x = self.cross_norm(x + self.dropout(self.cross(x, memory)))
        return self.mlp_norm(x + self.dropout(self.mlp(x)))


class Distilling(nn.Module):
    """Halves the length by convolution, batch norm, ELU and max pooling (equation 5).

    (batch, length, dim) -> (batch, (length + 1) // 2, dim). The convolution wraps around the ends,
    ``padding`` steps of each; 2 leave a step more.
    """

    def __init__(self, dim: int, padding: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv1d(dim, dim, 3, padding=padding, padding_mode="circular")
        self.norm = nn.BatchNorm1d(dim)

    def forward(self, x: Tensor) -> Tensor:
        y = F.elu(self.norm(self.conv(x.transpose(1, 2))))
        y = F.max_pool1d(y, 3, stride=2, padding=1).transpose(1, 2)
        return y.contiguous()  # else each projection copies it and keeps its copy


class InformerEncoder(nn.Module):
    """``layers`` layers, distilling between them if ``distil``, each time to half the length."""

    def __init__(self, options: LayerOptions, layers: int, *, distil: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(InformerLayer(options, decoder=False) for _ in range(layers))
        between = layers - 1 if distil else 0
        padding = 2 if options.variant == "autoformer" else 1
        self.distilling = nn.ModuleList(Distilling(options.dim, padding) for _ in range(between))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, length, dim) embedded look-back -> (batch, shorter length, dim)."""
        for i, layer in enumerate(self.layers):
            x = layer(x)
            if i < len(self.distilling):
                x = self.distilling[i](x)
        return x


class InformerDecoder(nn.Module):
    """``layers`` layers of causal self attention and cross attention, all steps at once."""

    def __init__(self, options: LayerOptions, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(InformerLayer(options, decoder=True) for _ in range(layers))

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        """(batch, length, dim) embedded tokens, ``memory`` of the encoder -> the same shape."""
        for layer in self.layers:
            x = layer(x, memory)
        return x


# The forecaster


class InformerEmbedding(nn.Module):
    """Values by a circular convolution of width 3, plus sines of the place, plus a linear map of
    the calendar features (the paper's appendix B; ``timeF`` in the authors' code)."""

    position: Tensor

    def __init__(
        self, length: int, channels: int, time_features: int, dim: int, dropout: float
    ) -> None:
        super().__init__()
        self.token = nn.Conv1d(channels, dim, 3, padding=1, padding_mode="circular")
        nn.init.kaiming_normal_(self.token.weight, nonlinearity="leaky_relu")
        self.calendar = nn.Linear(time_features, dim) if time_features else None
        pairs = torch.arange(0, dim, 2, dtype=torch.float64)
        angle = torch.arange(length)[:, None] * 10_000 ** (-pairs / dim)
        waves = torch.stack([angle.sin(), angle.cos()], -1).flatten(1)[:, :dim]
        self.register_buffer("position", waves.float(), persistent=False)
        self.dropout = Dropout(dropout)

    def forward(self, values: Tensor, time: Tensor) -> Tensor:
        """(batch, length, channels) and (batch, length, time_features) -> (batch, length, dim)."""
        x = self.token(values.transpose(1, 2)).transpose(1, 2) + self.position
        if self.calendar is not None:
            x = x + self.calendar(time)
        return self.dropout(x).contiguous()  # else each projection copies it and keeps its copy


class Informer(nn.Module):
    """All channels together -> encoder; a decoder that gives the whole horizon in one pass.

    The decoder's tokens are the last ``label_length`` steps of the look-back, then zeros over the
    horizon. ``attention`` is that of encoder and decoder within themselves; the decoder looks at
    the encoder by full attention. ``factor`` sets how many queries ProbSparse keeps, ``distil``
    halves the length between encoder layers, ``mix`` and ``variant`` are told of above.

    Defaults are those of the authors' commands for ETTh1 with many channels, where (lookback,
    label_length) go with the horizon: 24 (48, 48) with ``factor`` 3, 48 (96, 48), 168 and 336
    (168, 168), 720 (336, 336).

    In eval mode ProbSparse samples the same keys at every call, so a forecast repeats itself; in
    training ``torch.manual_seed`` repeats the samples. Batch norm in the distilling makes windows
    of a batch depend on each other in training only.

    Raises ValueError for sizes below 1, heads that do not divide ``dim``, a ``label_length``
    longer than the look-back, and options out of range.
    """

    reads_time = True

    def __init__(
        self,
        lookback: int = 0,
        horizon: int = 0,
        channels: int = 0,
        time_features: int = 0,
        *,
        label_length: int = 48,
        attention: Kind = "prob",
        factor: int = 5,
        distil: bool = True,
        mix: bool = True,
        variant: Variant = "authors",
        dim: int = 512,
        heads: int = 8,
        encoder_layers: int = 2,
        decoder_layers: int = 1,
        feedforward: int = 2048,
        dropout: float = 0.05,
    ) -> None:
        super().__init__()
        check_sizes(lookback=lookback, horizon=horizon, channels=channels)
        check_sizes(encoder_layers=encoder_layers, decoder_layers=decoder_layers)
        if not 0 <= label_length <= lookback:
            raise ValueError(
                f"label_length is {label_length}; it must lie between 0 and lookback {lookback}"
            )
        options = LayerOptions(dim, heads, feedforward, dropout, attention, factor, mix, variant)
        self.horizon = horizon
        self.start = lookback - label_length
        tokens = label_length + horizon
        self.past_embedding = InformerEmbedding(lookback, channels, time_features, dim, dropout)
        self.token_embedding = InformerEmbedding(tokens, channels, time_features, dim, dropout)
        self.encoder = InformerEncoder(options, encoder_layers, distil=distil)
        self.encoder_norm = nn.LayerNorm(dim)
        self.decoder = InformerDecoder(options, decoder_layers)
        self.decoder_norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, channels)

    def forward(self, past: Tensor, past_time: Tensor, future_time: Tensor) -> Tensor:
        """(batch, horizon, channels) from ``past`` (batch, lookback, channels)."""
        memory = self.encoder_norm(self.encoder(self.past_embedding(past, past_time)))
        tokens = F.pad(past[:, self.start :], (0, 0, 0, self.horizon))
        time = torch.cat([past_time[:, self.start :], future_time], 1)
        x = self.decoder(self.token_embedding(tokens, time), memory)
        return self.head(self.decoder_norm(x[:, -self.horizon :]))
