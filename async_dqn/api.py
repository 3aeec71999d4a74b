"""The Python API: `AsyncDQN`, one agent on one environment.

    agent = AsyncDQN("CartPole-v1", workers=4, seed=0)
    agent.learn(total_steps=200_000)
    action, _ = agent.predict(observation)

Keywords are the options of the command line with underscores (`import_modules` for `--import`).
"""

import contextlib
import multiprocessing
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Self

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray

from async_dqn.algorithms.exploration import ILLEGAL
from async_dqn.config.config import UserError
from async_dqn.config.extension import OPEN, bring, find
from async_dqn.config.fields import either
from async_dqn.config.presets import resolve
from async_dqn.deploy import files
from async_dqn.deploy.policy import Policy
from async_dqn.envs import make
from async_dqn.envs.masks import SOURCES
from async_dqn.envs.rows import row_writer
from async_dqn.envs.spaces import MASK, split_batch
from async_dqn.envs.spec import EnvSpec
from async_dqn.evaluation.crew import Crew
from async_dqn.evaluation.episodes import EpisodeRunner
from async_dqn.networks import architecture
from async_dqn.networks.network import QOutput, State
from async_dqn.parameters.flat_network import FlatNetwork, flat_vector
from async_dqn.runs import checkpoint
from async_dqn.runs.reporter import Callback, as_one
from async_dqn.runs.resume import played_parameters, stored_config
from async_dqn.runs.run import Run
from async_dqn.training import training
from async_dqn.training.look import looked_at, own_interface
from async_dqn.workers.run_spec import CONFIRMATION, RunSpec, as_found

Env = str | Callable[..., gymnasium.Env]


class Decision(NamedTuple):
    """A greedy choice: the environment's own action, its number among the Q-values, these [A]
    (illegal actions have -inf), and the state of a recurrent agent."""

    action: Any
    number: int
    q_values: NDArray[np.float32]
    state: State | None


