"""Networks on a GPU: the same numbers as in host memory; without one only the wrapper is tried."""

import pytest
import torch

from async_dqn.config.config import Config, UserError
from async_dqn.envs.spec import EnvInfo, EnvSpec
from async_dqn.networks.architecture import Architecture
from async_dqn.networks.network import OnDevice, QNetwork
from async_dqn.parameters.flat_network import FlatNetwork
from async_dqn.runs.preflight import check_device
from async_dqn.workers.run_spec import RunSpec
from runs import DEVICES, SMALL, Here

GPU = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))
VARIANTS = [
    {},
    {"dueling": True, "head": "categorical"},
    {"noisy": True, "head": "quantile"},
    {"recurrent": True},
    {"network": "small-conv", "observation_shape": (4, 10, 10), "scale": 1 / 255},
]


def on(device: str, variant: dict) -> tuple[FlatNetwork, FlatNetwork]:
    """The same network in host memory and on `device`."""
    fields = {"network": "mlp", "observation_shape": (6,), "scale": 1.0, "num_actions": 3}
    fields |= {"hidden": (16, 8), "layer_norm": True, "dueling": False, **variant}
    nets = [QNetwork(Architecture(**fields)) for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    here, there = FlatNetwork(nets[0]), FlatNetwork(OnDevice(nets[1], device))
    for network in (here, there):
        network.net.reset_noise(4, torch.Generator().manual_seed(0))
    return here, there


def differentiated(network: FlatNetwork, variant: dict) -> list[torch.Tensor]:
    """What a forward pass gives in host memory, and the gradient of its sum of squares."""
    shape = variant.get("observation_shape", (6,))
    obs = torch.randint(256, (8, *shape), generator=torch.Generator().manual_seed(1))
    obs = obs.to(torch.uint8) if len(shape) == 3 else obs / 255
    state = network.net.initial_state(4)
    if state is None:
        output, state = network.net(obs)
    else:
        starts = torch.tensor([[False] * 4, [True, False] * 2])
        output, state = network.net.unroll(obs.unflatten(0, (2, 4)), state, starts)
    given = [part for part in (*output, *(state or ())) if part is not None]
    assert {part.device.type for part in given} == {"cpu"}
    network.gradient.zero_()
    sum(part.square().sum() for part in given).backward()
    return [*(part.detach() for part in given), network.gradient.cpu()]


@pytest.mark.parametrize("device", ["cpu", GPU])
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_a_network_gives_the_same_values_and_gradients_on_a_device(device, variant) -> None:
    here, there = on(device, variant)
    assert there.vector.device.type == there.gradient.device.type == device
    pairs = zip(differentiated(here, variant), differentiated(there, variant), strict=True)
    for expected, found in pairs:
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    assert here.gradient.any()


@pytest.mark.parametrize("device", ["cpu", GPU])
def test_a_learner_computes_where_the_device_says(device) -> None:
    config = Config.from_flat({"env": "CartPole-v1", "device": device})
    structure = Architecture("mlp", (4,), 1.0, 2, (8,), True, False)
    info = EnvInfo("vector", (4,), "float32", 1.0, None, None, 2, 1, 100)
    run_spec = RunSpec(config, EnvSpec.of(config.environment), info, structure)
    assert FlatNetwork(run_spec.learning_network()).vector.device.type == device
    assert FlatNetwork(run_spec.network()).vector.device.type == "cpu"


@pytest.mark.parametrize("name", ["tpu", "cuda:99", "cuda:-1", ""])
def test_a_device_that_is_not_there_is_refused_with_those_that_are(name) -> None:
    with pytest.raises(UserError) as caught:
        check_device(name)
    assert str(caught.value) == f"device '{name}' is not available (found: {DEVICES})"


@pytest.mark.parametrize("device", [GPU])
@pytest.mark.parametrize(
    "options", [(), ("--mode", "sync"), ("--mode", "serial", "--workers", "1")]
)
def test_a_run_on_a_gpu_ends_at_its_budget(device, options, tmp_path) -> None:
    variants = ("--algorithm", "one-step-q", "--double", "--target-sync-steps", "100")
    settings = (*SMALL, "--device", device, "--steps", "2_000", *variants)
    code, _, errors = Here(tmp_path, *settings, *options).finish()
    assert code == 0, errors
