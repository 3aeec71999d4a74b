"""An agent as a file: ONNX, for any program that runs it, or an exported program of torch."""

import contextlib
import importlib.util
import json
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import gymnasium
import torch

from async_dqn.config.fields import UserError, describe_error, show
from async_dqn.deploy.policy import Policy, described
from async_dqn.deploy.trial import Decide, Seen, agreement, check, in_words
from async_dqn.play import FORMAT, METADATA, Decision, Player, State, decoded, encode
from async_dqn.runs.durable import replace_file
from async_dqn.workers.run_spec import RunSpec

ONNX, TORCH = ".onnx", ".pt2"
OBSERVATIONS = 1000  # that a file is tried on
# How far Q-values may be off, in shares of the largest, where the agent computes in...
FLOAT32, BFLOAT16 = 1e-4, 1e-2
OPSET = 20
PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def check_file(path: Path, int8: bool) -> None:
    """Raise UserError where no such file can be written there, or a package is missing."""
    if path.suffix not in (ONNX, TORCH):
        raise UserError(f"--out must end in {ONNX} or {TORCH} (got {show(str(path))})")
    if not path.absolute().parent.is_dir():
        raise UserError(f"{path.parent} is not a folder; make it, or choose another --out")
    if int8 and path.suffix != ONNX:
        raise UserError(f"--int8 is for {ONNX} files; drop it")
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing and path.suffix == ONNX:
        raise UserError(f"{ONNX} needs {missing[0]}; pip install -c constraints.txt -e '.[export]'")


def export(
    policy: Policy, run_spec: RunSpec, path: Path, int8: bool, agent: Decide, env: gymnasium.Env
) -> list[str]:
    """Write the policy of `agent`, which decides in `env`; return what it is, in lines.

    Raises UserError, and leaves no file, where it cannot be written or decides otherwise.
    """
    about = described(policy, run_spec)
    is_onnx = path.suffix == ONNX
    data = as_onnx(policy, about, int8) if is_onnx else as_torch(policy, about)
    player = Player(data) if is_onnx else TorchPlayer(data)
    seen = Seen(env, run_spec.info.masks, OBSERVATIONS)
    found = agreement(agent, player.decide, seen, policy.actions.sizes)
    if int8:
        found = found._replace(ties=0)  # who rounds as much has many
    else:
        check(found, BFLOAT16 if run_spec.architecture.in_bfloat16 else FLOAT32)
    try:
        replace_file(path, data)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None
    form = f"ONNX, opset {OPSET}" if is_onnx else f"torch.export of torch {torch.__version__}"
    taken, given = policy.names
    examples = policy.example(2)
    with torch.inference_mode():
        outputs = policy(*examples)
    return [
        f"file         {path}, {len(data) / 1000:,.0f} kB, {form}",
        f"inputs       {_spelled(taken, examples)}",
        f"outputs      {_spelled(given, outputs)}",
        f"checked      {in_words(found)}",
    ]


def _spelled(names: Sequence[str], tensors: Sequence[torch.Tensor]) -> str:
    """Such as "observation float32 [N, 4]"."""
    words = []
    for name, tensor in zip(names, tensors, strict=True):
        shape = ", ".join(["N", *map(str, tensor.shape[1:])])
        words.append(f"{name} {str(tensor.dtype).removeprefix('torch.')} [{shape}]")
    return "; ".join(words)


class TorchPlayer:
    """A file of `as_torch` at play."""

    def __init__(self, data: bytes):
        extra = {f"{METADATA}.json": ""}
        program = torch.export.load(BytesIO(data), extra_files=extra)
        self.module, self.about = program.module(), json.loads(extra[f"{METADATA}.json"])

    def decide(self, observation: Any, state: State | None, mask: Any) -> Decision:
        """As `play.Player.decide`."""
        given = encode(self.about, observation, state, mask)
        with torch.inference_mode():
            outputs = self.module(*map(torch.from_numpy, given))
        return decoded([part.numpy() for part in outputs])


def as_onnx(policy: Policy, about: Mapping[str, Any], int8: bool = False) -> bytes:
    """The file; with `int8` weights of dense layers and convolutions in bytes.

    Their inputs are quantised as they come (dynamic quantisation). Raises UserError for a network
    that has no counterpart in ONNX.
    """
    taken, given = policy.names
    with _quiet(), _refusals("ONNX"):
        names = {"input_names": taken, "output_names": given}
        model = torch.onnx.export(
            _program(policy), **names, opset_version=OPSET, dynamo=True, verbose=False
        ).model_proto
        if int8:
            model = _in_bytes(model)
    for known in list(model.metadata_props):  # where on this machine each operation came from
        model.metadata_props.remove(known)
    for node in model.graph.node:
        del node.metadata_props[:]
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "N"
    model.metadata_props.add(key=METADATA, value=_json(about))
    return model.SerializeToString()


def as_torch(policy: Policy, about: Mapping[str, Any]) -> bytes:
    """The file that `torch.export.load` reads. Raises UserError as `as_onnx`."""
    with _quiet(), _refusals("torch.export"):
        file = BytesIO()
        extra = {f"{METADATA}.json": _json(about)}
        torch.export.save(_program(policy), file, extra_files=extra)
        return file.getvalue()


def _json(about: Mapping[str, Any]) -> str:
    """Arguments of an environment may be anything; what JSON has no form for is named."""
    return json.dumps({"format": FORMAT, **about}, default=repr)


def _program(policy: Policy) -> torch.export.ExportedProgram:
    """Its operations on any number of observations."""
    examples = policy.example(2)
    rows = tuple({0: torch.export.Dim("N")} for _ in examples)
    return torch.export.export(policy, examples, dynamic_shapes=(rows,))


def _in_bytes(model: Any) -> Any:
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "int8.onnx")
        quantize_dynamic(model, path, weight_type=QuantType.QInt8)
        return onnx.load(path)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what exporters say of themselves."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


@contextlib.contextmanager
def _refusals(form: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # exporters raise what they like
        reason = describe_error(error)
        raise UserError(f"the network cannot be written as {form}: {reason}") from error
