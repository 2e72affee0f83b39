"""Scores to events and events to MIDI; music21 reads both sides."""

from __future__ import annotations

from pathlib import Path

import music21
import polars as pl
import pytest

from core.jobs.errors import UsageError
from timeseries.data.chorales import (
    END,
    VOICES,
    ChoraleSequences,
    chorale_table,
    score_events,
    write_midi,
)
from timeseries.data.events import read_events


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGSPAN_CACHE", str(tmp_path / "cache"))


def score(*voices: str) -> music21.stream.Score:
    """Voices in TinyNotation."""
    whole = music21.stream.Score()
    for voice in voices:
        whole.insert(0, music21.converter.parse(f"tinyNotation: {voice}"))
    return whole


def test_events_of_a_score() -> None:
    """A tie is one note, a note struck again is two, rests together are one."""
    events = score_events(
        score("4/4 c'2~ c'4 d'4", "4/4 e4 e4 r2", "4/4 r4 r4 g2", "4/4 C8 D8 C4 C2")
    )
    assert events == [
        *((0.0, kind) for kind in ("S72", "A64", "T-", "B48")),
        (0.5, "B50"),
        *((1.0, kind) for kind in ("A64", "B48")),
        *((2.0, kind) for kind in ("A-", "T67", "B48")),
        (3.0, "S74"),
        (4.0, END),
    ]


def test_scores_that_are_left_out() -> None:
    voice = "4/4 c4 d4 e2"
    assert score_events(score(voice, voice, voice, voice))
    assert score_events(score(voice, voice, voice)) == []
    assert score_events(score(voice, voice, voice, "4/4 c32 d32 e4 f4 g4 r8. r16")) == []
    chord = score(voice, voice, voice, voice)
    chord.parts[0].flatten().notes[0].activeSite.replace(
        chord.parts[0].flatten().notes[0], music21.chord.Chord(["C4", "E4"], quarterLength=1)
    )
    assert score_events(chord) == []


def test_corpus_notes_are_music21s(tmp_path: Path) -> None:
    """Every note of the table sounds at its time in the score, for its time, and no other."""
    found = read_events(chorale_table(pieces=3), grid=0.25)
    assert len(found) == 3
    for one in found:
        piece = music21.corpus.parse(f"bach/{one.name}")
        upbeat = piece.parts[0].getElementsByClass("Measure").first().paddingLeft
        for voice, part in zip(VOICES, piece.parts, strict=True):
            expected = [(n.offset + upbeat, n.pitch.midi) for n in part.flatten().stripTies().notes]
            notes = [
                (time, int(kind[1:]))
                for time, kind in zip(one.times, one.types, strict=True)
                if kind[0] == voice and kind[1:].isdigit()
            ]
            assert notes == expected
        assert one.types[-1] == END
        assert one.times[-1] == piece.highestTime + upbeat


def test_table_is_made_once_and_whole(tmp_path: Path) -> None:
    path = chorale_table(pieces=3)
    assert path.parent == tmp_path / "cache"
    assert list(path.parent.iterdir()) == [path]
    before = path.stat().st_mtime_ns
    assert chorale_table(pieces=3).stat().st_mtime_ns == before
    assert pl.read_parquet(path)["sequence"].n_unique() == 3


def notes_of(path: Path) -> list[list[tuple[float, float, int]]]:
    """(onset, length, pitch) of each track's notes, read by music21, which ties them over bars."""
    return [
        [
            (float(n.offset), float(n.quarterLength), n.pitch.midi)
            for n in part.flatten().stripTies().notes
        ]
        for part in music21.converter.parse(path).parts
    ]


def test_midi_read_back(tmp_path: Path) -> None:
    path = tmp_path / "x.mid"
    events = [
        *((3.0, kind) for kind in ("S72", "A65", "T60", "B53")),
        (4.0, "S74"),
        (4.5, "B-"),
        (5.0, "S74"),
        (5.0, "A67"),
        (6.0, "B48"),
        (7.0, END),
    ]
    write_midi([t for t, _ in events], [k for _, k in events], path)
    assert notes_of(path) == [
        [(0, 1, 72), (1, 1, 74), (2, 2, 74)],
        [(0, 2, 65), (2, 2, 67)],
        [(0, 4, 60)],
        [(0, 1.5, 53), (3, 1, 48)],
    ]


def test_midi_of_the_corpus_read_back(tmp_path: Path) -> None:
    one = read_events(chorale_table(pieces=3))[0]
    write_midi(one.times.tolist(), one.types.tolist(), tmp_path / "x.mid")
    piece = music21.corpus.parse(f"bach/{one.name}")
    expected = [
        [(n.offset, n.quarterLength, n.pitch.midi) for n in part.flatten().stripTies().notes]
        for part in piece.parts
    ]
    assert notes_of(tmp_path / "x.mid") == expected


def test_midi_of_no_notes_and_of_wrong_types(tmp_path: Path) -> None:
    write_midi([0.0, 0.0], ["S60", "S62"], tmp_path / "x.mid")
    assert [track for track in notes_of(tmp_path / "x.mid") if track] == [[(0, 1, 62)]]
    with pytest.raises(ValueError, match="type 'door' is no note"):
        write_midi([0.0], ["door"], tmp_path / "y.mid")


def test_too_few_pieces() -> None:
    with pytest.raises(UsageError, match=r"data\.pieces is 2"):
        ChoraleSequences(pieces=2)
