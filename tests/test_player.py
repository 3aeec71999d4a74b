"""The player: whole episodes, greedy, without noise, against episodes played by hand. Its price."""

import functools
import math
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from scripted_envs import CueEnv, NotFiniteEnv

from async_dqn import AsyncDQN
from async_dqn.config.config import Config, UserError
from async_dqn.envs import make
from async_dqn.envs.batch import SEED_LIMIT
from async_dqn.envs.spec import EnvSpec
from async_dqn.evaluation.crew import Crew
from async_dqn.evaluation.episodes import BATCHED_ENVS, LOOPED_ENVS, EpisodeRunner
from async_dqn.evaluation.evaluator import CPU_SECONDS, CPU_SHARE, Evaluator
from async_dqn.evaluation.sequential import MIN_RETURNS
from async_dqn.networks import architecture
from async_dqn.parameters.block import SharedBlock
from async_dqn.parameters.flat_network import FlatNetwork
from async_dqn.parameters.layout import CPU_NS, STARTUP_NS, padded_size
from async_dqn.parameters.store import ParameterStore
from async_dqn.workers.run_spec import CONFIRMATION, SCREENING, RunSpec


def cue_batch(num_envs: int, max_episode_steps: int = 0) -> SyncVectorEnv:
    return SyncVectorEnv([CueEnv] * num_envs, autoreset_mode=AutoresetMode.NEXT_STEP)


@pytest.fixture(scope="module", autouse=True)
def _registered():
    gymnasium.register("Cue-v0", CueEnv, vector_entry_point=cue_batch)
    yield
    del gymnasium.registry["Cue-v0"]


def make_player(env: str | Callable = CueEnv, **settings: Any) -> EpisodeRunner:
    """A player with a random network whose actions differ from state to state."""
    torch.manual_seed(0)
    config = Config.from_flat({"hidden": (16,), "seed": 3, **settings})
    spec = EnvSpec(env, max_episode_steps=100)
    info = make.probe(spec)
    run_spec = RunSpec(config, spec, info, architecture.choose(config, info))
    network = FlatNetwork(run_spec.network(), gradient=False)
    for name, parameter in network.net.named_parameters():
        scale = 10.0 if name.startswith("head") else 1.5
        parameter.data.copy_(scale * parameter.data * (100.0 if scale == 10.0 else 1.0))
    return EpisodeRunner(run_spec, network)


def scores(player: EpisodeRunner, first: int | None = None) -> list[tuple[float, int]]:
    """Return and length of all confirming episodes, or of those from `first` on."""
    first, crew = player.screening if first is None else first, Crew(player)
    crew.begin(first)
    for _ in crew.play(player.total):
        pass
    return [(one.score, one.length) for one in crew.results(first, player.total)]


@torch.no_grad()
def by_hand(player: EpisodeRunner, net=None) -> list[tuple[float, int]]:
    """The confirming episodes one environment at a time, without batches or autoreset."""
    run_spec, net = player.run_spec, net or player.network.net
    seeds = run_spec.seeds(player.screening, SCREENING) + run_spec.seeds(
        player.confirming, CONFIRMATION
    )
    own = [seed % SEED_LIMIT for seed in seeds]
    if run_spec.info.batched:  # one generator for a whole batch; SyncVectorEnv counts up
        groups = [seeds[k : k + BATCHED_ENVS] for k in range(0, len(seeds), BATCHED_ENVS)]
        drawn = [np.random.SeedSequence(g).generate_state(1, np.uint32)[0] for g in groups]
        own = [int(one) + b for one, group in zip(drawn, groups) for b in range(len(group))]
    finished = []
    for seed in own[player.screening :]:
        env, state = CueEnv(), net.initial_state(1)
        obs, _ = env.reset(seed=seed)
        score, length, over = 0.0, 0, False
        while not over:
            output, state = net(torch.from_numpy(obs)[None], state)
            action = int(output.q_values.argmax())
            obs, reward, terminated, truncated, _ = env.step(action)
            score, length, over = score + reward, length + 1, terminated or truncated
        finished.append((score, length))
    return finished


def assert_same_scores(one: list, other: list) -> None:
    """In this order; scores are spread out far beyond rounding."""
    assert len(one) == len(other)
    np.testing.assert_allclose(one, other, rtol=1e-6)


@pytest.mark.parametrize("recurrent", [False, True])
@pytest.mark.parametrize(("env", "at_once"), [(CueEnv, LOOPED_ENVS), ("Cue-v0", BATCHED_ENVS)])
def test_scores_are_those_of_episodes_played_by_hand(env, at_once, recurrent) -> None:
    episodes = 2 * at_once + 3  # there are not so many environments
    player = make_player(env, recurrent=recurrent, eval_episodes=episodes)
    assert player.run_spec.info.batched == (env == "Cue-v0")
    assert_same_scores(scores(player), by_hand(player))


