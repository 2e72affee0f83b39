"""DNA to token ids: one base a token, or k-mers.

Vocabulary and order are HyenaDNA's ``CharacterTokenizer`` (Nguyen et al. 2023,
https://arxiv.org/abs/2306.15794): seven special tokens, then A, C, G, T, N.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from core.jobs.errors import DataError, UsageError

CLS, SEP, BOS, MASK, PAD, RESERVED, UNK = range(7)
SPECIAL = ("[CLS]", "[SEP]", "[BOS]", "[MASK]", "[PAD]", "[RESERVED]", "[UNK]")
BASES = "ACGTN"
FIRST_BASE = len(SPECIAL)

_AMBIGUOUS = "RYSWKMBDHV"
_COMPLEMENT = str.maketrans("ACGTUNRYSWKMBDHVacgtunryswkmbdhv", "TGCAANYRSWMKVHDBtgcaanyrswmkvhdb")
_INVALID = 255

Bytes: TypeAlias = NDArray[np.uint8]


def reverse_complement(sequence: str) -> str:
    """The opposite strand, read 5' to 3'. Case and IUPAC codes are kept; U becomes A."""
    return sequence.translate(_COMPLEMENT)[::-1]


def as_bytes(sequence: str | bytes) -> Bytes:
    """The characters as (length,) uint8; one that is not Latin-1 counts as 0xFF, no base."""
    if isinstance(sequence, str):
        # One byte a character, so that an offset in an error is an offset in the text.
        sequence = sequence.encode("latin-1", errors="replace").replace(b"?", b"\xff")
    return np.frombuffer(sequence, np.uint8)


@lru_cache
def _base_table(soft_masked: str, ambiguous: str) -> Bytes:
    """(256,) ids by character code."""
    table = np.full(256, UNK if ambiguous == "unknown" else _INVALID, np.uint8)
    codes = {base: FIRST_BASE + i for i, base in enumerate(BASES)}
    codes["U"] = codes["T"]
    if ambiguous == "n":
        codes |= dict.fromkeys(_AMBIGUOUS, codes["N"])
    for base, code in codes.items():
        table[ord(base)] = code
        table[ord(base.lower())] = codes["N"] if soft_masked == "mask" else code
    table.flags.writeable = False
    return table


@dataclass(frozen=True)
class NucleotideTokenizer:
    """One token a base.

    ``soft_masked``: what lower case means. ``keep`` reads it as upper case, ``mask`` as N.
    ``ambiguous``: what IUPAC codes other than N mean. ``n`` reads them as N, ``error`` refuses
    them; both refuse characters that are no nucleotide code at all. ``unknown`` gives [UNK] to
    every character outside A, C, G, T, U, N, as HyenaDNA's own tokenizer does.
    """

    soft_masked: Literal["keep", "mask"] = "keep"
    ambiguous: Literal["n", "unknown", "error"] = "n"

    def __post_init__(self) -> None:
        if self.soft_masked not in ("keep", "mask"):
            raise UsageError(f"soft_masked must be keep or mask, got {self.soft_masked!r}")
        if self.ambiguous not in ("n", "unknown", "error"):
            raise UsageError(f"ambiguous must be n, unknown or error, got {self.ambiguous!r}")

    @property
    def vocab_size(self) -> int:
        return FIRST_BASE + len(BASES)

    @property
    def tokens(self) -> tuple[str, ...]:
        """Token texts in the order of their ids."""
        return (*SPECIAL, *BASES)

    @cached_property
    def complement(self) -> NDArray[np.int64]:
        """(vocab_size,) id of the complementary base; special tokens and N map to themselves."""
        table = np.arange(self.vocab_size)
        table[FIRST_BASE : FIRST_BASE + 4] = table[FIRST_BASE : FIRST_BASE + 4][::-1].copy()
        return table

    def encode(self, sequence: str | bytes, name: str = "sequence") -> Bytes:
        """(length,) uint8 ids, one a character; no special token is added.

        Raises DataError with ``name``, character and 0-based offset of one that is refused.
        """
        characters = as_bytes(sequence)
        ids = _base_table(self.soft_masked, self.ambiguous)[characters]
        if ids.size and ids.max() == _INVALID:
            offset = int(np.argmax(ids == _INVALID))
            found = sequence[offset] if isinstance(sequence, str) else chr(sequence[offset])
            raise DataError(f"{name}: {found!r} at offset {offset} is not a nucleotide code")
        return ids

    def decode(self, ids: NDArray[np.integer]) -> str:
        """Text of (length,) ids; special tokens are written in brackets."""
        ids = np.asarray(ids)
        if ids.size and ids.min() >= FIRST_BASE:
            return np.frombuffer(BASES.encode(), np.uint8)[ids - FIRST_BASE].tobytes().decode()
        return "".join([self.tokens[i] for i in ids.tolist()])

    def reverse_complement(self, ids: NDArray[np.integer]) -> NDArray[np.integer]:
        """(..., length) ids of the opposite strand. Padding is reversed along with the rest."""
        return self.complement.astype(ids.dtype)[ids[..., ::-1]]


@dataclass(frozen=True)
class KmerTokenizer:
    """One token per k bases, every ``stride`` bases; a trailing piece shorter than k is left out.

    The id of a k-mer is 7 plus its value in base 4 (A, C, G, T = 0, 1, 2, 3; first base most
    significant). A k-mer with N, an IUPAC code, or lower case under ``soft_masked="mask"`` is
    [UNK]. ``k`` is at most 12 (16.8 million ids).
    """

    k: int
    stride: int = 1
    soft_masked: Literal["keep", "mask"] = "keep"

    def __post_init__(self) -> None:
        if not 1 <= self.k <= 12:
            raise UsageError(f"k must lie in 1..12, got {self.k}")
        if not 1 <= self.stride <= self.k:
            raise UsageError(f"stride must lie in 1..k={self.k} to skip no base, got {self.stride}")

    @property
    def vocab_size(self) -> int:
        return FIRST_BASE + 4**self.k

    @cached_property
    def complement(self) -> NDArray[np.int64]:
        """(vocab_size,) id of the reverse complement of each k-mer; special tokens stay."""
        value = np.arange(4**self.k)
        flipped = np.zeros_like(value)
        for _ in range(self.k):
            flipped = flipped * 4 + 3 - value % 4
            value //= 4
        return np.concatenate([np.arange(FIRST_BASE), FIRST_BASE + flipped])

    def encode(self, sequence: str | bytes, name: str = "sequence") -> NDArray[np.int32]:
        """((length - k) // stride + 1,) int32 ids, empty if the sequence is shorter than k.

        Raises DataError as ``NucleotideTokenizer.encode`` does.
        """
        bases = NucleotideTokenizer(self.soft_masked).encode(sequence, name) - FIRST_BASE
        count = max(0, (len(bases) - self.k) // self.stride + 1)
        value = np.zeros(count, np.int32)
        known = np.ones(count, bool)
        for j in range(self.k if count else 0):
            digit = bases[j : j + (count - 1) * self.stride + 1 : self.stride]
            value *= 4
            value += digit
            known &= digit < 4
        return np.where(known, value + FIRST_BASE, np.int32(UNK)).astype(np.int32)

    def decode(self, ids: NDArray[np.integer]) -> str:
        """Sequence of (tokens,) ids; N where no known k-mer covers a base."""
        ids = np.asarray(ids)
        if not ids.size:
            return ""
        text = np.full((len(ids) - 1) * self.stride + self.k, ord("N"), np.uint8)
        place = np.flatnonzero(ids >= FIRST_BASE)
        value = ids[place].astype(np.int64) - FIRST_BASE
        letters = np.frombuffer(BASES.encode(), np.uint8)
        for j in range(self.k):
            text[place * self.stride + j] = letters[value // 4 ** (self.k - 1 - j) % 4]
        return text.tobytes().decode()

    def reverse_complement(self, ids: NDArray[np.integer]) -> NDArray[np.integer]:
        """(..., tokens) ids of the opposite strand, if the k-mers cover the sequence to its end."""
        return self.complement.astype(ids.dtype)[ids[..., ::-1]]
