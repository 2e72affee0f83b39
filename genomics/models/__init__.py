"""Named architectures, assembled from core."""

from genomics.models.cnn import ConvEncoder
from genomics.models.hyenadna import HyenaDNA

__all__ = ["ConvEncoder", "HyenaDNA"]