class AsyncDQN:
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
    ) -> Self:
        """Train up to `total_steps` GLOBAL steps (all calls together; default `steps`).

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

    @property
    def playing(self) -> str:
        """The checkpoint that the agent plays, such as "step-000000035000 (best)"."""
        if self._checkpoint is None:
            return "untrained"
        at, folder = self._checkpoint, self._checkpoint.parent
        words = " and ".join(m for m in checkpoint.MARKS if checkpoint.marked(folder, m) == at)
        return f"{self._checkpoint.name} ({words})" if words else self._checkpoint.name

    def predict(
        self,
        observation: Any,
        state: State | None = None,
        deterministic: bool = True,
        epsilon: float = 0.05,
        mask: Any = None,
    ) -> tuple[Any, State | None]:
        """Choose the action for one observation (an int) or a batch (int64 [N]).

        Greedy; with `deterministic=False` as in training, with this epsilon (or temperature).
        Actions are those of the environment's own action space. Where it tells the legal ones by
        `info["action_mask"]` or `action_masks()`, `mask` is that [A] (or [N, A]). The
        second value is the state of a recurrent agent, to be given with the next observation of
        the episode; else None.
        """
        output, state, single = self._outputs(observation, mask, state)
        q_values = output.q_values.numpy()
        actions = self.run_spec.actions.best(q_values)
        if not deterministic:
            strength = np.full(len(q_values), epsilon, np.float32)
            actions, _ = self._algorithm.act(output, strength, self._generator)
        own = self._own_actions(actions)
        if single:
            own = int(own[0]) if self.run_spec.info.actions is None else own[0]
        return own, state

    def decide(self, observation: Any, state: State | None = None, mask: Any = None) -> Decision:
        """The greedy action for one observation, and the Q-values it follows from.

        Arguments as of `predict`.
        """
        output, state, _ = self._outputs(observation, mask, state)
        q_values = output.q_values.numpy()
        number = self.run_spec.actions.best(q_values)
        return Decision(self._own_actions(number)[0], int(number[0]), _plain(q_values)[0], state)

    def q_values(self, observations: Any, mask: Any = None) -> NDArray[np.float32]:
        """Q-values float32 [N, A] of a batch of observations (or [1, A] of a single one).

        `mask` as of `predict`; the values of illegal actions are -inf. With one head for each
        component of actions (`branching`) theirs side by side, the value of an action being the
        mean over its components. Of a recurrent agent: at the start of an episode.
        """
        return _plain(self._outputs(observations, mask)[0].q_values.numpy())

    def _outputs(
        self, observations: Any, mask: Any, state: State | None = None
    ) -> tuple[QOutput, State | None, bool]:
        """What the network makes of them, its next state, and whether it was a single one."""
        self._refresh()
        batch, single = self._batch(observations, mask)
        with torch.inference_mode():
            return *self.network.net(torch.from_numpy(batch), state), single

    @as_found()
    def evaluate(self, episodes: int = 100, seed: int | None = None) -> tuple[float, float]:
        """Mean and standard deviation of the true return of greedy play over `episodes`.

        With the run's own seed (the default) these are the episodes that decided `best`.
        """
        self._refresh()
        run_spec = self.run_spec
        if seed is not None:
            config = run_spec.config.with_settings({"seed": seed})
            run_spec = replace(run_spec, config=config)
        player = EpisodeRunner(run_spec, self.network, episodes)
        with contextlib.closing(player):
            run_spec.seed_globals(CONFIRMATION)
            crew = Crew(player)
            crew.begin(player.screening)
            for _ in crew.play(player.total):
                pass
        returns = [played.score for played in crew.results(player.screening, player.total)]
        if len(returns) < episodes:
            raise UserError(
                f"{run_spec.spec.name} gave rewards or observations that are not finite too often; "
                "correct the environment"
            )
        return float(np.mean(returns)), float(np.std(returns))

    def make_env(self, render_mode: str | None = None) -> gymnasium.Env:
        """One environment whose observations `predict` takes, and which takes its actions.

        For Atari with the preprocessing of evaluations. Raises UserError.
        """
        return make.make_to_watch(self.run_spec.spec, render_mode)

    def export(self, path: str | Path, int8: bool = False) -> list[str]:
        """Write the greedy policy as .onnx or as .pt2 (`torch.export`), with all that lies between
        the environment's own observations and its actions; return what it is, in lines.

        `int8`: weights in bytes. The file is tried against the agent in its environment first.
        `async_dqn.play` plays an .onnx without torch. Raises UserError, and writes nothing, where
        that cannot be.
        """
        where, spec = Path(path), self.run_spec
        files.check_file(where, int8)
        self._refresh()
        policy = Policy(spec, self.network, self._space, self._own_actions)
        with contextlib.closing(self.make_env()) as env:
            return files.export(policy, spec, where, int8, self.decide, env)

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

    def _batch(self, observation: Any, mask: Any) -> tuple[NDArray, bool]:
        """Observations in the network's layout [N, ...], and whether it was a single one."""
        told = self.run_spec.info.masks
        if told in (None, "observation"):
            if mask is not None:
                raise UserError("this agent takes no mask beside the observation; drop mask")
        elif mask is None:
            raise UserError(f"this agent's actions are masked; give mask={SOURCES[told]}")
        else:
            observation = {"observation": observation, MASK: mask}
        rows, single = split_batch(self._space, observation)
        batch = np.zeros(
            (len(rows), *self.run_spec.info.observation_shape), self.run_spec.info.dtype
        )
        write = row_writer(self._space, batch, make.layout_of(self.run_spec.spec, self._space))
        for index, row in enumerate(rows):
            write(index, row)
        if not np.isfinite(batch).all():
            raise UserError("observation holds a number that is not finite")
        return batch, single


def _found(path: str | Path, which: str) -> checkpoint.Checkpoint:
    """One checkpoint, or that of a run folder which is asked for."""
    if which not in ("best", "latest"):
        raise UserError(f"which parameters: best or latest (got {which!r})")
    return checkpoint.load(checkpoint.resolve(path, best=which == "best"))


def _plain(q_values: NDArray[np.float32]) -> NDArray[np.float32]:
    """With -inf for illegal actions."""
    return np.where(q_values <= ILLEGAL, np.float32(-np.inf), q_values)
