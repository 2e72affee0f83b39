"""Runs in MLflow: one logger, set up once for every domain.

mlflow is imported where it is used, so that tasks import on machines without it.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import MLFlowLogger
from lightning.pytorch.utilities import rank_zero_only

from core.jobs import provenance
from core.jobs.errors import UsageError

if TYPE_CHECKING:
    import polars as pl
    from matplotlib.figure import Figure
    from mlflow.tracking import MlflowClient

    from core.jobs.data import RecordDataModule
    from core.jobs.runs import Run

log = logging.getLogger(__name__)

PARENT_RUN = "mlflow.parentRunId"  # MLflow's interface nests runs by this tag
BATCH = 200  # metrics a request; sqlite takes 0.3 ms a metric in a batch, 5 ms alone
PATIENCE = 5.0  # seconds that a metric may wait for its batch


def rank_zero() -> bool:
    """Whether this process records; asked before Lightning has set up its ranks."""
    return getattr(rank_zero_only, "rank", 0) == 0


@dataclass
class TrackingConfig:
    """Where and under which name runs are recorded.

    Args:
        uri: tracking server or ``sqlite:///FILE``; null takes MLFLOW_TRACKING_URI, else
            ``mlflow.db`` in the working folder.
        root: folder of the run folders, and of the artifacts if there is no server.
        experiment: null gives ``<domain>/<task>``.
        run_name: null gives ``<model>-<data>-s<seed>``.
        register_model: put the best model into the registry as ``<domain>.<task>`` after ``fit``.
        system_metrics: record CPU, memory and GPU load while training.
        tags: further tags of the run.
    """

    uri: str | None = None
    root: str = "runs"
    experiment: str | None = None
    run_name: str | None = None
    register_model: bool = False
    system_metrics: bool = False
    tags: dict[str, str] | None = None


def tracking_uri(config: TrackingConfig) -> str:
    """The tracking address, absolute if it is a file."""
    uri = config.uri or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    local = re.fullmatch(r"sqlite:///([^/].*)", uri)
    if local:
        return f"sqlite:///{Path(local[1]).resolve()}"
    if uri.startswith("file:") or "://" not in uri:
        raise UsageError(
            f"tracking address '{uri}' is a folder, which MLflow no longer writes; "
            f"use sqlite:///{uri.removeprefix('file:').lstrip('/') or 'mlflow'}.db or a server"
        )
    return uri


@contextmanager
def readable_errors(uri: str) -> Iterator[None]:
    """MLflow's exceptions as one line that names the address, without its password."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        shown = re.sub(r"//[^/@]*@", "//", uri)
        reason = str(error).strip().splitlines()[0]
        raise UsageError(
            f"tracking at {shown}: {reason}; check tracking.uri and MLFLOW_TRACKING_URI"
        ) from error


@contextmanager
def one_at_a_time(uri: str) -> Iterator[None]:
    """Holds back other commands on this machine that open the same local file: MLflow makes the
    tables of a new one without a lock, and two that begin together would both fail."""
    if not uri.startswith("sqlite:") or os.name != "posix":
        yield
        return
    import fcntl

    file = Path(uri.removeprefix("sqlite:///"))
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        opened = file.open("ab")
    except OSError as error:
        raise UsageError(
            f"tracking at {uri}: {error.strerror}; check tracking.uri and MLFLOW_TRACKING_URI"
        ) from error
    with opened as held:
        fcntl.flock(held, fcntl.LOCK_EX)  # sqlite's own locks are of another kind
        yield


