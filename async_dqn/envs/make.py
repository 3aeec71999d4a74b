"""Making environments: any gymnasium id, class or factory becomes an `EnvBatch`.

Three ways lead there: ale-py's vector environment for `ALE/...` ids (in evaluations one for each
game), the vector entry point of an id where it has one (CartPole), and a loop over single
environments for everything else. A fourth, EnvPool, is for training where it is asked for.
"""

import dataclasses
import importlib
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers import NormalizeObservation, NormalizeReward

from async_dqn.config.config import UserError
from async_dqn.envs.actions import action_mapping, numbered
from async_dqn.envs.batch import AtariTrainingBatch, EnvBatch, NotFinite, Step
from async_dqn.envs.codes import with_codes
from async_dqn.envs.envpool import PoolVectorEnv
from async_dqn.envs.loop_batch import LoopBatch
from async_dqn.envs.loop_env import LoopVectorEnv
from async_dqn.envs.masks import first_legal, some_legal, source_of, with_masks
from async_dqn.envs.notes import Noted, Notes
from async_dqn.envs.single_game import SingleGame
from async_dqn.envs.spaces import (
    MASK,
    ObservationLayout,
    at,
    in_words,
    leaves,
    num_actions,
    observation_layout,
)
from async_dqn.envs.spec import (
    EnvInfo,
    EnvSpec,
    check_env_id,
    creation_errors,
    episode_limit,
    make_single,
    preload_modules,
    registered_spec,
)

__all__ = [
    "EnvBatch",
    "EnvInfo",
    "EnvSpec",
    "Step",
    "check_env_id",
    "make_env",
    "make_to_watch",
    "make_vector",
    "preload_modules",
    "probe",
]

FEW = 2  # up to here a loop takes less time than NumPy does (CartPole: 19 and 40 us for two)
KEEP_STATISTICS = (NormalizeObservation, NormalizeReward)
ATARI_OURS = ("life_loss_info", "episodic_life", "reward_clipping", "autoreset_mode", "batch_size")


def make_vector(
    spec: EnvSpec, num_envs: int, training: bool, alive: Callable[[], None] = lambda: None
) -> EnvBatch:
    """Build a batch; `training` matters for Atari (rewards are clipped, lost lives terminate).

    `alive` is called after every single environment that was made, or is slow. Raises UserError
    when the environment cannot be made or its spaces are not supported.
    """
    spec = spec if training else spec.in_evaluation
    if training and spec.backend == "envpool":
        return _make_pool(spec, num_envs)
    if spec.is_atari:
        return _make_atari(spec, num_envs, training)
    return _make_vectorised(spec, num_envs) or _make_loop(spec, num_envs, alive=alive)


def probe(spec: EnvSpec, stored: Mapping[str, Any] | None = None) -> EnvInfo:
    """Make one environment, check its spaces and interface with a reset and a step, close it.

    `stored` is what a checkpoint has of it: a model goes on with the codes it learned with.
    Raises UserError for everything a user can mend: unknown ids, missing packages, unsupported
    spaces, the old gym interface, constructors that raise. Warns of wrappers that keep statistics.
    """
    if spec.wrap and (spec.is_atari or spec.backend == "envpool"):
        raise UserError("--wrap is for single environments, not for ALE/ ids and envpool; drop it")
    if spec.log_info and (spec.is_atari or spec.backend == "envpool"):
        raise UserError("--log-info is for environments but ALE/ ids and envpool's; drop it")
    batch = make_vector(spec, 1, training=True)
    try:
        with creation_errors(spec):
            if spec.eval_wrap:
                _check_evaluation(spec, batch.info)
            singles = getattr(batch.vector, "envs", ())
            for env in singles:
                _warn_of_statistics(env)
            told = [_check_interface(env, batch.info.masks) for env in singles]
            if spec.masks == "auto" and batch.info.masks is None:
                if any(_both_tell(*infos) for infos in told) or _vector_tells(spec, batch):
                    return probe(dataclasses.replace(spec, masks="info"), stored)
            obs = batch.reset([0])
            obs = batch.step(some_legal(batch.info, obs)).obs
            if not isinstance(batch.fault, NotFinite):
                raise batch.fault
            counted = bool(singles) and _is_counted(singles[0].observation_space)
            info = with_codes(batch, obs, spec.image_codes, stored)
            return dataclasses.replace(info, counted=counted)
    finally:
        batch.close()


