"""Checkpoints: there whole or not at all, found damaged when they are, never executed."""

import contextlib
import errno
import hashlib
import itertools
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest

from async_dqn.config.config import UserError
from async_dqn.processes import spawn
from async_dqn.runs import checkpoint


def keep_saving(folder: Path, step: int, acknowledged: Connection) -> None:
    checkpoint.clean(folder)
    while True:
        step += 1
        files = {k: {"w": np.full(50_000, step, np.float32)} for k in ("model", "target")}
        marks = ("latest", "best") if step % 5 == 0 else ("latest",)
        checkpoint.save(folder, step, files, {"updates": step}, marks, keep=2)
        acknowledged.send(step)


def tensors(value: float = 1.0) -> dict[str, dict[str, np.ndarray]]:
    values = np.linspace(0, value, 600, dtype=np.float32).reshape(2, 300)
    optimizer = {"row_0": values[0], "count": np.ones((), np.int64)}
    return {"model": {"fc.weight": values}, "optimizer": optimizer}


def save(folder: Path, step: int, value: float = 1.0, **options) -> Path:
    folder.mkdir(exist_ok=True)
    return checkpoint.save(folder, step, tensors(value), {"best_mean": None}, **options)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def message(call, *args, **kwargs) -> str:
    with pytest.raises(UserError) as caught:
        call(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def forge(path: Path, name: str, data: bytes) -> None:
    """Replace one file and make the manifest agree, as a stranger would."""
    (path / name).write_bytes(data)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (path / "manifest.json").write_text(json.dumps(manifest))


def test_what_is_saved_is_loaded_bit_for_bit(tmp_path):
    state = {"best_mean": np.float32(0.5), "counts": (np.int64(3), 2**60), "name": "é", "x": None}
    transposed = np.arange(6, dtype=np.float32).reshape(2, 3).T  # not in C order
    path = checkpoint.save(tmp_path, 7, {"model": {"w": transposed, **tensors()["model"]}}, state)
    loaded = checkpoint.load(path)
    assert loaded.step == 7 and loaded.path == path and path.name == "step-000000000007"
    np.testing.assert_array_equal(loaded.tensors["model"]["w"], transposed)
    assert loaded.tensors["model"]["w"].flags.writeable
    assert loaded.state["counts"] == [3, 2**60] and loaded.state["best_mean"] == 0.5
    assert json.loads((path / "state.json").read_text())["format"] == 1


def test_who_may_read_a_checkpoint_follows_from_the_umask(tmp_path, umask):
    umask(0o027)
    path = checkpoint.save(tmp_path, 7, tensors(), {})
    assert {p.stat().st_mode & 0o777 for p in path.iterdir()} == {0o640}
    assert path.stat().st_mode & 0o777 == 0o750


@pytest.mark.parametrize(
    "files, state",
    [
        ({"model": {"w": np.array([1.0, np.nan], np.float32)}}, {}),
        ({"model": {"w": np.array(["x"], object)}}, {}),
        ({"model": {"w": np.ones(2)}}, {}),  # float64
        ({"../model": {"w": np.ones(2, np.float32)}}, {}),
        ({}, {"mean": float("nan")}),
        ({}, {"path": Path("x")}),
        ({}, {1: 2}),
    ],
)
def test_what_must_not_be_stored_is_refused_unwritten(tmp_path, files, state):
    with pytest.raises((ValueError, TypeError)):
        checkpoint.save(tmp_path, 1, files, state)
    assert names(tmp_path) == []


def test_the_last_k_and_the_best_are_kept(tmp_path):
    save(tmp_path, 1, marks=("latest", "best"))
    for step in range(2, 7):
        save(tmp_path, step, keep=2)
    kept = [f"step-{k:012d}" for k in (1, 5, 6)]
    assert names(tmp_path) == ["best", "latest", *kept]
    checkpoint.mark(tmp_path, "best", "step-000000000005")
    save(tmp_path, 7, keep=1)
    assert names(tmp_path)[2:] == ["step-000000000005", "step-000000000007"]
    # Resumed from an older checkpoint, the newest may have the lower step: `latest` protects it.
    save(tmp_path, 4, keep=1)
    assert checkpoint.marked(tmp_path, "latest").name == "step-000000000004"


def test_same_step_again_replaces_and_moves_the_mark(tmp_path):
    path = save(tmp_path, 1, value=1.0)
    save(tmp_path, 1, value=3.0, marks=("best",))
    assert checkpoint.load(path).tensors["model"]["fc.weight"].max() == 3.0
    assert checkpoint.marked(tmp_path, "best") == path
    (path / "state.json").write_text("{}")  # damaged: no matter
    save(tmp_path, 1, value=4.0)
    assert checkpoint.load(path).tensors["model"]["fc.weight"].max() == 4.0
    assert names(tmp_path) == ["best", "latest", "step-000000000001"]


def test_rewind_sets_the_former_future_aside(tmp_path):
    folder = tmp_path / "checkpoints"
    for step in (1, 2, 3):
        save(folder, step, marks=("latest", "best"))
    checkpoint.rewind(folder, 1)
    assert checkpoint.resolve(tmp_path, warn=pytest.fail).name == "step-000000000001"
    assert checkpoint.marked(folder, "best") is None
    new = save(folder, 2, value=9.0, keep=2)
    assert checkpoint.load(new).tensors["model"]["fc.weight"].max() == 9.0
    assert checkpoint.resolve(tmp_path, warn=pytest.fail) == new
    assert (folder / "step-000000000003.superseded/state.json").exists()


def test_kill_at_any_moment_loses_nothing_acknowledged(tmp_path):
    folder, rng, acknowledged = tmp_path / "run/checkpoints", random.Random(0), 0
    folder.mkdir(parents=True)
    unfinished = 0
    for _ in range(15):
        reader, writer = multiprocessing.Pipe(duplex=False)
        arguments = (folder, acknowledged, writer)
        process = spawn.context().Process(target=keep_saving, args=arguments)
        process.start()
        writer.close()
        acknowledged = reader.recv()
        time.sleep(rng.uniform(0, 0.15))
        process.kill()
        with contextlib.suppress(EOFError):
            while True:
                acknowledged = reader.recv()
        process.join()
        unfinished += sum(".tmp-" in name for name in names(folder))
        for path in folder.glob("step-" + "[0-9]" * 12):
            loaded = checkpoint.load(path)  # nothing half-done bears a finished name
            assert (loaded.tensors["target"]["w"] == loaded.step).all()
        newest = checkpoint.load(checkpoint.resolve(folder.parent, warn=pytest.fail))
        assert newest.step >= acknowledged
        acknowledged = newest.step
    assert unfinished > 0, "no kill fell into a save: the test proves nothing"
    checkpoint.clean(folder)
    assert all("." not in name for name in names(folder))


class FailingCalls:
    """Stands in for os.open, fsync, rename and replace; the n-th call of all fails."""

    NAMES = ("open", "fsync", "rename", "replace")

    def __init__(self, patch: pytest.MonkeyPatch, n: int, code: int) -> None:
        self.n, self.code, self.count = n, code, 0
        for name in self.NAMES:
            patch.setattr(os, name, self.wrap(getattr(os, name)))

    def wrap(self, real):
        def call(*args, **kwargs):
            self.count += 1
            if self.count == self.n:
                raise OSError(self.code, os.strerror(self.code))
            return real(*args, **kwargs)

        return call


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("step", [1, 2])  # one that is there already, and a new one
def test_any_failing_call_leaves_a_checkpoint(tmp_path, monkeypatch, code, step):
    for n in itertools.count(1):
        run = tmp_path / str(n)
        run.mkdir()
        folder = run / "checkpoints"
        save(folder, 0)
        save(folder, 1)
        with monkeypatch.context() as patch:
            calls = FailingCalls(patch, n, code)
            with contextlib.suppress(OSError):
                save(folder, step)
        newest = checkpoint.load(checkpoint.resolve(run, warn=lambda _: None))
        assert newest.step in (1, step)
        assert not any(".tmp-" in name for name in names(folder))
        # The same save succeeds as soon as the disk does.
        assert checkpoint.load(save(folder, step)).step == step
        assert checkpoint.load(checkpoint.resolve(run, warn=pytest.fail)).step == step
        if calls.count < n:
            assert n > 15, "hardly any call was failed"
            return


def test_a_write_cut_short_by_a_full_disk(tmp_path):
    """A real file limit (EFBIG) in place of a full disk: the old checkpoint stays."""
    import resource

    folder = tmp_path / "checkpoints"
    save(folder, 1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        with pytest.raises(OSError):
            save(folder, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, old)
    assert names(folder) == ["latest", "step-000000000001"]
    assert checkpoint.load(checkpoint.resolve(tmp_path)).step == 1


def test_every_flipped_bit_is_found(tmp_path):
    path, rng = save(tmp_path, 1), random.Random(1)
    files = sorted(path.iterdir())
    for k in range(250):
        sizes = [file.stat().st_size for file in files]
        file = files[k % len(files)] if k < 100 else rng.choices(files, sizes)[0]
        good = file.read_bytes()
        bad = bytearray(good)
        bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
        file.write_bytes(bad)
        with pytest.raises(UserError):
            checkpoint.load(path)
        file.write_bytes(good)
    checkpoint.load(path)


def test_damaged_newest_names_the_good_one_or_falls_back(tmp_path):
    folder, warnings = tmp_path / "checkpoints", []
    save(folder, 100_000)
    newest = save(folder, 200_000)
    model = newest / "model.safetensors"
    whole = model.read_bytes()
    model.write_bytes(whole[:-300])
    expected = (
        "step-000000200000 is damaged (model.safetensors: 2.2 of 2.5 kB); "
        "newest good one: step-000000100000"
    )
    assert message(checkpoint.resolve, tmp_path) == expected
    assert message(checkpoint.load, newest) == expected
    model.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert "(model.safetensors: checksum differs); newest good" in message(checkpoint.load, newest)
    found = checkpoint.resolve(tmp_path, fall_back=True, warn=warnings.append)
    assert found.name == "step-000000100000" and len(warnings) == 1
    shutil.rmtree(found)
    assert "no good one" in message(checkpoint.resolve, tmp_path, fall_back=True)


@pytest.mark.parametrize("junk", [b"", b"\0" * 2481, b"plain text", b"\x89PNG\r\n\x1a\n"])
def test_junk_in_any_file_is_damage(tmp_path, junk):
    path = save(tmp_path, 1)
    for file in sorted(path.iterdir()):
        good = file.read_bytes()
        file.write_bytes(junk)
        assert "is damaged" in message(checkpoint.load, path)
        file.write_bytes(good)
        file.unlink()
        assert "is damaged" in message(checkpoint.load, path)
        file.write_bytes(good)


def test_nothing_there_and_only_unfinished(tmp_path):
    run = tmp_path / "CartPole-v1/x"
    assert message(checkpoint.resolve, run).startswith(f"no checkpoint at {run}")
    assert message(checkpoint.load, run).startswith(f"no checkpoint at {run}")
    (run / "checkpoints/step-000000000001.tmp-77").mkdir(parents=True)
    (run / "checkpoints/step-000000000002").mkdir()  # no manifest: some other program's work
    expected = f"no complete checkpoint in {run} (2 unfinished, 0 complete)"
    assert message(checkpoint.resolve, run).startswith(expected)


def test_a_missing_or_lying_mark_is_mended_with_a_warning(tmp_path):
    folder = tmp_path / "checkpoints"
    save(folder, 1)
    save(folder, 2)
    for text in ("", "../../x", "step-000000000009", "step-000000000001/../..", "x" * 5000):
        (folder / "latest").write_text(text)
        warnings: list[str] = []
        assert checkpoint.resolve(tmp_path, warn=warnings.append).name == "step-000000000002"
        assert len(warnings) == 1


@pytest.mark.parametrize("name", ["x.zip", "model.pt", "policy.pkl"])
def test_pickles_are_never_opened(tmp_path, name):
    file = tmp_path / name
    file.write_bytes(b"\x80\x04cos\nsystem\n")
    opened = []
    watching = True
    sys.addaudithook(lambda event, args: watching and event == "open" and opened.append(args[0]))
    for call in (checkpoint.resolve, checkpoint.load):
        text = message(call, file)
        assert text == f"{file} is not a checkpoint of this program; pickled files are never opened"
    watching = False
    assert str(file) not in map(str, opened)


def test_hostile_checkpoints_are_refused(tmp_path):
    def tensor(dtype: str, shape: list[int], data: bytes, name: str = "w") -> bytes:
        header = {name: {"dtype": dtype, "shape": shape, "data_offsets": [0, len(data)]}}
        text = json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + data

    nan = np.array([np.nan], np.float32).tobytes()
    cases = [
        ("model.safetensors", tensor("F32", [1], nan), "non-finite values in w; choose an earlier"),
        ("model.safetensors", tensor("F64", [1], bytes(8)), "is float64"),
        ("model.safetensors", tensor("BF16", [1], bytes(2)), "damaged"),
        ("model.safetensors", tensor("F32", [10**10], bytes(4)), "damaged"),
        ("model.safetensors", tensor("F32", [1], bytes(4), "\x1b[2J"), "checkpoint tensor '\\x1b"),
        ("model.safetensors", (2**40).to_bytes(8, "little") + b"{", "header too long"),
        ("model.safetensors", b"\x80\x04cos\nsystem\n", "damaged"),
        ("state.json", b'{"format": 3, "step": 1}', "format 3 is newer than this program (1)"),
        ("state.json", b'{"format": 1, "step": -1}', "counter step is -1"),
        ("state.json", b'{"format": 1, "step": 1, "updates": 1e9}', "counter updates is"),
        ("state.json", b'{"format": 1, "step": 1, "x": NaN}', "damaged"),
        ("state.json", b'{"format": 1, "step": 1, "x": 1e999}', "damaged"),
        ("state.json", b"[" * 100_000, "damaged"),
        ("state.json", b"[]", "damaged"),
    ]
    for number, (name, data, expected) in enumerate(cases):
        path = save(tmp_path / str(number), 1)
        forge(path, name, data)
        assert expected in message(checkpoint.load, path), (name, data[:40])


def test_manifests_do_not_lead_outside(tmp_path):
    path = save(tmp_path, 1)
    text = (path / "manifest.json").read_text()
    (tmp_path / "x.json").write_text("{}")
    entry = {"bytes": 2, "sha256": hashlib.sha256(b"{}").hexdigest()}
    for name in ("../x.json", "../../x", "/etc/passwd", "..\\x", "/dev/zero"):
        manifest = json.loads(text)
        manifest["files"][name] = entry
        (path / "manifest.json").write_text(json.dumps(manifest))
        assert f"manifest entry {name!r} leaves the checkpoint" in message(checkpoint.load, path)
    manifest = {"files": {f"m{'x' * k}.json": entry for k in range(500)} | {"state.json": entry}}
    (path / "manifest.json").write_text(json.dumps(manifest))
    assert "501 entries" in message(checkpoint.load, path)
    (path / "manifest.json").write_text(text)
    for make in (os.mkfifo, lambda p: p.symlink_to("/dev/zero"), lambda p: p.mkdir()):
        (path / "state.json").rename(tmp_path / "state.json")
        make(path / "state.json")
        assert "is damaged (state.json" in message(checkpoint.load, path)
        impostor = path / "state.json"
        impostor.rmdir() if impostor.is_dir() else impostor.unlink()
        (tmp_path / "state.json").rename(impostor)
    checkpoint.load(path)


def test_a_linked_checkpoint_is_refused(tmp_path):
    path = save(tmp_path / "real", 1)
    (tmp_path / "link").symlink_to(path)
    assert "symbolic link" in message(checkpoint.load, tmp_path / "link")


def test_newest_run_of_environment_algorithm_and_seed_or_of_a_name(tmp_path):
    def newest(env="ALE/Pong-v5", name=None, algorithm="a3c", seed=1):
        found = checkpoint.newest_run(tmp_path, env, name, algorithm, seed)
        return found and found.name

    assert newest() is None
    for age, name in enumerate(["b", "a", "other", "empty"]):
        folder = tmp_path / f"ALE-Pong-v5/{name}/checkpoints"
        folder.mkdir(parents=True)
        config = {"algorithm": {"algorithm": "a3c"}, "run": {"seed": 2 if name == "other" else 1}}
        if name != "empty":
            checkpoint.save(folder, 1, tensors(), {"config": config})
        os.utime(folder, (age, age))
    (tmp_path / "ALE-Pong-v5/link").symlink_to(tmp_path / "ALE-Pong-v5/b")
    assert [newest(), newest(seed=2), newest(name="b", seed=2)] == ["a", "other", "b"]
    assert [newest(env="CartPole-v1"), newest(algorithm="q-lambda"), newest(name="link")] == [
        None
    ] * 3
    for damage in ("{}", "null", "[" * 100_000, '{"config": 1}'):
        (folder.parent.parent / "other/checkpoints/step-000000000001/state.json").write_text(damage)
        assert newest(seed=2) is None


def test_loading_needs_no_torch_and_runs_no_code(tmp_path):
    path = save(tmp_path, 1)
    code = f"""
import sys
from async_dqn.runs import checkpoint
checkpoint.load({str(path)!r})
seen = []
sys.addaudithook(lambda event, args: seen.append((event, args[0] if args else None)))
checkpoint.load({str(path)!r})
opened = [a for e, a in seen if e == "open" and isinstance(a, str)]
assert len(opened) == 4 and all(name.startswith({str(path)!r}) for name in opened), opened
risky = ("exec", "import", "compile", "os.system", "pickle.find_class")
assert not [e for e, _ in seen if e in risky]
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
