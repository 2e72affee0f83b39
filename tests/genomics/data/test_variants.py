"""Variants against a chromosome rewritten as a whole."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.jobs.errors import DataError, UsageError
from genomics.data.fasta import Genome
from genomics.data.variants import Variant, check_ref, normalize, windows_for

REPEATS = "ACACACACGGGTTTTTTACGTACGTNNACGGGGGGGCAcacacaTTGTTGTTGA"


@pytest.fixture(scope="module")
def genome(tmp_path_factory: pytest.TempPathFactory) -> Genome:
    path = tmp_path_factory.mktemp("variants") / "g.fa"
    path.write_text(f">c\n{REPEATS}\n>other\nACGT\n")
    return Genome(path)


@st.composite
def variants(draw: st.DrawFn) -> Variant:
    """A replacement of 1 to 8 reference bases by 1 to 8 others, anywhere on the chromosome."""
    start = draw(st.integers(0, len(REPEATS) - 1))
    end = draw(st.integers(start + 1, min(start + 8, len(REPEATS))))
    ref = REPEATS[start:end].upper()
    near = st.builds(lambda a, b: ref[:a] + ref[b:], *[st.integers(0, len(ref))] * 2)
    alt = draw(st.one_of(st.text("ACGT", min_size=1, max_size=8), near.filter(bool)))
    return Variant("c", start, ref, alt)


def mutated(variant: Variant) -> str:
    """The whole chromosome with the variant in it, upper case."""
    text = REPEATS.upper()
    assert text[variant.pos : variant.end] == variant.ref
    return text[: variant.pos] + variant.alt + text[variant.end :]


def cut(text: str, start: int, length: int) -> str:
    return "".join(text[i] if 0 <= i < len(text) else "N" for i in range(start, start + length))


@given(variant=variants(), length=st.integers(1, 150))
def test_windows_are_cut_from_the_rewritten_chromosome(
    genome: Genome, variant: Variant, length: int
) -> None:
    windows = windows_for(variant, genome, length)
    start = variant.pos - length // 2
    assert windows.offset == length // 2
    assert windows.ref == cut(REPEATS, start, length)
    assert windows.alt.upper() == cut(mutated(variant), start, length)
    shown = min(len(variant.ref), length - windows.offset)
    assert windows.ref[windows.offset :][:shown].upper() == variant.ref[:shown]


def test_indels_shift_what_follows(genome: Genome) -> None:
    deletion = windows_for(Variant("c", 9, "GGT", "G"), genome, 8)
    assert deletion.ref == REPEATS[5:13]
    assert deletion.alt == REPEATS[5:10] + REPEATS[12:15]
    insertion = windows_for(Variant("c", 9, "G", "GAAAAAAA"), genome, 8)
    assert insertion.alt == REPEATS[5:10] + "AAA"


def test_windows_past_both_ends_are_padded(genome: Genome) -> None:
    windows = windows_for(Variant("other", 0, "A", "T"), genome, 12)
    assert windows == ("NNNNNNACGTNN", "NNNNNNTCGTNN", 6)


def test_the_alternate_takes_the_case_of_the_reference(genome: Genome) -> None:
    at = REPEATS.index("cacaca")
    assert windows_for(Variant("c", at, "C", "T"), genome, 3).alt == "Ata"


def test_impossible_windows(genome: Genome) -> None:
    with pytest.raises(UsageError, match="length must be at least 1"):
        windows_for(Variant("c", 0, "A", "T"), genome, 0)
    with pytest.raises(DataError, match="not inside c"):
        windows_for(Variant("c", len(REPEATS), "A", "T"), genome, 4)


def simplest(variant: Variant) -> tuple[int, int, str, str]:
    """Of all ways to write the same change, shortest first, leftmost next."""
    text, goal = REPEATS.upper(), mutated(variant)
    found = []
    for start in range(len(text)):
        for end in range(start + 1, min(len(text), start + 20) + 1):
            size = len(goal) - len(text) + end - start
            if size < 1 or text[:start] != goal[:start] or text[end:] != goal[start + size :]:
                continue
            found.append((size + end - start, start, text[start:end], goal[start : start + size]))
    return min(found)


@settings(max_examples=300)
@given(variant=variants())
def test_normal_form_is_the_shortest_then_leftmost(genome: Genome, variant: Variant) -> None:
    if variant.ref == variant.alt:
        assert normalize(variant, genome) == variant
        return
    normal = normalize(variant, genome)
    assert mutated(normal) == mutated(variant)
    assert normalize(normal, genome) == normal
    _, start, ref, alt = simplest(variant)
    assert normal == Variant("c", start, ref, alt)


def test_reference_check(genome: Genome) -> None:
    at = REPEATS.index("cacaca")
    assert check_ref(Variant("c", at, "CAC", "T"), genome) is None
    bad = {
        Variant("c", 0, "G", "T"): ("reference_mismatch", "REF of c:1:G>T is not what g.fa has"),
        Variant("c", 51, "GATT", "T"): ("outside_chromosome", "reaches past the end of c"),
        Variant("chrother", 0, "A", "T"): ("unknown_chromosome", "nearest is 'other'"),
    }
    for variant, (reason, message) in bad.items():
        assert check_ref(variant, genome, "skip") == reason
        with pytest.raises(DataError) as caught:
            check_ref(variant, genome, "fail", "a.vcf line 7")
        assert str(caught.value).startswith("a.vcf line 7: ")
        assert message in str(caught.value)
    with pytest.raises(UsageError, match="fail or skip"):
        check_ref(Variant("c", 0, "A", "T"), genome, "ignore")  # type: ignore[arg-type]
