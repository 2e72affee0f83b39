from __future__ import annotations

from typing import Any

import pytest
import torch

from core.backbone import MLP, Backbone, GatedMLP, LanguageModel, scale_residual_init
from core.mixers import S4D, Attention, Hyena, Mamba2, UnsupportedPattern
from core.sequences import Sequences

BLOCKS = {
    "mamba2": lambda dim: Mamba2(dim, head_dim=16, state=8),
    "attention": lambda dim: Attention(dim, heads=2),
    "s4d": lambda dim: S4D(dim, state=4),
    "hyena": lambda dim: Hyena(dim, max_length=64),
    "mlp": MLP,
    "gated": lambda dim: GatedMLP(dim),
}


def hybrid(schedule: str = "(mamba2 gated)*2 attention s4d mlp", **options: object) -> Backbone:
    torch.manual_seed(0)
    return Backbone(16, BLOCKS, schedule, **options).double()  # type: ignore[arg-type]


def test_residual_stream_is_the_plain_sum() -> None:
    backbone = hybrid("mlp gated").eval()
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    y = x
    for block in backbone.blocks:
        y = y + block.layer(block.norm(y))
    torch.testing.assert_close(backbone(x), backbone.norm(y))


def test_unknown_block_is_named() -> None:
    with pytest.raises(ValueError, match="schedule names mamba3"):
        Backbone(16, BLOCKS, "mamba3 mlp")


@pytest.mark.parametrize(
    ("x", "sequences", "message"),
    [
        (None, None, "x must be a tensor, got NoneType"),
        (torch.zeros(2, 5, 15), None, r"x must be \(batch, length, 16\) .* got \(2, 5, 15\)"),
        (torch.zeros(2, 5, 16).long(), None, "floating point, got .* torch.int64"),
        (
            torch.zeros(2, 5, 16),
            Sequences.padded([1], 5),
            r"describe \(1, 5\) on cpu, x is \(2, 5,",
        ),
        (torch.zeros(2, 5, 16), [1, 2], "sequences must be .*Sequences, got list"),
    ],
)
def test_what_does_not_fit_is_named(x: Any, sequences: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^Backbone: .*{message}"):
        hybrid("mlp")(x, sequences=sequences)


def test_extend_and_step_equal_forward() -> None:
    backbone = hybrid().eval()
    x = torch.randn(2, 12, 16, dtype=torch.float64)
    state = backbone.init_state(2, dtype=torch.float64)
    first, state = backbone.extend(x[:, :7], state)
    rest = []
    for t in range(7, 12):
        y, state = backbone.step(x[:, t], state)
        rest.append(y)
    got = torch.cat([first, torch.stack(rest, 1)], 1)
    torch.testing.assert_close(got, backbone(x), rtol=1e-8, atol=1e-9)


def test_checkpointing_changes_no_gradient() -> None:
    x = torch.randn(2, 9, 16, dtype=torch.float64)
    sequences = Sequences.padded([9, 4], 9)
    grads = []
    for checkpointed in (False, True):
        backbone = hybrid(checkpoint_blocks=checkpointed)
        backbone(x, sequences=sequences).square().sum().backward()
        grads.append([p.grad for p in backbone.parameters()])
    for plain, recomputed in zip(*grads, strict=True):
        torch.testing.assert_close(plain, recomputed)


# Dynamo looks at .grad of every input of a frame, leaf or not.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_compiled_blocks_agree() -> None:
    x = torch.randn(2, 9, 16, dtype=torch.float64)
    plain, compiled = hybrid("mlp gated"), hybrid("mlp gated", compile_blocks=True)
    torch.testing.assert_close(compiled(x), plain(x))


def test_tied_head_shares_the_embedding() -> None:
    tied, untied = (LanguageModel(hybrid("mlp"), 12, pad_to=8, tie=t) for t in (True, False))
    assert tied.head.weight is tied.embedding.weight
    assert untied.head.weight is not untied.embedding.weight
    assert tied.embedding.num_embeddings == 16


def test_soft_prompt_equals_prompted_embeddings() -> None:
    model = LanguageModel(hybrid(), 12).double().eval()
    prompt = torch.randn(3, 16, dtype=torch.float64)
    tokens = torch.randint(0, 12, (2, 6))
    sequences = Sequences.padded([6, 4], 6)
    got = model.embed(tokens, sequences, prompt)
    whole = torch.cat([prompt[None], model.embedding(tokens[1:, :4])], 1)
    torch.testing.assert_close(got[1:, :4], model.backbone(whole)[:, 3:])


@pytest.mark.parametrize("schedule", ["(mamba2 mlp)*2 attention", "hyena mlp"])
def test_generation_by_step_equals_generation_by_rerun(schedule: str) -> None:
    model = LanguageModel(hybrid(schedule), 12).double().eval()
    assert model.backbone.recurrent == ("hyena" not in schedule)
    tokens = torch.randint(0, 12, (2, 5))
    grown = model.generate(tokens, 6, temperature=0)
    for t in range(5, 11):
        assert torch.equal(grown[:, t], model(grown[:, :t])[:, -1].argmax(-1))
    sampled = [
        model.generate(tokens, 6, top_k=3, generator=torch.Generator().manual_seed(s))
        for s in (0, 0, 1)
    ]
    assert torch.equal(sampled[0], sampled[1])
    assert not torch.equal(sampled[0], sampled[2])


def test_a_backbone_without_state_says_so() -> None:
    with pytest.raises(UnsupportedPattern, match="Hyena carries no state"):
        hybrid("hyena").init_state(1)


def test_residual_writes_are_scaled_down() -> None:
    backbone, plain = hybrid("(hyena mlp)*8"), hybrid("(hyena mlp)*8")
    scale_residual_init(backbone)
    for scaled, before in zip(backbone.blocks, plain.blocks, strict=True):
        for (name, weight), old in zip(scaled.named_parameters(), before.parameters(), strict=True):
            writes = name.endswith(("out_proj.weight", "fc2.weight"))
            torch.testing.assert_close(weight, old / 4 if writes else old)
