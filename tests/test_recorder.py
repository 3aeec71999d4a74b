"""The run folder's plain files: fixed headers, no step twice, a full disk stops nothing."""

import csv
import errno
import io
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

import async_dqn
from async_dqn.config.config import Config
from async_dqn.runs.folder import RunFolder
from async_dqn.runs.progress import Bar, PlainLines, Status, bar_text
from async_dqn.runs.recorder import HPARAMS, RESULT_KEYS, Recorder, _closing_line, process_start
from async_dqn.runs.versions import git_revision
from async_dqn.runs.writers import GLOBAL_TAGS, BestEffort, Board, CsvTable, EventLog

HEADER = (
    "step,wall_s,cpu_s,rollout/ep_rew_mean,rollout/ep_len_mean,rollout/exploration_rate,time/fps,"
    "time/updates_per_second,train/loss,train/grad_norm,train/q_mean,train/learning_rate,"
    "eval/mean_reward,eval/mean_ep_length,async/staleness_mean,async/staleness_max,"
    "async/target_lag_steps,async/restarts,async/skipped_updates,async/env_errors,async/retired_workers"
)

CONFIG = Config.from_flat({"lr": 2e-3, "run_name": "x"})


@dataclass
class Evaluated:
    step: int
    mean: float
    episodes: int = 100
    std: float = 1.5
    min: float = 9.0
    max: float = 200.0
    mean_length: float = 180.0


@pytest.fixture
def run(tmp_path):
    with RunFolder.create(tmp_path, "CartPole-v1", "x", "n-step-q", 0) as folder:
        yield folder


def recorder(run: RunFolder, base_step: int = 0, **options) -> Recorder:
    options = {"console": False, **options}
    return Recorder(run, CONFIG, {"kind": "vector", "low": float("-inf")}, base_step, **options)


def record(run: RunFolder, steps: list[int], base_step: int = 0) -> None:
    """A session that reports and evaluates at `steps` and ends."""
    log = recorder(run, base_step)
    log.start()
    log.open_board()
    for step in steps:
        tags = {tag: float(step + k) for k, tag in enumerate(GLOBAL_TAGS) if "eval" not in tag}
        log.report(step, 0.001 * step, 0.002 * step, tags, [10.0, float(step)])
        log.evaluation(Evaluated(step, mean=float(step)), 1.0, 2.0)
    log.result({"status": "stopped", "steps": steps[-1], "best_mean": 7.5})
    log.close()


def rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text())))


def events(run: RunFolder) -> list[dict]:
    return [json.loads(line) for line in (run.path / "events.jsonl").read_text().splitlines()]


def accumulator(run: RunFolder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(run.path), size_guidance={"scalars": 0}).Reload()


def test_tables_have_their_fixed_headers_and_one_row_per_report(run):
    record(run, [10, 20])
    text = (run.path / "metrics.csv").read_text()
    assert text.splitlines()[0] == HEADER
    first, second = rows(run.path / "metrics.csv")
    assert first["step"] == "10" and first["wall_s"] == "0.010" and first["train/loss"] == "15"
    assert first["eval/mean_reward"] == "" and second["eval/mean_reward"] == "10"
    text = (run.path / "evaluations.csv").read_text()
    assert text == (
        "step,wall_s,cpu_s,episodes,mean,std,min,max\n10,1,2,100,10,1.5,9,200\n"
        "20,1,2,100,20,1.5,9,200\n"
    )


def test_a_warning_is_a_text_of_tensorboard_at_its_step(run, capsys):
    log = recorder(run)
    log.report(70, 1.5, 2.5, {"train/loss": 1.0})
    log.progress(70, 100, 10.0)
    log.warn("worker 1 died (SIGSEGV in env.step), restarting")
    log.close()
    (point,) = accumulator(run).Tensors("warnings/text_summary")
    assert point.step == 70
    assert point.tensor_proto.string_val == [b"worker 1 died (SIGSEGV in env.step), restarting"]
    assert "warning: worker 1 died" in capsys.readouterr().err


