"""From token ids of one record to a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.sequences import Sequences
from genomics.data.tokenizers import PAD


@dataclass(frozen=True)
class Example:
    """One record: ids (length,) and, where known, its class and what its prediction's row repeats
    of it, by column."""

    id: str
    tokens: NDArray[np.integer]
    label: int | None = None
    columns: Mapping[str, Any] | None = None


def pad_tokens(rows: Sequence[NDArray[np.integer]]) -> tuple[Tensor, Sequences | None]:
    """Ids (batch, longest), padded on the right, and what is real; None if everything is."""
    lengths = [len(row) for row in rows]
    longest = max(lengths)
    tokens = np.full((len(rows), longest), PAD, np.int64)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = row
    if min(lengths) == longest:
        return torch.from_numpy(tokens), None
    return torch.from_numpy(tokens), Sequences.padded(lengths, longest)


def collate_examples(examples: Sequence[Example]) -> dict[str, Any]:
    """``id``, ``tokens`` (batch, longest), ``sequences``, ``columns`` to carry into predictions,
    and ``label`` where all have one."""
    tokens, sequences = pad_tokens([e.tokens for e in examples])
    batch: dict[str, Any] = {
        "id": [e.id for e in examples],
        "tokens": tokens,
        "sequences": sequences,
        "columns": {
            name: [(e.columns or {})[name] for e in examples] for name in examples[0].columns or {}
        },
    }
    labels = [e.label for e in examples if e.label is not None]
    if len(labels) == len(examples):
        batch["label"] = torch.tensor(labels)
    return batch
