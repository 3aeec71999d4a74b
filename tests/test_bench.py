"""`bench`: what its tables and its JSON say of short real measurements; no timing is judged."""

import json
import re
import subprocess
import sys

import pytest

from async_dqn import cli
from async_dqn.bench import BENCHES, throughput

SMALL = ("--set", "workers=1", "--set", "envs-per-worker=4")
FAULTY = ("--env", "Scripted/Faulty-v0", "--set", "import=scripted_ids", *SMALL)
# Sleeping 10 ms in every step, environments in a loop cannot do more than a hundred a second.
SLOW = (*FAULTY, *("--set", "env-arg=fault=sleep", "--set", "env-arg=every=true"))
SLOW += ("--set", "env-arg=seconds=0.01")


def table(printed: str) -> dict[str, list[str]]:
    """The cells of a printed table's rows by their first."""
    rows = [line.strip("|").split("|") for line in printed.splitlines() if line.startswith("|")]
    return {row[0].strip(): [cell.strip() for cell in row[1:]] for row in rows[2:]}


def number(cell: str) -> float:
    """The first number in a cell."""
    return float(re.search(r"[\d,.]*\d", cell)[0].replace(",", ""))


@pytest.fixture
def measure(tmp_path, monkeypatch, capsys):
    """Run a benchmark for a moment; what it printed, and the results it wrote."""
    monkeypatch.setattr(throughput, "WARM_UP_SECONDS", 0.0)
    monkeypatch.chdir(tmp_path)

    def run(name: str, *options: str) -> tuple[str, list[dict]]:
        assert cli.main(["bench", name, *options, "--json", "figures.json"]) == 0
        written = json.loads((tmp_path / "figures.json").read_text())
        assert written["bench"] == name and written["machine"] and written["versions"]["torch"]
        return capsys.readouterr().out, written["results"]

    return run


def test_help_lists_every_benchmark_in_a_line_each_and_needs_nothing_heavy(capsys):
    assert cli.main(["bench", "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if line.startswith("  ")] == list(BENCHES)
    program = (
        "import sys; from async_dqn import cli; cli.main(['bench', '--help'])\n"
        "assert not {'torch', 'numpy', 'gymnasium'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


@pytest.mark.parametrize("name", BENCHES)
def test_every_benchmark_has_its_own_help(name, capsys):
    assert cli.main(["bench", name, "--help"]) == 0
    assert f"usage: async-dqn bench {name} " in capsys.readouterr().out


REFUSALS = [
    ("bench needs the name of a benchmark; choose env, throughput",),
    ("unknown benchmark 'evn'; did you mean env? Choose env, throughput", "evn"),
    ("--pairs must be a whole number from 1 (got '0')", "env", "--pairs", "0"),
    ("--seconds must be a finite number above 0 (got nan)", "env", "--seconds", "nan"),
    ("unknown option --pair; did you mean --pairs?", "throughput", "--pair", "1"),
    ("--set: unknown option --lrr; did you mean --lr?", "env", "--set", "lrr=1"),
    ("--set: --lr must be a finite number above 0 (got 0)", "env", "--set", "lr=0"),
    ("--set: --env is given by the benchmark; drop it", "env", "--set", "env=CartPole-v1"),
    ("--lam 0.5 acts only with", "throughput", "--set", "lam=0.5"),
    ("no environment 'Nope-v1'", "env", "--env", "Nope-v1"),
    ("cannot write gone/x.json; choose a --json in a folder", "env", "--json", "gone/x.json"),
]


@pytest.mark.parametrize(("message", "arguments"), [(m, rest) for m, *rest in REFUSALS])
def test_what_cannot_be_measured_is_refused(message, arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["bench", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}") and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_environments_alone(measure):
    size = ("--set", "workers=2", "--set", "envs-per-worker=4", "--set", "oversubscribe")
    printed, (result,) = measure("env", "--pairs", "2", "--seconds", "0.2", *size)
    workers, speed = table(printed)["CartPole-v1"]
    assert workers == "2 x 4" and (result["workers"], result["environments"]) == (2, 4)
    assert len(result["per_core"]) == 2
    assert min(result["per_core"]) <= number(speed) <= max(result["per_core"])


def test_environments_alone_take_as_long_as_they_take(measure):
    _, (result,) = measure("env", "--pairs", "1", "--seconds", "0.5", *SLOW)
    assert 50 < result["per_core"][0] <= 100


def test_environments_that_break_are_no_measurement(tmp_path, capsys):
    given = (*FAULTY, "--set", "env-arg=fault=exit", "--set", "env-arg=at_step=9")
    assert cli.main(["bench", "env", *given]) == 2
    assert "could not be stepped: its process died" in capsys.readouterr().err


def test_the_trainers_share_of_what_environments_alone_can_do(measure):
    printed, (result,) = measure("throughput", "--pairs", "1", "--seconds", "0.5", *SMALL)
    workers, alone, trained, share = table(printed)["CartPole-v1"]
    assert workers == "1"
    assert number(alone) == pytest.approx(result["environments"][0], rel=0.01)
    assert number(trained) == pytest.approx(result["trainer"][0], rel=0.01)
    assert 0 < number(share) == pytest.approx(number(trained) / number(alone), abs=0.01)
