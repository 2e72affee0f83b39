"""Precisions that data in its own units does not survive."""

from __future__ import annotations

from typing import Any

from core.jobs.errors import UsageError


def check_precision(trainer: Any) -> None:
    """Raises UsageError for a trainer that rounds whole batches to half precision: the scale of the
    series, what a forecast is compared with and the times of events would be rounded too."""
    precision = getattr(trainer, "precision", None)
    if precision in ("16-true", "bf16-true"):
        mixed = precision.replace("true", "mixed")
        raise UsageError(
            f"trainer.precision {precision} would round the data to 3 digits or fewer; "
            f"give {mixed}, which rounds within the model alone"
        )
