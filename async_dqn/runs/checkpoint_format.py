"""The files of one checkpoint folder: encoding, and reading without trust.

One safetensors file per group of tensors, state.json, and manifest.json with the size and the
SHA-256 of each. Loading runs no code and believes nothing: a checkpoint may come from a stranger
or from a failing disk. Every byte is verified against the manifest before it is parsed.
"""

import hashlib
import json
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.numpy

from async_dqn.config.config import UserError
from async_dqn.runs.durable import SAFELY

FORMAT = 1
DTYPES = frozenset({"float32", "int64", "uint8"})  # networks and optimisers; replay shards
TOTALS = ("steps", "updates", "episodes", "skipped_updates", "env_errors", "cpu_ns")
COUNTERS = ("step", *TOTALS, "target_step", "target_refreshes", "restarts", "next_incarnation")
MAX_FILES = 16
MAX_MANIFEST_BYTES = 2**20
MAX_HEADER_BYTES = 2**20
_FILE = re.compile(r"[a-z][a-z0-9_]*\.(safetensors|json)")
_TENSOR = re.compile(r"[A-Za-z0-9_.:/-]{1,200}")

Tensors = Mapping[str, Mapping[str, np.ndarray]]


class Checkpoint(NamedTuple):
    """One loaded checkpoint; `tensors` by file stem ("model", "target", ...), then by name."""

    path: Path
    step: int
    state: dict[str, Any]
    tensors: dict[str, dict[str, np.ndarray]]


def of_worker(tensors: Mapping[str, np.ndarray], worker: int) -> dict[str, np.ndarray]:
    """Those whose names begin with `worker_<number>.`, by the rest of their names."""
    prefix = f"worker_{worker}."
    return {n.removeprefix(prefix): array for n, array in tensors.items() if n.startswith(prefix)}


def target_stem(number: int) -> str:
    """The file of one of the networks that make up the target."""
    return f"target_{number}" if number else "target"


class Damage(UserError):
    """Which file of a checkpoint is damaged, and how."""


def encode(step: int, files: Tensors, state: Mapping[str, Any]) -> dict[str, bytes]:
    """Bytes by file name, in the order to write them: manifest.json comes last.

    Raises ValueError for values that are not finite, TypeError for what is not plain data.
    """
    encoded = {f"{stem}.safetensors": _encode_tensors(stem, files[stem]) for stem in files}
    encoded["state.json"] = _to_json(dict(**state) | {"format": FORMAT, "step": step})
    entries = {
        name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in encoded.items()
    }
    encoded["manifest.json"] = _to_json({"files": entries})
    return encoded


def _encode_tensors(stem: str, tensors: Mapping[str, np.ndarray]) -> bytes:
    if not _FILE.fullmatch(f"{stem}.safetensors"):
        raise ValueError(f"no file name for tensors: {stem!r}")
    # safetensors writes memory as it lies: only in C order is that the array.
    arrays = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    for name, array in arrays.items():
        if not _TENSOR.fullmatch(name) or array.dtype.name not in DTYPES:
            raise TypeError(f"cannot store tensor {name!r} of {array.dtype}")
        if not _is_finite(array):
            raise ValueError(f"non-finite values in {name}")
    return safetensors.numpy.save(arrays)


def _is_finite(array: np.ndarray) -> bool:
    return array.dtype.kind != "f" or bool(np.isfinite(array).all())


def _to_json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, indent=1, allow_nan=False, default=np.generic.item).encode()


def decode(path: Path) -> Checkpoint:
    """Read and verify the checkpoint folder `path`.

    Raises Damage (broken or incomplete), another UserError (whole, but not to be loaded).
    """
    files = read_verified(path)
    state = _decode_state(files.pop("state.json"))
    tensors = {
        name.removesuffix(".safetensors"): _decode_tensors(name, data)
        for name, data in files.items()
        if name.endswith(".safetensors")
    }
    return Checkpoint(path, state["step"], state, tensors)


