"""Embedding, a schedule of blocks, final norm, and a language-model head over it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from core.backbone.norms import Norm, make_norm
from core.backbone.schedule import parse_schedule
from core.mixers.base import Mixer, check_rows
from core.patterns import FLEX_BLOCK
from core.sequences import Sequences

BlockKind = Callable[[int], nn.Module]

PACKED_MULTIPLE = FLEX_BLOCK  # attention then copies no row of tokens to round its length up


class Block(nn.Module):
    """x + dropout(layer(norm(x))): a pre-norm residual around a token or a channel mixer."""

    def __init__(self, dim: int, layer: nn.Module, norm: Norm, dropout: float) -> None:
        super().__init__()
        self.norm = make_norm(norm, dim)
        self.layer = layer
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Tensor, context: Tensor | None = None, sequences: Sequences | None = None
    ) -> Tensor:
        normed = self.norm(x)
        if isinstance(self.layer, Mixer):
            return x + self.dropout(self.layer(normed, context, sequences))
        return x + self.dropout(self.layer(normed))

    def extend(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """A piece (batch, length, dim) and the state before it -> output and state after."""
        if isinstance(self.layer, Mixer):
            y, state = self.layer(self.norm(x), state=state)
            return x + y, state
        return self(x), state

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """One token (batch, dim)."""
        if isinstance(self.layer, Mixer):
            y, state = self.layer.step(self.norm(x), state)
            return x + y, state
        return self(x), state


class Backbone(nn.Module):
    """Blocks in the order of a schedule, each pre-norm and residual, and a final norm.

    ``blocks`` maps names to factories: called with ``dim``, each gives a token mixer or a channel
    mixer. ``schedule`` names them in order (``core.backbone.schedule``). ``checkpoint_blocks``
    recomputes each block in the backward pass instead of keeping its activations;
    ``compile_blocks`` compiles each block. ``padding_free`` computes a batch with ``sequences`` on
    its real tokens alone, joined into one row before the first block and given their places back
    after the final norm (Zhai et al. 2023, ByteTransformer); padding comes out as zeros.
    Raises ValueError for a name that ``blocks`` lacks.
    """

    def __init__(
        self,
        dim: int,
        blocks: Mapping[str, BlockKind],
        schedule: str | Sequence[str],
        *,
        norm: Norm = "layer",
        dropout: float = 0.0,
        embed_dropout: float = 0.0,
        checkpoint_blocks: bool = False,
        compile_blocks: bool = False,
        padding_free: bool = False,
    ) -> None:
        super().__init__()
        names = parse_schedule(schedule)
        unknown = sorted(set(names) - set(blocks))
        if unknown:
            raise ValueError(
                f"schedule names {', '.join(unknown)}, but blocks are {', '.join(sorted(blocks))}"
            )
        self.dim = dim
        self.checkpoint_blocks, self.padding_free = checkpoint_blocks, padding_free
        self.embed_dropout = nn.Dropout(embed_dropout)
        self.blocks = nn.ModuleList(Block(dim, blocks[name](dim), norm, dropout) for name in names)
        self.norm = make_norm(norm, dim)
        if compile_blocks:
            for block in self.blocks:
                block.compile()

    def forward(
        self, x: Tensor, context: Tensor | None = None, sequences: Sequences | None = None
    ) -> Tensor:
        """(batch, length, dim) -> the same, after the final norm.

        Raises ValueError if ``x`` or ``sequences`` are of another shape, or a context meets
        ``padding_free``: the documents of one row would all see one context.
        """
        check_rows("Backbone", x, self.dim, sequences)
        if sequences is None or not self.padding_free:
            return self._run(x, context, sequences)
        if context is not None:
            raise ValueError("Backbone: padding_free takes no context; build it without")
        row = sequences.one_row(PACKED_MULTIPLE)
        return row.unpack(self._run(row.pack(x), None, row.sequences))

    def _run(self, x: Tensor, context: Tensor | None, sequences: Sequences | None) -> Tensor:
        x = self.embed_dropout(x)
        for block in self.blocks:
            if self.checkpoint_blocks and torch.is_grad_enabled():
                x = checkpoint(block, x, context, sequences, use_reentrant=False)
            else:
                x = block(x, context, sequences)
        return self.norm(x)

    def init_state(self, batch: int, *, device: Any = None, dtype: Any = None) -> list[Any]:
        """One state a block; raises UnsupportedPattern if some mixer carries none."""
        return [
            layer.init_state(batch, device=device, dtype=dtype)
            if isinstance(layer, Mixer)
            else None
            for layer in self._layers()
        ]

    @property
    def recurrent(self) -> bool:
        """True if every mixer carries a state, so that generation costs the same at each token."""
        return all(m.recurrent and m.causal for m in self._layers() if isinstance(m, Mixer))

    def _layers(self) -> list[nn.Module]:
        return [block.layer for block in self._blocks()]

    def _blocks(self) -> Iterable[Block]:
        return cast(Iterable[Block], self.blocks)

    def extend(self, x: Tensor, state: list[Any]) -> tuple[Tensor, list[Any]]:
        """A piece of a long sequence, as ``Mixer.forward`` with a state."""
        after = []
        for block, before in zip(self._blocks(), state, strict=True):
            x, new = block.extend(x, before)
            after.append(new)
        return self.norm(x), after

    def step(self, x: Tensor, state: list[Any]) -> tuple[Tensor, list[Any]]:
        """One token (batch, dim), as ``Mixer.step``."""
        after = []
        for block, before in zip(self._blocks(), state, strict=True):
            x, new = block.step(x, before)
            after.append(new)
        return self.norm(x), after


def scale_residual_init(backbone: Backbone) -> None:
    """Divide what each block writes back by sqrt(blocks) (GPT-2), and leave the rest as it is.

    The projections into a mixer keep PyTorch's scale, 1 / sqrt(dim), rather than GPT-2's fixed
    0.02: a gated convolution multiplies three of them, and at widths of 64 to 256 the product would
    start near 1e-3 and take hundreds of steps to grow.
    """
    scale = 1 / math.sqrt(len(backbone.blocks))
    for name, module in backbone.named_modules():
        if isinstance(module, nn.Linear) and name.rsplit(".", 1)[-1] in ("out_proj", "fc2"):
            with torch.no_grad():
                module.weight.mul_(scale)


class LanguageModel(nn.Module):
    """Token embedding -> backbone -> logits over the vocabulary.

    ``tie`` shares the embedding with the head. ``pad_to`` rounds the vocabulary up (the published
    checkpoints pad to 8). ``embed`` gives the backbone's output instead of logits.
    """

    def __init__(
        self, backbone: Backbone, vocabulary: int, *, pad_to: int = 1, tie: bool = True
    ) -> None:
        super().__init__()
        rows = -(-vocabulary // pad_to) * pad_to
        self.vocabulary = vocabulary
        self.embedding = nn.Embedding(rows, backbone.dim)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.backbone = backbone
        self.head = nn.Linear(backbone.dim, rows, bias=False)
        if tie:
            self.head.weight = self.embedding.weight
        else:
            nn.init.normal_(self.head.weight, std=0.02)

    def embed(
        self, tokens: Tensor, sequences: Sequences | None = None, prompt: Tensor | None = None
    ) -> Tensor:
        """(batch, length) ids -> (batch, length, dim).

        ``prompt`` (prompt length, dim) stands before every sequence (soft prompt) and is cut off
        the output again.
        """
        x = self.embedding(tokens)
        if prompt is None:
            return self.backbone(x, sequences=sequences)
        x = torch.cat([prompt.to(x.dtype).expand(x.shape[0], -1, -1), x], dim=1)
        if sequences is not None:
            sequences = sequences.prepended(prompt.shape[0])
        return self.backbone(x, sequences=sequences)[:, prompt.shape[0] :]

    def forward(
        self, tokens: Tensor, sequences: Sequences | None = None, prompt: Tensor | None = None
    ) -> Tensor:
        """(batch, length) ids -> (batch, length, rows) logits; row i is about token i + 1."""
        return self.head(self.embed(tokens, sequences, prompt))

    @torch.no_grad()
    def generate(
        self,
        tokens: Tensor,
        new: int,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """``new`` sampled tokens after ``tokens`` (batch, length); temperature 0 is greedy.

        Steps a state where every mixer carries one, otherwise runs the whole sequence each time.
        """
        recurrent = self.backbone.recurrent
        if recurrent:
            weight = self.embedding.weight
            state = self.backbone.init_state(len(tokens), device=weight.device, dtype=weight.dtype)
            hidden, state = self.backbone.extend(self.embedding(tokens), state)
            logits = self.head(hidden[:, -1])
        for _ in range(new):
            if not recurrent:
                logits = self(tokens)[:, -1]
            chosen = _sample(logits[:, : self.vocabulary], temperature, top_k, generator)
            tokens = torch.cat([tokens, chosen], dim=1)
            if recurrent:
                hidden, state = self.backbone.step(self.embedding(chosen[:, 0]), state)
                logits = self.head(hidden)
        return tokens


def _sample(
    logits: Tensor, temperature: float, top_k: int | None, generator: torch.Generator | None
) -> Tensor:
    if temperature == 0:
        return logits.argmax(-1, keepdim=True)
    logits = logits.float() / temperature
    if top_k is not None:
        least = logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]
        logits = logits.masked_fill(logits < least, -math.inf)
    return torch.multinomial(logits.softmax(-1), 1, generator=generator)
