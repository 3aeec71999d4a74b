"""Averaged-DQN (Anschel et al. 2017): targets from the mean Q-values of the last K networks.

python launch.py --import averaged_dqn --target averaged_dqn:LastCopies --target-arg networks=3
"""

from dataclasses import dataclass

import torch

from async_dqn.config.fields import FROM_TWO, setting


@dataclass(frozen=True)
class LastCopies:
    networks: int = setting(5, "copies that are kept", within=FROM_TWO)

    def following(self, kept, theta, intervals):
        """The networks [K, P] after `kept` [K, P], from the parameters `theta` [P]."""
        return torch.cat([theta[None], kept[:-1]])