def read_verified(path: Path) -> dict[str, bytes]:
    """Contents of the files in the manifest; raises Damage unless size and SHA-256 agree."""
    manifest = _from_json("manifest.json", read_file(path, "manifest.json", MAX_MANIFEST_BYTES))
    entries = manifest.get("files")
    if set(manifest) != {"files"} or not isinstance(entries, dict) or "state.json" not in entries:
        raise Damage("manifest.json: not a manifest")
    if len(entries) > MAX_FILES:
        raise Damage(f"manifest.json: {len(entries)} entries, at most {MAX_FILES} expected")
    return {name: _read_entry(path, name, entry) for name, entry in entries.items()}


def _read_entry(path: Path, name: str, entry: Any) -> bytes:
    if "/" in name or "\\" in name or ".." in name:
        raise UserError(f"manifest entry {name[:80]!r} leaves the checkpoint; do not trust it")
    if not _FILE.fullmatch(name):
        raise Damage(f"manifest.json: unknown file {name[:80]!r}")
    size = entry.get("bytes") if isinstance(entry, dict) else None
    if type(size) is not int or size < 0 or set(entry) != {"bytes", "sha256"}:
        raise Damage("manifest.json: not a manifest")
    data = read_file(path, name, size)
    if len(data) != size:
        raise Damage(f"{name}: {_size_of(len(data), size)}")
    if hashlib.sha256(data).hexdigest() != entry["sha256"]:
        raise Damage(f"{name}: checksum differs")
    return data


def read_file(folder: Path, name: str, most: int) -> bytes:
    """The first `most` bytes of a plain file, never through a link; raises Damage."""
    try:
        descriptor = os.open(folder / name, os.O_RDONLY | SAFELY)
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise Damage(f"{name}: not a plain file")
            if status.st_size > most:
                raise Damage(f"{name}: {_size_of(status.st_size, most)}")
            return file.read()
    except OSError as error:
        raise Damage(f"{name}: {error.strerror}") from None


def _size_of(found: int, expected: int) -> str:
    """Such as "6.1 of 6.8 MB"; exact where rounding would hide the difference."""
    for unit, size in (("MB", 10**6), ("kB", 10**3)):
        have, want = f"{found / size:.1f}", f"{expected / size:.1f}"
        if expected >= size and have != want:
            return f"{have} of {want} {unit}"
    return f"{found} of {expected} bytes"


def _from_json(name: str, data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data.decode())
        json.dumps(value, allow_nan=False)  # raises ValueError for NaN and infinity
    except (ValueError, RecursionError):
        raise Damage(f"{name}: not JSON") from None
    if not isinstance(value, dict):
        raise Damage(f"{name}: not a JSON object")
    return value


def _decode_state(data: bytes) -> dict[str, Any]:
    state = _from_json("state.json", data)
    version = state.get("format")
    if type(version) is not int or version < 1 or "step" not in state:
        raise Damage("state.json: no format version or step")
    if version > FORMAT:
        raise UserError(
            f"checkpoint format {version} is newer than this program ({FORMAT}); upgrade"
        )
    for name in COUNTERS:
        count = state.get(name, 0)
        if type(count) is not int or not 0 <= count < 2**63:
            raise UserError(f"checkpoint counter {name} is {count!r:.40}; choose an earlier one")
    return state


def _decode_tensors(name: str, data: bytes) -> dict[str, np.ndarray]:
    if int.from_bytes(data[:8], "little") > MAX_HEADER_BYTES:
        raise Damage(f"{name}: header too long")
    try:
        arrays = {key: array.copy() for key, array in safetensors.numpy.load(data).items()}
    except Exception as error:  # the parser's own error types vary with the damage
        raise Damage(f"{name}: not readable ({error!s:.80})") from None
    for key, array in arrays.items():
        if not _TENSOR.fullmatch(key) or array.dtype.name not in DTYPES:
            raise UserError(
                f"checkpoint tensor {key[:80]!r} is {array.dtype}; choose another checkpoint"
            )
        if not _is_finite(array):
            raise UserError(f"checkpoint holds non-finite values in {key}; choose an earlier one")
    return arrays
