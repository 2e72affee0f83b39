"""Metrics and baselines of event modelling against loops over single events."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import polars as pl
import pytest
import torch
from scipy import stats

from core.backbone import MLP, Backbone
from core.mixers import RelativeAttention
from timeseries.data.events import EventSequences
from timeseries.models.events import EventModel
from timeseries.tasks.events import EventModelling

pytestmark = [  # of Lightning and PyTorch
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.`"),
]


def table(path: Path, grid: float | None) -> Path:
    """A type decides the next one most of the time, and the gap before it; ties occur."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(30):
        kind, time = int(rng.integers(3)), float(rng.integers(5))
        for _ in range(int(rng.integers(3, 12))):
            rows.append((f"s{i}", time, "xyz"[kind]))
            kind = (kind + 1) % 3 if rng.random() < 0.8 else int(rng.integers(3))
            gap = 0.0 if rng.random() < 0.3 else rng.exponential(1.0 + kind)
            time += gap if grid is None else grid * round(gap / grid)
    pl.DataFrame(rows, schema=["sequence", "time", "type"], orient="row").write_csv(path)
    return path


def trainer(**options: Any) -> L.Trainer:
    return L.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


def build(data: EventSequences) -> EventModelling:
    torch.manual_seed(0)
    blocks = {"attention": lambda dim: RelativeAttention(dim, heads=2, max_distance=4), "mlp": MLP}
    backbone = Backbone(16, blocks, "attention mlp")
    model = EventModel(backbone, types=data.model_facts()["types"], components=2, periods=[4.0])
    task = EventModelling(model)
    logs = np.log(np.concatenate([e.gaps[e.gaps > 0] for e in data.sequences("train")]))
    model.set_clock(logs.mean(), logs.std(), data.grid)
    return task


def log_mass(gap: float, zero: float, mean: float, width: float, grid: float | None) -> float:
    """Of one log-normal with a share of zeros, by scipy."""
    if gap == 0:
        return float(np.log(zero))
    one = stats.lognorm(width, scale=np.exp(mean))
    if grid is None:
        return float(np.log(1 - zero) + one.logpdf(gap))
    k = round(gap / grid)
    low = 0.0 if k == 1 else (k - 0.5) * grid
    return float(np.log((1 - zero) * (one.cdf((k + 0.5) * grid) - one.cdf(low))))


def by_hand(data: EventSequences) -> dict[str, float]:
    """The baselines of the test sequences, one event at a time."""
    types = data.types or []
    counts: dict[Any, dict[str, int]] = {b: dict.fromkeys(types, 1) for b in [None, *types]}
    single = dict.fromkeys(types, 1)
    gaps: dict[Any, list[float]] = {kind: [] for kind in [None, *types]}
    for one in data.sequences("train"):
        before = None
        for i, kind in enumerate(one.types):
            counts[before][kind] += 1
            single[kind] += 1
            before = kind
            if i:
                gap = one.times[i] - one.times[i - 1]
                gaps[kind].append(gap)
                gaps[None].append(gap)
    fitted = {}
    for kind, found in gaps.items():
        positive = np.log([gap for gap in found if gap > 0])
        zero = (len(found) - len(positive) + 1) / (len(found) + 2)
        fitted[kind] = (zero, positive.mean(), positive.std())
    sums = dict.fromkeys(("tu", "tm", "gu", "gm", "au", "am", "ar", "events", "timed"), 0.0)
    for one in data.sequences("test"):
        before = None
        for i, kind in enumerate(one.types):
            sums["events"] += 1
            sums["tu"] -= np.log(single[kind] / sum(single.values()))
            sums["tm"] -= np.log(counts[before][kind] / sum(counts[before].values()))
            sums["au"] += kind == max(types, key=lambda t: single[t])
            sums["am"] += kind == max(types, key=lambda t: counts[before][t])
            sums["ar"] += kind == before
            if i:
                gap = one.times[i] - one.times[i - 1]
                sums["timed"] += 1
                sums["gu"] -= log_mass(gap, *fitted[None], data.grid)
                sums["gm"] -= log_mass(gap, *fitted[kind], data.grid)
            before = kind
    events, timed = sums["events"], sums["timed"]
    return {
        "nll_type_unigram": sums["tu"] / events,
        "nll_type_markov": sums["tm"] / events,
        "nll_time_unigram": sums["gu"] / timed,
        "nll_time_markov": sums["gm"] / timed,
        "loss_unigram": (sums["tu"] + sums["gu"]) / events,
        "loss_markov": (sums["tm"] + sums["gm"]) / events,
        "accuracy_unigram": sums["au"] / events,
        "accuracy_markov": sums["am"] / events,
        "accuracy_repeat": sums["ar"] / events,
    }


