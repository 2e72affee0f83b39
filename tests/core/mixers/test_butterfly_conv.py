"""Learned transforms: Fourier's at first (NumPy, torch's convolution), others after training."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from scipy.linalg import hadamard
from torch import Tensor
from torch.nn import functional as F

from core.mixers import ButterflyConv
from core.mixers.butterfly_conv import ButterflyTransform
from core.sequences import Sequences

DIM = 3


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    """Coefficients are made in the default dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def build(trained: bool = False, **options: Any) -> ButterflyConv:
    """``trained`` moves every coefficient away from Fourier's."""
    torch.manual_seed(0)
    mixer = ButterflyConv(DIM, **options)
    if trained:
        with torch.no_grad():
            for i, parameter in enumerate(mixer.parameters()):
                parameter.add_(0.3 * noise(*parameter.shape, seed=i))
    return mixer


@pytest.mark.parametrize(("n1", "n2"), [(1, 1), (4, 4), (3, 5), (8, 2)])
def test_transform_begins_as_numpys_of_a_shifted_spectrum(n1: int, n2: int) -> None:
    n = n1 * n2
    x, transform = noise(2, DIM, n), ButterflyTransform(n1, n2)
    spectrum = np.fft.fft(x.numpy() * np.exp(-2j * np.pi * np.arange(n) / 4 / n))
    X = transform(x)
    # k = k1 + n1 k2
    found = X.detach().numpy().transpose(0, 1, 3, 2).reshape(2, DIM, n)
    np.testing.assert_allclose(found, spectrum, atol=1e-12)
    back = transform.inverse(X)
    torch.testing.assert_close(back.real, x, atol=1e-13, rtol=0)
    torch.testing.assert_close(back.imag, torch.zeros_like(x), atol=1e-13, rtol=0)


@pytest.mark.parametrize("max_length", [1, 2, 16, 23])
def test_layer_begins_as_the_convolution(max_length: int) -> None:
    mixer = build(max_length=max_length, squash=0.002, smooth=3)
    for length in sorted({1, (max_length + 1) // 2, max_length}):
        x = noise(2, length, DIM)
        forward, backward = mixer.filter(max_length)[..., :length]
        lags = torch.cat([forward.flip(-1), torch.zeros(DIM, length - 1)], -1)
        lags[:, length - 1 :] += backward
        lags[:, length - 1] += mixer.D
        around = F.pad(x.transpose(1, 2), (length - 1, length - 1))
        expected = F.conv1d(around, lags[:, None], groups=DIM).transpose(1, 2)
        torch.testing.assert_close(mixer.convolve(x), expected, atol=1e-13, rtol=1e-10)


def test_gradients_reach_every_coefficient() -> None:
    mixer = build(max_length=12, squash=0.0)
    mixer(noise(4, 12, DIM)).square().sum().backward()
    coefficients = [(k, p) for k, p in mixer.named_parameters() if "of_" in k or "back" in k]
    assert len(coefficients) == 9
    for name, parameter in coefficients:
        assert parameter.grad is not None
        assert (parameter.grad.abs().sum(-1) > 0).all(), name


@pytest.mark.parametrize(
    "rows", [[[-6, 10], [16]], [[5, 7, -4], [-6, 10]]], ids=["left padding", "packed"]
)
def test_a_document_stands_alone_wherever_its_row_has_it(rows: list[list[int]]) -> None:
    """The contract's tests meet untrained transforms, which do not know places.

    ``rows`` are lengths of documents, negative ones of padding.
    """
    mixer = build(trained=True, max_length=16)
    x = noise(2, 16, DIM)
    assert not torch.allclose(mixer(x.roll(3, 1)), mixer(x).roll(3, 1), atol=1e-3)
    document = torch.tensor(
        [[i if n > 0 else -1 for i, n in enumerate(r) for _ in range(abs(n))] for r in rows]
    )
    y = mixer(torch.where(document[..., None] >= 0, x, torch.nan), sequences=Sequences(document))
    for row, parts in enumerate(rows):
        start = 0
        for part in parts:
            inside = slice(start, start + abs(part))
            alone = mixer(x[row : row + 1, inside]) if part > 0 else torch.zeros(1, -part, DIM)
            torch.testing.assert_close(y[row : row + 1, inside], alone)
            start += abs(part)


def test_only_padding_is_no_error() -> None:
    nothing = Sequences(torch.full((2, 7), -1))
    y = build(trained=True, max_length=16)(torch.full((2, 7, DIM), torch.nan), sequences=nothing)
    assert (y == 0).all()


def best_convolution(target: Tensor) -> float:
    """The least mean square distance from a matrix to one with constant diagonals."""
    n = len(target)
    means = [target.diagonal(d).mean() for d in range(1 - n, n)]
    index = torch.arange(n)
    return (target - torch.stack(means)[index - index[:, None] + n - 1]).square().mean().item()


@pytest.mark.parametrize("learned", [True, False])
def test_learned_transforms_reach_what_no_convolution_can(learned: bool) -> None:
    """The target W diag(h) W / N, a product in the Walsh spectrum instead of Fourier's.

    W_16 = W_4 (x) W_4 has the form of the transform, so that the learned one can express it;
    the distance of the best convolution is known in closed form.
    """
    n = 16
    W = torch.from_numpy(hadamard(n)).double()
    target = W @ torch.diag(noise(n, seed=5)) @ W / n
    floor = best_convolution(target)
    torch.manual_seed(0)
    mixer = ButterflyConv(1, max_length=n, squash=0.0)
    for part in (mixer.of_input, mixer.of_filter, mixer.back):
        part.requires_grad_(learned)
    optimizer = torch.optim.Adam([p for p in mixer.parameters() if p.requires_grad], lr=0.02)
    for _ in range(300):
        loss = (mixer.convolve(torch.eye(n)[..., None])[..., 0] - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    if learned:
        assert loss.item() < 0.2 * floor
    else:
        assert floor <= loss.item() < 1.1 * floor


def test_causality_is_refused() -> None:
    with pytest.raises(ValueError, match="ButterflyConv does not compute causal_self"):
        ButterflyConv(DIM, causal=True)


def test_longer_than_the_transforms_is_refused() -> None:
    with pytest.raises(ValueError, match="ButterflyConv: 17 tokens, but its filters have max_len"):
        build(max_length=16)(noise(1, 17, DIM))