def test_missing_and_non_finite_values_stay_empty(run):
    log = recorder(run)
    log.report(5, 1.5, 2.5, {"train/loss": float("nan"), "time/fps": float("inf")})
    log.event("death", "worker", 3, 4711, "SIGKILL in env.step", loss=float("nan"))
    log.result({"status": "failed", "final_mean": float("nan"), "steps": 5})
    log.close()
    (row,) = rows(run.path / "metrics.csv")
    assert row["train/loss"] == row["time/fps"] == row["train/q_mean"] == ""
    result = json.loads((run.path / "result.json").read_text())
    assert tuple(result) == RESULT_KEYS and result["final_mean"] is None and result["steps"] == 5
    (event,) = events(run)
    assert event["loss"] is None and abs(event.pop("time") - time.time()) < 60
    assert list(event) == ["event", "role", "index", "pid", "cause", "loss"]
    assert "train/loss" not in accumulator(run).Tags()["scalars"]


def test_config_json_holds_settings_and_versions_but_no_environment(run, monkeypatch, umask):
    umask(0o022)
    monkeypatch.setenv("MY_SECRET_TOKEN", "hunter2-hunter2")
    (run.path / "config.json.tmp-1-1").write_text("left by a kill")
    record(run, [1])
    text = (run.path / "config.json").read_text()
    config = json.loads(text)
    assert Config.from_dict(config["settings"]) == CONFIG
    assert config["environment"] == {"kind": "vector", "low": None}
    assert config["versions"]["async_dqn"] == async_dqn.__version__
    assert config["versions"]["torch"] and config["versions"]["python"]
    assert config["git_revision"] == git_revision()
    assert "hunter2" not in text and "NaN" not in text
    for path in run.path.iterdir():
        if path.is_file() and path.name != ".lock":
            assert path.stat().st_mode & 0o777 == 0o644, path
    assert not list(run.path.glob("*.tmp-*"))


def test_result_keys_are_a_contract(run):
    log = recorder(run)
    with pytest.raises(KeyError):
        log.result({"status": "stopped", "speed": 1})
    log.close()


def test_resume_goes_on_without_repeating_a_step(run):
    record(run, [10, 20, 30, 40])
    with (run.path / "metrics.csv").open("a") as file:
        file.write("50,1,")  # cut short by a kill
    with (run.path / "events.jsonl").open("a") as file:
        file.write('{"time": 1, "ev')
    record(run, [30, 50], base_step=20)
    for table in ("metrics.csv", "evaluations.csv"):
        assert [row["step"] for row in rows(run.path / table)] == ["10", "20", "30", "50"]
    starts = [event for event in events(run) if event["event"] == "start"]
    assert [start["step"] for start in starts] == [0, 20]
    assert all(start["pid"] == os.getpid() for start in starts)
    board = accumulator(run)
    for tag in ("train/loss", "eval/mean_reward", "async/worker_1/fps"):
        assert [point.step for point in board.Scalars(tag)] == [10, 20, 30, 50], tag


def test_tensorboard_shows_one_run_with_settings_and_scalars(run):
    from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer
    from tensorboard.plugins.hparams import plugin_data_pb2

    record(run, [10, 20])
    runs = EventMultiplexer().AddRunsFromDirectory(str(run.path.parent)).Reload()
    assert list(runs.Runs()) == ["x"]
    assert {path.parent for path in run.path.rglob("*tfevents*")} == {run.path}
    board = accumulator(run)
    tags = set(board.Tags()["scalars"])
    workers = {"async/worker_0/fps", "async/worker_1/fps"}
    assert tags == {*GLOBAL_TAGS, *workers, "result/best_mean"}
    assert [(p.step, p.value) for p in board.Scalars("train/loss")] == [(10, 15.0), (20, 25.0)]
    content = board.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    data = plugin_data_pb2.HParamsPluginData.FromString(content)
    hparams = data.session_start_info.hparams
    assert set(hparams) == {*HPARAMS, "optimizer.lr"}
    assert hparams["optimizer.lr"].number_value == 2e-3
    assert hparams["algorithm.algorithm"].string_value == "n-step-q"
    (settings,) = board.Tensors("settings/text_summary")
    assert b"    optimizer.beta1 = 0.9\n" in settings.tensor_proto.string_val[0]
    assert "custom_scalars__config__" in board.Tags()["tensors"]
    for tag in GLOBAL_TAGS:
        assert board.SummaryMetadata(tag).summary_description == GLOBAL_TAGS[tag] != ""


