"""Sizes that the data decides, put into the model's settings."""

from __future__ import annotations

from typing import Any

from jsonargparse import Namespace

from core.jobs.cli import fill_in_facts
from core.jobs.data import RecordDataModule


class Sized(RecordDataModule):
    def model_facts(self) -> dict[str, int]:
        return {"channels": 7, "horizon": self.batch_size}


def options(data: str, **task: Any) -> Namespace:
    network = Namespace(class_path="a.Network", init_args=Namespace(channels=0, depth=0))
    return Namespace(
        model=Namespace(class_path="a.Task", init_args=Namespace(model=network, **task)),
        data=Namespace(class_path=f"{__name__}.{data}", init_args=Namespace(batch_size=5)),
    )


def test_zeros_named_by_the_data_are_filled_and_nothing_else() -> None:
    settings = options("Sized", horizon=0, channels=3, season=0)
    fill_in_facts(settings)
    task = settings.model.init_args
    assert (task.horizon, task.channels, task.season) == (5, 3, 0)
    assert (task.model.init_args.channels, task.model.init_args.depth) == (7, 0)


class Plain(RecordDataModule):
    pass


def test_data_without_facts_changes_nothing() -> None:
    settings = options("Plain", horizon=0)
    fill_in_facts(settings)
    assert settings.model.init_args.horizon == 0
