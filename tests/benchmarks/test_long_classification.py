"""Networks and baselines on windows of sound, without the processes around them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy.signal import stft

from benchmarks.timeseries.long_classification import (
    BASELINES,
    Trial,
    config,
    run,
    spectrum,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.`"),
]
LENGTH = 512


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of noise that differ in their spectrum alone."""
    rng, rows = np.random.default_rng(0), []
    for n in range(48):
        values = rng.normal(0, 1, LENGTH + 1)
        values = values[1:] + (0.9 if n % 2 else -0.9) * values[:-1]
        split = "test" if n >= 32 else "val" if n >= 24 else "train"
        rows.append((f"s{n}", "ab"[n % 2], split, np.round(1000 * values).astype(np.int16)))
    table = pl.DataFrame(rows, schema=["unique_id", "label", "split", "values"], orient="row")
    table.write_parquet(tmp_path / f"{LENGTH}.parquet")
    return tmp_path


def given(folder: Path, *keys: str) -> argparse.Namespace:
    quiet = ("--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false")
    return argparse.Namespace(folder=str(folder), tf32=False, keys=[*quiet, *keys])


@pytest.mark.parametrize("model", ["s4", "both", "hyena", "attention", "cnn"])
def test_every_network_fits_and_is_tested(folder: Path, model: str) -> None:
    few = ("--trainer.max_epochs=1", "--data.init_args.batch_size=12")
    row = run(Trial(model, LENGTH, 0), given(folder, *few))
    assert (row["model"], row["length"], row["seed"]) == (model, "512", "0")
    assert (row["steps"], row["epochs"]) == (2, 1)
    assert 0 <= row["accuracy"] <= 1
    assert np.isfinite(row["val_loss"])
    assert not any("nearest" in key or "_at_" in key for key in row)


def test_a_run_is_a_function_of_its_seed(folder: Path) -> None:
    few = ("--trainer.max_epochs=2", "--data.init_args.batch_size=12")
    rows = [run(Trial("cnn", LENGTH, seed), given(folder, *few)) for seed in (0, 0, 1)]
    assert rows[0]["val_loss"] == rows[1]["val_loss"] != rows[2]["val_loss"]


def test_the_spectrum_tells_apart_what_single_values_do_not(folder: Path) -> None:
    scores = {m: run(Trial(m, LENGTH, 0), given(folder))["accuracy"] for m in BASELINES}
    assert scores["spectrum"] == 1
    assert max(scores["nearest_neighbour"], scores["logistic_regression"]) < 0.9


def test_spectrum_is_that_of_scipy() -> None:
    x = np.random.default_rng(1).normal(size=1024)
    window = np.hanning(256)
    _, _, frames = stft(x, window=window, nperseg=256, boundary=None, padded=False)
    log = np.log(np.abs(frames * window.sum()) ** 2 + 1e-3)
    expected = np.concatenate([log.mean(1), log.std(1)])
    np.testing.assert_allclose(spectrum(x[:, None]), expected, rtol=1e-9)


@pytest.mark.parametrize("length", [1024, 16384])
def test_every_length_has_as_many_samples_a_batch(length: int) -> None:
    made: Any = config(Trial("both", length, 0), Path("x"))
    assert made["data"]["init_args"]["batch_size"] * length == 8 * 16384
    backbone = made["model"]["init_args"]["model"]["init_args"]["backbone"]["init_args"]
    options = backbone["blocks"]["mixer"]["init_args"]
    assert options == {"causal": False, "max_length": length, "squash": 3e-3, "smooth": 7}
