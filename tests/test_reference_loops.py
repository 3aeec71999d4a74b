"""Serial training equals a plain re-implementation of every method, update for update.

`Plain` is written from the definitions: float64, loops over single steps, torch's autograd on
formulas spelled out here, its own environments, targets, replay, optimisers and clipping. Of the
package it takes the settings, the initial parameters and the names of the random streams.
"""

from itertools import product
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import pytest
import torch
from scripted_envs import ChainEnv
from torch.nn import functional

from async_dqn.config.presets import resolve
from async_dqn.parameters.flat_network import named_tensors
from async_dqn.training import training
from async_dqn.workers.collector import Collector
from async_dqn.workers.learner import Learner
from async_dqn.workers.run_spec import NOISE, REPLAY, TRAINING, RunSpec

UPDATES = 50
LIMIT = 6  # steps of an episode; the chain's end is 3 away, so both kinds of end happen
SETTINGS = {
    "env": "ChainEnv",
    "env_arg": {"n": 4},
    "mode": "serial",
    "workers": 1,
    "envs_per_worker": 3,
    "rollout_length": 4,
    "hidden": (8,),
    "gamma": 0.9,
    "lr": 0.01,
    "max_grad_norm": 0.5,
    "max_episode_steps": LIMIT,
    "target_sync_steps": 50,
    "eval_every": 10**6,
    "eval_episodes": 1,
    "checkpoint_every": 10**6,
    "quiet": True,
    "defaults": "fixed",
    "seed": 5,
}
EPSILON = {"exploration": "epsilon", "epsilon_final": 0.2, "epsilon_steps": 300}
BOLTZMANN = {"exploration": "boltzmann", "temperature_final": 0.1, "epsilon_steps": 300}
CATEGORICAL = {"distributional": "categorical", "v_min": -0.5, "v_max": 1.5, "atoms": 7}
QUANTILE = {"distributional": "quantile", "atoms": 7}
UNIFORM = {"replay": "uniform", "replay_capacity": 90, "replay_start": 60, "batch_size": 10}
PRIORITIZED = {**UNIFORM, "replay": "prioritized"}
NO_TARGET = {"target_sync_steps": None}
CARTPOLE = {
    "env": "CartPole-v1",
    "env_arg": {},
    "max_episode_steps": 12,
}  # NEXT_STEP: dummies, one generator


def case(algorithm: str, *variants: dict[str, Any], **settings: Any) -> dict[str, Any]:
    merged = {} if algorithm == "a3c" else dict(EPSILON)
    for variant in (*variants, settings):
        merged |= variant
    if merged.get("exploration") in ("boltzmann", "noisy"):
        merged.pop("epsilon_final")
    return {"algorithm": algorithm, **merged}


CASES = [
    case("one-step-q"),
    case("one-step-q", NO_TARGET),
    case("one-step-q", double=True, dueling=True),
    case("one-step-q", BOLTZMANN),
    case("one-step-q", CARTPOLE),
    case("one-step-sarsa"),
    case("one-step-sarsa", NO_TARGET, BOLTZMANN),
    case("one-step-sarsa", CARTPOLE, rollout_length=1),
    case("n-step-q"),
    case("n-step-q", CARTPOLE, reward_clip=0.5, reward_scale=3.0),
    case("n-step-q", value_rescaling=True),
    case("n-step-q", NO_TARGET, epochs=3),
    case("q-lambda", NO_TARGET),
    case("q-lambda", lam=0.9, trace="watkins", double=True),
    case("q-lambda", NO_TARGET, CARTPOLE, lam=0.9, trace="watkins"),
    case("n-step-q", munchausen=True),
    case("one-step-q", NO_TARGET, munchausen=True),
    case("a3c", entropy_weight=0.1),
    case("a3c", CARTPOLE),
    case("one-step-q", CATEGORICAL),
    case("n-step-q", CATEGORICAL, double=True, dueling=True),
    case("q-lambda", NO_TARGET, QUANTILE, lam=1.0, trace="watkins"),
    case("n-step-q", NO_TARGET, noisy=True, exploration="noisy", max_episode_steps=1000),
    case("n-step-q", recurrent=True),
    case("q-lambda", NO_TARGET, CARTPOLE, recurrent=True),
    case("a3c", recurrent=True),
    case("one-step-q", UNIFORM),
    case("one-step-q", PRIORITIZED, CARTPOLE, double=True, epochs=2),
    case("q-lambda", PRIORITIZED, trace="watkins"),
    *(
        case("n-step-q", optimizer=name, workers=2, lr=lr, lr_schedule=schedule)
        for name, lr, schedule in (
            ("shared-adam", 0.01, "constant"),
            ("shared-rmsprop", 0.05, "linear"),
            ("rmsprop", 0.05, "linear"),
            ("momentum", 1.0, "constant"),
        )
    ),
]


