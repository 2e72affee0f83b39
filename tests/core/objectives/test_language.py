from __future__ import annotations

import math

import torch

from core.objectives import (
    IGNORE,
    Masking,
    bits_per_token,
    next_token_targets,
    token_loss,
    token_loss_sum,
)


def test_next_token_targets_shift_by_one() -> None:
    tokens = torch.tensor([[7, 8, 11, 9]])
    ignored = tokens == 11
    assert next_token_targets(tokens).tolist() == [[8, 11, 9, IGNORE]]
    assert next_token_targets(tokens, ignored).tolist() == [[8, IGNORE, 9, IGNORE]]


def test_masking_chooses_candidates_at_the_stated_rates() -> None:
    tokens = torch.randint(7, 11, (64, 4096))
    candidate = torch.rand(tokens.shape) < 0.9
    corrupted, targets = Masking(3, 7, 10)(tokens, candidate, torch.Generator().manual_seed(0))
    chosen = targets != IGNORE
    assert not chosen[~candidate].any()
    assert torch.equal(targets[chosen], tokens[chosen])
    assert torch.equal(corrupted[~chosen], tokens[~chosen])
    count = chosen.sum().item()
    assert abs(count / candidate.sum().item() - 0.15) < 0.005
    assert abs((corrupted[chosen] == 3).sum().item() / count - 0.8) < 0.01
    # a random base is the old one a quarter of the time
    changed = (corrupted[chosen] != tokens[chosen]) & (corrupted[chosen] != 3)
    assert abs(changed.sum().item() / count - 0.075) < 0.01


def test_loss_is_the_mean_negative_log_likelihood_by_hand() -> None:
    logits = torch.randn(2, 3, 5, dtype=torch.float64)
    targets = torch.tensor([[0, IGNORE, 4], [IGNORE, IGNORE, 2]])
    log_p = logits.float().log_softmax(-1)
    by_hand = -(log_p[0, 0, 0] + log_p[0, 2, 4] + log_p[1, 2, 2]) / 3
    torch.testing.assert_close(token_loss(logits, targets), by_hand)
    total, count = token_loss_sum(logits, targets)
    assert count == 3
    torch.testing.assert_close(total / 3, by_hand)


def test_no_targets_is_no_loss() -> None:
    assert token_loss(torch.randn(1, 2, 5), torch.full((1, 2), IGNORE)) == 0


def test_uniform_over_four_is_two_bits() -> None:
    assert math.isclose(bits_per_token(math.log(4)), 2)
