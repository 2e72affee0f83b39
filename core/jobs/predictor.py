"""Predictions for records in memory; batch jobs and served models run exactly this path."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from core.jobs.data import Encoded, Record, RecordDataModule, duplicate_id, encode_records
from core.jobs.errors import DataError


class Predictor:
    """A task and its data module as a function from records to a table.

    ``batch_size`` of the data module decides how many records the model sees at once. The task
    stays on the device it is on.
    """

    def __init__(self, task: LightningModule, datamodule: RecordDataModule) -> None:
        self.task = task.eval()
        self.datamodule = datamodule

    def __call__(self, records: Sequence[Record] | pd.DataFrame) -> pa.Table:
        """One row per record, or as many as the task gives, in the order of ``records``. Columns:
        ``record`` (its number, from 0), ``id``, those of the task, ``reason`` (null, or why the
        record was skipped; then the task's columns are null).

        Raises DataError for no records, and for an id that is missing or there twice.
        """
        if isinstance(records, pd.DataFrame):
            records = [_without_missing(row) for row in records.to_dict(orient="records")]
        if not len(records):
            raise DataError("no records to predict: give at least one")
        return self.table(records, range(len(records)))

    def table(self, records: Sequence[Record], numbers: range) -> pa.Table:
        """The same for ``records[number]``, one for each of ``numbers``."""
        parts = []
        with torch.inference_mode():
            for index, some in enumerate(batches(numbers, self.datamodule.batch_size)):
                encoded = encode_records(self.datamodule, ((n, records[n]) for n in some))
                parts.append(skipped_rows(encoded))
                if encoded.batch is not None:
                    batch = self.task.transfer_batch_to_device(encoded.batch, self.task.device, 0)
                    parts.append(predicted_rows(self.task.predict_step(batch, index), encoded))
        return assemble(parts, numbers)


def batches(numbers: range, size: int) -> Iterator[range]:
    """``numbers`` cut into ranges of ``size``; the last may be shorter."""
    for start in range(0, len(numbers), size):
        yield numbers[start : start + size]


def skipped_rows(encoded: Encoded) -> pa.Table:
    number, name, reason = zip(*encoded.skipped, strict=True) if encoded.skipped else ((), (), ())
    return pa.table(
        {
            "record": pa.array(number, pa.int64()),
            "id": pa.array(name, pa.string()),
            "reason": pa.array(reason, pa.string()),
        }
    )


def predicted_rows(columns: Mapping[str, Any], encoded: Encoded) -> pa.Table:
    """The columns a ``predict_step`` returned for ``encoded.batch``, with ``record`` added.

    Raises ValueError if they are not equally long, or their ids are not the batch's ids.
    """
    if not isinstance(columns, Mapping) or "id" not in columns or "record" in columns:
        raise ValueError(
            "predict_step must return a dict of columns with 'id' and without 'record', "
            f"got {list(columns) if isinstance(columns, Mapping) else type(columns).__name__}"
        )
    names = list(columns["id"])
    if set(names) != encoded.numbers.keys():
        wrong = sorted(set(names) ^ encoded.numbers.keys())[0]
        raise ValueError(f"predict_step must return rows for its batch's ids; {wrong!r} is not so")
    arrays = {
        "record": pa.array([encoded.numbers[name] for name in names], pa.int64()),
        **{name: to_array(values) for name, values in columns.items()},
        "id": pa.array(names, pa.string()),
    }
    for name, array in arrays.items():
        if len(array) != len(names):
            raise ValueError(
                f"predict_step: column {name!r} has {len(array)} rows, 'id' has {len(names)}"
            )
    return pa.table(arrays)


def assemble(parts: Sequence[pa.Table], numbers: range) -> pa.Table:
    """``parts`` as one table in record order.

    Raises DataError if two records share an id, ValueError if the rows are not those of
    ``numbers``.
    """
    table = pa.concat_tables(parts, promote_options="permissive")
    last = [] if "reason" not in table.column_names else ["reason"]
    middle = [name for name in table.column_names if name not in ("record", "id", "reason")]
    table = table.select(["record", "id", *middle, *last]).combine_chunks()
    record = table["record"].to_numpy()
    if np.any(record[1:] < record[:-1]):
        order = np.argsort(record, kind="stable")
        table, record = table.take(order), record[order]
    first = np.flatnonzero(np.diff(record, prepend=-1))
    if not np.array_equal(record[first], np.asarray(numbers)):
        raise ValueError(f"rows for {len(first)} records of {len(numbers)} ({numbers}) came back")
    _check_unique(table["id"].take(first), numbers)
    return table


def _check_unique(names: pa.ChunkedArray, numbers: range) -> None:
    if pc.count_distinct(names).as_py() == len(names):
        return
    seen: dict[str, int] = {}
    for number, name in zip(numbers, names.to_pylist(), strict=True):
        if name in seen:
            raise duplicate_id(name, seen[name], number)
        seen[name] = number


def to_array(values: Any) -> pa.Array:
    """An Arrow array of one column: a tensor or array (rows, ...), or a list of rows, which may be
    scalars, strings, None, lists, or tensors or arrays whose first axis differs in length. Inner
    axes become nested lists. Floats of less than 32 bits become float32, for want of readers."""
    if isinstance(values, pa.Array):
        return values
    if isinstance(values, Tensor | np.ndarray):
        return _nested(_numpy(values))
    values = list(values)
    if not values or not all(isinstance(value, Tensor | np.ndarray) for value in values):
        return pa.array(values)
    rows = [_numpy(value) for value in values]
    if rows[0].ndim == 0:
        return pa.array(np.stack(rows))
    offsets = np.cumsum([0, *map(len, rows)], dtype=np.int64)
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), _nested(np.concatenate(rows)))


def _numpy(values: Tensor | np.ndarray) -> np.ndarray:
    if isinstance(values, Tensor):
        if values.dtype in (torch.bfloat16, torch.float16):
            values = values.float()
        return values.detach().cpu().numpy()
    return values.astype(np.float32) if values.dtype == np.float16 else values


def _nested(values: np.ndarray) -> pa.Array:
    array = pa.array(values.reshape(-1))
    for axis in range(values.ndim - 1, 0, -1):
        lists = int(np.prod(values.shape[:axis]))
        offsets = np.arange(lists + 1, dtype=np.int64) * values.shape[axis]
        array = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), array)
    return array


def _without_missing(row: Mapping[Any, Any]) -> Record:
    # pandas marks a missing value by NaN or NA whatever the column; a record by None.
    return {
        str(key): None if pd.api.types.is_scalar(value) and pd.isna(value) else value
        for key, value in row.items()
    }
