"""Observations of several parts, codes, texts and large images: from raw to what a network sees."""

import dataclasses
import json
import zlib
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector.utils import concatenate, create_empty_array
from scripted_envs import SpacesEnv

from async_dqn.api import AsyncDQN
from async_dqn.config.config import Config, UserError
from async_dqn.config.cores import has_bfloat16
from async_dqn.envs.make import EnvInfo, EnvSpec, make_vector, probe
from async_dqn.envs.rows import row_writer, shrunk
from async_dqn.envs.spaces import observation_layout
from async_dqn.envs.texts import BUCKETS, hashed_words
from async_dqn.networks.architecture import choose
from async_dqn.networks.network import QNetwork
from async_dqn.runs.checkpoint_format import Checkpoint
from async_dqn.runs.resume import stored_config

ACTIONS = spaces.Discrete(2)
LETTERS = spaces.Text(40)
MIXED = spaces.Dict(
    direction=spaces.Discrete(4, start=1),
    inner=spaces.Tuple([spaces.Box(0, 255, (5, 6, 3), np.uint8), spaces.MultiBinary(2)]),
    mission=LETTERS,
    pair=spaces.MultiDiscrete([2, 3]),
    raw=spaces.Box(0, 255, (3,), np.uint8),
    view=spaces.Box(0, 255, (20, 30), np.uint8),
)
WITH_FLOATS = spaces.Dict({**MIXED.spaces, "speed": spaces.Box(-2, 2, (2,), np.float64)})


class Missions(spaces.Space):
    """A space of texts that is no `Text`, as MiniGrid has it."""

    def __init__(self) -> None:
        super().__init__(dtype=str)

    def sample(self, mask=None, probability=None) -> str:
        return str(self.np_random.choice(["go to the red door", "pick up the blue key"]))


class Codes(gymnasium.Env):
    """Bytes declared 0..255 that never exceed `largest`, as MiniGrid's codes."""

    action_space = ACTIONS

    def __init__(self, largest: int = 10, side: int = 7, declared: int = 255, part: bool = False):
        self.largest, self.part = largest, part
        self.image = spaces.Box(0, declared, (side, side, 3), np.uint8)
        self.observation_space = spaces.Dict(a=ACTIONS, image=self.image) if part else self.image

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self._seen(), {}

    def step(self, action):
        return self._seen(), 0.0, False, False, {}

    def _seen(self):
        image = self.np_random.integers(self.largest + 1, size=self.image.shape, dtype=np.uint8)
        return {"a": 1, "image": image} if self.part else image


class Fixed(gymnasium.Env):
    """Gives `first` at a reset and then these observations, one a step."""

    action_space = ACTIONS

    def __init__(self, observation_space: spaces.Space, first, *then):
        self.observation_space, self.given = observation_space, (first, *then)

    def reset(self, *, seed=None, options=None):
        self.at = 0
        return self.given[0], {}

    def step(self, action):
        self.at += 1
        return self.given[self.at % len(self.given)], 0.0, False, False, {}


def of(space: spaces.Space, **settings) -> EnvSpec:
    return EnvSpec(SpacesEnv, {"observation_space": space, "action_space": ACTIONS}, **settings)


def written(space: spaces.Space, observation, image_size=None) -> np.ndarray:
    layout = observation_layout(space, image_size)
    batch = np.full((2, *layout.shape), 7, layout.dtype)
    row_writer(space, batch, layout)(1, observation)
    assert (batch[0] == 7).all()
    return batch[1]


def by_hand(space: spaces.Dict, seen: dict) -> np.ndarray:
    """Images first, channels first; then the rest in the order of the space."""
    one_hot = [np.eye(4)[seen["direction"] - 1]]
    pair = [np.eye(2)[seen["pair"][0]], np.eye(3)[seen["pair"][1]]]
    image, flags = seen["inner"]
    row = [image.transpose(2, 0, 1).ravel(), seen["view"].ravel(), *one_hot, flags]
    row += [hashed_words(seen["mission"]), *pair, seen["raw"]]
    return np.concatenate([*row, *([seen["speed"]] if "speed" in space.spaces else [])])


