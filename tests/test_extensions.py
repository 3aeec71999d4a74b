"""The user's own algorithms, networks, explorations and targets, in every mode, from any place."""

import functools
import json
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from gymnasium.envs.classic_control import CartPoleEnv
from torch import nn

from async_dqn import AsyncDQN, UserError, cli
from async_dqn.algorithms.exploration import EPSILON_GREEDY
from async_dqn.algorithms.q_learning import QLearning
from async_dqn.config.extension import Traits
from async_dqn.parameters.flat_network import FlatNetwork
from async_dqn.parameters.target import Average, Copy, Polyak
from runs import ROOT

FOLDER = ROOT / "tests" / "extensions"
FILES = sorted(FOLDER.glob("*.py"))
OWN = {
    "algorithm": "expected_sarsa:ExpectedSarsa",
    "network": "attention:Attention",
    "exploration": "warm_restarts:WarmRestarts",
    "target": "averaged_dqn:LastCopies",
}
MODULES = [name.partition(":")[0] for name in OWN.values()]
SMALL = {"workers": 2, "envs_per_worker": 2, "eval_episodes": 2, "eval_every": 1000}
ARGUMENTS = {"network_arg": {"width": 8, "heads": 2}, "target_arg": {"networks": 2}}


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setenv("PYTHONPATH", str(FOLDER))


def lines_of_code(path: Path) -> int:
    text = path.read_text()
    docstring = text.split('"""')[1]
    return len([line for line in text.replace(docstring, "").splitlines() if line.strip()])


def test_the_document_shows_these_files_and_they_are_short():
    document = (ROOT / "docs" / "extending.md").read_text()
    for path in FILES:
        assert f"```python\n{path.read_text()}```" in document
        assert lines_of_code(path) <= 40


@pytest.mark.parametrize("mode", ["async", "sync", "serial"])
def test_all_four_together_learn_are_saved_loaded_and_resumed(mode, tmp_path, capsys):
    settings = SMALL | ARGUMENTS | OWN | {"mode": mode, "runs_dir": str(tmp_path)}
    agent = AsyncDQN("CartPole-v1", **settings, import_modules=MODULES).learn(600)
    assert agent.run.name == "ExpectedSarsa-s0-1"
    config = json.loads((agent.run / "config.json").read_text())
    kept = {name: value for part in config["settings"].values() for name, value in part.items()}
    assert OWN.items() <= kept.items()
    names = {path.name for path in (agent.run / "checkpoints").glob("step-*600/*.safetensors")}
    assert {"target.safetensors", "target_1.safetensors"} <= names
    with pytest.raises(UserError, match=r"network attention:Attention is not part .*--import att"):
        AsyncDQN.load(agent.run, import_modules=[m for m in MODULES if m != "attention"])
    loaded = AsyncDQN.load(agent.run, import_modules=MODULES)
    observations = np.ones((3, 4), np.float32)
    assert (loaded.q_values(observations) == agent.q_values(observations)).all()
    imports = [word for module in MODULES for word in ("--import", module)]
    more = ["train", "--resume", str(agent.run), "--steps", "900", "--quiet"]
    assert cli.main([*more, *imports[:-2]]) == 2
    assert "--import averaged_dqn" in capsys.readouterr().err
    assert cli.main([*more, *imports]) == 0
    assert json.loads((agent.run / "result.json").read_text())["steps"] == 900


def test_replay_takes_an_algorithm_that_is_not_on_policy(tmp_path):
    settings = SMALL | {"mode": "serial", "runs_dir": str(tmp_path), "replay": "uniform"}
    one = settings | {"replay_start": 100, "batch_size": 8}
    agent = AsyncDQN("CartPole-v1", **one, algorithm=Greedy()).learn(400)
    assert json.loads((agent.run / "result.json").read_text())["updates"] > 0
    with pytest.raises(UserError, match="on-policy"):
        AsyncDQN("CartPole-v1", **settings, algorithm=OWN["algorithm"], import_modules=MODULES)


