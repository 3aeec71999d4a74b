"""`bench phases`: what the time of real workers goes into, while they train."""

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

from async_dqn.bench.command import in_turns, present, ratios, save, spread
from async_dqn.bench.throughput import TrainerOptions, throughput
from async_dqn.config.config import UserError

# What a phase calls that is listed too counts there.
PHASES = {
    "pull": "copy of the shared parameters, and of a new target network",
    "act": "the network on the newest observations, and the choice of actions",
    "step": "the environments",
    "replay": "what is stored, drawn and weighed",
    "forward": "the network on the rollout, and the loss",
    "target": "bootstrap values and returns",
    "backward": "backward pass, and a cleared gradient before",
    "push": "norm, clipping, and the update of the shared parameters",
    "wait": "for budget, or for the other workers of a round",
    "rest": "the rollout's arrays, counters, reports",
}
HEADER = (
    *("phase", "what it is", "us per agent step, mean (min to max)"),
    *("share", "CPU us per agent step", "share"),
)


class Options(TrainerOptions):
    """Those of `bench phases`."""

    def check(self) -> None:
        super().check()
        for env in self.env:
            parallel = self.config(env).parallel
            if parallel.mode == "serial" or parallel.model_parallel:
                raise UserError("phases are those of workers that learn; add --set mode=async")


def run(argv: Sequence[str]) -> int:
    """Show what the time of the workers of a real run goes into, evaluation off: microseconds of a
    worker per agent step, and percent. Its workers read clocks where a phase begins and ends, which
    costs some of their speed: the first line says how much. Workers of ordinary training do not.
    CPU time is what remains where other programs had the core meanwhile."""
    options = Options.parse("phases", run.__doc__, argv)
    given, sources = options.given()
    results = []
    for env in options.env:
        results.append(_measure({**given, "env": env}, options, sources))
    save(options.json, "phases", results)
    return 0


def _measure(settings: dict[str, Any], options: Options, sources) -> dict[str, Any]:
    """Measure one environment, print its table, and return the figures."""
    from async_dqn.bench.phased import CPU, STEPS, phased_run  # torch: late

    how = settings, options.seconds, sources
    plain = partial(throughput, *how)
    figures = in_turns(options.pairs, {"without": plain, "with": partial(phased_run, *how)})
    speeds = {"without": figures["without"], "with": [speed for speed, _ in figures["with"]]}
    spent = [phases for _, phases in figures["with"]]
    if not all(phases[STEPS] for phases in spent):
        raise UserError("no step was taken within the time; give more --seconds")
    total = sum(spent, Counter())

    def per_step(phases: Counter[str], names: Iterable[str]) -> float:
        return sum(phases[name] for name in names) / phases[STEPS] / 1e3

    wall, cpu = (
        {phase: [per_step(phases, [phase + kind]) for phases in spent] for phase in PHASES}
        for kind in ("", CPU)
    )
    all_wall, all_cpu = (per_step(total, [p + kind for p in PHASES]) for kind in ("", CPU))
    rows = []
    for phase, about in PHASES.items():
        us, cpu_us = (per_step(total, [phase + kind]) for kind in ("", CPU))
        cell = f"{us:.2f} ({min(wall[phase]):.2f} to {max(wall[phase]):.2f})"
        shares = f"{us / all_wall:.1%}", f"{cpu_us / all_cpu:.1%}"
        rows.append((phase, about, cell, shares[0], f"{cpu_us:.2f}", shares[1]))
    rows.append(("all", "", f"{all_wall:.2f}", "100.0%", f"{all_cpu:.2f}", "100.0%"))
    kept = ratios(speeds["with"], speeds["without"])
    present(
        f"{settings['env']}: time of a worker; {options.pairs} runs of {options.seconds:g} s, "
        f"{spread(speeds['with'], ',.0f')} steps/s of all workers, which is "
        f"{spread(kept, '.2f')} of the speed without clocks",
        HEADER,
        rows,
    )
    return {
        "env": settings["env"],
        "steps_per_second": speeds,
        "steps": [phases[STEPS] for phases in spent],
        "us_per_step": wall,
        "cpu_us_per_step": cpu,
    }
