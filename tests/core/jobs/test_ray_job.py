"""The Ray job against the one-machine job: the same files, byte by byte."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from toy_predict import ToyData, ToyTask, toy_trainer, write_input

from core.jobs.errors import DataError, UsageError
from core.jobs.predictions import PredictionConfig, predict

ray = pytest.importorskip("ray")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),  # of its own settings
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec:FutureWarning"),
]

KEY = {"model_version": "1", "config_hash": "c"}


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    tests = str(Path(__file__).parents[2])
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": f"{tests}:{Path(tests).parent}"}},
    )
    yield
    ray.shutdown()


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.usefixtures("cluster")
def test_same_folder_as_one_machine(tmp_path: Path) -> None:
    from core.jobs.ray_job import predict_with_ray

    data = ToyData(str(write_input(tmp_path / "in.txt", 53)), skip=(3, *range(20, 30)))
    one, many = tmp_path / "one", tmp_path / "many"
    predict(ToyTask(), data, toy_trainer(), PredictionConfig(str(one), 10), **KEY)
    config = PredictionConfig(str(many), 10, export=str(tmp_path / "scores.txt"))
    with pytest.raises(TypeError):  # the toy export cannot write the scores of skipped records
        predict_with_ray(ToyTask(), data, config, workers=2, **KEY)
    assert files(many) == files(one)
    for name in ("part-00001.parquet", "part-00004.parquet", "_SUCCESS"):
        (many / name).unlink()
    assert (
        predict_with_ray(ToyTask(), data, PredictionConfig(str(many), 10), workers=2, **KEY) == many
    )
    assert files(many) == files(one)
    with pytest.raises(UsageError, match="model_version"):
        predict_with_ray(ToyTask(), data, config, workers=2, model_version="2", config_hash="c")


@pytest.mark.usefixtures("cluster")
def test_bad_data_is_told_as_such(tmp_path: Path) -> None:
    from core.jobs.ray_job import predict_with_ray

    file = write_input(tmp_path / "in.txt", 13)
    file.write_text(file.read_text().replace("r7 ", "r6 "))
    with pytest.raises(DataError, match="'r6' appears twice"):
        predict_with_ray(
            ToyTask(), ToyData(str(file)), PredictionConfig(str(tmp_path / "out")), workers=1, **KEY
        )
