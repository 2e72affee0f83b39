"""Training objectives for any backbone."""

from core.objectives.language import (
    IGNORE,
    Masking,
    bits_per_token,
    next_token_targets,
    token_loss,
    token_loss_sum,
)

__all__ = [
    "IGNORE",
    "Masking",
    "bits_per_token",
    "next_token_targets",
    "token_loss",
    "token_loss_sum",
]
