"""Long series with classes: telephone prompts in five languages, as raw waveforms.

``python -m timeseries.data.speech_prompts FILE.parquet [LENGTH]`` writes what
``LabelledSeriesData`` reads: a row a window of ``LENGTH`` samples (16,384 if left out; or what
divides it) at 8 kHz, ``label`` the language.

The recordings are Debian's ``asterisk-core-sounds-*-wav`` 1.6.1: English and Spanish by Allison
Smith and French by June Wallack (CC BY-SA 3.0), Italian by Carlo Flora and Russian by Maxim Topal
(CC BY 3.0). English and Spanish are one voice. A prompt is the same message in each language: all
recordings of its name are in one split. Every window is made of equal loudness; values are rounded
to 255 levels, as a telephone line would.
"""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
import wave
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import polars as pl
import pyarrow.parquet as pq
from numpy.typing import NDArray

from core.jobs.errors import DataError, UsageError, UserError
from core.jobs.files import replacing
from timeseries.data.fetch import fetch

LANGUAGES = ("en", "es", "fr", "it", "ru")
RATE = 8000
LENGTH = 16_384
FRAME = 160  # samples, 20 ms
QUIET = -35.0  # dB under the loudest frame of a recording: no speech below
MOST = 2  # windows of a recording
LOUDNESS = 2500.0  # root mean square of a window
SHARES = {"train": 0.6, "val": 0.2, "test": 0.2}
MU = 255.0

Audio = NDArray[np.int16]


@dataclass(frozen=True)
class Recording:
    """``samples`` (time,) of one ``prompt``, a path without ending such as digits/7."""

    language: str
    prompt: str
    samples: Audio


def read_wav(content: bytes, name: str) -> Audio:
    """Samples (time,) of a WAV file of 16 bits, one channel and 8 kHz; DataError for another."""
    try:
        with wave.open(io.BytesIO(content)) as found:
            kind = (found.getframerate(), found.getnchannels(), 8 * found.getsampwidth())
            frames = found.readframes(found.getnframes())
    except (wave.Error, EOFError) as error:
        raise DataError(f"{name}: cannot be read as a WAV file: {error}") from error
    if kind != (RATE, 1, 16):
        rate, channels, bits = kind
        raise DataError(
            f"{name}: {rate} Hz, {channels} channels, {bits} bits; it must be {RATE} Hz, 1, 16"
        )
    return np.frombuffer(frames, "<i2").astype(np.int16)


