"""What the genomics tasks share: the batch, the optimiser, strands and pooling."""

from __future__ import annotations

from typing import Any, Literal, Protocol, cast

import lightning as L
import torch
from torch import Tensor, nn

from core.jobs.errors import UsageError
from core.jobs.optim import Optimisation, adamw
from core.sequences import Sequences
from genomics.data.tokenizers import NucleotideTokenizer

Pooling = Literal["mean", "last", "max"]


class Encoder(Protocol):
    """A model of DNA: features (batch, length, dim) from ids (batch, length)."""

    def embed(
        self, tokens: Tensor, sequences: Sequences | None = None, prompt: Tensor | None = None
    ) -> Tensor: ...


def encoder_of(model: nn.Module) -> Encoder:
    """``model`` as an encoder; UsageError if it has no ``embed``."""
    if not callable(getattr(model, "embed", None)):
        raise UsageError(
            f"{type(model).__name__} gives no features a position; "
            "take a model with embed, such as genomics.models.HyenaDNA"
        )
    return cast(Encoder, model)


class DnaTask(L.LightningModule):
    """A question about DNA, with its optimiser."""

    def __init__(self, optimisation: Optimisation) -> None:
        super().__init__()
        self.optimisation = optimisation

    def configure_optimizers(self) -> Any:
        steps = int(self.trainer.estimated_stepping_batches)
        return adamw(self, steps=steps, **vars(self.optimisation))


def width_of(model: nn.Module) -> int:
    """Features a position of a DNA model."""
    backbone = model.get_submodule("backbone") if hasattr(model, "backbone") else model
    return cast(int, backbone.dim)


def opposite_strand(tokens: Tensor, sequences: Sequences | None = None) -> Tensor:
    """Ids (batch, length) of the reverse complement; rows padded on the right stay so."""
    table = torch.as_tensor(NucleotideTokenizer().complement, device=tokens.device)
    complement = table[tokens]
    if sequences is None:
        return complement.flip(1)
    length = sequences.real.sum(1, keepdim=True)
    index = length - 1 - torch.arange(tokens.shape[1], device=tokens.device)
    turned = complement.gather(1, index.clamp(min=0))
    return torch.where(sequences.real, turned, tokens)


def pool(features: Tensor, how: Pooling, sequences: Sequences | None = None) -> Tensor:
    """(batch, length, dim) -> (batch, dim) over the real positions."""
    if sequences is None:
        if how == "mean":
            return features.mean(1)
        return features[:, -1] if how == "last" else features.amax(1)
    real = sequences.real[..., None]
    if how == "mean":
        return sequences.zero_padding(features).sum(1) / real.sum(1).clamp(min=1)
    if how == "max":
        return features.masked_fill(~real, -torch.inf).amax(1)
    index = torch.arange(features.shape[1], device=features.device)
    last = torch.where(sequences.real, index, 0).amax(1)
    return features[torch.arange(len(features), device=features.device), last]
