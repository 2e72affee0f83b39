"""Telephone prompts: WAV files, packages, windows of speech, levels, splits by prompt."""

from __future__ import annotations

import io
import shutil
import subprocess
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray
from scipy.io import wavfile

from core.jobs.errors import DataError
from timeseries.data import speech_prompts
from timeseries.data.labelled import LabelledSeriesData
from timeseries.data.speech_prompts import (
    FRAME,
    LENGTH,
    Recording,
    cut,
    levelled,
    main,
    read_package,
    read_wav,
    split_prompts,
    window_starts,
    windows,
)


def noise(frames: int, loudness: float = 1000.0, seed: int = 0) -> NDArray[np.int16]:
    rng = np.random.default_rng(seed)
    return np.round(rng.normal(0, loudness, frames * FRAME)).astype(np.int16)


def wav(samples: NDArray, rate: int = 8000) -> bytes:
    file = io.BytesIO()
    wavfile.write(file, rate, samples)
    return file.getvalue()


def test_samples_of_a_wav_file() -> None:
    samples = noise(3)
    np.testing.assert_array_equal(read_wav(wav(samples), "x.wav"), samples)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (wav(noise(1), 16000), "x.wav: 16000 Hz, 1 channels, 16 bits; it must be 8000 Hz, 1, 16"),
        (wav(noise(2).reshape(-1, 2)), "8000 Hz, 2 channels"),
        (wav(np.zeros(9, np.uint8)), "8 bits"),
        (b"RIFF", "x.wav: cannot be read as a WAV file"),
        (b"ID3" + bytes(90), "x.wav: cannot be read as a WAV file"),
    ],
)
def test_other_files_are_refused(content: bytes, expected: str) -> None:
    with pytest.raises(DataError, match=expected):
        read_wav(content, "x.wav")


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg-deb")
def test_recordings_of_a_package(tmp_path: Path) -> None:
    sounds = tmp_path / "root" / "usr/share/asterisk/sounds/en_US_f_Someone"
    wanted = {"hello": noise(2, seed=1), "digits/7": noise(3, seed=2)}
    for name, samples in {**wanted, "silence/1": noise(1, 0.0)}.items():
        path = sounds / f"{name}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(wav(samples))
    (sounds / "credits.txt").write_text("nobody")
    control = tmp_path / "root" / "DEBIAN" / "control"
    control.parent.mkdir()
    about = "Package: x\nVersion: 1\nArchitecture: all\nMaintainer: n <n@x.org>\nDescription: x\n"
    control.write_text(about)
    package = tmp_path / "x.deb"
    building = ["dpkg-deb", "--root-owner-group", "-b", str(tmp_path / "root"), str(package)]
    subprocess.run(building, check=True, capture_output=True)
    found = {one.prompt: one for one in read_package(package, "en")}
    assert set(found) == set(wanted)
    for name, samples in wanted.items():
        assert found[name].language == "en"
        np.testing.assert_array_equal(found[name].samples, samples)
    package.write_bytes(b"no package")
    with pytest.raises(DataError, match=r"x.deb: cannot be read as a Debian package"):
        list(read_package(package, "en"))


def test_a_window_needs_half_its_frames_in_speech() -> None:
    """Windows of four frames, so that every share of them can be had."""
    loud, quiet = noise(1), noise(1, 1000 * 10 ** (-45 / 20), seed=1)
    shares = {0: False, 1: False, 2: True, 3: True, 4: True}
    samples = np.concatenate([loud if k < share else quiet for share in shares for k in range(4)])
    starts = [4 * FRAME * k for k, kept in enumerate(shares.values()) if kept]
    assert window_starts(samples, 4 * FRAME) == starts
    assert window_starts(samples[:-1], 4 * FRAME) == starts[:-1]  # a part of one is none
    assert window_starts(samples[: 4 * FRAME - 1], 4 * FRAME) == []
    assert window_starts(np.zeros_like(samples), 4 * FRAME) == []


@pytest.mark.parametrize(("loud", "starts"), [((7, 8, 9), [1024]), ((6, 7, 8), [])])
def test_windows_that_frames_do_not_divide(loud: tuple[int, ...], starts: list[int]) -> None:
    """1,024 samples are 6.4 frames: frame 6 begins in the first window and counts there alone, so
    that the second one has the frames 7 to 12."""
    heard = np.isin(np.arange(32), loud)
    samples = np.where(np.repeat(heard, FRAME), 1000, 1).astype(np.int16)
    assert window_starts(samples, 1024) == starts


