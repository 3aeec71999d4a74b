"""The Python API: `AsyncDQN`, one agent on one environment.

    agent = AsyncDQN("CartPole-v1", workers=4, seed=0)
    agent.learn(total_steps=200_000)
    action, _ = agent.predict(observation)

Keywords are the options of the command line with underscores (`import_modules` for `--import`).
"""

import multiprocessing
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import gymnasium
import numpy as np
import torch

from async_dqn.agent import Agent
from async_dqn.config.config import UserError
from async_dqn.config.extension import OPEN, bring, find
from async_dqn.config.fields import either
from async_dqn.config.presets import resolve
from async_dqn.envs import make
from async_dqn.envs.spec import EnvSpec
from async_dqn.networks import architecture
from async_dqn.parameters.flat_network import FlatNetwork, flat_vector
from async_dqn.report.command import check_plotting
from async_dqn.report.results import read_run
from async_dqn.runs import checkpoint
from async_dqn.runs.growing import GrowingTable
from async_dqn.runs.reporter import Callback, as_one
from async_dqn.runs.resume import played_parameters, stored_config
from async_dqn.runs.run import Run
from async_dqn.training import training
from async_dqn.training.look import looked_at, own_interface
from async_dqn.workers.run_spec import RunSpec, as_found

Env = str | Callable[..., gymnasium.Env]


