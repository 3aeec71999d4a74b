"""What simulated workers cost on a virtual clock, and their shared memory: see `MODEL`."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

from async_dqn.config.fields import NOT_NEGATIVE, POSITIVE, UserError, refuse

TARGET_DELAY_S = 0.001  # the evaluator sleeps 0.5 ms and more between two looks at the step count
MAX_BYTES = 100_000
# Of a push, whatever its size, to each other push beside it: 20 to 100 of 18,000 and of 680,000
# parameters were measured (benchmarks/results/lost_updates.md).
LOST_VALUES = 50.0
ABOVE_ZERO = ("step_s", "bandwidth")
ADDED = ("play_s", "play_row_s", "lost_values")
MODEL = (
    "N workers on N cores; a pull or push takes up shared memory for bytes / bandwidth seconds "
    "(at most its time alone), first come, first served; computing times vary log-normally; each "
    "push that overlaps another overwrites lost_values parameters of it; the target network is "
    "published target_delay_s after its boundary; evaluating, on cores of its own, takes play_s + "
    "n * play_row_s for a step of n environments, shared by as many processes as evaluate there"
)


@dataclass(frozen=True)
class Times:
    """Costs of one worker that has a core to itself; seconds unless said otherwise."""

    step_s: float  # one step of all its environments, choice of actions included
    gradient_s: float  # one update's loss and gradient
    pull_s: float
    push_s: float
    variation: float  # standard deviation of the computing time, as a share of its mean
    bandwidth: float  # of shared memory, bytes per second
    target_delay_s: float = TARGET_DELAY_S
    play_s: float = 0.0  # one step of the environments of an evaluation, and ...
    play_row_s: float = 0.0  # ... as much again for each of them
    lost_values: float = 0.0  # parameters of a push, to each other that overlaps; not seconds

    @classmethod
    def read(cls, path: str) -> Self:
        """Times from the simulation.json of a run. Raises UserError.

        An older one has no times of evaluations: they took none.
        """
        try:
            with open(path, "rb") as file:
                times = json.loads(file.read(MAX_BYTES))["times"]
            times = {**dict.fromkeys(ADDED, 0.0), **times}
            return cls(**{field.name: _number(times, field.name, path) for field in fields(cls)})
        except OSError as error:
            reason = error.strerror or str(error)
        except (ValueError, RecursionError):
            reason = "not valid JSON"
        except (KeyError, TypeError):
            reason = f"no table 'times' with {', '.join(field.name for field in fields(cls))}"
        raise UserError(f"cannot read {path}: {reason}; give the simulation.json of a run")


def _number(times: Mapping[str, Any], name: str, path: str) -> float:
    value, within = times[name], POSITIVE if name in ABOVE_ZERO else NOT_NEGATIVE
    if type(value) not in (int, float) or not within.holds(value):
        raise refuse(f"{path}: times.{name}", within.words, value)
    return float(value)


class VirtualClock:
    """Seconds since the first step; called like `time.monotonic`."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class MemoryBus:
    """Memory of limited bandwidth [bytes/s] that serves transfers one after another."""

    def __init__(self, bandwidth: float) -> None:
        self.bandwidth, self._free_at = bandwidth, 0.0

    def transfer(self, now: float, alone_s: float, size: int) -> float:
        """When a transfer of `size` bytes is done that begins `now` and lasts `alone_s` alone.

        Calls must come in the order of `now`.
        """
        self._free_at = max(self._free_at, now) + min(size / self.bandwidth, alone_s)
        return max(now + alone_s, self._free_at)


def spread(variation: float, normal: float) -> float:
    """A log-normal factor of mean 1 and standard deviation `variation` from a normal draw."""
    variance = math.log1p(variation**2)
    return math.exp(math.sqrt(variance) * normal - variance / 2)