@pytest.mark.parametrize(("space", "dtype"), [(MIXED, "uint8"), (WITH_FLOATS, "float32")])
def test_parts_lie_in_one_row_images_first_in_bytes_if_all_are(space, dtype) -> None:
    space.seed(3)
    for _ in range(20):
        seen = space.sample()
        row = written(space, seen)
        assert row.dtype == dtype
        np.testing.assert_allclose(row, by_hand(space, seen), rtol=1e-6)


@pytest.mark.parametrize("space", [MIXED, WITH_FLOATS, spaces.Dict(mission=Missions(), a=ACTIONS)])
def test_they_come_out_of_an_environment_and_their_info_survives_json(space) -> None:
    info = probe(of(space))
    assert info.kind == "parts" and info.observation_shape == (sum(p.size for p in info.parts),)
    stored = json.loads(json.dumps(dataclasses.asdict(info)))
    assert EnvInfo(**stored).observation_shape == list(info.observation_shape)
    batch = make_vector(of(space), 2, training=True)
    batch.reset([1, 2])
    step = batch.step(np.zeros(2, np.int64))
    assert not step.faulty.any()
    for row, env in zip(step.obs, batch.vector.envs, strict=True):
        np.testing.assert_array_equal(row, written(space, env.last))


def test_what_was_made_of_a_space_is_said_in_one_line() -> None:
    assert probe(of(WITH_FLOATS)).observation == (
        "inner/0 5x6x3, view 20x30x1, direction Discrete(4, start=1) one-hot, "
        "inner/1 MultiBinary(2), mission Text as 128 hashed words and 128 pairs, "
        "pair MultiDiscrete([2 3]) one-hot, raw Box(3,), speed Box(2,) -> 962 numbers"
    )
    spec = EnvSpec(Codes, {"part": True})
    words = "image 7x7x3 of codes (one-hot, 16), a Discrete(2) one-hot -> 149 numbers"
    assert probe(spec).observation == words
    large = of(spaces.Box(0, 255, (240, 320, 3), np.uint8))
    assert probe(large).observation == "image 240x320x3 shrunk to 60x80"


def test_a_dict_without_images_and_texts_is_the_vector_it_always_was() -> None:
    space = spaces.Dict(a=spaces.Discrete(3), b=spaces.Box(-1, 1, (2,), np.float32))
    info = probe(of(space))
    assert (info.kind, info.observation_shape, info.dtype) == ("vector", (5,), "float32")
    assert info.low == (0, 0, 0, -1, -1) and info.parts == ()
    seen = {"a": np.int64(2), "b": np.array([0.5, -1], np.float32)}
    np.testing.assert_array_equal(written(space, seen), spaces.flatten(space, seen))


class TestTexts:
    """Words and pairs of words, in buckets."""

    def test_counts_of_words_and_pairs_whatever_the_case_and_the_signs(self) -> None:
        counts = hashed_words("Go, go to the_Key!")
        bucket = lambda words: zlib.crc32(words.encode()) % BUCKETS  # noqa: E731
        expected = np.zeros((2, BUCKETS), int)
        for word in ("go", "go", "to", "the", "key"):
            expected[0, bucket(word)] += 1
        for pair in ("go go", "go to", "to the", "the key"):
            expected[1, bucket(pair)] += 1
        assert counts.dtype == np.uint8 and (counts == expected.ravel()).all()

    def test_the_order_of_words_counts(self) -> None:
        assert (hashed_words("red door blue key") != hashed_words("blue door red key")).any()

    def test_many_words_fill_a_byte_no_further_and_no_words_give_none(self) -> None:
        assert hashed_words("a " * 1000).max() == 255
        assert not hashed_words("?!").any()

    @pytest.mark.parametrize("space", [LETTERS, spaces.Dict(a=LETTERS, b=ACTIONS)])
    @pytest.mark.parametrize("wrong", [3, None, b"go", "x" * 41])
    def test_what_is_no_text_of_the_space_is_a_fault(self, space, wrong) -> None:
        whole = lambda text: {"a": text, "b": 0} if isinstance(space, spaces.Dict) else text  # noqa: E731
        with pytest.raises(UserError, match=r"not a text|at most 40|BYTES"):
            probe(EnvSpec(Fixed, {"observation_space": space, "first": whole(wrong)}))
        batch = make_vector(EnvSpec(lambda: Fixed(space, whole("go"), whole(wrong))), 1, True)
        first = batch.reset([0]).copy()
        step = batch.step(np.zeros(1, np.int64))
        assert step.faulty.all() and (step.obs == first).all()


