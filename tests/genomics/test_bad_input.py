"""Bad input at the command line: one line that says what, where and what to do; code 2 or 3; and
no output at all."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pysam
import pytest
import yaml
from forked_cli import Server

from core.jobs.errors import UsageError
from core.jobs.shards import load_predictions

SEQUENCE = "".join(np.random.default_rng(0).choice(list("ACGT"), 400))
OTHER = {"A": "C", "C": "G", "G": "T", "T": "A"}
VCF = "##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
GOOD = f"20\t30\t.\t{SEQUENCE[29]}\t{OTHER[SEQUENCE[29]]}\t.\t.\t.\n"
TABLE = "id\tsequence\tlabel\tsplit\n"

MODEL = {
    "class_path": "genomics.models.HyenaDNA",
    "init_args": {"width": 8, "layers": 1, "max_length": 32},
}
LIKELIHOOD = {
    "model": {"class_path": "genomics.tasks.VariantLikelihood", "init_args": {"model": MODEL}},
    "data": {
        "class_path": "genomics.data.variant_file.VariantFile",
        "init_args": {"fasta": "g.fa", "vcf": "x.vcf", "length": 32},
    },
}
CLASSIFY = {"class_path": "genomics.tasks.SequenceClassification", "init_args": {"model": MODEL}}
REGIONS = {
    "model": CLASSIFY,
    "data": {
        "class_path": "genomics.data.labelled_regions.LabelledRegions",
        "init_args": {"fasta": "g.fa", "predict_regions": "x.bed", "length": 32},
    },
}
RECORDS = {
    "model": CLASSIFY,
    "data": {
        "class_path": "genomics.data.labelled.LabelledSequences",
        "init_args": {"predict_path": "x.fa"},
    },
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("bad"))
    yield server
    server.close()


@pytest.fixture
def folder(server: Server, tmp_path: Path) -> Path:
    """Good files in a folder of their own, and the configs that name them."""
    (tmp_path / "g.fa").write_text(f">20 note\n{SEQUENCE}\n")
    (tmp_path / "x.vcf").write_text(VCF + GOOD)
    (tmp_path / "x.bed").write_text("20\t10\t20\ta\n")
    (tmp_path / "x.fa").write_text(">r1\nACGTT\n")
    (tmp_path / "x.tsv").write_text(TABLE)
    for name, config in (("vcf", LIKELIHOOD), ("bed", REGIONS), ("fa", RECORDS)):
        text = yaml.safe_dump(config)
        for file in ("g.fa", "x.vcf", "x.bed", "x.fa"):
            text = text.replace(f": {file}\n", f": {tmp_path / file}\n")
        (tmp_path / f"{name}.yaml").write_text(text)
    return tmp_path


def predict(server: Server, folder: Path, kind: str, *more: str) -> tuple[int, str]:
    words = ["predict", "--config", str(folder / f"{kind}.yaml"), *more]
    words += ["--tracking.root", str(folder / "runs")]
    words += ["--tracking.uri", f"sqlite:///{folder / 'mlflow.db'}"]
    if "--predictions.path" not in more:
        words += ["--predictions.path", str(folder / "out")]
    if kind == "vcf":
        words += ["--predictions.export", str(folder / "out.vcf")]
    return server.run(*words)


def cut_gzip(folder: Path) -> None:
    packed = gzip.compress(f">20\n{SEQUENCE * 50}\n".encode())
    (folder / "g.fa").write_bytes(packed[: len(packed) // 2])


def cut_bgzf(folder: Path) -> None:
    with pysam.BGZFile(str(folder / "g.fa"), "wb", None) as file:
        file.write(f">20\n{SEQUENCE * 500}\n".encode())
    whole = (folder / "g.fa").read_bytes()
    (folder / "g.fa").write_bytes(whole[:-28])


def cut_behind_its_index(folder: Path) -> None:
    pysam.faidx(str(folder / "g.fa"))
    (folder / "g.fa").write_text(f">20 note\n{SEQUENCE[:100]}\n")


def index_of_another(folder: Path) -> None:
    pysam.faidx(str(folder / "g.fa"))
    (folder / "g.fa").write_text(f">chr1 x\n{SEQUENCE}\n>20\n{SEQUENCE}\n")


def put(name: str, text: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).write_text(text)

    return change


def wrong_ref(folder: Path) -> None:
    base = OTHER[SEQUENCE[29]]
    (folder / "x.vcf").write_text(VCF + f"20\t30\t.\t{base}\t{OTHER[base]}\t.\t.\t.\n")


BAD = {
    "missing FASTA": ("vcf", lambda f: (f / "g.fa").unlink(), "g.fa: no such file"),
    "FASTA cut as gzip": ("vcf", cut_gzip, "g.fa: truncated or corrupt gzip"),
    "FASTA cut as BGZF": ("vcf", cut_bgzf, "g.fa: truncated (BGZF end marker is missing)"),
    "FASTA cut": ("vcf", cut_behind_its_index, "g.fa.fai: the index is out of date, g.fa was"),
    "FASTA cut in a header": (
        "vcf",
        put("g.fa", ">20 note\n"),
        "line 1: record '20' has no sequence; is the file truncated?",
    ),
    "index out of date": ("vcf", index_of_another, "g.fa.fai: the index is out of date, g.fa was"),
    "empty FASTA": ("vcf", put("g.fa", ""), "g.fa: the file is empty"),
    "not FASTA": ("vcf", put("g.fa", "hello\n"), "is it FASTA?"),
    "empty VCF": ("vcf", put("x.vcf", ""), "x.vcf: the file is empty"),
    "not a VCF": ("vcf", put("x.vcf", "20\t30\n"), "x.vcf"),
    "chromosome named differently": (
        "vcf",
        put("x.vcf", VCF + GOOD + GOOD.replace("20\t", "chr20\t", 1)),
        "x.vcf line 4: chromosome 'chr20' is not in g.fa; nearest is '20'",
    ),
    "wrong REF": ("vcf", wrong_ref, "x.vcf line 3: REF of 20:30:"),
    "ALT of other letters": (
        "vcf",
        put("x.vcf", VCF + GOOD + GOOD.replace(f"\t{OTHER[SEQUENCE[29]]}\t.", "\tXZ\t.")),
        "x.vcf line 4: ALT 'XZ'",
    ),
    "BED end before start": (
        "bed",
        put("x.bed", "20\t10\t20\n20\t30\t20\n"),
        "x.bed line 2: end 20 is before start 30",
    ),
    "BED beyond the end": (
        "bed",
        put("x.bed", "20\t10\t401\n"),
        "x.bed line 1: end 401 is beyond 20, 400 bases long",
    ),
    "BED of another naming": (
        "bed",
        put("x.bed", "chr20\t10\t40\n"),
        "x.bed line 1: chromosome 'chr20' is not in g.fa; nearest is '20'",
    ),
    "empty BED": ("bed", put("x.bed", ""), "x.bed: the file is empty"),
    "BED of comments": ("bed", put("x.bed", "#x\n"), "x.bed: no region in it"),
    "missing FASTA of records": ("fa", lambda f: (f / "x.fa").unlink(), "x.fa: no such file"),
    "empty FASTA of records": ("fa", put("x.fa", ""), "x.fa: the file is empty"),
    "record without sequence": (
        "fa",
        put("x.fa", ">r1\nAC\n>r2\n"),
        "x.fa line 3: record 1 has no sequence; is the file truncated?",
    ),
    "a letter that is none": ("fa", put("x.fa", ">r1\nAC!T\n"), "record r1: '!' at offset 2"),
    "two records of one id": ("fa", put("x.fa", ">r\nA\n>r\nC\n"), "id 'r' was used before"),
}


WHILE_PREDICTING = (
    "chromosome named differently",
    "wrong REF",
    "record without sequence",
    "a letter that is none",
)


@pytest.mark.parametrize("flaw", BAD)
def test_bad_data_is_one_line_and_leaves_nothing(server: Server, folder: Path, flaw: str) -> None:
    kind, spoil, message = BAD[flaw]
    spoil(folder)
    code, output = predict(server, folder, kind)
    assert code == 3, output
    lines = [line for line in output.splitlines() if not line.startswith("warning: ")]
    assert len(lines) == 1, output
    assert lines[0].startswith("error: ")
    assert message in lines[0]
    assert not (folder / "out.vcf").exists()
    if flaw in WHILE_PREDICTING:  # found at the record, behind others that may be predicted
        with pytest.raises(UsageError, match="no finished predictions here"):
            load_predictions(folder / "out")
    else:
        left = {file.name for file in folder.iterdir()}
        assert not left & {"out", "runs", "mlflow.db"}


def test_good_data_is_predicted(server: Server, folder: Path) -> None:
    """The same commands work on the same files unspoilt: the tests above see the spoiling."""
    for kind in ("vcf", "bed", "fa"):
        out = folder / kind
        code, output = predict(server, folder, kind, "--predictions.path", str(out))
        assert code == 0, output
        assert len(load_predictions(out).collect()) == 1


def test_alleles_without_a_score_are_counted(server: Server, folder: Path) -> None:
    symbolic = GOOD.replace(f"\t{OTHER[SEQUENCE[29]]}\t.", "\t<DEL>\t.")
    (folder / "x.vcf").write_text(VCF + GOOD + symbolic + symbolic)
    code, output = predict(server, folder, "vcf")
    assert code == 0, output
    said = "2 of 3 records have no prediction, and their rows a reason: symbolic (2)"
    assert f"warning: {said}" in output.splitlines()


def one_error(output: str) -> str:
    (line,) = [line for line in output.splitlines() if line.startswith("error: ")]
    return line


def test_misspelt_key(server: Server, folder: Path) -> None:
    code, output = predict(server, folder, "vcf", "--data.init_args.lenght", "64")
    assert code == 2
    assert "did you mean 'length'?" in one_error(output)
    assert not (folder / "out").exists()


TRAINERS = {
    "devices": ("0", "trainer: `Trainer(devices='0')` value is not a valid input using"),
    "accelerator": ("nonsense", "trainer: You selected an invalid accelerator name: `accelerator="),
    "precision": ("nonsense", "trainer.precision: "),
    "strategy": ("nonsense", "trainer: You selected an invalid strategy name: `strategy='nonsense"),
}


@pytest.mark.parametrize("key", TRAINERS)
def test_a_trainer_that_cannot_be_built(server: Server, folder: Path, key: str) -> None:
    value, message = TRAINERS[key]
    code, output = predict(server, folder, "vcf", f"--trainer.{key}", value)
    assert code == 2, output
    assert one_error(output).startswith(f"error: {message}")
    assert not {file.name for file in folder.iterdir()} & {"out", "runs", "mlflow.db"}


def test_checkpoint_of_another_model(server: Server, folder: Path) -> None:
    table = folder / "t.tsv"
    splits = ("train", "train", "val", "test")
    rows = [f"{i}\t{SEQUENCE[9 * i : 9 * i + 9]}\t{i % 2}\t{s}\n" for i, s in enumerate(splits)]
    table.write_text(TABLE + "".join(rows))
    code, output = server.run(
        *("fit", "--config", str(folder / "fa.yaml"), "--data.init_args.path", str(table)),
        *("--trainer.max_epochs", "1", "--trainer.log_every_n_steps", "1"),
        *("--tracking.root", str(folder / "runs")),
        *("--tracking.uri", f"sqlite:///{folder / 'mlflow.db'}"),
    )
    assert code == 0, output
    run = output.split("run folder: ")[1].split("\n")[0]
    code, output = predict(server, folder, "vcf", "--ckpt_path", run)
    assert code == 2
    assert "VariantLikelihood" in one_error(output)
    assert not (folder / "out.vcf").exists()
    wide = "--model.init_args.model.init_args.width"
    code, output = predict(server, folder, "fa", "--ckpt_path", run, wide, "16")
    assert code == 2
    assert "'model.embedding.weight' is (16, 8), wanted (16, 16)" in one_error(output)


def test_folder_of_another_job(server: Server, folder: Path) -> None:
    assert predict(server, folder, "vcf")[0] == 0
    before = (folder / "out" / "manifest.json").read_bytes()
    (folder / "x.vcf").write_text(VCF + GOOD.replace("\t30\t", "\t30\t", 1).replace(".\n", "A=1\n"))
    code, output = predict(server, folder, "vcf")
    assert code == 2
    assert "out" in one_error(output)
    assert (folder / "out" / "manifest.json").read_bytes() == before
