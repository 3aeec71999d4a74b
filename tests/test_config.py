"""Settings: defaults, checks, sources and their precedence, round trips."""

import dataclasses
import json
import os
import resource
import time
from pathlib import Path

import numpy as np
import pytest

from async_dqn.config import cores, presets
from async_dqn.config.config import SETTINGS, Config, UserError
from async_dqn.config.cores import usable_cores
from async_dqn.config.presets import resolve
from async_dqn.config.schema import SECTIONS


def message_of(action, *arguments):
    with pytest.raises(UserError) as caught:
        action(*arguments)
    return str(caught.value)


def write(folder: Path, text: str, name: str = "c.toml") -> str:
    (folder / name).write_text(text)
    return str(folder / name)


def test_every_setting_is_documented_and_has_a_unique_name():
    fields = [f for kind in SECTIONS.values() for f in dataclasses.fields(kind)]
    assert len(fields) == len(SETTINGS)
    for about in SETTINGS.values():
        assert about.help and about.default, about.name
        numeric = about.kind in (int, float)
        assert not numeric or about.within, f"{about.name} has no range"


def test_config_is_frozen_and_normalises_types():
    config = Config.from_flat({"gamma": 1, "hidden": [64], "workers": np.int64(2)})
    assert type(config.algorithm.gamma) is float and config.network.hidden == (64,)
    assert type(config.parallel.workers) is int
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.algorithm.gamma = 0.5


def test_stored_config_survives_json():
    config = Config.from_flat(
        {
            "env_arg": {"sticky_action_prob": 0.1, "mode": "x"},
            "import_modules": ["a.b"],
            "target_sync_steps": None,
            "layer_norm": "off",
            "stop_at_return": 475,
            "seed": 2**63 - 1,
        }
    )
    assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert config.flat()["network.layer_norm"] is False


def test_stored_config_is_checked():
    assert Config.from_dict({"optimizer": {"lr": 0.5}}).optimizer.lr == 0.5
    text = message_of(Config.from_dict, {"optimizer": {"learning": 1}})
    assert text == "stored settings: unknown key 'optimizer.learning'"
    text = message_of(Config.from_dict, {"run": {"steps": "many"}})
    assert text.startswith("stored settings: run.steps must be a whole number from 1")


def test_with_settings_changes_only_what_is_named():
    before = Config.from_flat({"lr": 0.5})
    after = before.with_settings({"seed": 7})
    assert (after.optimizer, after.run.seed) == (before.optimizer, 7)
    assert before.run.seed == 0


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"workers": True}, "--workers must be a whole number from 1 (got True)"),
        ({"steps": 1.5}, "--steps must be a whole number from 1 (got 1.5)"),
        ({"steps": 2**63}, "--steps must be below 2^63 (got 9223372036854775808)"),
        ({"lr": 10**400}, "--lr must be a finite number above 0 (got inf)"),
        ({"hidden": []}, "--hidden must be a list of whole numbers within [1, 65536] (got [])"),
        ({"double": "yes"}, "--double must be true or false (got 'yes')"),
        ({"env": ""}, "--env must be text, not empty and without null characters (got '')"),
        ({"env_arg": {"x": object}}, "--env-arg x must be text, true, false, a finite number, or"),
        ({"env_arg": {"x": {"y": [1, {"z": np.inf}]}}}, "--env-arg x.y[1].z must be text, true"),
        ({"target_sync_steps": np.zeros(2)}, "--target-sync-steps must be a whole number from 1,"),
        ({"run_name": "CON.txt"}, "run name 'CON.txt' is reserved on Windows; choose another"),
    ],
)
def test_construction_refuses_wrong_values(values, expected):
    assert message_of(Config.from_flat, values).startswith(expected)


