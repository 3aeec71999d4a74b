"""`bench`: what its tables and its JSON say of short real measurements; no timing is judged."""

import dataclasses
import json
import re
import statistics
import subprocess
import sys
import time
from collections import Counter

import numpy as np
import pytest
import torch

from async_dqn import cli
from async_dqn.algorithms.distributional import Distributional
from async_dqn.algorithms.q_learning import QLearning
from async_dqn.bench import BENCHES, command, phases, throughput
from async_dqn.bench.peers import row_of
from async_dqn.bench.phased import CPU, STEPS, PhasedLearner
from async_dqn.bench.transfer import Transfer
from async_dqn.config.presets import resolve
from async_dqn.envs import make
from async_dqn.envs.batch import EnvBatch
from async_dqn.envs.spec import EnvSpec
from async_dqn.networks import architecture
from async_dqn.networks.layers import Chain
from async_dqn.parameters.block import SharedBlock
from async_dqn.parameters.layout import padded_size
from async_dqn.parameters.optimizers import OPTIMIZERS
from async_dqn.parameters.store import ParameterStore
from async_dqn.replay.shard import ReplayShard
from async_dqn.report.results import COLUMNS, RunResult
from async_dqn.runs.run import Run
from async_dqn.training.supervisor import Supervisor
from async_dqn.workers.collector import Collector
from async_dqn.workers.run_spec import RunSpec

SMALL = ("--set", "workers=1", "--set", "envs-per-worker=4")
FAULTY = ("--env", "Scripted/Faulty-v0", "--set", "import=scripted_ids", *SMALL)
# Sleeping 10 ms in every step, environments in a loop cannot do more than a hundred a second.
SLOW = (*FAULTY, *("--set", "env-arg=fault=sleep", "--set", "env-arg=every=true"))
SLOW += ("--set", "env-arg=seconds=0.01", "--set", "defaults=fixed")


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
    ("--set: --steps is given by the benchmark; drop it", "phases", "--set", "steps=9"),
    ("--set: --workers is given by the benchmark; drop it", "scaling", "--set", "workers=3"),
    ("--lam 0.5 acts only", "env", "--set", "lam=0.5", "--set", "algorithm=one-step-q"),
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


def test_all_environments_are_checked_before_one_is_measured(capsys):
    both = ("--env", "CartPole-v1", "--env", "Acrobot-v1")  # only the first one's is q-lambda
    assert cli.main(["bench", "env", *both, "--set", "lam=0.5", "--pairs", "9999"]) == 2
    assert "--lam 0.5 acts only with --algorithm q-lambda" in capsys.readouterr().err


def test_what_is_compared_takes_turns_forwards_and_backwards():
    called: list[str] = []
    measures = {name: lambda name=name: called.append(name) or len(called) for name in "abc"}
    assert command.in_turns(3, measures) == {"a": [1, 6, 7], "b": [2, 5, 8], "c": [3, 4, 9]}
    assert "".join(called) == "abccbaabc"


def test_environments_alone(measure):
    size = ("--set", "workers=2", "--set", "envs-per-worker=4", "--set", "oversubscribe")
    printed, (result,) = measure("env", "--pairs", "2", "--seconds", "0.2", *size)
    workers, speed, per_cpu_second = table(printed)["CartPole-v1"]
    assert workers == "2 x 4" and (result["workers"], result["environments"]) == (2, 4)
    assert len(result["per_core"]) == 2
    for cell, each in ((speed, "per_core"), (per_cpu_second, "per_cpu_second")):
        assert min(result[each]) - 1 <= number(cell) <= max(result[each]) + 1


def test_environments_alone_take_as_long_as_they_take(measure):
    _, (result,) = measure("env", "--pairs", "1", "--seconds", "0.5", *SLOW)
    assert 50 < result["per_core"][0] <= 100
    assert result["per_cpu_second"][0] > 200, "asleep they need no CPU"


def test_environments_that_break_are_no_measurement(tmp_path, capsys):
    given = (*FAULTY, "--set", "env-arg=fault=exit", "--set", "env-arg=at_step=500")
    assert cli.main(["bench", "env", *given]) == 2
    assert "could not be stepped: its process died" in capsys.readouterr().err


