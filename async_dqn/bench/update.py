"""`bench update`: what it costs to take the shared parameters over, and to update them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from async_dqn.bench.command import TimedOptions, in_turns, present, ratios, save, spread
from async_dqn.config.config import SETTINGS
from async_dqn.config.fields import POSITIVE, Range, setting
from async_dqn.envs import make
from async_dqn.envs.spec import EnvSpec
from async_dqn.networks import architecture

SIZES = Range("a list of whole numbers within [1, 10^9]", lambda n: 1 <= n <= 10**9)
HEADER = (
    *("parameters", "optimizer", "pull, us", "GB/s", "push, us", "GB/s"),
    *("copy, us", "GB/s", "(pull + push) / copy, pair by pair"),
)


@dataclass(frozen=True)
class Options(TimedOptions):
    """Those of `bench update`."""

    env: tuple[str, ...] = setting((), "also measure as many as its network has; may be repeated")
    parameters: tuple[int, ...] = setting(
        (20_000, 1_700_000), "numbers of parameters", within=SIZES
    )
    seconds: float = setting(1.0, "length of a repetition", unit="seconds", within=POSITIVE)


def run(argv: Sequence[str]) -> int:
    """Measure pull and push of one worker that has the machine to itself, one thread, for every
    optimizer, against one torch copy of as many bytes as both together must move: a pull reads the
    shared parameters and writes the worker's; a push reads the gradient, and reads and writes the
    parameters and all state of the optimizer. What a write reads first is not counted."""
    options = Options.parse("update", run.__doc__, argv)
    from async_dqn.bench.transfer import Transfer  # torch: late

    rows, results = [], []
    for size in [*options.parameters, *map(partial(_network_size, options), options.env)]:
        transfers = {name: Transfer(size, name) for name in SETTINGS["optimizer"].choices}
        measures = {
            name: partial(transfer.seconds, options.seconds) for name, transfer in transfers.items()
        }
        for name, turns in in_turns(options.pairs, measures).items():
            moved = transfers[name].bytes
            seconds = {what: [turn[what] for turn in turns] for what in turns[0]}
            rows.append((f"{size:,}", name, *_cells(seconds, moved)))
            sizes = {"pull_bytes": moved["pull"], "push_bytes": moved["push"]}
            results.append({"optimizer": name, "parameters": size, **sizes, "seconds": seconds})
    present(
        f"One worker, one thread, CPU time; {options.pairs} repetitions of {options.seconds:g} s; "
        "median (min to max)",
        HEADER,
        rows,
    )
    save(options.json, "update", results)
    return 0


def _network_size(options: Options, env: str) -> int:
    """How many parameters the network of `env` has."""
    from async_dqn.networks.network import QNetwork

    config = options.config(env)
    info = make.probe(EnvSpec.of(config.environment))
    network = QNetwork(architecture.choose(config, info))
    return sum(parameter.numel() for parameter in network.parameters())


def _cells(seconds: Mapping[str, Sequence[float]], moved: Mapping[str, int]) -> list[str]:
    """Microseconds and GB/s of pull, push and copy; the ratio."""
    cells = []
    for what, spent in seconds.items():
        cells.append(spread([1e6 * each for each in spent], ",.1f"))
        cells.append(spread([moved[what] / each / 1e9 for each in spent], ".1f"))
    both = [pull + push for pull, push in zip(seconds["pull"], seconds["push"], strict=True)]
    return [*cells, spread(ratios(both, seconds["copy"]), ".2f")]
