"""HyenaDNA (Nguyen et al. 2023, arXiv 2306.15794) and its published checkpoint layout."""

from __future__ import annotations

import re
from pathlib import Path

from torch import Tensor

from core.backbone import MLP, Backbone, LanguageModel, scale_residual_init
from core.jobs.errors import UsageError
from core.jobs.runs import find_checkpoint
from core.jobs.weights import read_checkpoint
from core.mixers import Hyena
from genomics.data.tokenizers import BASES, FIRST_BASE


class HyenaDNA(LanguageModel):
    """``layers`` of Hyena and MLP over single nucleotides, ``width`` wide, up to ``max_length``.

    Not causal (``causal=False``) gives the bidirectional encoder of the paper's classifiers trained
    from scratch. ``shift`` is the floor under the filter's decay: 0.05 in the authors' released
    inference code, 0.0 in their training code. ``taps`` is the length of Hyena's short filters, 3
    in the paper. ``pretrained`` reads weights: the published layout (``.ckpt`` or
    ``.safetensors``), or a run folder or ``.ckpt`` of ours, whatever its task was.
    """

    def __init__(
        self,
        width: int = 128,
        layers: int = 2,
        max_length: int = 1026,
        *,
        causal: bool = True,
        order: int = 2,
        taps: int = 3,
        expand: float = 4.0,
        filter_width: int = 64,
        frequency: float = 10.0,
        shift: float = 0.05,
        dropout: float = 0.0,
        embed_dropout: float = 0.1,
        checkpoint_blocks: bool = False,
        pretrained: str | None = None,
    ) -> None:
        def hyena(dim: int) -> Hyena:
            return Hyena(
                dim,
                causal,
                max_length=max_length,
                order=order,
                taps=taps,
                filter_width=filter_width,
                frequency=frequency,
                shift=shift,
                dropout=dropout,
            )

        def mlp(dim: int) -> MLP:
            return MLP(dim, expand=expand)

        backbone = Backbone(
            width,
            {"hyena": hyena, "mlp": mlp},
            f"(hyena mlp)*{layers}",
            dropout=dropout,
            embed_dropout=embed_dropout,
            checkpoint_blocks=checkpoint_blocks,
        )
        super().__init__(backbone, FIRST_BASE + len(BASES), pad_to=8)
        scale_residual_init(backbone)
        self.max_length, self.causal = max_length, causal
        if pretrained is not None:
            load_pretrained(self, Path(pretrained))


# Published name -> ours, within one layer. Blocks 2i and 2i + 1 are the Hyena and MLP of layer i.
_HYENA = {
    "norm1": "norm",
    "mixer.in_proj": "layer.in_proj",
    "mixer.short_filter": "layer.short_filter",
    "mixer.out_proj": "layer.out_proj",
    "mixer.filter_fn.bias": "layer.skip",
    "mixer.filter_fn.pos_emb.z": "layer.filter.z",
    "mixer.filter_fn.pos_emb.t": "layer.filter.t",
    "mixer.filter_fn.modulation.deltas": "layer.filter.deltas",
    "mixer.filter_fn.implicit_filter.0": "layer.filter.layers.0",
    "mixer.filter_fn.implicit_filter.1.freq": "layer.filter.sine.freq",
    "mixer.filter_fn.implicit_filter.2": "layer.filter.layers.1",
    "mixer.filter_fn.implicit_filter.4": "layer.filter.layers.2",
    "mixer.filter_fn.implicit_filter.6": "layer.filter.out",
}
_MLP = {"norm2": "norm", "mlp.fc1": "layer.fc1", "mlp.fc2": "layer.fc2"}
_SHARED_SINE = re.compile(r"implicit_filter\.[35]\.freq$")  # the same parameter, listed again
_LAYER = re.compile(r"^backbone\.layers\.(\d+)\.(.+)$")


def convert_published(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """State dict of a published HyenaDNA -> one for ``HyenaDNA``, without classifiers' heads.

    Takes the layouts of the training code (``model.backbone...``), of the same with gradient
    checkpointing (``.mixer.layer.``, ``.mlp.layer.``) and of the transformers port
    (``hyena.backbone...``). Raises UsageError naming a key it does not know.
    """
    converted: dict[str, Tensor] = {}
    for key, value in state.items():
        name = re.sub(r"^(model|hyena)\.", "", key)
        name = re.sub(r"\.(mixer|mlp)\.layer\.", r".\1.", name)
        match = _LAYER.match(name)
        if match and not _SHARED_SINE.search(name):
            target = _within_layer(int(match[1]), match[2], key)
            shape = {"deltas": (-1,), "t": (-1, 1), "z": value.shape[-2:]}
            converted[target] = value.reshape(shape.get(target.rsplit(".", 1)[-1], value.shape))
        elif name == "backbone.embeddings.word_embeddings.weight":
            converted["embedding.weight"] = value
            converted["head.weight"] = value  # tied; a published lm_head of its own replaces it
        elif name.startswith("backbone.ln_f."):
            converted["backbone.norm." + name.rsplit(".", 1)[-1]] = value
    for key, value in state.items():
        if key.endswith("lm_head.weight"):
            converted["head.weight"] = value
    return converted


def _within_layer(layer: int, inner: str, key: str) -> str:
    for offset, names in enumerate((_HYENA, _MLP)):
        for published, ours in names.items():
            if inner == published or inner.startswith(published + "."):
                rest = inner[len(published) :]
                return f"backbone.blocks.{2 * layer + offset}.{ours}{rest}"
    raise UsageError(
        f"checkpoint key {key!r} is not one of a published HyenaDNA; is it another model?"
    )


def load_pretrained(model: HyenaDNA, path: Path) -> None:
    """Weights of a published checkpoint, or of a run of ours, into ``model``.

    Raises UsageError naming what does not fit.
    """
    if path.suffix == ".safetensors" and path.is_file():
        from safetensors.torch import load_file

        raw = load_file(path)
    else:
        path, _ = find_checkpoint(path)
        raw = read_checkpoint(path)["state_dict"]
    expected = model.state_dict()
    ours = {k.removeprefix("model."): v for k, v in raw.items() if k.startswith("model.")}
    if any(key.startswith("backbone.blocks.") for key in ours):
        converted = ours
    else:
        converted = convert_published(raw)
    missing = sorted(set(expected) - set(converted))
    if missing:
        raise UsageError(
            f"checkpoint {path} lacks {missing[0]} ({len(missing)} missing); fewer layers?"
        )
    for key, value in converted.items():
        if key not in expected or expected[key].shape != value.shape:
            have = tuple(expected[key].shape) if key in expected else "nothing"
            raise UsageError(
                f"checkpoint {path}: {key} is {tuple(value.shape)}, the model has {have}; "
                "set width, layers and max_length as it was trained with"
            )
    model.load_state_dict(converted)
