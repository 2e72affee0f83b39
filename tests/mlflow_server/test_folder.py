"""The folder mlflow/ and MLproject without a server: nothing shadows the library, the script says
what is wrong, the compose file and the entry points name things that exist."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import socket
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import mlflow
import pytest
import yaml

from core.jobs import front

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "mlflow"
COMPOSE = yaml.safe_load((FOLDER / "compose.yaml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]


# The library


def test_nothing_in_the_folder_can_be_imported() -> None:
    files = [p for p in FOLDER.rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    assert files
    assert not [p.name for p in files if p.suffix in (".py", ".pyc", ".pyi", ".so", ".pyd")]


def test_the_library_is_found_from_the_root() -> None:
    code = "import importlib.util as u; print(u.find_spec('mlflow').origin)"
    command = [sys.executable, "-c", code]
    origin = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert Path(origin.strip()) == Path(mlflow.__file__)
    assert FOLDER not in Path(origin).parents


# start.sh


def start(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(FOLDER / "start.sh"), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=60,
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--data", "{file}"], "{file}; give --data a folder of yours"),
        (["--data", "{file}/below"], "{file}/below; give --data a folder of yours"),
        (["--data", "{folder}/50%"], "has a ?, # or % in its name"),
        (["--port", "http"], "port http is no number"),
        (["--port", "70000"], "port 70000 is out of range"),
        (["--port"], "--port needs a value"),
        (["--prot", "1"], "unknown argument --prot"),
    ],
)
def test_wrong_use_is_one_line_and_code_2(tmp_path: Path, arguments: list[str], words: str) -> None:
    file = tmp_path / "file"
    file.touch()
    names = {"file": file, "folder": tmp_path}
    ended = start(*(a.format(**names) for a in arguments))
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr.startswith("error: ")
    assert ended.stderr.count("\n") == 1
    assert words.format(**names) in ended.stderr


def test_a_taken_port_is_one_line_and_code_2(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        ended = start("--data", str(tmp_path), "--port", port)
    line = f"error: port {port} on 127.0.0.1 is in use; choose another with --port\n"
    assert (ended.returncode, ended.stderr) == (2, line)


def test_without_mlflow_it_says_how_to_install_it(tmp_path: Path) -> None:
    shutil.copy(FOLDER / "start.sh", tmp_path)  # away from the environment beside the folder
    tools = [str(Path(shutil.which(name) or name).parent) for name in ("bash", "mkdir")]
    ended = subprocess.run(
        [str(tmp_path / "start.sh"), "--data", str(tmp_path / "data")],
        capture_output=True,
        text=True,
        env={"PATH": ":".join(tools), "HOME": str(tmp_path)},
    )
    line = "error: mlflow is not installed; run make install, or activate an environment with it\n"
    assert (ended.returncode, ended.stderr) == (2, line)


# compose.yaml


def test_services_wait_for_each_other_and_tell_their_health() -> None:
    assert set(SERVICES) == {"database", "store", "bucket", "mlflow"}
    for name, service in SERVICES.items():
        for other, how in service.get("depends_on", {}).items():
            once = how["condition"] == "service_completed_successfully"
            assert once or "healthcheck" in SERVICES[other], (name, other)
        if name != "bucket":
            assert service["restart"] == "unless-stopped"
            assert service["healthcheck"]["test"][0] == "CMD"
    named = {v.split(":")[0] for s in SERVICES.values() for v in s.get("volumes", [])}
    assert named == set(COMPOSE["volumes"])


def test_images_are_pinned_and_the_server_is_the_clients_version() -> None:
    for name in ("database", "store"):
        assert re.search(r":\d", SERVICES[name]["image"])
    pinned = re.search(r"^mlflow==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    built = re.search(r"^ARG MLFLOW_VERSION=(.+)$", (FOLDER / "Dockerfile").read_text(), re.M)
    assert pinned is not None
    assert built is not None
    assert built[1] == pinned[1]


def test_settings_come_from_the_example_and_secrets_have_no_default() -> None:
    text = (FOLDER / "compose.yaml").read_text()
    lines = (FOLDER / "env.example").read_text().splitlines()
    example = dict(line.split("=", 1) for line in lines if line and line[0] != "#")
    used = re.findall(r"\$\{(\w+)(:[-?])([^}]*)\}", text)
    assert {name for name, _, _ in used} == set(example)
    for name, kind, value in used:
        if kind == ":?":
            assert example[name] == "", "a secret in the repository"
        else:
            assert example[name] == value
    assert SERVICES["mlflow"]["ports"] == ["${MLFLOW_BIND:-127.0.0.1}:${MLFLOW_PORT:-5000}:5000"]
    assert not any("ports" in SERVICES[name] for name in ("database", "store"))
    assert (FOLDER / ".gitignore").read_text().split() == [".env"]


def test_mlflow_knows_the_options_of_its_service() -> None:
    with warnings.catch_warnings():  # of mlflow's own code while it is imported
        warnings.simplefilter("ignore")
        from mlflow.cli import server

    program, command, *options = [
        re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", word) for word in SERVICES["mlflow"]["command"]
    ]
    assert (program, command) == ("mlflow", "server")
    values = server.make_context("server", options).params
    assert values["serve_artifacts"] is True
    assert values["artifacts_destination"] == "s3://mlflow"
    assert values["host"] == "0.0.0.0"
    assert {"127.0.0.1:*", "localhost"} <= set(values["allowed_hosts"].split(","))
    assert "https://localhost:*" in values["cors_allowed_origins"].split(",")
    assert " " not in values["allowed_hosts"] + values["cors_allowed_origins"]
    bucket = re.findall(r'Bucket="(\w+)"', SERVICES["bucket"]["command"][-1])
    assert bucket == ["mlflow"]


def compose_exists() -> bool:
    command = ["docker", "compose", "version"]
    docker = shutil.which("docker")
    return docker is not None and subprocess.run(command, capture_output=True).returncode == 0


@pytest.mark.skipif(not compose_exists(), reason="needs docker compose")
def test_docker_compose_accepts_the_file() -> None:
    command = ["docker", "compose", "--file", str(FOLDER / "compose.yaml"), "config", "--quiet"]
    secrets = {"POSTGRES_PASSWORD": "a", "S3_SECRET_KEY": "b"}
    subprocess.run(command, check=True, env={**os.environ, **secrets})


# MLproject


def test_entry_points_are_commands_of_modules() -> None:
    from mlflow.projects._project_spec import load_project

    project = load_project(str(ROOT))
    domains = ("genomics", "timeseries")
    names = {f"{domain}_{command}" for domain in domains for command in front.COMMANDS}
    assert set(project._entry_points) == names
    for name in names:
        entry = project.get_entry_point(name)
        domain, command = name.split("_")
        words = entry.command.split()
        assert words[:4] == ["python", "-m", domain, command]
        assert importlib.util.find_spec(f"{domain}.__main__") is not None
        assert set(re.findall(r"\{(\w+)\}", entry.command)) == set(entry.parameters)
        given = {parameter: str(ROOT / "pyproject.toml") for parameter in entry.parameters}
        line = entry.compute_command({**given, "trainer.max_steps": "2"}, str(ROOT))
        assert line.endswith(" --trainer.max_steps 2")