def test_whole_floats_are_whole_numbers():
    config = Config.from_flat({"steps": 1e6, "workers": np.float64(3.0)})
    assert (config.run.steps, config.parallel.workers) == (10**6, 3)
    assert type(config.run.steps) is int


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train.traget_sync_steps = 1", "unknown key 'train.traget_sync_steps'; did you mean"),
        ("[optimizer]\nseed = 1", "unknown key 'optimizer.seed'; did you mean run.seed?"),
        ("lr = 1.0", "unknown key 'lr'; did you mean optimizer.lr?"),
        ("[empty]", "unknown key 'empty'"),
        ("[optimizer]\nlr = 'fast'", "optimizer.lr must be a number (got 'fast')"),
        ("[optimizer]\nlr = '1e-4'", "optimizer.lr must be a number (got '1e-4')"),
        ("[optimizer]\nlr = nan", "optimizer.lr must be a finite number above 0 (got nan)"),
        ("[run]\nsteps = 0", "run.steps must be a whole number from 1 (got '0')"),
        ("[run]\nsteps = 1.5", "run.steps must be a whole number from 1 (got 1.5)"),
        ("[parallel]\nmode = 'asnyc'", "parallel.mode: unknown mode 'asnyc'; did you mean async?"),
        ("[environment]\nimport_modules = ['os']", "modules are not imported from files; use "),
        ("x = " + "[" * 10_000, "nested deeper than 20"),
        ("x = " + "{a = " * 10_000, "nested deeper than 20"),
        ("a." * 25 + "b = 1", "nested deeper than 20"),
        ("a." * 400_000 + "b = 1", "nested deeper than 20"),
        ("[run]\nseed = " + "9" * 5000, "exceeds the limit"),
    ],
)
def test_config_files_have_a_closed_schema(tmp_path, text, expected):
    path = write(tmp_path, text)
    started = time.monotonic()
    text = message_of(presets.read_config, path)
    assert text.startswith(f"{path}: ") and expected.lower() in text.lower()
    assert time.monotonic() - started < 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\n[optimizer]\nlr 1", ":3:4: expected '=' after a key"),
        ("[optimizer]\nlr = 1e-3\nlr = 1", ":3: key 'lr' given twice"),
        ("[run]\n[run]\n", ":2:5: cannot declare ('run',) twice"),
    ],
)
def test_broken_toml_names_the_line(tmp_path, text, expected):
    path = write(tmp_path, text)
    assert message_of(presets.read_config, path) == path + expected


def test_unreadable_config_files(tmp_path):
    yaml = write(tmp_path, "a: !!python/object/apply:os.system ['touch x']", "c.yaml")
    assert message_of(presets.read_config, yaml).startswith(f"{yaml} is not TOML; only TOML")
    for path, reason in [
        (tmp_path / "absent.toml", "No such file or directory"),
        (tmp_path, "Is a directory"),
        (tmp_path / "binary.toml", "not valid UTF-8 at byte 17"),
        (tmp_path / "large.toml", "larger than 1 MB"),
    ]:
        (tmp_path / "binary.toml").write_bytes(b"#" * 17 + b"\xff")
        (tmp_path / "large.toml").write_text("#" * 1_000_001)
        assert message_of(presets.read_config, str(path)) == f"cannot read config {path}: {reason}"


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"workers": 5, "oversubscribe": True, "quiet": True, "import_modules": ("m", "n")},
        {"envs_per_worker": 3, "algorithm": "a3c", "mode": "sync"},
        {"env": "MinAtar/Breakout-v1", "replay": "uniform", "lr": 1e-7, "target_sync_steps": 5},
        {"env": "X-v0", "env_arg": {"a b": [1, {"c": '"\x7f\n\\é'}], "d": 1e300}, "hidden": (7,)},
    ],
)
def test_a_run_is_repeated_from_its_folder_and_from_printed_settings(tmp_path, given, capsys):
    config, _ = resolve({**given, "seed": 4, "run_name": "x", "runs_dir": "elsewhere"})
    write(tmp_path, json.dumps({"settings": config.to_dict()}), "config.json")
    presets._note.cache_clear()
    own = {"run_name": None, "runs_dir": "runs", "quiet": False, "import_modules": ()}
    for _ in range(2):  # but one note
        assert resolve({}, str(tmp_path))[0] == config.with_settings(own)
    note = (
        "note: modules are not imported from files; if you trust them, add --import m --import n\n"
    )
    assert capsys.readouterr().err == (note if "import_modules" in given else "")
    # What followed from the number of workers follows from the new one.
    more = {"workers": 7, "oversubscribe": True, "seed": 4}
    changed = resolve(more, str(tmp_path / "config.json"))[0]
    assert changed == resolve({**given, **more})[0].with_settings(own)
    printed = resolve({}, write(tmp_path, presets.to_toml(config)))[0].by_name()
    expected = {name for name, value in config.by_name().items() if value != printed[name]}
    assert expected <= {"import_modules", "envs"}
    assert "envs" not in expected or "envs_per_worker" in given


