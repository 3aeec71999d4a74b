"""Episodes of an agent as pictures: what the environment draws, and the choice beside it."""

from collections.abc import Iterator
from typing import NamedTuple

import gymnasium
import numpy as np
from numpy.typing import NDArray

from async_dqn.api import AsyncDQN
from async_dqn.config.config import UserError
from async_dqn.config.fields import one_line
from async_dqn.envs.masks import told_mask
from async_dqn.watch.pictures import Panel

DEFAULT_FPS = 30


class Stage:
    """An agent's environment, drawn; raises UserError where it draws nothing."""

    def __init__(self, agent: AsyncDQN):
        self.agent = agent
        name = agent.run_spec.spec.name
        try:
            self.env = agent.make_env(render_mode="rgb_array")
        except UserError:
            raise
        except Exception as error:  # of any environment
            raise _draws_nothing(name, one_line(str(error))) from error
        self.fps = min(60, int(self.env.metadata.get("render_fps") or DEFAULT_FPS))
        self.panel = Panel(name, _meanings(self.env), agent.run_spec.architecture.branches)

    def close(self) -> None:
        """Free the environment."""
        self.env.close()

    def episode(self, seed: int, most: int) -> Iterator["Shot"]:
        """The pictures of one episode, at most so many steps of it."""
        observation, info = self.env.reset(seed=seed)
        state, score, ended = None, 0.0, False
        for step in range(most + 1):
            mask = told_mask(self.env, self.agent.run_spec.info.masks, info)
            choice = self.agent.decide(observation, state, mask)
            picture = self.panel.draw(self._frame(), choice, step, score)
            yield Shot(picture, score, step, ended or step == most, ended)
            if ended or step == most:
                return
            state = choice.state
            observation, reward, terminated, truncated, info = self.env.step(choice.action)
            score, ended = score + float(reward), bool(terminated or truncated)

    def _frame(self) -> NDArray[np.uint8]:
        name = self.agent.run_spec.spec.name
        try:
            frame = self.env.render()
        except Exception as error:
            raise _draws_nothing(name, one_line(str(error))) from error
        frame = np.asarray(frame[-1] if isinstance(frame, list) and frame else frame)
        if frame.ndim != 3 or frame.shape[2] not in (3, 4):
            raise _draws_nothing(name, f"its render() gives {frame.dtype} of {frame.shape}")
        if frame.dtype != np.uint8:  # MinAtar's are from 0 to 1
            frame = np.clip(frame * (255 if frame.max(initial=0) <= 1 else 1), 0, 255)
        return frame[..., :3].astype(np.uint8)


class Shot(NamedTuple):
    """One picture [H, W, 3] of an episode, its return so far, its step, whether it is the last
    one that is shown, and whether the episode ended there."""

    picture: NDArray[np.uint8]
    score: float
    step: int
    last: bool
    ended: bool


def _draws_nothing(name: str, reason: str) -> UserError:
    return UserError(f"{name} draws no pictures ({reason}); it needs the render mode rgb_array")


def _meanings(env: gymnasium.Env) -> list[str] | None:
    """What its actions are called, if it says so, as Atari does."""
    try:
        return [str(word) for word in env.get_wrapper_attr("get_action_meanings")()]
    except Exception:  # it is theirs
        return None