def test_the_state_carries_the_cue_through_the_episode() -> None:
    player = make_player(recurrent=True, eval_episodes=30)
    net = player.network.net
    remembered = scores(player)

    class Forgetful(torch.nn.Module):
        def initial_state(self, count):
            return net.initial_state(count)

        def forward(self, obs, state=None):
            output, _ = net(obs, net.initial_state(len(obs)))
            return output, state

    player.network.net = Forgetful()
    assert np.abs(np.array(scores(player)) - remembered).max() > 0.5


class Numbers:
    """A source that gives these numbers, one for each environment at a time."""

    def __init__(self, numbers: list[int]):
        self.numbers = numbers

    def take(self) -> int | None:
        return self.numbers.pop(0) if self.numbers else None

    def take_until(self, stop: int) -> None:
        self.numbers = [number for number in self.numbers if number >= stop]


@pytest.mark.parametrize("env", [CueEnv, "Cue-v0"])
def test_an_episode_is_the_same_whoever_plays_it_and_beside_whichever_others(env) -> None:
    player = make_player(env, eval_episodes=40, recurrent=True)
    every = dict(enumerate(scores(player, 0)))
    for numbers in ([7], [49, 3, 12], list(range(30, 50))):
        played = [one for _, done in player.play(Numbers(list(numbers))) for one in done]
        assert {one.number for one in played} >= set(numbers)
        for one in played:
            assert (one.score, one.length) == pytest.approx(every[one.number])


def test_atari_games_have_their_own_seeds_and_random_actions() -> None:
    pytest.importorskip("ale_py")
    player = make_player("ALE/MsPacman-v5", network="nips", eval_episodes=4)
    assert player.run_spec.eval_epsilon > 0
    every = dict(enumerate(scores(player, 0)))
    assert len(set(every.values())) > 1
    for numbers in ([4], [3, 1]):
        played = [one for _, done in player.play(Numbers(numbers)) for one in done]
        assert {one.number: (one.score, one.length) for one in played}.items() <= every.items()


def test_only_what_still_plays_is_stepped() -> None:
    player = make_player(eval_episodes=20)
    steps = [stepped for stepped, _ in player.play(Numbers(list(range(20))))]
    assert sum(steps) == sum(length for _, length in scores(player, 0)[:20])
    assert steps[0] == 20 and steps == sorted(steps, reverse=True)


# Faults


def fragile(faults: dict, lengths: tuple = (4,), **settings) -> EpisodeRunner:
    NotFiniteEnv.built.clear()
    env = functools.partial(NotFiniteEnv, faults=faults, lengths=lengths, rewards=(1.0, 2.0))
    return make_player(env, **settings)


def test_an_episode_whose_environment_breaks_is_played_again() -> None:
    # Instance 0 is the probe's, 1 to 20 play; 21 is built in the place of the first that breaks.
    faults = {2: ("nan-reward", 3), 4: ("inf-observation", 6), 21: ("none-reward", 4)}
    player = fragile(faults, eval_episodes=45)
    played = scores(player)
    assert len(NotFiniteEnv.built) == 24
    assert played == [(6.0, 4)] * 45
    assert scores(player) == played


def test_environments_that_break_all_the_time_end_the_game() -> None:
    assert scores(fragile({-1: ("nan-reward", 3)}, eval_episodes=10)) == []
    sound = dict.fromkeys(range(6), ("", 0))  # the probe's, and five that play
    played = scores(fragile({-1: ("nan-reward", 3), **sound}, eval_episodes=45))
    # 15 break in every third step: more than 55 times by the twelfth, two episodes later.
    assert played == [(6.0, 4)] * 10


def test_the_api_does_not_make_a_score_of_episodes_that_were_not_played() -> None:
    NotFiniteEnv.built.clear()
    env = functools.partial(NotFiniteEnv, faults={-1: ("nan-reward", 3)}, lengths=(4,))
    agent = AsyncDQN(env, hidden=(8,), workers=1)
    with pytest.raises(UserError):
        agent.evaluate(episodes=10)


# What evaluation leaves out: noise and exploration


def test_evaluation_is_without_noise(tmp_path) -> None:
    settings = {"mode": "serial", "workers": 1, "envs_per_worker": 4, "hidden": (16,)}
    agent = AsyncDQN(CueEnv, **settings, noisy=True, exploration="noisy", runs_dir=str(tmp_path))
    agent.learn(600)
    net = agent.network.net
    score = agent.evaluate(episodes=40)
    assert agent.evaluate(episodes=40) == score
    expected = by_hand(EpisodeRunner(agent.run_spec, agent.network, 40))
    assert score[0] == pytest.approx(np.mean([one for one, _ in expected]))
    # The run's own final evaluation saw the same, after a learner drew noise in this process.
    evaluations = (agent.run / "evaluations.csv").read_text().splitlines()
    column = evaluations[0].split(",").index("mean")
    last_mean = float(evaluations[-1].split(",")[column])
    assert last_mean == pytest.approx(agent.evaluate(episodes=100)[0])
    net.reset_noise(40, torch.Generator().manual_seed(0))
    assert agent.evaluate(episodes=40)[0] != pytest.approx(score[0]), "noise would not show"


