"""Regions of a genome with classes, from BED, GFF3, GTF or GenBank."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from core.jobs.data import Record, SkipRecord
from core.jobs.errors import DataError, UsageError
from genomics.data.batches import Example
from genomics.data.bed import read_bed
from genomics.data.exports import export_regions
from genomics.data.fasta import Genome
from genomics.data.genbank import is_genbank, read_genbank
from genomics.data.gff import Feature, read_gff
from genomics.data.labelled import LabelledExamples
from genomics.data.regions import Region
from genomics.data.splits import check_region_splits, check_splits, split_regions
from genomics.data.tokenizers import reverse_complement

_GFF = (".gff", ".gff3", ".gtf")
SPLITS = ("train", "val", "test")


class LabelledRegions(LabelledExamples):
    """Classification data: regions of the genome in ``fasta`` (FASTA or GenBank).

    ``regions`` is BED, GFF3, GTF or GenBank (plain, gzip or BGZF). ``label`` names what holds the
    class: a BED column (``columns`` names those after chrom, start and end where no header does),
    a GFF or GenBank attribute, or ``type``, the feature's type. ``classes`` maps its values to
    classes; regions of any other value are left out. Without it, values are class numbers.

    ``splits`` gives val and test their chromosomes or stretches of them, as ``{"test": ["chr2",
    "chr4:1-1000"]}``; the rest is train, and regions across a border are left out, with a warning.
    Without it a BED column ``split`` decides. Regions of two splits that overlap, and sequences
    that stand in two on either strand, are refused.

    With ``length``, each example is a window of that many bases around the middle of its region, N
    where it leaves the chromosome; without, the region itself. Strand ``-`` is read as the reverse
    complement. ``predict_regions`` names what ``predict`` reads; without it, the test split.
    Records are dicts of ``id``, ``chrom``, ``start`` (0-based), ``end`` and ``strand``. Exports:
    BED of every number, bedGraph of the last.
    """

    input_columns = {  # noqa: RUF012  # read only
        "id": "string",
        "chrom": "string",
        "start": "long",
        "end": "long",
        "strand": "string",
    }
    exports = (".bed", ".bed.gz", ".bedgraph", ".bedgraph.gz")

    def __init__(
        self,
        fasta: str,
        regions: str | None = None,
        predict_regions: str | None = None,
        label: str = "label",
        classes: dict[str, int] | None = None,
        columns: list[str] | None = None,
        splits: dict[str, list[str]] | None = None,
        length: int | None = None,
        batch_size: int = 64,
        num_workers: int = 0,
        reverse_complement: bool = False,
        soft_masked: Literal["keep", "mask"] = "keep",
    ) -> None:
        super().__init__(batch_size, num_workers, reverse_complement, soft_masked)
        self.fasta = Path(fasta)
        self.regions = None if regions is None else Path(regions)
        self.predict_regions = None if predict_regions is None else Path(predict_regions)
        self.label, self.classes, self.columns = label, classes, columns
        self.plan, self.length = splits, length
        if length is not None and length < 1:
            raise UsageError(f"data.length must be at least 1, got {length}")
        unknown = sorted(set(splits or ()) - set(SPLITS))
        if unknown:
            raise UsageError(f"data.splits: {unknown[0]!r} is none of {', '.join(SPLITS)}")

    @cached_property
    def genome(self) -> Genome:
        return Genome(self.fasta)

    def _split_regions(self, stage: str) -> dict[str, list[Region]]:
        if self.regions is None:
            raise UsageError(f"{stage} needs data.regions, a BED, GFF3, GTF or GenBank file")
        found = read_regions(self.regions, self.genome, self.columns)
        if self.classes is not None:
            found = [r for r in found if r.fields.get(self.label) in self.classes]
            if not found:
                known = ", ".join(self.classes)
                raise DataError(f"{self.regions}: no region whose {self.label} is one of {known}")
        if self.plan is not None:
            splits, astride = split_regions(found, self.plan, self.genome.lengths)
            if astride:
                warnings.warn(
                    f"{self.regions}: {len(astride)} regions lie across the border of a split "
                    "and are left out",
                    stacklevel=2,
                )
            return splits
        splits = {name: [] for name in SPLITS}
        for region in found:
            name = region.fields.get("split")
            if name not in splits:
                raise DataError(
                    f"{self.regions}: region {region} has split {name!r}, none of train, val, "
                    "test; give data.splits, or a column split"
                )
            splits[name].append(region)
        return splits

    def read_splits(self, stage: str) -> dict[str, list[Example]]:
        splits = {
            name: [(self._window(region), region) for region in regions]
            for name, regions in self._split_regions(stage).items()
        }
        check_region_splits({name: [w for w, _ in pairs] for name, pairs in splits.items()})
        texts = {name: [self._text(w) for w, _ in pairs] for name, pairs in splits.items()}
        check_splits(texts)
        return {
            name: [
                Example(str(window), self.tokenizer.encode(text, str(window)), self._class(region))
                for (window, region), text in zip(pairs, texts[name], strict=True)
            ]
            for name, pairs in splits.items()
        }

    def _class(self, region: Region) -> int:
        value = region.fields.get(self.label)
        if self.classes is not None and value is not None:
            return self.classes[value]
        if value is None or not value.isdigit():
            raise DataError(
                f"{self.regions}: region {region} has {self.label} {value!r}; classes are 0, 1, "
                "2, ... or named by data.classes"
            )
        return int(value)

    def _window(self, region: Region) -> Region:
        if self.length is None:
            return region
        start = (region.start + region.end - self.length) // 2
        return Region(region.chrom, start, start + self.length, strand=region.strand)

    def _text(self, window: Region) -> str:
        text = self.genome.fetch_padded(window.chrom, window.start, window.end)
        return reverse_complement(text) if window.strand == "-" else text

    def predict_records(self) -> Sequence[Record]:
        if self.predict_regions is not None:
            return _Records(read_regions(self.predict_regions, self.genome, self.columns))
        return _Records(self._split_regions("predict").get("test", []))

    def encode(self, record: Record) -> Example:
        region = Region(
            *(str(record["chrom"]), int(record["start"]), int(record["end"])),
            strand=str(record["strand"]),
        )
        if not len(region) and self.length is None:
            raise SkipRecord("a region of no bases")
        name = str(record["id"])
        tokens = self.tokenizer.encode(self._text(self._window(region)), f"record {name}")
        place = {"chrom": region.chrom, "start": region.start, "end": region.end}
        return Example(name, tokens, columns={**place, "strand": region.strand})

    def digest_files(self) -> list[Path]:
        named = (self.fasta, self.regions, self.predict_regions)
        return list(dict.fromkeys(p for p in named if p is not None and p.is_file()))

    def export(self, dataset: Path, target: Path) -> None:
        export_regions(dataset, target)


def read_regions(path: Path, genome: Genome, columns: Sequence[str] | None = None) -> list[Region]:
    """Regions of a BED, GFF3, GTF or GenBank file, which its name tells apart.

    A feature's type, source and attributes are the region's ``fields``. Raises DataError as the
    readers do, and if a region is not inside ``genome``.
    """
    bare = path.name.lower().removesuffix(".gz").removesuffix(".bgz")
    features: Iterable[Feature]
    if is_genbank(path):
        features = (f for record in read_genbank(path) for f in record.features)
    elif bare.endswith(_GFF):
        features = read_gff(path)
    elif bare.endswith(".bed"):
        return read_bed(path, columns, genome)
    else:
        raise UsageError(f"{path}: give .bed, .gff, .gff3, .gtf or GenBank (.gb, .gbk, .gbff)")
    return list(_from_features(features, genome, path))


def _from_features(features: Iterable[Feature], genome: Genome, path: Path) -> Iterator[Region]:
    for f in features:
        try:
            genome.fetch_bytes(f.chrom, f.start, f.end)
        except DataError as error:
            raise DataError(f"{path}: {f.type}: {error}") from None
        fields: Mapping[str, str] = {k: ",".join(v) for k, v in f.attributes.items()}
        strand = f.strand if f.strand in "+-" else "."
        fields = {**fields, "type": f.type, "source": f.source}
        yield Region(f.chrom, f.start, f.end, fields.get("ID", "."), f.score, strand, fields)


class _Records(Sequence[Record]):
    """Regions as records. Their names are the ids if they tell them apart, else their places."""

    def __init__(self, regions: Sequence[Region]) -> None:
        if not regions:
            raise DataError("no regions to predict; is the test split empty?")
        self.regions = regions
        names = [r.name for r in regions]
        if "." in names or len(set(names)) < len(names):
            names, seen = [], Counter[str]()
            for region in regions:
                place = f"{region}{region.strand}"
                seen[place] += 1
                names.append(place if seen[place] == 1 else f"{place}#{seen[place]}")
        self.names = names

    def __len__(self) -> int:
        return len(self.regions)

    def __getitem__(self, index: Any) -> Any:
        r = self.regions[index]
        place = {"chrom": r.chrom, "start": r.start, "end": r.end, "strand": r.strand}
        return {"id": self.names[index], **place}
