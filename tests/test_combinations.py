"""What does not go together is refused with its reason; its neighbours are accepted."""

import itertools
import re

import pytest

from async_dqn import cli
from async_dqn.config.config import SETTINGS, Config, UserError
from async_dqn.config.fields import either
from async_dqn.config.idle import ACTS_ONLY_WITH
from async_dqn.config.presets import resolve
from async_dqn.config.rules import RULES

ENV = {"env": "Elsewhere/Env-v0"}  # no preset tunes it: the defaults hold
A3C, SARSA = {"algorithm": "a3c"}, {"algorithm": "one-step-sarsa"}
CATEGORICAL, QUANTILE = {"distributional": "categorical"}, {"distributional": "quantile"}
REPLAY = {"replay": "uniform"}
SIMULATED = {"mode": "serial", "simulate_workers": 4}
NORMALIZED = {"normalize_observations": True}
Q_LAMBDA, AVERAGE = {"algorithm": "q-lambda"}, {"average_steps": 100}
FROZEN = {"freeze": "torso", "init_from": "a"}
STAGES = {"model_parallel": True, "mode": "sync", "workers": 2}

# Row of RULES: settings that are refused, each beside a neighbour that is not.
REFUSED = [
    (0, {"double": True, "target_sync_steps": None}, {"double": True}),
    (0, {"double": True, "target_sync_steps": None}, {"target_sync_steps": None}),
    (1, {"double": True, **SARSA}, SARSA),
    (1, {"double": True, **A3C}, A3C),
    (1, {"double": True, "munchausen": True}, {"munchausen": True}),
    (1, {"double": True, **SARSA}, {"double": True, "algorithm": "one-step-q"}),
    (2, {"munchausen": True, **SARSA}, {"munchausen": True, "algorithm": "one-step-q"}),
    (2, {"munchausen": True, **A3C}, {"munchausen": True, "algorithm": "q-lambda"}),
    (3, {"munchausen": True, **CATEGORICAL}, {"munchausen": True}),
    (3, {"munchausen": True, **QUANTILE}, QUANTILE),
    (4, {"munchausen": True, "value_rescaling": True}, {"value_rescaling": True}),
    (5, {"dueling": True, **A3C}, {"dueling": True, **SARSA}),
    (5, {**CATEGORICAL, **A3C}, CATEGORICAL),
    (5, {**QUANTILE, **A3C}, {"noisy": True, "recurrent": True, **A3C}),
    (6, {"value_rescaling": True, **A3C}, {"value_rescaling": True, **SARSA}),
    (7, {**CATEGORICAL, "algorithm": "q-lambda"}, {**CATEGORICAL, "algorithm": "n-step-q"}),
    (
        7,
        {**QUANTILE, "algorithm": "q-lambda", "lam": 0.99},
        {**QUANTILE, "algorithm": "q-lambda", "lam": 1.0},
    ),
    (
        7,
        {**CATEGORICAL, "algorithm": "q-lambda", "lam": 0.01},
        {**CATEGORICAL, "algorithm": "q-lambda", "lam": 0.0, "trace": "watkins"},
    ),
    (8, {**CATEGORICAL, **SARSA}, {**CATEGORICAL, "algorithm": "one-step-q"}),
    (8, {**QUANTILE, **SARSA}, SARSA),
    (9, {**CATEGORICAL, "v_min": 3.0, "v_max": 3.0}, {**CATEGORICAL, "v_min": 3.0}),
    (9, {**CATEGORICAL, "v_min": 5.0, "v_max": -5.0}, {**CATEGORICAL, "v_min": -5.0, "v_max": 5.0}),
    (10, {**REPLAY, **SARSA}, {**REPLAY, "algorithm": "one-step-q"}),
    (10, {"replay": "prioritized", **SARSA}, {"replay": "none", **SARSA}),
    (10, {**REPLAY, **A3C}, {**REPLAY, "algorithm": "n-step-q"}),
    (11, {**REPLAY, "recurrent": True}, {"recurrent": True}),
    (11, {"replay": "prioritized", "recurrent": True}, {"replay": "prioritized"}),
    (12, {"epochs": 2, **SARSA}, {"epochs": 2, "algorithm": "one-step-q"}),
    (12, {"epochs": 2, **A3C}, A3C),
    (12, {"minibatches": 2, **SARSA}, {"minibatches": 2, "algorithm": "q-lambda"}),
    (13, {"minibatches": 9}, {"minibatches": 8}),
    (14, {"minibatches": 2, **REPLAY}, {"epochs": 2, **REPLAY}),
    (15, {"minibatches": 2, "noisy": True}, {"epochs": 2, "noisy": True}),
    (16, {"exploration": "noisy"}, {"exploration": "noisy", "noisy": True}),
    (16, {"exploration": "noisy", "recurrent": True}, {"exploration": "epsilon", "noisy": True}),
    (17, {"simulate_workers": 64}, {"simulate_workers": 64, "mode": "serial"}),
    (17, {"simulate_workers": 1, "mode": "async"}, {"simulate_workers": None, "mode": "async"}),
    (18, {"simulate_times": "a", "mode": "serial"}, {"simulate_times": "a", **SIMULATED}),
    (19, {**STAGES, "mode": "async"}, {**STAGES, "double": True}),
    (19, {**STAGES, "mode": "serial"}, {**STAGES, "algorithm": "q-lambda"}),
    (19, {**STAGES, "workers": 1}, {**STAGES, "munchausen": True}),
    (19, {**STAGES, "workers": 3}, {**STAGES, "dueling": True, **SARSA}),
    (20, {**STAGES, "sync_average": "params"}, {**STAGES, "sync_average": "gradients"}),
    (21, {**STAGES, **A3C}, {**STAGES, "algorithm": "one-step-q"}),
    (21, {**STAGES, **QUANTILE}, {**STAGES, "value_rescaling": True}),
    (22, {**STAGES, "recurrent": True}, STAGES),
    (22, {**STAGES, "noisy": True}, {**STAGES, "exploration": "boltzmann"}),
    (23, {**STAGES, **REPLAY}, STAGES),
    (23, {**STAGES, "epochs": 2}, STAGES),
    (23, {**STAGES, "minibatches": 2}, STAGES),
    (24, {**STAGES, "network": "linear"}, {**STAGES, "network": "mlp"}),
    (25, {"workers": 2, "min_workers": 3}, {"workers": 2, "min_workers": 2}),
    (26, {**STAGES, "device": "cuda"}, {"mode": "sync", "device": "cuda"}),
    (27, {"target": "polyak", "target_sync_steps": None}, {"target": "polyak"}),
    (28, {"target": "average", **CATEGORICAL}, {"target": "polyak", **CATEGORICAL}),
    (29, {"target": "average", **STAGES}, {"target": "average"}),
    (30, {"clip_rewards": False}, {"clip_rewards": False, "env": "ALE/Pong-v5"}),
    (
        31,
        {"value_rescaling": True, "env": "ALE/Pong-v5"},
        {"value_rescaling": True, "env": "ALE/Pong-v5", "clip_rewards": False},
    ),
    (30, {"life_loss_ends": False}, {"life_loss_ends": False, "env": "ALE/Pong-v5"}),
    (32, {"persistence": 2.0, "algorithm": "a3c"}, {"persistence": 2.0}),
    (33, {"input_scaling": True, **NORMALIZED}, NORMALIZED),
    (34, {**NORMALIZED, **STAGES}, NORMALIZED),
    (35, {"horizon_steps": 100}, {"horizon_steps": 100, "gamma_start": 0.9}),
    (35, {**Q_LAMBDA, "lam_start": 0.9}, {**Q_LAMBDA, "lam_start": 0.9, "horizon_steps": 100}),
    (
        36,
        {"horizon_steps": 100, "gamma_start": 0.995, "gamma": 0.99},
        {"horizon_steps": 100, "gamma_start": 0.99, "gamma": 0.99},
    ),
    (
        37,
        {**Q_LAMBDA, "horizon_steps": 100, "lam_start": 0.3, "lam": 0.5},
        {**Q_LAMBDA, "horizon_steps": 100, "lam_start": 1.0, "lam": 0.5},
    ),
    (38, {"samples_per_step": 2.0}, {"samples_per_step": 2.0, **REPLAY}),
    (39, {"random_shift": 4}, {"random_shift": 4, **REPLAY}),
    (40, {"average_steps": 100}, {"average_steps": 100, "score_by_average": True}),
    (40, {"act_by_average": True}, {"average_steps": 100, "act_by_average": True}),
    (
        41,
        {**AVERAGE, "target_by_average": True, "target_sync_steps": None},
        {**AVERAGE, "target_by_average": True},
    ),
    (42, {**AVERAGE, "act_by_average": True, **A3C}, {**AVERAGE, "score_by_average": True, **A3C}),
    (42, {**AVERAGE, "act_by_average": True, "recurrent": True}, {"recurrent": True}),
    (43, {"target_layers": "last", "target_sync_steps": None}, {"target_layers": "last"}),
    (43, {"target_layers": "last", "target": "average"}, {"target": "average"}),
    (44, {"freeze": "torso"}, FROZEN),
    (45, {**FROZEN, "weight_decay": 0.1}, {"init_from": "a", "weight_decay": 0.1}),
    (45, {**FROZEN, "reset_every": 1000}, {"init_from": "a", "reset_every": 1000}),
    (46, {**STAGES, "reset_every": 1000}, {"reset_every": 1000}),
    (46, {**STAGES, "target_layers": "last"}, {"target_layers": "last"}),
    (46, {**STAGES, **FROZEN}, {**STAGES, "init_from": "a"}),
]


