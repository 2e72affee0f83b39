"""FASTA files: a genome read by coordinate, and files of many records read by number."""

from __future__ import annotations

import difflib
import hashlib
import mmap
import os
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, overload

import numpy as np
import pysam
from pysam.utils import SamtoolsError

from core.jobs.errors import DataError
from core.jobs.files import cached_name, replacing
from genomics.data.files import read_lines, uncompressed
from genomics.data.genbank import as_fasta, is_genbank

_LINE_ENDS = b"\r\n"


class _Entry(NamedTuple):
    """One line of a ``.fai``: sequence length, byte offset of its first base, bases and bytes a
    line."""

    length: int
    offset: int
    bases: int
    width: int

    def byte(self, position: int) -> int:
        """Byte offset in the file of base ``position``."""
        return self.offset + position // self.bases * self.width + position % self.bases


class Genome:
    """Random access by 0-based half-open coordinates to a FASTA or GenBank file.

    The file is memory-mapped, so that the worker processes of a machine share one copy. A gzip or
    BGZF file is inflated once into the cache, a GenBank file (.gb, .gbk, .gbff) written there as
    FASTA. The index (``.fai``) lies beside the file, or in the
    cache where the folder cannot be written. Instances can be pickled and forked.

    Raises DataError if the file is missing, empty, truncated, not FASTA or has two sequences of
    one name, or if its ``.fai`` belongs to an earlier version of the file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._open()

    def _open(self) -> None:
        plain = as_fasta(self.path) if is_genbank(self.path) else uncompressed(self.path)
        self._map = _map(plain)
        index = _index_file(self.path, plain)
        self._entries = _read_index(index, self.path)
        _check_index(self._entries, self._map, index, plain, self.path)
        self.lengths = {name: entry.length for name, entry in self._entries.items()}

    def __getstate__(self) -> dict[str, Path]:
        return {"path": self.path.resolve()}

    def __setstate__(self, state: dict[str, Path]) -> None:
        self.path = state["path"]
        self._open()

    def __contains__(self, chrom: object) -> bool:
        return chrom in self._entries

    def fetch_bytes(self, chrom: str, start: int, end: int) -> bytes:
        """Bases ``start`` to ``end`` as they are written in the file, lower case included.

        Raises DataError if the chromosome is unknown or the range leaves it.
        """
        entry = self._entry(chrom)
        if not 0 <= start <= end <= entry.length:
            raise DataError(
                f"{chrom}:{start}-{end} (0-based) is not inside {chrom} of {self.path.name}, "
                f"which has {entry.length} bases"
            )
        raw = self._map[entry.byte(start) : entry.byte(end)]
        return raw if len(raw) == end - start else raw.translate(None, _LINE_ENDS)

    def fetch(self, chrom: str, start: int, end: int) -> str:
        """``fetch_bytes`` as text."""
        return self.fetch_bytes(chrom, start, end).decode("latin-1")

    def fetch_padded(self, chrom: str, start: int, end: int) -> str:
        """Like ``fetch``, with N wherever the range lies outside the chromosome."""
        length = self._entry(chrom).length
        left, right = (min(max(edge, 0), length) for edge in (start, end))
        inside = self.fetch(chrom, left, right)
        if end <= 0 or start >= length:
            return "N" * (end - start)
        return "N" * (left - start) + inside + "N" * (end - right)

    def _entry(self, chrom: str) -> _Entry:
        try:
            return self._entries[chrom]
        except KeyError:
            near = nearest_name(chrom, self._entries)
            hint = f"nearest is {near!r}"
            raise DataError(f"chromosome {chrom!r} is not in {self.path.name}; {hint}") from None


def nearest_name(name: str, known: Sequence[str] | dict[str, _Entry]) -> str:
    """The known chromosome name that is most like ``name``; chr20 and 20, M and MT are alike."""
    bare = name.removeprefix("chr")
    for alias in (bare, f"chr{bare}", *({"M": ("MT",), "MT": ("M", "chrM")}.get(bare, ()))):
        if alias in known:
            return alias
    return next(iter(difflib.get_close_matches(name, known, n=1, cutoff=0.0)))


def _map(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _index_file(source: Path, plain: Path) -> Path:
    """The ``.fai`` of ``plain``, built if there is none: beside it, else in the cache."""
    beside = plain.with_name(plain.name + ".fai")
    if beside.exists():
        return beside
    target = beside if os.access(plain.parent, os.W_OK) else cached_name(plain, ".fai")
    if not target.exists():
        with replacing(target) as part:
            verbosity = pysam.set_verbosity(0)
            try:
                pysam.faidx(str(plain), "--fai-idx", str(part))
            except SamtoolsError as error:
                _refuse_layout(source)
                raise DataError(f"{source}: cannot be indexed: {error}") from None
            finally:
                pysam.set_verbosity(verbosity)
    return target


def _refuse_layout(source: Path) -> None:
    """Say on which line a file is not a FASTA file with lines of one length; htslib does not."""
    for _ in read_fasta(source):
        pass
    width, last = 0, False
    for number, line in read_lines(source):
        if line.startswith(">"):
            width, last = 0, False
        elif line and (last or len(line) > (width or len(line))):
            raise DataError(
                f"{source} line {number}: lines of a sequence must have one length "
                "for access by coordinate; wrap the file again"
            )
        else:
            width = width or len(line)
            last = len(line) < width


def _read_index(index: Path, source: Path) -> dict[str, _Entry]:
    entries: dict[str, _Entry] = {}
    for number, line in read_lines(index) if index.stat().st_size else ():
        name, *numbers = line.split("\t")
        try:
            entry = _Entry(*map(int, numbers))
        except (TypeError, ValueError):
            raise DataError(
                f"{index} line {number}: not a FASTA index; delete it and it will be rebuilt"
            ) from None
        entries[name] = entry
    if not entries:
        raise DataError(f"{source}: no sequence in it; is it FASTA?")
    return entries


def _check_index(
    entries: dict[str, _Entry], text: mmap.mmap, index: Path, plain: Path, source: Path
) -> None:
    """Refuse an index that does not fit the file.

    Where the file is newer than the index every line end is looked at, because a file may be
    rewritten in place at the same size; where it is older, only the ends of each sequence.
    """
    newer = plain.stat().st_mtime_ns > index.stat().st_mtime_ns
    stale = DataError(
        f"{index}: the index is out of date, {source.name} was changed or cut; "
        "delete the .fai and it will be rebuilt"
    )
    reach = 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1].offset):
        if entry.length == 0:
            raise DataError(f"{source}: sequence {name!r} is empty; is the file truncated?")
        header = text.rfind(b"\n>", reach - 1 if reach else 0, entry.offset) + 1
        title = text[header : entry.offset].split(maxsplit=1)[:1]
        if title != [b">" + name.encode()] or entry.byte(entry.length - 1) >= len(text):
            raise stale
        _check_gap(text[reach:header], entries, source, stale)
        reach = entry.byte(entry.length - 1) + 1
        if newer and not _lines_fit(entry, text, reach):
            raise stale
    _check_gap(text[reach:], entries, source, stale)


def _check_gap(gap: bytes, known: dict[str, _Entry], source: Path, stale: DataError) -> None:
    """Between two sequences of the index only line ends may lie."""
    if not gap.strip():
        return
    for line in gap.splitlines():
        name = line[1:].split(maxsplit=1)[0].decode("latin-1") if line[1:].strip() else ""
        if line.startswith(b">") and name in known:
            raise DataError(f"{source}: two sequences are named {name!r}; rename one")
    raise stale


def _lines_fit(entry: _Entry, text: mmap.mmap, end: int) -> bool:
    """Whether lines end where the index says, and nowhere else."""
    raw = np.frombuffer(text, np.uint8, end - entry.offset, entry.offset)
    ends = np.flatnonzero(raw == ord("\n"))
    return np.array_equal(ends, np.arange(entry.width - 1, len(raw), entry.width))


def read_fasta(path: str | os.PathLike[str]) -> Iterator[tuple[str, str]]:
    """Yield (id, sequence) in the order of the file, one record in memory at a time.

    The id is the header up to the first blank. Raises DataError with the line number if there is
    text before the first header, a header without an id or a record without a sequence.
    """
    name, first, parts = "", 0, list[str]()
    for number, line in read_lines(path):
        if line.startswith(">"):
            if first:
                yield name, _joined(parts, f"{path} line {first}: record {name!r}")
            name, first, parts = _id_of(line, f"{path} line {number}"), number, []
        elif first:
            parts.append(line.strip())
        elif line.strip():
            raise DataError(f"{path} line {number}: text before the first '>'; is it FASTA?")
    if not first:
        raise DataError(f"{path}: no sequence in it; is it FASTA?")
    yield name, _joined(parts, f"{path} line {first}: record {name!r}")


def _id_of(header: str, where: str) -> str:
    words = header[1:].split(maxsplit=1)
    if not words or header[1].isspace():
        raise DataError(f"{where}: header without an id")
    return words[0]


def _joined(parts: list[str], where: str) -> str:
    sequence = "".join(parts)
    if not sequence:
        raise DataError(f"{where} has no sequence; is the file truncated?")
    return sequence


class FastaRecords(Sequence[dict[str, str]]):
    """A FASTA file as a sequence of ``{"id": ..., "sequence": ...}``, read when asked for.

    Lines may have any length. Memory is 8 bytes a record; the file is mapped (gzip and BGZF are
    inflated once into the cache). Instances can be pickled and forked.

    Raises DataError with the line number if two records share an id, and as ``read_fasta`` does.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._open()
        self._refuse_duplicates()

    def _open(self) -> None:
        self._map = _map(uncompressed(self.path))
        self._offsets = _header_offsets(self._map, self.path)

    def __getstate__(self) -> dict[str, Path]:
        return {"path": self.path.resolve()}

    def __setstate__(self, state: dict[str, Path]) -> None:
        self.path = state["path"]
        self._open()

    def __len__(self) -> int:
        return len(self._offsets) - 1

    @overload
    def __getitem__(self, index: int) -> dict[str, str]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, str]]: ...
    def __getitem__(self, index: int | slice) -> dict[str, str] | list[dict[str, str]]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"record {index} of {len(self)} in {self.path}")
        index %= len(self)
        header, _, body = self._map[self._offsets[index] : self._offsets[index + 1]].partition(
            b"\n"
        )
        sequence = body.translate(None, b" \t" + _LINE_ENDS).decode("latin-1")
        if not sequence:
            raise DataError(f"{self._where(index)} has no sequence; is the file truncated?")
        return {"id": self._decoded_id(header, index), "sequence": sequence}

    def _decoded_id(self, header: bytes, index: int) -> str:
        words = header[1:].split(maxsplit=1)
        if not words or header[1:2].isspace():
            raise DataError(f"{self._where(index)}: header without an id")
        return words[0].decode("utf-8", errors="replace")

    def _where(self, index: int) -> str:
        line = 1 + self._map[: self._offsets[index]].count(b"\n")
        return f"{self.path} line {line}: record {index}"

    def _refuse_duplicates(self) -> None:
        """64-bit digests of the ids are sorted, so that a million ids take 8 MB and not 100."""
        digests = np.empty(len(self), np.uint64)
        for i in range(len(self)):
            digests[i] = _digest(self._id_bytes(i))
        order = np.argsort(digests, kind="stable")
        same = np.flatnonzero(digests[order][1:] == digests[order][:-1])
        for first, second in zip(order[same].tolist(), order[same + 1].tolist(), strict=True):
            name = self._id_bytes(first)
            if name == self._id_bytes(second):
                raise DataError(
                    f"{self._where(second)}: id {name.decode()!r} was used before, "
                    f"in record {first}; ids must be unique"
                )

    def _id_bytes(self, index: int) -> bytes:
        start = self._offsets[index]
        stop = self._map.find(b"\n", start)
        header = self._map[start : stop if stop >= 0 else None]
        return self._decoded_id(header, index).encode()


def _digest(name: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little")


def _header_offsets(text: mmap.mmap, path: Path) -> array[int]:
    """Byte offsets of all headers, then the size of the file."""
    first = 0 if text[:1] == b">" else text.find(b"\n>") + 1
    if first == 0 and text[:1] != b">":
        raise DataError(f"{path}: no sequence in it; is it FASTA?")
    if text[:first].strip():
        raise DataError(f"{path} line 1: text before the first '>'; is it FASTA?")
    offsets = array("q")
    while first > 0 or not offsets:
        offsets.append(first)
        first = text.find(b"\n>", first + 1) + 1
    offsets.append(len(text))
    return offsets
