"""Simulated workers: really learning, in the order of a virtual clock, the same every time."""

import csv
import heapq
import json
import math

import numpy as np
import pytest
from scripted_envs import register

from async_dqn import cli
from async_dqn.config.config import UserError
from async_dqn.config.presets import resolve
from async_dqn.envs import make
from async_dqn.envs.make import EnvSpec
from async_dqn.networks.architecture import choose
from async_dqn.runs import checkpoint
from async_dqn.training import simulation, training
from async_dqn.training.calibration import measure, typical
from async_dqn.training.clock import MemoryBus, Times, spread
from async_dqn.workers.run_spec import RunSpec

SMALL = {
    "env": "CartPole-v1",
    "mode": "serial",
    "algorithm": "n-step-q",
    "envs_per_worker": 2,
    "rollout_length": 5,
    "target_sync_steps": 500,
    "eval_every": 10**9,
    "eval_episodes": 2,
    "checkpoint_every": 10**9,
    "quiet": True,
    "hidden": (8,),
}
# A phase of 1 s, in which nobody waits for memory.
TIMES = {
    "step_s": 0.12,
    "gradient_s": 0.25,
    "pull_s": 0.05,
    "push_s": 0.1,
    "variation": 0.1,
    "bandwidth": 1e15,
    "target_delay_s": 0.0,
}


@pytest.fixture
def simulate(tmp_path):
    """A run of simulated workers with TIMES, or those in `times`."""

    def run(workers, steps, times=None, **changes):
        path = tmp_path / f"times-{len(list(tmp_path.iterdir()))}.json"
        path.write_text(json.dumps({"times": TIMES | (times or {})}))
        given = {"simulate_workers": workers, "simulate_times": str(path), "steps": steps}
        return train(tmp_path, **given, **changes)

    return run


def train(folder, **settings):
    outcome = training.train(*resolve({**SMALL, "runs_dir": str(folder), **settings}))
    assert outcome.exit_code == 0
    return outcome.run


def saved(run):
    return checkpoint.load(checkpoint.resolve(run))


def result(run):
    return json.loads((run / "result.json").read_text())


def table(run, name="metrics.csv"):
    with open(run / name, newline="") as file:
        return list(csv.DictReader(file))


def assert_same_tensors(one, other):
    one, other = saved(one).tensors, saved(other).tensors
    assert one.keys() == other.keys()
    for stem, tensors in one.items():
        for name, array in tensors.items():
            np.testing.assert_array_equal(array, other[stem][name], f"{stem}/{name}")


def without_cpu(rows):
    return [{name: value for name, value in row.items() if name != "cpu_s"} for row in rows]


METHODS = {
    "q": {"eval_every": 700},
    "replay": {"replay": "prioritized", "replay_capacity": 900, "replay_start": 200},
    "epochs": {"epochs": 2, "minibatches": 2, "optimizer": "rmsprop"},
    "noisy": {"noisy": True, "exploration": "noisy", "target_sync_steps": None},
}


@pytest.mark.parametrize("method", METHODS)
def test_the_same_times_give_the_same_run_bit_for_bit(simulate, method):
    one, other = (simulate(4, 1500, {"variation": 0.5}, **METHODS[method]) for _ in range(2))
    assert_same_tensors(one, other)
    assert len(table(one)) > 5
    for name in ("metrics.csv", "evaluations.csv"):
        assert without_cpu(table(one, name)) == without_cpu(table(other, name))
    assert result(one)["wall_s"] == result(other)["wall_s"]
    assert result(one)["steps"] == 1500


def test_measured_times_are_kept_and_repeat_a_run_exactly(tmp_path):
    run = train(tmp_path, simulate_workers=3, steps=600)
    stored = json.loads((run / "simulation.json").read_text())
    assert stored["workers"] == 3 and "first come, first served" in stored["model"]
    times = Times.read(str(run / "simulation.json"))
    assert stored["times"] == vars(times)
    # 4 inputs, 8 hidden units with layer normalisation, 2 outputs; whole cache lines.
    parameters = math.ceil((4 * 8 + 8 + 2 * 8 + 8 * 2 + 2) / 16) * 16
    assert stored["pull_bytes"] == 4 * parameters
    assert stored["push_bytes"] == 3 * 2 * 4 * parameters  # theta and two moments
    again = train(
        tmp_path, simulate_workers=3, steps=600, simulate_times=str(run / "simulation.json")
    )
    assert_same_tensors(run, again)
    assert result(run)["wall_s"] == result(again)["wall_s"]
    assert result(run)["wall_s"] < 10 * 600 / 3 * times.step_s


