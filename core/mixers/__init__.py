"""Token mixers: (batch, length, dim) -> (batch, length, dim)."""

from core.mixers.aaren import Aaren
from core.mixers.attention import Attention
from core.mixers.base import PATTERNS, Mixer, UnsupportedPattern
from core.mixers.butterfly_conv import ButterflyConv
from core.mixers.hyena import Hyena
from core.mixers.lmu import LMU
from core.mixers.long_conv import LongConv
from core.mixers.mamba2 import Mamba2
from core.mixers.relative_attention import RelativeAttention
from core.mixers.s4 import S4
from core.mixers.s4d import S4D

MIXERS: tuple[type[Mixer], ...] = (
    Aaren,
    Attention,
    ButterflyConv,
    Hyena,
    LMU,
    LongConv,
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
    "ButterflyConv",
    "Hyena",
    "LongConv",
    "Mamba2",
    "Mixer",
    "RelativeAttention",
    "UnsupportedPattern",
]
