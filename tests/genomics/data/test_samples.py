"""The samples that ship are what their README says."""

from __future__ import annotations

from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from genomics.data import make_samples
from genomics.data.fasta import Genome
from genomics.data.regions import Region
from genomics.data.splits import check_region_splits, check_splits
from genomics.data.tokenizers import FIRST_BASE, KmerTokenizer
from genomics.data.variants import check_ref, normalize
from genomics.data.vcf import VcfAlleles

SAMPLES = Path(make_samples.__file__).parents[1] / "samples"


@pytest.fixture(scope="module")
def promoters() -> pl.DataFrame:
    return pl.read_csv(SAMPLES / "promoters.tsv.gz", separator="\t")


@pytest.fixture
def genome(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Genome:
    monkeypatch.setenv("LONGSPAN_CACHE", str(tmp_path))
    return Genome(SAMPLES / "chr22_20-21M.fa.gz")


def test_they_are_small() -> None:
    assert sum(file.stat().st_size for file in SAMPLES.iterdir()) < 2_500_000


def test_promoters(promoters: pl.DataFrame) -> None:
    assert len(promoters) == promoters["id"].n_unique() == 19_160
    assert set(promoters["sequence"].str.len_bytes()) == {300}
    assert Counter(promoters["split"]) == {"train": 11_660, "val": 3_782, "test": 3_718}
    assert abs(promoters["label"].mean() - 0.5) < 0.001  # type: ignore[operator]
    splits = {str(key[0]): part for key, part in promoters.group_by("split")}
    check_splits({name: part["sequence"] for name, part in splits.items()})
    regions = {
        name: [Region(*row) for row in part.select("chrom", "start", "end").iter_rows()]
        for name, part in splits.items()
    }
    check_region_splits(regions)
    places = sorted((r.chrom, r.start, r.end) for part in regions.values() for r in part)
    for (chrom, _, end), (other, start, _) in pairwise(places):
        assert chrom != other or end <= start


def test_label_1_ends_at_the_start_of_transcription(promoters: pl.DataFrame) -> None:
    """The TATA box lies 25 to 35 bases before it, on both strands, and nowhere else."""
    near = defaultdict(int)
    for sequence, label, strand in promoters.select("sequence", "label", "strand").iter_rows():
        near[strand, label] += "TATAAA" in sequence[-36:-20]
    for strand in "+-":
        assert near[strand, 1] > 4 * near[strand, 0]


@pytest.mark.slow
def test_five_mers_tell_promoters(promoters: pl.DataFrame) -> None:
    counts = np.stack(
        [
            np.bincount(KmerTokenizer(5).encode(sequence) - FIRST_BASE, minlength=1024)
            for sequence in promoters["sequence"]
        ]
    ).astype(float)
    test, label = (promoters["split"] == "test").to_numpy(), promoters["label"].to_numpy()
    model = make_pipeline(StandardScaler(), LogisticRegression(C=1e-4, max_iter=1000))
    model.fit(counts[~test], label[~test])
    area = roc_auc_score(label[test], model.predict_proba(counts[test])[:, 1])
    assert area == pytest.approx(0.794, abs=0.005)


def test_variants_fit_the_sequence(genome: Genome) -> None:
    alleles = VcfAlleles(SAMPLES / "chr22_20-21M.vcf.gz")
    assert len(alleles) == 3_502
    assert alleles[-1].record == 3_429
    assert {allele.reason for allele in alleles} == {None}
    for allele in alleles:
        check_ref(allele.variant, genome)
    indels = [a.variant for a in alleles if len(a.variant.ref) != len(a.variant.alt)]
    assert len(indels) == 187 + 141
    # dbSNP's insertions and deletions are left-aligned or nearly so; a wrong anchor would show.
    kept = [variant for variant in indels if normalize(variant, genome) == variant]
    assert len(kept) > 0.95 * len(indels)


def test_genome(genome: Genome) -> None:
    assert genome.lengths == {"chr22_20-21M": 1_000_000}
    text = genome.fetch("chr22_20-21M", 0, 1_000_000)
    assert text.count("N") == 100_000
    assert set(text) == set("ACGTN")
