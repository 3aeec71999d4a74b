"""Checkpoints: named tensors and plain JSON, there whole or not at all, never pickled.

`checkpoints/step-<12 digits>/` holds one safetensors file per group of tensors, state.json and,
written last, manifest.json with the size and SHA-256 of each; `latest` and `best` are small text
files that name a folder. A folder is written under a temporary name beside its place, every file
and the folder are fsynced, then it is renamed, and only then the marks follow. So a kill at any
moment leaves the previous checkpoint as it was, and a flipped bit is found on load.
"""

import contextlib
import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from async_dqn.config.config import UserError
from async_dqn.runs.checkpoint_format import (
    Checkpoint,
    Damage,
    Tensors,
    decode,
    encode,
    read_file,
    read_verified,
)
from async_dqn.runs.durable import is_own_folder, replace_file, sync_folder, temporary, write_new
from async_dqn.runs.folder import CHECKPOINT_NAME, env_folder
from async_dqn.runs.progress import print_warning

MARKS = ("latest", "best")
MAX_STATE_BYTES = 10_000_000
_OLD = ".old"
_UNFINISHED = re.compile(r"(step-\d{12}|latest|best)\.tmp-.*")

Warn = Callable[[str], None]


# Writing


def save(
    checkpoints: Path,
    step: int,
    files: Tensors,
    state: Mapping[str, Any],
    marks: Collection[str] = ("latest",),
    keep: int = 3,
) -> Path:
    """Write the checkpoint of global step `step`, move `marks` to it, keep the newest `keep`.

    The caller has copied the arrays (float32, int64 or uint8, any shape); once this returns, the
    checkpoint is durable. One of the same step is replaced. May run in a background thread, one
    save of a folder at a time.

    Raises OSError when the disk refuses: what was there before still loads, and the call may be
    repeated. Raises ValueError or TypeError for data that must not be stored (non-finite, not
    plain), before anything is written.
    """
    path = checkpoints / _name(step)
    _write(path, encode(step, files, state))
    try:
        read_verified(path)
    except UserError as damage:
        raise OSError(errno.EIO, f"{path.name} reads back damaged ({damage})") from None
    for name in marks:
        mark(checkpoints, name, path.name)
    # The new checkpoint is safe by now; failing to tidy up is no failure to save.
    with contextlib.suppress(OSError):
        _prune(checkpoints, keep)
    return path


def _name(step: int) -> str:
    return f"step-{step:012d}"


def mark(checkpoints: Path, name: str, folder_name: str) -> None:
    """Let the mark `name` ("latest" or "best") name `folder_name`, durably; raises OSError."""
    replace_file(checkpoints / name, f"{folder_name}\n".encode())


def _write(path: Path, encoded: Mapping[str, bytes]) -> None:
    """The commit: temporary folder, fsync of each file and of the folder, rename, fsync."""
    unfinished = temporary(path)
    try:
        unfinished.mkdir()
        for name, data in encoded.items():
            write_new(unfinished / name, data)
        sync_folder(unfinished)
        aside = path.with_name(path.name + _OLD)
        if path.exists():  # a folder cannot be replaced in one step; `_complete` knows the trick
            _remove(aside)
            os.rename(path, aside)
        os.rename(unfinished, path)
    except OSError:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    sync_folder(path.parent)
    if aside.exists():
        _remove(aside)


def _prune(checkpoints: Path, keep: int) -> None:
    """Delete all but the newest `keep` and those a mark names."""
    marked_folders = {marked(checkpoints, name) for name in MARKS}
    for path in _complete(checkpoints)[:-keep]:
        if path not in marked_folders:
            # Renamed first, or a kill would leave half a folder under a finished name.
            doomed = temporary(path)
            os.rename(path, doomed)
            _remove(doomed)


def clean(checkpoints: Path) -> None:
    """Remove what killed saves left behind. Only under the lock of the run."""
    for entry in list(checkpoints.iterdir()):
        replaced = entry.name.endswith(_OLD) and entry.with_name(entry.name[: -len(_OLD)]).exists()
        if replaced or _UNFINISHED.fullmatch(entry.name):
            _remove(entry)


def rewind(checkpoints: Path, step: int) -> None:
    """Make `step` the newest checkpoint: later ones get the ending .superseded and are ignored.

    Without it, a run resumed from an earlier checkpoint would meet its former future: the newest
    K to keep would be the old ones. Only under the lock of the run; raises OSError.
    """
    for path in _complete(checkpoints):
        if path.name.removesuffix(_OLD) > _name(step):
            aside = path.with_name(f"{path.name}.superseded")
            _remove(aside)
            os.rename(path, aside)
    if marked(checkpoints, "best") is None:
        (checkpoints / "best").unlink(missing_ok=True)
    complete = _complete(checkpoints)
    if complete and marked(checkpoints, "latest") is None:
        mark(checkpoints, "latest", complete[-1].name.removesuffix(_OLD))
    sync_folder(checkpoints)


def _remove(path: Path) -> None:
    if is_own_folder(path):
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


# Reading


