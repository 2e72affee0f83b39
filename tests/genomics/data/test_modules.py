"""The data modules: what they read, refuse and hand out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from core.jobs.data import SkipRecord
from core.jobs.errors import DataError, UsageError
from genomics.data.genome_windows import GenomeWindows, Stage
from genomics.data.labelled import LabelledSequences
from genomics.data.tokenizers import NucleotideTokenizer, reverse_complement

HEADER = "id\tsequence\tlabel\tsplit\n"
ROWS = "a\tACGTAC\t0\ttrain\nb\tGGGCCA\t1\ttrain\nc\tTTTTA\t1\tval\nd\tCATNA\t0\ttest\n"


def table(tmp_path: Path, text: str = HEADER + ROWS) -> str:
    path = tmp_path / "x.tsv"
    path.write_text(text)
    return str(path)


def labelled(path: str, **options: object) -> LabelledSequences:
    module = LabelledSequences(path, **options)  # type: ignore[arg-type]
    module.setup("fit")
    return module


def test_labelled_splits_and_both_strands(tmp_path: Path) -> None:
    module = labelled(table(tmp_path), reverse_complement=True, batch_size=8)
    (batch,) = module.train_dataloader()
    decode = NucleotideTokenizer().decode
    texts = {decode(row.numpy()) for row in batch["tokens"]}
    assert texts == {"ACGTAC", "GGGCCA", reverse_complement("ACGTAC"), reverse_complement("GGGCCA")}
    (test,) = module.test_dataloader()
    assert test["id"] == ["d"]
    assert test["label"].tolist() == [0]


def test_labelled_predicts_test_split_table_and_fasta(tmp_path: Path) -> None:
    module = LabelledSequences(table(tmp_path))
    assert [r["id"] for r in map(module.predict_records().__getitem__, range(1))] == ["d"]
    fasta = tmp_path / "p.fa"
    fasta.write_text(">x\nACGT\n>y\nAC\n")
    module = LabelledSequences(predict_path=str(fasta), max_length=3)
    records = module.predict_records()
    assert module.encode(records[1]).id == "y"
    with pytest.raises(SkipRecord, match="more than max_length=3"):
        module.encode(records[0])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id\tsequence\tlabel\n" + "a\tA\t0\n", "no column 'split'"),
        (HEADER, "has no rows"),
        (HEADER + ROWS + "e\tACGTAC\t0\ttest\n", "1 sequences stand in both train and test"),
        (HEADER + ROWS + "e\tGTACGT\t0\ttest\n", "1 sequences stand in both train and test"),
        (HEADER + ROWS + "a\tAAAA\t0\ttest\n", "id 'a' stands in more than one row"),
        (HEADER + ROWS + "e\tAAAA\tx\ttest\n", "row 5 has label 'x'"),
        (HEADER + ROWS + "e\tAA!A\t0\ttest\n", "record e: '!' at offset 2"),
        (HEADER + ROWS + "e\tAAAA\t0\tholdout\n", "split 'holdout' is none of train, val, test"),
        (HEADER + ROWS + "e\t\t0\ttest\n", "row 5 has no sequence"),
    ],
)
def test_labelled_refuses(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        labelled(table(tmp_path, text))


CHROMOSOME = "".join(np.random.default_rng(0).choice(list("ACGT"), 70)) + "N" * 20 + "ACGTACGTAC"


def genome(tmp_path: Path, **options: object) -> GenomeWindows:
    (tmp_path / "g.fa").write_text(f">c\n{CHROMOSOME}\n")
    settings = {"train": ["c:1-50"], "val": ["c:51-70"], "length": 8, "batch_size": 2, **options}
    module = GenomeWindows(str(tmp_path / "g.fa"), **settings)  # type: ignore[arg-type]
    module.setup("fit")
    return module


def test_windows_cover_a_region_and_never_leave_it(tmp_path: Path) -> None:
    windows = genome(tmp_path, max_unknown=1.0).windows("train", 8, 8, False)
    text = "".join(NucleotideTokenizer().decode(windows[i].tokens) for i in range(len(windows)))
    assert text == CHROMOSOME[:50] + "N" * 6


def test_windows_on_both_strands(tmp_path: Path) -> None:
    windows = genome(tmp_path).windows("train", 8, 4, True)
    half = len(windows) // 2
    decode = NucleotideTokenizer().decode
    for i in range(half):
        other = decode(windows[half + i].tokens)
        assert other == reverse_complement(decode(windows[i].tokens))
        assert windows[half + i].id == windows[i].id[:-1] + "-"


def test_windows_of_n_are_left_out(tmp_path: Path) -> None:
    module = genome(tmp_path, train=["c:61-100"], val=["c:1-50"], max_unknown=0.25)
    windows = module.windows("train", 8, 2, False)
    assert len(windows) > 0
    assert all((windows[i].tokens == 11).sum() <= 2 for i in range(len(windows)))
    with pytest.raises(DataError, match="gives no window"):
        genome(tmp_path, train=["c:71-90"]).windows("train", 8, 8, False)


def test_overlapping_splits_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="regions overlap"):
        genome(tmp_path, val=["c:50-60"])
    with pytest.raises(UsageError, match="nor chromosome:first-last"):
        genome(tmp_path, train=["chrX:1-5"])


def test_length_warm_up_follows_the_epoch(tmp_path: Path) -> None:
    class Trainer:
        reload_dataloaders_every_n_epochs = 1
        current_epoch = 0

    stages = [Stage(4, 4, 1), Stage(8, 2, 2)]
    module = genome(tmp_path, stages=stages)
    module.trainer = Trainer()  # type: ignore[assignment]
    shapes = []
    for epoch in range(4):
        Trainer.current_epoch = epoch
        shapes.append(tuple(next(iter(module.train_dataloader()))["tokens"].shape))
    assert shapes == [(4, 4), (2, 8), (2, 8), (2, 8)]
    Trainer.reload_dataloaders_every_n_epochs = 0
    with pytest.raises(UsageError, match=r"set trainer\.reload_dataloaders_every_n_epochs to 1"):
        module.train_dataloader()


def test_batches_are_token_ids(tmp_path: Path) -> None:
    batch = next(iter(genome(tmp_path).val_dataloader()))
    assert batch["tokens"].dtype == torch.int64
    assert batch["sequences"] is None
