"""Bad files and folders from the command line: one line, exit code 2, everything as it was."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from async_dqn.cli import main
from async_dqn.config.presets import resolve
from async_dqn.training import training
from runs import ROOT, refused

OLD, NEW = "step-000000000200", "step-000000000400"


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A short finished run with two checkpoints."""
    settings = {"mode": "serial", "workers": 1, "envs_per_worker": 2, "steps": 400, "quiet": True}
    settings |= {"eval_episodes": 2, "hidden": (16,), "checkpoint_every": 200, "run_name": "x"}
    settings["algorithm"] = "n-step-q"
    settings |= {"keep_checkpoints": 5, "runs_dir": str(tmp_path_factory.mktemp("finished"))}
    run = training.train(*resolve(settings)).run
    (run / "checkpoints" / "best").write_text(f"{NEW}\n")
    return run


@pytest.fixture
def run(finished, tmp_path) -> Path:
    """A copy to be spoilt."""
    return Path(shutil.copytree(finished, tmp_path / "runs" / "CartPole-v1" / "x"))


def forge(run: Path, name: str, data: bytes) -> None:
    """Replace one file of the newest checkpoint and make its manifest agree."""
    path = run / "checkpoints" / NEW
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (path / name).write_bytes(data)
    (path / "manifest.json").write_text(json.dumps(manifest))


Arrays = dict[str, np.ndarray]


def tensors(stem: str, change: Callable[[Arrays], Any]) -> Callable[[Path], None]:
    """Spoils a file of tensors: `change` alters the table of arrays."""

    def spoil(run: Path) -> None:
        file = run / "checkpoints" / NEW / f"{stem}.safetensors"
        arrays = safetensors.numpy.load(file.read_bytes())
        change(arrays)
        forge(run, file.name, safetensors.numpy.save(arrays))

    return spoil


def state(**changes: Any) -> Callable[[Path], None]:
    """Spoils state.json; ... removes a key."""

    def spoil(run: Path) -> None:
        known = json.loads((run / "checkpoints" / NEW / "state.json").read_text()) | changes
        kept = {key: value for key, value in known.items() if value is not ...}
        forge(run, "state.json", json.dumps(kept).encode())

    return spoil


