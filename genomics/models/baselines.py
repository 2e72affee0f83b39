"""What a DNA model has to beat: Markov chains and k-mer logistic regression."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genomics.data.tokenizers import FIRST_BASE, KmerTokenizer

_BASES = 4


def markov_bits_per_base(
    train: Sequence[NDArray], test: Sequence[NDArray], order: int, pseudocount: float = 1.0
) -> float:
    """Bits per base of a Markov chain of ``order`` on ``test``, counted on ``train``.

    Both are lists of token id arrays; positions whose context or self is no A, C, G or T count
    nowhere. Each of the 4^order contexts starts with ``pseudocount`` of each base.
    """
    counts = np.full((_BASES**order, _BASES), pseudocount)
    for ids in train:
        context, following = _contexts(ids, order)
        np.add.at(counts, (context, following), 1)
    log_p = np.log2(counts / counts.sum(1, keepdims=True))
    total, number = 0.0, 0
    for ids in test:
        context, following = _contexts(ids, order)
        total -= float(log_p[context, following].sum())
        number += len(context)
    return total / max(number, 1)


def _contexts(ids: NDArray, order: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    base = ids.astype(np.int64) - FIRST_BASE
    known = (base >= 0) & (base < _BASES)
    if len(base) <= order:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    context = np.zeros(len(base) - order, np.int64)
    usable = known[order:].copy()
    for k in range(order):
        context = context * _BASES + base[k : len(base) - order + k]
        usable &= known[k : len(base) - order + k]
    return context[usable], base[order:][usable]


def kmer_frequencies(sequences: Sequence[str], k: int) -> NDArray[np.float32]:
    """(sequences, 4^k) share of each k-mer; those with N are left out."""
    tokenizer = KmerTokenizer(k=k)
    first = tokenizer.vocab_size - _BASES**k
    table = np.zeros((len(sequences), _BASES**k), np.float32)
    for row, sequence in enumerate(sequences):
        ids = tokenizer.encode(sequence).astype(np.int64) - first
        ids = ids[ids >= 0]
        table[row] = np.bincount(ids, minlength=_BASES**k) / max(len(ids), 1)
    return table


def fit_kmer_logistic_regression(sequences: Sequence[str], labels: Sequence[int], k: int) -> Any:
    """scikit-learn pipeline: standardised k-mer shares into an L2 logistic regression.

    C is the best of 1e-4 to 0.1 on the validation arm of the promoters.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(C=3e-4, max_iter=500))
    model.fit(kmer_frequencies(sequences, k), labels)
    return model