def test_the_trainers_share_of_what_environments_alone_can_do(measure):
    printed, (result,) = measure("throughput", "--pairs", "1", "--seconds", "0.5", *SMALL)
    workers, alone, trained, share, per_cpu_second = table(printed)["CartPole-v1"]
    assert workers == "1"
    assert number(alone) == pytest.approx(result["environments"][0], rel=0.01)
    assert number(trained) == pytest.approx(result["trainer"][0], rel=0.01)
    assert 0 < number(share) == pytest.approx(number(trained) / number(alone), abs=0.01)
    cpu = result["per_cpu_second"]
    ratio = cpu["trainer"][0] / cpu["environments"][0]
    assert 0 < number(per_cpu_second) == pytest.approx(ratio, abs=0.01) and ratio < 1


def test_phases_are_all_the_time_there_is(measure):
    printed, (result,) = measure("phases", "--pairs", "1", "--seconds", "2", *SLOW)
    rows = table(printed)
    assert list(rows) == [*phases.PHASES, "all"]
    for column in (2, 4):
        shares = [float(cells[column].rstrip("%")) for cells in rows.values()]
        assert sum(shares[:-1]) == pytest.approx(100, abs=0.5) and shares[-1] == 100
    each = [number(cells[1]) for cells in rows.values()]
    assert sum(each[:-1]) == pytest.approx(each[-1], rel=0.01)
    (speed,), (steps,) = result["steps_per_second"]["with"], result["steps"]
    spent = {phase: us for phase, (us,) in result["us_per_step"].items()}
    assert steps > 0 and sum(spent.values()) == pytest.approx(each[-1], rel=0.01)
    # One worker: all that it does between two steps is the time between two steps.
    assert each[-1] == pytest.approx(1e6 / speed, rel=0.3)
    assert spent["step"] >= 1e4, "environments that sleep 10 ms each"
    assert result["cpu_us_per_step"]["step"][0] < 0.5 * spent["step"]
    assert {phase for phase in spent if not spent[phase]} <= {"replay", "wait"}
    assert re.search(r"steps/s of all workers, which is \d\.\d\d", printed)


def phased_learner(**settings) -> PhasedLearner:
    given = {"env": "CartPole-v1", "workers": 1, "envs_per_worker": 2, "target_sync_steps": 50}
    config, _ = resolve({**given, **settings})
    spec = EnvSpec("CartPole-v1")
    info = make.probe(spec)
    run_spec = RunSpec(config, spec, info, architecture.choose(config, info))
    block = SharedBlock(run_spec.sections(padded_size(run_spec.network())))
    block["multipliers"][:] = 1.0
    store = ParameterStore(block, run_spec.optimizer(), 0)
    store.begin(0)
    learner = PhasedLearner(run_spec, store, 0)
    learner.reset(0)
    return learner


REPLAY = {"replay": "prioritized", "replay_start": 1, "replay_capacity": 100, "batch_size": 4}


@pytest.mark.parametrize(
    ("owner", "name", "phase", "settings"),
    [
        (ParameterStore, "pull", "pull", {}),
        (Collector, "_act", "act", {}),
        (EnvBatch, "step", "step", {}),
        (ReplayShard, "add", "replay", REPLAY),
        (ReplayShard, "sample", "replay", REPLAY),
        (ReplayShard, "update_priorities", "replay", REPLAY),
        (QLearning, "loss", "forward", {}),
        (QLearning, "targets", "target", {}),
        (Distributional, "target_distributions", "target", {"distributional": "quantile"}),
        (Chain, "backward", "backward", {}),
        (torch.Tensor, "backward", "backward", {"dueling": True}),
        (ParameterStore, "push", "push", {}),
        (Collector, "_rollout", "rest", {}),
    ],
)
def test_what_takes_longer_is_charged_to_its_own_phase(owner, name, phase, settings, monkeypatch):
    quick = getattr(owner, name)

    def busy(*arguments, **keywords):
        end = time.process_time() + 0.02
        while time.process_time() < end:
            pass
        return quick(*arguments, **keywords)

    monkeypatch.setattr(owner, name, busy)
    learner = phased_learner(**settings)
    for _ in range(3):
        learner.update(100)
    before = learner.record()["phases"]
    learner.update(100)
    after = Counter(learner.record()["phases"])
    after.subtract(before)
    spent = {name: after[name + CPU] / 1e9 for name in phases.PHASES}
    assert spent.pop(phase) >= 0.02 and sum(spent.values()) < 0.02
    assert learner.record()["phases"][STEPS] == learner.store.steps