def refusal(settings: dict) -> str:
    with pytest.raises(UserError) as caught:
        resolve({**ENV, **settings})
    return str(caught.value)


def shown(value) -> str:
    return "-".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else str(value)


@pytest.mark.parametrize(("row", "settings", "neighbour"), REFUSED, ids=shown)
def test_what_does_not_go_together_is_refused_with_its_reason(row, settings, neighbour) -> None:
    assert refusal(settings) == RULES[row].reason
    config, _ = resolve({**ENV, **neighbour})
    assert not any(rule.refused(config) for rule in RULES)


def test_every_rule_is_tried_and_says_in_one_line_what_to_do() -> None:
    assert {row for row, *_ in REFUSED} == set(range(len(RULES)))
    options = {about.option for about in SETTINGS.values()} | {"--no-double"}
    for rule in RULES:
        named = re.findall(r"--[a-z-]+", rule.reason)
        assert set(named) <= options and "\n" not in rule.reason
        assert re.search(r"drop|choose|add|must|use", rule.reason)


def test_a_stored_or_hand_made_configuration_is_held_to_the_same_rules() -> None:
    for row, settings, _ in REFUSED:
        with pytest.raises(UserError, match=re.escape(RULES[row].reason)):
            Config.from_flat(settings)
        sections: dict[str, dict] = {}
        for name, value in settings.items():
            sections.setdefault(SETTINGS[name].section, {})[name] = value
        with pytest.raises(UserError, match=re.escape(RULES[row].reason)):
            Config.from_dict(sections)