@dataclass(frozen=True)
class Greedy(QLearning):
    lam: float = 1.0
    traits = Traits(variants=frozenset({"double", "boltzmann"}))


def test_classes_of_a_function_travel_to_the_workers_and_are_named_where_they_are_missing(tmp_path):
    class Local(Greedy):
        pass

    class Here(CartPoleEnv):
        pass

    def torso(shape):
        return nn.Sequential(nn.Linear(*shape, 8), nn.Tanh())

    settings = SMALL | {"runs_dir": str(tmp_path), "workers": 1}
    agent = AsyncDQN(Here, algorithm=Local(), network=torso, **settings).learn(300)
    name = f"{__name__}:{Local.__qualname__}"
    with pytest.raises(UserError, match=r"give algorithm=\.\.\. in Python"):
        AsyncDQN.load(agent.run, env=Here)
    loaded = AsyncDQN.load(agent.run, env=Here, algorithm=Local(), network=torso)
    assert loaded.config.algorithm.algorithm == name
    assert loaded.learn(500).run == agent.run


def wide(shape, width):
    return nn.Linear(*shape, width)


def test_functions_and_partials_are_named_with_their_arguments(tmp_path):
    small = {"runs_dir": str(tmp_path), "mode": "serial", "workers": 1, "eval_episodes": 2}
    agent = AsyncDQN(network=lambda shape: nn.Linear(*shape, 3), **small).learn(100)
    assert agent.config.network.network.endswith("<lambda>")
    partial = functools.partial(wide, width=5)
    agent = AsyncDQN(network=partial, **small).learn(100)
    settings = agent.config.network
    assert settings.network == f"{__name__}:wide" and settings.network_arg == {"width": 5}
    assert agent.run_spec.network().torso[0].out_features == 5
    again = AsyncDQN.load(agent.run, network=wide)  # with the arguments that are stored
    assert (again.q_values(np.ones(4)) == agent.q_values(np.ones(4))).all()


def test_what_cannot_travel_is_refused_before_a_run_folder_exists(tmp_path):
    lock = threading.Lock()

    class Holding(CartPoleEnv):
        held = lock

    with pytest.raises(UserError, match=r"Holding, or code .* cannot be sent .*lock.*mode serial"):
        AsyncDQN(Holding, runs_dir=str(tmp_path), workers=1).learn(100)
    assert not list(tmp_path.iterdir())


NOTEBOOK = """
import sys
from gymnasium.envs.classic_control import CartPoleEnv
from async_dqn import AsyncDQN
from async_dqn.algorithms.q_learning import QLearning
from async_dqn.config.extension import Traits

class CellEnv(CartPoleEnv):
    pass

class CellQ(QLearning):
    traits = Traits()

agent = AsyncDQN(CellEnv, algorithm=CellQ(lam=1.0), workers=1, envs_per_worker=2,
                 eval_episodes=2, runs_dir=sys.argv[1])
agent.learn(300)
print("learned")
"""


