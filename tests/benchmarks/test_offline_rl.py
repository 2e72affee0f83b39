"""Offline reinforcement learning: what a model may see, and that evaluation is what was trained."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import DecisionTransformerConfig, DecisionTransformerModel

from benchmarks.timeseries import offline_rl, offline_rl_data
from benchmarks.timeseries.offline_rl import DecisionModel, Offline
from benchmarks.timeseries.offline_rl_data import Episode
from core.backbone import MLP, Backbone
from core.mixers import Attention

STATES, ACTIONS, LENGTH = 3, 2, 7


def model(name: str) -> DecisionModel:
    torch.manual_seed(0)
    return offline_rl.build(name, STATES, ACTIONS, LENGTH).double().eval()


def inputs(batch: int = 2, length: int = LENGTH) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    returns, states = torch.randn(batch, length), torch.randn(batch, length, STATES)
    actions = torch.randn(batch, length, ACTIONS)
    return returns.double(), states.double(), actions.double()


def test_returns_to_go_are_sums_of_what_follows() -> None:
    rewards = np.random.default_rng(0).normal(size=9)
    expected = [sum(rewards[later] for later in range(step, 9)) for step in range(9)]
    np.testing.assert_allclose(offline_rl.returns_to_go(rewards), expected, rtol=1e-12)


def test_model_is_the_published_one() -> None:
    """transformers' port of the published model, from its weights, with GPT-2's positions zero."""
    dim, layers = 16, 2
    config = DecisionTransformerConfig(
        state_dim=STATES,
        act_dim=ACTIONS,
        hidden_size=dim,
        max_ep_len=LENGTH,
        n_layer=layers,
        n_head=4,
        n_inner=4 * dim,
        activation_function="gelu_new",
    )
    torch.manual_seed(0)
    published = DecisionTransformerModel(config).double().eval()
    for parameter in published.parameters():
        nn.init.normal_(parameter, std=0.3)
    nn.init.zeros_(published.encoder.wpe.weight)
    blocks = {
        "mixer": lambda dim: Attention(dim, heads=4, rotary_base=None, bias=True),
        "mlp": MLP,
    }
    backbone = Backbone(dim, blocks, ["mixer mlp"] * layers)
    ours = DecisionModel(backbone, STATES, ACTIONS, LENGTH).double().eval()
    ours.load_state_dict(from_published(published, layers))
    returns, states, actions = inputs()
    steps = torch.arange(LENGTH).expand(2, -1)
    with torch.no_grad():
        expected = published(
            states=states,
            actions=actions,
            returns_to_go=returns[..., None],
            timesteps=steps,
            attention_mask=torch.ones(2, LENGTH),
        )
        torch.testing.assert_close(ours(returns, states, actions), expected.action_preds)


def from_published(published: Any, layers: int) -> dict[str, Tensor]:
    weights = dict(published.named_parameters())
    names = {
        "embed_return": "embed_return",
        "embed_state": "embed_state",
        "embed_action": "embed_action",
        "norm": "embed_ln",
        "backbone.norm": "encoder.ln_f",
        "head": "predict_action.0",
    }
    for layer in range(layers):
        mixer, mlp = f"backbone.blocks.{2 * layer}", f"backbone.blocks.{2 * layer + 1}"
        theirs = f"encoder.h.{layer}"
        names |= {f"{mixer}.norm": f"{theirs}.ln_1", f"{mlp}.norm": f"{theirs}.ln_2"}
        names[f"{mixer}.layer.o_proj"] = f"{theirs}.attn.c_proj"
        names[f"{mlp}.layer.fc1"] = f"{theirs}.mlp.c_fc"
        names[f"{mlp}.layer.fc2"] = f"{theirs}.mlp.c_proj"
    found = {
        f"{ours}.{part}": weights[f"{theirs}.{part}"].t()
        if ".c_" in theirs
        else weights[f"{theirs}.{part}"]
        for ours, theirs in names.items()
        for part in ("weight", "bias")
    }
    for layer in range(layers):
        for part in ("weight", "bias"):
            joined = weights[f"encoder.h.{layer}.attn.c_attn.{part}"]
            for name, piece in zip("qkv", joined.chunk(3, dim=-1), strict=True):
                found[f"backbone.blocks.{2 * layer}.layer.{name}_proj.{part}"] = piece.t()
    return found | {"embed_step.weight": weights["embed_timestep.weight"]}


@pytest.mark.parametrize("name", offline_rl.MODELS)
def test_an_action_depends_on_what_came_before_it_alone(name: str) -> None:
    given = tuple(x.requires_grad_() for x in inputs(batch=1))
    predicted = model(name)(*given)
    for step in range(LENGTH):
        gradients = torch.autograd.grad(predicted[0, step].sum(), given, retain_graph=True)
        returns, states, actions = (g[0].abs().reshape(LENGTH, -1).sum(1) > 0 for g in gradients)
        at = torch.arange(LENGTH)
        mixes = name != "cloning"
        assert returns.tolist() == ((at <= step) & mixes).tolist()
        assert states.tolist() == ((at <= step) if mixes else (at == step)).tolist()
        assert actions.tolist() == ((at < step) & mixes).tolist()


def test_models_differ_by_a_query_a_layer() -> None:
    sizes = [sum(p.numel() for p in model(name).parameters()) for name in offline_rl.MIXERS]
    assert sizes[0] - sizes[1] == offline_rl.LAYERS * offline_rl.DIM


class Scripted:
    """States and rewards told beforehand; keeps the actions it is given."""

    def __init__(self, states: np.ndarray, rewards: np.ndarray) -> None:
        self.states, self.rewards = states, rewards
        self.actions: list[np.ndarray] = []

    def reset(self, seed: int) -> tuple[np.ndarray, dict[str, Any]]:
        self.actions = []
        return self.states[0], {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.actions.append(action)
        step = len(self.actions)
        return self.states[step], self.rewards[step - 1], step == len(self.rewards), False, {}


def scripted(lengths: tuple[int, ...]) -> list[Scripted]:
    rng = np.random.default_rng(2)
    return [Scripted(rng.normal(size=(n + 1, STATES)), rng.normal(size=n)) for n in lengths]


def offline(lengths: tuple[int, ...] = (7, 4, 5), seen: int | None = None) -> Offline:
    rng = np.random.default_rng(3)
    episodes = [
        Episode(
            rng.normal(2, 3, size=(n, STATES)), rng.normal(size=(n, ACTIONS)), rng.normal(size=n)
        )
        for n in lengths
    ]
    return Offline(episodes, seen)


@pytest.mark.parametrize("name", offline_rl.MODELS)
def test_evaluation_is_the_forward_pass_over_what_happened(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(offline_rl_data, "STEPS", LENGTH)
    lengths, target = (LENGTH, 3, 5), 4.0
    envs, data, policy = scripted(lengths), offline(), model(name).float()
    found = offline_rl.evaluate(policy, data, envs, target)  # type: ignore[arg-type]
    assert found.value == pytest.approx(np.mean([env.rewards.sum() for env in envs]))
    for env, length in zip(envs, lengths, strict=True):
        taken = np.stack(env.actions)
        assert len(taken) == length
        asked = [(target - env.rewards[:step].sum()) / data.unit for step in range(length)]
        states = (env.states[:length] - data.mean) / data.std
        rows = (torch.from_numpy(np.array(x)).float()[None] for x in (asked, states, taken))
        with torch.no_grad():
            expected = policy(*rows)[0].double().numpy()
        np.testing.assert_allclose(taken, expected, atol=1e-5)


def test_state_of_aaren_is_constant_and_the_cache_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes by hand: three tokens a step, two layers; width 64 in float32."""
    for steps in (3, 6):
        monkeypatch.setattr(offline_rl_data, "STEPS", steps)
        envs = scripted((steps, steps))
        size = {
            name: offline_rl.evaluate(model(name).float(), offline(), envs, 1.0).state_bytes  # type: ignore[arg-type]
            for name in offline_rl.MODELS
        }
        assert size["cloning"] == 0
        assert size["aaren"] == 2 * 4 * (64 + 2 * offline_rl.HEADS)
        assert size["attention"] == 2 * 4 * 2 * 64 * 3 * steps


