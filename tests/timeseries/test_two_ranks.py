"""What two processes settle from a validation span that they share."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow

_GATHER = """
import sys
import torch
import torch.distributed as dist
from timeseries.tasks.ranks import of_all_ranks

rank = int(sys.argv[1])
alone = torch.full((2, 1), 7.0)
assert of_all_ranks(alone).equal(alone)
dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2)
rows = of_all_ranks(torch.full((3 - rank, 2), float(rank)))
assert rows.tolist() == [[0.0, 0.0]] * 3 + [[1.0, 1.0]] * 2
dist.destroy_process_group()
"""


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def test_rows_of_all_ranks(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _GATHER]
    ranks = [
        subprocess.Popen([*command, str(rank), str(tmp_path / "meet")], env=environment())
        for rank in range(2)
    ]
    assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]


@pytest.mark.parametrize(
    ("config", "state", "protocol"),
    [
        # 232 windows and 6: of an odd number one is given to both
        ("dlinear", "widths", ["protocol.lookback=24", "protocol.horizon=9"]),
        ("anomalies", "errors", ["tiling.length=40", "tiling.overlap=0"]),
    ],
)
def test_two_ranks_settle_what_one_settles(
    tmp_path: Path, config: str, state: str, protocol: list[str]
) -> None:
    """Of the same weights, which a rate of next to nothing leaves as the seed made them."""
    y = np.random.default_rng(0).normal(size=2_400) + np.arange(2_400) % 24
    day = pl.datetime_range(pl.datetime(2024, 1, 1), pl.datetime(2024, 4, 9, 23), "1h", eager=True)
    pl.DataFrame({"ds": day, "y": y}).write_csv(tmp_path / "x.csv")
    words = ["fit", "--config", str(ROOT / "timeseries/configs" / f"{config}.yaml")]
    words += ["--data.path", "x.csv", "--trainer.max_epochs=1", "--trainer.accelerator=cpu"]
    words += ["--trainer.limit_train_batches=1", "--trainer.num_sanity_val_steps=0"]
    words += ["--model.init_args.optimisation.lr=1e-12"]
    words += [f"--data.init_args.{setting}" for setting in protocol]
    words += ["--model.init_args.false_alarms=0.05"] if config == "anomalies" else []
    found = []
    for name, ranks in (("one", []), ("two", ["--trainer.devices=2", "--trainer.strategy=ddp"])):
        run = subprocess.run(
            [sys.executable, "-m", "timeseries", *words, *ranks, "--tracking.root", name],
            cwd=tmp_path,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert run.returncode == 0, run.stderr
        (file,) = (tmp_path / name).rglob("last.ckpt")
        found.append(torch.load(file, weights_only=False)["state_dict"][state])
    one, two = (x.flatten().sort().values for x in found)
    assert not one.isnan().all()
    torch.testing.assert_close(two, one, equal_nan=True, rtol=1e-4, atol=1e-5)