@pytest.mark.parametrize(
    ("text", "words"),
    [
        *[
            (text, "is no config.json of a run")
            for text in ("{", "[]", "[" * 10**5, '{"settings": 1}')
        ],
        ('{"settings": {"run": 3}}', "is no config.json of a run"),
        ('{"settings": {"run": {"host": 1}}}', "unknown key 'run.host'"),
        ('{"settings": {"run": {"seed": NaN}}}', "run.seed must be"),
        ('{"settings": {"whole": {"lr": "x"}}}', "whole.lr must be a number"),
        ('{"settings": {}, "peer": {}}', "is of another library's program"),
    ],
)
def test_a_config_of_no_run_is_refused(tmp_path, text, words):
    assert words in message_of(resolve, {}, write(tmp_path, text, "config.json"))


def test_later_sources_win(tmp_path):
    file = write(tmp_path, "[optimizer]\nlr = 0.25\nlr_schedule = 'linear'\n[run]\nsteps = 7\n")
    config, explicit = resolve({"steps": 9}, config_file=file)
    assert config.run.checkpoint_every == 50_000  # preset over default
    assert config.optimizer.lr == 0.25  # file over preset
    assert config.run.steps == 9  # command line over file
    assert explicit == {"optimizer.lr", "optimizer.lr_schedule", "run.steps"}


def test_preset_is_found_by_id_then_family_then_none():
    assert resolve({"env": "CartPole-v0"})[0].optimizer.lr_schedule == "linear"
    assert resolve({"env": "MinAtar/Freeway-v0"})[0].algorithm.algorithm == "q-lambda"
    assert resolve({"env": "ALE/Breakout-v5"})[0].network.network == "nips"
    nowhere = {"env": "Nowhere-v0", "workers": 2}
    assert resolve(nowhere)[0].by_name() == Config.from_flat(nowhere).by_name()
    assert Config().optimizer.lr_schedule == "linear"


def test_preset_by_name_brings_its_environment_and_yields_to_the_users():
    assert resolve({}, preset="lunarlander")[0].environment.env == "LunarLander-v3"
    config, _ = resolve({"env": "CartPole-v1"}, preset="lunarlander")
    assert (config.environment.env, config.run.steps) == ("CartPole-v1", 1_500_000)
    assert message_of(resolve, {}, None, "best").startswith("unknown preset 'best'; choose acrobo")


def test_table_per_algorithm_applies_whoever_chose_the_algorithm(tmp_path):
    env = {"env": "MinAtar/Breakout-v1"}
    assert resolve(env)[0].optimizer.target_sync_steps is None
    chosen = {**env, "algorithm": "n-step-q"}
    assert resolve(chosen)[0].optimizer.target_sync_steps == 4_000
    file = write(tmp_path, "[algorithm]\nalgorithm = 'n-step-q'")
    assert resolve(env, config_file=file)[0].optimizer.target_sync_steps == 4_000
    assert resolve({**chosen, "target_sync_steps": 5})[0].optimizer.target_sync_steps == 5


def test_keywords_of_the_environment_join():
    config, _ = resolve({"env": "ALE/Pong-v5", "env_arg": {"difficulty": 1, "img_width": 84}})
    keywords = {"repeat_action_probability": 0.0, "img_height": 60, "img_width": 84}
    assert config.environment.env_arg == {**keywords, "difficulty": 1}


ENV_PRESETS = [name for name in presets.names() if presets.load(name).env]


@pytest.mark.parametrize("name", ENV_PRESETS)
@pytest.mark.parametrize("algorithm", SETTINGS["algorithm"].choices)
def test_every_preset_is_valid_with_every_algorithm(name, algorithm):
    config, _ = resolve({"algorithm": algorithm}, preset=name)
    assert presets.find(config.environment.env).name == name


VARIANTS = [
    *({name: True} for name in ("double", "munchausen", "dueling", "noisy", "recurrent")),
    *({"distributional": kind} for kind in ("categorical", "quantile")),
    *({"replay": kind} for kind in ("uniform", "prioritized")),
    *({"mode": mode} for mode in ("sync", "serial")),
    {"mode": "sync", "workers": 2, "model_parallel": True, "replay": "none"},
]


