"""The predictor against the batch job, and columns against Arrow's own reading of Python lists."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from toy_predict import ToyData, ToyTask, toy_trainer, write_input

from core.jobs.errors import DataError
from core.jobs.predictions import PredictionConfig, predict
from core.jobs.predictor import Predictor, to_array
from core.jobs.shards import load_predictions


@pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec:FutureWarning")  # Lightning 2.6
@pytest.mark.parametrize("rows", [1, 3])
def test_same_rows_as_the_batch_job(tmp_path: Path, rows: int) -> None:
    data = ToyData(str(write_input(tmp_path / "in.txt", 23)), skip=(0, 8, 9, 10, 11))
    data.setup("predict")
    out = predict(
        ToyTask(rows),
        data,
        toy_trainer(),
        PredictionConfig(str(tmp_path / "out"), rows_per_shard=8),
        model_version="1",
        config_hash="c",
    )
    job = load_predictions(out).collect().to_arrow()
    table = Predictor(ToyTask(rows), data)(data.predict_records())
    assert table.column_names == job.column_names
    assert table.to_pylist() == job.to_pylist()


def test_data_frame_is_read_like_records() -> None:
    predictor = Predictor(ToyTask(), ToyData("", skip=(1,)))
    records = [{"id": f"r{n}", "value": n / 2} for n in range(5)]
    assert predictor(pd.DataFrame(records)).equals(predictor(records))


class Remembers(ToyData):
    def encode(self, record: Any) -> Any:
        self.last = dict(record)
        return super().encode({**record, "value": 1.0})


@pytest.mark.parametrize("missing", [None, float("nan"), pd.NA, pd.NaT])
def test_missing_values_of_a_data_frame_are_none(missing: Any) -> None:
    data = Remembers("")
    Predictor(ToyTask(), data)(pd.DataFrame({"id": ["a"], "value": [missing], "list": [[1, 2]]}))
    assert data.last == {"id": "a", "value": None, "list": [1, 2]}


def test_only_skipped_records() -> None:
    table = Predictor(ToyTask(), ToyData("", skip=(0,)))([{"id": "r0", "value": 1.0}])
    assert table.to_pylist() == [{"record": 0, "id": "r0", "reason": "r0 is on the list"}]


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([], "no records"),
        ([{"value": 1.0}], "record 0: its id is None"),
        ([{"id": "a", "value": 1.0}, {"id": 7, "value": 1.0}], "record 1: its id is 7"),
        ([{"id": "a", "value": 1.0}] * 2, "'a' appears twice .records 0 and 1"),
        ([{"id": name, "value": 1.0} for name in "abcdefb"], "'b' appears twice .records 1 and 6"),
        ([{"id": "r9", "value": 1.0}] * 2, "'r9' appears twice .records 0 and 1"),
    ],
)
def test_bad_records(records: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Predictor(ToyTask(), ToyData("", skip=(9,)))(records)


def test_other_errors_of_encode_are_not_swallowed() -> None:
    with pytest.raises(ValueError, match="dimensions"):
        Predictor(ToyTask(), ToyData(""))([{"id": "a", "value": "not a number"}])


def test_task_is_in_eval_mode_and_keeps_no_graph() -> None:
    task = ToyTask().train()
    states = []

    def predict_step(batch: Any, index: int) -> dict[str, Any]:
        states.append((task.training, torch.is_inference_mode_enabled()))
        return {"id": batch["id"]}

    task.predict_step = predict_step  # type: ignore[method-assign,assignment]
    Predictor(task, ToyData(""))([{"id": "a", "value": 1.0}])
    assert states == [(False, True)]


numbers = st.sampled_from(["float32", "float64", "int64", "int32", "uint8", "bool"])


@given(
    hnp.arrays(
        numbers.map(np.dtype), hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=4)
    )
)
def test_arrays_become_nested_lists(values: np.ndarray) -> None:
    wanted = repr(values.tolist())  # repr: NaN equals itself
    assert repr(to_array(values).to_pylist()) == wanted
    tensor = to_array(torch.from_numpy(values.copy()))
    assert repr(tensor.to_pylist()) == wanted
    assert tensor.type == to_array(values).type


@given(st.lists(hnp.arrays(np.float32, st.tuples(st.integers(0, 3), st.just(2))), min_size=1))
def test_ragged_arrays_become_lists(rows: list[np.ndarray]) -> None:
    wanted = repr([row.tolist() for row in rows])
    array = to_array(rows)
    assert repr(array.to_pylist()) == wanted
    assert array.type == pa.list_(pa.list_(pa.float32()))
    assert to_array([torch.from_numpy(row.copy()) for row in rows]).type == array.type


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_become_singles(dtype: torch.dtype) -> None:
    values = torch.tensor([1.5, -2.25], dtype=dtype, requires_grad=True)
    for array in (to_array(values), to_array([*values]), to_array(values.detach().float().numpy())):
        assert array.type == pa.float32()
        assert array.to_pylist() == [1.5, -2.25]
    assert to_array(np.array([1.5], np.float16)).type == pa.float32()


def test_python_values() -> None:
    assert to_array(["a", None]).type == pa.string()
    assert to_array([[1.0], None, []]).to_pylist() == [[1.0], None, []]
    assert to_array(range(3)).to_pylist() == [0, 1, 2]
    assert to_array(np.array(["a", "bc"])).to_pylist() == ["a", "bc"]
    assert to_array(pa.array([1, None])).to_pylist() == [1, None]
