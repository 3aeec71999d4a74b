"""The settings of what the agent acts in: which environment, and what is made of its spaces."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from async_dqn.config.fields import BINS, CODES, COUNT_OR_NONE, ON_OFF, SettingsSection, setting


@dataclass(frozen=True)
class EnvironmentConfig(SettingsSection):
    """What the agent acts in."""

    env: str = setting("CartPole-v1", "gymnasium id; ALE/... and MinAtar/... need their extra")
    env_arg: dict[str, Any] = setting(  # noqa: RUF009 (a field, made by dataclasses.field)
        dict, "keyword argument for the environment; may be repeated"
    )
    import_modules: tuple[str, ...] = setting(
        (), "module that registers environments, loaded only when named here; may be repeated"
    )
    wrap: tuple[str, ...] = setting(
        (),
        "wrapper of the environment, 'module:Class key=value ...'; may be repeated, the first is "
        "innermost; modules but gymnasium.wrappers need --import",
    )
    eval_wrap: tuple[str, ...] = setting(
        (),
        "wrapper in evaluations in place of --wrap; may be repeated; none: no wrapper",
        default_words="as --wrap",
    )
    max_episode_steps: int | None = setting(
        None,
        "longest episode",
        unit="steps",
        within=COUNT_OR_NONE,
        default_words="the id's own limit, else 27000 for Atari, 10000",
    )
    defaults: str = setting(
        "by-environment",
        "settings that neither you nor a preset gives",
        choices={
            "by-environment": "by the kind of its spaces and the time of a step",
            "fixed": "as listed here",
        },
    )
    action_bins: tuple[int, ...] | int = setting(
        5,
        "values per dimension of continuous actions, one number for all or a list of theirs",
        unit="bins",
        within=BINS,
    )
    env_backend: str = setting(
        "gymnasium",
        "what the workers step",
        choices={
            "gymnasium": "the environment itself",
            "envpool": "EnvPool's version in C++, where it has one; evaluations keep gymnasium's",
        },
    )
    image_size: int | None = setting(
        96,
        "longest side of images, but Atari's: larger ones are shrunk by a whole factor, "
        "none: not at all",
        unit="pixels",
        within=COUNT_OR_NONE,
    )
    image_codes: str = setting(
        "auto",
        "how many codes the bytes of images are, for a one-hot of each; auto: small images whose "
        "bytes stay below 32, none: they are colours",
        within=CODES,
    )
    log_info: tuple[str, ...] = setting(
        (),
        "key of a number in `info`, or in its dict 'episode_metrics', whose mean is logged as "
        "info/KEY; may be repeated",
    )
    action_masks: str = setting(
        "auto",
        "which actions are legal",
        choices={
            "auto": "as info['action_mask'], a Dict's 'action_mask' or action_masks() says, if any",
            "none": "all",
        },
    )
    clip_rewards: bool = setting(True, "Atari: learn from the sign of rewards", choices=ON_OFF)
    life_loss_ends: bool = setting(True, "Atari: a lost life ends the return", choices=ON_OFF)

    @property
    def protocol(self) -> str:
        """See `protocol`."""
        return protocol(self.env, self.env_arg, self.life_loss_ends)


def protocol(env: str, env_arg: Mapping[str, Any], life_loss_ends: bool) -> str:
    """In words by which rules scores of an Atari game come about; "" for other environments.

    Scores of different rules do not compare (Machado et al. 2018, who propose sticky actions of
    0.25, all 18 actions, and lives that are not seen).
    """
    if not env.startswith("ALE/"):
        return ""
    sticky = env_arg.get("repeat_action_probability", 0.25)  # that of the ids ALE/...-v5
    words = [f"sticky actions {sticky:g}" if sticky else "no sticky actions"]
    words.append("all 18 actions" if env_arg.get("full_action_space") else "the game's own actions")
    words.append("a lost life ends returns" if life_loss_ends else "lives not seen")
    for name in ("frameskip", "mode", "difficulty"):
        if name in env_arg:
            words.append(f"{name} {env_arg[name]}")
    return ", ".join(words)
