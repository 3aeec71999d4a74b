"""The layout of the shared block: its sections, and what the words of its slots mean."""

from torch import nn

from async_dqn.parameters.block import BlockSection

# Words of a slot, one int64 each; a slot is written by its child only.
STEPS, UPDATES, EPISODES, SKIPPED, ENV_ERRORS, CPU_NS, HEARTBEAT_NS, PHASE = range(8)
INCARNATION, PID = 8, 9
FAILING = 10  # gradients in a row that were not finite
LAST_PROGRESS_STEP = 11  # evaluator's, players': global step of the last work that was finished
PLAYING = 12  # the evaluator's: sequence number of the snapshot that is being scored, or 0
STARTUP_NS = 13  # evaluator's, players': CPU time of their starts
FINISHED = 14  # episodes of the final evaluation that are, written by who evaluates
SLOT_WORDS = 16  # two cache lines
# Phase codes: what a child was doing when it died or hung.
PHASES = ("starting", "env.step", "learning", "waiting", "evaluating")
STARTING, ENV_STEP, LEARNING, WAITING, EVALUATING = range(len(PHASES))

# Control words, written by the trainer; the last one, the step of the last reset of parameters, by
# who has the upkeep.
WORKERS_STOP, EVALUATOR_ORDER, ACKNOWLEDGED, SHARED_OUT, RESET_STEP = range(5)
# The evaluator's orders: evaluations as they are due, the last one, one on fresh episodes, none.
RUN, FINISH, AFRESH, QUIT = range(4)

SEATS = 20  # episodes that one player plays at once, at most


def sections(
    workers: int,
    size: int,
    optimizer_rows: int,
    shared: bool = True,
    players: int = 0,
    targets: int = 1,
    moments: tuple[int, int] = (0, 0),
    averaged: bool = False,
) -> tuple[BlockSection, ...]:
    """The table of the block for these workers, `size` parameters (padded) and most players.

    `optimizer_rows` state vectors are there once if `shared`, else once for every worker; so many
    vectors make up the target network; `moments` are the inputs that have a running mean and
    variance, and whether rewards have; `averaged` says whether there is an average of theta.
    """
    owners = 1 if shared else workers
    return (
        BlockSection("control", "int64", (8,)),
        BlockSection("multipliers", "float64", (1,)),  # of the learning rate
        BlockSection("lease_limits", "int64", (workers,)),  # steps of each worker's slot
        # one row per worker, one for the evaluator, one per player, and one with what earlier
        # sessions of the run did
        BlockSection("slots", "int64", (workers + 2 + players, SLOT_WORDS)),
        BlockSection("input_moments", "float64", (workers + 1, 3, moments[0])),  # the last row as
        BlockSection("return_moments", "float64", (workers + 1, 3, moments[1])),  # that of `slots`
        BlockSection("theta", "float32", (size,)),
        BlockSection("optimizer", "float32", (owners, optimizer_rows, size)),
        *_double_buffer("target", targets * size),
        *_double_buffer("average", size if averaged else 0),
        *_double_buffer("snapshot", size),
        BlockSection("seats", "int64", (players, SEATS)),  # written by the evaluator
        BlockSection("results", "int64", (players, SEATS, 4)),  # a row by its player
    )


def _double_buffer(name: str, size: int) -> tuple[BlockSection, ...]:
    return (
        BlockSection(name, "float32", (2, size)),
        BlockSection(f"{name}_stamps", "int64", (2, 2)),
        BlockSection(f"{name}_sequence", "int64", (1,)),
    )


def padded_size(net: nn.Module) -> int:
    """Number of parameters, rounded up to whole cache lines."""
    return -(-sum(p.numel() for p in net.parameters()) // 16) * 16