def test_a_file_may_not_combine_what_does_not_go_together_either(tmp_path) -> None:
    path = tmp_path / "c.toml"
    path.write_text('[algorithm]\nalgorithm = "one-step-sarsa"\n[replay]\nreplay = "uniform"\n')
    with pytest.raises(UserError, match=re.escape(RULES[10].reason)):
        resolve(ENV, str(path))
    config, _ = resolve({**ENV, "replay": "none"}, str(path))  # the command line mends it
    assert config.replay.replay == "none"


# A value for every setting that does nothing alone, as typed.
ALONE = {
    "lam": 0.5,
    "trace": "watkins",
    "entropy_weight": 0.5,
    "exploration": "epsilon",
    "epsilon_start": 0.5,
    "epsilon_final": 0.01,
    "temperature_start": 2.0,
    "temperature_final": 0.5,
    "target_tau": 0.1,
    "target_networks": 3,
    "atoms": 11,
    "v_min": -3.0,
    "v_max": 3.0,
    "replay_capacity": 5000,
    "replay_start": 50,
    "batch_size": 8,
    "priority_exponent": 0.5,
    "priority_beta": 0.5,
    "sync_average": "params",
    "sync_every": 4,
    "beta1": 0.5,
    "adam_eps": 1e-3,
    "lam_start": 0.9,
    "staleness_scaling": True,
    "max_staleness": 3,
    "hang_timeout": 5.0,
    "min_workers": 1,
}
# What a value or a setting needs itself.
NEEDS = {
    "lam_start": {"horizon_steps": 100},
    "noisy": {"noisy": True},
    "params": {"mode": "sync"},
    "gradients": {"mode": "sync"},
}


def choices_without_effect() -> list[tuple[str, str, str, bool]]:
    """(setting, what it acts with, a value of that, whether it acts)."""
    rows = []
    for name, (other, allowed) in ACTS_ONLY_WITH.items():
        for value in SETTINGS[other].choices:
            rows.append((name, other, value, value in allowed))
    return rows


