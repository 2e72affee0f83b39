"""Offline reinforcement learning: a Decision Transformer over Aaren, over attention, over neither.

    PYTHONPATH=. python benchmarks/timeseries/offline_rl.py --out offline_rl.csv

The model of Chen et al. 2021 (arXiv 2106.01345): an episode is a row of return-to-go, state and
action tokens, three a step, and the action is predicted at the state token; Feng et al. 2024 (arXiv
2405.13956) put Aaren in attention's place. Both have the step of the episode as their only
position. Training and evaluation see whole episodes from their first step, so that in evaluation
each token is one ``step`` of the mixers' states: constant for Aaren, a growing cache for attention.
``cloning`` is the same model without a mixer, which knows the state and the time alone, trained on
the tenth of the episodes with the highest returns.

Data and controllers: ``offline_rl_data.py``. A model is asked for the mean return of the data's
best tenth, and, to see whether it listens, for the mean return of all data. Scores are D4RL's: 0
for uniformly random actions, 100 for the best controller that the search found. No model is chosen
by its score: all run the same number of steps and are evaluated after the last. A row of the CSV
is one model; run again, the script goes on behind the last row.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import polars as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.timeseries import offline_rl_data as source
from core.backbone import MLP, Backbone
from core.jobs.optim import adamw
from core.mixers import Aaren, Attention

DIM, HEADS, LAYERS, DROPOUT = 64, 4, 2, 0.1
BATCH, LR, WEIGHT_DECAY, CLIP = 4, 1e-3, 1e-4, 0.25
EVALUATED, FIRST_SEED = 20, 3_000_000

MIXERS = {
    "aaren": lambda dim: Aaren(dim, heads=HEADS),
    "attention": lambda dim: Attention(dim, heads=HEADS, rotary_base=None),
}
MODELS = (*MIXERS, "cloning")


class Task(NamedTuple):
    """A walker, and how many entries of its state are seen; all if None."""

    walker: str
    seen: int | None = None


TASKS = {
    "halfcheetah": Task("HalfCheetah-v5"),
    "hopper": Task("Hopper-v5"),
    "walker2d": Task("Walker2d-v5"),
    "halfcheetah_positions": Task("HalfCheetah-v5", 8),  # without the nine velocities
}


class Batch(NamedTuple):
    """Episodes padded at their end: returns-to-go and ``real`` (batch, steps), the rest with a last
    dimension."""

    returns: Tensor
    states: Tensor
    actions: Tensor
    real: Tensor


class DecisionModel(nn.Module):
    """Chen et al. 2021, section 3: tokens R_0 s_0 a_0 R_1 s_1 a_1 ..., each a linear map of its
    value and a learned vector of its step, normed; the action from the backbone's output at s_t.

    What a position holds depends on tokens up to it, so padding behind an episode changes nothing.
    """

    def __init__(self, backbone: Backbone, states: int, actions: int, steps: int) -> None:
        super().__init__()
        dim = backbone.dim
        self.embed_return = nn.Linear(1, dim)
        self.embed_state = nn.Linear(states, dim)
        self.embed_action = nn.Linear(actions, dim)
        self.embed_step = nn.Embedding(steps, dim)
        nn.init.normal_(self.embed_step.weight, std=0.02)
        self.norm = nn.LayerNorm(dim)
        self.backbone = backbone
        self.head = nn.Linear(dim, actions)

    def forward(self, returns: Tensor, states: Tensor, actions: Tensor) -> Tensor:
        """(batch, steps), (batch, steps, states), (batch, steps, actions) -> actions in -1..1."""
        kinds = (
            self.embed_return(returns[..., None]),
            self.embed_state(states),
            self.embed_action(actions),
        )
        step = self.embed_step.weight[: returns.shape[1], None]
        tokens = self.norm(torch.stack(kinds, 2) + step).flatten(1, 2)
        return self.head(self.backbone(tokens)[:, 1::3]).tanh()

    def act(self, step: int, returns: Tensor, states: Tensor, held: Any) -> tuple[Tensor, Any]:
        """One step of an episode, (batch,) and (batch, states) -> its actions, the new state."""
        _, held = self._read(self.embed_return(returns[:, None]), step, held)
        out, held = self._read(self.embed_state(states), step, held)
        return self.head(out).tanh(), held

    def acted(self, step: int, actions: Tensor, held: Any) -> Any:
        """Reads the actions (batch, actions) that were taken; -> the new state."""
        return self._read(self.embed_action(actions), step, held)[1]

    def _read(self, token: Tensor, step: int, held: Any) -> tuple[Tensor, Any]:
        return self.backbone.step(self.norm(token + self.embed_step.weight[step]), held)


def build(name: str, states: int, actions: int, steps: int = source.STEPS) -> DecisionModel:
    """One of MODELS."""
    blocks = {"mlp": MLP} | ({"mixer": MIXERS[name]} if name in MIXERS else {})
    schedule = ["mixer mlp" if name in MIXERS else "mlp"] * LAYERS
    backbone = Backbone(DIM, blocks, schedule, dropout=DROPOUT, embed_dropout=DROPOUT)
    return DecisionModel(backbone, states, actions, steps)


def returns_to_go(rewards: np.ndarray) -> np.ndarray:
    """(length,) rewards -> at each step the sum of its reward and all later ones."""
    return rewards[::-1].cumsum()[::-1]


class Offline:
    """Episodes as tensors: states standardised over all of them, returns over their largest."""

    def __init__(self, episodes: list[source.Episode], seen: int | None = None) -> None:
        self.seen = seen
        totals = np.array([episode.rewards.sum() for episode in episodes])
        self.order = torch.from_numpy(np.argsort(-totals, kind="stable"))
        self.best = len(episodes) // 10
        self.mean_return = float(totals.mean())
        self.best_return = float(np.sort(totals)[-self.best :].mean())
        self.unit = float(np.abs(totals).max())
        states = np.concatenate([episode.states[:, :seen] for episode in episodes])
        self.mean, self.std = states.mean(0), states.std(0) + 1e-6
        self.batch = Batch(
            self._padded([returns_to_go(e.rewards) / self.unit for e in episodes]),
            self._padded([self.scaled(e.states) for e in episodes]),
            self._padded([e.actions for e in episodes]),
            self._padded([np.ones(len(e.rewards)) for e in episodes]).bool(),
        )

    @staticmethod
    def _padded(rows: list[np.ndarray]) -> Tensor:
        tensors = [torch.from_numpy(row.copy()).float() for row in rows]
        return nn.utils.rnn.pad_sequence(tensors, batch_first=True)

    def scaled(self, states: np.ndarray) -> np.ndarray:
        """(..., all entries) -> (..., seen entries)."""
        return (states[..., : self.seen] - self.mean) / self.std


def loss_of(model: DecisionModel, batch: Batch) -> Tensor:
    """Mean squared error of the actions over the real steps."""
    predicted = model(batch.returns, batch.states, batch.actions)
    return F.mse_loss(predicted[batch.real], batch.actions[batch.real])


def train(model: DecisionModel, data: Offline, rows: Tensor, steps: int) -> float:
    """Trains on the episodes ``rows``; -> the mean loss of the last hundred steps."""
    how = adamw(model, lr=LR, weight_decay=WEIGHT_DECAY, warmup=0.05, steps=steps)
    optimizer, schedule = how["optimizer"], how["lr_scheduler"]["scheduler"]
    losses = []
    model.train()
    for _ in range(steps):
        chosen = rows[torch.randint(len(rows), (BATCH,))]
        loss = loss_of(model, Batch(*(part[chosen] for part in data.batch)))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return float(np.mean(losses[-100:]))


class Evaluation(NamedTuple):
    """Mean return; bytes of state that an episode holds at its end; the model's processor time a
    step of all episodes together, medians of the first and the last twenty."""

    value: float
    state_bytes: float
    ms_first: float
    ms_last: float


@torch.no_grad()
def evaluate(
    model: DecisionModel, data: Offline, envs: list[gymnasium.Env], target: float
) -> Evaluation:
    """One episode an environment, side by side, asked for ``target``.

    An environment whose episode has ended is left as it is until all have.
    """
    model.eval()
    states = np.stack([env.reset(seed=FIRST_SEED + n)[0] for n, env in enumerate(envs)])
    togo, got = np.full(len(envs), target), np.zeros(len(envs))
    running = np.ones(len(envs), dtype=bool)
    held = model.backbone.init_state(len(envs))
    seconds = []
    for step in range(source.STEPS):
        returns = torch.from_numpy(togo / data.unit).float()
        seen = torch.from_numpy(data.scaled(states)).float()
        start = time.process_time()
        actions, held = model.act(step, returns, seen, held)
        held = model.acted(step, actions, held)
        seconds.append(time.process_time() - start)
        for n in np.flatnonzero(running):
            states[n], reward, fell, timeout, _ = envs[n].step(actions[n].double().numpy())
            togo[n] -= float(reward)
            got[n] += float(reward)
            running[n] = not (fell or timeout)
        if not running.any():
            break
    tensors = [part for state in held if state is not None for part in state]
    size = sum(part.nbytes for part in tensors if isinstance(part, Tensor)) / len(envs)
    first, last = np.median(seconds[:20]), np.median(seconds[-20:])
    return Evaluation(float(got.mean()), size, 1000 * float(first), 1000 * float(last))


def normalised(value: float, random: float, expert: float) -> float:
    """D4RL's score (Fu et al. 2020): 0 for the return of random actions, 100 for the expert's."""
    return 100 * (value - random) / (expert - random)


def run(task: str, data: str, name: str, seed: int, steps: int) -> dict[str, Any]:
    walker, seen = TASKS[task]
    found = source.load(walker)
    offline = Offline(source.episodes(walker, data), seen)
    torch.manual_seed(seed)
    model = build(name, offline.batch.states.shape[-1], offline.batch.actions.shape[-1])
    rows = offline.order[: offline.best] if name == "cloning" else offline.order
    start = time.process_time()
    loss = train(model, offline, rows, steps)
    seconds = time.process_time() - start
    envs = [source.make(walker) for _ in range(EVALUATED)]
    best = evaluate(model, offline, envs, offline.best_return)
    mean = evaluate(model, offline, envs, offline.mean_return)

    def score(value: float) -> float:
        return round(normalised(value, found["random"], found["expert"]), 2)

    return {
        "task": task,
        "data": data,
        "model": name,
        "seed": seed,
        "parameters": sum(p.numel() for p in model.parameters()),
        "score": score(best.value),
        "asked": score(offline.best_return),
        "score_asked_mean": score(mean.value),
        "data_mean": score(offline.mean_return),
        "return": round(best.value, 2),
        "loss": round(loss, 5),
        "train_seconds": round(seconds, 1),
        "state_kb": round(best.state_bytes / 1024, 2),
        "ms_first": round(best.ms_first, 3),
        "ms_last": round(best.ms_last, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--data", nargs="+", choices=source.DATA, default=list(source.DATA))
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = pl.read_csv(given.out).to_dicts() if given.out.exists() else []
    done = {(row["task"], row["data"], row["model"], row["seed"]) for row in rows}
    for seed in given.seeds:
        for task in given.tasks:
            for data in given.data:
                for name in given.models:
                    if (task, data, name, seed) in done:
                        continue
                    rows.append(run(task, data, name, seed, given.steps))
                    print(rows[-1], flush=True)
                    pl.DataFrame(rows).write_csv(given.out)
    scores = [pl.col("score").mean(), pl.col("score").std().alias("std")]
    others = [pl.col(key).mean() for key in ("asked", "score_asked_mean", "data_mean")]
    groups = pl.DataFrame(rows).group_by("task", "data", "model", maintain_order=True)
    with pl.Config(tbl_cols=-1, tbl_rows=-1, tbl_hide_column_data_types=True):
        print(groups.agg(*scores, *others))


if __name__ == "__main__":
    main()
