"""Settings for every test."""

from __future__ import annotations

import os

import torch
from hypothesis import settings

# Triton reads this when it is first imported, which lightning does before any kernel.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

# The first example pays for imports, so a deadline an example says nothing.
settings.register_profile("longspan", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("longspan")
