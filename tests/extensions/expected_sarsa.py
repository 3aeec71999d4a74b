"""Expected Sarsa (van Seijen et al. 2009): Q(s', a) in the mean over the exploring policy.

python launch.py --import expected_sarsa --algorithm expected_sarsa:ExpectedSarsa
"""

from dataclasses import dataclass

from async_dqn import QLearning, Traits
from async_dqn.config.fields import UNIT_INTERVAL, setting


@dataclass(frozen=True)
class ExpectedSarsa(QLearning):
    lam: float = setting(0.0, "mix of the returns, 0 = one-step", within=UNIT_INTERVAL)

    traits = Traits(
        on_policy=True, variants=frozenset({"boltzmann", "dueling"}), like="one-step-sarsa"
    )

    def asks_acting(self, rollout):
        return True  # the policy is that of the acting network

    def bootstrap(self, q_values, acting, rollout, rows):
        epsilon = rollout.epsilon[rows % rollout.rewards.shape[1]]
        return (self.policy.probabilities(acting, epsilon) * q_values).sum(axis=1)
