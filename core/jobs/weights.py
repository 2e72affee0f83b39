"""Weights from a checkpoint into the model that the configuration builds."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.utilities.model_helpers import is_overridden

from core.jobs.errors import UsageError
from core.jobs.provenance import flatten


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A Lightning checkpoint, without running any code in it. Raises UsageError if it is none."""
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise UsageError(
            f"checkpoint '{path}' holds more than tensors and plain values, so it is not loaded; "
            "give one that this program wrote"
        ) from error
    except (RuntimeError, EOFError, OSError) as error:
        raise UsageError(f"checkpoint '{path}' cannot be read; it is broken or no .ckpt") from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise UsageError(f"checkpoint '{path}' has no 'state_dict'; give a Lightning .ckpt file")
    return checkpoint


def load_weights(model: LightningModule, path: Path, settings: Mapping[str, Any]) -> list[str]:
    """Load ``path`` into ``model``, built from ``settings`` (class_path, init_args).

    Returns one line for each setting that differs from the checkpoint's; the given one is in
    force. Raises UsageError if the weights do not fit.
    """
    checkpoint = read_checkpoint(path)
    if is_overridden("configure_model", model):
        model.configure_model()
    saved = dict(checkpoint.get("hyper_parameters") or {})
    ours, theirs = settings["class_path"], saved.pop("_class_path", None)
    model.on_load_checkpoint(checkpoint)
    try:
        model.load_state_dict(checkpoint["state_dict"], strict=model.strict_loading)
    except RuntimeError as error:
        raise UsageError(
            f"checkpoint '{path}' ({theirs or 'class unknown'}) does not fit the configured "
            f"{ours}: {_mismatch(model, checkpoint['state_dict'])}; "
            "give the configuration that the checkpoint was trained with"
        ) from error
    given, trained = flatten(settings.get("init_args") or {}), flatten(saved)
    return [
        f"model.init_args.{key} is {given[key]} here and was {trained[key]} in '{path}'; "
        f"{given[key]} is used"
        for key in given
        if key in trained and given[key] != trained[key]
    ]


def load_data_state(datamodule: LightningDataModule, path: Path) -> None:
    """Give ``datamodule`` the state that a data module of its class had in the checkpoint."""
    state = read_checkpoint(path).get(type(datamodule).__qualname__)
    if state:
        datamodule.load_state_dict(state)


def _mismatch(model: LightningModule, state: Mapping[str, Any]) -> str:
    own = model.state_dict()
    missing = [key for key in own if key not in state]
    unexpected = [key for key in state if key not in own]
    shapes = [key for key in own if key in state and own[key].shape != state[key].shape]
    parts = []
    if missing:
        parts.append(f"{len(missing)} missing, first '{missing[0]}'")
    if unexpected:
        parts.append(f"{len(unexpected)} unexpected, first '{unexpected[0]}'")
    if shapes:
        key = shapes[0]
        parts.append(f"'{key}' is {tuple(state[key].shape)}, wanted {tuple(own[key].shape)}")
    return ", ".join(parts)


def weights_version(path: Path) -> str:
    """A name for exactly these weights, when no registry has given one."""
    with path.open("rb") as file:
        return f"sha256-{hashlib.file_digest(file, 'sha256').hexdigest()[:12]}"
