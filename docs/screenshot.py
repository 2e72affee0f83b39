"""python docs/screenshot.py URL OUTPUT.png: a picture of a web page, as headless Chromium draws it.

Waits until the page has loaded its data. The picture keeps 128 colours, to stay small. MLflow opens
its chat assistant over a page of localhost; started with ``--name mlflow`` and asked for as
``http://mlflow:5000/#/...``, a name that is looked for on this machine, it does not.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

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
    parser.add_argument("--size", default="1440x1000", help="width x height in pixels")
    parser.add_argument("--wait", type=int, default=200, help="seconds of the page's own clock")
    options = parser.parse_args()
    try:
        take(options.url, options.output, options.size.replace("x", ","), options.wait)
    except (OSError, subprocess.SubprocessError) as error:
        sys.exit(f"error: {' '.join(str(error).split())}")


def take(url: str, output: Path, size: str, wait: int) -> None:
    """Raises OSError or SubprocessError if there is no browser, no server or no picture."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise OSError(f"no {', '.join(BROWSERS)} on PATH; install one")
    urllib.request.urlopen(url.replace("//mlflow:", "//127.0.0.1:", 1), timeout=10).close()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        picture = Path(folder) / "picture.png"
        command = [
            *(browser, *FLAGS, f"--user-data-dir={folder}/profile", f"--window-size={size}"),
            *(f"--virtual-time-budget={wait * 1000}", f"--screenshot={picture}", url),
        ]
        subprocess.run(command, check=True, capture_output=True, timeout=300)
        with Image.open(picture) as image:
            small = image.convert("RGB").quantize(128, dither=Image.Dither.NONE)
    output.parent.mkdir(parents=True, exist_ok=True)
    small.save(output, optimize=True)


if __name__ == "__main__":
    main()