class TestCodes:
    """Small images of bytes that are codes."""

    @pytest.mark.parametrize("part", [False, True])
    @pytest.mark.parametrize(
        ("env", "codes", "scale"),
        [
            ({"largest": 10}, 16, 1.0),
            ({"largest": 20}, 32, 1.0),
            ({"largest": 1}, None, 1.0),
            ({"largest": 5, "declared": 10}, 11, 1.0),
            ({"largest": 1, "declared": 1}, None, 1.0),
            ({"largest": 200}, None, 1 / 255),
            ({"largest": 0}, None, 1 / 255),
            ({"largest": 10, "side": 40}, None, 1 / 255),
        ],
    )
    def test_they_are_told_by_their_largest_number(self, env, codes, scale, part) -> None:
        info = probe(EnvSpec(Codes, {**env, "part": part}))
        image = info.parts[0] if part else info
        assert (image.codes, image.scale) == (codes, scale)

    def test_the_setting_decides(self) -> None:
        small, large = EnvSpec(Codes), EnvSpec(Codes, {"largest": 200, "side": 120})
        none = probe(dataclasses.replace(small, image_codes="none"))
        assert (none.codes, none.scale) == (None, 1 / 255)
        told = probe(dataclasses.replace(large, image_codes="40"))
        assert (told.codes, told.observation_shape) == (40, (3, 120, 120))  # codes have no mean
        with pytest.raises(UserError, match="--image-codes needs an image of bytes"):
            probe(EnvSpec("CartPole-v1", image_codes="8"))

    def test_a_model_keeps_the_codes_it_learned_with(self) -> None:
        stored = json.loads(json.dumps(dataclasses.asdict(probe(EnvSpec(Codes, {"largest": 20})))))
        assert probe(EnvSpec(Codes), stored).codes == 32
        before = {"observation_shape": [3, 7, 7], "scale": 0.1, "peak": 10}  # there was no one-hot
        info = probe(EnvSpec(Codes), before)
        assert (info.codes, info.scale, info.peak) == (None, 0.1, 10)

    @pytest.mark.parametrize("part", [False, True])
    def test_networks_see_a_plane_for_each_code_of_each_channel(self, part) -> None:
        spec = EnvSpec(Codes, {"part": part})
        net = QNetwork(choose(Config(), probe(spec)))
        image = torch.randint(0, 11, (2, 3, 7, 7), dtype=torch.uint8)
        image[0, 0, 0, 0] = 200
        torso = net.torso[0].torsos[0] if part else net.torso
        planes = torso[0](image)
        assert planes.shape == (2, 48, 7, 7) and (planes.sum(1) == 3).all()
        for k in range(3):
            seen = planes[:, 16 * k : 16 * k + 16].argmax(1)
            assert torch.equal(seen, image[:, k].clamp(max=15).long())
        row = torch.cat([image.flatten(1), torch.zeros(2, 2, dtype=torch.uint8)], 1)
        assert net(row if part else image)[0].q_values.shape == (2, 2)

    def test_planes_of_flags_and_large_images_have_the_network_they_had(self) -> None:
        flags = choose(Config(), probe(of(spaces.Box(0, 1, (10, 10, 4), np.bool_))))
        assert (flags.network, flags.codes, flags.scale) == ("small-conv", None, 1.0)
        screen = choose(Config(), probe(of(spaces.Box(0, 255, (84, 84, 4), np.uint8))))
        assert (screen.network, screen.codes, screen.scale) == ("nips", None, 1 / 255)


def test_settings_of_before_mean_what_they_meant() -> None:
    """A run from before images were shrunk, codes one-hot and actions masked goes on without."""
    new = {"image_size", "image_codes", "action_masks"}
    before = Config().to_dict()
    before["environment"] = {k: v for k, v in before["environment"].items() if k not in new}
    found = Checkpoint(Path("step-1"), 1, {"config": before}, {})
    environment = stored_config(found).environment
    assert (environment.image_size, environment.image_codes) == (None, "none")
    assert environment.action_masks == "none"


@pytest.mark.parametrize("given", [16, "16", "none", "auto"])
def test_codes_are_a_word_or_a_number(given) -> None:
    assert Config.from_flat({"image_codes": given}).environment.image_codes == str(given)
    for wrong in (1, "257", "some", None, 4.5):
        with pytest.raises(UserError, match=r"--image-codes must be auto, none, or a whole"):
            Config.from_flat({"image_codes": wrong})