@pytest.mark.parametrize(
    "settings",
    [
        {"exploration": "boltzmann", "temperature_start": 100.0, "temperature_final": 100.0},
        {"exploration": "epsilon", "epsilon_start": 1.0, "epsilon_final": 1.0},
        {"algorithm": "a3c"},
        {"algorithm": "a3c", "recurrent": True},
    ],
    ids=lambda s: "-".join(map(str, s.values())),
)
def test_evaluation_is_greedy_whatever_explores(settings) -> None:
    player = make_player(eval_episodes=30, **settings)
    net = player.network.net
    if settings.get("algorithm") == "a3c":  # an even policy, whose mode is still one action
        for name, parameter in net.named_parameters():
            if name.startswith("head"):
                parameter.data.mul_(0.001)
    expected = by_hand(player)
    assert_same_scores(scores(player), expected)
    assert scores(player) == scores(player)


def make_evaluator(**settings: Any) -> tuple[Evaluator, ParameterStore]:
    run_spec = make_player("CartPole-v1", workers=1, **settings).run_spec
    block = SharedBlock(run_spec.sections(padded_size(run_spec.network())))
    store = ParameterStore(block, run_spec.optimizer(), slot=1)
    return Evaluator(run_spec, store, None), store


def test_evaluations_have_their_share_whatever_the_start_cost():
    evaluator, store = make_evaluator()
    store.slot[CPU_NS] = store.slot[STARTUP_NS] = int(10e9 * CPU_SECONDS)
    assert evaluator.within_budget()
    store.slot[CPU_NS] += int(2e9 * CPU_SECONDS + store.slot[CPU_NS])
    assert not evaluator.within_budget()
    store.slots[0, CPU_NS] = int(2 * store.slot[CPU_NS] / CPU_SHARE)
    assert evaluator.within_budget()


@pytest.mark.parametrize(
    "goal, of_workers, allowed",
    [({}, 100, 2.0), ({}, 10_000, 198.8), ({"stop_at_return": 475.0}, 100, 11.0)],
)
def test_long_runs_and_wanted_thresholds_allow_a_larger_share(goal, of_workers, allowed):
    evaluator, store = make_evaluator(**goal)
    store.slots[0, CPU_NS] = of_workers * 10**9
    assert evaluator.cpu_budget_s == pytest.approx(allowed)


@pytest.mark.parametrize("goal", [{}, {"stop_at_return": 475.0}])
@pytest.mark.parametrize("of_workers, confirmed", [(10, False), (10_000_000, True)])
def test_long_episodes_are_confirmed_only_if_that_is_within_the_share(goal, of_workers, confirmed):
    evaluator, store = make_evaluator(**goal)
    store.slots[0, CPU_NS] = of_workers * 10**9
    steps = evaluator.evaluate()
    with pytest.raises(StopIteration) as end:
        while True:
            next(steps)
            store.slot[CPU_NS] += 10**9  # a second for every vector step
    evaluation = end.value.value
    assert (evaluation.confirmed, evaluation.episodes) == (confirmed, 100 if confirmed else 10)


@pytest.mark.parametrize("wanted, screened", [(100, 10), (10, 5), (1, 1)])
def test_screening_is_cheaper_than_confirming(wanted, screened):
    evaluator, _ = make_evaluator(eval_episodes=wanted)
    evaluator.best = math.inf
    steps = evaluator.evaluate()
    with pytest.raises(StopIteration) as end:
        while True:
            next(steps)
    assert (end.value.value.confirmed, end.value.value.episodes) == (False, screened)


def test_a_confirmation_is_given_up_when_its_mean_will_miss_the_goal():
    def confirmed(goal: float) -> int:
        evaluator.crew.begin(evaluator.crew.player.screening)
        for _ in evaluator._confirm(goal):
            pass
        return len(evaluator.crew.results(0, evaluator.crew.player.total))

    run_spec = make_player(CueEnv, workers=1, eval_episodes=200).run_spec
    block = SharedBlock(run_spec.sections(padded_size(run_spec.network())))
    evaluator = Evaluator(run_spec, ParameterStore(block, run_spec.optimizer(), slot=1), None)
    assert confirmed(-math.inf) == confirmed(-1e9) == 200
    assert MIN_RETURNS <= confirmed(1e9) < 60


def test_only_a_prefix_of_the_episodes_is_judged():
    """Those that finish first are the short ones."""
    player = make_player(eval_episodes=40)
    crew, seen = Crew(player), 0
    crew.begin(0)
    for _ in crew.play(player.total):
        prefix = [one.number for one in crew.prefix(0)]
        assert prefix == list(range(len(prefix)))
        seen += len(prefix) < len(crew.results(0, player.total))
    assert seen, "some finished before an earlier one"


def test_a_threshold_that_is_missed_is_not_confirmed_for_a_best_score_that_costs_too_much():
    evaluator, store = make_evaluator(stop_at_return=475.0)
    assert evaluator._goal == -math.inf  # whatever it is, it would be the best
    store.slot[CPU_NS] = int(0.5e9 * CPU_SECONDS)
    assert evaluator._goal == 475.0
