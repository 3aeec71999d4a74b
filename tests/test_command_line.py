"""The command line: every mistake is one line and exit code 2, before anything is written."""

import os
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from async_dqn import __version__, cli
from async_dqn.config import options, presets
from async_dqn.config.config import SETTINGS, Config
from async_dqn.config.cores import usable_cores
from runs import DEVICES

ROOT = Path(__file__).parent.parent
MOST = 8 * usable_cores()
TOO_MANY = MOST + 1


def launch(*arguments: str, cwd: Path = ROOT, stdout: int = subprocess.PIPE):
    command = [sys.executable, str(ROOT / "launch.py"), *arguments]
    pipes = {"stdout": stdout, "stderr": subprocess.PIPE}
    return subprocess.run(command, cwd=cwd, text=True, timeout=30, check=False, **pipes)


# Rows of the table of bad inputs, by number; the last columns are arguments.
BAD_INPUTS = [
    (1, "--workers must be a whole number from 1 (got '0')", "--workers", "0"),
    (1, "--workers must be a whole number from 1 (got '-3')", "--workers", "-3"),
    (1, "--workers must be a whole number from 1 (got 'two')", "--workers", "two"),
    (
        2,
        f"--workers {TOO_MANY} is more than 8 per core ({MOST}); add --oversubscribe to insist",
        *("--workers", str(TOO_MANY)),
    ),
    (3, "--steps must be a whole number from 1 (got '0')", "--steps", "0"),
    (3, "--steps must be a whole number from 1 (got '-1')", "--steps", "-1"),
    (3, "--steps must be a whole number from 1 (got 'nan')", "--steps", "nan"),
    (3, "unknown option --learning-rate; did you mean --lr?", "--learning-rate", "1"),
    (3, "unknown option --total-timesteps; did you mean --steps?", "--total-timesteps=5"),
    (3, "--steps must be a whole number from 1 (got '1e400')", "--steps", "1e400"),
    (3, "--steps must be a whole number from 1 (got '１')", "--steps", "１"),
    (
        3,
        "--steps must be a whole number from 1 (got '10M'); write 10000000 or 10_000_000",
        "--steps",
        "10M",
    ),
    (3, "--steps must be a whole number from 1 (got '1.5k'); write 1500 or 1_500", "--steps=1.5k"),
    (4, "--lr must be a finite number above 0 (got 0)", "--lr", "0"),
    (4, "--lr must be a finite number above 0 (got -1)", "--lr", "-1"),
    (4, "--lr must be a finite number above 0 (got nan)", "--lr", "nan"),
    (4, "--lr must be a finite number above 0 (got inf)", "--lr", "inf"),
    (4, "--lr must be a number (got 'fast')", "--lr", "fast"),
    (5, "--gamma must be within [0, 1] (got 1.5)", "--gamma", "1.5"),
    (5, "--gamma must be within [0, 1] (got -0.1)", "--gamma", "-0.1"),
    (6, "--epsilon-final must be within [0, 1] (got 1.5)", "--epsilon-final", "1.5"),
    (6, "--epsilon-final must be within [0, 1] (got -0.1)", "--epsilon-final", "-0.1"),
    (6, "--epsilon-final must be within [0, 1] (got nan)", "--epsilon-final", "nan"),
    (
        6,
        "--epsilon-final 0.5 is above the starting value 0.1; lower it or raise --epsilon-start",
        *("--epsilon-final", "0.5", "--epsilon-start", "0.1"),
    ),
    (7, "--target-sync-steps must be from 1, or none (got 0)", "--target-sync-steps", "0"),
    (7, "--rollout-length must be a whole number from 1 (got '0')", "--rollout-length", "0"),
    (7, "--eval-episodes must be a whole number from 1 (got '-1')", "--eval-episodes", "-1"),
    (8, "unknown option --wokers; did you mean --workers?", "--wokers", "4"),
    (8, "unknown option --work; did you mean --workers?", "--work=4"),
    (8, "unexpected argument 'extra'; see --help", "train", "extra"),
    (8, "--lr needs a value; write --lr=VALUE if that starts with -", "--lr"),
    (8, "unknown command 'trian'; did you mean train?", "trian"),
    (
        9,
        "unknown optimizer 'sdg'; choose shared-adam, shared-rmsprop, rmsprop or momentum",
        "--optimizer",
        "sdg",
    ),
    (
        9,
        "unknown mode 'asnyc'; did you mean async? Choose async, sync or serial",
        *("--mode", "asnyc"),
    ),
    (
        9,
        "unknown algorithm 'Qlambda'; did you mean q-lambda? "
        "Choose one-step-q, one-step-sarsa, n-step-q, q-lambda or a3c",
        *("--algorithm", "Qlambda"),
    ),
    (
        9,
        "unknown optimizer 'rmsporp'; did you mean rmsprop? "
        "Choose shared-adam, shared-rmsprop, rmsprop or momentum",
        *("--optimizer", "rmsporp"),
    ),
    (10, "--seed must be within [0, 2^63) (got -1)", "--seed", "-1"),
    (10, f"--seed must be within [0, 2^63) (got {2**70})", "--seed", str(2**70)),
    (20, f"device 'tpu' is not available (found: {DEVICES})", "--device", "tpu"),
    (20, f"device 'cuda:99' is not available (found: {DEVICES})", "--device", "cuda:99"),
    (
        21,
        "cannot read config absent.toml: No such file or directory",
        *("--config", "absent.toml"),
    ),
    (0, "--layer-norm must be on or off (got 'yes')", "--layer-norm", "yes"),
    (0, "--env-arg must be KEY=VALUE (got 'sticky')", "--env-arg", "sticky"),
    (0, "--double/--no-double takes no value", "--double=yes"),
    (
        0,
        "list needs one of presets, algorithms, networks, runs; did you mean presets?",
        *("list", "preset"),
    ),
    (0, "--episodes must be a whole number from 1 (got '0')", "evaluate", "x", "--episodes", "0"),
    (0, "unknown command 'bnch'; did you mean bench?", "bnch"),
]


