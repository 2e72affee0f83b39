"""Offline data for reinforcement learning: episodes of linear controllers on MuJoCo's walkers.

    PYTHONPATH=. python benchmarks/timeseries/offline_rl_data.py \\
        HalfCheetah-v5 Hopper-v5 Walker2d-v5

searches linear controllers and writes ladders of their stages, with their returns, into
``results/offline_rl_controllers/``; ``offline_rl.py`` makes its episodes from those files with a
seed. The search is ARS (V2-t of Mania et al. 2018, arXiv 1803.07055): random directions in the
space of weights, states standardised by all states seen. Hopper's reward for not having fallen is
left out of the search alone: with it, standing still is all that is found; Walker2d's is not:
without it, falling forward is. Episodes are 200 steps long, or end with a fall.

In the spirit of D4RL (Fu et al. 2020, arXiv 2004.07219): ``medium_expert`` is half episodes of a
controller at 0.4 of the way from random to the best one, half of the best; ``mixed`` (D4RL's
medium-replay) is one fifth each of uniformly random actions and of the stages at 0.1, 0.2, 0.3 and
0.4. Every controller's actions carry normal noise (0.1 of the half range) before they are clipped.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

FOLDER = Path(__file__).parent / "results" / "offline_rl_controllers"
STEPS = 200
FRACTIONS = (0.1, 0.2, 0.3, 0.4, 1.0)  # stages kept: share of the way from random to the best
DATA = {"mixed": (0.0, 0.1, 0.2, 0.3, 0.4), "medium_expert": (0.4, 1.0)}
EPISODES = 200
NOISE = 0.1

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Search:
    """ARS's step size and noise, settings of the environment in the search alone, and how many
    directions are tried and how many followed."""

    step: float
    noise: float
    settings: Mapping[str, float] = field(default_factory=dict)
    directions: int = 16
    best: int = 8


WALKERS = {
    "HalfCheetah-v5": Search(0.01, 0.03),
    "Hopper-v5": Search(0.02, 0.05, {"healthy_reward": 0.0}),
    "Walker2d-v5": Search(0.03, 0.025),
}


@dataclass(frozen=True)
class Controller:
    """action = clip(weights (state - mean) / scale); without ``weights`` uniformly random."""

    weights: Array | None
    mean: Array
    scale: Array

    def act(self, state: Array, rng: np.random.Generator, noise: float, size: int) -> Array:
        if self.weights is None:
            return rng.uniform(-1, 1, size)
        action = self.weights @ ((state - self.mean) / self.scale)
        return np.clip(action + noise * rng.normal(size=size), -1, 1)


RANDOM = Controller(None, np.zeros(0), np.ones(0))


@dataclass(frozen=True)
class Episode:
    """states (length, state), actions (length, action) taken in them, rewards (length,) got."""

    states: Array
    actions: Array
    rewards: Array


def make(walker: str, **options: Any) -> gymnasium.Env:
    return gymnasium.make(walker, max_episode_steps=STEPS, disable_env_checker=True, **options)


def roll(
    env: gymnasium.Env,
    controller: Controller,
    seed: int,
    rng: np.random.Generator,
    noise: float = 0.0,
) -> Episode:
    state, _ = env.reset(seed=seed)
    size = env.action_space.shape[0]  # type: ignore[index]
    states, actions, rewards = [], [], []
    ended = False
    while not ended:
        action = controller.act(state, rng, noise, size)
        states.append(state)
        actions.append(action)
        state, reward, fell, timeout, _ = env.step(action)
        rewards.append(float(reward))
        ended = fell or timeout
    return Episode(np.array(states), np.array(actions), np.array(rewards))


def mean_return(env: gymnasium.Env, controller: Controller, episodes: int, seed: int) -> float:
    rng = np.random.default_rng(seed)
    returns = [
        roll(env, controller, seed + number, rng).rewards.sum() for number in range(episodes)
    ]
    return float(np.mean(returns))


def search(walker: str, iterations: int, seed: int) -> list[tuple[Controller, float]]:
    """Every iteration's controller and its mean return (5 episodes) as the environment pays it."""
    how, rng = WALKERS[walker], np.random.default_rng(seed)
    paid = make(walker)
    env = make(walker, **how.settings)
    states, size = env.observation_space.shape[0], env.action_space.shape[0]  # type: ignore[index]
    weights = np.zeros((size, states))
    mean, scale = np.zeros(states), np.ones(states)
    count, total, squares = 0, np.zeros(states), np.zeros(states)
    stages = []
    for iteration in range(iterations):
        directions = rng.normal(size=(how.directions, size, states))
        returns, seen = np.zeros((how.directions, 2)), []
        for number, direction in enumerate(directions):
            start = int(rng.integers(2**31))
            for side, sign in enumerate((1, -1)):
                moved = Controller(weights + sign * how.noise * direction, mean, scale)
                episode = roll(env, moved, start, rng)
                returns[number, side] = episode.rewards.sum()
                seen.append(episode.states)
        best = np.argsort(-returns.max(1))[: how.best]
        gain = returns[best, 0] - returns[best, 1]
        step = how.step / (how.best * returns[best].std() + 1e-8)
        weights = weights + step * np.tensordot(gain, directions[best], 1)
        batch = np.concatenate(seen)
        count, total, squares = (
            count + len(batch),
            total + batch.sum(0),
            squares + (batch**2).sum(0),
        )
        mean = total / count
        scale = np.sqrt(np.maximum(squares / count - mean**2, 1e-8))
        controller = Controller(weights, mean, scale)
        stages.append((controller, mean_return(paid, controller, 5, seed=1_000_000)))
        print(walker, iteration, round(stages[-1][1], 1), flush=True)
    return stages


