"""The learning pass in one process against the same split over two, as a Markdown table.

    python -m benchmarks.model_parallel                # all sizes; writes results/model_parallel.md
    python -m benchmarks.model_parallel 128x2 512x2    # these sizes: printed, not written

An update is: copy the parameters, forward, loss, backward, Adam; targets are given. Both ways run
in turn on the same numbers, CartPole's four inputs and two actions. Nothing else may run meanwhile.
"""

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from async_dqn.processes.spawn import THREAD_VARIABLES

os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))  # before torch is imported

import torch
from torch import distributed

from async_dqn.bench.command import spread
from async_dqn.config.config import Config
from async_dqn.envs import make
from async_dqn.envs.spec import EnvSpec
from async_dqn.networks import architecture
from async_dqn.parameters.block import SharedBlock
from async_dqn.parameters.flat_network import FlatNetwork
from async_dqn.parameters.layout import WORKERS_STOP
from async_dqn.processes import spawn
from async_dqn.workers.pipeline import MICROBATCHES, FirstStage, LastStage, batch_loss, split
from async_dqn.workers.run_spec import RunSpec
from benchmarks.scores import rows_of

SIZES, BATCHES = ("128x2", "512x2", "2048x2", "2048x4", "4096x4"), (64, 1024)
REPETITIONS, SECONDS = 7, 0.5  # of each way, at least one update long
LR = 1e-4


def run_spec(size: str, batch: int, split_up: bool) -> RunSpec:
    """CartPole with this network and as many rows in an update."""
    width, _, layers = size.partition("x")
    settings = {"hidden": (int(width),) * int(layers), "envs_per_worker": batch}
    settings |= {"rollout_length": 1, "mode": "sync", "workers": 2 if split_up else 1}
    config = Config.from_flat(settings | {"model_parallel": split_up})
    spec = EnvSpec("CartPole-v1", {}, (), None)
    info = make.probe(spec)
    return RunSpec(config, spec, info, architecture.choose(config, info))


def block_of(run_spec: RunSpec, network: FlatNetwork) -> SharedBlock:
    """Shared memory that starts from the network's parameters."""
    block = SharedBlock(run_spec.sections(len(network.vector)))
    block["multipliers"][:] = 1.0
    block["theta"][:] = network.vector.numpy()
    return block


def serve(run_spec: RunSpec, block: SharedBlock, rendezvous: Path) -> None:
    """The other process."""
    torch.set_num_threads(1)
    store = run_spec.store(block, 1)
    stage = LastStage(run_spec, FlatNetwork(run_spec.network()), store, rendezvous)
    while not store.leaving:
        stage.serve(LR)


def whole_update(
    run_spec: RunSpec, obs: torch.Tensor, pass_batch: torch.Tensor
) -> Callable[[], None]:
    """An update in one process."""
    network = FlatNetwork(run_spec.network())
    store = run_spec.store(block_of(run_spec, network), 0)

    def update() -> None:
        store.pull(network)
        network.gradient.zero_()
        batch_loss(network.net(obs)[0].q_values, pass_batch).backward()
        store.push(network.gradient, LR)

    return update


def milliseconds(update: Callable[[], None]) -> float:
    """Mean time of an update over about `SECONDS`."""
    count, start = 0, time.perf_counter()
    while count == 0 or time.perf_counter() - start < SECONDS:
        update()
        count += 1
    return 1e3 * (time.perf_counter() - start) / count


def row(size: str, batch: int, folder: Path) -> str:
    """One network and batch, as a row of the table."""
    torch.manual_seed(0)
    obs, pass_batch = torch.randn(batch, 4), torch.rand(batch, 3) / batch
    in_one = whole_update(run_spec(size, batch, False), obs, pass_batch)
    split_task = run_spec(size, batch, True)
    network, rendezvous = FlatNetwork(split_task.network()), folder / f"{size}-{batch}"
    block = block_of(split_task, network)
    store = split_task.store(block, 0)
    arguments = (split_task, block, rendezvous)
    other = spawn.context().Process(target=serve, args=arguments, daemon=True)
    other.start()
    stage = FirstStage(split_task, network, store, rendezvous)

    def in_two() -> None:
        store.pull(network)
        stage.gradient(obs, pass_batch)
        store.push(network.gradient, LR)

    times: dict[Callable, list[float]] = {in_one: [], in_two: []}
    for update in times:
        update()
    for repetition in range(REPETITIONS):
        for update in (in_one, in_two) if repetition % 2 == 0 else (in_two, in_one):
            times[update].append(milliseconds(update))
    store.control[WORKERS_STOP] = 1
    store.push(None, LR)
    other.join()
    distributed.destroy_process_group()
    one, two = times.values()
    speedup = [a / b for a, b in zip(one, two)]
    cells = [spread(values, ".3g") for values in (one, two, speedup)]
    sizes = [sum(p.numel() for p in end.parameters()) for end in split(network.net)]
    share = f"{100 * sizes[0] / sum(sizes):.0f} %"
    return f"| {size} | {sum(sizes):,} | {share} | {batch} | {' | '.join(cells)} |"


def main() -> None:
    """Measure the sizes named on the command line; without any, write the table."""
    torch.set_num_threads(1)
    head = (
        "# Model parallel: one update in one process and over two",
        "",
        "`python -m benchmarks.model_parallel`: an update (copy the parameters, forward, loss, "
        "backward, Adam) in one process and over two, one compute thread each, "
        f"{MICROBATCHES} microbatches over gloo. {REPETITIONS} alternating repetitions, median "
        "(least to most). In front: the share of the parameters that the best cut leaves to the "
        "first process; a pipeline wants 50 %. Above 1 in the last column two processes are "
        "faster; they cannot be above 2.",
        "| hidden | parameters | in front | batch | one process, ms | two, ms | one / two |",
    )
    with tempfile.TemporaryDirectory() as folder:

        def rows(size: str) -> str:
            return "\n".join(row(size, batch, Path(folder)) for batch in BATCHES)

        rows_of(SIZES, rows, "model_parallel.md", head)


if __name__ == "__main__":
    main()
