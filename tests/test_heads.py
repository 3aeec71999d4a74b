"""Every head: what its Q-values are the mean of, its identities, and its gradients."""

import itertools

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck

from async_dqn.networks.architecture import Architecture
from async_dqn.networks.heads import QOutput, build_head
from async_dqn.networks.noisy import NoisyLinear

FEATURES, ACTIONS, ATOMS = 6, 3, 5
HEADS = [
    ("q", False),
    ("q", True),
    ("categorical", False),
    ("categorical", True),
    ("quantile", False),
    ("quantile", True),
    ("actor-critic", False),
]
each_head = pytest.mark.parametrize(("head", "dueling"), HEADS)


def build(head: str, dueling: bool = False, noisy: bool = False, large: bool = True) -> nn.Module:
    """A head; its output layers away from their small beginnings if `large`."""
    torch.manual_seed(0)
    fields = {"head": head, "dueling": dueling, "noisy": noisy, "atoms": ATOMS}
    bounds = {"v_min": -2.0, "v_max": 6.0}
    architecture = Architecture("mlp", (4,), 1.0, ACTIONS, (8,), True, **fields, **bounds)
    module = build_head(architecture, FEATURES)
    for parameter in module.parameters() if large else ():
        nn.init.normal_(parameter)
    return module


def features(count: int = 7) -> torch.Tensor:
    return torch.randn(count, FEATURES, generator=torch.Generator().manual_seed(1))


@each_head
@pytest.mark.parametrize("noisy", [False, True])
@pytest.mark.parametrize("count", [0, 1, 7])
def test_q_values_are_n_by_a_and_atoms_n_by_a_by_atoms(head, dueling, noisy, count) -> None:
    output = build(head, dueling, noisy)(features(count))
    assert isinstance(output, QOutput)
    assert output.q_values.shape == (count, ACTIONS)
    if head in ("categorical", "quantile"):
        assert output.distribution.shape == (count, ACTIONS, ATOMS)
    else:
        assert output.distribution is None


@pytest.mark.parametrize("dueling", [False, True])
def test_categorical_q_values_are_means_of_normalised_probabilities(dueling: bool) -> None:
    head = build("categorical", dueling)
    output = head(features())
    probabilities = output.distribution.exp()
    torch.testing.assert_close(probabilities.sum(2), torch.ones(7, ACTIONS))
    support = torch.tensor([-2.0, 0.0, 2.0, 4.0, 6.0])
    torch.testing.assert_close(output.q_values, (probabilities * support).sum(2))
    assert torch.equal(head.support, support)
    assert output.q_values.std() > 0.1


def test_categorical_logits_are_those_of_its_layer() -> None:
    head = build("categorical")
    logits = head.scores.q(features()).view(7, ACTIONS, ATOMS)  # action by action
    ratio = head(features()).distribution - logits
    torch.testing.assert_close(ratio, ratio[:, :, :1].expand_as(ratio))


@pytest.mark.parametrize("dueling", [False, True])
def test_quantile_q_values_are_means_of_the_quantiles(dueling: bool) -> None:
    output = build("quantile", dueling)(features())
    torch.testing.assert_close(output.q_values, output.distribution.sum(2) / ATOMS)


@pytest.mark.parametrize("head", ["q", "quantile"])
def test_the_dueling_mean_over_actions_is_the_value_stream(head: str) -> None:
    module = build(head, dueling=True)
    output = module(features())
    streams = module if head == "q" else module.scores
    scores = output.q_values[:, :, None] if head == "q" else output.distribution
    torch.testing.assert_close(scores.mean(1), streams.value(features()))
    advantage = streams.advantage(features()).view_as(scores)
    torch.testing.assert_close(scores - scores[:, :1], advantage - advantage[:, :1])


def test_dueling_categorical_logits_are_those_of_rainbow() -> None:
    head = build("categorical", dueling=True)
    value = head.scores.value(features())
    advantage = head.scores.advantage(features()).view(7, ACTIONS, ATOMS)
    for n, action in itertools.product(range(7), range(ACTIONS)):
        logits = value[n] + advantage[n, action] - advantage[n].sum(0) / ACTIONS
        torch.testing.assert_close(
            head(features()).distribution[n, action].exp(), logits.softmax(0)
        )


def test_actor_critic_q_values_give_back_policy_and_value() -> None:
    head = build("actor-critic")
    q_values = head(features()).q_values
    policy, value = head.policy(features()).softmax(1), head.value(features())
    torch.testing.assert_close(q_values.softmax(1), policy)
    torch.testing.assert_close((policy * q_values).sum(1, keepdim=True), value)
    assert policy.std() > 0.1 and value.std() > 0.1


@each_head
def test_gradients_agree_with_finite_differences(head: str, dueling: bool) -> None:
    module = build(head, dueling).double()
    names = [name for name, _ in module.named_parameters()]

    def outputs(inputs: torch.Tensor, *parameters: torch.Tensor) -> tuple[torch.Tensor, ...]:
        named = dict(zip(names, parameters, strict=True))
        output = torch.func.functional_call(module, named, (inputs,))
        return tuple(tensor for tensor in output if tensor is not None)

    inputs = features(2).double().requires_grad_()
    assert gradcheck(outputs, (inputs, *module.parameters()))


@each_head
def test_the_first_q_values_are_all_but_equal(head: str, dueling: bool) -> None:
    q_values = build(head, dueling, large=False)(features()).q_values
    assert (q_values - q_values[:, :1]).abs().max() < 0.1
    if head == "q":
        assert q_values.abs().max() < 0.1
    if head == "categorical":  # a uniform distribution
        assert (q_values - 2.0).abs().max() < 0.2


@each_head
def test_the_small_beginning_leaves_the_noise_that_explores(head: str, dueling: bool) -> None:
    module = build(head, dueling, noisy=True, large=False)
    layers = [layer for layer in module.modules() if isinstance(layer, NoisyLinear)]
    assert layers
    for layer in layers:
        assert layer.weight.abs().max() <= 0.01 / FEATURES**0.5
        assert torch.all(layer.weight_sigma == 0.5 / FEATURES**0.5)
        layer.draw(3000, torch.Generator().manual_seed(0))
    actions = module(features(1).expand(3000, -1)).q_values.argmax(1)
    shares = torch.bincount(actions, minlength=ACTIONS) / 3000
    assert shares.min() > 0.2


@each_head
@pytest.mark.parametrize("noisy", [False, True])
def test_nothing_but_layers_is_a_parameter(head: str, dueling: bool, noisy: bool) -> None:
    module = build(head, dueling, noisy)
    assert set(module.state_dict()) == {name for name, _ in module.named_parameters()}