# Everything happens at the end of a phase, the target network's copy after the push.
AT_ONCE = {"step_s": 1e-300, "gradient_s": 1.0, "target_delay_s": 1.0, "variation": 0.0}
AT_ONCE |= {"pull_s": 0.0, "push_s": 0.0}


@pytest.mark.parametrize("target_sync_steps", [None, 300])
def test_one_simulated_worker_makes_the_updates_of_a_serial_one(
    simulate, tmp_path, target_sync_steps
):
    options = {"target_sync_steps": target_sync_steps, "eval_every": 400}
    simulated = simulate(1, 1500, AT_ONCE, **options)
    real = train(tmp_path, workers=1, steps=1500, **options)
    assert_same_tensors(simulated, real)
    assert result(simulated)["updates"] == result(real)["updates"]
    assert result(simulated)["wall_s"] == result(simulated)["updates"]  # at 1 s each


def test_the_target_network_is_late_by_its_delay(simulate):
    """As many steps as are taken in that time: two workers take 20 a second."""
    for delay in (0.0, 10.0):
        run = simulate(2, 900, {"target_delay_s": delay})
        target = saved(run).state["target_step"]  # due at 500, then at 1000
        assert target == pytest.approx(500 + 20 * delay, abs=25)
        assert float(table(run)[-1]["async/target_lag_steps"]) == 900 - target
    # Nobody waits for one that is due when the budget is met.
    assert result(simulate(2, 500, {"target_delay_s": 100.0}))["wall_s"] < 40


def test_without_a_target_network_nothing_is_said_of_its_age(simulate):
    rows = table(simulate(2, 900, target_sync_steps=None, algorithm="q-lambda"))
    assert rows and {row["async/target_lag_steps"] for row in rows} == {""}


