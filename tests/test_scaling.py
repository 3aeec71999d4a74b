"""What follows from the number of workers: derived for many, and what is given wins."""

import itertools
import json

import pytest

from async_dqn.config.config import Config, UserError
from async_dqn.config.options import parse_train
from async_dqn.config.presets import resolve
from async_dqn.config.scaling import FOLLOWING, MOST_EVALUATING, evaluation_processes, momentum

COUNTS = (1, 2, 3, 7, 16, 64, 256)
PRESETS = ("CartPole-v1", "LunarLander-v3", "MinAtar/Breakout-v1", "ALE/Pong-v5", "Nowhere-v0")
each_env = pytest.mark.parametrize("env", PRESETS)


def of(workers: int, **settings) -> dict:
    """All settings by name as so many asynchronous workers get them."""
    return resolve({"workers": workers, "oversubscribe": True, **settings})[0].by_name()


def samples(settings: dict) -> int:
    """Steps in one update."""
    if settings["replay"] != "none":
        return settings["batch_size"] * settings["rollout_length"]
    share = settings["envs_per_worker"] / settings["minibatches"]
    return int(share * settings["rollout_length"])


@each_env
def test_environments_in_all_do_not_grow_with_the_workers_but_for_one_each(env) -> None:
    whole = of(2, env=env)["envs"]
    for count in COUNTS:
        settings = of(count, env=env)
        total = count * settings["envs_per_worker"]
        least = count * (1 if settings["replay"] == "none" else 2)
        assert settings["envs_per_worker"] >= 1
        # Rounded for each worker.
        assert total <= max(whole + count / 2, least)
        assert total >= whole - count / 2


@each_env
def test_the_presets_hold_for_two_workers(env) -> None:
    config, _ = resolve({"env": env, "workers": 2})
    settings = config.by_name()
    assert config.whole["workers"] == 2
    assert set(config.whole) == {*FOLLOWING, "workers"}
    unchanged = set(FOLLOWING) - {"envs_per_worker"}
    assert {name: settings[name] for name in unchanged} == {n: config.whole[n] for n in unchanged}
    assert settings["envs_per_worker"] == settings["envs"] // 2


@each_env
def test_rate_batch_and_momentum_fall_with_the_workers(env) -> None:
    chosen = [of(count, env=env) for count in COUNTS[1:]]
    for fewer, more in itertools.pairwise(chosen):
        assert more["lr"] < fewer["lr"]
        assert more["beta1"] <= fewer["beta1"]
        assert samples(more) <= samples(fewer)
    assert of(1, env=env)["lr"] == chosen[0]["lr"]
    assert [settings["beta1"] for settings in chosen[-3:]] == [0, 0, 0]
    assert chosen[1]["beta1"] == pytest.approx(8 / 9)  # one worker more, one update younger


def test_momentum_and_further_workers_are_as_old_together() -> None:
    for others in range(9):
        left = momentum(0.9, others)
        assert left / (1 - left) + others == pytest.approx(9)
    assert momentum(0.9, 9.5) == momentum(0.9, 100) == momentum(0.0, 1) == 0.0


def test_replay_looks_at_each_step_as_often_for_any_number_of_workers() -> None:
    looks = []
    for count in COUNTS:
        settings = of(count, env="ALE/Pong-v5")
        taken = settings["envs_per_worker"] * settings["rollout_length"]
        looks.append(settings["epochs"] * samples(settings) / taken)
    assert looks == pytest.approx([8] * len(looks), rel=0.15)


def test_what_the_user_sets_wins_and_the_rest_follows_from_it() -> None:
    given = {"lr": 0.01, "beta1": 0.5, "epsilon_steps": 123, "envs_per_worker": 8}
    settings = of(256, env="CartPole-v1", **given)
    assert {name: settings[name] for name in given} == given
    config, _ = resolve({"env": "CartPole-v1", "workers": 2, **given})
    assert not given.keys() & config.whole.keys()
    # A larger share, a larger batch, a larger rate.
    rates = [of(16, env="CartPole-v1", envs_per_worker=n)["lr"] for n in (1, 4, 16)]
    assert rates == pytest.approx([rates[1] / 2, rates[1], rates[1] * 2])
    assert of(16, env="LunarLander-v3", minibatches=3)["envs_per_worker"] >= 3


def test_a_file_of_settings_wins_too(tmp_path) -> None:
    file = tmp_path / "own.toml"
    file.write_text("[optimizer]\nlr = 0.25\n")
    config, _ = resolve({"workers": 16, "oversubscribe": True}, config_file=str(file))
    assert config.optimizer.lr == 0.25 and config.optimizer.beta1 == 0