def load(path: str | Path) -> Checkpoint:
    """Read the checkpoint folder `path`, every byte verified; see `resolve` for run folders.

    Raises UserError: not there, a link, not a checkpoint, damaged (naming the newest good one
    beside it), from a newer program, non-finite values.
    """
    path = Path(path)
    _check_is_folder(path)
    if path.is_symlink():
        raise UserError(f"{path} is a symbolic link; refusing to follow it")
    try:
        return decode(path)
    except Damage as damage:
        good = _newest_good(path)
        advice = f"newest good one: {good.name}" if good else "no good one beside it"
        raise UserError(f"{path.name} is damaged ({damage}); {advice}") from None


def marked(checkpoints: Path, name: str) -> Path | None:
    """The folder that the mark `name` ("latest" or "best") names; None without a mark or folder."""
    try:
        folder = read_file(checkpoints, name, 100).decode().strip()
    except (Damage, ValueError):
        return None
    path = checkpoints / folder
    return path if CHECKPOINT_NAME.fullmatch(folder) and is_own_folder(path) else None


def resolve(
    path: str | Path, fall_back: bool = False, warn: Warn = print_warning, best: bool = False
) -> Path:
    """The checkpoint meant by `path`: itself, a mark (`checkpoints/best`), or a run's latest.

    Of a run the `best` instead, if one was confirmed. Its latest is verified; when it is damaged,
    `fall_back` takes the newest good one and calls `warn(text)`.
    Raises UserError: nothing there, no complete checkpoint, damaged, not a checkpoint.
    """
    path = Path(path)
    if path.name in MARKS:
        path = marked(path.parent, path.name) or path
    _check_is_folder(path)
    if CHECKPOINT_NAME.match(path.name) or os.path.lexists(path / "manifest.json"):
        return path
    checkpoints = path if path.name == "checkpoints" else path / "checkpoints"
    if not checkpoints.is_dir():
        raise UserError(f"no checkpoint at {path}; give a run folder or a checkpoint in one")
    if best and (kept := marked(checkpoints, "best")) is not None:
        return kept
    newest = _newest(checkpoints, path, warn)
    try:
        return load(newest).path
    except UserError as error:
        good = _newest_good(newest) if fall_back else None
        if good is None:
            raise
        warn(f"{error}; going on from {good.name}")
        return good


def _newest(checkpoints: Path, run: Path, warn: Warn) -> Path:
    """The one marked `latest`, else the complete one of the highest step."""
    complete = _complete(checkpoints)
    if not complete:
        unfinished = sum(entry.name.startswith("step-") for entry in checkpoints.iterdir())
        raise UserError(
            f"no complete checkpoint in {run} ({unfinished} unfinished, 0 complete); "
            "start a new run"
        )
    latest = marked(checkpoints, "latest")
    if latest in complete:
        return latest
    warn(f"{run} has no valid mark 'latest'; taking {complete[-1].name}")
    return complete[-1]


def newest_run(
    runs_dir: str | Path, env_name: str, run_name: str | None, algorithm: str, seed: int
) -> Path | None:
    """For `--resume auto`: the run of this name, or else the one of this algorithm and seed that
    saved last; None without any."""
    runs = Path(runs_dir, env_folder(env_name)).glob(f"{run_name or '*'}/checkpoints")
    saved = [
        (checkpoints.stat().st_mtime_ns, checkpoints.parent)
        for checkpoints in runs
        if is_own_folder(checkpoints.parent)
        and is_own_folder(checkpoints)
        and any(run_name or _fits(path, algorithm, seed) for path in _complete(checkpoints))
    ]
    return max(saved)[1] if saved else None


def _fits(path: Path, algorithm: str, seed: int) -> bool:
    """Whether a checkpoint, not yet verified, is of a run with this algorithm and seed."""
    try:
        config = json.loads(read_file(path, "state.json", MAX_STATE_BYTES))["config"]
        return (config["algorithm"]["algorithm"], config["run"]["seed"]) == (algorithm, seed)
    except (Damage, ValueError, LookupError, TypeError, RecursionError):
        return False


def _complete(checkpoints: Path) -> list[Path]:
    """Committed checkpoints by step; a replaced one counts while its successor is missing."""
    found = {}
    for entry in sorted(checkpoints.iterdir(), reverse=True):  # step-N.old before step-N
        name = CHECKPOINT_NAME.fullmatch(entry.name.removesuffix(_OLD))
        if name and is_own_folder(entry) and (entry / "manifest.json").is_file():
            found[name[1]] = entry
    return [found[step] for step in sorted(found)]


def _newest_good(bad: Path) -> Path | None:
    """The newest loadable checkpoint beside `bad`."""
    for path in reversed(_complete(bad.parent)):
        if path.name != bad.name:
            with contextlib.suppress(UserError):
                return decode(path).path
    return None


def _check_is_folder(path: Path) -> None:
    if not os.path.lexists(path):
        raise UserError(f"no checkpoint at {path}; give a run folder or a checkpoint in one")
    if not path.is_dir():
        raise UserError(
            f"{path} is not a checkpoint of this program; pickled files are never opened"
        )
