"""Findings about an environment: what it shows, whether it keeps to the rules, what it costs."""

import contextlib
import hashlib
import random
import time
import warnings
from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
from gymnasium.utils.env_checker import check_env

from async_dqn.config.config import Config, UserError
from async_dqn.config.fields import describe_error, one_line
from async_dqn.doctor.findings import FINE, NOTE, WARNING, Finding, judged
from async_dqn.envs import make
from async_dqn.envs.masks import METHOD, SOURCES
from async_dqn.envs.spaces import MASK
from async_dqn.envs.spec import EnvSpec
from async_dqn.networks import architecture
from async_dqn.training.look import looked_at
from async_dqn.workers.run_spec import RunSpec, as_found

STEPS, SECONDS = 1000, 3.0  # of random play, whatever ends first
COMPARED = 200  # steps of the plays that should be alike
SLOW_S = 0.01
# Said of every Box without bounds, as CartPole's, which is none the worse for it.
HARMLESS = "A Box observation space m"


def about_environment(config: Config) -> Iterator[Finding]:
    """One finding after another. Raises UserError where training would be refused."""
    spec = EnvSpec.of(config.environment)
    info, settled, reasons = looked_at(spec, config, frozenset())
    yield Finding(FINE, "observations", info.observation)
    actions = f"{info.num_actions}"
    masked = f", masked by {SOURCES[info.masks]}" if info.masks else ""
    yield Finding(FINE, "actions", actions + masked)
    for reason in reasons:
        yield Finding(FINE, "defaults", reason)
    yield from _sent(RunSpec(settled, spec, info, architecture.choose(settled, info)))
    with as_found(), contextlib.closing(_made(spec)) as env:
        if not spec.is_atari:
            yield from _checked(env)
        yield from _played(env, info.max_episode_steps)
        yield from _alike(env)


def _made(spec: EnvSpec) -> gymnasium.Env:
    """One environment with the actions of its own."""
    return make.make_to_watch(spec, None) if spec.is_atari else make.make_single(spec)[0]


def _sent(run_spec: RunSpec) -> Iterator[Finding]:
    try:
        size = len(run_spec.packed())
    except UserError as error:
        yield Finding(WARNING, "processes", str(error))
        return
    yield Finding(FINE, "processes", f"it can be sent to workers ({size:,} bytes)")


def _checked(env: gymnasium.Env) -> Iterator[Finding]:
    """What gymnasium's own checker says, each complaint once."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            check_env(env.unwrapped, skip_render_check=True, skip_close_check=True)
            error = ""
        except Exception as problem:  # of any kind: the environment's, or an assertion
            error = one_line(describe_error(problem))
    advice = "mend it: training counts and drops what does not fit"
    yield judged(bool(error), "gymnasium's checker", error or "no error", advice)
    for text in dict.fromkeys(_plain(str(warning.message)) for warning in told):
        if not text.startswith(HARMLESS):
            yield Finding(NOTE, "gymnasium's checker", text)


def _plain(text: str) -> str:
    """Without the colours and the prefix of gymnasium's logger."""
    return one_line(text.replace("\33[33m", "").replace("\33[0m", "")).removeprefix("WARN: ")


