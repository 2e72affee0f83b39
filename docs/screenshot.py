"""python docs/screenshot.py URL OUTPUT.png: a picture of a web page, as headless Chromium draws it.

Gives the page some seconds for its data. The picture keeps 128 colours, to stay small. MLflow opens
its chat assistant over a page of localhost; started with ``--name mlflow`` and asked for as
``http://mlflow:5000/#/...``, a name that is looked for on this machine, it does not.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

from PIL import Image

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"),
    *("--disable-quic", "--disable-background-networking", "--disable-component-update"),
    *("--disable-sync", "--host-resolver-rules=MAP mlflow 127.0.0.1"),
    # A mouse that is elsewhere; without one, charts show their buttons all the time.
    "--blink-settings=primaryHoverType=2,availableHoverTypes=2",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("url")
    parser.add_argument("output", type=Path)
    parser.add_argument("--size", default="1440x1100", help="width x height of the window")
    parser.add_argument("--wait", type=float, default=15, help="seconds that the page may take")
    options = parser.parse_args()
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        sys.exit(f"error: none of {', '.join(BROWSERS)} is on PATH; install one")
    try:
        urllib.request.urlopen(options.url.replace("//mlflow:", "//127.0.0.1:", 1)).close()
        picture = capture(browser, options.url, options.size.replace("x", ","), options.wait)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {options.url}: {' '.join(str(error).split())}")
    small = Image.open(io.BytesIO(picture)).convert("RGB").quantize(128, dither=Image.Dither.NONE)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    small.save(options.output, optimize=True)


def capture(browser: str, url: str, size: str, wait: float) -> bytes:
    """The page as PNG after ``wait`` seconds of real time: with a page that fetches again and
    again, the browser's own --virtual-time-budget ends at another state each time."""
    reads, asks = os.pipe()
    answers, writes = os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [browser, *FLAGS, f"--user-data-dir={profile}", f"--window-size={size}"]
        command.append("--remote-debugging-pipe")
        # Chromium takes commands on descriptor 3 and answers on 4.
        process = subprocess.Popen(
            ["bash", "-c", f'exec "$@" 7<&{reads} 8>&{writes} 3<&7 4>&8', "-", *command],
            pass_fds=(reads, writes),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(reads)
        os.close(writes)
        try:
            with open(asks, "wb", buffering=0) as to, open(answers, "rb") as back:
                return _photograph(_Pipe(to, back), url, wait)
        finally:
            process.terminate()
            process.wait(timeout=20)


class _Pipe:
    """Chromium's debugging protocol: JSON messages that end in a zero byte."""

    def __init__(self, to: io.RawIOBase | Any, back: io.BufferedIOBase) -> None:
        self.to, self.back, self.last = to, back, 0

    def ask(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        self.last += 1
        message = {"id": self.last, "method": method, "params": params}
        if session is not None:
            message["sessionId"] = session
        self.to.write(json.dumps(message).encode() + b"\0")
        while True:
            answer = json.loads(self._message())
            if answer.get("id") == self.last:
                if "error" in answer:
                    raise OSError(f"the browser: {answer['error']['message']}")
                return answer["result"]

    def _message(self) -> bytes:
        content = bytearray()
        while (byte := self.back.read(1)) != b"\0":
            if not byte:
                raise OSError("the browser has ended by itself")
            content += byte
        return bytes(content)


def _photograph(pipe: _Pipe, url: str, wait: float) -> bytes:
    target = pipe.ask("Target.createTarget", url=url)["targetId"]
    session = pipe.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
    time.sleep(wait)
    shot = pipe.ask("Page.captureScreenshot", session)
    return base64.b64decode(shot["data"])


if __name__ == "__main__":
    main()
