"""`bench scaling` with scores, and `--workers auto`: real runs, small ones."""

import json
import re
import statistics

import pytest

from async_dqn import cli
from async_dqn.bench import scaling
from async_dqn.compare.speedup import _speed_up
from async_dqn.config.cores import usable_cores
from async_dqn.config.presets import resolve
from async_dqn.report.results import Cost

TIMES = {
    "step_s": 1e-4,
    "gradient_s": 1e-4,
    "pull_s": 1e-5,
    "push_s": 1e-5,
    "variation": 0.1,
    "bandwidth": 1e10,
    "target_delay_s": 1e-3,
}


@pytest.fixture
def arguments(tmp_path, monkeypatch):
    """Simulated runs with given times: quick, and the same on every machine."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "times.json").write_text(json.dumps({"times": TIMES}))
    options = ("stop-at-return=12", "steps=4000", "eval-every=500", "eval-episodes=5")
    given = ["bench", "scaling", "--env", "CartPole-v1", "--pairs", "0", "--simulated"]
    for option in (*options, "simulate-times=times.json", "algorithm=n-step-q"):
        given += ["--set", option]
    return given


def results(folder, workers: int) -> list[dict]:
    found = sorted(folder.glob(f"runs/*/{workers}-workers-s*/result.json"))
    return [json.loads(path.read_text()) for path in found]


@pytest.mark.timeout(300)  # four processes, one after another
@pytest.mark.slow
def test_the_table_says_what_the_runs_say(arguments, tmp_path, capsys) -> None:
    arguments += ["--workers", "1,4", "--seeds", "2", "--first-seed", "7", "--out", "out"]
    assert cli.main(arguments) == 0
    printed = capsys.readouterr().out
    rows = {
        row.split("|")[1].strip(): [cell.strip() for cell in row.split("|")[1:-1]]
        for row in re.findall(r"^\| \d.*$", printed, re.MULTILINE)
    }
    runs = {workers: results(tmp_path / "out", workers) for workers in (1, 4)}
    seconds = {
        n: statistics.median(run["seconds_to_threshold"] or run["wall_s"] for run in group)
        for n, group in runs.items()
    }
    assert [len(group) for group in runs.values()] == [2, 2]
    rates = {n: resolve({"algorithm": "n-step-q", "workers": n})[0].optimizer.lr for n in runs}
    for workers, lr in rates.items():
        solved = sum(run["status"] == "threshold reached" for run in runs[workers])
        assert rows[str(workers)][1:3] == [f"{lr:.3g}", f"{solved} of 2"]
    shown = rows["4"][4].lstrip("<> ").split()[0]  # "-" where neither number of workers got there
    assert shown == "-" or float(shown) == pytest.approx(seconds[1] / seconds[4], rel=0.01)
    assert [rows[n][6] for n in "14"] == ["1", "5.9"]  # n-step Q in Mnih et al. 2016, table 2
    configs = (tmp_path / "out").glob("runs/*/4-workers-s8/config.json")
    (stored,) = (json.loads(path.read_text())["settings"] for path in configs)
    assert stored["parallel"]["workers"] == 4 and stored["optimizer"]["lr"] == rates[4]

    before = [path.stat().st_mtime_ns for path in (tmp_path / "out").glob("runs/*/*/result.json")]
    assert cli.main(arguments) == 0
    after = [path.stat().st_mtime_ns for path in (tmp_path / "out").glob("runs/*/*/result.json")]
    assert before == after  # what is there is kept


def costs(*values: float, missed: int = 0) -> list[Cost]:
    """These, of which the last `missed` did not get there."""
    return [Cost(value, k >= len(values) - missed) for k, value in enumerate(values)]


@pytest.mark.parametrize(
    ("first", "own", "words"),
    [
        (costs(8.0), costs(2.0), "4.00"),  # one run has no interval
        (costs(8.0, 8.0), costs(2.0, 2.0), "4.00 (4.00 to 4.00)"),
        (costs(8.0, 8.0), costs(2.0, 4.0, missed=2), "< 2.67"),
        (costs(8.0, 8.0, missed=1), costs(2.0, 2.0), "> 4.00"),
        (costs(8.0, 8.0, 8.0), costs(2.0, 2.0, 9.0, missed=1), "4.00"),
        (costs(8.0, missed=1), costs(2.0, missed=1), "-"),
    ],
)
def test_a_speed_up_that_rests_on_a_miss_is_a_bound(first, own, words) -> None:
    assert _speed_up(first, own) == words


def test_a_miss_counts_with_its_stopping_time_and_is_marked(arguments, capsys) -> None:
    arguments += ["--workers", "1", "--seeds", "1", "--set", "stop-at-return=499"]
    assert cli.main(arguments) == 0
    assert re.search(r"\| 0 of 1 \| > [\d.]+ \(> .*\| > 4,000", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seeds", "0"], "nothing to measure; give --pairs or --seeds above 0"),
        (["--seeds", "x"], "--seeds must be a whole number from 0 (got 'x')"),
        (["--workers", "1,0"], "--workers must be a list of whole numbers from 1"),
        (["--seconds", "0"], "--seconds must be a finite number above 0 (got 0)"),
        (["--seeds", "1", "--set", "stop-at-return=none"], "give --stop-at-return"),
    ],
)
def test_what_cannot_be_measured_is_refused(arguments, options, message, capsys) -> None:
    assert cli.main([*arguments, *options]) == 2
    assert message in capsys.readouterr().err


def test_auto_takes_the_fewest_workers_near_the_best_speed(monkeypatch, capsys) -> None:
    monkeypatch.setattr(scaling, "PROBE_SECONDS", 0.5)
    chosen = scaling.best_workers({"env": "CartPole-v1", "seed": 1})
    table = capsys.readouterr().out
    speeds = {
        int(n): float(speed.replace(",", ""))
        for n, speed in re.findall(r"(\d+) workers +([\d,]+) steps/s", table)
    }
    assert max(speeds) == usable_cores() and min(speeds.values()) > 0
    good = [n for n, speed in speeds.items() if speed >= 0.95 * max(speeds.values())]
    assert chosen == min(good) and f"{chosen} workers" in table.split("<-")[0].splitlines()[-1]


def test_auto_is_a_number_when_the_run_begins(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(scaling, "best_workers", lambda settings, sources: 2)
    arguments = ["--workers", "auto", "--steps", "400", "--runs-dir", str(tmp_path), "--quiet"]
    assert cli.main([*arguments, "--eval-episodes", "2"]) == 0
    (path,) = tmp_path.glob("*/*/config.json")
    assert json.loads(path.read_text())["settings"]["parallel"]["workers"] == 2