@pytest.mark.parametrize("evaluation", [False, True])
def test_a_speed_is_with_evaluations_only_if_asked(evaluation):
    settings = {"env": "CartPole-v1", "workers": 1, "eval_every": 500, "eval_episodes": 2}
    runs: list[Run] = []

    def trainer(run: Run) -> Supervisor:
        runs.append(run)
        return Supervisor(run)

    assert throughput.trainer_speed(settings, 1.0, trainer=trainer, evaluation=evaluation).wall > 0
    assert (runs[0].best is not None) == evaluation


def test_workers_of_a_round_wait_for_each_other(measure):
    size = ("--set", "mode=sync", "--set", "workers=2", "--set", "oversubscribe")
    printed, (result,) = measure("phases", "--pairs", "1", "--seconds", "0.5", *size)
    assert result["us_per_step"]["wait"][0] > 0 and number(table(printed)["wait"][1]) > 0


@pytest.mark.parametrize("options", [["mode=serial"], ["mode=sync", "workers=2", "model-parallel"]])
def test_phases_of_workers_only(options, capsys):
    words = [word for option in options for word in ("--set", option)]
    assert cli.main(["bench", "phases", *words]) == 2
    assert "phases are those of workers that learn; add --set mode=async" in capsys.readouterr().err


# By hand: what each reads and writes of one float of the network, 4 bytes a time.
MOVED = {
    "shared-adam": {"pull": "tp", "push": "g" + "tt" + "mm" + "vv"},
    "shared-rmsprop": {"pull": "tp", "push": "g" + "tt" + "ss"},
    "rmsprop": {"pull": "tp", "push": "g" + "tt" + "ss"},
    "momentum": {"pull": "tp", "push": "g" + "tt" + "mm"},
}


def test_bytes_of_an_update(measure):
    short = ("--pairs", "2", "--seconds", "0.01")
    printed, results = measure("update", "--parameters", "1_600", *short)
    assert {result["optimizer"] for result in results} == set(MOVED) == set(OPTIMIZERS)
    for result in results:
        moved = MOVED[result["optimizer"]]
        counted = {what: 4 * 1600 * len(parts) for what, parts in moved.items()}
        assert (result["pull_bytes"], result["push_bytes"]) == tuple(counted.values())
        transfer = Transfer(1600, result["optimizer"])
        assert 2 * transfer.source.nbytes == sum(counted.values()) and transfer.store.state
        assert all(len(seconds) == 2 and min(seconds) > 0 for seconds in result["seconds"].values())
    rows = [line.strip("| ").split(" | ") for line in printed.splitlines() if line[:2] == "| "]
    for cells, result in zip(rows[2:], results, strict=True):
        assert cells[:2] == ["1,600", result["optimizer"]]
        turns = list(
            zip(*(result["seconds"][what] for what in ("pull", "push", "copy")), strict=True)
        )
        by_hand = {
            4: [1e6 * push for _, push, _ in turns],
            5: [result["push_bytes"] / push / 1e9 for _, push, _ in turns],
            8: [(pull + push) / copy for pull, push, copy in turns],
        }
        for column, values in by_hand.items():
            assert number(cells[column]) == pytest.approx(statistics.median(values), abs=0.06)


def test_pull_push_and_copy_do_what_they_say():
    transfer = Transfer(1600, "shared-rmsprop")
    transfer.pull()
    before = transfer.network.vector.clone()
    assert torch.equal(before, transfer.store.theta)
    transfer.push()
    moved = (transfer.store.theta - before).abs()
    assert (moved > 0).float().mean() > 0.9 and torch.equal(before, transfer.network.vector)
    assert transfer.store.updates == 1 and transfer.store.state[0].count_nonzero() == 1600
    transfer.copied.zero_()
    transfer.copy()
    assert torch.equal(transfer.copied, transfer.source)


def test_update_of_the_network_of_an_environment(measure):
    wanted = ("--env", "CartPole-v1", "--set", "hidden=8", "--parameters", "16")
    _, results = measure("update", *wanted, "--pairs", "1", "--seconds", "0.01")
    # 4 inputs, 8 units with layer normalisation, 2 outputs.
    sizes = [16, 4 * 8 + 8 + 2 * 8 + 8 * 2 + 2]
    assert sorted({result["parameters"] for result in results}) == sizes


