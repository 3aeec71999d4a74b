"""`Agent`: what acts, whoever taught it: decisions, Q-values, scores, and files for elsewhere."""

import contextlib
import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray

from async_dqn.algorithms.exploration import ILLEGAL
from async_dqn.algorithms.registry import Algorithm
from async_dqn.config.fields import UserError
from async_dqn.deploy import files
from async_dqn.deploy.policy import Policy
from async_dqn.envs import make
from async_dqn.envs.masks import SOURCES
from async_dqn.envs.rows import row_writer
from async_dqn.envs.spaces import MASK, split_batch
from async_dqn.evaluation.crew import Crew
from async_dqn.evaluation.episodes import EpisodeRunner
from async_dqn.networks.network import QOutput, State, restarted
from async_dqn.parameters.flat_network import FlatNetwork
from async_dqn.workers.run_spec import CONFIRMATION, RunSpec, as_found


class Decision(NamedTuple):
    """A greedy choice: the environment's own action, its number among the Q-values, these [A]
    (illegal actions have -inf), and the state of a recurrent agent."""

    action: Any
    number: int
    q_values: NDArray[np.float32]
    state: State | None


class Agent:
    """A network at play in the environment of `run_spec`."""

    run_spec: RunSpec
    network: FlatNetwork
    _space: gymnasium.Space
    _own_actions: Callable[[NDArray[np.int64]], NDArray]
    _algorithm: Algorithm
    _generator: np.random.Generator

    def predict(
        self,
        observation: Any,
        state: State | None = None,
        deterministic: bool = True,
        epsilon: float = 0.05,
        mask: Any = None,
        episode_start: Any = None,
    ) -> tuple[Any, State | None]:
        """Choose the action for one observation (an int) or a batch (int64 [N]).

        Greedy; with `deterministic=False` as in training, with this epsilon (or temperature).
        Actions are those of the environment's own action space. Where it tells the legal ones by
        `info["action_mask"]` or `action_masks()`, `mask` is that [A] (or [N, A]). The
        second value is the state of a recurrent agent, to be given with the next observation of
        the episode; else None. Where `episode_start` (bool, or [N]) is true the state is not
        that of this episode, and is forgotten.
        """
        if episode_start is not None:
            state = restarted(state, np.atleast_1d(np.asarray(episode_start, bool)))
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

    @property
    def observation_space(self) -> gymnasium.Space:
        """Of the observations that `predict` takes."""
        told = self.run_spec.info.masks
        return self._space["observation"] if told in ("info", "method") else self._space

    @functools.cached_property
    def action_space(self) -> gymnasium.Space:
        """Of the actions that it gives."""
        with contextlib.closing(self.make_env()) as env:
            return env.action_space

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

    def _refresh(self) -> None:
        """Called before it plays: whoever still learns takes its newest parameters."""

    def _outputs(
        self, observations: Any, mask: Any, state: State | None = None
    ) -> tuple[QOutput, State | None, bool]:
        """What the network makes of them, its next state, and whether it was a single one."""
        self._refresh()
        batch, single = self._batch(observations, mask)
        with torch.inference_mode():
            return *self.network.net(torch.from_numpy(batch), state), single

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


def _plain(q_values: NDArray[np.float32]) -> NDArray[np.float32]:
    """With -inf for illegal actions."""
    return np.where(q_values <= ILLEGAL, np.float32(-np.inf), q_values)
