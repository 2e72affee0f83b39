"""Stopping on Ctrl-C and SIGTERM: after the step under way, with a checkpoint and a true exit code.

Outside training a signal raises `Interrupted` where it finds the program. Inside `graceful()` the
first signal is only noted, so that an optimizer step is never left half done; the training loop
asks `requested()` between steps. A second signal stops at once. Imports no torch.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

CAUGHT = (signal.SIGINT, signal.SIGTERM)
TOGETHER = 1.0  # seconds; a terminal and a launcher may both pass on one Ctrl-C


class Interrupted(BaseException):
    """The process was asked to stop; ends in exit code 128 + signal number (130, 143)."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.code = 128 + signum


@dataclass
class _State:
    pid: int = 0
    graceful: bool = False
    signum: int | None = None
    when: float = 0.0


_state = _State()


def _handle(signum: int, frame: FrameType | None) -> None:
    if os.getpid() != _state.pid:
        # A data-loading worker forked from us. Ctrl-C reaches the whole group: workers serve the
        # step under way and end with their parent. SIGTERM to a worker comes from its parent.
        if signum == signal.SIGTERM:
            os._exit(128 + signum)
        return
    if _state.graceful and _state.signum is None:
        _state.signum, _state.when = signum, time.monotonic()
        # Not through sys.stderr, which the signal may have interrupted in a write.
        os.write(2, b"stopping after this step; a second signal stops at once\n")
        return
    if _state.graceful and time.monotonic() - _state.when < TOGETHER:
        return
    raise Interrupted(signum)


def install() -> None:
    """Take over SIGINT and SIGTERM; again after a library has put its own handlers there."""
    _state.pid = os.getpid()
    for signum in CAUGHT:
        signal.signal(signum, _handle)


@contextmanager
def graceful() -> Iterator[None]:
    """While open, the first signal is noted for `requested` instead of raised."""
    _state.graceful, _state.signum = True, None
    try:
        yield
    finally:
        _state.graceful = False


def requested() -> int | None:
    """The signal that asked to stop, if one came while `graceful` is open."""
    return _state.signum
