"""One LightningModule a question."""

from core.jobs.optim import Optimisation
from genomics.tasks.classification import SequenceClassification
from genomics.tasks.embeddings import Embeddings
from genomics.tasks.pretraining import Pretraining
from genomics.tasks.variant_effect import VariantHeadDifference, VariantLikelihood

__all__ = [
    "Embeddings",
    "Optimisation",
    "Pretraining",
    "SequenceClassification",
    "VariantHeadDifference",
    "VariantLikelihood",
]