@pytest.mark.parametrize("name", ENV_PRESETS)
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_every_preset_brings_what_a_variant_needs(name, variant):
    config, _ = resolve(variant, preset=name)
    assert config.with_settings(variant) == config


def test_tables_hold_in_their_order_and_needs_after_them():
    variant = {"distributional": "categorical"}
    of_preset, small_batches = (
        resolve({**variant, **given})[0] for given in ({}, {"algorithm": "n-step-q"})
    )
    assert (of_preset.algorithm.lam, of_preset.optimizer.lr) == (1.0, 3e-3)
    assert small_batches.optimizer.lr == 5e-4


def test_what_a_variant_needs_yields_to_the_user():
    with pytest.raises(UserError, match="--noisy has one draw per environment"):
        resolve({"noisy": True, "minibatches": 2})
    assert resolve({"distributional": "quantile", "lam": 0.0})[0].algorithm.lam == 0.0


@pytest.mark.parametrize("name", ENV_PRESETS)
def test_a_preset_for_no_environment_is_laid_over_that_of_the_environment(name):
    env = presets.load(name).settings["env"]
    own = resolve({"env": env, "algorithm": "n-step-q"})[0]  # the algorithm of the preset
    config = resolve({"env": env}, preset="rainbow-async")[0]
    assert config.network.distributional == "categorical" and config.algorithm.double
    assert config.replay.replay == "prioritized" and config.exploration.exploration == "noisy"
    assert config.environment == own.environment and config.run == own.run
    assert config.network.hidden == own.network.hidden
    mine = resolve({"env": env, "distributional": "quantile"}, preset="rainbow-async")[0]
    assert mine.network.distributional == "quantile"


def test_a_table_per_choice_follows_switches_too():
    plain = resolve({"env": "MountainCar-v0"})[0]
    recurrent = resolve({"env": "MountainCar-v0", "recurrent": True})[0]
    assert (plain.replay.replay, recurrent.replay.replay) == ("uniform", "none")


def test_settings_that_contradict_each_other():
    assert "needs a target network" in message_of(
        resolve, {"double": True, "target_sync_steps": None}
    )
    n_step = {"algorithm": "n-step-q"}
    assert message_of(resolve, {"trace": "watkins", **n_step}).startswith(
        "--trace watkins acts only with --algorithm q-lambda (this run: n-step-q)"
    )
    assert "--lam 0.5 acts only" in message_of(resolve, {"lam": 0.5, **n_step})
    assert resolve({"lam": 0.5, "trace": "watkins", "algorithm": "q-lambda"})
    assert resolve({"lam": 0.5, "resume": "runs/x"}), "a resumed run brings its algorithm"
    assert "cannot go with --resume" in message_of(resolve, {"resume": "x", "run_name": "y"})


def test_misspelt_keyword_of_the_api():
    assert message_of(resolve, {"wrokers": 2}) == "unknown setting 'wrokers'; did you mean workers?"
    assert message_of(resolve, {"lr": -1}) == "lr must be a finite number above 0 (got -1)"


def test_large_runs_load_on_small_machines():
    many = 8 * usable_cores() + 1
    assert message_of(resolve, {"workers": many}).endswith("add --oversubscribe to insist")
    assert resolve({"workers": many, "oversubscribe": True})[0].parallel.workers == many
    assert Config.from_dict({"parallel": {"workers": many}}).parallel.workers == many