def test_levels_are_those_of_the_mu_law() -> None:
    x = noise(400, 300.0) + np.int16(50)
    x[::7] //= 20
    y = levelled(x).astype(np.float64)
    assert len(np.unique(levelled(noise(10_000)))) <= 255
    scaled = (x - x.mean()) * 2500 / x.std()
    # half a step of log(|x| + 1 / 255), and half a unit for whole numbers
    bound = (np.abs(scaled) + 32767 / 255) * (256 ** (1 / 254) - 1) + 0.5
    assert (np.abs(y - scaled) <= bound * (1 + 1e-9)).all()
    assert abs(y.std() - 2500) < 25
    assert abs(y.mean()) < 25
    np.testing.assert_array_equal(levelled(np.zeros(5, np.int16)), 0)


def recordings() -> list[Recording]:
    """Ten prompts in two languages, of 0.5 to 3.5 windows."""
    frames = LENGTH // FRAME + 1
    return [
        Recording(language, f"p{n}", noise(frames * (n % 4) + frames // 2, seed=n))
        for language in ("en", "it")
        for n in range(10)
    ]


def test_a_prompt_is_in_one_split_in_every_language() -> None:
    table = windows(recordings())
    assert table["values"].list.len().unique().to_list() == [LENGTH]
    prompts = table.select(
        pl.col("unique_id").str.split("/").list.get(1).alias("prompt"), "split", "label"
    )
    per_prompt = prompts.group_by("prompt").agg(pl.all().n_unique())
    assert per_prompt["split"].to_list() == [1] * 7  # p0, p4 and p8 have no whole window
    assert per_prompt["label"].to_list() == [2] * 7
    counted = prompts.group_by("prompt").len().sort("prompt").rows()
    assert counted == [(f"p{n}", 2 * min(n % 4, 2)) for n in range(10) if n % 4]
    with pytest.raises(DataError, match="no recording has 16384 samples"):
        windows(recordings()[:1])


def test_shares_of_the_splits() -> None:
    names = [f"p{n}" for n in range(50)]
    split = split_prompts([*names, *names])
    assert split == split_prompts(reversed(names))
    counts = {kind: list(split.values()).count(kind) for kind in ("train", "val", "test")}
    assert counts == {"train": 30, "val": 10, "test": 10}
    assert split != split_prompts(names, seed=1)


def test_shorter_windows_are_pieces_of_the_long_ones(tmp_path: Path) -> None:
    table = windows(recordings())
    values = table["values"][0].to_numpy().copy()
    values[:4096] = 0
    changed = table.with_columns(pl.Series("values", [values, *table["values"].to_list()[1:]]))
    pieces = cut(changed.cast({"values": pl.List(pl.Int16)}), 4096)
    assert len(pieces) == 4 * len(table) - 1
    assert pieces["unique_id"].n_unique() == len(pieces)
    first = pieces.head(3)
    assert first["unique_id"].to_list() == [f"en/p1/0+{4096 * k}" for k in (1, 2, 3)]
    np.testing.assert_array_equal(first["values"].explode().to_numpy(), values[4096:])
    file = tmp_path / "pieces.parquet"
    pieces.write_parquet(file)
    data = LabelledSeriesData(str(file), batch_size=5)
    data.setup("fit")
    assert data.model_facts() == {"channels": 1, "classes": 2}
    batch = next(iter(data.train_dataloader()))
    assert batch["values"].shape == (5, 4096, 1)
    assert batch["sequences"] is None


def test_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(speech_prompts, "fetch", lambda name: {"x.deb": Path(name[-2:])})

    def read(path: Path, language: str) -> list[Recording]:
        return [one for one in recordings() if one.language == language == str(path)]

    monkeypatch.setattr(speech_prompts, "read_package", read)
    target = tmp_path / "x.parquet"
    assert main([str(target), "8192"]) == 0
    assert "train en: " in capsys.readouterr().out
    table = pl.read_parquet(target)
    assert table.equals(windows(recordings(), 8192))
    for words, expected in (([], "usage"), ([str(target), "3000"], "it must divide 16384")):
        assert main(words) == 2
        assert expected in capsys.readouterr().err
