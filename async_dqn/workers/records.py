"""What processes report to the trainer: sums over updates, and the scores of a snapshot."""

from dataclasses import dataclass


class Statistics:
    """Sums over updates, added up by the worker and merged by the trainer.

    Those dropped as too stale are among them: their staleness is what shows why.
    """

    def __init__(self):
        self.updates, self.loss, self.grad_norm, self.q_mean = 0, 0.0, 0.0, 0.0
        self.staleness, self.staleness_max = 0, 0

    def add(self, loss: float, grad_norm: float, q_mean: float, staleness: int) -> None:
        """Count one update."""
        self.updates += 1
        self.loss += loss
        self.grad_norm += grad_norm
        self.q_mean += q_mean
        self.staleness += staleness
        self.staleness_max = max(self.staleness_max, staleness)

    def merge(self, sums: dict[str, float]) -> None:
        """Add the sums of another."""
        self.staleness_max = max(self.staleness_max, sums["staleness_max"])
        for name in ("updates", "loss", "grad_norm", "q_mean", "staleness"):
            setattr(self, name, getattr(self, name) + sums[name])

    def means(self) -> dict[str, float]:
        """Means per update by TensorBoard tag; empty before the first update."""
        if not self.updates:
            return {}
        return {
            "train/loss": self.loss / self.updates,
            "train/grad_norm": self.grad_norm / self.updates,
            "train/q_mean": self.q_mean / self.updates,
            "async/staleness_mean": self.staleness / self.updates,
            "async/staleness_max": self.staleness_max,
        }


@dataclass(frozen=True)
class Evaluation:
    """Scores of one snapshot. `confirmed`: over `--eval-episodes` episodes on the final seeds.

    `fresh`: over as many that decided nothing.
    """

    step: int
    sequence: int
    episodes: int
    mean: float
    std: float
    min: float
    max: float
    mean_length: float
    confirmed: bool
    final: bool = False
    fresh: bool = False