@pytest.mark.parametrize(
    ("cgroup", "files", "cores"),
    [
        ("0::/a/b\n", {"cpu.max": "max 100000", "a/cpu.max": "250000 100000"}, 2),
        ("0::/\n", {"cpu.max": "50000 100000"}, 1),
        ("0::/\n", {"cpu.max": "max 100000"}, 8),
        (
            "5:memory:/x\n4:cpu,cpuacct:/a\n",
            {"cpu/a/cpu.cfs_quota_us": "300000", "cpu/a/cpu.cfs_period_us": "100000"},
            3,
        ),
        (
            "4:cpu,cpuacct:/\n",
            {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"},
            8,
        ),
        ("0::/a\n", {}, 8),
    ],
)
def test_usable_cores_respect_quota(tmp_path, monkeypatch, cgroup, files, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    write_groups(tmp_path, cgroup, files)
    assert usable_cores(tmp_path) == cores


def write_groups(root: Path, cgroup: str, files: dict[str, str]) -> None:
    """A /proc and a /sys below `root`, with 8,000 bytes of memory free."""
    wanted = {"proc/self/cgroup": cgroup, "proc/meminfo": "MemAvailable: 8 kB"}
    for name, text in (wanted | {f"sys/fs/cgroup/{n}": text for n, text in files.items()}).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")


V2 = {"memory.max": "max", "a/memory.max": "5000", "a/memory.current": "4000"}
V1 = {
    "memory/a/memory.limit_in_bytes": "5000",
    "memory/a/memory.usage_in_bytes": "2000",
}


@pytest.mark.parametrize(
    ("cgroup", "files", "free"),
    [
        ("0::/\n", {}, 8192),
        ("0::/a/b\n", V2, 1000),
        ("0::/a\n", {**V2, "a/memory.stat": "anon 9\ninactive_file 300\nactive_file 20"}, 1320),
        ("0::/a\n", {**V2, "a/memory.max": "3000"}, 0),
        ("3:cpu:/x\n2:memory:/a\n", V1, 3000),
        ("3:cpu:/a\n", V1, 8192),
    ],
)
def test_free_memory_is_that_of_the_narrowest_group(tmp_path, cgroup, files, free):
    write_groups(tmp_path, cgroup, files)
    assert cores.free_memory(tmp_path) == free


def test_free_tasks_are_those_of_the_narrowest_group_and_of_the_user(tmp_path, monkeypatch):
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    monkeypatch.setattr(resource, "getrlimit", lambda _: unlimited)
    write_groups(tmp_path, "1:pids:/a\n", {"pids/a/pids.max": "max", "pids/a/pids.current": "9"})
    assert cores.free_tasks(tmp_path) is None
    write_groups(tmp_path, "0::/a\n", {"a/pids.max": "50", "a/pids.current": "9"})
    assert cores.free_tasks(tmp_path) == 41
    for run_spec in ("7/task/7", "7/task/8", "9/task/9"):
        (tmp_path / "proc" / run_spec).mkdir(parents=True)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (20, 20))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert cores.free_tasks(tmp_path) == 41
    if os.getuid() == 0:
        os.chown(tmp_path / "proc/7", 1234, -1)
        os.chown(tmp_path / "proc/9", 1234, -1)
    user = (tmp_path / "proc/7").stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: user)
    assert cores.free_tasks(tmp_path) == 20 - 3


def test_a_preset_for_no_environment_has_tables_for_some() -> None:
    here, _ = presets.resolve({"env": "CartPole-v1"}, None, "dqn")
    there, _ = presets.resolve({"env": "LunarLander-v3"}, None, "dqn")
    assert (here.optimizer.lr, there.optimizer.lr) == (2.3e-3, 6.3e-4)
    assert here.parallel.mode == there.parallel.mode == "serial"
    own, _ = presets.resolve({"env": "CartPole-v1"})
    assert (here.evaluation.eval_episodes, own.parallel.mode) == (100, "async")  # laid over its own
    typed, _ = presets.resolve({"env": "CartPole-v1", "epochs": 3}, None, "dqn")
    assert typed.parallel.epochs == 3
    game, _ = presets.resolve({"env": "MinAtar/Freeway-v1"}, None, "dqn")
    assert game.replay.replay_start == 5_000  # from its table for MinAtar/*


def test_a_presets_minibatches_give_way_to_few_environments() -> None:
    for env, preset in (("LunarLander-v3", None), ("CartPole-v1", "pqn")):
        for count, minibatches in ((1, {1}), (3, {1, 2}), (32, {2, 8})):
            config, _ = presets.resolve({"env": env, "envs_per_worker": count}, None, preset)
            assert config.parallel.envs_per_worker == count
            assert config.parallel.minibatches in minibatches


def test_pqn_on_atari_has_nothing_of_what_was_tuned_for_replay() -> None:
    pqn, _ = presets.resolve({"env": "ALE/Pong-v5"}, None, "pqn")
    without_replay, _ = presets.resolve(
        {"env": "ALE/Pong-v5", "algorithm": "n-step-q", "workers": 2}
    )
    for config in (pqn, without_replay):
        assert (config.replay.replay, config.run.steps) == ("none", 10_000_000)
        assert (config.optimizer.lr, config.optimizer.max_grad_norm) == (5e-4, 10.0)
        assert config.exploration.epsilon_steps == 500_000
