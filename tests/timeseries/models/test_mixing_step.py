"""PatchTSMixer's step in training: what it holds, and under what else training does.

Its results and gradients stand beside transformers' in ``test_patchtsmixer.py``.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from patchtsmixer_cases import forecaster, published, under_our_names, window
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close
from transformers import PatchTSMixerForPrediction

from timeseries.models.patchtsmixer import PatchTSMixer

SIZES = {"lookback": 64, "horizon": 16, "channels": 3}
DROPOUT = {"dropout": 0.4, "head_dropout": 0.3}


def loss(model: nn.Module, past: Tensor, future: Tensor) -> Tensor:
    return F.mse_loss(model(past, past, future), future)


def gradients(model: nn.Module, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(model.parameters())))


def held(step: Callable[[], Tensor]) -> int:
    """Bytes that autograd holds for the backward pass of a step."""
    found: dict[int, Tensor] = {}  # by place in memory, alive to the end

    def keep(x: Tensor) -> Tensor:
        found[x.untyped_storage().data_ptr()] = x
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        step()
    return sum(x.untyped_storage().nbytes() for x in found.values())


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_holds_less_than_transformers(dropout: float) -> None:
    options = {"dim": 32, "stride": 8, "layers": 3, "dropout": dropout, "head_dropout": dropout}
    past, future = window(8, 320, 4), window(8, 16, 4)
    ours = forecaster(320, 16, 4, **options).train()
    theirs = published(
        PatchTSMixerForPrediction, 320, 16, 4, patch_length=8, expansion=2, **options
    )
    our_bytes = held(lambda: loss(ours, past, future))
    their_bytes = held(lambda: theirs.train()(past, future_values=future).loss)
    # Beside our bytes for what was dropped theirs are numbers, as PyTorch's are on a CPU.
    assert our_bytes < (0.6 if dropout else 0.75) * their_bytes


def test_compiles_whole() -> None:
    model = forecaster(**SIZES, **DROPOUT).train()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    past, future = window(4, 64, 3), window(4, 16, 3)
    results = []
    for kind in (model, compiled):
        torch.manual_seed(1)
        results.append(gradients(model, loss(kind, past, future)))
    assert_close(results[1], results[0])


@pytest.mark.parametrize("gated", [True, False])
def test_autocast_is_as_near_as_transformers(gated: bool) -> None:
    """Gradients under autocast, by their distance from those without."""
    options = {"patch_length": 8, "stride": 4, "dim": 12, "expansion": 2, "layers": 2}
    options |= {"gated_attention": gated, **DROPOUT}
    theirs = published(PatchTSMixerForPrediction, *SIZES.values(), **options).train()
    ours = forecaster(**SIZES, **options).train()
    ours.load_state_dict(under_our_names(theirs.state_dict(), ""))
    past, future = window(8, 64, 3), window(8, 16, 3)
    apart = {}
    for name, model in (("ours", ours), ("theirs", theirs)):
        pair = []
        for enabled in (True, False):
            torch.manual_seed(1)
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                if name == "ours":
                    value = loss(model, past, future)
                else:
                    value = model(past, future_values=future).loss
            pair.append(torch.cat([g.flatten() for g in gradients(model, value)]))
        assert pair[0].dtype == torch.float32
        apart[name] = ((pair[0] - pair[1]).norm() / pair[1].norm()).item()
    assert 0 < apart["ours"] < 1.5 * apart["theirs"]


def test_second_derivatives_are_refused_in_training_only() -> None:
    model = PatchTSMixer(**SIZES)
    past, future = window(2, 64, 3).requires_grad_(), window(2, 16, 3)
    with pytest.raises(RuntimeError, match=r"no second derivatives; call eval\(\)"):
        torch.autograd.grad(loss(model, past, future), past, create_graph=True)
    (first,) = torch.autograd.grad(loss(model.eval(), past, future), past, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), past)
    assert second.abs().max() > 0


def test_all_may_drop() -> None:
    model = PatchTSMixer(**SIZES, dropout=1.0, head_dropout=0.0)
    value = loss(model, window(2, 64, 3), window(2, 16, 3))
    assert value.isfinite()
    assert all(gradient.isfinite().all() for gradient in gradients(model, value))
