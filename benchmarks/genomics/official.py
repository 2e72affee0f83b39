"""The authors' HyenaDNA, run from a user's copy of its code.

Give the path of ``standalone_hyenadna.py`` from github.com/HazyResearch/hyena-dna; it needs einops.
Its tokenizer and stochastic depth (a no-op at rate 0) are not used, so their imports are stood in.
"""

from __future__ import annotations

import importlib.util
import sys
import types
import warnings
from pathlib import Path
from typing import Any

from torch import nn


def load_official(path: Path) -> Any:
    """The module at ``path``."""

    class StochasticDepth(nn.Identity):
        def __init__(self, p: float, mode: str) -> None:
            super().__init__()
            if p:
                raise ValueError("stochastic depth is stood in for rate 0 only")

    torchvision = types.ModuleType("torchvision.ops")
    torchvision.StochasticDepth = StochasticDepth  # type: ignore[attr-defined]
    tokenization = types.ModuleType("transformers.tokenization_utils")
    tokenization.AddedToken = object  # type: ignore[attr-defined]
    tokenization.PreTrainedTokenizer = object  # type: ignore[attr-defined]
    stand_ins = {"torchvision.ops": torchvision, "transformers.tokenization_utils": tokenization}
    before = {name: sys.modules.get(name) for name in stand_ins}
    spec = importlib.util.spec_from_file_location("official_hyenadna", path)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(path)
    module = importlib.util.module_from_spec(spec)
    sys.modules.update(stand_ins)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.jit.script is deprecated; it still runs
            spec.loader.exec_module(module)
    finally:
        for name, old in before.items():
            sys.modules.pop(name)
            if old is not None:
                sys.modules[name] = old
    return module


def official_model(
    module: Any, width: int, layers: int, max_length: int, **options: Any
) -> nn.Module:
    """Their backbone with the settings of the published tiny models."""
    layer = {"emb_dim": 5, "filter_order": 64, "l_max": max_length, "w": 10, "lr_pos_emb": 0.0}
    return module.HyenaDNAModel(
        d_model=width,
        n_layer=layers,
        d_inner=4 * width,
        vocab_size=12,
        pad_vocab_size_multiple=8,
        layer=layer,
        **options,
    )
