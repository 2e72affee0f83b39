"""Real processes of the command line without their seconds of imports: a server that has imported
everything forks one for each command. Run as a script it is the server; `Server` drives it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent


class Process:
    """One command under way; its output goes to ``<pid>.log`` in the server's folder."""

    def __init__(self, server: Server, pid: int) -> None:
        self.server, self.pid = server, pid

    def send(self, signum: signal.Signals) -> None:
        os.kill(self.pid, signum)

    def wait(self) -> int:
        """Exit code; minus the signal that killed it."""
        return self.server.ask({"wait": self.pid})

    @property
    def output(self) -> str:
        log = self.server.folder / f"{self.pid}.log"
        return log.read_text() if log.exists() else ""


class Server:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        environment.pop("MLFLOW_TRACKING_URI", None)
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=folder,
            env=environment,
        )

    @classmethod
    def beside(cls, domain: str, folder: Path) -> Server:
        """In a folder where the domain's samples lie as its configs name them."""
        (folder / domain).symlink_to(ROOT / domain)
        return cls(folder)

    def ask(self, question: dict[str, Any]) -> int:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def start(self, *arguments: str) -> Process:
        return Process(self, self.ask({"run": list(arguments)}))

    def run(self, *arguments: str) -> tuple[int, str]:
        process = self.start(*arguments)
        return process.wait(), process.output

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(timeout=20)
        self.process.stdout.close()


def metrics_of(said: str) -> dict[str, str]:
    """The metrics that ``test`` printed, by name."""
    words = said.split("test done:")[1].split("run folder:")[0].split()
    return dict(zip(words[::2], words[1::2], strict=True))


def serve() -> None:
    import mlflow.store.tracking.sqlalchemy_store
    import mlflow.tracking  # noqa: F401

    import core.jobs.cli  # noqa: F401
    from core.jobs import front
    from timeseries.__main__ import MORE

    for line in sys.stdin:
        question = json.loads(line)
        if "run" in question:
            pid = os.fork()
            if pid == 0:
                with open(f"{os.getpid()}.log", "w") as log:
                    os.dup2(log.fileno(), 1)
                    os.dup2(log.fileno(), 2)
                code = front.main("toys", "Toys.", question["run"], MORE)
                sys.stdout.flush()
                os._exit(code)
            answer = pid
        else:
            _, status = os.waitpid(question["wait"], 0)
            answer = os.waitstatus_to_exitcode(status)
        print(answer, flush=True)  # noqa: T201


if __name__ == "__main__":
    serve()
    sys.stdout.flush()
    os._exit(0)  # taking down what was imported outlasts a closing server on a busy machine
