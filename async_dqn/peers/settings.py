"""Published settings of DQN for Stable-Baselines3, and which of them an environment gets.

CartPole, MountainCar, LunarLander, Acrobot and Atari: RL Baselines3 Zoo, hyperparams/dqn.yml.
MinAtar: Young & Tian 2019 with their examples/dqn.py; what is left of SB3 there: gradients are
clipped to norm 10, and epsilon falls from step 0 on, not from the first update.
"""

from dataclasses import dataclass
from typing import Any

from async_dqn.config.config import UserError
from async_dqn.envs.spec import EnvInfo, EnvSpec
from async_dqn.networks.architecture import MAX_ACTIONS

RL_ZOO, MINATAR, DEFAULTS = "rl-zoo dqn.yml", "Young & Tian 2019", "SB3's defaults"


@dataclass(frozen=True)
class PeerSettings:
    """Keywords of `stable_baselines3.DQN`, and what goes with them.

    Epsilon falls over `exploration_steps`, which are those of the published budget whatever
    `--steps` is; None: over a tenth of `--steps`, SB3's default. `threaded` gives it
    `--workers` compute threads: only for Atari's network. The small ones compute with one: an
    update of 256x256 units took 2 ms with one and 20 ms with two (on two cores with other load).
    """

    source: str
    dqn: dict[str, Any]
    exploration_steps: int | None
    policy: str = "MlpPolicy"
    threaded: bool = False

    def exploration_fraction(self, steps: int) -> float:
        """SB3's keyword: the part of a budget of `steps` over which epsilon falls (can be > 1)."""
        return 0.1 if self.exploration_steps is None else self.exploration_steps / steps


# Steps between trainings, and then so many updates (-1: as many), are `train_freq` and the next.
COLUMNS = (
    *("learning_rate", "batch_size", "buffer_size", "learning_starts", "target_update_interval"),
    *("train_freq", "gradient_steps", "exploration_final_eps"),
)


def _dqn(*row: float, gamma: float = 0.99, **policy: Any) -> dict[str, Any]:
    return {**dict(zip(COLUMNS, row, strict=True)), "gamma": gamma, "policy_kwargs": policy}


_WIDE = {"net_arch": [256, 256]}
_MINATAR = {
    "net_arch": [],  # the extractor is all but the last layer
    "features_extractor_class": "MinAtarNetwork",
    "optimizer_class": "RMSprop",
    "optimizer_kwargs": {"alpha": 0.95, "eps": 0.01, "momentum": 0.95, "centered": True},
}
_SWING = PeerSettings(RL_ZOO, _dqn(6.3e-4, 128, 50_000, 0, 250, 4, -1, 0.1, **_WIDE), 12_000)
BY_ID = {
    "CartPole-v1": PeerSettings(
        RL_ZOO, _dqn(2.3e-3, 64, 100_000, 1000, 10, 256, 128, 0.04, **_WIDE), 8_000
    ),
    "MountainCar-v0": PeerSettings(
        RL_ZOO, _dqn(4e-3, 128, 10_000, 1000, 600, 16, 8, 0.07, gamma=0.98, **_WIDE), 24_000
    ),
    "LunarLander-v3": _SWING,
    "Acrobot-v1": _SWING,
}
FOR_ATARI = PeerSettings(
    RL_ZOO, _dqn(1e-4, 32, 100_000, 100_000, 1000, 4, 1, 0.01), 1_000_000, "CnnPolicy", True
)
FOR_MINATAR = PeerSettings(
    MINATAR, _dqn(2.5e-4, 32, 100_000, 5_000, 1000, 1, 1, 0.1, **_MINATAR), 100_000, "CnnPolicy"
)
FOR_ANY = PeerSettings(
    DEFAULTS, _dqn(1e-4, 32, 1_000_000, 100, 10_000, 4, 1, 0.05, net_arch=[64, 64]), None
)


def choose(spec: EnvSpec, info: EnvInfo) -> PeerSettings:
    """The published settings for an environment, else SB3's defaults.

    Raises UserError for images that are neither Atari's nor MinAtar's, and for more combinations
    of action components than its network has outputs for.
    """
    if info.actions is not None and info.num_actions > MAX_ACTIONS:
        raise UserError(
            f"sb3-dqn has an output for each combination of actions, and {spec.name} has "
            f"{info.num_actions} of them, more than {MAX_ACTIONS}; lower --action-bins or choose "
            "an environment with fewer"
        )
    if spec.is_atari:
        return FOR_ATARI
    if spec.id is not None and spec.id.startswith("MinAtar/"):
        return FOR_MINATAR
    if spec.id in BY_ID:
        return BY_ID[spec.id]
    if info.kind == "image" or any(part.kind == "image" for part in info.parts):
        raise UserError(
            f"sb3-dqn has no settings for the images of {spec.name}; choose an environment with "
            "vectors, of Atari or of MinAtar"
        )
    return FOR_ANY
