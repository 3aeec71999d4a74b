"""Asynchronous runs on small MDPs end where theory says, with 2 and with 4 workers.

The network is a table (`--network linear` on one-hot states). What each algorithm must converge to
is computed by `exact_mdps`: Q* for one-step methods and Watkins' cut whatever the exploration; for
Peng's trace and n-step returns, which run on through exploratory actions, a fixed point of their
own far from Q*; for Sarsa the value of the epsilon-greedy policy it follows. Errors are in
shares of max |Q*|. Steps and learning rate are chosen so that the largest error of the 10 to 32
values, all of it noise, is below 2 % on `random` and `chain` and below 3.5 % on the others.
"""

import functools

import numpy as np
import pytest
from exact_mdps import (
    MDP,
    MDPEnv,
    Operator,
    chain,
    cliff,
    distance,
    fixed_point,
    grid,
    optimal_q,
    random_mdp,
    regret,
)

from async_dqn import AsyncDQN

TOLERANCE = 0.05
LENGTH = 5  # of a rollout
HALF = {"epsilon_start": 0.5, "epsilon_final": 0.5}  # every other action random, all the time
MDPS = {"random": random_mdp(), "chain": chain(), "cliff": cliff(), "grid": grid()}
ONE_STEP = {"algorithm": "one-step-q"}
REPLAY = {**ONE_STEP, "batch_size": 80, "replay_capacity": 20_000}
# Settings, and what their targets are in expectation.
METHODS = {
    "one-step": (ONE_STEP, {}),
    "double": ({**ONE_STEP, "double": True}, {}),
    "dueling": ({**ONE_STEP, "dueling": True}, {}),
    "watkins": ({"algorithm": "q-lambda", "trace": "watkins"}, {"lam": 0.65, "watkins": True}),
    "uniform": ({**REPLAY, "replay": "uniform"}, {}),
    "prioritized": ({**REPLAY, "replay": "prioritized"}, {}),
    "sarsa": ({"algorithm": "one-step-sarsa"}, {"sarsa": True}),
    "n-step": ({"algorithm": "n-step-q"}, {"lam": 1.0}),
    "peng": ({"algorithm": "q-lambda", "lam": 0.65}, {"lam": 0.65}),
}
REACH_Q_STAR = ("one-step", "double", "dueling", "watkins", "uniform", "prioritized")
QUICK = {
    ("random", "one-step", 4),
    ("random", "n-step", 2),
    ("random", "prioritized", 2),
    ("random", "sarsa", 2),
    ("grid", "watkins", 2),
}
# Their values are others (regularised, or a policy's), or slow in the last percents.
GREEDY = {
    "munchausen": {**ONE_STEP, "munchausen": True, **HALF},
    "categorical": {
        "algorithm": "n-step-q",
        "distributional": "categorical",
        "v_min": -6.0,
        "v_max": 6.0,
        **HALF,
    },
    "quantile": {"algorithm": "n-step-q", "distributional": "quantile", "atoms": 21, **HALF},
    "a3c": {"algorithm": "a3c", "target_sync_steps": None},
}


def slow_unless(quick: bool, *values):
    return pytest.param(*values, marks=[] if quick else pytest.mark.slow)


def learned(mdp: MDP, folder, **settings) -> np.ndarray:
    """Q [S, A] at the end of an asynchronous run on `mdp`."""
    settings = {
        "defaults": "fixed",
        "workers": 2,
        "envs_per_worker": 16,
        "rollout_length": LENGTH,
        "network": "linear",
        "layer_norm": False,
        "gamma": mdp.gamma,
        "lr": 0.01,
        "max_grad_norm": 1e6,  # a clipped gradient would be a biased one
        "target_sync_steps": 1000,
        "steps": 100_000,
        "eval_every": 10**9,
        "eval_episodes": 1,
        "checkpoint_every": 10**9,
        "runs_dir": str(folder),
        **settings,
    }
    agent = AsyncDQN(functools.partial(MDPEnv, mdp), **settings)
    assert agent.config.parallel.mode == "async"
    return agent.learn().q_values(np.arange(len(mdp.terminal)))


@pytest.mark.parametrize(
    ("name", "method", "workers"),
    [
        slow_unless((name, method, workers) in QUICK, name, method, workers)
        for name in MDPS
        for method in METHODS
        for workers in (2, 4)
    ],
)
def test_values_converge_to_the_fixed_point_of_the_method(name, method, workers, tmp_path):
    mdp, (settings, expectation) = MDPS[name], METHODS[method]
    # With four actions half of the pairs are rare, and the targets of these methods vary most.
    rare = name in ("cliff", "grid") and method not in ("one-step", "double", "dueling", "watkins")
    steps = 300_000 if rare else 100_000
    q = learned(mdp, tmp_path, workers=workers, steps=steps, **HALF, **settings)
    truth = fixed_point(mdp, Operator(0.5, LENGTH, **expectation))
    assert distance(mdp, q, truth) < TOLERANCE
    if method in REACH_Q_STAR:
        assert distance(mdp, q, optimal_q(mdp)) < TOLERANCE
    elif name in ("random", "cliff"):
        assert distance(mdp, q, optimal_q(mdp)) > 0.2
    if name == "grid":  # a time limit taken for an end would show
        ends = Operator(0.5, LENGTH, **expectation, at_limit="terminate")
        assert distance(mdp, q, fixed_point(mdp, ends)) > 0.15


@pytest.mark.slow
@pytest.mark.parametrize("workers", [2, 4])
@pytest.mark.parametrize("method", ["n-step", "peng"])
@pytest.mark.parametrize("name", ["random", "cliff"])
def test_the_bias_of_exploring_goes_away_with_epsilon(name, method, workers, tmp_path):
    """Of the greedy actions only: the others are hardly taken any more once epsilon is small."""
    mdp = MDPS[name]
    exploring = {"epsilon_final": 0.02, "epsilon_steps": 50_000}
    q = learned(mdp, tmp_path, workers=workers, **exploring, **METHODS[method][0])
    missed = np.abs(q.max(1) - optimal_q(mdp).max(1))[mdp.states].max()
    assert missed < TOLERANCE * np.abs(optimal_q(mdp)[mdp.states]).max()
    assert regret(mdp, q) == 0


@pytest.mark.parametrize(
    ("name", "variant", "workers"),
    [
        slow_unless(name == "random" and workers == 2, name, variant, workers)
        for name in MDPS
        for variant in GREEDY
        for workers in (2, 4)
    ],
)
def test_the_greedy_policy_is_optimal(name, variant, workers, tmp_path):
    steps = 50_000 if name == "random" else 100_000
    q = learned(MDPS[name], tmp_path, workers=workers, steps=steps, **GREEDY[variant])
    assert regret(MDPS[name], q) == 0
