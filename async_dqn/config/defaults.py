"""What holds where neither the user nor a preset says anything: rules by what an environment shows.

The settings are those of `preset_files/by_kind`; docs/choosing.md has the evidence for each.
"""

import math
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np

from async_dqn.config.config import SETTINGS, Config
from async_dqn.config.extension import traits_of
from async_dqn.config.idle import check_acts
from async_dqn.config.presets import FIXED, PRESET_FILES, merge, read_preset

BY_KIND = PRESET_FILES / "by_kind"
KINDS = {  # by what observations are, what the settings are for
    "table": "numbered states",
    "vector": "vectors, normalised by their running mean and deviation",
    "image": "images, alone or beside others",
}
REPLAYED, AT_ONCE, RARE, SCARCE = "replayed", "at_once", "rare", "scarce"
SLOW_S = 0.002  # a step that takes longer is worth learning from many times
FEW_STEPS = 100_000  # so small a budget too
IMAGE_UPDATE_S = 0.01  # about, of a batch through convolutions on one core
LARGE_SIDE = 36  # pixels of the shorter side
ANNEALED = 0.2  # share of the budget after which exploration has fallen
REPLAY_BYTES = 2e9  # of observations, at most


def by_environment(
    config: Config, explicit: Collection[str], info: Any
) -> tuple[Config, list[str]]:
    """The settings for the environment of `info` (an `EnvInfo`), and in words why these.

    `explicit` are the dotted names of settings that stay as they are. Without effect where a
    preset was found, or `--defaults fixed` is asked for.
    """
    if config.environment.defaults == "fixed":
        return config, []
    given = {name.rpartition(".")[2] for name in explicit}
    now = config.by_name()
    chosen = {name: now[name] for name in given}
    kinds, reasons = _kinds(info, now["steps"], chosen)
    found: dict[str, Any] = {}
    for kind in kinds:
        preset = read_preset(BY_KIND / f"{kind}.toml")
        so_far = {name: found[name] for name in found.keys() - preset.settings.keys()}
        found = merge(found, preset.for_choices({**so_far, **chosen}))
    found.setdefault("epsilon_steps", max(1, int(ANNEALED * now["steps"])))
    found |= _fitted(found, info, kinds, now["steps"])
    left_out = given.union(_unfit(found["algorithm"], chosen))
    open_to_it = {name: value for name, value in found.items() if name not in left_out}
    # Chosen once: a later look might measure another time.
    config = config.shared_out_anew(given, {**open_to_it, **FIXED})
    check_acts(chosen, config.by_name(), known=SETTINGS)
    return config, reasons


def _fitted(
    found: Mapping[str, Any], info: Any, kinds: Collection[str], steps: int
) -> Iterator[tuple[str, Any]]:
    """What depends on the size of things."""
    if min(_sides(info)) >= LARGE_SIDE:
        # `auto` has one with a first layer of stride 1: ten times the work.
        yield "network", "nips"
        # Most of a picture is always the same, which layer normalisation makes all that is seen.
        yield "normalize_observations", not _has_codes(info)
        if REPLAYED in kinds:
            yield "layer_norm", False  # what learns at once, without a target network, needs it
    if REPLAYED in kinds:
        yield "replay_start", max(1, min(found["replay_start"], steps // 20))
        size = math.prod(info.observation_shape) * np.dtype(info.dtype).itemsize
        yield "replay_capacity", min(found["replay_capacity"], int(REPLAY_BYTES / size))
    if SCARCE in kinds and max(_sides(info)):
        # Learning is to take about the time of acting, from one update for 8 steps to one for each.
        affordable = round(found["epochs"] * info.step_s / IMAGE_UPDATE_S)
        yield "epochs", min(found["epochs"], max(1, affordable))


def _unfit(algorithm: str, chosen: Mapping[str, Any]) -> Iterator[str]:
    """Settings of ours that cannot go with what the user chose."""
    takes = traits_of(chosen.get("algorithm", algorithm)).variants
    has_target = chosen.get("target_sync_steps", 1) is not None
    if "double" not in takes or chosen.get("munchausen") or not has_target:
        yield "double"
    if not has_target:
        yield "layer_norm"
    if {"epsilon_final", "noisy"} & chosen.keys():
        yield "exploration"
    if chosen.get("input_scaling") or chosen.get("model_parallel"):
        yield "normalize_observations"


def _sides(info: Any) -> list[int]:
    """Of all images, or 0."""
    shapes = [info.observation_shape, *(part.shape for part in info.parts)]
    return [side for shape in shapes if len(shape) == 3 for side in shape[1:]] or [0]


def _has_codes(info: Any) -> bool:
    """Whether an image consists of codes, which have no mean."""
    return any(seen.codes is not None for seen in (info, *info.parts))


def _kinds(info: Any, steps: int, chosen: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Files of `by_kind`, later ones over earlier ones, and what they are for."""
    kind = "image" if max(_sides(info)) else "table" if info.counted else "vector"
    on_policy = traits_of(chosen.get("algorithm", "q-lambda")).on_policy
    unfit = chosen.get("recurrent") or chosen.get("model_parallel")
    if on_policy or unfit or chosen.get("replay") == "none":
        return ["common", AT_ONCE, kind], [KINDS[kind]]
    kinds, reasons = ["common", REPLAYED, kind], [KINDS[kind]]
    if info.rewards_rare:
        kinds.append(RARE)
        reasons.append("a ladder of exploration: random play finds no reward")
    scarce = []
    if info.step_s > SLOW_S:
        scarce.append(f"a step takes {1000 * info.step_s:.2g} ms")
    if steps <= FEW_STEPS:
        scarce.append("the budget is small")
    if scarce:
        kinds.append(SCARCE)
        reasons.append(f"much replay: {' and '.join(scarce)}")
    return kinds, reasons