def test_classes_of_a_notebook_cell_work_in_processes(tmp_path):
    """A program from standard input is, like a cell, in a `__main__` without a file."""
    command = [sys.executable, "-", str(tmp_path)]
    done = subprocess.run(command, input=NOTEBOOK, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "learned\n", done.stderr


INSIDE = """
import sys
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from async_dqn import AsyncDQN, UserError

def learn(seed):
    agent = AsyncDQN(workers=1, envs_per_worker=2, eval_episodes=2, seed=seed, runs_dir=sys.argv[1])
    return agent.learn(300).run.name

if __name__ == "__main__":
    with ProcessPoolExecutor(2) as pool:
        print(*pool.map(learn, [3, 4]))
    with multiprocessing.Pool(1) as pool:
        try:
            pool.apply(learn, [5])
        except UserError as error:
            print(error)
"""


def test_learn_works_in_processes_of_a_pool(tmp_path):
    script = tmp_path / "inside.py"
    script.write_text(INSIDE)
    command = [sys.executable, str(script), str(tmp_path / "runs")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    first, second = done.stdout.splitlines()
    assert first == "q-lambda-s3-1 q-lambda-s4-1", done.stderr
    assert second.startswith("a process of multiprocessing.Pool may start no workers; use conc")


# What is wrong, by the file that a user would write.
WRONG = {
    "no_traits": (
        "class A:\n    pass\n",
        ["--algorithm", "MODULE:A"],
        "algorithm MODULE:A declares no traits",
    ),
    "no_name": ("", ["--algorithm", "MODULE:A"], "algorithm MODULE:A: MODULE has no A"),
    "raises": (
        "from async_dqn.config.extension import Traits\n"
        "class A:\n"
        "    traits = Traits()\n"
        "    def act(self, output, epsilon, generator):\n"
        "        return output.q_values.argmax(1).numpy(), epsilon > 0\n"
        "    def loss(self, online, target, rollout):\n"
        "        return 1 / 0\n",
        ["--algorithm", "MODULE:A"],
        "algorithm MODULE:A failed (MODULE.py:7: ZeroDivisionError: division by zero); it needs",
    ),
    "undeclared": (
        "from async_dqn.config.extension import Traits\nclass A:\n    traits = Traits()\n",
        ["--algorithm", "MODULE:A", "--double", "--target-sync-steps", "100"],
        "algorithm MODULE:A does not declare double among the variants of its traits; drop --dou",
    ),
    "shape": (
        "from torch import nn\ndef a(shape):\n    return nn.Unflatten(1, (2, 2))\n",
        ["--network", "MODULE:a"],
        "network MODULE:a makes (2, 2, 2) of observations (2, 4), not [2, F]",
    ),
    "statistics": (
        "from torch import nn\ndef a(shape):\n    return nn.BatchNorm1d(4)\n",
        ["--network", "MODULE:a"],
        "network MODULE:a keeps running statistics",
    ),
    "builder": (
        "def a():\n    pass\n",
        ["--network", "MODULE:a"],
        "network MODULE:a failed (TypeError: a() takes 0 positional arguments but 1 was given)",
    ),
    "hidden": (
        "def a(shape):\n    pass\n",
        ["--network", "MODULE:a", "--hidden", "3"],
        "--hidden is of our networks, not of your own; drop --hidden",
    ),
    "epsilon": (
        "def a(step, count):\n    return 1.5\n",
        ["--exploration", "MODULE:a"],
        "exploration MODULE:a failed (ValueError: at step 0 exploration gave",
    ),
    "target": (
        "class A:\n    networks = 1\n    def following(self, kept, theta, intervals):\n"
        "        return theta[:3]\n",
        ["--target", "MODULE:A", "--target-sync-steps", "100"],
        "target MODULE:A failed (",
    ),
    "arguments": (
        "class A:\n    def __init__(self, k):\n        self.networks = k\n",
        ["--target", "MODULE:A", "--target-sync-steps", "100", "--target-arg", "n=2"],
        "cannot make target MODULE:A: TypeError: ",
    ),
    "not_its_own": ("", ["--algorithm-arg", "k=1"], "--algorithm-arg is for your own --algorithm"),
    "import": ("1 / 0\n", ["--algorithm", "MODULE:A"], "cannot import MODULE: "),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_work_is_one_line_before_a_run_folder_exists(
    case, tmp_path, monkeypatch, capsys
):
    text, arguments, message = WRONG[case]
    module = f"wrong_{case}"
    (tmp_path / f"{module}.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    given = [word.replace("MODULE", module) for word in arguments]
    assert cli.main(["train", "--import", module, "--workers", "1", *given]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message.replace('MODULE', module)}"), error
    assert error.count("\n") == 1 and not (tmp_path / "runs").exists()


def test_code_that_was_not_named_is_not_imported(tmp_path, monkeypatch, capsys):
    (tmp_path / "unasked.py").write_text("raise AssertionError\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert cli.main(["train", "--algorithm", "unasked:A"]) == 2
    assert "add --import unasked if you trust it" in capsys.readouterr().err
    assert "unasked" not in sys.modules


def test_compare_shows_an_algorithm_under_its_own_name(tmp_path, capsys):
    method = f"serial-{OWN['algorithm']}"
    arguments = ["--seeds", "1", "--steps", "300", "--out", str(tmp_path / "out"), "--workers", "1"]
    own = ["--set", "import=expected_sarsa"]
    assert cli.main(["compare", "--methods", method, *arguments, *own]) == 0
    assert method in (tmp_path / "out" / "report.md").read_text()


def test_the_traits_of_a_variant_reach_an_algorithm_built_on_q_learning():
    agent = AsyncDQN(
        algorithm=Greedy(), double=True, target_sync_steps=100, exploration="boltzmann"
    )
    built = agent.run_spec.algorithm
    assert built.double and built.policy is not EPSILON_GREEDY and built.lam == 1.0


def test_expected_sarsa_values_the_exploring_policy():
    from expected_sarsa import ExpectedSarsa

    q_values = np.array([[1.0, 3.0], [5.0, 2.0]], np.float32)
    rollout = SimpleNamespace(
        epsilon=np.array([0.5, 0.2], np.float32), rewards=np.zeros((1, 2), np.float32)
    )
    values = ExpectedSarsa().bootstrap(q_values, q_values, rollout, np.arange(2))
    np.testing.assert_allclose(values, [0.25 * 1 + 0.75 * 3, 0.9 * 5 + 0.1 * 2], rtol=1e-6)


@pytest.mark.parametrize("recurrent", [False, True])
def test_an_average_target_has_the_mean_q_values_of_what_was_published(recurrent, tmp_path):
    settings = SMALL | {"mode": "serial", "recurrent": recurrent, "target_sync_steps": 100}
    run_spec = AsyncDQN(**settings, target="average", target_networks=3).run_spec
    copies = [FlatNetwork(run_spec.network(), gradient=False) for _ in range(3)]
    target = run_spec.target_network()
    target.vector.copy_(torch.cat([copy.vector for copy in copies]))
    obs = torch.rand(4, 5, 4)
    if recurrent:
        state, starts = copies[0].net.initial_state(5), torch.zeros(4, 5, dtype=torch.bool)
        unrolled, states = target.net.unroll(obs, state, starts)
        each = [copy.net.unroll(obs, state, starts) for copy in copies]
        further, _ = target.net(obs[0], tuple(part[-1] for part in states))
        own = [copy.net(obs[0], tuple(p[-1] for p in s))[0] for copy, (_, s) in zip(copies, each)]
        means = torch.stack([output.q_values for output in own]).mean(0)
        torch.testing.assert_close(further.q_values, means)
    else:
        unrolled, _ = target.net(obs.flatten(0, 1))
        each = [copy.net(obs.flatten(0, 1)) for copy in copies]
    means = torch.stack([output.q_values for output, _ in each]).mean(0)
    torch.testing.assert_close(unrolled.q_values, means)


def test_targets_follow_their_rules():
    kept, theta = torch.arange(6.0).view(3, 2), torch.tensor([10.0, 20.0])
    assert Copy().following(kept[:1], theta, 4).tolist() == [[10.0, 20.0]]
    assert Average(3).following(kept, theta, 1).tolist() == [[10, 20], [0, 1], [2, 3]]
    # Two intervals at once are one after the other.
    once = Polyak(0.25).following(kept[:1], theta, 1)
    torch.testing.assert_close(
        Polyak(0.25).following(once, theta, 1), Polyak(0.25).following(kept[:1], theta, 2)
    )
    assert once.tolist() == [[2.5, 5.75]]