class TestSizes:
    """Images of any size and layout."""

    @pytest.mark.parametrize(
        ("space", "size", "shape"),
        [
            (spaces.Box(0, 255, (240, 320, 3), np.uint8), 96, (3, 60, 80)),
            (spaces.Box(0, 255, (3, 240, 320), np.uint8), 96, (3, 60, 80)),
            (spaces.Box(0, 255, (97, 200), np.uint8), 96, (1, 32, 66)),
            (spaces.Box(0, 1, (200, 100, 2), np.float64), 40, (2, 40, 20)),
            (spaces.Box(0, 255, (96, 96, 3), np.uint8), 96, (3, 96, 96)),
            (spaces.Box(0, 255, (240, 320, 3), np.uint8), None, (3, 240, 320)),
            (spaces.Box(0, 1, (120, 120, 3), np.bool_), 96, (3, 120, 120)),
            (spaces.Box(0, 1, (64, 48), np.float32), 96, (1, 64, 48)),
        ],
    )
    def test_large_ones_are_shrunk_by_a_whole_factor(self, space, size, shape) -> None:
        info = probe(of(space, image_size=size))
        assert (info.kind, info.observation_shape) == ("image", shape)
        seen = space.sample()
        row = written(space, seen, size)
        hwc = seen[..., None] if seen.ndim == 2 else seen
        if seen.ndim == 3 and seen.shape[0] == 3:
            hwc = seen.transpose(1, 2, 0)
        k = max(hwc.shape[:2]) // max(shape[1:])
        top, left = (hwc.shape[0] % k) // 2, (hwc.shape[1] % k) // 2
        for y, x in ((0, 0), (shape[1] - 1, shape[2] - 1), (5, 7)):
            block = hwc[top + y * k : top + (y + 1) * k, left + x * k : left + (x + 1) * k]
            mean = block.mean((0, 1), dtype=np.float64)
            np.testing.assert_allclose(
                row[:, y, x], mean, atol=0.5 if row.dtype == "uint8" else 1e-5
            )

    def test_bytes_are_rounded_and_never_overflow(self) -> None:
        for factor in (2, 4, 20):
            white = np.full((factor * 3, factor * 2, 1), 255, np.uint8)
            assert (shrunk(white, factor) == 255).all()
        assert shrunk(np.array([[[1], [2]], [[2], [1]]], np.uint8), 2).item() == 2

    @pytest.mark.parametrize(
        "space",
        [
            spaces.Box(-np.inf, np.inf, (30, 30), np.float32),  # a window of prices, for one
            spaces.Box(0, 1, (10, 10), np.float32),
            spaces.Box(0, 255, (2, 2, 3), np.uint8),
        ],
    )
    def test_what_is_no_image_is_a_vector(self, space) -> None:
        assert probe(of(space)).kind == "vector"

    def test_atari_is_left_to_ale(self) -> None:
        pytest.importorskip("ale_py")
        spec = EnvSpec("ALE/Pong-v5", image_size=40)
        assert probe(spec).observation_shape == (4, 84, 84)