def damage(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    """Spoils the bytes of the newest parameters."""

    def spoil(run: Path) -> None:
        file = run / "checkpoints" / NEW / "model.safetensors"
        file.write_bytes(change(file.read_bytes()))

    return spoil


def manifest(entries: Callable[[dict], Any]) -> Callable[[Path], None]:
    def spoil(run: Path) -> None:
        file = run / "checkpoints" / NEW / "manifest.json"
        files = json.loads(file.read_text())["files"]
        entries(files)
        file.write_text(json.dumps({"files": files}, separators=(",", ":")))

    return spoil


def in_place_of_the_state(make: Callable[[Path], None]) -> Callable[[Path], None]:
    def spoil(run: Path) -> None:
        file = run / "checkpoints" / NEW / "state.json"
        file.unlink()
        make(file)

    return spoil


def flipped(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


def only_unfinished(run: Path) -> None:
    for name in (OLD, NEW):
        folder = run / "checkpoints" / name
        folder.rename(folder.with_name(f"{name}.tmp-77-1"))


def many_entries(files: dict) -> None:
    files.update((f"{number:x}", 0) for number in range(10**6))


def weight(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Arrays], Any]:
    return lambda arrays: arrays.update({"head.q.weight": change(arrays["head.q.weight"])})


IS_DAMAGED = f"{NEW} is damaged (model.safetensors: "
GOOD = f"newest good one: {OLD}"
LEAVES = "manifest entry '../../x' leaves the checkpoint"
BAD_CHECKPOINTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "only unfinished": (only_unfinished, "no complete checkpoint in {run} (2 unfinished, 0 comp"),
    "truncated": (damage(lambda data: data[:-300]), f"{IS_DAMAGED}"),
    "empty": (damage(lambda data: b""), f"{IS_DAMAGED}0.0 of "),
    "zeros": (damage(lambda data: bytes(len(data))), f"{IS_DAMAGED}checksum differs); {GOOD}"),
    "text": (damage(lambda data: b"plain text"), f"{IS_DAMAGED}0.0 of "),
    "picture": (damage(lambda data: b"\x89PNG\r\n\x1a\n"), f"{IS_DAMAGED}0.0 of "),
    "bit flipped": (damage(flipped), f"{IS_DAMAGED}checksum differs); {GOOD}"),
    "wrong shape": (
        tensors("model", weight(lambda array: array[:, :3].copy())),
        "does not match: tensor head.q.weight is [2, 3], expected [2, 16]; start a new run",
    ),
    "missing": (tensors("model", lambda arrays: arrays.pop("head.q.bias")), "head.q.bias is missi"),
    "extra": (tensors("model", lambda arrays: arrays.update(x=np.ones(2, np.float32))), "tensor x"),
    "quantised": (
        tensors("model", weight(lambda array: array.astype(np.uint8))),
        "tensor head.q.weight is uint8, expected float32",
    ),
    "of another type": (
        tensors("model", weight(lambda array: array.astype(np.int8))),
        "checkpoint tensor 'head.q.weight' is int8",
    ),
    "no target": (tensors("target", lambda arrays: arrays.clear()), "is missing; start a new run"),
    "moments of another network": (
        tensors("optimizer", lambda arrays: arrays.update(row_1=np.ones(7, np.float32))),
        "does not match: tensor row_1 is [7], expected [",
    ),
    "moments missing": (tensors("optimizer", lambda arrays: arrays.pop("row_0")), "row_0 is miss"),
    "NaN": (
        tensors("model", weight(lambda array: array * np.float32(np.nan))),
        "checkpoint holds non-finite values in head.q.weight; choose an earlier one",
    ),
    "infinite moments": (
        tensors("optimizer", lambda arrays: arrays["row_0"].fill(np.inf)),
        "checkpoint holds non-finite values in row_0",
    ),
    "newer": (state(format=3), "checkpoint format 3 is newer than this program (1); upgrade"),
    "negative": (state(updates=-1), "checkpoint counter updates is -1; choose an earlier one"),
    "impossible": (state(steps=2**63), "checkpoint counter steps is 9223372036854775808; choose"),
    "no counter": (state(episodes=...), "(its state has no sound episodes); choose another"),
    "no clock": (state(wall_s="late"), "(its state has no sound wall_s); choose another"),
    "odd factor": (state(lr_multiplier=-1), "(its state has no sound lr_multiplier)"),
    "odd threshold": (state(threshold_at=[1]), "(its state has no sound threshold_at)"),
    "no settings": (state(config=...), "(its state has no sound config); choose another"),
    "settings of another kind": (state(config={"run": 1}), "has no sound config"),
    "unknown settings": (state(config={"run": {"x": 1}}), "stored settings: unknown key 'run.x'"),
    "leading out": (manifest(lambda files: files.update({"../../x": {}})), LEAVES),
    "a million entries": (manifest(many_entries), "is damaged (manifest.json: "),
    "fifo": (in_place_of_the_state(os.mkfifo), "is damaged (state.json: not a plain file)"),
    "link": (
        in_place_of_the_state(lambda file: file.symlink_to("/dev/zero")),
        "is damaged (state.json: ",
    ),
}


@pytest.mark.parametrize("case", BAD_CHECKPOINTS)
def test_bad_checkpoints_are_not_resumed(run, capsys, case) -> None:
    spoil, words = BAD_CHECKPOINTS[case]
    spoil(run)
    begun = time.monotonic()
    assert words.format(run=run) in refused(capsys, run.parent.parent, "--resume", str(run))
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize("case", ["truncated", "wrong shape", "no settings", "newer"])
def test_bad_checkpoints_are_not_evaluated(run, capsys, case) -> None:
    spoil, words = BAD_CHECKPOINTS[case]
    spoil(run)
    words = words.removesuffix("; start a new run")
    assert words in refused(capsys, run.parent.parent, "evaluate", str(run))


def test_a_device_in_place_of_a_file(run, capsys) -> None:
    try:
        in_place_of_the_state(lambda file: os.mknod(file, 0o600 | 0o020000, os.makedev(1, 5)))(run)
    except PermissionError:
        pytest.skip("no right to make devices")
    assert main(["--resume", str(run)]) == 2
    assert "is damaged (state.json: not a plain file)" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["agent.zip", "model.pt"])
def test_pickles_are_not_opened(tmp_path, capsys, name) -> None:
    (tmp_path / name).write_bytes(b"\x80\x04cos\nsystem\n")
    words = f"{tmp_path / name} is not a checkpoint of this program; pickled files are never opened"
    for command in ("--resume", "evaluate"):
        assert words in refused(capsys, tmp_path, command, str(tmp_path / name))


def test_links_are_not_followed(run, tmp_path, capsys) -> None:
    places = run.parent / "linked", run / "checkpoints" / "step-000000000300"
    places[0].symlink_to(run)
    places[1].symlink_to(run / "checkpoints" / NEW)
    named = ("--runs-dir", str(tmp_path / "runs"), "--run-name", "linked")
    for arguments in (named, *(("--resume", str(place)) for place in places)):
        error = refused(capsys, tmp_path, *arguments)
        assert "is a symbolic link; refusing to " in error


