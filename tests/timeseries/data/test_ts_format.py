"""Reading .ts files against one written by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from core.jobs.errors import DataError
from timeseries.data import make_samples
from timeseries.data.ts_format import read_ts

HEAD = "% two channels\n@problemName Toy\n@timeStamps false\n@classLabel true a b\n@data\n"


def test_channels_lengths_classes_and_gaps(tmp_path: Path) -> None:
    path = tmp_path / "toy.ts"
    path.write_text(HEAD + "1,2.5,-3e1:4,5,6:a\n\n# a remark\n 7 , ? : 8,9 : b \n")
    (first, a), (second, b) = read_ts(path)
    assert (a, b) == ("a", "b")
    np.testing.assert_array_equal(first, [[1, 4], [2.5, 5], [-30, 6]])
    np.testing.assert_array_equal(second, [[7, 8], [np.nan, 9]])


def test_without_classes_the_last_part_is_a_channel(tmp_path: Path) -> None:
    path = tmp_path / "toy.ts"
    path.write_text("@classLabel false\n@data\n1,2:3,4\n")
    [(values, label)] = read_ts(path)
    assert label is None
    np.testing.assert_array_equal(values, [[1, 3], [2, 4]])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "the file is empty"),
        (HEAD, "no series after a line @data"),
        (HEAD + "1,2:3,4:a\n1,x:3,4:a\n", "line 7: could not convert string to float: 'x'"),
        (HEAD + "1,2:3,4:a\n1,2:a\n", "line 7: 1 channels, the series before have 2"),
        (HEAD + "1,2:3:a\n", "line 6: its channels have [1, 2] values"),
        (HEAD + "1,2:3,4:c\n", "line 6: class 'c' is none of the header's ['a', 'b']"),
        ("1,2:a\n", "line 1: values before the line @data"),
        ("@timeStamps true\n@data\n(0,1):a\n", "line 1: series with stamps are not read"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "toy.ts"
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        read_ts(path)
    assert said in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_not_text(tmp_path: Path) -> None:
    path = tmp_path / "toy.ts"
    path.write_bytes(b"@data\n\xff\xfe\n")
    with pytest.raises(DataError, match=r"cannot be read as a \.ts file"):
        read_ts(path)


def test_sample_is_made_of_both_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {}
    for split in ("TRAIN", "TEST"):
        files[f"JapaneseVowels_{split}.ts"] = tmp_path / f"{split}.ts"
        (tmp_path / f"{split}.ts").write_text(HEAD + "1,2:3,4:a\n5:6:b\n")
    monkeypatch.setattr(make_samples, "fetch", lambda name: files)
    table = make_samples.japanese_vowels()
    shipped = pl.read_parquet(
        Path(make_samples.__file__).parents[1] / "samples" / "japanese_vowels.parquet"
    )
    assert table.columns == shipped.columns[:5]
    assert table["unique_id"].to_list() == ["train-001"] * 2 + ["train-002"] + ["test-001"] * 2 + [
        "test-002"
    ]
    assert table["cepstrum_02"].to_list() == [3, 4, 6] * 2
    assert table["label"].to_list() == ["a", "a", "b"] * 2


def test_the_shipped_sample() -> None:
    """270 and 370 utterances of 7 to 29 steps, as the archive describes them; 30 of each speaker to
    train on."""
    folder = Path(make_samples.__file__).parents[1] / "samples"
    table = pl.read_parquet(folder / "japanese_vowels.parquet")
    series = table.group_by("unique_id").agg(
        pl.len(), pl.col("split").unique().item(), pl.col("label").unique().item()
    )
    assert series["len"].min() == 7
    assert series["len"].max() == 29
    counts = {
        split: [
            len(series.filter((pl.col("split") == split) & (pl.col("label") == str(k))))
            for k in range(1, 10)
        ]
        for split in ("train", "test")
    }
    assert counts == {"train": [30] * 9, "test": [31, 35, 88, 44, 29, 24, 40, 50, 29]}