@pytest.mark.parametrize(("name", "other", "value", "acts"), choices_without_effect())
def test_a_setting_that_would_do_nothing_is_refused_where_it_was_typed(
    name, other, value, acts
) -> None:
    settings = {name: ALONE[name], other: value, **NEEDS.get(value, {}), **NEEDS.get(name, {})}
    if acts:
        config, _ = resolve({**ENV, **settings})
        assert config.flat()[SETTINGS[name].dotted] == ALONE[name]
        return
    allowed = either(ACTS_ONLY_WITH[name][1])
    option = "--" + name.replace("_", "-")
    assert refusal(settings) == (
        f"{option} {ALONE[name]} acts only with --{other} {allowed} (this run: {value}); "
        f"drop {option} or choose {allowed}"
    )


def test_every_entry_is_tried_and_names_settings_and_choices_there_are() -> None:
    assert ALONE.keys() == ACTS_ONLY_WITH.keys() <= SETTINGS.keys()
    for other, allowed in ACTS_ONLY_WITH.values():
        assert set(allowed) < SETTINGS[other].choices.keys()


@pytest.mark.parametrize(
    "settings",
    [
        {"exploration": "noisy", "noisy": True, "epsilon_start": 0.0},
        {"exploration": "ladder", "epsilon_start": 0.01},
        {"exploration": "apex", "epsilon_start": 0.01},
    ],
    ids=shown,
)
def test_the_final_epsilon_is_no_obstacle_where_it_is_not_used(settings) -> None:
    """Nothing could mend it: --epsilon-final itself is refused there."""
    config, _ = resolve({**ENV, **settings})
    assert config.exploration.epsilon_start == settings["epsilon_start"]


def test_a_file_may_hold_what_only_some_algorithms_use(tmp_path) -> None:
    path = tmp_path / "c.toml"
    path.write_text("[algorithm]\nlam = 0.5\nentropy_weight = 0.1\n[replay]\nbatch_size = 8\n")
    for algorithm in SETTINGS["algorithm"].choices:
        config, _ = resolve({**ENV, "algorithm": algorithm}, str(path))
        assert (config.algorithm.lam, config.replay.batch_size) == (0.5, 8)


def test_every_method_goes_with_every_network_and_optimizer() -> None:
    names = ("algorithm", "optimizer", "noisy", "recurrent")
    choices = [SETTINGS[name].choices or (False, True) for name in names]
    for values in itertools.product(*choices):
        resolve(ENV | dict(zip(names, values)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--double", "--target-sync-steps", "none"], RULES[0].reason),
        (["--algorithm", "a3c", "--dueling"], RULES[5].reason),
        (["--algorithm", "one-step-sarsa", "--replay", "uniform"], RULES[10].reason),
        (["--recurrent", "--replay", "prioritized"], RULES[11].reason),
        (["--exploration", "noisy"], RULES[16].reason),
        (
            ["--batch-size", "8"],
            "--batch-size 8 acts only with --replay uniform or prioritized (this run: none); "
            "drop --batch-size or choose uniform or prioritized",
        ),
        (
            ["--algorithm", "n-step-q", "--lam", "0.9"],
            "--lam 0.9 acts only with --algorithm q-lambda (this run: n-step-q); "
            "drop --lam or choose q-lambda",
        ),
    ],
)
def test_refused_on_the_command_line_before_anything_is_written(
    arguments, message, tmp_path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 2
    assert capsys.readouterr().err == f"error: {message}\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "word", "meant"),
    [
        ("algorithm", "one-step-sara", "one-step-sarsa"),
        ("algorithm", "a2c", "a3c"),
        ("trace", "watkin", "watkins"),
        ("distributional", "categoric", "categorical"),
        ("distributional", "Quantiles", "quantile"),
        ("replay", "prioritised", "prioritized"),
        ("exploration", "boltzman", "boltzmann"),
        ("exploration", "apx", "apex"),
        ("optimizer", "rms-prop", "rmsprop"),
        ("network", "impalla", "impala"),
    ],
)
def test_an_unknown_name_gives_the_closest_match(name, word, meant) -> None:
    known = SETTINGS[name].choices
    expected = f"unknown {name} {word!r}; did you mean {meant}? Choose {either(known)}"
    assert refusal({name: word}) in (expected, f"{name}: {expected}")


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("munchhausen", "munchausen"),
        ("prioritized_beta", "priority_beta"),
        ("entropy_weigth", "entropy_weight"),
        ("temperature_finale", "temperature_final"),
        ("max_stalenes", "max_staleness"),
    ],
)
def test_an_unknown_setting_gives_the_closest_match(name, meant) -> None:
    assert refusal({name: 1}) == f"unknown setting '{name}'; did you mean {meant}?"
