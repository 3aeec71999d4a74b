"""When gradients stay not finite: back to the last good parameters, once.

What is not finite never reaches shared memory, so the parameters themselves are finite; but they,
or the target network's, may be where nothing finite comes from any more.
"""

import torch

from async_dqn.parameters.layout import FAILING
from async_dqn.parameters.store import ParameterStore
from async_dqn.runs.run import Run

IN_A_ROW = 100


def has_diverged(store: ParameterStore) -> bool:
    """Whether some worker has had no finite gradient for long."""
    return bool((store.slots[:, FAILING] >= IN_A_ROW).any())


def roll_back(run: Run, allowed: bool = True) -> None:
    """Back to the snapshot (else the target network), with half the step.

    Only while no child is alive. Raises FloatingPointError the second time, or if not `allowed`.
    """
    store, step = run.store, run.store.steps
    if run.rolled_back or not allowed:
        raise FloatingPointError(
            f"training diverged at step {step:,}: gradients are not finite; last good checkpoint: "
            f"{run.last_checkpoint}; lower --lr or --reward-scale"
        )
    run.rolled_back = True
    vector, since = _last_good(run)
    store.theta.copy_(vector)
    store.begin_anew(step)
    run.block["multipliers"][0] *= 0.5
    store.slots[:, FAILING] = 0
    run.recorder.warn(
        f"gradients were not finite {IN_A_ROW} times in a row by step {step:,}; back to the "
        f"parameters of step {since:,} with half the learning rate"
    )
    run.checkpoint()


def _last_good(run: Run) -> tuple[torch.Tensor, int]:
    """The parameters to go back to, and their step."""
    store, vector = run.store, torch.zeros_like(run.store.theta)
    read = store.snapshot.read(vector)
    # Without a target network what stands in its place is from the start of the whole run.
    if read is None and run.run_spec.config.optimizer.target_sync_steps is None:
        return run.begun_with
    _, step = read or store.target.read(vector)  # (sequence, step)
    return vector, step