class RunLogger(MLFlowLogger):
    """One existing MLflow run.

    Unlike its parent it has a real ``save_dir`` (the run folder); sends metrics in batches; logs
    no metric a second time when steps are replayed after a resume; leaves the run's final status
    to `close`, because only the command line knows why a run ended.
    """

    def __init__(self, uri: str, run_id: str, folder: Path, resumed: bool = False) -> None:
        super().__init__(tracking_uri=uri, run_id=run_id)
        self.folder = folder
        self.uri = uri
        self.resumed = resumed
        self._waiting: list[Any] = []
        self._sent = time.monotonic()
        self._logged_until: dict[str, int] = {}
        if resumed:
            self._logged_until = self._last_steps()

    def _last_steps(self) -> dict[str, int]:
        client, run_id = self.client, self.identity
        keys = client.get_run(run_id).data.metrics
        return {k: max(m.step for m in client.get_metric_history(run_id, k)) for k in keys}

    @property
    def client(self) -> MlflowClient:
        return self._mlflow_client

    @property
    def identity(self) -> str:
        assert self._run_id is not None
        return self._run_id

    @property
    def save_dir(self) -> str:
        return str(self.folder)

    @rank_zero_only
    def log_hyperparams(self, params: Any) -> None:
        """Nothing: `log_config` records the whole configuration, and only once in a run's life."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        for name, value in metrics.items():
            key = re.sub(r"[^\w/. -]+", "_", name)
            if step is not None:
                if step <= self._logged_until.get(key, -1):
                    continue
                if key == "epoch":  # Lightning adds it to everything it logs at a step
                    self._logged_until[key] = step
            self._waiting.append(Metric(key, float(value), now, step or 0))
        if len(self._waiting) >= BATCH or time.monotonic() - self._sent > PATIENCE:
            self.flush()

    @rank_zero_only
    def flush(self) -> None:
        """Send the metrics that wait."""
        waiting, self._waiting = self._waiting, []
        for start in range(0, len(waiting), BATCH):
            self.client.log_batch(self.identity, metrics=waiting[start : start + BATCH])
        self._sent = time.monotonic()

    @rank_zero_only
    def log_config(self, config: Mapping[str, Any], file: Path) -> None:
        """The configuration as an artifact, and its values that are not null as parameters."""
        from mlflow.entities import Param

        self.client.log_artifact(self.identity, str(file))
        values = provenance.hyper_parameters(config)
        values["trainer.max_epochs"] = config.get("trainer", {}).get("max_epochs")
        values["trainer.max_steps"] = config.get("trainer", {}).get("max_steps")
        params = [
            Param(key, str(value)[:500]) for key, value in values.items() if value is not None
        ]
        for start in range(0, len(params), 100):  # the most that MLflow takes at a time
            self.client.log_batch(self.identity, params=params[start : start + 100])

    @rank_zero_only
    def log_data(self, manifest: Sequence[Mapping[str, Any]], name: str, context: str) -> None:
        """The data as an input of the run, by digests: no file name and no content. How much of it
        was repaired is a tag as well."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        digest = provenance.data_digest(manifest)
        dataset = Dataset(
            name=name,
            digest=digest[:36],  # as long as MLflow allows
            source_type="manifest",
            source=json.dumps({"artifact": "data/manifest.json"}),
            profile=json.dumps(
                {"files": len(manifest), "bytes": sum(e["bytes"] for e in manifest)}
            ),
        )
        tag = InputTag("mlflow.data.context", context)
        self.client.log_inputs(self.identity, [DatasetInput(dataset, [tag])])
        self.client.log_dict(self.identity, {"files": list(manifest)}, "data/manifest.json")
        self.client.set_tag(self.identity, "data.digest", digest)
        repairs = [repair for entry in manifest for repair in entry.get("repairs", ())]
        if repairs:
            said = [f"{r['policy']}: {r['how']} {r['count']}" for r in repairs]
            self.client.set_tag(self.identity, "data.repairs", "; ".join(said))

    @rank_zero_only
    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        """Nothing: the best checkpoint is uploaded once, at the end."""

    @rank_zero_only
    def finalize(self, status: str = "success") -> None:
        self.flush()

    @rank_zero_only
    def reopen(self, process: Mapping[str, str]) -> None:
        """The run goes on, in another process."""
        self.client.update_run(self.identity, status="RUNNING")
        for key, value in process.items():
            self.client.set_tag(self.identity, key, value)

    @rank_zero_only
    def close(self, status: str) -> None:
        """End the run as FINISHED, FAILED or KILLED."""
        self.flush()
        self.client.set_terminated(self.identity, status)