def test_auto_leaves_a_setting_to_the_rule_whatever_a_file_says(tmp_path) -> None:
    file = tmp_path / "own.toml"
    file.write_text("[optimizer]\nlr = 0.25\nbeta1 = 'auto'\n")
    many = {"workers": 16, "oversubscribe": True}
    given = parse_train(["--lr", "auto", "--target-sync-steps", "auto"])
    config, explicit = resolve({**many, **given}, config_file=str(file))
    assert config == resolve(many)[0]
    assert explicit == {"parallel.workers", "parallel.oversubscribe"}
    with pytest.raises(UserError, match="--gamma must be a number"):
        parse_train(["--gamma", "auto"])
    with pytest.raises(UserError, match="gamma must be a number"):
        resolve({"gamma": "auto"})


def test_more_workers_than_environments_explore_for_as_many_rounds() -> None:
    before, after = of(64, env="CartPole-v1"), of(256, env="CartPole-v1")
    assert before["epsilon_steps"] == 50_000
    assert after["epsilon_steps"] >= 100 * 256 * after["rollout_length"]
    assert of(256, env="Nowhere-v0")["target_sync_steps"] >= 2 * 256 * after["rollout_length"] / 2


def test_simulated_workers_are_as_real_ones_and_serial_ones_take_turns() -> None:
    def of_mode(**settings) -> dict:
        settings = resolve({"env": "CartPole-v1", **settings})[0].by_name()
        return {name: settings[name] for name in FOLLOWING}

    simulated = of_mode(mode="serial", simulate_workers=16)
    real = of(16, env="CartPole-v1")
    assert simulated == {name: real[name] for name in FOLLOWING}
    in_turn = of_mode(mode="serial", workers=16)
    assert in_turn["envs_per_worker"] == 4 and in_turn["beta1"] == 0.9
    assert simulated["lr"] < in_turn["lr"] < 3e-3


def test_synchronous_workers_keep_batch_rate_and_momentum_of_the_whole() -> None:
    for count in (2, 4, 16):
        settings = of(count, env="LunarLander-v3", mode="sync")
        assert (settings["lr"], settings["beta1"]) == (3e-3, 0.9)
        assert count * samples(settings) == 2 * 256


def test_presets_for_one_process_scale_from_one() -> None:
    one, _ = resolve({"env": "CartPole-v1"}, None, "pqn")
    assert (one.whole["workers"], one.parallel.envs_per_worker) == (1, 16)
    assert (one.optimizer.lr, one.parallel.minibatches) == (3e-3, 8)
    many = {"env": "CartPole-v1", "mode": "async", "workers": 8}
    eight, _ = resolve(many, None, "pqn")
    assert eight.parallel.envs_per_worker == 2 and eight.optimizer.lr < 3e-3


def test_what_follows_is_stored_with_what_it_follows_from() -> None:
    config, _ = resolve({"env": "CartPole-v1", "workers": 16, "oversubscribe": True})
    stored = json.loads(json.dumps(config.to_dict()))
    assert stored["whole"]["lr"] == 3e-3 and stored["optimizer"]["lr"] < 1e-3
    assert Config.from_dict(stored) == config
    with pytest.raises(UserError, match=r"unknown key 'whole\.gama'"):
        Config.from_dict({"whole": {"gama": 1}})


def test_both_shares_and_whole_are_refused() -> None:
    with pytest.raises(UserError, match="--envs is shared out"):
        resolve({"envs": 8, "envs_per_worker": 4})


def test_other_workers_in_a_resumed_run_share_anew_what_was_not_given() -> None:
    config, _ = resolve({"env": "CartPole-v1", "workers": 2, "beta1": 0.7})
    more = config.with_settings({"workers": 16}).shared_out_anew(set())
    wanted = of(16, env="CartPole-v1", beta1=0.7)
    assert {name: more.by_name()[name] for name in FOLLOWING} == {n: wanted[n] for n in FOLLOWING}
    given = config.with_settings({"workers": 16, "lr": 0.5}).shared_out_anew({"lr"})
    assert given.optimizer.lr == 0.5 and "lr" not in given.whole
    old = Config.from_dict({"optimizer": {"lr": 0.5}})  # from before there was such a rule
    assert old.with_settings({"workers": 16}).shared_out_anew(set()).by_name() == {
        **old.by_name(),
        "workers": 16,
    }


def test_how_many_processes_evaluate() -> None:
    two_cores = [evaluation_processes(workers, 2) for workers in (1, 2, 3, 16, 64, 256)]
    assert two_cores == [1, 1, 1, 2, 6, 16]
    assert [evaluation_processes(2, cores) for cores in (1, 2, 3, 4, 16, 64)] == [
        1,
        1,
        1,
        2,
        14,
        16,
    ]
    for workers in range(1, 300):
        for cores in (1, 2, 7, 16, 64, 256):
            count = evaluation_processes(workers, cores)
            assert 1 <= count <= MOST_EVALUATING
            assert count >= min(MOST_EVALUATING, workers // 10, max(1, cores - workers))
            assert count <= evaluation_processes(workers, cores + 1)
