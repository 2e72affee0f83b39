"""``generate``: new events from a trained model."""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import polars as pl
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor

from core.jobs.errors import UsageError
from core.jobs.files import replacing
from core.jobs.runs import find_checkpoint
from core.jobs.weights import load_data_state, load_weights
from timeseries.data.chorales import END, ChoraleSequences, write_midi
from timeseries.data.events import EventSequences
from timeseries.models.events import EventModel
from timeseries.studies import Parser
from timeseries.tasks.events import EventModelling

MIDI = (".mid", ".midi")


def generate(arguments: Sequence[str]) -> None:
    """Write events that a run of EventModelling draws."""
    parser = Parser(
        prog="timeseries generate",
        allow_abbrev=False,
        description="Draw new event sequences from a run of EventModelling, an event at a time. "
        "A .csv gets one row an event; .mid, of chorales, four voices.",
    )
    parser.add_argument("--ckpt_path", required=True, help="a run folder")
    parser.add_argument("--out", required=True, help=".csv, or .mid of a run on chorales")
    parser.add_argument("--sequences", type=int, default=1, help="more than one only in a .csv")
    parser.add_argument("--events", type=int, default=500, help="of a sequence at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--temperature", type=float, default=1.0, help="of types; 0: likeliest")
    parser.add_argument("--top_p", type=float, default=1.0, help="share of types kept, by rank")
    given = parser.parse_args(list(arguments))
    _check(given.temperature, given.top_p, given.sequences, given.events)
    task, data = load(Path(given.ckpt_path))
    out = Path(given.out)
    _check_out(out, given.sequences, isinstance(data, ChoraleSequences))
    types = data.types or []
    times, kinds = draw(
        task.model,
        given.sequences,
        given.events,
        temperature=given.temperature,
        top_p=given.top_p,
        stop=types.index(END) if isinstance(data, ChoraleSequences) and END in types else None,
        generator=torch.Generator().manual_seed(given.seed),
    )
    names = [[types[k] for k in row.tolist() if k >= 0] for row in kinds]
    drawn = [row[: len(of)].tolist() for row, of in zip(times, names, strict=True)]
    with replacing(out) as part:
        if out.suffix in MIDI:
            write_midi(drawn[0], names[0], part)
        else:
            _frame(data, drawn, names).write_csv(part)
    sys.stdout.write(f"generate done: {sum(map(len, names))} events in {out}\n")


def load(path: Path) -> tuple[EventModelling, EventSequences]:
    """The task of a run with its weights, and its data module with what training settled."""
    file, folder = find_checkpoint(path)
    if folder is None:
        raise UsageError(f"{path}: generate needs a run folder, or a .ckpt file in one")
    config = folder.config()
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningModule, "model")
    parser.add_subclass_arguments(LightningDataModule, "data")
    chosen = {key: config[key] for key in ("model", "data")}
    # jsonargparse puts its own objects into what it is given
    built = parser.instantiate(parser.parse_object(copy.deepcopy(chosen)))
    task, data = built.model, built.data
    if not isinstance(task, EventModelling) or not isinstance(data, EventSequences):
        raise UsageError(f"{path}: a run of {type(task).__name__}; generate takes EventModelling's")
    for line in load_weights(task, file, config["model"]):
        sys.stderr.write(f"warning: {line}\n")
    load_data_state(data, file)
    return task.eval(), data


def _check(temperature: float, top_p: float, sequences: int, events: int) -> None:
    if not 0 <= temperature < math.inf:
        raise UsageError(f"--temperature is {temperature}; it must be 0 or a positive number")
    if not 0 < top_p <= 1:
        raise UsageError(f"--top_p is {top_p}; it must be above 0 and at most 1")
    if min(sequences, events) < 1:
        raise UsageError("--sequences and --events must be at least 1")


def _check_out(out: Path, sequences: int, chorales: bool) -> None:
    if out.suffix not in (*MIDI, ".csv"):
        raise UsageError(f"{out}: cannot write this kind of file; give .csv or .mid")
    if out.suffix in MIDI and not chorales:
        raise UsageError(f"{out}: only a run on chorales has notes to write; give a .csv")
    if out.suffix in MIDI and sequences > 1:
        raise UsageError(f"{out}: a MIDI file holds one sequence; give a .csv, or --sequences 1")
    if not out.absolute().parent.is_dir():
        raise UsageError(f"{out}: no such folder; create it first")


def _frame(
    data: EventSequences, times: Sequence[Sequence[float]], types: Sequence[Sequence[str]]
) -> pl.DataFrame:
    """One row an event, under the names that the data's columns have."""
    names = [str(i + 1) for i, row in enumerate(times) for _ in row]
    columns = data.columns
    return pl.DataFrame(
        {
            columns["sequence"]: pl.Series(names, dtype=pl.String),
            columns["time"]: [time for row in times for time in row],
            columns["event"]: [kind for row in types for kind in row],
        }
    )


@torch.no_grad()
def draw(
    model: EventModel,
    sequences: int,
    events: int,
    *,
    temperature: float = 1.0,
    top_p: float = 1.0,
    stop: int | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Times, float64, and types (sequences, events); types are -1 behind an event of type ``stop``.

    The first event is at time 0. ``temperature`` divides the logits of types, and ``top_p`` keeps
    the fewest of them that have so much probability together (Holtzman et al. 2020); gaps are drawn
    from their distribution as it is.
    """
    weight = model.embedding.weight
    kind = torch.full((sequences,), model.types, device=weight.device)
    gap = torch.zeros(sequences, device=weight.device)
    time = torch.zeros(sequences, dtype=torch.float64, device=weight.device)
    running = torch.ones(sequences, dtype=torch.bool, device=weight.device)
    state = model.backbone.init_state(sequences, device=weight.device, dtype=weight.dtype)
    times, kinds = [], []
    for number in range(events):
        features, state = model.step(kind, gap, time, state)
        kind = choose(model.logits(features), temperature, top_p, generator)
        if number:
            gap = model.gaps(features, kind).sample(generator)
        time = time + gap
        times.append(time)
        kinds.append(torch.where(running, kind, -1))
        if stop is not None:
            running = running & (kind != stop)
            if not running.any():
                break
    return torch.stack(times, 1), torch.stack(kinds, 1)


def choose(
    logits: Tensor, temperature: float, top_p: float, generator: torch.Generator | None
) -> Tensor:
    """(sequences, types) -> (sequences,)."""
    if temperature == 0:
        return logits.argmax(-1)
    share, order = (logits.double() / temperature).softmax(-1).sort(-1, descending=True)
    before = share.cumsum(-1) - share
    kept = share.masked_fill(before >= top_p, 0.0)
    chosen = torch.multinomial(kept, 1, generator=generator)
    return order.gather(1, chosen)[:, 0]
