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
from torch.nn.utils import prune
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint
from transformers import PatchTSMixerForPrediction

from core.backbone import MLP
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


def test_dropout_follows_its_layers() -> None:
    """Layers in eval drop nothing, and a rate that is changed counts."""
    still, model = forecaster(**SIZES, dropout=0.0, head_dropout=0.0), forecaster(**SIZES)
    model.load_state_dict(still.state_dict())
    past, future = window(4, 64, 3), window(4, 16, 3)
    wanted = gradients(still.train(), loss(still, past, future))
    layers = [m for m in model.train().modules() if isinstance(m, nn.Dropout)]
    for layer in layers:
        layer.eval()
    assert_close(gradients(model, loss(model, past, future)), wanted)
    model.train()
    for layer in layers:
        layer.p = 0.0
    assert_close(gradients(model, loss(model, past, future)), wanted)
    for layer in layers[:-1]:  # all but the head's
        layer.p = 1.0
    assert loss(model, past, future).isfinite()


class Nothing(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 0


def hooked(mlp: MLP) -> None:
    mlp.fc2.register_forward_hook(lambda layer, inputs, y: y * 0)


def replaced(mlp: MLP) -> None:
    mlp.fc2 = Nothing(mlp.fc2.in_features, mlp.fc2.out_features)


def pruned(mlp: MLP) -> None:
    prune.l1_unstructured(mlp.fc2, "weight", amount=1.0)
    prune.l1_unstructured(mlp.fc2, "bias", amount=1.0)


@pytest.mark.parametrize("change", [hooked, replaced, pruned])
def test_a_layer_that_was_changed_counts(change: Callable[[MLP], None]) -> None:
    """Each way brings to nothing what weights of 0 would, in a second step too."""
    options = {"dropout": 0.0, "head_dropout": 0.0}
    model, zeroed = forecaster(**SIZES, **options).train(), forecaster(**SIZES, **options).train()
    zeroed.load_state_dict(model.state_dict())
    for mixer in zeroed.encoder.mixers:
        nn.init.zeros_(mixer.mlp.fc2.weight)
        nn.init.zeros_(mixer.mlp.fc2.bias)
    for mixer in model.encoder.mixers:
        change(mixer.mlp)
    past, future = window(4, 64, 3), window(4, 16, 3)
    for _ in range(2):
        value = loss(model, past, future)
        assert_close(value, loss(zeroed, past, future))
        value.backward()


def test_steps_in_one_node_or_by_its_layers() -> None:
    """Or the tests around would compare one path with itself."""
    for options in ({}, {"gated_attention": False}, {"norm": "batch"}, {"attention_heads": 3}):
        mixer = forecaster(**SIZES, **DROPOUT, **options).train().encoder.mixers[0]
        y = mixer(torch.randn(2, 3, mixer.mlp.fc1.in_features, mixer.norm.norm.weight.numel()))
        one = type(y.grad_fn).__name__ == "_MixingStepBackward"
        assert one == (not options.keys() & {"norm", "attention_heads"})
    mixer = forecaster(**SIZES, **DROPOUT).train().encoder.mixers[1]
    mixer.norm = nn.Identity()
    assert mixer(torch.randn(2, 3, 15, mixer.mlp.fc1.in_features)).isfinite().all()


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_and_frozen_weights(reentrant: bool) -> None:
    model = forecaster(**SIZES, **DROPOUT).train()
    past, future = window(4, 64, 3).requires_grad_(), window(4, 16, 3)
    torch.manual_seed(1)
    wanted = torch.autograd.grad(loss(model, past, future), [past, *model.parameters()])
    kept = {f"encoder.mixers.{layer}" for layer in ("1.mlp.fc1.weight", "2.norm.norm.bias")}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in kept)
    torch.manual_seed(1)
    forecast = checkpoint(model, past, past, future, use_reentrant=reentrant)
    F.mse_loss(forecast, future).backward()
    assert_close(past.grad, wanted[0])
    for (name, parameter), gradient in zip(model.named_parameters(), wanted[1:], strict=True):
        if name in kept:
            assert_close(parameter.grad, gradient)
        else:
            assert parameter.grad is None
