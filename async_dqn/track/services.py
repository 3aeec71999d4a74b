"""Weights & Biases and MLflow, as far as a run needs them.

Where they are is their own business: `WANDB_MODE`, `WANDB_PROJECT`, `WANDB_BASE_URL`,
`MLFLOW_TRACKING_URI`, `MLFLOW_EXPERIMENT_NAME` and so on, as their documents say.
"""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

PROJECT = "async_dqn"  # or experiment, unless the environment names one
LONGEST = 500  # characters of a parameter, as MLflow has it at least
# Of requests to MLflow's server, unless the environment says otherwise: its own seven with growing
# pauses take minutes.
PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}


class Service(Protocol):
    """Takes what a run has to say. Whatever fails raises."""

    id: str  # of the run there; another session goes on with it

    def __init__(self, folder: Path, known: str | None, settings: Mapping[str, Any]) -> None: ...

    def log(self, step: int, wall_s: float, values: Mapping[str, float]) -> None: ...

    def flush(self) -> None: ...

    def end(self, result: Mapping[str, Any], failed: bool, files: list[Path]) -> None: ...


class WeightsAndBiases:
    """A run of wandb; offline its files are in the run's own folder."""

    def __init__(self, folder: Path, known: str | None, settings: Mapping[str, Any]):
        import wandb

        self._wandb = wandb
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=known,
            name=f"{folder.parent.name}/{folder.name}",
            group=os.environ.get("WANDB_RUN_GROUP", folder.parent.name),
            resume="allow",
            dir=folder,
            config=dict(settings),
            settings=wandb.Settings(console="off", silent=True),
        )
        # Scores belong to the step of their snapshot, which reports have passed when they come.
        self._run.define_metric("*", step_metric="step")
        self.id = self._run.id

    def log(self, step: int, wall_s: float, values: Mapping[str, float]) -> None:
        self._run.log({**values, "step": step, "wall_s": wall_s})

    def flush(self) -> None:
        """Its own process sends."""

    def end(self, result: Mapping[str, Any], failed: bool, files: list[Path]) -> None:
        self._run.summary.update({f"result/{name}": value for name, value in result.items()})
        artifact = self._wandb.Artifact(f"run-{self.id}", type="run")
        for path in files:
            add = artifact.add_dir if path.is_dir() else artifact.add_file
            add(str(path), path.name)
        self._run.log_artifact(artifact)
        self._run.finish(exit_code=int(failed))


class MLflow:
    """A run of MLflow, in the store that `MLFLOW_TRACKING_URI` names."""

    def __init__(self, folder: Path, known: str | None, settings: Mapping[str, Any]):
        for name, value in PATIENCE.items():
            os.environ.setdefault(name, value)
        import mlflow
        from mlflow.entities import Metric, Param

        self._client, self._metric = mlflow.MlflowClient(), Metric
        self._rows: list[Any] = []
        if known is None:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
            experiment = self._client.get_experiment_by_name(name)
            place = experiment.experiment_id if experiment else self._client.create_experiment(name)
            title = f"{folder.parent.name}/{folder.name}"
            run = self._client.create_run(place, tags={"env": folder.parent.name}, run_name=title)
            self.id = run.info.run_id
            params = [Param(name, str(value)[:LONGEST]) for name, value in settings.items()]
            self._client.log_batch(self.id, params=params)
        else:
            self.id = known
            self._client.update_run(self.id, status="RUNNING")

    def log(self, step: int, wall_s: float, values: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        for name, value in {**values, "wall_s": wall_s}.items():
            self._rows.append(self._metric(name, value, now, step))

    def flush(self) -> None:
        while self._rows:
            self._client.log_batch(self.id, metrics=self._rows[:1000])
            del self._rows[:1000]

    def end(self, result: Mapping[str, Any], failed: bool, files: list[Path]) -> None:
        self.flush()
        for name, value in result.items():
            if isinstance(value, int | float):
                self._client.log_metric(self.id, f"result/{name}", value)
            elif value is not None:
                self._client.set_tag(self.id, f"result.{name}", value)
        for path in files:
            if path.is_dir():
                self._client.log_artifacts(self.id, str(path), path.name)
            else:
                self._client.log_artifact(self.id, str(path))
        self._client.set_terminated(self.id, "FAILED" if failed else "FINISHED")


SERVICES: dict[str, type[Service]] = {"wandb": WeightsAndBiases, "mlflow": MLflow}