@pytest.mark.parametrize(
    ("place", "reason"),
    [("file", "Not a directory"), ("file/runs", "Not a directory"), ("no/parent", "No such file")],
)
def test_results_cannot_go_there(tmp_path, capsys, place, reason) -> None:
    (tmp_path / "file").touch()
    error = refused(capsys, tmp_path, "--runs-dir", str(tmp_path / place))
    assert error.startswith(f"error: cannot write to {tmp_path / place}: {reason}")


def test_results_cannot_go_to_a_read_only_disk(tmp_path) -> None:
    mount = f"mount -t tmpfs -o ro tmpfs {tmp_path}"
    if subprocess.run(["unshare", "-m", "sh", "-c", mount], capture_output=True).returncode:
        pytest.skip("no right to mount")
    command = f'{mount} && exec "$@" --runs-dir {tmp_path}/runs'
    run = ["unshare", "-m", "sh", "-c", command, "sh", sys.executable, "launch.py"]
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, timeout=60)
    words = f"error: cannot write to {tmp_path}/runs: Read-only file system; choose another"
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(words) and done.stderr.count("\n") == 1


RUN_THIS = "import os; os.system('touch run')"
HOSTILE_FILES = {
    "class path": "[network]\n_target_ = 'os.system'",
    "another class path": "[optimizer]\noptimizer = 'torch.optim.Adam'",
    "network by path": "[network]\nnetwork = 'os:system'",
    "import": "[environment]\nimport_modules = ['antigravity']",
    "import as text": "[environment]\nimport_modules = 'antigravity'",
    "environment with a module": "[environment]\nenv = 'antigravity:Foo-v0'",
    "environment as code": f'[environment]\nenv = "{RUN_THIS}"',
    "preset as path": "preset = '../../etc/passwd'",
    "included file": "include = '/etc/passwd'",
    "host": "[run]\nhost = '0.0.0.0'",
    "run name": "[run]\nrun_name = '../../etc/x'",
    "interpolation": "[run]\nsteps = '${oc.env:HOME}'",
    "format string": "[run]\nsteps = '{0.__class__}'",
    "code as number": f'[optimizer]\nlr = "{RUN_THIS}"',
    "not a number": "[optimizer]\nlr = nan",
    "infinite": "[optimizer]\nlr = 1e400",
    "date": "[run]\nsteps = 2026-01-01",
    "huge number": "[run]\nseed = " + "9" * 5000,
    "given twice": "[run]\nseed = 1\nseed = 2",
    "deep lists": "x = " + "[" * 10_000,
    "deep tables": "x = " + "{a = " * 10_000,
    "long key": "a." * 400_000 + "b = 1",
    "dunder": "[__class__]\n__init__ = 1",
    "null character": '[run]\nrun_name = "a\\u0000"',
    "escape sequence": '[run]\n"\\u001b[2J" = 1',
    "YAML": f"!!python/object/apply:os.system [{RUN_THIS!r}]",
    "alias bomb": "a: &a [x]\nb: &b [*a, *a, *a, *a]\nc: [*b, *b, *b, *b]",
    "JSON": '{"run": {"steps": 1}}',
}
WATCHED = """
import sys
from pathlib import Path
from async_dqn import cli
names = sorted(str(path) for path in Path("files").iterdir())
train = lambda name: cli.main(["--config", name])
train(names[0]), train("files/environment with a module.toml")  # what is imported once is
seen, watching = [], False
def watch(event, arguments):
    if watching:
        seen.append((event, arguments[0] if arguments else None))
sys.addaudithook(watch)
for name in names:
    print(name, file=sys.stderr)
    watching = True
    code = train(name)
    watching = False
    assert code == 2, name
opened = {str(a) for e, a in seen if e == "open"}
presets = str(Path(cli.__file__).parent / "config" / "preset_files")
cores = ("/proc/self/cgroup", "/sys/fs/cgroup/")
assert all(a in names or a.startswith((presets, *cores)) for a in opened), opened
RISKY = ("exec", "compile", "import", "os.system", "os.exec", "os.posix_spawn", "os.remove")
RISKY += ("subprocess.", "socket.", "pickle.", "ctypes.")
found = [e for e in seen if e[0].startswith(RISKY)]
assert not found, found
"""


def test_hostile_settings_run_nothing_and_open_nothing_else(tmp_path) -> None:
    (tmp_path / "files").mkdir()
    for name, text in HOSTILE_FILES.items():
        (tmp_path / "files" / f"{name}.toml").write_text(text)
    command = [sys.executable, "-c", WATCHED]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()[2:]  # the first two calls are for the imports
    assert len(HOSTILE_FILES) >= 25 and len(lines) == 2 * len(HOSTILE_FILES)
    assert all(line.startswith("error: ") for line in lines[1::2])
    assert os.listdir(tmp_path) == ["files"] and "\x1b" not in done.stderr