def _check_evaluation(spec: EnvSpec, seen: EnvInfo) -> None:
    """Raise UserError unless an agent sees and does the same in evaluations."""
    other = make_vector(spec, 1, training=False)
    other.close()
    fixed = ("kind", "observation_shape", "dtype", "num_actions", "actions")
    for name in fixed:
        there, here = getattr(other.info, name), getattr(seen, name)
        if there != here:
            raise UserError(f"--eval-wrap changes {name} from {here} to {there}; keep it as it is")


def _is_counted(space: spaces.Space) -> bool:
    """Whether observations are numbered states, one or several, with or without masks."""
    if isinstance(space, spaces.Dict):
        return all(_is_counted(space[key]) for key in space if key != MASK)
    if isinstance(space, spaces.Tuple):
        return all(map(_is_counted, space.spaces))
    return isinstance(space, spaces.Discrete | spaces.MultiDiscrete)


def make_env(spec: EnvSpec) -> tuple[gymnasium.Env, int]:
    """One environment with numbered actions, masks in its observations if it has any, and its
    episode limit in steps.

    Raises UserError when it cannot be made or its actions cannot be numbered.
    """
    env, limit = make_single(spec)
    return with_masks(numbered(env, spec.action_bins, spec.name), spec.masks, spec.name), limit


def layout_of(spec: EnvSpec, space: spaces.Space) -> ObservationLayout:
    """How the observations of `make_env`'s environment, of this space, are stored."""
    masked = spec.masks != "none" and isinstance(space, spaces.Dict) and MASK in space.spaces
    size = None if spec.image_codes.isdecimal() else spec.image_size
    return observation_layout(space, size, masked)


def make_to_watch(spec: EnvSpec, render_mode: str | None) -> gymnasium.Env:
    """One environment as agents see it in evaluations, with its own actions and its limit.

    Atari is rendered ("rgb_array") as it looks, not as it is seen.
    """
    if spec.is_atari:
        if render_mode not in (None, "rgb_array"):
            raise UserError(f"Atari is rendered as rgb_array only (got {render_mode!r})")
        vector = _atari_vector(spec, 1, training=False)[0]()
        twin = None
        if render_mode is not None:
            looks = {"img_height": 210, "img_width": 160, "grayscale": False, "stack_num": 1}
            colours = dataclasses.replace(spec, kwargs=spec.kwargs | looks)
            twin = _atari_vector(colours, 1, training=False)[0]()
        return SingleGame(vector, twin)
    shown = {} if render_mode is None else {"render_mode": render_mode}
    spec = spec.in_evaluation
    env, limit = make_single(dataclasses.replace(spec, kwargs=spec.kwargs | shown))
    return gymnasium.wrappers.TimeLimit(env, limit)


def _make_loop(
    spec: EnvSpec,
    num_envs: int,
    batched: bool = False,
    alive: Callable[[], None] = lambda: None,
) -> EnvBatch:
    env, limit = make_env(spec)
    layout = layout_of(spec, env.observation_space)
    count = num_actions(env.action_space, spec.name)
    masks = source_of(env) if layout.parts[-1].kind == "mask" else None
    info = _describe(layout, count, 1, limit, batched, action_mapping(env), masks)

    notes = Notes(spec.log_info) if spec.log_info else None

    def noted(env: gymnasium.Env) -> gymnasium.Env:
        return env if notes is None else Noted(env, notes)

    def another() -> gymnasium.Env:
        alive()
        return noted(make_env(spec)[0])

    envs = [noted(env), *(another() for _ in range(num_envs - 1))]
    batch = LoopBatch(LoopVectorEnv(envs, layout, limit, alive), info, another)
    batch.notes = notes
    return batch