def test_tensorboard_has_no_chart_of_what_has_always_been_0(run):
    log = recorder(run)
    for step, restarts in ((10, 0), (20, 1), (30, 0)):
        tags = {"train/loss": 0.0, "async/restarts": restarts, "async/env_errors": 0}
        log.report(step, 0.1, 0.2, tags, [0.0])
    log.close()
    board = accumulator(run)
    steps = {tag: [p.step for p in board.Scalars(tag)] for tag in board.Tags()["scalars"]}
    assert steps == {"train/loss": [10, 20, 30], "async/restarts": [20, 30]}


def test_wall_clock_counts_start_up_and_former_sessions(run):
    log = recorder(run, base_wall_s=100.0)
    assert log.wall_s == pytest.approx(100.0 + log.session_s, abs=0.1)
    log.close()
    code = (
        "import time; time.sleep(0.4); from async_dqn.runs.recorder import PROCESS_START as start;"
        "assert 0.4 <= time.monotonic() - start < 30"
    )
    if Path("/proc/self/stat").exists():
        subprocess.run([sys.executable, "-c", code], check=True)
    assert process_start() <= time.monotonic()


class FullDisk:
    """os.write into a disk that takes `room` more bytes, as ENOSPC behaves."""

    def __init__(self, room: int) -> None:
        self.room, self._write = room, os.write

    def __call__(self, descriptor: int, data: bytes) -> int:
        if not self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = self._write(descriptor, data[: self.room])
        self.room -= written
        return written


@pytest.mark.parametrize("room, written", [(7, ["1", "6"]), (50, ["1", "2", "6"])])
def test_a_full_disk_is_warned_of_once_and_stops_nothing(run, monkeypatch, capsys, room, written):
    log = recorder(run)
    log.start()
    log.open_board()
    log.report(1, 1, 1, {"train/loss": 1.0})
    disk = FullDisk(room)  # 7: within a row of the table; 50: within the record that follows
    monkeypatch.setattr(os, "write", disk)
    for step in range(2, 6):
        log.report(step, 1, 1, {"train/loss": 1.0})
        log.evaluation(Evaluated(step, 1.0), 1, 1)
    disk.room = 10**9  # somebody made room: logging goes on where it can
    log.report(6, 1, 1, {"train/loss": 1.0})
    log.result({"status": "stopped", "steps": 6})
    log.close()
    assert log.drops.count >= 15
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1 and errors[0].startswith("warning: logging failed (No space left")
    assert [row["step"] for row in rows(run.path / "metrics.csv")] == written
    assert all(None not in row.values() for row in rows(run.path / "metrics.csv"))
    assert {event["event"] for event in events(run)} == {"start"}
    assert [point.step for point in accumulator(run).Scalars("train/loss")] == [1, 6]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_every_writer_survives_a_device_that_is_always_full(tmp_path):
    warnings: list[str] = []
    drops = BestEffort(warnings.append)
    log = EventLog(Path("/dev/full"), drops)
    log.write("start", "worker")
    log.write("start", "worker")
    log.close()
    assert drops.count == 2 and len(warnings) == 1 and "No space left" in warnings[0]
    nowhere = tmp_path / "missing"
    table = CsvTable(nowhere / "metrics.csv", ["step"], drops)
    table.write({"step": 1})
    table.close()
    assert drops.attempt(Board, nowhere) is None
    assert drops.count == 4 and len(warnings) == 1


def test_links_are_not_written_through(run, tmp_path):
    target = tmp_path / "target"
    target.write_text("precious")
    for name in ("events.jsonl", "metrics.csv", "config.json", "result.json"):
        (run.path / name).symlink_to(target)
    record(run, [1])
    assert target.read_text() == "precious"


def test_plain_lines_come_every_ten_seconds_and_at_evaluations(capsys):
    now = [0.0]
    lines = PlainLines(clock=lambda: now[0])
    status = Status(450_000, 1_000_000, 5000.0, 90.0, 180.25, None)
    for second in range(25):
        now[0] = second
        lines.show(status)
    lines.show(Status(600_000, 1_000_000, 0.0, 90.0, None, 500.0), now=True)
    lines.show(Status(1_000, 1_000, 0.0, 90.0, playing=(0, 100, 3.0)), now=True)
    lines.show(Status(1_000, 1_000, 0.0, 90.0, playing=(20, 100, 10.0)), now=True)
    lines.close()
    assert capsys.readouterr().out.splitlines() == [
        "00:01:30  450,000 steps (45%)  5,000 steps/s  return 180.2  evaluation -  left 00:01:50",
        "00:01:30  450,000 steps (45%)  5,000 steps/s  return 180.2  evaluation -  left 00:01:50",
        "00:01:30  600,000 steps (60%)  - steps/s  return -  evaluation 500.0  left --:--:--",
        "00:01:30  1,000 steps (100%)  final evaluation: 0 of 100 episodes",
        "00:01:30  1,000 steps (100%)  final evaluation: 20 of 100 episodes, about 40 s left",
    ]


