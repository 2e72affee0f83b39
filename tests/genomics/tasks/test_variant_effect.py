"""Variant scores against the brute force: rewrite the sequence, run the model on both windows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning import seed_everything

from core.jobs.errors import DataError, UsageError
from core.jobs.predictor import Predictor
from genomics.data.tokenizers import NucleotideTokenizer, reverse_complement
from genomics.data.variant_file import VariantFile
from genomics.models import HyenaDNA
from genomics.tasks import VariantHeadDifference, VariantLikelihood
from genomics.tasks.variant_effect import kind_of

LENGTH = 24
SEQUENCE = "ACGTTGCAACGGTTCAGATTACAGATCCGGATATCCGGTTAACGT"
# (0-based start, ref, alt): SNV, MNV, insertion, deletion, and both ends of the chromosome
VARIANTS = [
    (20, "A", "G"),
    (10, "GG", "TA"),
    (15, "A", "ATTT"),
    (12, "TTCA", "T"),
    (0, "A", "C"),
    (44, "T", "TGG"),
]


@pytest.fixture
def fasta(tmp_path: Path) -> Path:
    path = tmp_path / "x.fa"
    path.write_text(f">chr1\n{SEQUENCE}\n")
    return path


def vcf(tmp_path: Path, *records: str) -> Path:
    path = tmp_path / "x.vcf"
    header = "##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
    path.write_text(header + "".join(f"chr1\t{r}\t.\t.\t.\n" for r in records))
    return path


@torch.no_grad()
def log_likelihood(model: HyenaDNA, window: str) -> float:
    """Sum over the window of log p(base | all before it), N left out, one position at a time."""
    ids = torch.as_tensor(NucleotideTokenizer().encode(window).astype("int64"))
    logits = model(ids[None])[0].double()
    total = 0.0
    for t in range(1, len(window)):
        if window[t] != "N":
            over_bases = logits[t - 1, 7:11].log_softmax(-1)
            total += float(over_bases["ACGT".index(window[t])])
    return total


def windows(start: int, ref: str, alt: str) -> tuple[str, str]:
    flank = "N" * LENGTH
    mutated = SEQUENCE[:start] + alt + SEQUENCE[start + len(ref) :]
    cut = slice(LENGTH + start - LENGTH // 2, LENGTH + start - LENGTH // 2 + LENGTH)
    return (flank + SEQUENCE + flank)[cut], (flank + mutated + flank)[cut]


@pytest.mark.parametrize("both", [False, True])
def test_likelihood_ratio_is_the_brute_force(tmp_path: Path, fasta: Path, both: bool) -> None:
    seed_everything(0)
    model = HyenaDNA(16, 1, LENGTH).eval()
    with torch.no_grad():  # logits far from uniform, so that every score stands clear of rounding
        model.embedding.weight.mul_(10)
    records = [f"{start + 1}\t.\t{ref}\t{alt}" for start, ref, alt in VARIANTS]
    data = VariantFile(str(fasta), str(vcf(tmp_path, *records)), length=LENGTH, batch_size=4)
    table = Predictor(VariantLikelihood(model, average_strands=both), data)(data.predict_records())
    for (start, ref, alt), score in zip(VARIANTS, table["score"].to_pylist(), strict=True):
        before, after = windows(start, ref, alt)
        expected = log_likelihood(model, after) - log_likelihood(model, before)
        if both:
            turned = log_likelihood(model, reverse_complement(after))
            turned -= log_likelihood(model, reverse_complement(before))
            expected = (expected + turned) / 2
        assert score == pytest.approx(expected, abs=1e-4)
        assert abs(score) > 1e-3


@torch.no_grad()
def test_head_difference_is_the_brute_force(tmp_path: Path, fasta: Path) -> None:
    seed_everything(0)
    task = VariantHeadDifference(HyenaDNA(16, 1, LENGTH, causal=False)).eval()
    path = vcf(tmp_path, *[f"{start + 1}\t.\t{ref}\t{alt}" for start, ref, alt in VARIANTS])
    data = VariantFile(str(fasta), str(path), length=LENGTH)
    table = Predictor(task, data)(data.predict_records())
    for row, (start, ref, alt) in enumerate(VARIANTS):
        ids = [NucleotideTokenizer().encode(w).astype("int64") for w in windows(start, ref, alt)]
        before, after = (task.head(task.model.embed(torch.as_tensor(i)[None]).mean(1)) for i in ids)
        for k in range(2):
            assert table[f"score_{k}"][row].as_py() == pytest.approx(
                float((after - before)[0, k]), abs=1e-5
            )


def test_every_record_comes_back_scored_or_with_a_reason(tmp_path: Path, fasta: Path) -> None:
    path = vcf(tmp_path, "21\t.\tA\tG,<DEL>,T", "22\t.\tC\t*", "1\t.\tA\t.", "23\t.\tG\tA")
    data = VariantFile(str(fasta), str(path), length=LENGTH, wrong_ref="skip")
    table = Predictor(VariantLikelihood(HyenaDNA(16, 1, LENGTH)), data)(data.predict_records())
    assert table["id"].to_pylist() == ["0.1", "0.2", "0.3", "1.1", "2.0", "3.1"]
    scored = [s is not None for s in table["score"].to_pylist()]
    assert scored == [True, False, True, False, False, False]
    assert table["reason"].to_pylist() == [
        None,
        "symbolic",
        None,
        "spanning_deletion",
        "no_alternate",
        "reference_mismatch",
    ]


def test_wrong_ref_stops_with_its_line(tmp_path: Path, fasta: Path) -> None:
    data = VariantFile(str(fasta), str(vcf(tmp_path, "2\t.\tA\tG")), length=LENGTH)
    with pytest.raises(DataError, match=r"x.vcf line 3: REF of chr1:2:A>G .* \(C\)"):
        data.encode(data.predict_records()[0])


def test_a_bidirectional_model_has_no_likelihood() -> None:
    with pytest.raises(UsageError, match="needs a next-token model"):
        VariantLikelihood(HyenaDNA(16, 1, LENGTH, causal=False))


def test_kinds() -> None:
    kinds = [kind_of(ref, alt) for _, ref, alt in VARIANTS]
    assert kinds == ["SNV", "MNV", "insertion", "deletion", "SNV", "insertion"]