def _make_vectorised(spec: EnvSpec, num_envs: int) -> EnvBatch | None:
    """Use the vector entry point of the id, or None where it has none that serves as it is.

    A loop stands for it where environments are few and have no arguments, which may differ.
    """
    if spec.id is None or spec.wrap or spec.log_info or spec.masks not in ("auto", "none"):
        return None
    registered = registered_spec(spec)
    if registered.vector_entry_point is None or registered.additional_wrappers:
        return None
    limit = episode_limit(spec, registered.max_episode_steps)
    kwargs = {**spec.kwargs, "max_episode_steps": limit}

    def make() -> gymnasium.vector.VectorEnv:
        vector = gymnasium.make_vec(registered, num_envs, "vector_entry_point", **kwargs)
        if isinstance(vector.action_space, spaces.MultiDiscrete):
            vector.action_space = OwnActions(vector.action_space.nvec)
        return vector

    try:
        with creation_errors(spec):
            vector = make()
    except UserError as error:
        if isinstance(error.__cause__, TypeError):
            return None  # it does not take these arguments; a single environment may
        raise
    space, actions = vector.single_observation_space, vector.single_action_space
    plain = isinstance(space, spaces.Box) and len(space.shape) == 1
    counted = isinstance(actions, spaces.Discrete) and actions.start == 0
    resets = vector.metadata.get("autoreset_mode")
    if plain and counted and resets in (AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP):
        layout = observation_layout(space)
        info = _describe(layout, num_actions(actions, spec.name), 1, limit, batched=True)
        if num_envs > FEW or registered.entry_point is None or spec.kwargs:
            return EnvBatch(vector, info, make)
        vector.close()
        return _make_loop(spec, num_envs, batched=True)
    vector.close()
    return None


class OwnActions(spaces.MultiDiscrete):
    """Actions that come from here, hence are valid: CartPole's check takes a sixth of its step."""

    def contains(self, x: Any) -> bool:
        return True


def _make_pool(spec: EnvSpec, num_envs: int) -> EnvBatch:
    """EnvPool's version of what gymnasium would make."""
    model = make_vector(dataclasses.replace(spec, backend="gymnasium"), 1, training=True)
    model.close()
    own = registered_spec(spec).kwargs if spec.is_atari else {}
    make = partial(PoolVectorEnv, spec, num_envs, model.info, {**own, **spec.kwargs})
    with creation_errors(spec):
        vector = make()
    if spec.is_atari:
        return AtariTrainingBatch(vector, model.info, make, spec.clip_rewards)
    return EnvBatch(vector, model.info, make)


def _atari_vector(
    spec: EnvSpec, num_envs: int, training: bool
) -> tuple[Callable[[], gymnasium.vector.VectorEnv], int, int]:
    """What makes ale-py's vector environment; frames a step, and steps until it is cut."""
    for name in ATARI_OURS:
        if name in spec.kwargs:
            raise UserError(f"--env-arg {name} is set by async_dqn for Atari; drop it")
    kwargs = {"num_threads": 1, "noop_max": 30, **registered_spec(spec).kwargs, **spec.kwargs}
    frames = kwargs["frameskip"]
    with creation_errors(spec):
        limit = spec.max_episode_steps or kwargs["max_num_frames_per_episode"] // frames
        kwargs["max_num_frames_per_episode"] = limit * frames
        make = partial(
            importlib.import_module("ale_py.vector_env").AtariVectorEnv,
            num_envs=num_envs,
            # Not episodic_life: that starts a new game at a lost life.
            life_loss_info=training and spec.life_loss_ends,
            episodic_life=False,
            reward_clipping=False,  # clipped here, so that the true score is known
            autoreset_mode=AutoresetMode.SAME_STEP if training else AutoresetMode.NEXT_STEP,
            **kwargs,
        )
    return make, frames, limit