def create_run(
    uri: str, experiment: str, name: str, tags: Mapping[str, str], artifacts: Path
) -> str:
    """A new run's id. Without a server, artifacts go to the folder ``artifacts``. The run of
    ``mlflow run``, if that is what started this process, becomes its parent."""
    from mlflow.tracking import MlflowClient

    local = uri.startswith("sqlite:")
    client = MlflowClient(uri)
    found = client.get_experiment_by_name(experiment)
    if found is not None and found.lifecycle_stage == "deleted":
        raise UsageError(
            f"experiment '{experiment}' is in MLflow's trash; restore it with `mlflow experiments "
            f"restore --experiment-id {found.experiment_id}` or set tracking.experiment"
        )
    if found is not None:
        experiment_id = found.experiment_id
    else:
        location = (artifacts / experiment).resolve().as_uri() if local else None
        experiment_id = client.create_experiment(experiment, artifact_location=location)
    launcher = os.environ.get("MLFLOW_RUN_ID")
    tags = {**tags, **({PARENT_RUN: launcher} if launcher else {})}
    return client.create_run(experiment_id, tags=tags, run_name=name).info.run_id


def where_to_look(run: Run) -> str:
    """The page of a run on its server, or the command that shows the runs of a local file."""
    from mlflow.tracking import MlflowClient

    uri = run.tracking_uri
    if not uri.startswith("http"):
        return f"mlflow ui --backend-store-uri {shlex.quote(uri)}"
    experiment = MlflowClient(uri).get_run(run.run_id).info.experiment_id
    return f"{uri.rstrip('/')}/#/experiments/{experiment}/runs/{run.run_id}"


def sweep(uri: str, domain: str) -> None:
    """Mark runs of ``domain`` as KILLED whose process on this machine is gone.

    A process killed by SIGKILL cannot say so itself; its run would stay RUNNING for ever.
    """
    from mlflow.tracking import MlflowClient

    client = MlflowClient(uri)
    mine = client.search_experiments(filter_string=f"name LIKE '{domain}/%'")
    if not mine:
        return
    running = client.search_runs(
        [e.experiment_id for e in mine], "attributes.status = 'RUNNING'", max_results=1000
    )
    for run in running:
        if provenance.process_alive(run.data.tags) is False:
            client.set_terminated(run.info.run_id, "KILLED")


def log_figure(owner: Trainer | RunLogger, figure: Figure, path: str) -> None:
    """Store a figure with the run under ``path`` (``plots/NAME.png``), in place of an older one.

    Call it at the end of an epoch or a test, never each step. Without a tracked run, as in a unit
    test of a task, nothing happens.
    """
    loggers = [owner] if isinstance(owner, RunLogger) else owner.loggers
    if not rank_zero():
        return
    for logger in loggers:
        if isinstance(logger, RunLogger):
            logger.client.log_figure(logger.identity, figure, path)


def log_table(owner: Trainer | RunLogger, table: pl.DataFrame, path: str) -> None:
    """Store a table as CSV with the run under ``path`` (``tables/NAME.csv``), in place of an older
    one; otherwise as `log_figure`."""
    loggers = [owner] if isinstance(owner, RunLogger) else owner.loggers
    if not rank_zero():
        return
    for logger in loggers:
        if isinstance(logger, RunLogger):
            logger.client.log_text(logger.identity, table.write_csv(), path)


@contextmanager
def system_metrics(logger: RunLogger | None, config: TrackingConfig) -> Iterator[None]:
    """While open, and if asked for, CPU, memory and GPU load are recorded, every 10 seconds or as
    MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL says."""
    if logger is None or not config.system_metrics:
        yield
        return
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    monitor = SystemMetricsMonitor(
        logger.identity, resume_logging=logger.resumed, tracking_uri=logger.uri
    )
    monitor.start()
    try:
        yield
    finally:
        monitor.finish()


def register_model(
    logger: RunLogger,
    name: str,
    task: LightningModule,
    datamodule: RecordDataModule,
    settings: Mapping[str, Any],
) -> str:
    """Put the task into the registry under ``name``; returns ``<name>/<version>``.

    The first version is the champion, each later one the challenger, until somebody moves the
    alias. No record goes with it as an example, because records may be private.
    """
    import mlflow
    from mlflow.exceptions import MlflowException

    from core.jobs.pyfunc import log_predictor

    mlflow.set_tracking_uri(logger.uri)
    info = log_predictor(task, datamodule, config=settings, name=name, run_id=logger.identity)
    version = str(info.registered_model_version)
    try:
        logger.client.get_model_version_by_alias(name, "champion")
        alias = "challenger"
    except MlflowException:
        alias = "champion"
    logger.client.set_registered_model_alias(name, alias, version)
    logger.client.set_tag(logger.identity, "model.version", f"{name}/{version}")
    return f"{name}/{version}"
