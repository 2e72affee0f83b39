from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from core.jobs.errors import UsageError
from core.sequences import Sequences
from genomics.data.batches import Example, collate_examples
from genomics.data.tokenizers import NucleotideTokenizer
from genomics.models import ConvEncoder, HyenaDNA
from genomics.tasks import Embeddings, Pretraining, SequenceClassification
from genomics.tasks.base import opposite_strand, pool
from genomics.tasks.pretraining import sequence_log_likelihood

TOKENIZER = NucleotideTokenizer()
TEXTS = ["ACGTTGCAAC", "GGG", "TTAGCATNACCA", "A"]


def batch(texts: list[str] = TEXTS) -> dict[str, Any]:
    return collate_examples([Example(t, TOKENIZER.encode(t), i % 2) for i, t in enumerate(texts)])


def hyena(causal: bool = False) -> HyenaDNA:
    torch.manual_seed(0)
    return HyenaDNA(16, 1, 40, causal=causal)


def test_opposite_strand_turns_each_row_within_its_length() -> None:
    given = batch()
    turned = opposite_strand(given["tokens"], given["sequences"])
    expected = batch([t[::-1].translate(str.maketrans("ACGT", "TGCA")) for t in TEXTS])
    assert torch.equal(turned, expected["tokens"])


@pytest.mark.parametrize("how", ["mean", "last", "max"])
def test_pooling_ignores_padding(how: Any) -> None:
    features = torch.randn(3, 5, 2)
    sequences = Sequences.padded([5, 2, 1], 5)
    pooled = pool(features.masked_fill(~sequences.real[..., None], float("nan")), how, sequences)
    for row, length in enumerate([5, 2, 1]):
        torch.testing.assert_close(
            pooled[row : row + 1], pool(features[row : row + 1, :length], how)
        )


@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize("pooling", ["mean", "last", "max"])
def test_predictions_do_not_depend_on_the_batch(pooling: Any, average: bool) -> None:
    task = SequenceClassification(hyena(), pooling=pooling, average_strands=average).eval()
    together = task.predict_step(batch())["probability_1"]
    for row, text in enumerate(TEXTS):
        alone = task.predict_step(batch([text]))["probability_1"]
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-5, atol=1e-6)


def test_averaged_strands_make_the_prediction_blind_to_the_strand() -> None:
    task = SequenceClassification(hyena(), average_strands=True).eval()
    turned = [t[::-1].translate(str.maketrans("ACGT", "TGCA")) for t in TEXTS]
    one, other = (task.predict_step(batch(t))["probability_1"] for t in (TEXTS, turned))
    torch.testing.assert_close(one, other)
    task.average_strands = False
    assert not torch.allclose(
        *(task.predict_step(batch(t))["probability_1"] for t in (TEXTS, turned))
    )


def test_soft_prompt_trains_prompt_and_head_alone() -> None:
    task = SequenceClassification(hyena(causal=True), soft_prompt=3, pooling="last")
    trained = {name for name, p in task.named_parameters() if p.requires_grad}
    assert trained == {"prompt", "head.1.weight", "head.1.bias"}
    loss = task(batch()).square().sum()
    loss.backward()
    assert task.prompt is not None
    assert task.prompt.grad is not None
    assert task.prompt.grad.abs().max() > 0
    with pytest.raises(ValueError, match="no soft prompt"):
        SequenceClassification(ConvEncoder(8), soft_prompt=3)(batch())


def test_a_model_without_features_is_refused() -> None:
    class Plain(nn.Linear):
        dim = 2

    with pytest.raises(UsageError, match="gives no features a position"):
        SequenceClassification(Plain(2, 2))(batch())


@torch.no_grad()
def test_pretraining_counts_bases_and_not_n_or_padding() -> None:
    task = Pretraining(hyena(causal=True)).eval()
    columns = task.predict_step(batch())
    # every base but the first of each record, without the N
    assert columns["bases"].tolist() == [9, 2, 10, 0]
    logits, targets = task._loss_parts(batch())
    by_hand = 0.0
    for t, target in enumerate(targets[0].tolist()):
        if target >= 0:
            by_hand += float(logits[0, t, 7:11].double().log_softmax(-1)[target - 7])
    assert float(columns["log_likelihood"][0]) == pytest.approx(by_hand)


def test_uniform_model_has_two_bits_a_base() -> None:
    likelihood, count = sequence_log_likelihood(
        torch.zeros(1, 4, 16), torch.tensor([[7, 8, 9, 10]])
    )
    assert float(-likelihood / count / math.log(2)) == pytest.approx(2)


def test_masked_training_hides_bases_alone() -> None:
    task = Pretraining(hyena(), objective="masked", mask_rate=0.5)
    _, targets = task._loss_parts(batch(["ACGTN" * 8] * 4))
    assert set(targets.unique().tolist()) == {-100, 7, 8, 9, 10}


@pytest.mark.parametrize(("objective", "causal"), [("next", False), ("masked", True)])
def test_objective_and_direction_must_agree(objective: Any, causal: bool) -> None:
    with pytest.raises(UsageError, match=r"change model\.causal or the objective"):
        Pretraining(hyena(causal), objective=objective)


@torch.no_grad()
def test_embeddings_a_position_and_pooled() -> None:
    model = hyena()
    each = Embeddings(model, pooling="position").eval().predict_step(batch())["embedding"]
    assert [len(rows) for rows in each] == [len(t) for t in TEXTS]
    mean = Embeddings(model, pooling="mean").eval().predict_step(batch())["embedding"]
    for rows, pooled in zip(each, mean, strict=True):
        np.testing.assert_allclose(np.mean(rows, 0), pooled.numpy(), atol=1e-6)