def _make_atari(spec: EnvSpec, num_envs: int, training: bool) -> EnvBatch:
    make, frames, limit = _atari_vector(spec, num_envs if training else 1, training)
    with creation_errors(spec):
        vector = make()
    layout = observation_layout(vector.single_observation_space)
    info = _describe(layout, num_actions(vector.single_action_space, spec.name), frames, limit)
    if training:
        return AtariTrainingBatch(vector, info, make, spec.clip_rewards)
    games = [SingleGame(vector), *(SingleGame(make()) for _ in range(num_envs - 1))]
    return LoopBatch(LoopVectorEnv(games, layout, limit), info, lambda: SingleGame(make()))


def _describe(
    layout: ObservationLayout,
    num_actions: int,
    frames: int,
    limit: int,
    batched: bool = False,
    actions: dict[str, Any] | None = None,
    masks: str | None = None,
) -> EnvInfo:
    whole, in_a_row = layout.parts[0], layout.kind == "parts"
    return EnvInfo(
        layout.kind,
        layout.shape,
        layout.dtype,
        1.0 if in_a_row else whole.scale,
        None if in_a_row else whole.low,
        None if in_a_row else whole.high,
        num_actions,
        frames,
        limit,
        batched,
        actions,
        parts=layout.parts if in_a_row else (),
        masks=masks,
        observation=in_words(layout.parts) if in_a_row else whole.observation,
    )


def _warn_of_statistics(env: gymnasium.Env) -> None:
    """Say on stderr that what a wrapper learns of the environment is no part of the agent."""
    names = []
    while isinstance(env, gymnasium.Wrapper):
        if isinstance(env, KEEP_STATISTICS):
            names.append(type(env).__name__)
        env = env.env
    if names:
        print(
            f"warning: {' and '.join(names)}: every copy of the environment has statistics of its "
            "own, which no checkpoint holds, so scores mislead; use --normalize-observations and "
            "--scale-rewards instead",
            file=sys.stderr,
        )


def _check_interface(env: gymnasium.Env, masks: str | None) -> tuple[bool, bool]:
    """One reset and one step by hand, to name what a wrong number of values means.

    `masks` is where observations have legal actions from. Returns whether infos tell them: that of
    the reset, and that of the step, if it did not end the episode.
    """
    first = env.reset(seed=0)
    if not (isinstance(first, tuple) and len(first) == 2):
        raise UserError("env returns no (observation, info) from reset; port it to Gymnasium")
    _check_dtypes(env, first[0], masks)
    assert isinstance(env.action_space, spaces.Discrete)
    at_reset = MASK in (first[1] or ())
    holds = first[0] if masks is not None else first[1] if at_reset else {}
    values = env.step(first_legal(env, holds.get(MASK)))
    if len(values) != 5:
        raise UserError(f"env returns {len(values)} values from step; a Gymnasium env returns 5")
    _check_dtypes(env, values[0], masks)
    over = bool(values[2] or values[3])
    return at_reset, at_reset if over else MASK in (values[4] or ())


def _both_tell(at_reset: bool, in_step: bool) -> bool:
    """Whether infos tell legal actions. Raises UserError where they do so only now and then."""
    if at_reset != in_step:
        where, where_not = ("reset", "step") if at_reset else ("step", "reset")
        raise UserError(
            f"env gives info['{MASK}'] in {where}, not in {where_not}; add it there, or "
            "--action-masks none ignores it"
        )
    return at_reset


def _vector_tells(spec: EnvSpec, batch: EnvBatch) -> bool:
    """Whether a vector environment of gymnasium's has masks: single ones then stand in for it."""
    if isinstance(batch, LoopBatch) or spec.is_atari or spec.backend != "gymnasium":
        return False
    _, infos = batch.vector.reset()
    return MASK in infos


def _check_dtypes(env: gymnasium.Env, observation: Any, masks: str | None) -> None:
    """Raise UserError for fractions where the space declares whole numbers; masks may be any."""
    for path, space in leaves(env.observation_space):
        if masks is not None and path == (MASK,):
            continue
        returned, declared = np.asarray(at(observation, path)).dtype, np.dtype(space.dtype)
        truncated = "biu" if path else "bu"  # pixels in 0..1 would all become 0
        if returned.kind == "f" and declared.kind in truncated:
            raise UserError(
                f"env returns {returned} observations, its space says {declared}; "
                "correct its observation_space"
            )
