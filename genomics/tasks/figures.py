"""What the tasks draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torchmetrics.functional.classification import binary_roc

_INK = "#2b6cb0"
_PALE = "#a0aec0"


def classification_figure(probabilities: NDArray, labels: NDArray) -> Figure:
    """ROC, calibration and confusion of (records, classes) probabilities against labels."""
    import torch

    figure = Figure(figsize=(12, 3.8), layout="constrained")
    roc, calibration, confusion = figure.subplots(1, 3)
    classes = probabilities.shape[1]
    for k in range(1 if classes == 2 else 0, classes):
        truth = torch.as_tensor((labels == k).astype(np.int64))
        if 0 < int(truth.sum()) < len(truth):
            false, true, _ = binary_roc(torch.as_tensor(probabilities[:, k]), truth)
            roc.plot(false, true, label=f"class {k}")
    roc.plot([0, 1], [0, 1], color=_PALE, linestyle="--")
    roc.set(xlabel="false positive rate", ylabel="true positive rate", title="ROC")
    roc.legend(loc="lower right")

    confidence, correct = probabilities.max(1), probabilities.argmax(1) == labels
    edges = np.linspace(1 / classes, 1, 11)
    which = np.clip(np.digitize(confidence, edges) - 1, 0, 9)
    counts = np.bincount(which, minlength=10)
    used = counts > 0
    mean = np.bincount(which, confidence, 10)[used] / counts[used]
    share = np.bincount(which, correct, 10)[used] / counts[used]
    calibration.plot([1 / classes, 1], [1 / classes, 1], color=_PALE, linestyle="--")
    calibration.plot(mean, share, marker="o", color=_INK)
    calibration.set(xlabel="confidence", ylabel="share correct", title="Calibration")

    table = np.zeros((classes, classes), int)
    np.add.at(table, (labels, probabilities.argmax(1)), 1)
    confusion.imshow(table, cmap="Blues")
    for row in range(classes):
        for column in range(classes):
            dark = table[row, column] > table.max() / 2
            confusion.text(
                column,
                row,
                table[row, column],
                ha="center",
                va="center",
                color="white" if dark else "black",
            )
    confusion.set(
        xlabel="predicted",
        ylabel="true",
        title=f"Confusion of {len(labels):,} records",
        xticks=range(classes),
        yticks=range(classes),
    )
    return figure


def context_figure(nats: NDArray, counts: NDArray) -> Figure:
    """Bits per base by position in the window, in bins that grow by a factor of 1.3."""
    powers = 1.3 ** np.arange(0, np.log(len(nats) + 1) / np.log(1.3) + 1)
    edges = sorted({0, len(nats), *(round(p) for p in powers if p < len(nats))})
    starts = np.array(edges[:-1])
    sums, number = np.add.reduceat(nats, starts), np.add.reduceat(counts, starts)
    used = number > 0
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    bits = sums[used] / number[used] / np.log(2)
    axes.plot(starts[used] + 1, bits, marker="o", markersize=3, color=_INK)
    axes.axhline(2, color=_PALE, linestyle="--", label="uniform over A, C, G, T")
    mean = nats.sum() / max(counts.sum(), 1) / np.log(2)
    axes.axhline(mean, color=_INK, linestyle=":", label=f"mean {mean:.3f}")
    axes.set(xscale="log", xlabel="position in the window (bases)", ylabel="bits per base")
    axes.legend()
    return figure


def embedding_figure(batches: Sequence[NDArray]) -> Figure:
    """First two principal components of embeddings (records, dim)."""
    vectors = np.concatenate(list(batches)).astype(np.float64)
    centred = vectors - vectors.mean(0)
    _, values, axes_ = np.linalg.svd(centred, full_matrices=False)
    share = values**2 / max((values**2).sum(), 1e-12)
    figure = Figure(figsize=(5.5, 5), layout="constrained")
    axes = figure.subplots()
    projected = centred @ axes_[:2].T
    if projected.shape[1] < 2:
        projected = np.pad(projected, ((0, 0), (0, 2 - projected.shape[1])))
        share = np.pad(share, (0, 2))
    axes.scatter(projected[:, 0], projected[:, 1], s=6, alpha=0.5, color=_INK, linewidths=0)
    axes.set(
        xlabel=f"first component ({share[0]:.0%} of variance)",
        ylabel=f"second component ({share[1]:.0%})",
        title=f"{len(vectors):,} embeddings",
    )
    return figure


def variant_figure(scores: Mapping[str, Sequence[float]]) -> Figure:
    """Distribution of scores by kind of variant."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    kinds = sorted(scores, key=lambda kind: -len(scores[kind]))
    everything = np.concatenate([np.asarray(scores[kind]) for kind in kinds])
    low, high = np.quantile(everything, [0.005, 0.995])
    bins = np.linspace(low, high if high > low else low + 1e-6, 60)
    for kind in kinds:
        values = np.clip(np.asarray(scores[kind]), bins[0], bins[-1])
        axes.hist(
            values,
            bins=bins.tolist(),
            histtype="step",
            density=True,
            label=f"{kind} ({len(values):,}), median {np.median(values):+.3f}",
        )
    axes.axvline(0, color=_PALE, linestyle="--")
    axes.set(xlabel="score of ALT against REF", ylabel="density")
    axes.legend()
    return figure
