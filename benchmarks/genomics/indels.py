"""194 real insertions and deletions of human chromosome 20, each against the brute-force answer.

    python -m genomics.data.fetch human-chr20 chr20-indels
    python benchmarks/genomics/indels.py chr20_1024.ckpt --out indels.json

The model is the one that context_length.py trained on chromosome 20. The brute force rewrites the
whole chromosome with ALT in place of REF, cuts the window and runs the model on both windows by
itself, one variant at a time.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from core.jobs.predictor import Predictor
from genomics.data.fasta import Genome
from genomics.data.fetch import fetch
from genomics.data.tokenizers import NucleotideTokenizer
from genomics.data.variant_file import VariantFile
from genomics.models import HyenaDNA
from genomics.tasks import VariantLikelihood
from genomics.tasks.variant_effect import kind_of

LENGTH = 1024


@torch.no_grad()
def log_likelihood(model: HyenaDNA, window: str) -> float:
    ids = torch.as_tensor(NucleotideTokenizer().encode(window).astype(np.int64))
    log_p = model(ids[None])[0, :-1, 7:11].double().log_softmax(-1)
    following = ids[1:]
    known = (following >= 7) & (following <= 10)
    index = torch.where(known, following - 7, 0)
    return float(log_p.gather(1, index[:, None])[:, 0][known].sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    fasta = fetch("human-chr20")["20.fa.gz"]
    vcf = fetch("chr20-indels")["01_IN.vcf.gz"]
    model = HyenaDNA(256, 4, LENGTH)
    state = torch.load(args.checkpoint, weights_only=True)["state_dict"]
    model.load_state_dict({k.removeprefix("model."): v for k, v in state.items()})
    model.eval()
    data = VariantFile(str(fasta), str(vcf), length=LENGTH, batch_size=8, wrong_ref="skip")
    with torch.no_grad():
        table = Predictor(VariantLikelihood(model), data)(data.predict_records())
    genome = Genome(fasta)
    chromosome = genome.fetch("20", 0, genome.lengths["20"])
    worst, scored, kinds = 0.0, 0, {}
    for row in table.to_pylist():
        if row["score"] is None:
            continue
        start, ref, alt = row["start"], row["ref"], row["alt"]
        mutated = chromosome[:start] + alt + chromosome[start + len(ref) :]
        cut = slice(start - LENGTH // 2, start - LENGTH // 2 + LENGTH)
        brute = log_likelihood(model, mutated[cut]) - log_likelihood(model, chromosome[cut])
        worst = max(worst, abs(brute - row["score"]))
        scored += 1
        kinds.setdefault(kind_of(ref, alt), []).append(row["score"])
    report = {
        "model": "HyenaDNA width 256, 4 layers, context 1024, trained by context_length.py",
        "records": len(table),
        "scored": scored,
        "largest_difference_from_brute_force_nats": worst,
        "median_score_nats": {k: float(np.median(v)) for k, v in kinds.items()},
        "counts": {k: len(v) for k, v in kinds.items()},
    }
    args.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
