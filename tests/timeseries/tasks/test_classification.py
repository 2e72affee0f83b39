"""Prefixes against brute force, metrics and baselines against scikit-learn and plain NumPy."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import numpy as np
import polars as pl
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score
from torch import Tensor, nn

from core.sequences import Sequences
from timeseries.data.labelled import LabelledSeriesData
from timeseries.models import LMUFormer
from timeseries.tasks import SeriesClassification
from timeseries.tasks.baselines import baseline_predictions
from timeseries.tasks.figures import confusion_figure, prefix_figure
from timeseries.tasks.prefixes import PrefixCurve, at_end, prefix_logits, prefix_steps, stream

pytestmark = [
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.`"),
]

CHANNELS, CLASSES, LONGEST = 2, 3, 23
LENGTHS = [23, 20, 7, 1]


class Sums(nn.Module):
    """No ``step``; the sum over real steps, by a fixed matrix."""

    def __init__(self) -> None:
        super().__init__()
        weight = torch.randn(CHANNELS, CLASSES, generator=torch.Generator().manual_seed(3))
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor, sequences: Sequences | None = None) -> Tensor:
        real = x if sequences is None else sequences.zero_padding(x)
        return real.sum(1) @ self.weight


def lmuformer() -> LMUFormer:
    torch.manual_seed(0)
    model = LMUFormer(CHANNELS, CLASSES, dim=8, theta=9.0, expand=1.5)
    model(torch.randn(64, 12, CHANNELS))  # running statistics
    return model.eval()


def values() -> Tensor:
    x = torch.randn(len(LENGTHS), LONGEST, CHANNELS, generator=torch.Generator().manual_seed(1))
    return Sequences.padded(LENGTHS, LONGEST).zero_padding(x)


@pytest.mark.parametrize("build", [lmuformer, Sums])
def test_prefixes_against_each_asked_alone(build: type[nn.Module]) -> None:
    model, x = build(), values()
    sequences = Sequences.padded(LENGTHS, LONGEST)
    steps, logits = prefix_steps(x, sequences), prefix_logits(model, x, sequences)
    labels = torch.tensor([0, 2, 1, 0])
    curve = PrefixCurve()
    for part in (slice(0, 3), slice(3, 4)):
        curve.update(logits[part].argmax(-1), labels[part], steps[part])
    right = np.zeros(20)
    for row, length in enumerate(LENGTHS):
        for k in range(20):
            prefix = -(-(k + 1) * length // 20)
            assert steps[row, k] == prefix
            alone = at_end(model(x[row : row + 1, :prefix]), None)[0]
            torch.testing.assert_close(logits[row, k], alone, rtol=1e-4, atol=1e-5)
            right[k] += alone.argmax() == labels[row]
    table = curve.table()
    np.testing.assert_allclose(table["accuracy"], right / 4)
    np.testing.assert_allclose(table["share"], np.linspace(0.05, 1, 20))
    np.testing.assert_allclose(table["mean_steps"], steps.double().mean(0))
    assert 0 < right.sum() < 80


def test_streamed_equals_forward() -> None:
    model, x = lmuformer(), values()
    torch.testing.assert_close(stream(model, x), model(x), rtol=1e-4, atol=1e-5)


def test_the_last_real_step_answers() -> None:
    logits = torch.arange(24.0).reshape(2, 4, 3)
    assert at_end(logits, None).tolist() == [[9, 10, 11], [21, 22, 23]]
    assert at_end(logits, Sequences.padded([2, 4], 4)).tolist() == [[3, 4, 5], [21, 22, 23]]


@pytest.fixture
def data(tmp_path: Path) -> LabelledSeriesData:
    """60 series around a level of their class, 24 of them to test; one class is rare."""
    rng = np.random.default_rng(0)
    rows = []
    for n in range(60):
        label = "abc"[0 if n % 12 == 0 else 1 + n % 2]
        split = ("train", "train", "val", "test", "test")[n % 5]
        for _ in range(rng.integers(3, 9)):
            level = 0.7 * "abc".index(label)
            rows.append((f"s{n}", *rng.normal(level, 1, CHANNELS), label, split))
    columns = ["unique_id", "x", "y", "label", "split"]
    pl.DataFrame(rows, schema=columns, orient="row").write_csv(tmp_path / "x.csv")
    found = LabelledSeriesData(path=str(tmp_path / "x.csv"), batch_size=5)
    found.setup("fit")
    return found


def test_metrics_equal_sklearn(data: LabelledSeriesData) -> None:
    task = SeriesClassification(Sums(), classes=3)
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False
    )
    [said] = trainer.test(task, datamodule=data, verbose=False)
    test = data.split("test")
    truth = data.numbers(test)
    answers = {"": [], **baseline_predictions(data, test)}
    halves, losses = [], []
    with torch.no_grad():
        for one, number in zip(test, truth, strict=True):
            x = torch.from_numpy(data.standardised(one.values))[None]
            logits = task.model(x)
            answers[""].append(int(logits.argmax()))
            halves.append(int(task.model(x[:, : -(-x.shape[1] // 2)]).argmax()))
            losses.append(-float(logits[0].log_softmax(-1)[number]))
    assert len(test) == 24
    for name, predicted in answers.items():
        end = f"_{name}" if name else ""
        assert said[f"test/accuracy{end}"] == pytest.approx(accuracy_score(truth, predicted))
        expected = f1_score(truth, predicted, average="macro")
        assert said[f"test/macro_f1{end}"] == pytest.approx(expected)
    assert said["test/accuracy_at_50"] == pytest.approx(accuracy_score(truth, halves))
    assert said["test/accuracy_at_100"] == pytest.approx(said["test/accuracy"])
    assert said["test/loss"] == pytest.approx(np.mean(losses), rel=1e-5)


def test_baselines_and_prefixes_can_be_left_out(data: LabelledSeriesData) -> None:
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False
    )

    def tested(**options: bool) -> dict[str, float]:
        task = SeriesClassification(Sums(), classes=3, **options)
        [said] = trainer.test(task, datamodule=data, verbose=False)
        return dict(said)

    own = {"test/accuracy", "test/macro_f1", "test/loss"}
    whole = tested()
    short = tested(baselines=False, prefixes=False)
    assert short == {key: whole[key] for key in own}
    curve = tested(baselines=False)
    assert set(curve) - own == {f"test/accuracy_at_{k}" for k in (25, 50, 75, 100)}


def test_nearest_neighbour_by_brute_force(data: LabelledSeriesData) -> None:
    train, test = data.split("train"), data.split("test")
    longest = max(len(one.values) for one in train)

    def stretched(one: object) -> np.ndarray:
        series = data.standardised(one.values)  # type: ignore[attr-defined]
        at = np.linspace(0, 1, longest)
        steps = np.linspace(0, 1, len(series))
        return np.stack([np.interp(at, steps, channel) for channel in series.T])

    near = np.stack([stretched(one) for one in train])
    expected = [
        data.numbers(train)[int(((near - stretched(one)) ** 2).sum((1, 2)).argmin())]
        for one in test
    ]
    assert baseline_predictions(data, test)["nearest_neighbour"].tolist() == expected


def test_figures_show_the_numbers() -> None:
    figure = confusion_figure(np.array([0, 1, 1, 1]), np.array([0, 1, 1, 0]), ["left", "right"])
    assert [t.get_text() for t in figure.axes[0].texts] == ["1", "1", "2"]
    shades = figure.axes[0].images[0].get_array()
    assert shades.tolist() == [[0.5, 0.5], [0, 1]]
    figure = prefix_figure(pl.DataFrame({"share": [0.5, 1.0], "accuracy": [0.25, 0.75]}))
    assert figure.axes[0].lines[0].get_ydata().tolist() == [0.25, 0.75]


def test_one_class_is_refused() -> None:
    with pytest.raises(ValueError, match="classes must be at least 2, got 0"):
        SeriesClassification(Sums())