def ladder(walker: str, iterations: int, seed: int) -> dict[str, Any]:
    """The stages whose return is nearest to each of FRACTIONS, and the returns that normalise."""
    env = make(walker)
    lowest = mean_return(env, RANDOM, 100, seed=2_000_000)
    stages = search(walker, iterations, seed)
    highest = max(value for _, value in stages)
    rungs = []
    for fraction in FRACTIONS:
        wanted = lowest + fraction * (highest - lowest)
        controller, _ = min(stages, key=lambda stage: abs(stage[1] - wanted))
        rungs.append(
            {
                "fraction": fraction,
                "return": round(mean_return(env, controller, 100, seed=2_000_000), 3),
                "weights": np.round(controller.weights, 6).tolist(),  # type: ignore[arg-type]
                "mean": np.round(controller.mean, 6).tolist(),
                "scale": np.round(controller.scale, 6).tolist(),
            }
        )
    found = {"walker": walker, "steps": STEPS, "iterations": iterations, "seed": seed}
    return {**found, "random": round(lowest, 3), "expert": rungs[-1]["return"], "stages": rungs}


def load(walker: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{walker}.json").read_text())


@cache
def episodes(walker: str, data: str, seed: int = 0) -> list[Episode]:
    """EPISODES episodes, the controllers of ``DATA[data]`` in equal shares."""
    rungs = {rung["fraction"]: rung for rung in load(walker)["stages"]}
    rng = np.random.default_rng([seed, *data.encode()])
    env = make(walker)
    found: list[Episode] = []
    for fraction in DATA[data]:
        controller = RANDOM
        if fraction:
            parts = (np.array(rungs[fraction][key]) for key in ("weights", "mean", "scale"))
            controller = Controller(*parts)
        found += [
            roll(env, controller, int(rng.integers(2**31)), rng, NOISE)
            for _ in range(EPISODES // len(DATA[data]))
        ]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("walkers", nargs="+", choices=WALKERS)
    parser.add_argument("--iterations", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    for walker in given.walkers:
        found = ladder(walker, given.iterations, given.seed)
        (FOLDER / f"{walker}.json").write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