@pytest.mark.parametrize("name", offline_rl.MODELS)
def test_loss_is_over_the_real_steps(name: str) -> None:
    data, policy = offline(), model(name).float()
    batch = data.batch
    assert batch.real.sum(1).tolist() == [7, 4, 5]
    errors = []
    for row, length in enumerate((7, 4, 5)):
        one = (x[row : row + 1, :length] for x in batch[:3])
        errors.append((policy(*one)[0] - batch.actions[row, :length]).square())
    expected = torch.cat(errors).mean()
    torch.testing.assert_close(offline_rl.loss_of(policy, batch), expected)
    filled = (x.masked_fill(~batch.real.view(3, 7, *[1] * (x.ndim - 2)), 9.0) for x in batch[:3])
    refilled = offline_rl.Batch(*filled, batch.real)
    torch.testing.assert_close(offline_rl.loss_of(policy, refilled), expected)


def test_states_are_standardised_and_cut_and_returns_add_up() -> None:
    data = offline(seen=2)
    states = data.batch.states[data.batch.real]
    assert states.shape == (16, 2)
    torch.testing.assert_close(states.mean(0), torch.zeros(2), atol=1e-6, rtol=0)
    torch.testing.assert_close(states.std(0, correction=0), torch.ones(2), atol=1e-5, rtol=0)
    totals = data.batch.returns[:, 0] * data.unit
    assert totals.mean().item() == pytest.approx(data.mean_return)
    assert data.batch.returns[:, 0].abs().max().item() == pytest.approx(1)


def test_the_best_tenth_has_the_highest_returns() -> None:
    totals = np.random.default_rng(0).permutation(30)
    one = np.zeros((1, 1))
    data = Offline([Episode(one, one, np.array([float(total)])) for total in totals])
    assert sorted(totals[data.order[: data.best]]) == [27, 28, 29]
    assert data.best_return == 28


def test_scores() -> None:
    assert offline_rl.normalised(-5, -5, 20) == 0
    assert offline_rl.normalised(20, -5, 20) == 100
    assert offline_rl.normalised(0, -5, 20) == 20


@pytest.mark.parametrize("walker", offline_rl_data.WALKERS)
def test_an_episode_is_what_the_environment_does(walker: str) -> None:
    """Taken again from its start, the recorded actions give the recorded states and rewards."""
    env, rng = offline_rl_data.make(walker), np.random.default_rng(0)
    episode = offline_rl_data.roll(env, offline_rl_data.RANDOM, 5, rng)
    state, _ = env.reset(seed=5)
    for before, action, reward in zip(
        episode.states, episode.actions, episode.rewards, strict=True
    ):
        np.testing.assert_array_equal(state, before)
        state, got, fell, timeout, _ = env.step(action)
        assert got == reward
    assert fell or timeout


def test_controllers_climb_from_random_to_expert() -> None:
    for walker in offline_rl_data.WALKERS:
        found = offline_rl_data.load(walker)
        returns = [stage["return"] for stage in found["stages"]]
        assert [stage["fraction"] for stage in found["stages"]] == [*offline_rl_data.FRACTIONS]
        assert found["random"] < returns[0]
        assert returns == sorted(returns)
        assert returns[-1] == found["expert"]
