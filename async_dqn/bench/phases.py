"""`bench phases`: what the time of real workers goes into, while they train."""

from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any

from async_dqn.bench.command import Sources, in_turns, present, ratios, save, spread
from async_dqn.bench.throughput import TrainerOptions, trainer_speed
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
    results = [_measure({**given, "env": env}, options, sources) for env in options.env]
    save(options.json, "phases", results)
    return 0


def _measure(settings: dict[str, Any], options: Options, sources: Sources) -> dict[str, Any]:
    """Measure one environment, print its table, and return the figures."""
    from async_dqn.bench.phased import CPU, STEPS, phased_run  # torch: late

    how = settings, options.seconds, sources
    measures = {"without": partial(trainer_speed, *how), "with": partial(phased_run, *how)}
    figures = in_turns(options.pairs, measures)
    speeds = {name: [speed for speed, _ in each] for name, each in figures.items()}
    spent = [phases for _, phases in figures["with"]]
    if not all(phases[STEPS] for phases in spent):
        raise UserError("no step was taken within the time; give more --seconds")

    def per_step(kind: str) -> list[dict[str, float]]:
        """Microseconds of each phase per agent step: of every run, and of all together."""
        return [
            {phase: phases[phase + kind] / phases[STEPS] / 1e3 for phase in PHASES}
            for phases in (*spent, sum(spent, Counter()))
        ]

    (*runs, wall), (*cpu_runs, cpu) = per_step(""), per_step(CPU)
    all_wall, all_cpu = sum(wall.values()), sum(cpu.values())
    rows = []
    for phase, about in PHASES.items():
        each = [one[phase] for one in runs]
        cells = [f"{wall[phase]:.2f} ({min(each):.2f} to {max(each):.2f})"]
        cells += [f"{wall[phase] / all_wall:.1%}"]
        cells += [f"{cpu[phase]:.2f}", f"{cpu[phase] / all_cpu:.1%}"]
        rows.append((phase, about, *cells))
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
        "us_per_step": {phase: [one[phase] for one in runs] for phase in PHASES},
        "cpu_us_per_step": {phase: [one[phase] for one in cpu_runs] for phase in PHASES},
    }
