"""Variants of a VCF file with both alleles' windows, for variant effect prediction."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from lightning.pytorch import LightningModule
from numpy.typing import NDArray

from core.jobs.data import Record, RecordDataModule, SkipRecord
from core.jobs.errors import UsageError
from genomics.data.fasta import Genome
from genomics.data.tokenizers import NucleotideTokenizer
from genomics.data.variants import Variant, check_ref, windows_for
from genomics.data.vcf import VcfAlleles


class Pair(NamedTuple):
    """One allele: ids of its two windows, both (length,), and where it lies."""

    id: str
    variant: Variant
    ref: NDArray[np.integer]
    alt: NDArray[np.integer]


class VariantFile(RecordDataModule):
    """Every alternate allele of a VCF, as windows of ``length`` bases of the genome in ``fasta``.

    The variant's first base stands at ``length // 2`` of both windows; insertions and deletions are
    really made, N fills windows that leave the chromosome. ``wrong_ref`` says what becomes of a
    record whose REF is not what the genome has: ``fail`` stops, ``skip`` gives it a reason. Alleles
    without a sequence (symbolic, breakends, ``*``) come back with a reason too. Records are dicts
    of ``id``, ``chrom``, ``start`` (0-based), ``ref`` and ``alt``. Exports: VCF with INFO fields,
    BED and bedGraph of the scores.
    """

    input_columns = {  # noqa: RUF012  # read only
        "id": "string",
        "chrom": "string",
        "start": "long",
        "ref": "string",
        "alt": "string",
    }
    exports = (".vcf", ".vcf.gz", ".vcf.bgz", ".bed", ".bed.gz", ".bedgraph", ".bedgraph.gz")

    def __init__(
        self,
        fasta: str,
        vcf: str | None = None,
        length: int = 1024,
        batch_size: int = 32,
        num_workers: int = 0,
        wrong_ref: Literal["fail", "skip"] = "fail",
        soft_masked: Literal["keep", "mask"] = "keep",
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers)
        if length < 2:
            raise UsageError(f"data.length must be at least 2, got {length}")
        self.fasta, self.length = Path(fasta), length
        self.vcf = None if vcf is None else Path(vcf)
        self.wrong_ref: Literal["fail", "skip"] = wrong_ref
        self.tokenizer = NucleotideTokenizer(soft_masked=soft_masked)

    @cached_property
    def genome(self) -> Genome:
        return Genome(self.fasta)

    def check_input(self, stage: str, task: LightningModule) -> None:
        self.genome.lengths  # noqa: B018  # reads the file

    def predict_records(self) -> Sequence[Record]:
        if self.vcf is None:
            raise UsageError("predict needs data.vcf, a VCF file")
        return _Alleles(VcfAlleles(self.vcf))

    def encode(self, record: Record) -> Pair:
        reason = record.get("reason")
        if reason:
            raise SkipRecord(reason)
        variant = Variant(
            str(record["chrom"]), int(record["start"]), record["ref"].upper(), record["alt"].upper()
        )
        where = f"{self.vcf or 'record'}{record.get('where', ' ' + str(record['id']))}"
        reason = check_ref(variant, self.genome, self.wrong_ref, where)
        if reason:
            raise SkipRecord(reason)
        windows = windows_for(variant, self.genome, self.length)
        encode = self.tokenizer.encode
        return Pair(str(record["id"]), variant, encode(windows.ref), encode(windows.alt))

    def collate(self, examples: list[Pair]) -> dict[str, Any]:
        """``ref`` and ``alt`` ids (batch, length); ``columns`` to carry into the predictions."""
        variants = [e.variant for e in examples]
        return {
            "id": [e.id for e in examples],
            "ref": torch.from_numpy(np.stack([e.ref for e in examples]).astype(np.int64)),
            "alt": torch.from_numpy(np.stack([e.alt for e in examples]).astype(np.int64)),
            "columns": {
                "chrom": [v.chrom for v in variants],
                "start": [v.pos for v in variants],
                "ref": [v.ref for v in variants],
                "alt": [v.alt for v in variants],
            },
        }

    def digest_files(self) -> list[Path]:
        return [p for p in (self.fasta, self.vcf) if p is not None and p.is_file()]

    def export(self, dataset: Path, target: Path) -> None:
        from genomics.data.exports import export_variants

        assert self.vcf is not None
        export_variants(dataset, self.vcf, target)


class _Alleles(Sequence[Record]):
    """Alleles as records, made when asked for."""

    def __init__(self, alleles: VcfAlleles) -> None:
        self.alleles = alleles

    def __len__(self) -> int:
        return len(self.alleles)

    def __getitem__(self, index: Any) -> Any:
        allele = self.alleles[index]
        return {
            "id": allele.id,
            "chrom": allele.variant.chrom,
            "start": allele.variant.pos,
            "ref": allele.variant.ref,
            "alt": allele.variant.alt,
            "reason": allele.reason,
            "where": f" line {allele.line}",
        }