@pytest.mark.parametrize(("row", "message", "arguments"), [(r, m, a) for r, m, *a in BAD_INPUTS])
def test_bad_input_is_one_line_and_exit_2(row, message, arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 2, f"row {row}"
    assert capsys.readouterr().err == f"error: {message}\n"
    assert not list(tmp_path.iterdir()), "something was written"


LEADING_OUT = ["../../etc/x", "../x", "..", ".", "/abs", "/", "//x", "a/b", "a/", "a/../b", "./a"]
LEADING_OUT += ["~", "~root", "~/x", "%2e", "%2e%2e%2fx", "..%2fx", "a\\b", "\\\\host\\x", "C:\\x"]
UNCLEAN = [
    "a\0",
    "\0",
    "a\n",
    "a\r",
    "a\tb",
    "a b",
    " a",
    "-a",
    "_a",
    ".hidden",
    "x" * 101,
    "x" * 300,
]
UNCLEAN += [
    "CON",
    "con.txt",
    "NUL",
    "LPT9.log",
    "é",
    "．．",
    "a\u202eb",
    "a:b",
    "$HOME",
    "$(id)",
    ";",
]


@pytest.mark.parametrize("name", LEADING_OUT + UNCLEAN)
def test_run_names_stay_inside(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main([f"--run-name={name}"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(("error: run name ", "error: --run-name must be text"))
    assert error.count("\n") == 1
    assert error.endswith("\n") and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--wokers", "4"], "unknown option --wokers; did you mean --workers?"),
        (["--env", "Nope-v1"], "no environment 'Nope-v1'"),
        (["--env", "CartPole-v99"], "CartPole has versions v0, v1 (asked v99)"),
    ],
)
def test_launched_for_real(arguments, message, tmp_path):
    done = launch(*arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {message}") and done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_escape_sequences_in_input_reach_the_terminal_as_text(capsys):
    assert cli.main(["--optimizer", "x", "--config", "\x1b[2J\n"]) == 2
    assert cli.main(["\x1b[2J\n"]) == 2
    assert "\x1b" not in capsys.readouterr().err


def test_help_lists_every_setting_with_its_default(capsys):
    assert cli.main(["--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for about in SETTINGS.values():
        assert f"{about.option} " in text or f"{about.option}," in text
        assert about.default in text


@pytest.mark.parametrize("arguments", [["--help"], ["--lr", "0"], ["list", "networks"]])
def test_answers_without_heavy_imports(arguments):
    program = (
        f"import sys, async_dqn; from async_dqn import cli; cli.main({arguments})\n"
        "assert not {'torch', 'numpy', 'gymnasium', 'tensorboard'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT, capture_output=True)


def test_options_become_typed_settings():
    text = (
        "--env-arg difficulty=1 --env-arg mode=hard --env-arg sticky=true --env-arg p=0.5 "
        "--import a.b --import c --hidden 64,32 --layer-norm off --no-double --dueling "
        "--target-sync-steps none --steps 10_000_000 --lr 1e-4 --stop-at-return -110 "
        "--preset cartpole --env-arg name='none'"
    )
    assert options.parse_train(text.split()) == {
        "env_arg": {"difficulty": 1, "mode": "hard", "sticky": True, "p": 0.5, "name": "none"},
        "import_modules": ("a.b", "c"),
        "hidden": (64, 32),
        "layer_norm": False,
        "double": False,
        "dueling": True,
        "target_sync_steps": None,
        "steps": 10_000_000,
        "lr": 1e-4,
        "stop_at_return": -110.0,
        "preset": "cartpole",
    }


def test_arguments_of_an_environment_may_be_tables_and_lists():
    given = ["config={lanes = 4, size = [1, 2.5]}", 'spec={"a": [true, "b"]}', "words={not a table"]
    parsed = options.parse_train([f"--env-arg={pair}" for pair in given] + ["--steps=1.5e6"])
    assert parsed["steps"] == 1_500_000
    assert parsed["env_arg"] == {
        "config": {"lanes": 4, "size": [1, 2.5]},
        "spec": {"a": [True, "b"]},
        "words": "{not a table",
    }
    assert Config.from_flat(parsed).environment.env_arg == parsed["env_arg"]


def test_settings_are_printed_as_a_file_and_nothing_begins(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["--print-config", "--import", "absent", "--lr", "0.25"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("# add --import absent\n[environment]\n")
    assert tomllib.loads(text)["optimizer"]["lr"] == 0.25
    for other in (["--workers", "auto"], ["--resume", "auto"]):
        assert cli.main(["--print-config", *other]) == 2
    assert not list(tmp_path.iterdir())


def test_lists(capsys):
    tables = []
    for what in (["presets"], ["algorithms"], ["networks"], ["runs"], []):
        assert cli.main(["list", *what]) == 0
        tables.append(capsys.readouterr().out)
    words = tables[-1].split()
    assert "\n".join(tables[:-1]) == tables[-1]
    for names in (presets.names(), SETTINGS["algorithm"].choices, SETTINGS["network"].choices):
        assert set(names) <= set(words)


def test_completion_knows_commands_options_and_choices(monkeypatch, capsys):
    pytest.importorskip("shtab")
    assert cli.main(["completion", "bash"]) == 0
    ask = (
        'ask() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()\n'
        '_shtab_async_dqn async-dqn "${@: -1}"; echo "${COMPREPLY[*]}"; }\n'
        "ask async-dqn lis; ask async-dqn --prin; ask async-dqn --lr 3 --mode s"
    )
    script = capsys.readouterr().out + ask
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "list\n--print-config\nsync serial\n"
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert cli.main(["completion", "bash"]) == 2
    assert "'.[completion]'" in capsys.readouterr().err


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"async_dqn {__version__}\n"


def test_module_runs_like_the_launcher():
    command = [sys.executable, "-m", "async_dqn", "--version"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == f"async_dqn {__version__}\n"


def test_reader_that_leaves_is_no_error():
    reader, writer = os.pipe()
    os.close(reader)
    done = launch("list", "presets", stdout=writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


def test_interrupt_before_training_leaves_no_traceback(monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(presets, "resolve", interrupt)
    assert cli.main([]) == 130
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_before_training_meets_no_import_that_catches_all(tmp_path, number):
    (tmp_path / "stubborn.py").write_text(
        "import time\nprint('importing', flush=True)\n"
        "while True:\n    try:\n        time.sleep(60)\n    except BaseException:\n        pass\n"
    )
    command = [sys.executable, "launch.py", "--import", "stubborn", "--runs-dir", tmp_path / "runs"]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline() == "importing\n"
        process.send_signal(number)
        _, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert (process.returncode, err) == (130 if number == signal.SIGINT else 143, "")
    assert not (tmp_path / "runs").exists()
