"""What reading and writing cost around the model, and whether memory grows with the records.

    python benchmarks/genomics/prediction.py --out prediction.json

(1) 10,000 sequences of 2,000 bases through HyenaDNA tiny: wall time of the whole job, and of the
model alone on the same batches. (2) Peak memory of a job of 1,000, 100,000 and 400,000 sequences
of 200 bases with a model of next to no size, each in a process of its own. (3) 10,000 SNVs of a
63 Mb chromosome in two workers: memory that a worker shares with nobody (a copy would be 60 MiB).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import psutil
import torch

from core.jobs.predictions import PredictionConfig, predict
from genomics.data.fasta import Genome
from genomics.data.fetch import fetch
from genomics.data.labelled import LabelledSequences
from genomics.data.variant_file import VariantFile
from genomics.models import ConvEncoder, HyenaDNA
from genomics.tasks import SequenceClassification, VariantLikelihood


class Timed(SequenceClassification):
    """Counts the seconds inside the model."""

    inside = 0.0

    def predict_step(self, batch: dict[str, Any], *rest: Any) -> dict[str, Any]:
        started = time.perf_counter()
        columns = super().predict_step(batch, *rest)
        self.inside += time.perf_counter() - started
        return columns


def write_fasta(path: Path, records: int, length: int) -> Path:
    random = np.random.default_rng(0)
    with path.open("w") as file:
        for i in range(records):
            bases = random.choice(np.frombuffer(b"ACGT", np.uint8), length).tobytes().decode()
            file.write(f">r{i}\n{bases}\n")
    return path


def job(task: L.LightningModule, data: Any, out: Path) -> float:
    trainer = L.Trainer(logger=False, accelerator="cpu", enable_progress_bar=False)
    started = time.perf_counter()
    predict(task, data, trainer, PredictionConfig(str(out)), model_version="x", config_hash="x")
    return time.perf_counter() - started


def overhead(folder: Path, records: int) -> dict[str, float]:
    torch.set_num_threads(2)
    fasta = write_fasta(folder / "long.fa", records, 2000)
    task = Timed(HyenaDNA(128, 2, 2000, causal=False))
    wall = job(task, LabelledSequences(predict_path=str(fasta), batch_size=16), folder / "long")
    return {"wall_s": wall, "model_s": task.inside, "share_outside_model": 1 - task.inside / wall}


def peak_memory(records: int, queue: Any) -> None:
    with tempfile.TemporaryDirectory() as name:
        fasta = write_fasta(Path(name) / "x.fa", records, 200)
        task = SequenceClassification(ConvEncoder(4, 1))
        seconds = job(
            task, LabelledSequences(predict_path=str(fasta), batch_size=256), Path(name) / "out"
        )
    queue.put((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, seconds))


def in_a_process(target: Any, *arguments: Any) -> Any:
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=target, args=(*arguments, queue))
    process.start()
    answer = queue.get()
    process.join()
    return answer


class Watched(VariantFile):
    """Notes the memory that its worker shares with nobody, and what it has read of the genome."""

    def collate(self, examples: list[Any]) -> dict[str, Any]:
        batch = super().collate(examples)
        process = psutil.Process()
        batch["columns"]["private_mib"] = [process.memory_full_info().uss / 2**20] * len(examples)
        return batch


def snvs(folder: Path, count: int) -> dict[str, Any]:
    fasta = fetch("human-chr20")["20.fa.gz"]
    genome = Genome(fasta)
    random = np.random.default_rng(0)
    places = np.sort(random.choice(np.arange(100_000, 62_000_000), 2 * count, replace=False))
    lines = ["##fileformat=VCFv4.2", "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO"]
    for pos in places:
        ref = genome.fetch("20", int(pos), int(pos) + 1).upper()
        if ref != "N" and len(lines) < count + 2:
            alt = "ACGT"[("ACGT".index(ref) + 1) % 4]
            lines.append(f"20\t{pos + 1}\t.\t{ref}\t{alt}\t.\t.\t.")
    vcf = folder / "snvs.vcf"
    vcf.write_text("\n".join(lines) + "\n")
    del genome
    data = Watched(str(fasta), str(vcf), length=128, batch_size=64, num_workers=2)
    wall = job(VariantLikelihood(HyenaDNA(16, 1, 128)), data, folder / "snvs")
    import polars as pl

    from core.jobs.shards import load_predictions

    private = load_predictions(folder / "snvs").select(pl.col("private_mib").max()).collect().item()
    return {"snvs": count, "wall_s": wall, "largest_private_mib_of_a_worker": private}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--records", type=int, default=10_000)
    args = parser.parse_args()
    report: dict[str, Any] = {"torch": torch.__version__, "threads": 2}
    for records in (1_000, 100_000, 400_000):
        mib, seconds = in_a_process(peak_memory, records)
        report[f"peak_mib_{records}_records"] = mib
        report[f"seconds_{records}_records"] = seconds
    with tempfile.TemporaryDirectory() as folder:
        report["snv_scoring"] = snvs(Path(folder), 10_000)
        report[f"{args.records}_sequences_of_2000"] = overhead(Path(folder), args.records)
    args.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