class AsyncDQN(Agent):
    """A Q-learning agent; `env` is a registered id, an environment class or a factory.

    `algorithm`, `network`, `exploration` and `target` may be objects of your own
    (docs/extending.md). `callback` is that of `learn`.

    Raises UserError (one line: what is wrong; what to do) for settings or environments that
    cannot work.
    """

    run: Path | None = None
    _running: Run | None = None
    _checkpoint: Path | None = None
    _factory: Callable[..., gymnasium.Env] | None = None
    _callback: Callback | Sequence[Callback] | None = None
    _explicit: frozenset[str] = frozenset()

    @as_found()
    def __init__(
        self,
        env: Env = "CartPole-v1",
        callback: Callback | Sequence[Callback] | None = None,
        **settings: Any,
    ):
        self._factory = None if isinstance(env, str) else env
        name = env if isinstance(env, str) else EnvSpec(env).name
        make.check_env_id(env, settings.get("import_modules", ()))
        self._callback = callback
        named, self._objects = bring({**settings, "env": name})
        self.config, self._explicit = resolve(named, objects=self._objects)
        self._build()
        torch.manual_seed(self.config.run.seed)
        self.network = FlatNetwork(self.run_spec.network(), gradient=False)

    @as_found()
    def learn(
        self,
        total_steps: int | None = None,
        callback: Callback | Sequence[Callback] | None = None,
        progress_bar: bool = False,
        total_timesteps: int | None = None,
    ) -> Self:
        """Train up to `total_steps` GLOBAL steps (all calls together; default `steps`), which
        Stable-Baselines3 calls `total_timesteps`.

        `callback(report)`, or each of a list, is called about once a second with the metrics by
        TensorBoard tag and "step", and with every evaluation ("step", "eval/mean_reward",
        "eval/mean_ep_length", "eval/episodes", "eval/confirmed": over all of them); returning
        False ends training. In it `run` is the folder, and what is asked of the agent is
        answered by its newest snapshot. Afterwards the agent plays the best parameters that were
        confirmed (see `use`). A further call goes on where the last one ended.
        Workers are processes: call it under `if __name__ == "__main__":`.
        Raises UserError; RuntimeError if the run failed.
        """
        if getattr(multiprocessing.current_process(), "_inheriting", False):
            # A child imports the user's script and came upon this call; the trainer says so.
            raise SystemExit(2)
        if total_timesteps is not None:
            if total_steps is not None:
                raise UserError("total_timesteps is total_steps by another name; drop one")
            total_steps = total_timesteps
        called = as_one(self._callback if callback is None else callback)
        changes: dict[str, Any] = {"quiet": not progress_bar}
        if total_steps is not None:
            changes["steps"] = total_steps
        if self.run is not None:
            changes["resume"] = str(self.run)
        asked = self._asked if self.run is None else self.config
        config = asked.with_settings(changes)  # what follows from the environment, from the budget
        explicit = self._explicit | {"run.steps"}
        how = {"in_own_process": False, "trainer": self._watched, "objects": self._objects}
        before = self.run
        try:
            outcome = training.train(config, explicit, self._factory, called, **how)
        except BaseException:
            self.run = before
            raise
        finally:
            self._running = None
        self.use("best")
        if outcome.exit_code == 130:
            raise KeyboardInterrupt
        if outcome.exit_code:
            raise RuntimeError(outcome.error)
        return self

    def use(self, which: str) -> Self:
        """Play the "best" parameters that were confirmed, or the "latest" of the run.

        `best` where none was confirmed are the latest. Learning always goes on from the latest.
        Raises UserError.
        """
        if self.run is None:
            raise UserError("nothing learned yet; call learn()")
        self._load(_found(self.run, which))
        return self

    def plot(self) -> Any:
        """The run so far as a figure of matplotlib (extra `plot`): scores against steps.

        Raises UserError.
        """
        if self.run is None:
            raise UserError("nothing learned yet; call learn() before plot()")
        check_plotting()
        from async_dqn.report.figures import learning_curve

        tag, rows = "rollout/ep_rew_mean", GrowingTable(self.run / "metrics.csv").new()
        training = [(row["step"], row[tag]) for row in rows if tag in row]
        return learning_curve(read_run(self.run), training)

    @property
    def num_timesteps(self) -> int:
        """Global steps learned from so far."""
        if self._running is not None:
            return self._running.store.steps
        return 0 if self.run is None else _found(self.run, "latest").step

    @property
    def playing(self) -> str:
        """The checkpoint that the agent plays, such as "step-000000035000 (best)"."""
        if self._checkpoint is None:
            return "untrained"
        at, folder = self._checkpoint, self._checkpoint.parent
        words = " and ".join(m for m in checkpoint.MARKS if checkpoint.marked(folder, m) == at)
        return f"{self._checkpoint.name} ({words})" if words else self._checkpoint.name

    def save(self, path: str | Path) -> None:
        """Copy the checkpoint that the agent plays to the new folder `path`.

        Raises UserError if it exists.
        """
        if self._checkpoint is None:
            raise UserError("nothing learned yet; call learn() before save()")
        if Path(path).exists():
            raise UserError(f"{path} exists; choose another path")
        shutil.copytree(self._checkpoint, path)

    @classmethod
    @as_found()
    def load(
        cls,
        path: str | Path,
        env: Env | None = None,
        import_modules: Sequence[str] = (),
        which: str = "best",
        **objects: Any,
    ) -> Self:
        """Load a run folder (its best or latest checkpoint, see `use`) or one checkpoint.

        `import_modules` register its environment and hold its algorithm or network, if those are
        not of this program; what is missing is named, never imported by itself. `objects`
        (`algorithm`, `network`, `exploration`, `target`) stand in for what cannot be imported.

        `env` is needed for agents whose environment was a class or factory; another id than that
        of training is played instead of it. Raises UserError.
        """
        if unknown := objects.keys() - set(OPEN):
            raise UserError(f"{min(unknown)} is none of {either(OPEN)}; drop it")
        found = _found(path, which)
        agent, stored = cls.__new__(cls), stored_config(found)
        # A stored configuration is never trusted for imports.
        fresh = {"import_modules": tuple(import_modules), "run_name": None}
        if not isinstance(env, str):
            agent._factory = env
        elif env != stored.environment.env:
            fresh |= {"env": env, "env_arg": {}, "max_episode_steps": None}
            agent._explicit = frozenset({"environment.env"})
        agent.config, agent._objects = stored.with_settings(fresh), objects
        agent.run = Path(path)
        missing = set(stored.environment.import_modules) - set(import_modules)
        try:
            make.check_env_id(env or stored.environment.env, import_modules)
        except UserError as error:
            if not missing:
                raise
            trained = "".join(f" --import {name}" for name in sorted(missing))
            raise UserError(f"{error}; the run was trained with{trained}") from error
        same = agent.config.environment.env == stored.environment.env
        agent._build(found.state.get("env_info") if same else None)
        agent._load(found)
        return agent

    def _build(self, stored: Mapping[str, Any] | None = None) -> None:
        """The parts that follow from the settings: environment facts and network shape."""
        modules = self.config.environment.import_modules
        own = find(self.config.by_name(), self._objects, modules)
        spec = EnvSpec.of(self.config.environment, self._factory)
        self._asked = self.config
        info, self.config, _ = looked_at(spec, self._asked, self._explicit, stored)
        self.run_spec = RunSpec(
            self.config, spec, info, architecture.choose(self.config, info), own
        )
        self._space, self._own_actions = own_interface(self.run_spec.spec, info)
        self._algorithm = self.run_spec.algorithm
        self._generator = np.random.default_rng()

    def _watched(self, run: Run) -> Any:
        """What drives the run, whose state callbacks may ask for."""
        self._running, self.run = run, run.folder.path
        return training.trainer_of(run)

    def _refresh(self) -> None:
        """While learning: the newest snapshot, or before the first the parameters of now."""
        if self._running is not None:
            store = self._running.store
            if store.snapshot.read(self.network.vector) is None:
                self.network.vector.copy_(store.theta)

    def _load(self, found: checkpoint.Checkpoint) -> None:
        self._checkpoint = found.path
        meaning = found.state.get("env_info", {}).get("actions")
        if meaning != self.run_spec.info.actions:
            raise UserError(
                f"checkpoint does not match: its actions mean {meaning}, those of "
                f"{self.run_spec.spec.name} {self.run_spec.info.actions}; "
                "load it with the env it learned"
            )
        self.network = FlatNetwork(self.run_spec.network(), gradient=False)
        try:
            self.network.vector.copy_(flat_vector(self.network.net, played_parameters(found)))
        except (KeyError, ValueError) as error:
            raise UserError(f"checkpoint does not match: {error}") from error


def _found(path: str | Path, which: str) -> checkpoint.Checkpoint:
    """One checkpoint, or that of a run folder which is asked for."""
    if which not in ("best", "latest"):
        raise UserError(f"which parameters: best or latest (got {which!r})")
    return checkpoint.load(checkpoint.resolve(path, best=which == "best"))
