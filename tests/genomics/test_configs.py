"""Every shipped config runs through the command line: a few steps of fit and test, or predict."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
import yaml
from forked_cli import Server

from core.jobs.shards import load_predictions

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "genomics" / "configs").glob("*.yaml"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Command lines in a folder where the samples lie as the configs name them."""
    server = Server.beside("genomics", tmp_path_factory.mktemp("configs"))
    yield server
    server.close()


def run(server: Server, *words: str) -> str:
    code, output = server.run(*words)
    assert code == 0, output
    return output


def answers_predictions(config: Path) -> bool:
    return "trainer" not in yaml.safe_load(config.read_text())


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.stem)
def test_config_runs(config: Path, server: Server, tmp_path: Path) -> None:
    if answers_predictions(config):
        check_predict(config, server, tmp_path)
    else:
        check_fit_and_test(config, server)


def check_fit_and_test(config: Path, server: Server) -> None:
    options = ["--config", str(config), "--trainer.max_steps", "2"]
    options += ["--trainer.limit_train_batches", "2", "--trainer.limit_val_batches", "1"]
    options += ["--trainer.val_check_interval", "null", "--trainer.limit_test_batches", "1"]
    options += ["--data.init_args.batch_size", "2"]
    folder = run(server, "fit", *options).split("run folder: ")[1].split("\n")[0]
    assert (server.folder / folder / "checkpoints" / "best.ckpt").exists()
    data = yaml.safe_load(config.read_text())["data"]["init_args"]
    if "path" in data or "test" in data:
        assert "test/loss" in run(server, "test", *options, "--ckpt_path", folder)


def check_predict(config: Path, server: Server, tmp_path: Path) -> None:
    settings = yaml.safe_load(config.read_text())
    out = tmp_path / "predictions"
    if "vcf" in settings["data"]["init_args"]:
        few = tmp_path / "few.vcf"
        with gzip.open(ROOT / "genomics" / "samples" / "chr22_20-21M.vcf.gz", "rt") as lines:
            few.write_text("".join(islice(lines, 14)))
        source = ["--data.init_args.vcf", str(few)]
        source += ["--predictions.export", str(tmp_path / "scored.vcf")]
    else:
        few = tmp_path / "few.fa"
        few.write_text(">a\nACGTTGCA\n>b\nGGGTTTAAACCC\n")
        source = ["--data.init_args.predict_path", str(few)]
    run(server, "predict", "--config", str(config), *source, "--predictions.path", str(out))
    rows = load_predictions(out).collect()
    assert rows["id"].n_unique() == len(rows) > 0
    if "vcf" in settings["data"]["init_args"]:
        scored = [s for s in (tmp_path / "scored.vcf").read_text().splitlines() if s[0] != "#"]
        assert len(scored) == 10
        assert all("SCORE=" in line.upper() for line in scored)
    else:
        assert rows["embedding"].list.len().to_list() == [64, 64]