def one_by_one(task: EventModelling, data: EventSequences) -> dict[str, float]:
    """The model's metrics: each event from all before it, in a row of its own."""
    types, model = data.types or [], task.model.eval()
    kinds, gaps, right = [], [], []
    for one in data.sequences("test"):
        for i, kind in enumerate(one.types):
            start = i // data.length * data.length  # of the piece
            history = range(start, i + 1)
            before = [types.index(one.types[p - 1]) if p else len(types) for p in history]
            gap = [one.times[p - 1] - one.times[p - 2] if p > 1 else 0.0 for p in history]
            time = [one.times[p - 1] if p else 0.0 for p in history]
            with torch.no_grad():
                features = model(
                    torch.tensor([before]),
                    torch.tensor([gap], dtype=torch.float32),
                    torch.tensor([time], dtype=torch.float64),
                )[0, -1]
                logits = model.logits(features)
                kinds.append(-logits.log_softmax(-1)[types.index(kind)].item())
                right.append(logits.argmax().item() == types.index(kind))
                if i:
                    its = model.gaps(features[None], torch.tensor([types.index(kind)]))
                    since = torch.tensor([one.times[i] - one.times[i - 1]], dtype=torch.float32)
                    gaps.append(its.nll(since).item())
    return {
        "nll_type": np.mean(kinds),
        "nll_time": np.mean(gaps),
        "loss": (np.sum(kinds) + np.sum(gaps)) / len(kinds),
        "accuracy": np.mean(right),
    }


@pytest.mark.parametrize("grid", [None, 0.5])
@pytest.mark.parametrize("length", [4, 100])
def test_metrics_are_those_of_single_events(
    tmp_path: Path, grid: float | None, length: int
) -> None:
    data = EventSequences(str(table(tmp_path / "x.csv", grid)), grid=grid, length=length)
    data.batch_size = 3
    task = build(data)
    (found,) = trainer().test(task, datamodule=data, verbose=False)
    expected = {**by_hand(data), **one_by_one(task, data)}
    assert {key.removeprefix("test/") for key in found} == expected.keys()
    for key, value in expected.items():
        assert found[f"test/{key}"] == pytest.approx(value, rel=2e-4), key


@pytest.mark.parametrize("grid", [None, 0.5])
def test_rows_say_what_was_known_before(tmp_path: Path, grid: float | None) -> None:
    """The rows' nats are the test's; later events change no earlier row; the last is ahead."""
    data = EventSequences(str(table(tmp_path / "x.csv", grid)), grid=grid)
    task = build(data).eval()
    (found,) = trainer().test(task, datamodule=data, verbose=False)
    with torch.no_grad():
        columns = [task.predict_step(b) for b in data.predict_dataloader()]
    rows = pl.concat([pl.DataFrame({k: _plain(v) for k, v in c.items()}) for c in columns])
    events = data.sequences("test")
    assert rows["id"].unique(maintain_order=True).to_list() == [e.name for e in events]
    known = rows.filter(pl.col("type").is_not_null())
    assert known["type"].to_list() == [kind for e in events for kind in e.types]
    assert known["time"].to_list() == [time for e in events for time in e.times]
    assert known["nll_type"].mean() == pytest.approx(found["test/nll_type"], rel=1e-4)
    assert known["nll_time"].mean() == pytest.approx(found["test/nll_time"], rel=1e-4)
    assert known["nll_time"].null_count() == len(events)
    right = (known["type"] == known["predicted_type"]).mean()
    assert right == pytest.approx(found["test/accuracy"])
    future = rows.filter(pl.col("type").is_null())
    assert future["event"].to_list() == [len(e.times) + 1 for e in events]
    assert future.select("time", "nll_type", "nll_time").null_count().row(0) == (len(events),) * 3
    assert rows["probability"].is_between(1 / 3, 1).all()
    assert (rows["median_gap"] >= 0).all()
    for one in events:
        whole = rows.filter(pl.col("id") == one.name)
        for n in range(len(one.times)):  # known up to event n; then with any type as event n + 1
            last = [[], *([kind] for kind in "xyz")]
            for more in last:
                record = {
                    "id": "a",
                    "times": one.times[: n + len(more)].tolist(),
                    "types": [*one.types[:n], *more],
                }
                with torch.no_grad():
                    found = task.predict_step(data.collate([data.encode(record)]))
                assert found["predicted_type"][n] == whole["predicted_type"][n]
                for key in ("probability", "median_gap"):
                    assert found[key][n].item() == pytest.approx(whole[key][n], rel=1e-4)


def _plain(values: Any) -> list[Any]:
    return values.tolist() if isinstance(values, torch.Tensor) else list(values)


def test_without_gaps_their_likelihood_is_unknown(tmp_path: Path) -> None:
    """0 nats would be certainty."""
    rows = [(f"s{i}", 0.0, "xy"[i % 2]) for i in range(20)]
    table = pl.DataFrame(rows, schema=["sequence", "time", "type"], orient="row")
    table.write_csv(tmp_path / "x.csv")
    data = EventSequences(str(tmp_path / "x.csv"))
    task = EventModelling(EventModel(Backbone(8, {"mlp": MLP}, "mlp"), types=2))
    (found,) = trainer().test(task, datamodule=data, verbose=False)
    assert np.isnan([found["test/nll_time"], found["test/nll_time_markov"]]).all()
    assert found["test/loss"] == pytest.approx(found["test/nll_type"])


def test_training_beats_the_frequencies(tmp_path: Path) -> None:
    data = EventSequences(str(table(tmp_path / "x.csv", None)))
    task = build(data)
    task.optimisation.lr = 1e-2
    trainer(max_epochs=30, num_sanity_val_steps=0, log_every_n_steps=1).fit(task, datamodule=data)
    (found,) = trainer().test(task, datamodule=data, verbose=False)
    assert found["test/nll_type"] < found["test/nll_type_unigram"] - 0.1
    assert found["test/loss"] < found["test/loss_unigram"]
