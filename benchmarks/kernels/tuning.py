"""Triton's autotuner, with all configurations of a kernel compiled at once.

It compiles and times one after the other; peers try up to 48 a kernel, minutes on one core. What is
tried, timed and chosen stays the same.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any


@contextlib.contextmanager
def compiled_at_once(wanted: bool = True) -> Iterator[None]:
    """Inside, whatever Triton tunes is compiled on all cores first; a kernel that cannot be is left
    to the tuner. Does nothing without Triton or with one that cannot compile beside the program."""
    if not wanted:
        yield
        return
    try:
        from triton import AsyncCompileMode
        from triton.runtime.autotuner import Autotuner
    except ImportError:
        yield
        return
    prune = Autotuner.prune_configs

    def prune_and_compile(self: Any, kwargs: dict[str, Any]) -> Any:
        configs = prune(self, kwargs)
        given = {name: value for name, value in kwargs.items() if name != "warmup"}
        if len(configs) > 1:
            with (
                contextlib.suppress(Exception),
                ThreadPoolExecutor(os.cpu_count()) as pool,
                AsyncCompileMode(pool, ignore_errors=True),
            ):
                for config in configs:
                    self.fn.warmup(*self.nargs.values(), **{**given, **config.all_kwargs()})
        return configs

    Autotuner.prune_configs = prune_and_compile
    try:
        yield
    finally:
        Autotuner.prune_configs = prune
