"""How much of an update is lost where pushes of two workers overlap, as a Markdown table.

    python -m benchmarks.lost_updates

Two processes step the shared Adam on the same vector, with such settings that every update takes
exactly 1 from every element: what is missing at the end was lost. Each waits between two pushes for
as long as the row says on average, drawn from an exponential distribution.
"""

import multiprocessing
import time

import numpy as np
import torch

from async_dqn.parameters.block import Section, SharedBlock
from async_dqn.parameters.optimizers import SharedAdam
from benchmarks.scores import RESULTS, machine

SIZES = {"CartPole": 17_936, "Pong, nips": 680_000 // 16 * 16}  # parameters
PAUSES_US = (0, 50, 500)
SECONDS = 4.0
READY, PUSHING, PUSHES, OVERLAPS, PUSH_NS = range(5)  # words of a process
HEADER = (
    *("parameters", "pause, us", "a push, us", "pushes that overlapped"),
    *("lost of each of these", "parameters"),
)


def push_all(block: SharedBlock, index: int, pause_s: float) -> None:
    """Push for SECONDS, beside the other process."""
    torch.set_num_threads(1)
    theta, mean, square = torch.from_numpy(block["vectors"])
    own, other = block["words"][index], block["words"][1 - index]
    optimizer, gradient = SharedAdam(beta1=0.0, beta2=0.0, eps=0.0), torch.ones_like(theta)
    generator = np.random.default_rng(index)
    own[READY] = 1
    while not other[READY]:
        time.sleep(0)
    end = time.perf_counter() + SECONDS
    while (now := time.perf_counter()) < end:
        begin = now + pause_s * generator.exponential()
        while time.perf_counter() < begin:
            pass
        own[PUSHING], overlaps, begun = 1, other[PUSHING], time.perf_counter_ns()
        optimizer.step(theta, gradient, [mean, square], 1.0, 1000)
        own[PUSH_NS] += time.perf_counter_ns() - begun
        own[OVERLAPS] += bool(overlaps or other[PUSHING])
        own[PUSHING] = 0
        own[PUSHES] += 1


def row(name: str, size: int, pause_us: float) -> str:
    """Both processes once, as a row of the table."""
    block = SharedBlock(
        (Section("vectors", "float32", (3, size)), Section("words", "int64", (2, 8)))
    )
    context = multiprocessing.get_context("fork")  # before torch has been used
    processes = [
        context.Process(target=push_all, args=(block, index, pause_us / 1e6)) for index in (0, 1)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    words = block["words"]
    pushes, overlaps = int(words[:, PUSHES].sum()), int(words[:, OVERLAPS].sum())
    lost = 1 + float(block["vectors"][0].mean(dtype=np.float64)) / pushes
    cells = (
        f"{size:,} ({name})",
        f"{pause_us}",
        f"{words[:, PUSH_NS].sum() / pushes / 1e3:.0f}",
        f"{overlaps / pushes:.1%}",
        f"{lost * pushes / max(1, overlaps):.3%}",
        f"{lost * pushes / max(1, overlaps) * size:.0f}",
    )
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Measure, print and write the table."""
    rows = [row(name, size, pause) for name, size in SIZES.items() for pause in PAUSES_US]
    head = [
        "# Lost updates",
        "",
        "`python -m benchmarks.lost_updates`: two processes on two cores push without locks into "
        "the same parameters; lost is what one overwrote of the other's, as a share of the pushes "
        "that overlapped, mean over the elements.",
        "",
        machine(),
        "",
        f"| {' | '.join(HEADER)} |",
        "|---" * len(HEADER) + "|",
    ]
    text = "\n".join([*head, *rows, ""])
    print(text)
    (RESULTS / "lost_updates.md").write_text(text)


if __name__ == "__main__":
    main()
