"""PatchTSMixer's step in training on a GPU, against transformers' there."""

from __future__ import annotations

import pytest
import torch
from patchtsmixer_cases import forecaster, published, under_our_names, window
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close
from transformers import PatchTSMixerForPrediction

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("amp", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_step_is_that_of_transformers_in_less_memory(dropout: float, amp: bool) -> None:
    """From the same state of the generator the same values drop."""
    options = {"patch_length": 8, "stride": 8, "dim": 64, "expansion": 2, "layers": 4}
    options |= {"dropout": dropout, "head_dropout": dropout}
    theirs = published(PatchTSMixerForPrediction, 720, 96, 7, **options).train().cuda()
    ours = forecaster(720, 96, 7, **options).train().cuda()
    ours.load_state_dict(under_our_names(theirs.state_dict(), ""))
    past, future = window(8, 720, 7).cuda(), window(8, 96, 7).cuda()
    found, peaks = [], []
    model: nn.Module
    for model in (ours, theirs, ours, theirs):
        model.zero_grad()
        torch.manual_seed(1)
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        with torch.autocast("cuda", torch.bfloat16, enabled=amp):
            if model is ours:
                loss = F.mse_loss(model(past, past, future), future)
            else:
                loss = model(past, future_values=future).loss
        loss.backward()
        peaks.append(torch.cuda.max_memory_allocated() - before)
        gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
        found.append(gradients if model is ours else under_our_names(gradients, ""))
    for name, wanted in found[1].items():
        got, largest = found[0][name], float(wanted.abs().max())
        assert_close(got, wanted, atol=largest * (0.1 if amp else 1e-4), rtol=1e-3, msg=name)
    # The second time, when the libraries hold their workspaces.
    assert peaks[2] < (0.9 if amp else 0.8) * peaks[3]
