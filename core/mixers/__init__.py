"""Token mixers: (batch, length, dim) -> (batch, length, dim)."""

from core.mixers.aaren import Aaren
from core.mixers.attention import Attention
from core.mixers.base import PATTERNS, Mixer, UnsupportedPattern
from core.mixers.hyena import Hyena
from core.mixers.lmu import LMU
from core.mixers.mamba2 import Mamba2
from core.mixers.relative_attention import RelativeAttention
from core.mixers.s4 import S4
from core.mixers.s4d import S4D

MIXERS: tuple[type[Mixer], ...] = (
    Aaren,
    Attention,
    Hyena,
    LMU,
    Mamba2,
    RelativeAttention,
    S4,
    S4D,
)

__all__ = [
    "LMU",
    "MIXERS",
    "PATTERNS",
    "S4",
    "S4D",
    "Aaren",
    "Attention",
    "Hyena",
    "Mamba2",
    "Mixer",
    "RelativeAttention",
    "UnsupportedPattern",
]
