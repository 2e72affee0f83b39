"""Predictions about variants as VCF, BED or bedGraph, about regions as BED or bedGraph."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import polars as pl

from core.jobs.errors import DataError, UsageError
from core.jobs.files import replacing
from core.jobs.shards import load_predictions
from genomics.data.files import writing
from genomics.data.vcf import VcfAlleles, write_scores

_PLACE = ("record", "id", "chrom", "start", "end", "strand", "ref", "alt", "reason")
_BATCH = 50_000


def export_variants(
    dataset: str | os.PathLike[str], vcf: str | os.PathLike[str], target: str | os.PathLike[str]
) -> None:
    """Write finished predictions, one row an allele of ``vcf``, in the format that the ending of
    ``target`` names: ``.vcf``, ``.bed`` or ``.bedgraph``, with ``.gz`` or ``.bgz`` for BGZF.

    The rows hold ``id``, ``chrom``, ``start`` (0-based), ``ref``, ``alt``, ``reason`` and numbers.
    VCF holds every record of ``vcf`` in its order, with every number and the reason in INFO. BED
    and bedGraph are sorted and hold the alleles that have a score.

    Raises UsageError for another ending, no finished predictions or no number in them; DataError
    if the rows are not the alleles of ``vcf``.
    """
    table, target = load_predictions(Path(dataset)), Path(target)
    scores = _scores(table, dataset)
    ending = _ending(target)
    if ending == "vcf":
        _export_vcf(table, scores, Path(vcf), target)
    elif ending == "bed":
        write_bed(_places(table, scores), target)
    elif ending == "bedgraph":
        strongest = _places(table, scores[:1]).select(
            "chrom", "start", (pl.col("start") + 1).alias("end"), scores[0]
        )
        write_bedgraph(_strongest(strongest), target)
    else:
        raise UsageError(f"{target}: predictions are exported to .vcf, .bed or .bedgraph")


def export_regions(dataset: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Write finished predictions, one row a region, as ``.bed`` with every column of numbers or
    ``.bedgraph`` of the last one, with ``.gz`` or ``.bgz`` for BGZF.

    The rows hold ``id``, ``chrom``, ``start`` (0-based), ``end``, ``strand`` and numbers; those
    without a place (a reason instead) are left out. Raises UsageError for another ending, no
    finished predictions or no number in them; DataError if a bedGraph's regions overlap.
    """
    table, target = load_predictions(Path(dataset)), Path(target)
    scores = _scores(table, dataset)
    known = table.filter(pl.col("start").is_not_null())
    if _ending(target) == "bed":
        names = ("chrom", "start", "end", pl.col("id").alias("name"))
        write_bed(known.select(*names, pl.lit(".").alias("score"), "strand", *scores), target)
    elif _ending(target) == "bedgraph":
        write_bedgraph(known.select("chrom", "start", "end", scores[-1]), target)
    else:
        raise UsageError(f"{target}: predictions are exported to .bed or .bedgraph")


def _scores(table: pl.LazyFrame, dataset: str | os.PathLike[str]) -> list[str]:
    columns = [name for name, kind in table.collect_schema().items() if kind.is_numeric()]
    scores = [name for name in columns if name not in _PLACE]
    if not scores:
        raise UsageError(f"{dataset}: there is no column of numbers to export")
    return scores


def _ending(target: Path) -> str:
    return target.name.removesuffix(".gz").removesuffix(".bgz").rsplit(".", 1)[-1]


def _export_vcf(table: pl.LazyFrame, scores: list[str], vcf: Path, target: Path) -> None:
    rows = table.select("id", "reason", *scores).collect()
    alleles = VcfAlleles(vcf)
    expected = pl.Series((allele.id for allele in alleles), dtype=pl.String)
    if not rows["id"].equals(expected):
        raise DataError(f"{vcf}: its alleles are not those of the predictions; is it another file?")
    write_scores(
        vcf,
        target,
        {name.upper(): rows[name].cast(pl.Float64).to_list() for name in scores},
        rows["reason"].to_list(),
        descriptions={name.upper(): f"{name} of the model" for name in scores},
    )


def _places(table: pl.LazyFrame, scores: list[str]) -> pl.LazyFrame:
    """BED columns of the alleles that have a score: the reference bases that are replaced."""
    end = pl.col("start") + pl.col("ref").str.len_bytes()
    name = pl.format("{}>{}", "ref", "alt")
    return table.filter(pl.col("start").is_not_null()).select(
        "chrom", "start", end.alias("end"), name.alias("name"), *scores
    )


def _strongest(table: pl.LazyFrame) -> pl.LazyFrame:
    """Of the rows at one position the one with the largest absolute value, as a bedGraph may not
    have two."""
    value = table.collect_schema().names()[3]
    known = table.filter(pl.col(value).is_not_nan() & pl.col(value).is_not_null())
    ranked = known.sort("chrom", "start", pl.col(value).abs(), descending=[False, False, True])
    return ranked.unique(["chrom", "start"], keep="first", maintain_order=True)


def write_bed(table: pl.LazyFrame, target: str | os.PathLike[str]) -> None:
    """Sorted BED of the columns chrom, start, end (0-based, half-open), name and any further ones,
    which a first line ``#chrom ...`` names. Missing values are written as ``.``."""
    names = table.collect_schema().names()
    _write(table.sort("chrom", "start", "end"), Path(target), "#" + "\t".join(names) + "\n")


def write_bedgraph(table: pl.LazyFrame, target: str | os.PathLike[str]) -> None:
    """Sorted bedGraph of the columns chrom, start, end (0-based, half-open) and one of numbers.

    Raises DataError if two stretches overlap, which the format forbids.
    """
    rows = table.sort("chrom", "start")
    inside = pl.col("start") < pl.col("end").shift(1).over("chrom")
    first = rows.filter(inside).select("chrom", "start").head(1).collect()
    if not first.is_empty():
        chrom, start = first.row(0)
        raise DataError(f"two stretches of the bedGraph overlap at {chrom}:{start} (0-based)")
    _write(rows, Path(target), "")


def _write(table: pl.LazyFrame, target: Path, header: str) -> None:
    rows = table.collect()
    with replacing(target) as part, writing(part, target.suffix in (".gz", ".bgz")) as file:
        file.write(header.encode())
        for batch in rows.iter_slices(_BATCH):
            file.write("".join(map(_line, batch.iter_rows())).encode())


def _line(fields: Iterable[object]) -> str:
    return "\t".join(map(_text, fields)) + "\n"


def _text(value: object) -> str:
    if value is None or value != value:
        return "."
    return f"{value:.7g}" if isinstance(value, float) else str(value)
