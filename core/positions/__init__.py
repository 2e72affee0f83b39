"""Position embeddings."""

from core.positions.rotary import Rotary

__all__ = ["Rotary"]
