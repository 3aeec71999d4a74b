"""Measurements from the command line: `launch.py bench NAME`, one module for each name.

Figures are medians over repetitions in turn, with their spread: machines are noisy, and the ratio
of two measurements that followed each other holds when the machine's speed drifts.
"""

import importlib
from collections.abc import Sequence

from async_dqn.config.fields import UserError, did_you_mean, either, show

BENCHES = {
    "env": "environments alone, with random actions: no trainer on these cores can be faster",
    "throughput": "the trainer's steps per second, and their share of what `env` measures",
    "phases": "what the time of a worker goes into: act, step, target, backward, pull, push, ...",
    "scaling": "steps per second and time to a score, by number of workers",
    "update": "pull and push of the shared parameters, against a plain copy of as many bytes",
    "startup": "seconds, CPU time and memory to the first updates, by number of workers",
    "peers": "seconds to a score of other methods and of Stable-Baselines3, against ours",
}


def run(argv: Sequence[str]) -> int:
    """Run the benchmark that `argv` names, with the rest as its options; its exit code.

    Raises UserError for an unknown name and for what the benchmark refuses.
    """
    if list(argv[:1]) in (["-h"], ["--help"]):
        print(_help(), flush=True)
        return 0
    if not argv:
        raise UserError(f"bench needs the name of a benchmark; choose {either(BENCHES)}")
    name, *rest = argv
    if name not in BENCHES:
        hint = did_you_mean(name, BENCHES)
        choose = f"{hint} Choose" if hint else "; choose"
        raise UserError(f"unknown benchmark {show(name)}{choose} {either(BENCHES)}")
    return importlib.import_module(f"{__name__}.{name}").run(rest)


def _help() -> str:
    lines = [f"  {name:12}{about}" for name, about in BENCHES.items()]
    usage = "usage: async-dqn bench NAME [options]"
    return "\n".join([usage, "", *lines, "", "bench NAME --help lists its options."])