@pytest.mark.parametrize("workers", [1, 4, 9])
def test_every_other_worker_pushes_once_between_a_pull_and_its_push(simulate, workers):
    rows = table(simulate(workers, 300 * workers))
    staleness = [float(row["async/staleness_mean"] or 0) for row in rows]
    settled = staleness[len(rows) // 4 : -len(rows) // 4]
    assert np.mean(settled) == pytest.approx(workers - 1, rel=0.05)


def test_a_rollout_without_a_gradient_costs_its_pull_and_its_steps(simulate):
    waiting = {"replay": "uniform", "replay_start": 10**6, "envs_per_worker": 1}
    out = result(simulate(1, 100, {"variation": 0.0}, **waiting))
    assert out["updates"] == 0
    # 100 steps, and one that does not count for every episode, which begins one step late.
    costs = [0.05 * math.ceil(steps / 5) + 0.12 * steps for steps in range(100, 110)]
    assert any(out["wall_s"] == pytest.approx(cost) for cost in costs)


def updates_per_second(run):
    return result(run)["updates"] / result(run)["wall_s"]


@pytest.mark.parametrize("workers", [1, 2, 8])
def test_without_contention_the_speed_grows_with_the_workers(simulate, workers):
    assert updates_per_second(simulate(workers, 600 * workers)) == pytest.approx(workers, rel=0.04)


def test_little_bandwidth_bounds_the_speed(simulate):
    # A transfer never takes longer than alone: one after another, 0.15 s for each update.
    one_by_one = {"bandwidth": 1.0}
    assert updates_per_second(simulate(1, 600, one_by_one)) == pytest.approx(1.0, rel=0.04)
    run = simulate(32, 3000, one_by_one)
    assert updates_per_second(run) == pytest.approx(1 / 0.15, rel=0.04)
    # Memory serves three updates a second where many more would like to be made.
    stored = json.loads((run / "simulation.json").read_text())
    three = 3.0 * (stored["pull_bytes"] + stored["push_bytes"])
    slow = updates_per_second(simulate(32, 3000, {"bandwidth": three, "push_s": 1.0}))
    assert slow == pytest.approx(3.0, rel=0.04)


def test_transfers_are_served_one_after_another():
    memory = MemoryBus(bandwidth=100.0)
    assert memory.transfer(0.0, alone_s=3.0, size=200) == 3.0  # served until 2
    assert memory.transfer(1.0, alone_s=3.0, size=200) == 4.0  # until 4
    assert memory.transfer(1.5, alone_s=2.0, size=200) == 6.0  # had to wait
    assert memory.transfer(9.0, alone_s=1.0, size=10**9) == 10.0  # never longer than alone


def test_sixty_four_workers_learn_on_cartpole_and_meet_the_budget(simulate):
    run = simulate(64, 4500, target_sync_steps=1500, eval_every=1500)
    assert result(run)["steps"] == 4500
    assert [int(row["step"]) // 1500 for row in table(run, "evaluations.csv")] == [1, 2, 3]
    assert float(table(run)[-1]["async/staleness_max"]) > 0
    assert saved(run).state["target_refreshes"] > 1
    settings = json.loads((run / "config.json").read_text())["settings"]["parallel"]
    assert (settings["simulate_workers"], settings["workers"]) == (64, 64)


def test_times_are_those_of_the_virtual_clock(simulate, capsys):
    run = simulate(4, 4000, eval_every=500, stop_at_return=5.0, quiet=False)
    out = result(run)
    assert out["status"] == "threshold reached"
    (row,) = table(run, "evaluations.csv")
    seconds = out["steps_to_threshold"] / (4 * 10)  # 10 steps a second each, the first ones too
    assert out["seconds_to_threshold"] == out["wall_s"]
    assert float(row["wall_s"]) == pytest.approx(out["wall_s"], abs=0.001)
    assert out["wall_s"] == pytest.approx(seconds, rel=0.25)
    assert float(table(run)[1]["time/fps"]) == pytest.approx(40, rel=0.25)
    assert len(table(run)) > 2 * out["wall_s"]  # up to 4 a second
    said = capsys.readouterr().out
    assert "4 workers, all seconds are simulated: step_s=0.12" in said
    assert f"after {out['wall_s']:.3g} simulated s and" in said


def test_a_score_is_late_by_what_its_episodes_take(simulate):
    """Two workers take 20 steps a second; the evaluator plays on while they do."""
    goal = {"eval_every": 500, "stop_at_return": 5.0, "eval_episodes": 20}
    for play_s, play_row_s in ((0.5, 0.0), (0.0, 0.1)):
        run = simulate(2, 4000, {"play_s": play_s, "play_row_s": play_row_s}, **goal)
        out, (row,) = result(run), table(run, "evaluations.csv")
        played = out["seconds_to_threshold"] - out["steps_to_threshold"] / 20
        # All episodes at once: as many steps as the longest has, 30 environments at first.
        assert played > 10 * (play_s + 10 * play_row_s)
        assert float(row["wall_s"]) == pytest.approx(out["seconds_to_threshold"], abs=0.001)
        assert out["steps"] == pytest.approx(20 * out["wall_s"], rel=0.1)
        assert out["steps"] > out["steps_to_threshold"] + 20 * played / 2


def test_what_evaluations_may_take_is_a_share_of_virtual_time(simulate):
    """A second and a hundredth of the CPU time; boundaries that pass meanwhile are skipped."""
    often = {"eval_every": 100, "eval_episodes": 2}
    free = table(simulate(2, 3000, **often), "evaluations.csv")
    dear = table(simulate(2, 3000, {"play_s": 1.0}, **often), "evaluations.csv")
    assert len(free) == 30
    assert 2 <= len(dear) < 10


def test_pushes_that_overlap_lose_their_share(simulate):
    """Two workers in step always overlap, but for the last push; one never does."""
    in_step = {"variation": 0.0, "lost_values": 1e9}
    waiting = simulate(2, 10, in_step, replay="uniform", replay_start=10**6)  # learns nothing
    before, moved = saved(waiting).tensors["model"], {}
    for workers in (1, 2):
        run = simulate(workers, 600, in_step, lr=0.01)
        assert result(run)["updates"] > 20
        after = saved(run).tensors["model"]
        moved[workers] = max(np.abs(after[name] - before[name]).max() for name in before)
    assert moved[1] > 0.05 > 0.02 > moved[2]


def test_a_worker_that_dies_among_sixteen_is_replaced_without_a_dip_of_the_score(
    simulate, monkeypatch
):
    """What it was collecting or about to push is lost, and it is away for 50 updates of others."""
    dead, deaths = 7, []

    class Mortal(simulation.SimulationTrainer):
        def _round(self) -> None:
            if not deaths and self.evaluator.best == 1.0:
                deaths.append(self.store.steps)
                self._kill(self.learners[dead])
            super()._round()

        def _kill(self, learner) -> None:
            self.taken -= sum(learner.uncounted)
            learner.uncounted.clear()
            self.pushing.pop(dead, None)
            self.events = [event for event in self.events if event[2] != dead]
            heapq.heapify(self.events)
            learner.reset(dead, self.store.steps)
            self._plan(self.clock.now + 50.0, simulation.PULL, dead)

    monkeypatch.setattr(simulation, "SimulationTrainer", Mortal)
    register()
    chain = {"env": "Scripted/Chain-v0", "lr": 3e-3, "gamma": 0.9, "hidden": (32,)}
    chain |= {"target_sync_steps": None, "epsilon_steps": 4000, "defaults": "fixed"}
    run = simulate(16, 20_000, **chain, eval_every=800, eval_episodes=5)
    after = [row["mean"] for row in table(run, "evaluations.csv") if int(row["step"]) > deaths[0]]
    assert result(run)["steps"] == 20_000
    assert len(after) > 5 and set(map(float, after)) == {1.0}


def test_start_up_can_count(simulate):
    without, later = (simulate(2, 300, simulate_startup=seconds) for seconds in (0.0, 7.5))
    assert_same_tensors(without, later)
    assert result(later)["wall_s"] == pytest.approx(result(without)["wall_s"] + 7.5)


def test_measuring_finds_times_of_every_part_and_touches_nothing_else():
    config, _ = resolve(SMALL | {"workers": 2, "replay": "uniform"})
    spec = EnvSpec("CartPole-v1")
    info = make.probe(spec)
    times = measure(RunSpec(config, spec, info, choose(config, info)), seconds=0.05)
    found = vars(times)
    # Of little, where all are stepped as one, each of the two may come out as nothing.
    assert found.pop("play_row_s") + found.pop("play_s") > 0
    assert all(0 < value < math.inf for value in found.values())
    assert times.bandwidth > 1e6


def test_a_moment_of_something_else_is_no_cost():
    seconds = [1.0] * 200
    seconds[50:60] = [1000.0] * 10
    assert typical(seconds) == 1.0
    assert typical([1.0, 3.0] * 100) == 2.0  # what comes regularly counts


def test_the_variation_has_mean_one_and_its_size():
    draws = [spread(0.3, z) for z in np.random.default_rng(0).standard_normal(20_000)]
    assert np.mean(draws) == pytest.approx(1.0, abs=0.01)
    assert np.std(draws) == pytest.approx(0.3, abs=0.01)
    assert spread(0.0, 2.5) == 1.0


# Mistakes


def test_a_simulated_run_is_not_resumed(simulate, capsys):
    run = simulate(2, 200)
    before = sorted(run.rglob("*"))
    assert cli.main(["--resume", str(run), "--steps", "400"]) == 2
    assert "a simulated run cannot be resumed" in capsys.readouterr().err
    assert sorted(run.rglob("*")) == before


def test_simulated_workers_take_the_place_of_workers(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = ["--mode", "serial", "--simulate-workers", "4", "--workers", "2"]
    assert cli.main(arguments) == 2
    message = "error: --simulate-workers takes the place of --workers; drop one\n"
    assert capsys.readouterr().err == message
    assert cli.main([*arguments[:3], "5000"]) == 2
    assert "--simulate-workers must be within [1, 4096], or none" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


BROKEN = {
    "": "not valid JSON",
    "[]": "no table 'times' with step_s",
    '{"times": {"step_s": 1.0}}': "no table 'times' with step_s",
    "[" * 50_000: "not valid JSON",
    json.dumps({"times": TIMES | {"step_s": 0}}): "times.step_s must be a finite number above 0",
    json.dumps({"times": TIMES | {"push_s": -1}}): "times.push_s must be a finite number from 0",
    json.dumps({"times": TIMES | {"push_s": True}}): "times.push_s must be a finite number",
    json.dumps({"times": TIMES | {"pull_s": "1"}}): "times.pull_s must be a finite number",
    json.dumps({"times": TIMES | {"bandwidth": math.inf}}): "times.bandwidth must be a finite",
}


@pytest.mark.parametrize("text", BROKEN, ids=range(len(BROKEN)))
def test_times_that_are_none_are_refused_before_anything_is_written(simulate, tmp_path, text):
    path = tmp_path / "times.json"
    path.write_text(text)
    settings = {"simulate_workers": 2, "simulate_times": str(path), "steps": 100}
    with pytest.raises(UserError) as caught:
        train(tmp_path, **settings)
    assert BROKEN[text] in str(caught.value) and "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["missing.json", "."])
def test_a_file_of_times_that_cannot_be_read_is_refused(tmp_path, name):
    with pytest.raises(UserError, match="cannot read .*; give the simulation.json of a run"):
        Times.read(str(tmp_path / name))