def _played(env: gymnasium.Env, limit: int) -> Iterator[Finding]:
    """Random play: cost, episodes, rewards, and whether observations are as declared."""
    begun, resets, lengths, rewards, outside = time.monotonic(), [], [], [], 0
    low, high, cut, falls = np.inf, -np.inf, 0, False
    length, info = 0, _timed_reset(env, resets)
    env.action_space.seed(0)
    while len(rewards) < STEPS and time.monotonic() - begun < SECONDS:
        observation, reward, terminated, truncated, info = env.step(_random_action(env, info))
        rewards.append(float(reward))
        length += 1
        falls |= bool(terminated)
        outside += not env.observation_space.contains(observation)
        numbers = np.concatenate([np.ravel(part) for part in _numbers(observation)] or [[0.0]])
        low, high = min(low, numbers.min()), max(high, numbers.max())
        if terminated or truncated or length >= limit:
            lengths.append(length)
            cut += not terminated
            length, info = 0, _timed_reset(env, resets)
    step_s = (time.monotonic() - begun - sum(resets)) / len(rewards)
    text = f"{1e3 * step_s:.3g} ms ({1 / step_s:,.0f} steps/s on one core)"
    yield judged(step_s > SLOW_S, "a step", text, "evaluations will take long too", NOTE)
    reset_s = float(np.mean(resets))
    dear = reset_s > 20 * step_s and bool(lengths) and reset_s > step_s * np.mean(lengths)
    advice = "it takes longer than an episode of random play"
    yield judged(dear, "a reset", f"{1e3 * reset_s:.3g} ms", advice, NOTE)
    if lengths:
        text = f"{np.mean(lengths):.0f} steps long on average ({len(lengths)} of random play)"
        yield Finding(FINE, "episodes", f"{text}, {cut} of them cut")
    else:
        text = f"none ended in {len(rewards)} steps of random play; cut after {limit:,}"
        yield Finding(NOTE, "episodes", text, "--max-episode-steps N makes them shorter")
    text = f"from {min(rewards):g} to {max(rewards):g}, {np.mean(np.array(rewards) != 0):.0%} not 0"
    advice = "random play finds nothing to learn from: a shaped reward, or --persistence"
    alike = len(set(rewards)) == 1 and (rewards[0] == 0 or not falls)
    yield judged(alike, "rewards", text, advice, NOTE)
    text = f"numbers from {low:g} to {high:g}"
    words = f"{text}; {outside} of {len(rewards)} do not fit the space declared"
    advice = "mend the space or what is given"
    yield judged(outside > 0, "observations", words if outside else text, advice)


def _timed_reset(env: gymnasium.Env, resets: list[float]) -> dict[str, Any]:
    begun = time.monotonic()
    _, info = env.reset(seed=len(resets))
    resets.append(time.monotonic() - begun)
    return info


def _random_action(env: gymnasium.Env, info: dict[str, Any]) -> Any:
    """A legal one, where the environment tells which are."""
    mask = info.get(MASK)
    if mask is None and env.has_wrapper_attr(METHOD):
        mask = env.get_wrapper_attr(METHOD)()
    return env.action_space.sample(None if mask is None else np.asarray(mask, np.int8))


def _numbers(observation: Any) -> Iterator[np.ndarray]:
    """The numeric parts of an observation."""
    if isinstance(observation, dict):
        for part in observation.values():
            yield from _numbers(part)
    elif isinstance(observation, tuple | list):
        for part in observation:
            yield from _numbers(part)
    elif not isinstance(observation, str):
        yield np.asarray(observation, float)


def _alike(env: gymnasium.Env) -> Iterator[Finding]:
    """Whether the seed fixes all: the same play again, and with other global generators."""
    first, again, otherwise = (_digest(env, seed) for seed in (1, 1, 2))
    if first == again == otherwise:
        yield Finding(FINE, "seeds", "the same seed and actions give the same play")
    elif first == again:
        advice = "take self.np_random, else runs do not repeat"
        yield Finding(
            WARNING, "seeds", "it draws from Python's or NumPy's global generator", advice
        )
    else:
        advice = "use the seed of reset(), else runs do not repeat"
        yield Finding(WARNING, "seeds", "the same seed and actions give another play", advice)


def _digest(env: gymnasium.Env, seed: int) -> str:
    """Of a play with fixed actions, whose global generators begin with `seed`."""
    random.seed(seed)
    np.random.seed(seed)
    env.action_space.seed(0)
    digest, (_, info) = hashlib.sha256(), env.reset(seed=0)
    for step in range(COMPARED):
        observation, reward, terminated, truncated, info = env.step(_random_action(env, info))
        digest.update(repr((float(reward), bool(terminated), bool(truncated))).encode())
        for part in _numbers(observation):
            digest.update(part.tobytes())
        if terminated or truncated:
            _, info = env.reset(seed=step)
    return digest.hexdigest()