def test_recorder_prints_at_evaluations_unless_quiet(run, capsys):
    for console in (False, True):
        log = recorder(run, console=console)
        log.start()
        log.progress(10, 100, 5.0)
        log.evaluation(Evaluated(8, mean=42.0), 1, 1)
        log.warn("worker 2 died (SIGKILL), restarting")
        log.close()
        log.close()
        captured = capsys.readouterr()
        assert captured.err == "warning: worker 2 died (SIGKILL), restarting\n"
        assert captured.out.count("\n") == console
        assert ("10 steps (10%)" in captured.out and "evaluation 42.0" in captured.out) == console


TERMINAL = """
import sys
from async_dqn.runs.progress import Bar, Status, display
bar = display(True)
assert isinstance(bar, Bar)
for step in range(0, 101, 10):
    bar.show(Status(step, 100, 50.0, 1.0, 7.0, 9.5), now=step == 100)
    if step == 50:
        print("warning: in between", file=sys.stderr)
bar.close(); bar.close()
print("after")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_bar_on_a_terminal_is_redrawn_in_place_and_put_away():
    import pty

    parent, child = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", TERMINAL],
        stdin=child,
        stdout=child,
        stderr=child,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "120"},
    )
    os.close(child)
    output = b""
    try:
        while chunk := os.read(parent, 65536):
            output += chunk
    except OSError:  # how a pseudo-terminal ends
        pass
    assert process.wait() == 0
    os.close(parent)
    text = output.decode()
    assert (
        "100%" in text
        and "00:00:01  " in text
        and "evaluation 9.5" in text
        and "left 00:00:00" in text
    )
    assert text.index("in between") < text.index("100%") < text.index("after")
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1  # the cursor is given back
    assert text.count("%") < 8, "redrawn more than four times a second"


def test_bar_is_not_imported_without_a_terminal():
    code = (
        "import sys; from async_dqn.runs.progress import display; display(True).close();"
        "import async_dqn.runs.recorder; assert 'rich' not in sys.modules;"
        "assert not {'torch', 'tensorboard'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE)
    assert Bar is not None


def test_a_reader_that_leaves_does_not_stop_the_run():
    code = (
        "import time; from async_dqn.runs.progress import PlainLines, Status\n"
        "lines = PlainLines()\n"
        "for k in range(2000): lines.show(Status(), now=True)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait() == 0
    process.stderr.close()


def test_the_last_line_says_how_the_run_ended():
    result = {"status": "budget reached", "wall_s": 4.123, "steps": 78822, "best_mean": None}
    assert _closing_line({**result, "final_mean": -119.25080816522241}) == (
        "budget reached after 4.1 s and 78,822 steps: final score -119.3"
    )
    assert _closing_line({**result, "final_mean": None, "best_mean": 0.9512}).endswith(
        " steps: final parameters not scored, best 0.95"
    )
    failed = dict.fromkeys(result) | {"status": "failed", "wall_s": 4.123, "final_mean": None}
    assert _closing_line(failed) == "failed after 4.1 s: final parameters not scored"


@pytest.mark.parametrize("width", [30, 50, 60, 80, 120])
def test_what_the_bar_says_fits_or_is_left_out_whole(width):
    text = bar_text(Status(600_000, 1_000_000, 40106.0, 5400.0, 180.25, 500.0), width)
    everything = "01:30:00  40,106 steps/s  return 180.2  evaluation 500.0  left 00:00:09"
    parts = text.split("  ")
    assert len(text) <= width and (text == everything) == (width >= len(everything))
    assert set(parts) <= set(everything.split("  ")) and parts[0] == "01:30:00"
    assert parts[-1] == "left 00:00:09" and ("evaluation 500.0" in parts) == (width >= 50)
