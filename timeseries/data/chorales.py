"""Bach's chorales, from music21's corpus, as event sequences; and events as MIDI.

An event is the onset of a note or rest in one voice: its type is voice and MIDI number (``S67``),
or voice and ``-`` for a rest; what a voice plays lasts until its next event, and ``end`` ends the
piece. Onsets need 27 % of the tokens that a grid of sixteenths with four voices has, are rows of
the same (sequence, time, type) table that any event log is, and still say all that MIDI needs: a
note struck again is told from one held. Times are in quarter notes; bars begin at multiples of
their length while the metre stays, so that an upbeat of one quarter in 4/4 begins at 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from core.jobs.errors import UsageError
from core.jobs.files import cache_folder, replacing
from timeseries.data.events import EventSequences

if TYPE_CHECKING:
    from music21.stream import Score

VOICES = "SATB"
END = "end"
GRID = 0.25  # a sixteenth, in quarter notes
_TEMPO = 80  # quarter notes a minute
_FORMAT = 1  # of the cache


def _music21() -> Any:
    try:
        import music21
    except ImportError as error:
        raise UsageError("chorales need music21; pip install 'longspan[music]'") from error
    return music21


def chorale_table(pieces: int | None = None) -> Path:
    """A Parquet table of the corpus's chorales, or the first of them, in the cache folder.

    Left out are scores of more than four parts, two with onsets off the grid, and those that equal
    an earlier one, or would in another key.
    """
    music21 = _music21()
    name = f"chorales-{_FORMAT}-music21-{music21.__version__}-{pieces or 'all'}.parquet"
    path = cache_folder() / name
    if path.is_file():
        return path
    rows: dict[str, list[Any]] = {"sequence": [], "time": [], "type": []}
    seen: set[tuple] = set()
    names = dict.fromkeys(music21.corpus.chorales.Iterator(returnType="filename"))
    for file in names:
        if pieces is not None and len(seen) == pieces:
            break
        events = score_events(music21.corpus.parse(file))
        key = _in_any_key(events)
        if events and key not in seen:
            seen.add(key)
            rows["sequence"] += [file.rpartition("/")[2]] * len(events)
            rows["time"] += [time for time, _ in events]
            rows["type"] += [kind for _, kind in events]
    with replacing(path) as part:
        pl.DataFrame(rows).write_parquet(part)
    return path


def score_events(score: Score) -> list[tuple[float, str]]:
    """(time, type) in the order of time, then of voices from the top. None if the score has not
    four parts of single notes on the grid."""
    parts = list(score.parts)
    if len(parts) != len(VOICES):
        return []
    first = parts[0].getElementsByClass("Measure").first()
    lacking = float(first.paddingLeft) if first is not None else 0.0
    found: list[tuple[float, int, str]] = []
    for number, part in enumerate(parts):
        resting = False
        notes: Any = part.stripTies().flatten().notesAndRests
        for element in notes:
            if element.isChord or (float(element.offset) / GRID) % 1:
                return []
            if not (element.isRest and resting):
                kind = "-" if element.isRest else str(element.pitch.midi)
                found.append((float(element.offset) + lacking, number, VOICES[number] + kind))
            resting = element.isRest
    events = [(time, kind) for time, _, kind in sorted(found)]
    return [*events, (float(score.highestTime) + lacking, END)]


def _in_any_key(events: Sequence[tuple[float, str]]) -> tuple:
    """The events with pitches counted from the first."""
    pitches = [int(kind[1:]) for _, kind in events if kind[1:].isdigit()]
    least = pitches[0] if pitches else 0
    return tuple(
        (time, kind[0], int(kind[1:]) - least if kind[1:].isdigit() else None)
        for time, kind in events
    )


def write_midi(times: Sequence[float], types: Sequence[str], path: Path) -> None:
    """Notes of four voices as a MIDI file of four tracks.

    Without an ``end`` the last notes last one quarter. Of several events of a voice at one time the
    last counts. Raises ValueError for a type that is none of a voice.
    """
    music21 = _music21()
    ends = [time for time, kind in zip(times, types, strict=True) if kind == END]
    end = min(ends) if ends else max(times, default=0.0) + 1
    voices: dict[str, dict[float, str]] = {voice: {} for voice in VOICES}
    for time, kind in zip(times, types, strict=True):
        if kind != END and kind[:1] not in voices:
            raise ValueError(f"type {kind!r} is no note such as S67, no rest such as S-")
        if kind != END and time < end:
            voices[kind[0]][time] = kind[1:]
    score = music21.stream.Score()
    start = min(times, default=0.0)
    for voice, events in voices.items():
        part = music21.stream.Part(id=voice)
        part.insert(0, music21.tempo.MetronomeMark(number=_TEMPO))
        onsets = sorted(events)
        for onset, following in zip(onsets, [*onsets, end][1:], strict=True):
            if events[onset] != "-":
                note = music21.note.Note(int(events[onset]), quarterLength=following - onset)
                part.insert(onset - start, note)
        score.insert(0, part)
    score.write("midi", fp=str(path))


class ChoraleSequences(EventSequences):
    """Bach's chorales. Parsing all of the corpus takes half a minute, once.

    Chorales with the same melody may fall into different splits.

    Args:
        pieces: take the first of the corpus only; null takes all.
        predict_path: a table with columns sequence, time (quarter notes) and type to predict on.
        val_share: share of the chorales to validate on.
        test_share: share of the chorales to test on.
        split_seed: of the draw.
        length: events seen at once.
        batch_size: pieces in a batch.
        num_workers: processes that make them.
    """

    def __init__(
        self,
        pieces: int | None = None,
        predict_path: str | None = None,
        val_share: float = 0.1,
        test_share: float = 0.1,
        split_seed: int = 0,
        length: int = 1024,
        batch_size: int = 16,
        num_workers: int = 0,
    ) -> None:
        super().__init__(
            predict_path=predict_path,
            val_share=val_share,
            test_share=test_share,
            split_seed=split_seed,
            grid=GRID,
            length=length,
            batch_size=batch_size,
            num_workers=num_workers,
        )
        if pieces is not None and pieces < 3:
            raise UsageError(f"data.pieces is {pieces}; at least 3, one for each split")
        self.pieces = pieces

    def table(self) -> Path:
        return chorale_table(self.pieces)