def read_package(path: Path, language: str) -> Iterator[Recording]:
    """Every recording in a Debian package that is not mere silence.

    Raises DataError if it is no package, or a file in it is no such WAV file.
    """
    unpacking = ["dpkg-deb", "--fsys-tarfile", str(path)]
    with subprocess.Popen(unpacking, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
                for member in archive:
                    # ./usr/share/asterisk/sounds/VOICE/PROMPT.wav
                    inside = PurePosixPath(member.name)
                    below = inside.parts[5:]
                    file = archive.extractfile(member) if inside.suffix == ".wav" else None
                    if file is not None and below[0] != "silence":
                        samples = read_wav(file.read(), f"{path}: {member.name}")
                        prompt = str(PurePosixPath(*below).with_suffix(""))
                        yield Recording(language, prompt, samples)
        except tarfile.TarError as error:
            raise DataError(f"{path}: cannot be read as a Debian package: {error}") from error


def speech(samples: NDArray) -> NDArray[np.bool_]:
    """Which whole frames (frames,) hold speech: at most 35 dB under the loudest of ``samples``."""
    frames = samples[: len(samples) // FRAME * FRAME].astype(np.float64).reshape(-1, FRAME)
    power = np.square(frames).mean(1)
    return power > power.max(initial=0.0) * 10 ** (QUIET / 10)


def window_starts(samples: NDArray, length: int) -> list[int]:
    """Where windows of ``length`` samples begin, side by side from the first sample on, those left
    out whose frames are less than half speech. A frame belongs to the window that it begins in."""
    heard = speech(samples)
    starts = range(0, len(samples) - length + 1, length)
    bounds = [-(-start // FRAME) for start in (*starts, len(starts) * length)]
    return [
        start
        for start, first, end in zip(starts, bounds[:-1], bounds[1:], strict=True)
        if 2 * heard[first:end].sum() >= len(heard[first:end]) > 0
    ]


def levelled(samples: NDArray) -> Audio:
    """Mean 0, a root mean square of 2,500, and rounded to 255 levels by the mu-law: sign(x)
    log(1 + 255 |x|) / log(256) of x in -1..1 in steps of 1 / 127 (ITU-T G.711, without its
    pieces)."""
    x = samples - samples.mean(dtype=np.float64)
    x = np.clip(x * (LOUDNESS / max(float(x.std()), 1.0)) / 32767, -1, 1)
    level = np.round(127 * np.log1p(MU * np.abs(x)) / np.log1p(MU)) / 127
    size = np.expm1(level * np.log1p(MU)) / MU
    return np.round(32767 * np.sign(x) * size).astype(np.int16)


def split_prompts(prompts: Iterable[str], seed: int = 0) -> dict[str, str]:
    """Prompt -> train, val or test, 60, 20 and 20 % of them, drawn."""
    names = sorted(set(prompts))
    ends = np.round(np.cumsum(list(SHARES.values())) * len(names))
    place = np.random.default_rng(seed).permutation(len(names))
    kinds = np.array(list(SHARES))[np.searchsorted(ends, place, side="right")]
    return dict(zip(names, kinds.tolist(), strict=True))


def windows(recordings: Iterable[Recording], length: int = LENGTH) -> pl.DataFrame:
    """``unique_id``, ``label``, ``split`` and ``values``, a list of ``length`` int16.

    At most the first two windows of 16,384 samples of a recording are taken and levelled; shorter
    ones are cut out of these, so that every length is about the same sound.
    """
    whole = [
        (f"{one.language}/{one.prompt}/{start}", one, levelled(one.samples[start : start + LENGTH]))
        for one in recordings
        for start in window_starts(one.samples, LENGTH)[:MOST]
    ]
    if not whole:
        raise DataError(f"no recording has {LENGTH} samples of speech")
    split = split_prompts(one.prompt for _, one, _ in whole)
    rows = {
        "unique_id": [name for name, _, _ in whole],
        "label": [one.language for _, one, _ in whole],
        "split": [split[one.prompt] for _, one, _ in whole],
        "values": [values for _, _, values in whole],
    }
    table = pl.DataFrame(rows, schema_overrides={"values": pl.List(pl.Int16)})
    return table if length == LENGTH else cut(table, length)


def cut(table: pl.DataFrame, length: int) -> pl.DataFrame:
    """The windows of ``table`` in pieces of ``length`` samples, by the same rule."""
    names, pieces = [], []
    for name, values in zip(table["unique_id"], table["values"], strict=True):
        samples = values.to_numpy()
        for start in window_starts(samples, length):
            names.append((name, f"{name}+{start}"))
            pieces.append(samples[start : start + length])
    parts = pl.DataFrame(names, schema=["unique_id", "piece"], orient="row")
    parts = parts.with_columns(pl.Series("values", pieces, dtype=pl.List(pl.Int16)))
    about = table.select("unique_id", "label", "split")
    joined = parts.join(about, on="unique_id", how="left", maintain_order="left")
    return joined.select(pl.col("piece").alias("unique_id"), "label", "split", "values")


def recordings(packages: Mapping[str, Path]) -> Iterator[Recording]:
    for language, path in packages.items():
        yield from read_package(path, language)


def main(arguments: list[str]) -> int:
    """Write the windows into the file named; the exit code."""
    if not 1 <= len(arguments) <= 2:
        sys.stderr.write("usage: python -m timeseries.data.speech_prompts FILE.parquet [LENGTH]\n")
        return 2
    try:
        length = int(arguments[1]) if len(arguments) == 2 else LENGTH
        if length < FRAME or LENGTH % length:
            raise UsageError(f"LENGTH is {length}; it must divide {LENGTH}, {FRAME} at least")
        packages = {one: next(iter(fetch(f"speech-prompts-{one}").values())) for one in LANGUAGES}
        table = windows(recordings(packages), length)
        with replacing(Path(arguments[0])) as part:
            # a dictionary of the 255 levels saves a fifth of the file, which polars makes none of
            pq.write_table(table.to_arrow(), part, compression="zstd", compression_level=9)
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return error.code
    counts = table.group_by("split", "label").len().sort("split", "label")
    sys.stdout.write("\n".join(f"{a} {b}: {n}" for a, b, n in counts.iter_rows()) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
