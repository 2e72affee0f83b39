"""Writes the reference outputs that tests/genomics/models holds our HyenaDNA to.

python benchmarks/genomics/make_reference.py path/to/standalone_hyenadna.py
Random weights, so nothing of the published models is stored; float32 on the CPU.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from benchmarks.genomics.official import load_official, official_model

SHAPES = [(16, 2, 64, (1, 7, 64)), (32, 1, 200, (33, 200)), (24, 3, 1026, (1000, 1026))]
TARGET = Path(__file__).parents[2] / "tests" / "genomics" / "models" / "fixtures"


def main() -> None:
    module = load_official(Path(sys.argv[1]))
    for width, layers, max_length, lengths in SHAPES:
        torch.manual_seed(width)
        model = official_model(module, width, layers, max_length).eval()
        tensors = {}
        with torch.no_grad():
            for parameter in model.parameters():  # away from the tidy values of initialisation
                parameter.add_(0.05 * torch.randn_like(parameter))
            for length in lengths:
                tokens = torch.randint(7, 12, (2, length))
                tensors[f"tokens_{length}"] = tokens
                tensors[f"hidden_{length}"] = model(tokens)
        state = {f"model.{k}": v.clone().contiguous() for k, v in model.state_dict().items()}
        save_file(
            {**state, **tensors}, TARGET / f"official_w{width}_l{layers}_n{max_length}.safetensors"
        )


if __name__ == "__main__":
    main()
