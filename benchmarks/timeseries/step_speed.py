"""Training step and forecast of Informer, Autoformer and PatchTSMixer beside transformers' own.

    python benchmarks/timeseries/step_speed.py --out step_speed.json [--device cuda]

Same sizes (the authors' for ETTh1), same batch, float32, alternating; medians. transformers'
Informer and Autoformer embed lagged values and end in a distribution: they run on one lag with a
Student-T head, which is a linear layer. Time on a CPU is what the process used of it, summed over
threads, so that others on the machine count little. Peak memory: what one training step adds to a
fresh process (Linux), on a GPU to what is allocated there.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import time
import warnings
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

CHANNELS, FEATURES, HORIZON, LABEL = 7, 4, 96, 48
DROPOUT = 0.7
MODELS = ("PatchTSMixer", "Informer", "Autoformer")
Step = Callable[[], Tensor]


def ours(name: str, lookback: int, batch: int, device: str) -> tuple[nn.Module, Step]:
    from timeseries import models

    options: dict[str, Any] = {
        # transformers' decoder has no start tokens
        "Informer": {"encoder_layers": 2, "decoder_layers": 1, "label_length": 0},
        "Autoformer": {"encoder_layers": 2, "decoder_layers": 1, "label_length": LABEL},
        "PatchTSMixer": {"dim": 64, "layers": 4, "patch_length": 8, "stride": 8},
    }[name]
    sizes = {
        "lookback": lookback,
        "horizon": HORIZON,
        "channels": CHANNELS,
        "time_features": FEATURES,
    }
    model = getattr(models, name)(**sizes, **options).to(device)
    past = torch.randn(batch, lookback, CHANNELS, device=device)
    past_time = torch.rand(batch, lookback, FEATURES, device=device)
    future_time = torch.rand(batch, HORIZON, FEATURES, device=device)
    future = torch.randn(batch, HORIZON, CHANNELS, device=device)

    def step() -> Tensor:
        return nn.functional.mse_loss(model(past, past_time, future_time), future)

    return model, step


def theirs(name: str, lookback: int, batch: int, device: str) -> tuple[nn.Module, Step]:
    import transformers

    if name == "PatchTSMixer":
        config = transformers.PatchTSMixerConfig(
            context_length=lookback,
            prediction_length=HORIZON,
            num_input_channels=CHANNELS,
            d_model=64,
            num_layers=4,
            patch_length=8,
            patch_stride=8,
            dropout=DROPOUT,  # PyTorch's on a CPU takes longer the nearer its rate is to a half
            head_dropout=DROPOUT,
        )
        patched: Any = transformers.PatchTSMixerForPrediction
        model = patched(config).to(device)
        past = torch.randn(batch, lookback, CHANNELS, device=device)
        future = torch.randn(batch, HORIZON, CHANNELS, device=device)
        return model, lambda: model(past_values=past, future_values=future).loss
    sizes: dict[str, Any] = {
        "prediction_length": HORIZON,
        "context_length": lookback,
        "input_size": CHANNELS,
        "lags_sequence": [1],
        "num_time_features": FEATURES,
        "d_model": 512,
        "encoder_layers": 2,
        "decoder_layers": 1,
        "encoder_attention_heads": 8,
        "decoder_attention_heads": 8,
        "encoder_ffn_dim": 2048,
        "decoder_ffn_dim": 2048,
        "dropout": 0.05,
        "attention_dropout": 0.05,
        "activation_dropout": 0.05,
        "encoder_layerdrop": 0.0,  # a layer left out is no work done and no memory held
        "decoder_layerdrop": 0.0,
        "scaling": False,
    }
    if name == "Autoformer":
        sizes |= {"label_length": LABEL, "moving_average": 25, "autocorrelation_factor": 3}
    kind = getattr(transformers, f"{name}ForPrediction")
    model = kind(getattr(transformers, f"{name}Config")(**sizes)).to(device)
    longer = lookback + 1
    given = {
        "past_values": torch.randn(batch, longer, CHANNELS),
        "past_time_features": torch.rand(batch, longer, FEATURES),
        "past_observed_mask": torch.ones(batch, longer, CHANNELS),
        "future_values": torch.randn(batch, HORIZON, CHANNELS),
        "future_time_features": torch.rand(batch, HORIZON, FEATURES),
    }
    given = {key: value.to(device) for key, value in given.items()}
    return model, lambda: model(**given).loss


def seconds(model: nn.Module, step: Step, training: bool, device: str) -> float:
    model.train(training)
    clock = time.perf_counter if device == "cuda" else time.process_time
    _wait(device)
    start = clock()
    if training:
        model.zero_grad()
        step().backward()
    else:
        with torch.inference_mode():
            step()
    _wait(device)
    return clock() - start


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def peak(make: Callable[..., tuple[nn.Module, Step]], *sizes: Any) -> float:
    """MiB that the peak of a fresh process, or of what is allocated on a GPU, grows by in one
    training step."""
    if sizes[-1] == "cuda":
        return _growth(make, *sizes)
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_growth, (make, *sizes))


def _growth(make: Any, name: str, lookback: int, batch: int, device: str) -> float:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    model, step = make(name, lookback, batch, device)
    small, first = make(name, 96, 1, device)
    seconds(small, first, True, device)  # what the first step of a process loads
    if device == "cuda":
        allocated = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        seconds(model, step, True, device)
        return (torch.cuda.max_memory_allocated() - allocated) / 2**20
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    seconds(model, step, True, device)
    return _resident("VmHWM") - before


def _resident(field: str) -> float:
    """MiB of this process, by /proc."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) / 1024


def measure(name: str, lookback: int, batch: int, pairs: int, device: str) -> dict[str, Any]:
    torch.manual_seed(0)
    sizes = (name, lookback, batch, device)
    both = {"ours": ours(*sizes), "theirs": theirs(*sizes)}
    row: dict[str, Any] = {"model": name, "lookback": lookback, "batch": batch}
    for training in (True, False):
        times: dict[str, list[float]] = {who: [] for who in both}
        for number in range(pairs + 1):
            for who, (model, step) in both.items():
                taken = seconds(model, step, training, device)
                if number:
                    times[who].append(taken)
        for who, values in times.items():
            row[f"{'step' if training else 'forecast'}_{who}_ms"] = 1e3 * statistics.median(values)
    for who, make in (("ours", ours), ("theirs", theirs)):
        row[f"step_{who}_peak_mib"] = peak(make, *sizes)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(args.threads)
    rows = []
    for name in args.models:
        for lookback, batch in ((96, 32), (720, 8)):
            row = measure(name, lookback, batch, args.pairs, args.device)
            rows.append(row)
            print({k: round(v, 1) if isinstance(v, float) else v for k, v in row.items()})
    result: dict[str, Any] = {"torch": torch.__version__, "device": args.device}
    result["transformers"] = metadata.version("transformers")
    if args.device == "cuda":
        result["device"] = torch.cuda.get_device_name()
    result |= {"threads": args.threads, "pairs": args.pairs}
    args.out.write_text(json.dumps({**result, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
