"""ConvClassifier: padding, reach, sizes."""

from __future__ import annotations

import pytest
import torch

from core.sequences import Sequences
from timeseries.models import ConvClassifier


def build(**options: object) -> ConvClassifier:
    torch.manual_seed(0)
    settings = {"dim": 6, "strides": (3, 2), "taps": 5, "channels": 2, "classes": 4, **options}
    return ConvClassifier(**settings).double().eval()  # type: ignore[arg-type]


def test_padded_equals_unpadded() -> None:
    model, x = build(), torch.randn(5, 31, 2, dtype=torch.float64)
    lengths = [31, 30, 13, 6, 1]
    sequences = Sequences.padded(lengths, 31)
    alone = torch.cat([model(x[i : i + 1, :n]) for i, n in enumerate(lengths)])
    x[~sequences.real] = torch.nan
    torch.testing.assert_close(model(x, sequences), alone)


def test_a_feature_reaches_as_far_as_said() -> None:
    model = ConvClassifier(channels=1, classes=2).double()
    x = torch.zeros(1, 4097, 1, dtype=torch.float64, requires_grad=True)
    features = []
    model.head.register_forward_pre_hook(lambda _, given: features.append(given[0]))
    model.norms[-1].register_forward_hook(lambda _, __, out: features.append(out))
    model(x)
    (grad,) = torch.autograd.grad(features[0][0, 8, 0], x)
    seen = grad[0, :, 0].nonzero()[:, 0]
    assert int(seen.max() - seen.min()) + 1 == 8 * 169 + 1
    assert int(seen.max() + seen.min()) == 2 * 8 * 8 * 4 * 4 * 2


@pytest.mark.parametrize(
    ("options", "said"), [({"taps": 4}, "taps is 4; it must be odd"), ({"classes": 0}, "classes")]
)
def test_bad_sizes_are_named(options: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        build(**options)
