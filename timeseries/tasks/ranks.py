"""What several processes have seen, each a part of the data."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def of_all_ranks(rows: Tensor) -> Tensor:
    """The ``rows`` (rows, ...) of every process, on the CPU, in the same order on each. They need
    not be as many."""
    rows = rows.cpu()
    if not (dist.is_available() and dist.is_initialized()):
        return rows
    parts: list[Tensor | None] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, rows)
    return torch.cat([part for part in parts if part is not None])
