"""Transfer: a new run begins with parameters of another one, as far as they fit."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from async_dqn.config.config import UserError
from async_dqn.parameters.flat_network import FlatNetwork
from async_dqn.parameters.moments import Moments
from async_dqn.runs import checkpoint
from async_dqn.runs.resume import played_parameters
from async_dqn.workers.run_spec import RunSpec


class Transfer(NamedTuple):
    """Where the parameters come from, those that fit by name, and what does not, in words."""

    origin: checkpoint.Checkpoint
    tensors: Mapping[str, NDArray]
    left: tuple[str, ...]

    @property
    def words(self) -> list[str]:
        """What is taken, and what begins anew."""
        taken = f"{len(self.tensors)} tensors of {self.origin.path}"
        return [taken, *(f"anew: {name}" for name in self.left)]

    def fill(self, network: FlatNetwork, inputs: Moments) -> None:
        """Write them into a network, and what was seen of inputs of the same kind into `inputs`."""
        for name, tensor in self.tensors.items():
            network.net.get_parameter(name).data.copy_(torch.from_numpy(tensor))
        seen = self.origin.tensors.get("moments", {}).get("inputs")
        if seen is not None and seen.shape[1:] == inputs.rows.shape[1:]:
            inputs.restore(seen.view(np.float64))


def transfer_of(run_spec: RunSpec) -> Transfer | None:
    """What `--init-from` comes to; None without it. Raises UserError where nothing fits, or no
    parameter before the head does and these are to be frozen."""
    path = run_spec.config.run.init_from
    if path is None:
        return None
    origin = checkpoint.load(checkpoint.resolve(path, best=True))
    there = played_parameters(origin)
    shapes = {n: tuple(p.shape) for n, p in run_spec.network().named_parameters()}
    fitting = {n: there[n] for n, shape in shapes.items() if n in there and there[n].shape == shape}
    left = tuple(
        f"{name} {list(shape)}" + (f" (there {list(there[name].shape)})" if name in there else "")
        for name, shape in shapes.items()
        if name not in fitting
    )
    if not fitting:
        raise UserError(f"no parameter of {origin.path} fits this network; drop --init-from")
    frozen = run_spec.config.optimizer.freeze == "torso"
    missing = [words for words in left if not words.startswith("head.")]
    if frozen and missing:
        raise UserError(
            f"--freeze torso would keep random parameters, as {origin.path} has no {missing[0]}; "
            "drop it"
        )
    return Transfer(origin, fitting, left)
