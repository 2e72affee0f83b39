"""Fly promoters with three seeds: HyenaDNA, a CNN and 5-mer logistic regression, one split.

    python benchmarks/genomics/promoters.py --out promoters.json

The networks are the configs that ship, run by the command line as a user would; the checkpoint of
the best validation AUROC is tested. The regression's C is the best on the validation split too.
HyenaDNA's checkpoint is tested once more with the logits of both strands averaged.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mlflow.tracking import MlflowClient
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, matthews_corrcoef, roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from genomics.data.labelled import read_sequence_table
from genomics.models.baselines import kmer_frequencies

ROOT = Path(__file__).parents[2]
CONFIGS = {"HyenaDNA": "promoters.yaml", "CNN": "promoters_cnn.yaml"}
SCORES = ("accuracy", "auroc", "mcc")


def command(folder: Path, *words: str) -> tuple[Path, dict[str, float]]:
    """Run folder and metrics of one command."""
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    line = [sys.executable, "-m", "genomics", *words, "--tracking.uri", uri]
    done = subprocess.run(
        [*line, "--tracking.root", str(folder / "runs")],
        cwd=ROOT,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    (run,) = [s[12:] for s in done.stdout.splitlines() if s.startswith("run folder: ")]
    run_id = json.loads((Path(run) / "run.json").read_text())["run_id"]
    return Path(run), MlflowClient(uri).get_run(run_id).data.metrics


def chosen(metrics: dict[str, float]) -> dict[str, float]:
    return {name: metrics[f"test/{name}"] for name in SCORES}


def networks(seeds: int) -> dict[str, list[dict[str, float]]]:
    results: dict[str, list[dict[str, float]]] = {name: [] for name in CONFIGS}
    results["HyenaDNA, both strands averaged"] = []
    with tempfile.TemporaryDirectory() as name:
        for seed in range(seeds):
            for model, file in CONFIGS.items():
                config = ["--config", str(ROOT / "genomics" / "configs" / file)]
                config += ["--seed_everything", str(seed)]
                run, _ = command(Path(name), "fit", *config)
                test = ["test", *config, "--ckpt_path", str(run)]
                results[model].append(chosen(command(Path(name), *test)[1]))
                if model == "HyenaDNA":
                    both = [*test, "--model.init_args.average_strands", "true"]
                    results[f"{model}, both strands averaged"].append(
                        chosen(command(Path(name), *both)[1])
                    )
                print(model, seed, results[model][-1], flush=True)
    return results


def regression() -> dict[str, Any]:
    table = read_sequence_table(
        ROOT / "genomics" / "samples" / "promoters.tsv.gz", ("id", "sequence", "label", "split")
    )
    parts = {}
    for split in ("train", "val", "test"):
        part = table.filter(table["split"] == split)
        parts[split] = kmer_frequencies(part["sequence"].to_list(), 5), part["label"].to_numpy()
    tried = {}
    for c in (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 1e-1):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=500))
        model.fit(*parts["train"])
        tried[c] = roc_auc_score(parts["val"][1], model.predict_proba(parts["val"][0])[:, 1]), model
    best = max(tried, key=lambda c: tried[c][0])
    p, labels = tried[best][1].predict_proba(parts["test"][0])[:, 1], parts["test"][1]
    return {
        "C": best,
        "val_auroc": {c: auroc for c, (auroc, _) in tried.items()},
        "accuracy": accuracy_score(labels, p > 0.5),
        "auroc": roc_auc_score(labels, p),
        "mcc": matthews_corrcoef(labels, np.asarray(p) > 0.5),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    kmers = regression()
    print("5-mer logistic regression", kmers, flush=True)
    results = networks(args.seeds)
    summary = {
        model: {
            name: [statistics.mean(r[name] for r in runs), statistics.stdev(r[name] for r in runs)]
            for name in SCORES
        }
        for model, runs in results.items()
    }
    report = {
        "torch": torch.__version__,
        "split": "train: the rest, val: 3L, test: 2R",
        "5-mer logistic regression": kmers,
        "runs": results,
        "mean_and_standard_deviation": summary,
    }
    args.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(summary, indent=1))


if __name__ == "__main__":
    main()