@pytest.mark.slow
def test_start_up_by_number_of_workers(measure):
    words = ("--workers", "1,3", "--pairs", "1", "--set", "envs-per-worker=2")
    printed, results = measure("startup", *words)
    rows = [line.split("|")[3:-1] for line in printed.splitlines() if "CartPole" in line]
    assert [result["workers"] for result in results] == [1, 3]
    for row, result in zip(rows, results, strict=True):
        figures = {name: each[0] for name, each in result.items() if isinstance(each, list)}
        first, imported = figures["first_update"], figures["import_torch"]
        assert first > 0.5 * imported > 0, "the program imports torch too"
        assert first <= figures["last_update"]
        assert 0 < result["workers"] * figures["worker_cpu_s"] < figures["cpu_s"]
        own = (figures["last_update"], figures["cpu_s"], 1e3 * figures["worker_cpu_s"])
        shown = (first, first / imported, *own, figures["private_bytes"] / 1e6)
        for cell, figure in zip(row, shown, strict=True):
            assert number(cell) == pytest.approx(figure, abs=0.51)


def test_a_start_that_fails_is_told(capsys):
    assert cli.main(["bench", "startup", "--pairs", "1", "--set", "min-workers=3"]) == 2
    assert "--min-workers" in capsys.readouterr().err


def finished(label: str, seed: int, seconds: float, startup_s: float, solved: bool) -> RunResult:
    reached = {"step": 10.0, "wall_s": seconds, "cpu_s": seconds} if solved else None
    return RunResult(
        env="CartPole-v1",
        label=label,
        seed=seed,
        status="threshold reached" if solved else "budget reached",
        curve=dict.fromkeys(COLUMNS, np.zeros(0)),
        settings={"evaluation.stop_at_return": 5.0},
        totals={"steps": 1000, "wall_s": seconds, "startup_s": startup_s, "cpu_s": seconds},
        reached=reached,
    )


def test_ratios_of_seconds_pair_by_pair():
    ours = [finished("ours", seed, 3.0 + seed, 1.0, seed != 3) for seed in range(4)]
    other = [finished("other", seed, 10.0, 3.0, seed != 1) for seed in range(4)]
    methods = {"ours": ours, "other": other}
    label, solved, speed, seconds, training, whole = row_of("other", methods, "ours", 5.0)
    assert (label, solved, speed) == ("other", "3 of 4", "143 (143 to 143)")
    assert seconds == "10 (10 to > 10)"
    # By seed: 7/2, > 7/3, 7/4, < 7/5; the whole process: 10/3, > 10/4, 10/5, < 10/6.
    assert training == "1.75 (< 1.40 to > 2.33)"
    assert whole == "2.00 (< 1.67 to > 2.50)"
    assert row_of("ours", methods, "ours", 5.0)[4] == "1.00 (1.00 to 1.00, 3 of 4 pairs)"
    failed = dataclasses.replace(other[0], status="failed", reached=None)
    assert row_of("other", {**methods, "other": [failed]}, "ours", 5.0)[3:] == ["-", "-", "-"]


@pytest.mark.slow
@pytest.mark.timeout(300)  # five processes, one after another
def test_peers_in_turn_with_ours(measure, tmp_path):
    pytest.importorskip("stable_baselines3")
    size = ("--workers", "1", "--steps", "1500", "--eval-every", "1500", "--eval-episodes", "5")
    options = ("--seeds", "1", "--stop-at-return", "1", *size)
    printed, results = measure("peers", *options)
    methods = ["async-q-lambda", "sync-q-lambda", "dqn", "pqn", "sb3-dqn"]
    assert [result["method"] for result in results] == methods == list(table(printed))[-5:]
    ours = results[0]
    for result in results:
        folder = tmp_path / f"runs/peers-CartPole-v1/runs/CartPole-v1/{result['method']}-s0"
        kept = json.loads((folder / "result.json").read_text())
        assert result["solved"] and result["seconds"] == kept["seconds_to_threshold"]
        cells = table(printed)[result["method"]]
        training, own = (run["seconds"] - run["startup_s"] for run in (result, ours))
        assert cells[0] == "1 of 1"
        assert number(cells[3]) == pytest.approx(training / own, abs=0.01)
        assert number(cells[4]) == pytest.approx(result["seconds"] / ours["seconds"], abs=0.01)
    assert "peers are scored with their clocks stopped, which favours them" in printed


def test_peers_need_a_score(capsys):
    assert cli.main(["bench", "peers", "--env", "MinAtar/Breakout-v1"]) == 2
    assert "time to a score needs the score; give --stop-at-return" in capsys.readouterr().err
