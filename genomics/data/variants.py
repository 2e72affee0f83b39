"""Small variants on a genome: reference check, normal form, windows of both alleles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from core.jobs.errors import DataError, UsageError
from genomics.data.fasta import Genome

Policy = Literal["fail", "skip"]


@dataclass(frozen=True, slots=True)
class Variant:
    """``ref`` at 0-based ``pos`` is replaced by ``alt``; both are upper case and not empty."""

    chrom: str
    pos: int
    ref: str
    alt: str

    @property
    def end(self) -> int:
        """0-based position after the last reference base."""
        return self.pos + len(self.ref)

    def __str__(self) -> str:
        return f"{self.chrom}:{self.pos + 1}:{self.ref}>{self.alt}"


class VariantWindows(NamedTuple):
    """Two windows of one length that start at the same base of the genome."""

    ref: str
    alt: str
    offset: int
    """Position of the variant's first base inside both windows."""


def check_ref(
    variant: Variant, genome: Genome, policy: Policy = "fail", where: str = "variant"
) -> str | None:
    """None if REF is what the genome has there, in whatever case; N in the genome fits nothing.

    Otherwise ``policy`` decides: "skip" returns the reason, ``unknown_chromosome``,
    ``outside_chromosome`` or ``reference_mismatch``; "fail" raises DataError starting with
    ``where``.
    """
    if policy not in ("fail", "skip"):
        raise UsageError(f"the policy for wrong REF must be fail or skip, got {policy!r}")
    skip = policy == "skip"
    if variant.chrom not in genome:
        if skip:
            return "unknown_chromosome"
        try:
            genome.fetch_bytes(variant.chrom, 0, 0)
        except DataError as error:
            raise DataError(f"{where}: {error}") from None
    length = genome.lengths[variant.chrom]
    if variant.pos < 0 or variant.end > length:
        if skip:
            return "outside_chromosome"
        raise DataError(
            f"{where}: {variant} reaches past the end of {variant.chrom} ({length} bases); "
            "is this the right genome?"
        )
    found = genome.fetch(variant.chrom, variant.pos, variant.end).upper()
    if found == variant.ref:
        return None
    if skip:
        return "reference_mismatch"
    raise DataError(
        f"{where}: REF of {variant} is not what {genome.path.name} has there ({found}); "
        "is this the right genome?"
    )


def windows_for(variant: Variant, genome: Genome, length: int) -> VariantWindows:
    """REF and ALT sequence, ``length`` bases each, with the variant's first base in the middle.

    Both windows start ``length // 2`` bases before ``pos``. The ALT window is cut, at that start,
    from the chromosome with REF taken out and ALT put in, so that an insertion or deletion shifts
    the bases downstream of it and bases from further downstream fill the window. N stands where a
    window lies outside the chromosome. ALT takes the case of the base at ``pos``, so that a
    tokenizer which masks lower case treats both alleles alike.

    Raises DataError if the chromosome is unknown or the variant lies outside it.
    """
    if length < 1:
        raise UsageError(f"the window length must be at least 1, got {length}")
    offset = length // 2
    start = variant.pos - offset
    reference = genome.fetch_padded(variant.chrom, start, start + length)
    first = genome.fetch(variant.chrom, variant.pos, variant.end)[:1]
    alternate = variant.alt.lower() if first.islower() else variant.alt
    rest = length - offset - len(alternate)
    after = genome.fetch_padded(variant.chrom, variant.end, variant.end + rest) if rest > 0 else ""
    return VariantWindows(reference, (reference[:offset] + alternate + after)[:length], offset)


def normalize(variant: Variant, genome: Genome) -> Variant:
    """The variant left-aligned and with as few bases as possible (Tan, Abecasis and Kang 2015,
    "Unified representation of genetic variants", Bioinformatics 31: 2202).

    Bases that end both alleles are cut off, taking in the base before whenever an allele runs
    empty; then bases that begin both are cut off while each keeps one. At the first base of a
    chromosome the base after is taken in, as VCF has it. REF must be what the genome has.
    """
    pos, ref, alt = variant.pos, variant.ref, variant.alt
    if ref == alt:
        return variant
    while ref and alt and ref[-1] == alt[-1]:
        ref, alt = ref[:-1], alt[:-1]
        if not (ref and alt) and pos > 0:
            pos -= 1
            before = genome.fetch(variant.chrom, pos, pos + 1).upper()
            ref, alt = before + ref, before + alt
    if not (ref and alt):
        after = genome.fetch(variant.chrom, pos + len(ref), pos + len(ref) + 1).upper()
        ref, alt = ref + after, alt + after
    while min(len(ref), len(alt)) > 1 and ref[0] == alt[0]:
        pos, ref, alt = pos + 1, ref[1:], alt[1:]
    return Variant(variant.chrom, pos, ref, alt)
