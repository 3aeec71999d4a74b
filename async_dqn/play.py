"""An exported agent at play: `Player`, and `python -m async_dqn.play FILE`.

    player = Player("agent.onnx")
    action, _ = player.predict(observation)

Needs numpy and onnxruntime, neither torch nor gymnasium; only playing an environment
(`python -m async_dqn.play`) needs that environment and what it runs on.
"""

import json
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from async_dqn.config.config import SETTINGS, UserError
from async_dqn.config.fields import one_line
from async_dqn.config.options import Parser, parse_value, run_command
from async_dqn.envs.texts import hashed_words

METADATA = "async_dqn"  # key of the file's metadata under which the description is, as JSON
FORMAT = 1

State = tuple[NDArray[np.float32], NDArray[np.float32]]


class Decision(NamedTuple):
    """A greedy choice: the environment's own action, the Q-values [A] it follows from (illegal
    actions have -inf), and the state of a recurrent agent."""

    action: Any
    q_values: NDArray[np.float32]
    state: State | None


class Player:
    """The agent in a `file` that `export` has written, or in its bytes.

    `threads` are those of its arithmetic.

    Raises UserError for a file that is none of its, and without onnxruntime.
    """

    def __init__(self, file: str | Path | bytes, threads: int = 1):
        try:
            import onnxruntime
        except ImportError:
            raise UserError("a player needs onnxruntime; pip install onnxruntime") from None
        name = "the file" if isinstance(file, bytes) else str(file)
        if not isinstance(file, bytes) and Path(file).is_dir():
            raise UserError(f"{name} is a folder; export the run to a file first")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = threads
        try:
            self._session = onnxruntime.InferenceSession(
                file, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its own kinds, which it does not document
            reason = one_line(str(error))
            raise UserError(f"{name} cannot be played ({reason}); export it again") from error
        known = self._session.get_modelmeta().custom_metadata_map.get(METADATA)
        self.about: dict[str, Any] = {} if known is None else json.loads(known)
        if self.about.get("format") != FORMAT:
            raise UserError(f"{name} is not from this version's export; export it again")
        self._names = [known.name for known in self._session.get_inputs()]

    def predict(
        self, observation: Any, state: State | None = None, mask: Any = None
    ) -> tuple[Any, State | None]:
        """The greedy action for one observation of the environment, and the next state.

        `mask` [A] are the legal actions, where the environment tells them by `info["action_mask"]`
        or `action_masks()`. The state is that of a recurrent agent, None at the start of an
        episode. Raises UserError for an observation that does not fit.
        """
        choice = self.decide(observation, state, mask)
        return choice.action, choice.state

    def decide(self, observation: Any, state: State | None = None, mask: Any = None) -> Decision:
        """As `predict`, with the Q-values."""
        given = encode(self.about, observation, state, mask)
        return decoded(self._session.run(None, dict(zip(self._names, given, strict=True))))


def decoded(outputs: Sequence[NDArray]) -> Decision:
    """What the outputs [1, ...] of a file say."""
    actions, q_values, *after = outputs
    action = actions[0] if actions.ndim > 1 else actions[0].item()
    return Decision(action, q_values[0], tuple(after) or None)


def encode(
    about: Mapping[str, Any], observation: Any, state: State | None, mask: Any
) -> list[NDArray]:
    """One observation, and the state, as the inputs [1, ...] that the description `about` names.

    Raises UserError for what does not fit.
    """
    if about["masks"] in ("info", "method"):
        if mask is None:
            raise UserError("this agent's actions are masked; give mask")
        observation = {"observation": observation, "action_mask": mask}
    given = []
    for known in about["inputs"]:
        part = observation
        for key in known["path"]:
            try:
                part = part[key]
            except (LookupError, TypeError):
                raise UserError(f"observation has no [{key!r}]") from None
        given.append(_encoded(part, known))
    if width := about["state"]:
        given += state or (np.zeros((1, width), np.float32),) * 2
    return given


def _encoded(part: Any, known: Mapping[str, Any]) -> NDArray:
    if known["kind"] == "text":
        if not isinstance(part, str):
            raise UserError(f"{known['name']} is a {type(part).__name__}, no text")
        part = hashed_words(part)
    elif known["kind"] == "mask":
        part = np.asarray(part) == 1
    array = np.asarray(part)
    if list(array.shape) != list(known["shape"]):
        expected = tuple(known["shape"])
        raise UserError(f"{known['name']} has shape {array.shape}, expected {expected}")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise UserError(f"{known['name']} holds a number that is not finite")
    kept = array.astype(known["dtype"], copy=False)
    if known["dtype"] != "float32" and kept is not array and not np.array_equal(kept, array):
        raise UserError(f"{known['name']} holds {array.dtype}s that are no {known['dtype']}")
    if known["states"] is not None:
        counted = kept.ravel() - np.array(known["starts"])
        if not ((counted >= 0) & (counted < known["states"])).all():
            raise UserError(f"{known['name']} {part} is none of its states")
    return kept[None]


def main(argv: Sequence[str]) -> int:
    """Play an exported agent in its environment and print its returns."""
    parser = Parser(prog="python -m async_dqn.play", description=main.__doc__)
    parser.add_argument("file", metavar="FILE", help="an .onnx of `async-dqn export`")
    parser.add_argument("--env", metavar="ID", help="(default: the one it learned)")
    parser.add_argument("--episodes", metavar="N", default="10", help="(default: 10)")
    parser.add_argument("--seed", metavar="N", default="0", help="of the first (default: 0)")
    modules = {"action": "append", "default": [], "metavar": "MODULE"}
    parser.add_argument("--import", **modules, help="module that registers the environment")
    given = parser.parse(argv)
    episodes = parse_value(SETTINGS["eval_episodes"], given["episodes"], "--episodes")
    seed = parse_value(SETTINGS["seed"], given["seed"])
    player = Player(given["file"])
    env = _environment(player.about, given.get("env"), given["import"])
    try:
        _print(play(player, env, episodes, seed))
    finally:
        env.close()
    return 0


def _environment(about: Mapping[str, Any], env: str | None, modules: Sequence[str]) -> Any:
    """One to play, as the agent saw it in evaluations."""
    from async_dqn.config.environment import EnvironmentConfig

    try:
        from async_dqn.envs.make import EnvSpec, make_to_watch
    except ImportError as error:
        raise UserError(f"playing an environment needs {error.name}; install it") from None

    learned = about["environment"]
    if env is None and not about["registered"]:
        raise UserError(f"it learned {about['env']}, a class; give --env ID and --import MODULE")
    if env not in (None, learned["env"]):
        learned = {**learned, "env": env, "env_arg": {}, "max_episode_steps": None}
    settings = EnvironmentConfig(**{**learned, "import_modules": tuple(modules)})
    return make_to_watch(EnvSpec.of(settings), None)


class Played(NamedTuple):
    """One episode: its return, its steps, and the seconds that deciding took."""

    score: float
    steps: int
    deciding_s: float


def play(player: Player, env: Any, count: int, seed: int) -> Iterator[Played]:
    """So many episodes of an environment, seeded from `seed` on.

    As in evaluations, one action in a hundred is random in Atari, where a greedy policy may wait
    for ever.
    """
    from async_dqn.envs.masks import told_mask

    env.action_space.seed(seed)
    generator = np.random.default_rng(seed)
    for number in range(count):
        observation, info = env.reset(seed=seed + number)
        state, score, steps, seconds, ended = None, 0.0, 0, 0.0, False
        while not ended:
            mask = told_mask(env, player.about["masks"], info)
            begun = time.perf_counter()
            action, state = player.predict(observation, state, mask)
            seconds += time.perf_counter() - begun
            if generator.random() < player.about["epsilon"]:
                action = env.action_space.sample()
            observation, reward, terminated, truncated, info = env.step(action)
            score, steps, ended = score + float(reward), steps + 1, terminated or truncated
        yield Played(score, steps, seconds)


def _print(episodes: Iterable[Played]) -> None:
    played = []
    for number, one in enumerate(episodes, 1):
        print(f"episode {number}: return {one.score:g}, {one.steps:,} steps", flush=True)
        played.append(one)
    scores, steps, seconds = np.array(played).T
    each = f"{seconds.sum() / steps.sum() * 1e6:.0f} us a decision"
    print(
        f"mean return {scores.mean():.2f}, standard deviation {scores.std():.2f}, "
        f"{len(played)} episodes, {each}"
    )


if __name__ == "__main__":
    sys.exit(run_command(main, None))
