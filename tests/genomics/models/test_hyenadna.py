"""HyenaDNA against the authors' code: outputs stored by benchmarks/genomics/make_reference.py."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from core.jobs.errors import UsageError
from core.sequences import Sequences
from genomics.models import HyenaDNA
from genomics.models.hyenadna import convert_published
from genomics.tasks import Pretraining

FIXTURES = sorted((Path(__file__).parent / "fixtures").glob("official_*.safetensors"))


def ours(path: Path, **options: object) -> HyenaDNA:
    width, layers, length = map(int, re.findall(r"\d+", path.stem))
    return HyenaDNA(width, layers, length, pretrained=str(path), **options).eval()  # type: ignore[arg-type]


def cases(path: Path) -> list[tuple[torch.Tensor, torch.Tensor]]:
    stored = load_file(path)
    lengths = [k.removeprefix("tokens_") for k in stored if k.startswith("tokens_")]
    return [(stored[f"tokens_{n}"], stored[f"hidden_{n}"]) for n in lengths]


@pytest.mark.parametrize("path", FIXTURES, ids=lambda p: p.stem)
def test_equals_the_official_code(path: Path) -> None:
    model = ours(path)
    for tokens, hidden in cases(path):
        with torch.no_grad():
            torch.testing.assert_close(model.embed(tokens), hidden, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("path", FIXTURES[:1], ids=lambda p: p.stem)
def test_padding_changes_nothing(path: Path) -> None:
    model = ours(path)
    tokens, hidden = max(cases(path), key=lambda case: case[0].shape[1])
    padded = tokens.clone()
    padded[1, 20:] = 4
    with torch.no_grad():
        got = model.embed(padded, Sequences.padded([tokens.shape[1], 20], tokens.shape[1]))
        alone = model.embed(tokens[1:, :20])
    torch.testing.assert_close(got[0], hidden[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(got[1:, :20], alone, rtol=1e-4, atol=1e-5)


def test_layouts_of_the_other_releases_load_alike() -> None:
    state = {k: v for k, v in load_file(FIXTURES[0]).items() if k.startswith("model.")}
    plain = convert_published(state)
    checkpointed = {re.sub(r"\.(mixer|mlp)\.", r".\1.layer.", k): v for k, v in state.items()}
    ported = {k.replace("model.", "hyena.", 1): v for k, v in state.items()}
    for other in (checkpointed, ported):
        converted = convert_published(other)
        assert converted.keys() == plain.keys()
        assert all(torch.equal(converted[k], plain[k]) for k in plain)


def test_a_torch_checkpoint_loads(tmp_path: Path) -> None:
    state = {k: v for k, v in load_file(FIXTURES[0]).items() if k.startswith("model.")}
    torch.save({"state_dict": state}, tmp_path / "weights.ckpt")
    model = HyenaDNA(16, 2, 64, pretrained=str(tmp_path / "weights.ckpt")).eval()
    tokens, hidden = cases(FIXTURES[0])[0]
    with torch.no_grad():
        torch.testing.assert_close(model.embed(tokens), hidden, rtol=1e-4, atol=1e-4)


def test_weights_of_a_run_of_ours_load(tmp_path: Path) -> None:
    """From a pretraining task into a classifier: its head is not the model's business."""
    torch.manual_seed(0)
    trained = Pretraining(HyenaDNA(16, 2, 64))
    state = {**trained.state_dict(), "head.weight": torch.zeros(2, 16)}
    torch.save({"state_dict": state}, tmp_path / "best.ckpt")
    torch.manual_seed(1)
    loaded = HyenaDNA(16, 2, 64, pretrained=str(tmp_path / "best.ckpt")).state_dict()
    for name, value in trained.model.state_dict().items():
        assert torch.equal(loaded[name], value), name
    with pytest.raises(UsageError, match="set width, layers and max_length"):
        HyenaDNA(16, 2, 32, pretrained=str(tmp_path / "best.ckpt"))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [((16, 3, 64), "lacks backbone.blocks.4"), ((16, 2, 32), "set width, layers and max_length")],
)
def test_another_shape_is_refused(sizes: tuple[int, int, int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        HyenaDNA(*sizes, pretrained=str(FIXTURES[0]))


def test_another_model_is_refused(tmp_path: Path) -> None:
    save_file({"backbone.layers.0.mixer.A_log": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(UsageError, match="not one of a published HyenaDNA"):
        HyenaDNA(16, 1, 64, pretrained=str(tmp_path / "x.safetensors"))
    with pytest.raises(UsageError, match="does not exist"):
        HyenaDNA(16, 1, 64, pretrained=str(tmp_path / "none.ckpt"))


def test_generation_is_greedy_when_cold() -> None:
    model = ours(FIXTURES[0])
    tokens = torch.tensor([[7, 8, 9]])
    grown = model.generate(tokens, 4, temperature=0)
    assert grown.shape == (1, 7)
    for t in range(3, 7):
        assert grown[0, t] == model(grown[:, :t])[0, -1, :12].argmax()
