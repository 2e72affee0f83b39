"""Token ids against the published vocabulary, biopython and brute force."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from Bio.Seq import Seq
from hypothesis import given
from hypothesis import strategies as st

from core.jobs.errors import DataError, UsageError
from genomics.data.tokenizers import (
    PAD,
    UNK,
    KmerTokenizer,
    NucleotideTokenizer,
    reverse_complement,
)

BASES = st.text("ACGT")
ANY = st.text("ACGTUNRYSWKMBDHVacgtunryswkmbdhv")


def test_vocabulary_is_hyenadna() -> None:
    """HyenaDNA, standalone_hyenadna.py: seven special tokens, then the characters A C G T N."""
    tokenizer = NucleotideTokenizer()
    assert tokenizer.tokens == (
        *("[CLS]", "[SEP]", "[BOS]", "[MASK]", "[PAD]", "[RESERVED]", "[UNK]"),
        *("A", "C", "G", "T", "N"),
    )
    assert tokenizer.encode("ACGTN").tolist() == [7, 8, 9, 10, 11]
    assert tokenizer.vocab_size == 12


@pytest.mark.parametrize(
    ("soft_masked", "ambiguous", "ids"),
    [
        ("keep", "n", [7, 7, 10, 11, 11]),
        ("mask", "n", [7, 11, 10, 11, 11]),
        ("keep", "unknown", [7, 7, 10, 11, 6]),
        ("mask", "unknown", [7, 11, 10, 11, 6]),
    ],
)
def test_policies(soft_masked: str, ambiguous: str, ids: list[int]) -> None:
    tokenizer = NucleotideTokenizer(soft_masked, ambiguous)  # type: ignore[arg-type]
    assert tokenizer.encode("AaUNR").tolist() == ids


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ACEGT", "read7: 'E' at offset 2 is not a nucleotide code"),
        ("AC-GT", "read7: '-' at offset 2 is not a nucleotide code"),
        ("ACG\u0394", "read7: '\u0394' at offset 3 is not a nucleotide code"),
        ("é", "read7: 'é' at offset 0 is not a nucleotide code"),
    ],
)
def test_a_character_that_is_no_base_is_named(text: str, message: str) -> None:
    with pytest.raises(DataError) as caught:
        NucleotideTokenizer().encode(text, "read7")
    assert str(caught.value) == message
    assert UNK in NucleotideTokenizer(ambiguous="unknown").encode(text).tolist()


def test_ambiguous_codes_can_be_refused() -> None:
    with pytest.raises(DataError, match="'R' at offset 1"):
        NucleotideTokenizer(ambiguous="error").encode("ARC")


def test_wrong_options() -> None:
    with pytest.raises(UsageError, match="soft_masked"):
        NucleotideTokenizer(soft_masked="upper")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="ambiguous"):
        NucleotideTokenizer(ambiguous="x")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="k must"):
        KmerTokenizer(0)
    with pytest.raises(UsageError, match="stride must"):
        KmerTokenizer(3, 4)


@given(ANY)
def test_reverse_complement_is_biopython(text: str) -> None:
    if "U" in text.upper() and "T" in text.upper():
        text = text.replace("U", "T").replace("u", "t")
    ours = reverse_complement(text)
    theirs = str(Seq(text.replace("U", "T").replace("u", "t")).reverse_complement())
    assert ours == theirs


@given(st.text("ACGTN"))
def test_strands_commute_with_encoding(text: str) -> None:
    tokenizer = NucleotideTokenizer()
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.encode(text.encode()).tolist() == ids.tolist()
    flipped = tokenizer.reverse_complement(ids)
    assert tokenizer.decode(flipped) == reverse_complement(text)
    assert tokenizer.reverse_complement(flipped).tolist() == ids.tolist()


def test_special_tokens_survive_the_other_strand() -> None:
    tokenizer = NucleotideTokenizer()
    ids = np.array([[7, 8, 11, PAD, UNK]])
    assert tokenizer.reverse_complement(ids).tolist() == [[UNK, PAD, 11, 9, 10]]
    assert tokenizer.decode(ids[0]) == "ACN[PAD][UNK]"


def brute_kmers(text: str, k: int, stride: int) -> list[int]:
    ids = []
    for i in range(0, len(text) - k + 1, stride):
        kmer = text[i : i + k]
        known = set(kmer) <= set("ACGT")
        ids.append(7 + int("".join(str("ACGT".index(c)) for c in kmer), 4) if known else UNK)
    return ids


@given(st.text("ACGTN", max_size=60), st.integers(1, 6), st.data())
def test_kmers_are_base_four(text: str, k: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, k))
    tokenizer = KmerTokenizer(k, stride)
    ids = tokenizer.encode(text)
    assert ids.tolist() == brute_kmers(text, k, stride)
    assert ids.size == 0 or ids.max() < tokenizer.vocab_size
    decoded = tokenizer.decode(ids)
    assert len(decoded) <= len(text)
    assert all(ours in (base, "N") for ours, base in zip(decoded, text, strict=False))


@given(BASES.filter(lambda text: len(text) >= 4), st.integers(1, 4))
def test_kmers_of_the_other_strand(text: str, k: int) -> None:
    tokenizer = KmerTokenizer(k)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    flipped = tokenizer.encode(reverse_complement(text))
    assert tokenizer.reverse_complement(ids).tolist() == flipped.tolist()


def test_kmers_honour_soft_masking() -> None:
    assert KmerTokenizer(2, 2).encode("AcGT").tolist() == [8, 18]
    assert KmerTokenizer(2, 2, "mask").encode("AcGT").tolist() == [UNK, 18]


def test_tokenizers_travel_to_workers() -> None:
    for tokenizer in (NucleotideTokenizer("mask"), KmerTokenizer(3)):
        copy = pickle.loads(pickle.dumps(tokenizer))
        assert copy == tokenizer
        assert copy.encode("ACGTN").tolist() == tokenizer.encode("ACGTN").tolist()