def name_of(settings: dict[str, Any]) -> str:
    shown = {k: v for k, v in settings.items() if k not in EPSILON and k != "replay_capacity"}
    return "-".join(str(v) if isinstance(v, str) else f"{k}={v}" for k, v in shown.items())


# The network: formulas on named tensors

Params = dict[str, torch.Tensor]


class Output(NamedTuple):
    q: torch.Tensor  # [N, A]; a3c: log pi
    distribution: torch.Tensor | None  # [N, A, atoms]
    value: torch.Tensor | None  # [N], a3c
    state: tuple[torch.Tensor, torch.Tensor] | None


def dense(params: Params, name: str, x: torch.Tensor, noise: dict | None) -> torch.Tensor:
    y = x @ params[f"{name}.weight"].T + params[f"{name}.bias"]
    if noise is None:
        return y
    e_in, e_out = (e.repeat(len(x) // len(e), 1) for e in noise[name])
    sigma = (x * e_in) @ params[f"{name}.weight_sigma"].T + params[f"{name}.bias_sigma"]
    return y + sigma * e_out


def lstm(params: Params, x: torch.Tensor, state: tuple) -> tuple[torch.Tensor, torch.Tensor]:
    h, c = state
    gates = x @ params["cell.weight_ih"].T + params["cell.bias_ih"]
    gates = gates + h @ params["cell.weight_hh"].T + params["cell.bias_hh"]
    i, f, g, o = gates.split(gates.shape[1] // 4, 1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


class Net:
    """What the settings make of named tensors."""

    def __init__(self, run_spec: RunSpec):
        self.network = run_spec.config.network
        self.a3c = run_spec.config.algorithm.algorithm == "a3c"
        self.actions = run_spec.info.num_actions
        network = self.network
        self.support = torch.linspace(network.v_min, network.v_max, network.atoms).double()

    def __call__(self, params: Params, obs, state=None, noise=None) -> Output:
        x = dense(params, "torso.0", torch.as_tensor(np.asarray(obs)).double(), noise)
        norm = params["torso.1.weight"], params["torso.1.bias"]
        x = torch.relu(functional.layer_norm(x, x.shape[1:], *norm))
        if self.network.recurrent:
            state = lstm(params, x, state)
            x = state[0]
        if self.a3c:
            value = dense(params, "head.value", x, noise)[:, 0]
            return Output(dense(params, "head.policy", x, noise).log_softmax(1), None, value, state)
        if self.network.distributional == "none":
            return Output(self.stream(params, "head", x, 1, noise)[:, :, 0], None, None, state)
        atoms = self.stream(params, "head.scores", x, self.network.atoms, noise)
        if self.network.distributional == "quantile":
            return Output(atoms.mean(2), atoms, None, state)
        atoms = atoms.log_softmax(2)
        return Output((atoms.exp() * self.support).sum(2), atoms, None, state)

    def stream(self, params: Params, name: str, x, atoms: int, noise) -> torch.Tensor:
        shape = (len(x), self.actions, atoms)
        if not self.network.dueling:
            return dense(params, f"{name}.q", x, noise).reshape(shape)
        value = dense(params, f"{name}.value", x, noise).reshape(len(x), 1, atoms)
        advantage = dense(params, f"{name}.advantage", x, noise).reshape(shape)
        return value + advantage - advantage.mean(1, keepdim=True)


# The environments: another set of them, reset by hand


class Singles:
    """Chains, started anew in the step that ends one."""

    def __init__(self, count: int, limit: int, seeds: list[int]):
        self.envs = [gymnasium.wrappers.TimeLimit(ChainEnv(4), limit) for _ in range(count)]
        self.obs = [env.reset(seed=seed % 2**31)[0] for env, seed in zip(self.envs, seeds)]

    def step(self, actions) -> tuple:
        """Successors, rewards, terminated, truncated, real, and whether `obs` starts an episode."""
        rows = [env.step(int(action))[:4] for env, action in zip(self.envs, actions)]
        successors, rewards, terminated, truncated = map(list, zip(*rows))
        starts = [a or b for a, b in zip(terminated, truncated)]
        pairs = zip(self.envs, starts, successors)
        self.obs = [env.reset()[0] if over else obs for env, over, obs in pairs]
        return successors, rewards, terminated, truncated, [True] * len(rows), starts


class CartPoles:
    """gymnasium's own batch, started anew in the step after an end: that one is no transition."""

    def __init__(self, count: int, limit: int, seeds: list[int]):
        arguments = {"vectorization_mode": "vector_entry_point", "max_episode_steps": limit}
        self.batch = gymnasium.make_vec("CartPole-v1", count, **arguments)
        seed = np.random.SeedSequence(seeds).generate_state(1, np.uint32)[0]
        self.obs = list(self.batch.reset(seed=int(seed))[0])
        self.over = np.zeros(count, bool)

    def step(self, actions) -> tuple:
        obs, rewards, terminated, truncated, _ = self.batch.step(np.array(actions))
        dummy, self.over = self.over, terminated | truncated
        self.obs = list(obs.copy())
        return self.obs, rewards.tolist(), terminated, truncated, ~dummy, dummy


# What is learned from


class Row(NamedTuple):
    """One step of one environment."""

    obs: np.ndarray
    action: int
    reward: float
    successor: np.ndarray
    terminated: bool
    over: bool
    next_action: int
    weight: float
    start: bool
    seen: np.ndarray | None  # Q-values of the successor while acting, where they were looked at


Segments = list[list[Row]]  # [T][B]


class Memory:
    """The last `capacity` steps of one worker, drawn in proportion to their priority."""

    def __init__(self, run_spec: RunSpec, worker: int):
        config = run_spec.config
        self.replay, self.count = config.replay, config.parallel.envs_per_worker
        rows = self.replay.replay_capacity // config.parallel.workers // self.count
        one_step = config.algorithm.algorithm == "one-step-q"
        self.slots, self.length = rows + 1, 1 if one_step else config.parallel.rollout_length
        self.generator = run_spec.generator(REPLAY, worker, 0)
        self.times: Segments = []
        self.masses: dict[tuple[int, int], float] = {}  # by time and environment
        self.largest = 1.0

    def add(self, segments: Segments) -> None:
        for rows in segments:
            self.times.append([row._replace(seen=None) for row in rows])
        head = len(self.times)
        starts = range(max(0, head - self.slots + 1), head - self.length + 1)
        self.masses = {
            (t, b): self.masses.get((t, b), self.largest)
            for t, b in product(starts, range(self.count))
            if self.times[t][b].weight
        }

    def draw(self, beta: float) -> Segments:
        """As the ring has them: in order of slot, one from each of equal parts of the mass."""
        order = sorted(self.masses, key=lambda start: (start[0] % self.slots, start[1]))
        masses = np.array([self.masses[start] for start in order])
        batch = self.replay.batch_size
        points = (np.arange(batch) + self.generator.random(batch)) * masses.sum() / batch
        chosen = np.searchsorted(masses.cumsum(), points, side="right")
        self.drawn = [order[k] for k in chosen]
        probabilities = masses[chosen] / masses.sum()
        scale = (len(order) * probabilities) ** -beta
        scale /= scale.max()
        return [
            [
                self.times[t + k][b]._replace(weight=self.times[t + k][b].weight * factor)
                for (t, b), factor in zip(self.drawn, scale)
            ]
            for k in range(self.length)
        ]

    def learned(self, errors: list[float]) -> None:
        if self.replay.replay == "prioritized":
            for start, error in zip(self.drawn, errors):
                self.masses[start] = (abs(error) + 1e-6) ** self.replay.priority_exponent
                self.largest = max(self.largest, self.masses[start])


# Acting


class Worker:
    """One worker's environments, random streams and, without sharing, optimiser state."""

    def __init__(self, run_spec: RunSpec, index: int, net: Net):
        self.run_spec, self.net, config = run_spec, net, run_spec.config
        self.count, self.length = config.parallel.envs_per_worker, config.parallel.rollout_length
        kind = CartPoles if config.environment.env == "CartPole-v1" else Singles
        limit = config.environment.max_episode_steps
        self.envs = kind(self.count, limit, run_spec.seeds(self.count, TRAINING, index, 0))
        self.generator = run_spec.generator(TRAINING, index, 0)
        self.noise_stream = torch.Generator().manual_seed(run_spec.seeds(1, NOISE, index, 0)[0])
        self.memory = Memory(run_spec, index) if config.replay.replay != "none" else None
        self.after = tuple(torch.zeros(self.count, 8).double() for _ in range(2))
        self.starts = [True] * self.count

    def reset_noise(self, params: Params) -> None:
        """One factorised draw per environment of every noisy layer, in the network's order."""
        self.noise = {}
        for name in [key.removesuffix(".weight_sigma") for key in params if "weight_s" in key]:
            width = params[f"{name}.weight"].shape
            normal = torch.randn(self.count, sum(width), generator=self.noise_stream).double()
            self.noise[name] = (normal.sign() * normal.abs().sqrt()).split((width[1], width[0]), 1)
        self.noise = self.noise or None

    def restarted(self, state, starts):
        keep = torch.tensor(starts)[:, None].logical_not()
        return tuple(part * keep for part in state)

    @torch.no_grad()
    def act(self, params: Params, strength: float) -> None:
        """Look at the observations and choose the next actions from the worker's stream."""
        self.before = self.restarted(self.after, self.starts)
        output = self.net(params, self.envs.obs, self.before, self.noise)
        self.after = output.state if self.net.network.recurrent else self.after
        q_values = output.q.numpy()
        self.seen = q_values if output.value is None else output.value.numpy()
        self.greedy = q_values.argmax(1)
        if self.net.a3c or self.run_spec.config.exploration.exploration == "boltzmann":
            gumbel = self.generator.gumbel(size=q_values.shape)
            self.actions = (q_values / (1.0 if self.net.a3c else strength) + gumbel).argmax(1)
            return
        explore = self.generator.random(self.count) < np.float32(strength)
        self.actions = self.greedy
        if explore.any():
            uniform = self.generator.integers(q_values.shape[1], size=self.count)
            self.actions = np.where(explore, uniform, self.greedy)

    def collect(self, params: Params, strength: float, budget: int) -> tuple[Segments, int]:
        self.state = self.before  # before the pending row
        settings = self.run_spec.config.algorithm
        segments, taken = [], 0
        while len(segments) < self.length and taken < budget:
            obs, actions, starts = self.envs.obs, self.actions, self.starts
            successors, rewards, terminated, truncated, real, self.starts = self.envs.step(actions)
            counts = [bool(r) and taken + sum(real[: b + 1]) <= budget for b, r in enumerate(real)]
            taken += sum(counts)
            self.act(params, strength)
            rows = []
            for b in range(self.count):
                reward, over = rewards[b], bool(terminated[b] or truncated[b])
                if settings.reward_clip is not None:
                    reward = min(max(reward, -settings.reward_clip), settings.reward_clip)
                fresh = over and isinstance(self.envs, Singles)  # the next row is a reset
                seen = None if fresh else self.seen[b]
                rows.append(
                    Row(
                        obs[b],
                        int(actions[b]),
                        reward * settings.reward_scale,
                        successors[b],
                        bool(terminated[b]),
                        over,
                        int(self.actions[b]),
                        float(counts[b]),
                        bool(starts[b]),
                        seen,
                    )
                )
            segments.append(rows)
        return segments, taken


# Learning


class Plain:
    """The trainer: workers in turn, one set of parameters, one target, one optimiser."""

    def __init__(self, run_spec: RunSpec, theta: dict[str, np.ndarray]):
        self.run_spec, self.config, self.net = run_spec, run_spec.config, Net(run_spec)
        self.theta = {name: torch.tensor(array).double() for name, array in theta.items()}
        sync = None if self.net.a3c else self.config.optimizer.target_sync_steps
        self.target = self.copy() if sync else None
        self.workers = [Worker(run_spec, w, self.net) for w in range(self.config.parallel.workers)]
        self.steps = self.updates = 0
        self.moments: dict[Any, list[torch.Tensor]] = {}
        for worker in self.workers:
            worker.reset_noise(self.theta)
            worker.act(self.theta, self.strength)

    def copy(self) -> Params:
        return {name: tensor.clone() for name, tensor in self.theta.items()}

    @property
    def strength(self) -> float:
        """Epsilon or the temperature now."""
        e = self.config.exploration
        if e.exploration == "boltzmann":
            start, final = e.temperature_start, e.temperature_final
        else:
            start = e.epsilon_start
            final = 0.0 if e.exploration == "noisy" else e.epsilon_final
        return start + (final - start) * min(1.0, self.steps / e.epsilon_steps)

    def update(self, worker: Worker) -> Segments:
        """One rollout, what is learned from it, and the target if its time has come."""
        step = self.steps
        worker.reset_noise(self.theta)
        self.epsilon = self.strength
        segments, taken = worker.collect(self.theta, self.epsilon, self.config.run.steps - step)
        self.steps += taken
        if worker.memory is not None:
            worker.memory.add(segments)
        for epoch in range(self.config.parallel.epochs):
            if epoch:
                worker.reset_noise(self.theta)
            batch = segments
            if worker.memory is not None:
                if step < self.config.replay.replay_start or not worker.memory.masses:
                    continue
                beta = self.config.replay.priority_beta
                beta += (1 - beta) * min(1.0, step / self.config.run.steps)
                batch = worker.memory.draw(beta)
            if any(row.weight for rows in batch for row in rows):
                errors = self.learn(worker, batch, step)
                if worker.memory is not None:
                    worker.memory.learned(errors)
        sync = self.config.optimizer.target_sync_steps
        if self.target and self.steps // sync > step // sync:
            self.target = self.copy()
        return segments

    def learn(self, worker: Worker, batch: Segments, step: int) -> list[float]:
        params = {name: tensor.clone().requires_grad_() for name, tensor in self.theta.items()}
        terms, errors = self.terms(worker, params, batch)
        weights = torch.tensor([[row.weight for row in rows] for rows in batch]).double()
        loss = (weights * terms).sum() / weights.sum()
        gradient = dict(zip(params, torch.autograd.grad(loss, list(params.values()))))
        norm = sum(part.square().sum() for part in gradient.values()).sqrt().item()
        factor = min(1.0, self.config.optimizer.max_grad_norm / norm) if norm else 1.0
        lr = self.config.optimizer.lr
        if self.config.optimizer.lr_schedule == "linear":
            lr *= 1 - step / self.config.run.steps
        for name, part in gradient.items():
            self.descend(worker, name, part * factor, lr)
        self.updates += 1
        return errors[0].tolist()

    def descend(self, worker: Worker, name: str, gradient: torch.Tensor, lr: float) -> None:
        """One parameter; the moments belong to all workers or to this one."""
        rule, theta = self.config.optimizer.optimizer, self.theta[name]
        owner = worker if rule in ("rmsprop", "momentum") else None
        first, second = self.moments.setdefault(
            (owner, name), [torch.zeros_like(theta) for _ in range(2)]
        )
        if rule == "momentum":
            first.mul_(0.9).add_(0.1 * gradient)
            theta -= lr * first
        elif rule == "shared-adam":
            first.mul_(0.9).add_(0.1 * gradient)
            second.mul_(0.999).add_(0.001 * gradient**2)
            count = self.updates + 1
            unbiased = first / (1 - 0.9**count), second / (1 - 0.999**count)
            theta -= lr * unbiased[0] / (unbiased[1].sqrt() + 1e-5)
        else:
            second.mul_(0.99).add_(0.01 * gradient**2)
            theta -= lr * gradient / (second + 0.1).sqrt()

    # Targets: loops over the definitions

    def along(self, params: Params, worker: Worker, batch: Segments) -> tuple[list, list]:
        """Outputs [T] for the states and for the true successors, [B] rows each."""
        now, then, state = [], [], worker.state if worker.memory is None else None
        for rows in batch:
            if state is not None:
                state = worker.restarted(state, [row.start for row in rows])
            output = self.net(params, [row.obs for row in rows], state, worker.noise)
            now.append(output)
            state = output.state
            then.append(self.net(params, [row.successor for row in rows], state, worker.noise))
        return now, then

    def terms(self, worker: Worker, params: Params, batch: Segments) -> tuple:
        """The loss of every step [T, B], and |errors| [T, B]."""
        now, then = self.along(params, worker, batch)
        with torch.no_grad():
            valued = self.along(self.target, worker, batch) if self.target else (now, then)
            look = {"now": valued[0], "then": valued[1], "acting": then}
            returns = self.returns(batch, look)
        actions = [[row.action for row in rows] for rows in batch]
        taken = [(t, b, a) for t, row in enumerate(actions) for b, a in enumerate(row)]
        grid = (len(batch), len(batch[0]))
        if self.config.network.distributional != "none":
            pairs = zip(taken, returns)
            terms = [self.divergence(now[t].distribution[b, a], goal) for (t, b, a), goal in pairs]
            terms = torch.stack(terms).reshape(grid)
            return terms, terms.detach().abs()
        chosen = torch.stack([now[t].q[b, a] for t, b, a in taken]).reshape(grid)
        returns = torch.tensor(returns).reshape(grid)
        if not self.net.a3c:
            errors = returns - chosen
            return 0.5 * errors**2, errors.detach().abs()
        advantages = returns - torch.stack([output.value for output in now])
        entropy = torch.stack([-(output.q.exp() * output.q).sum(1) for output in now])
        bonus = self.config.algorithm.entropy_weight * entropy
        return -chosen * advantages.detach() + 0.25 * advantages**2 - bonus, advantages.detach()

    def returns(self, batch: Segments, look: dict[str, list]) -> list:
        """The return of every step, time-major: numbers, or (values, probabilities)."""
        algorithm, count = self.config.algorithm, len(batch[0])
        name = algorithm.algorithm
        lam = {"q-lambda": algorithm.lam, "n-step-q": 1.0, "a3c": 1.0}.get(name, 0.0)
        done: dict[tuple[int, int], Any] = {}
        for t, b in product(reversed(range(len(batch))), range(count)):
            row, reward = batch[t][b], batch[t][b].reward
            if algorithm.munchausen:
                policy = (look["now"][t].q[b] / 0.03).log_softmax(0)
                reward += 0.9 * max(0.03 * policy[row.action].item(), -1.0)
            kept = lam
            if name == "q-lambda" and algorithm.trace == "watkins":
                seen = look["acting"][t].q[b].numpy() if row.seen is None else row.seen
                kept *= row.next_action == seen.argmax()
            if row.terminated:
                value: Any = 0.0 if self.config.network.distributional == "none" else None
            else:
                value = self.value(row, look, t, b)
            if not (row.over or t == len(batch) - 1):
                onward = done[t + 1, b]
                value = self.mixed(value, onward, kept)
            done[t, b] = self.discounted(reward, value)
        return [done[t, b] for t in range(len(batch)) for b in range(count)]

    def mixed(self, value, onward, kept: float):
        if isinstance(onward, tuple):
            return onward if kept else value
        return (1 - kept) * value + kept * onward

    def discounted(self, reward: float, value):
        gamma = self.config.algorithm.gamma
        if value is None:  # a distribution after the end: all of it at the reward
            return torch.tensor([reward]).double(), torch.ones(1).double()
        if isinstance(value, tuple):
            return reward + gamma * value[0], value[1]
        if self.config.algorithm.value_rescaling:
            # `done` holds h(G), values are those of the network, h(Q) too.
            inner = reward + gamma * inverse(value)
            return float(np.sign(inner) * (np.sqrt(abs(inner) + 1) - 1) + 1e-3 * inner)
        return reward + gamma * value

    def value(self, row: Row, look: dict[str, list], t: int, b: int):
        """What the successor is worth: a number, or (values, probabilities)."""
        algorithm, network = self.config.algorithm, self.config.network
        output, acting = look["then"][t], look["acting"][t].q[b].numpy()
        if self.net.a3c:
            return float(acting_value(row, output, b))
        if row.seen is not None:
            acting = row.seen
        valued = output.q[b].numpy() if self.target else acting
        if network.distributional != "none":
            best = (acting if algorithm.double else output.q[b].numpy()).argmax()
            if network.distributional == "quantile":
                return output.distribution[b, best], torch.full((network.atoms,), 1 / network.atoms)
            return self.net.support, output.distribution[b, best].exp()
        if algorithm.algorithm == "one-step-sarsa":
            return float(self.expected(acting, valued) if row.over else valued[row.next_action])
        if algorithm.munchausen:
            policy = torch.tensor(valued / 0.03).softmax(0).numpy()
            return float((policy * (valued - 0.03 * np.log(policy + 1e-300))).sum())
        return float(valued[acting.argmax()] if algorithm.double else valued.max())

    def expected(self, acting: np.ndarray, valued: np.ndarray) -> float:
        """The mean value under the exploring policy."""
        if self.config.exploration.exploration == "boltzmann":
            policy = torch.tensor(acting / self.epsilon).softmax(0).numpy()
        else:
            policy = np.full(len(acting), self.epsilon / len(acting))
            policy[acting.argmax()] += 1 - self.epsilon
        return (policy * valued).sum()

    def divergence(self, chosen: torch.Tensor, goal: tuple) -> torch.Tensor:
        """Of a predicted distribution from one over (values, probabilities)."""
        values, chances = goal
        if self.config.network.distributional == "categorical":
            support = self.net.support
            gap = support[1] - support[0]
            place = values.clamp(support[0], support[-1])
            near = (1 - (place[None] - support[:, None]).abs() / gap).clamp(min=0)
            wanted = (near * chances).sum(1)
            return (torch.xlogy(wanted, wanted) - wanted * chosen).sum()
        total = torch.zeros(()).double()
        for k, quantile in enumerate(chosen):
            middle = (k + 0.5) / len(chosen)
            for goal_value, chance in zip(values, chances):
                error = goal_value - quantile
                size = error.abs()
                huber = 0.5 * size**2 if size <= 1 else size - 0.5
                total = total + chance * abs(middle - float(error < 0)) * huber
        return total


def acting_value(row: Row, output: Output, b: int) -> float:
    """The state value as it was seen while acting; of a reset's predecessor, as it is now."""
    return output.value[b].item() if row.seen is None else float(row.seen)


def inverse(x: float) -> float:
    """h^-1 by bisection, h(x) = sign(x) (sqrt(|x| + 1) - 1) + x / 1000."""
    low, high = 0.0, 1e4
    for _ in range(100):
        middle = (low + high) / 2
        below = np.sqrt(middle + 1) - 1 + middle / 1000 < abs(x)
        low, high = (middle, high) if below else (low, middle)
    return float(np.sign(x) * low)


# The comparison


class Tape(NamedTuple):
    """What a run did: after every update of a worker its number, all parameters and the actions."""

    run_spec: list[RunSpec]
    theta: list[dict[str, np.ndarray]]
    actions: list[np.ndarray]


@pytest.fixture
def tape(monkeypatch) -> Tape:
    tape = Tape([], [], [])
    update, collect = Learner.update, Collector.collect

    def recorded_update(self, budget):
        if not tape.theta:
            tape.run_spec.append(self.run_spec)
            tape.theta.append(named_tensors(self.network.net, self.store.theta))
        update(self, budget)
        tape.theta.append(named_tensors(self.network.net, self.store.theta))

    def recorded_collect(self, *arguments):
        rollout = collect(self, *arguments)
        tape.actions.append(rollout.actions.copy())
        return rollout

    monkeypatch.setattr(Learner, "update", recorded_update)
    monkeypatch.setattr(Collector, "collect", recorded_collect)
    return tape


@pytest.mark.parametrize("settings", CASES, ids=name_of)
def test_serial_training_is_the_plain_loop_update_for_update(settings, tape, tmp_path) -> None:
    settings = {**SETTINGS, "runs_dir": str(tmp_path), **settings}
    settings["steps"] = UPDATES * settings["envs_per_worker"] * settings["rollout_length"]
    config, explicit = resolve(settings)
    factory = ChainEnv if settings["env"] == "ChainEnv" else None
    assert training.train(config, explicit, factory).exit_code == 0
    plain = Plain(tape.run_spec[0], tape.theta[0])
    assert len(tape.actions) >= UPDATES
    for k, (theta, actions) in enumerate(zip(tape.theta[1:], tape.actions)):
        worker = plain.workers[k % len(plain.workers)]
        segments = plain.update(worker)
        own = [[row.action for row in rows] for rows in segments]
        own.append([row.next_action for row in segments[-1]])
        assert own == actions.tolist(), f"other actions in rollout {k}"
        for name, array in theta.items():
            np.testing.assert_allclose(
                array, plain.theta[name].numpy(), rtol=0, atol=2e-5, err_msg=f"{name}, update {k}"
            )
    assert plain.steps == settings["steps"]
    moved = [np.abs(theta[name] - tape.theta[0][name]).max() for name in theta]
    assert min(moved) > 1e-3, "nothing was learned: the comparison is empty"