class TestNetworks:
    """A torso for every image, one for the vectors, and a layer that joins them."""

    def test_every_part_reaches_the_q_values_scaled(self) -> None:
        info = probe(of(WITH_FLOATS))
        net = QNetwork(choose(Config(), info))
        with torch.no_grad():  # away from the small start
            net.head.q.weight.mul_(100)
        row = torch.from_numpy(written(WITH_FLOATS, WITH_FLOATS.sample()))[None]
        before = net(row)[0].q_values
        start = 0
        for part in info.parts:
            other = row.clone()
            other[:, start : start + part.size] = 3.0
            assert not torch.allclose(net(other)[0].q_values, before), part.name
            start += part.size
        scales = net.torso[0].torsos[-1][0].factors
        wanted = [p.scale for p in info.parts if p.kind == "vector" for _ in range(p.size)]
        torch.testing.assert_close(scales, torch.tensor(wanted))
        assert scales.min() == pytest.approx(1 / 255) and scales.max() == 1

    def test_names_are_for_the_images(self) -> None:
        info = probe(of(MIXED))
        named = choose(Config.from_flat({"network": "impala"}), info)
        assert [part.network for part in named.parts] == ["impala", "impala", "mlp"]
        assert QNetwork(named)(torch.zeros(2, *info.observation_shape))[0].q_values.shape == (2, 2)
        for wrong in ("mlp", "nature"):
            with pytest.raises(UserError, match="drop --network"):
                choose(Config.from_flat({"network": wrong}), info)
        texts = probe(of(spaces.Dict(a=LETTERS, b=ACTIONS)))
        assert choose(Config.from_flat({"network": "linear"}), texts).network == "linear"
        with pytest.raises(UserError, match="drop --network"):
            choose(Config.from_flat({"network": "conv"}), texts)

    def test_what_is_for_one_chain_of_layers_is_refused(self) -> None:
        info = probe(of(MIXED))
        with pytest.raises(UserError, match="--input-scaling is for a vector alone"):
            choose(Config.from_flat({"input_scaling": True}), info)
        two = {"model_parallel": True, "mode": "sync", "workers": 2}
        with pytest.raises(UserError, match="--model-parallel cuts one chain"):
            choose(Config.from_flat(two), info)

    @pytest.mark.skipif(not has_bfloat16(), reason="this CPU has no bfloat16")
    def test_bfloat16_is_for_the_convolutions(self) -> None:
        info = probe(of(MIXED))
        half = QNetwork(choose(Config.from_flat({"precision": "bfloat16"}), info))
        whole = QNetwork(choose(Config(), info))
        whole.load_state_dict(half.state_dict())
        rows = torch.from_numpy(np.stack([written(MIXED, MIXED.sample()) for _ in range(4)]))
        assert half.torso[0].torsos[0][0].bfloat16
        one, other = half(rows)[0].q_values, whole(rows)[0].q_values
        torch.testing.assert_close(one, other, atol=1e-3, rtol=0.1)

    def test_an_architecture_of_parts_survives_json(self) -> None:
        chosen = choose(Config(), probe(of(WITH_FLOATS)))
        stored = json.loads(json.dumps(dataclasses.asdict(chosen)))
        rebuilt = QNetwork(type(chosen)(**stored))
        shapes = {name: p.shape for name, p in QNetwork(chosen).named_parameters()}
        assert {name: p.shape for name, p in rebuilt.named_parameters()} == shapes


class Signs(gymnasium.Env):
    """Ten signs in a row; the right answer stands in a text, an image or a number, in turn."""

    observation_space = spaces.Dict(
        image=spaces.Box(0, 255, (5, 5, 3), np.uint8), number=spaces.Discrete(3), word=LETTERS
    )
    action_space = ACTIONS

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = 10
        return self._sign(), {}

    def step(self, action):
        self.left -= 1
        reward = float(action == self.answer)
        return self._sign(), reward, self.left == 0, False, {}

    def _sign(self):
        self.answer, kind = self.np_random.integers(2), self.left % 3
        image = np.full((5, 5, 3), 4, np.uint8)
        if kind == 0:
            image[2, 2, 0] = 5 + self.answer
        word = ["turn left here", "turn right here"][self.answer] if kind == 1 else "look on"
        return {"image": image, "number": self.answer if kind == 2 else 2, "word": word}


def test_an_agent_learns_from_all_parts_and_takes_raw_observations(tmp_path) -> None:
    settings = {"mode": "serial", "workers": 1, "lr": 1e-3, "gamma": 0.0, "quiet": True}
    agent = AsyncDQN(Signs, runs_dir=str(tmp_path), steps=12_000, **settings)
    agent.learn()
    assert agent.evaluate(20)[0] >= 9.5
    env = agent.make_env()
    seen = [env.reset(seed=5)[0]] + [env.step(0)[0] for _ in range(5)]
    singly = [agent.predict(one)[0] for one in seen]
    space = env.observation_space
    batch = concatenate(space, seen, create_empty_array(space, n=len(seen)))
    assert agent.predict(batch)[0].tolist() == singly
    assert agent.q_values(batch).shape == (6, 2)
    with pytest.raises(UserError, match="does not fit"):
        agent.predict({"image": seen[0]["image"]})
    again = AsyncDQN.load(agent.run, env=Signs)
    assert again.predict(batch)[0].tolist() == singly
    about = json.loads((agent.run / "config.json").read_text())["environment"]
    assert "image 5x5x3 of codes (one-hot, 16)" in about["observation"]
