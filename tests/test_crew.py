"""Evaluations by several processes: real players, killed, stopped and left alone."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from async_dqn.config.config import Config
from async_dqn.envs.make import probe
from async_dqn.envs.spec import EnvSpec
from async_dqn.evaluation.crew import Crew, run_player
from async_dqn.evaluation.episodes import EpisodeRunner
from async_dqn.evaluation.evaluator import Evaluator
from async_dqn.networks import architecture
from async_dqn.parameters import layout
from async_dqn.parameters.block import SharedBlock
from async_dqn.parameters.flat_network import FlatNetwork
from async_dqn.parameters.layout import (
    AFRESH,
    CPU_NS,
    EVALUATOR_ORDER,
    HEARTBEAT_NS,
    PLAYING,
    QUIT,
    STARTUP_NS,
)
from async_dqn.parameters.store import ParameterStore
from async_dqn.processes import spawn
from async_dqn.processes.child_side import ParentIdentity
from async_dqn.workers.records import Evaluation
from async_dqn.workers.run_spec import ProcessArgs, RunSpec

EPISODES = 60


@dataclass
class Team:
    """An evaluator in this process, and players in others."""

    run_spec: RunSpec
    store: ParameterStore
    evaluator: Evaluator
    children: list[Any]

    def evaluate(self, final: bool = True) -> Evaluation | None:
        """A whole evaluation."""
        return finish(self.evaluator.evaluate(final))

    def slot(self, player: int) -> np.ndarray:
        return self.store.slots[2 + player]

    def wait_for(self, player: int) -> None:
        """Until it shows a sign of life from now on."""
        now = time.monotonic_ns()
        while self.slot(player)[HEARTBEAT_NS] < now:
            assert self.children[player].is_alive()
            time.sleep(0.01)

    def orders(self, player: int) -> int:
        """How many episodes it has been given and has not finished."""
        return int((self.evaluator.crew._seats._given[player] != 0).sum())

    def stop_with_orders(self, player: int) -> Iterator[int]:
        """An evaluation in which the player has orders and stands still."""
        self.wait_for(player)
        os.kill(self.children[player].pid, signal.SIGSTOP)
        steps = self.evaluator.evaluate(final=True)
        next(steps)
        assert self.orders(player) > 0
        return steps


def finish(steps: Iterator[int]) -> Evaluation | None:
    while True:
        try:
            if not next(steps):
                time.sleep(0.001)
        except StopIteration as stop:
            return stop.value


@pytest.fixture
def team(tmp_path) -> Iterator[Callable[..., Team]]:
    """Make a team of so many players; they do not outlive the test."""
    teams = []

    def make(
        count: int, env: str = "Scripted/Cue-v0", kwargs: dict | None = None, **settings
    ) -> Team:
        torch.manual_seed(0)
        given = {"hidden": (16,), "eval_episodes": EPISODES, "workers": 1, **settings}
        config = Config.from_flat(given)
        spec = EnvSpec(env, kwargs or {}, ("scripted_ids",), 500)
        info = probe(spec)
        run_spec = RunSpec(config, spec, info, architecture.choose(config, info))
        network = FlatNetwork(run_spec.network())
        size = len(network.vector)
        block = SharedBlock(layout.sections(1, size, 2, players=count))
        store = ParameterStore(block, run_spec.optimizer(), 1)
        store.theta.normal_(std=0.5)  # actions differ from state to state
        children = [start(run_spec, block, player, tmp_path) for player in range(count)]
        teams.append(Team(run_spec, store, Evaluator(run_spec, store, None), children))
        for player in range(count):
            teams[-1].wait_for(player)
        return teams[-1]

    yield make
    for made in teams:
        made.store.control[EVALUATOR_ORDER] = QUIT
        for child in made.children:
            os.kill(child.pid, signal.SIGCONT) if child.is_alive() else None
            child.join(5)
            assert not child.is_alive(), "a player does not leave when it is told to"


def start(run_spec: RunSpec, block: SharedBlock, player: int, folder: Path) -> Any:
    _, child_end = spawn.context().Pipe(duplex=False)
    about = (
        run_spec,
        block,
        ParentIdentity.here(),
        child_end,
        2 + player,
        0,
        "player",
        folder / "log",
    )
    child = spawn.context().Process(target=run_player, args=(ProcessArgs(*about),))
    child.start()
    return child


def alone(team: Team, fresh: bool = False) -> tuple[float, float, int]:
    """Mean, deviation and number of the scores that one process gives the same parameters."""
    network = FlatNetwork(team.run_spec.network(), gradient=False)
    network.vector.copy_(team.store.theta)
    crew = Crew(EpisodeRunner(team.run_spec, network))
    crew.player.fresh = fresh
    crew.begin(crew.player.screening)
    for _ in crew.play(crew.player.total):
        pass
    scores = [one.score for one in crew.results(crew.player.screening, crew.player.total)]
    assert np.std(scores) > 1, "the same for every seed"
    return np.mean(scores), np.std(scores), len(scores)


def summary(evaluation: Evaluation) -> tuple[float, float, int]:
    return evaluation.mean, evaluation.std, evaluation.episodes


def played_by(team: Team, player: int) -> int:
    """How many seats of this player have a result of the newest snapshot."""
    orders = team.store.block["results"][player, :, 0] >> 32
    return int((orders == team.store.snapshot.sequence).sum())


def test_the_episodes_do_not_depend_on_who_plays_them(team) -> None:
    made = team(2)
    evaluation = made.evaluate()
    assert summary(evaluation) == pytest.approx(alone(made))
    assert played_by(made, 0) and played_by(made, 1)
    assert made.store.slot[PLAYING] == 0
    made.store.theta.mul_(-1)  # the next snapshot is not the last one
    again = made.evaluate()
    assert summary(again) == pytest.approx(alone(made)) and again.mean != evaluation.mean


@pytest.mark.parametrize("end", ["SIGSTOP", "SIGKILL"])
def test_nobody_waits_for_a_player_that_is_hung_or_dead(team, end) -> None:
    made = team(1)
    steps = made.stop_with_orders(0)
    os.kill(made.children[0].pid, getattr(signal, end))
    assert summary(finish(steps)) == pytest.approx(alone(made))
    if end == "SIGSTOP":  # late results do no harm, and it plays again
        os.kill(made.children[0].pid, signal.SIGCONT)
        made.wait_for(0)
        made.store.theta.mul_(-1)
        assert summary(made.evaluate()) == pytest.approx(alone(made))
        assert played_by(made, 0)


def test_the_next_incarnation_of_a_player_finds_its_orders(team, tmp_path) -> None:
    made = team(1)
    steps = made.stop_with_orders(0)
    ordered = made.orders(0)
    os.kill(made.children[0].pid, signal.SIGKILL)
    made.children[0].join()
    made.children[0] = start(made.run_spec, made.store.block, 0, tmp_path)
    made.wait_for(0)
    deadline = time.monotonic() + 30
    while played_by(made, 0) < ordered:  # nobody else plays now
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert summary(finish(steps)) == pytest.approx(alone(made))


def test_fresh_episodes_are_others_for_all_players(team) -> None:
    made = team(2)
    made.wait_for(0)
    made.store.control[EVALUATOR_ORDER] = AFRESH
    evaluation = finish(made.evaluator.evaluate(final=True, fresh=True))
    assert evaluation.fresh and summary(evaluation) == pytest.approx(alone(made, fresh=True))
    assert summary(evaluation) != pytest.approx(alone(made))
    assert played_by(made, 0)


def test_players_serve_the_next_evaluator(team) -> None:
    made = team(1)
    next(made.evaluator.evaluate(final=True))
    made.evaluator = Evaluator(made.run_spec, made.store, None)  # the first is gone without a word
    made.store.slot[PLAYING] = 0
    made.store.theta.mul_(-1)
    assert summary(made.evaluate()) == pytest.approx(alone(made))
    assert played_by(made, 0)


def test_environments_that_break_all_the_time_in_a_player_end_the_evaluation(team) -> None:
    faults = {-1: ("nan-reward", 3)}
    made = team(1, "Scripted/NotFinite-v0", {"faults": faults, "lengths": (4,)})
    assert made.evaluate() is None
    assert made.store.slot[PLAYING] == 0


def test_the_share_counts_the_cpu_time_of_all_who_evaluate(team) -> None:
    made = team(2)
    evaluator = made.evaluator
    while not made.slot(0)[STARTUP_NS]:  # it shows signs of life before that
        made.wait_for(0)
    assert 0 <= evaluator.cpu_spent_s < 0.5, "starting is no evaluation"
    made.store.slots[0, CPU_NS] = 100 * 10**9
    allowed = evaluator.cpu_budget_s
    assert evaluator.within_budget()
    before, after = evaluator.cpu_spent_s, 0.9 * allowed
    made.store.slot[CPU_NS] += int((after - before) * 1e9)
    assert evaluator.within_budget()
    made.children[1].kill()  # its clock stands still
    made.children[1].join()
    made.slot(1)[CPU_NS] += int(0.2 * allowed * 1e9)
    assert not evaluator.within_budget()
