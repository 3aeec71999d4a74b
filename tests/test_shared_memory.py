"""The shared block and the parameters in it, with real processes that die for real."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from multiprocessing import context, reduction

import numpy as np
import pytest
import torch
from torch import nn

from async_dqn.parameters import layout
from async_dqn.parameters.block import BlockSection, SharedBlock
from async_dqn.parameters.flat_network import FlatNetwork, flat_vector, named_tensors
from async_dqn.parameters.layout import STEPS, UPDATES
from async_dqn.parameters.optimizers import OPTIMIZERS, SharedRMSProp
from async_dqn.parameters.published import DoubleBuffer
from async_dqn.parameters.store import ParameterStore
from async_dqn.processes import spawn
from async_dqn.workers.learner import self_check

SIZE = 64
TIMEOUT = 60.0
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="memfd and /proc")


class Accumulate:
    """theta += gradient, so that a test knows the sum."""

    rows = 0

    def step(self, theta, gradient, state, lr, updates):
        theta += gradient


def new_block(workers: int = 2, size: int = SIZE, rows: int = 1) -> SharedBlock:
    block = SharedBlock(layout.sections(workers, size, rows))
    block["multipliers"][:] = 1.0  # the trainer writes them
    return block


@pytest.fixture
def start():
    """Start module-level functions in real processes; none outlives its test."""
    started = []

    def start_one(target, *arguments) -> multiprocessing.Process:
        process = spawn.context().Process(target=target, args=arguments, daemon=True)
        process.start()
        started.append(process)
        return process

    yield start_one
    for process in started:
        process.kill()
        process.join(TIMEOUT)


def join(*running: multiprocessing.Process) -> list[int | None]:
    for process in running:
        process.join(TIMEOUT)
    return [process.exitcode for process in running]


# The block


def test_sections_start_at_zero_and_on_cache_lines_of_their_own() -> None:
    block = SharedBlock((BlockSection("a", "int64", (3,)), BlockSection("b", "float32", (2, 5))))
    assert block["a"].tolist() == [0, 0, 0] and block["b"].shape == (2, 5)
    assert block["a"].ctypes.data % 64 == block["b"].ctypes.data % 64 == 0
    block["a"][:] = -1
    assert not block["b"].any()


def describe_block(block: SharedBlock, pipe) -> None:
    pipe.send([block["theta"].tolist(), os.get_inheritable(block.descriptor), os.getpid()])
    block["theta"][:] = 2.0
    pipe.recv()


def test_a_child_shares_the_words_and_keeps_the_descriptor_to_itself(start) -> None:
    block = new_block()
    block["theta"][:] = np.arange(SIZE)
    ours, theirs = multiprocessing.Pipe()
    child = start(describe_block, block, theirs)
    assert ours.poll(TIMEOUT)
    theta, inheritable, pid = ours.recv()
    assert theta == list(range(SIZE)) and not inheritable and pid != os.getpid()
    ours.send("done")
    assert join(child) == [0]
    assert (block["theta"] == 2.0).all()


class Spawning:
    """Stands where a starting process would, and counts the descriptors handed to it."""

    def __init__(self) -> None:
        self.descriptors: list[int] = []

    def duplicate_for_child(self, descriptor: int) -> int:
        self.descriptors.append(descriptor)
        return descriptor

    def DupFd(self, descriptor: int) -> int:
        return descriptor


@pytest.mark.parametrize("size", [SIZE, 4_000_000])
def test_a_block_of_any_size_crosses_as_one_descriptor_and_under_two_kilobytes(size) -> None:
    block, spawning = new_block(size=size), Spawning()
    context.set_spawning_popen(spawning)
    try:
        message = reduction.ForkingPickler.dumps(block)
    finally:
        context.set_spawning_popen(None)
    assert spawning.descriptors == [block.descriptor]
    assert len(message) < 2000


@linux_only
def test_a_program_we_start_inherits_no_descriptor_of_the_block() -> None:
    block = new_block()
    own = os.readlink(f"/proc/self/fd/{block.descriptor}")
    assert "async_dqn" in own
    listing = subprocess.run(
        ["ls", "-l", "/proc/self/fd"], close_fds=False, capture_output=True, text=True, check=True
    )
    assert "async_dqn" not in listing.stdout


def die_with_block(block: SharedBlock) -> None:
    block["theta"][:] = 1.0
    os.kill(os.getpid(), signal.SIGKILL)


@linux_only
def test_nothing_is_left_in_dev_shm_even_after_sigkill(start) -> None:
    def segments() -> set[str]:
        return set(os.listdir("/dev/shm"))

    before = segments()
    block = new_block(size=1_000_000)
    assert segments() <= before
    assert join(start(die_with_block, block)) == [-signal.SIGKILL]
    assert (block["theta"] == 1.0).all()
    assert segments() <= before


@linux_only
def test_the_block_can_neither_shrink_nor_grow() -> None:
    block = new_block()
    size = os.fstat(block.descriptor).st_size
    for other in (0, size - 1, size + 1):
        with pytest.raises(PermissionError):
            os.ftruncate(block.descriptor, other)


@pytest.mark.parametrize(
    "other",
    [
        BlockSection("a", "float32", (32,)),  # same bytes, another type
        BlockSection("b", "int32", (32,)),  # another name
        BlockSection("a", "int32", (33,)),  # larger than the block
        BlockSection("a", "int32", (1,)),  # smaller
    ],
)
def test_a_block_of_another_layout_is_refused(other: BlockSection) -> None:
    block = SharedBlock((BlockSection("a", "int32", (32,)),))
    with pytest.raises(RuntimeError, match=r"another (layout|size)"):
        SharedBlock((other,), os.dup(block.descriptor))


# Counters and theta


def count_to(block: SharedBlock, slot: int, goal: int, die_at: int) -> None:
    steps = ParameterStore(block, Accumulate(), slot).slot
    while steps[STEPS] < goal:
        steps[STEPS] += 1
        if steps[STEPS] == die_at:
            os.kill(os.getpid(), signal.SIGKILL)


def test_4_processes_count_exactly_80000_although_one_is_killed_half_way(start) -> None:
    block = new_block(workers=4)
    store = ParameterStore(block, Accumulate(), 4)
    deaths = (0, 0, 10_000, 0)
    counting = [start(count_to, block, w, 20_000, die_at) for w, die_at in enumerate(deaths)]
    assert join(*counting) == [0, 0, -signal.SIGKILL, 0]
    assert store.steps == 70_000
    assert join(start(count_to, block, 2, 20_000, 0)) == [0]
    assert store.steps == store.total(STEPS) == 80_000


def push_in_turn(block: SharedBlock, slot: int, pushes: int) -> None:
    store = ParameterStore(block, Accumulate(), slot)
    deadline = time.monotonic() + TIMEOUT
    for k in range(pushes):
        while store.updates != 2 * k + slot:
            assert time.monotonic() < deadline
            time.sleep(0)
        store.push(torch.full((SIZE,), (slot + 1) * (k + 1.0)), lr=1.0)


def test_gradients_of_two_processes_add_up_exactly_in_theta(start) -> None:
    """In turns, so that the sum is known: 50 pushes of k and of 2k, k = 1..50."""
    block = new_block()
    assert join(*(start(push_in_turn, block, slot, 50) for slot in range(2))) == [0, 0]
    assert (block["theta"] == 3 * sum(range(1, 51))).all()
    assert block["slots"][:, UPDATES].tolist() == [50, 50, 0, 0]


def push_freely(block: SharedBlock, slot: int, pushes: int) -> None:
    torch.set_num_threads(1)
    store = ParameterStore(block, SharedRMSProp(), slot)
    generator = torch.Generator().manual_seed(slot)
    for _ in range(pushes):
        store.push(torch.randn(SIZE, generator=generator), lr=1e-3)


def test_racing_processes_lose_no_count_and_theta_stays_finite(start) -> None:
    block = new_block(workers=4)
    assert join(*(start(push_freely, block, slot, 5000) for slot in range(4))) == [0] * 4
    store = ParameterStore(block, SharedRMSProp(), 4)
    assert store.updates == 20_000
    assert store.theta.isfinite().all() and (store.theta != 0).all()
    assert (store.state[0] > 0).all() and store.state[0].isfinite().all()


def test_every_attached_store_sees_one_optimizer_state() -> None:
    block = new_block()
    first, second = (ParameterStore(block, SharedRMSProp(), slot) for slot in range(2))
    first.push(torch.ones(SIZE), lr=0.0)
    torch.testing.assert_close(second.state[0], torch.full((SIZE,), 0.01))
    assert (second.theta == 0).all() and second.updates == 1


def test_steps_sum_over_workers_and_what_earlier_sessions_did() -> None:
    block = new_block()
    store = ParameterStore(block, Accumulate(), 0)
    block["slots"][:, STEPS] = 1, 20, 0, 300
    block["slots"][:, UPDATES] = 2, 30, 0, 400
    assert (store.steps, store.updates) == (321, 432)


def test_learning_rate_is_scaled_by_the_multiplier_in_the_block() -> None:
    class Descent(Accumulate):
        def step(self, theta, gradient, state, lr, updates):
            theta.add_(gradient, alpha=-lr)

    block = new_block()
    store = ParameterStore(block, Descent(), 0)
    block["multipliers"][:] = 0.5
    store.push(torch.ones(SIZE), lr=4.0)
    assert (store.theta == -2.0).all()


# Double buffers


def test_a_reader_gets_nothing_before_the_first_publication() -> None:
    block = new_block()
    for name in ("target", "snapshot"):
        into = torch.full((SIZE,), 7.0)
        assert DoubleBuffer(block, name).read(into) is None
        assert (into == 7.0).all()


def test_published_vectors_come_back_with_number_and_step() -> None:
    buffer, into = DoubleBuffer(new_block(), "target"), torch.zeros(SIZE)
    for k in range(1, 5):
        assert buffer.publish(torch.full((SIZE,), float(k)), 100 * k)
        assert buffer.read(into) == (k, 100 * k)
        assert (into == k).all()
        assert (buffer.sequence, buffer.step) == (k, 100 * k)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_vector_that_is_not_finite_is_not_published(bad: float) -> None:
    buffer, into = DoubleBuffer(new_block(), "target"), torch.zeros(SIZE)
    poisoned = torch.ones(SIZE)
    poisoned[SIZE // 2] = bad
    assert not buffer.publish(poisoned, 1)
    assert buffer.read(into) is None
    assert buffer.publish(torch.full((SIZE,), 3.0), 2)
    assert not buffer.publish(poisoned, 3)
    assert buffer.read(into) == (1, 2)
    assert (into == 3.0).all()


def test_a_damaged_vector_is_not_handed_out() -> None:
    block = new_block()
    buffer = DoubleBuffer(block, "target")
    assert buffer.publish(torch.ones(SIZE), 1)
    block["target"][1, 5] = 2.0  # sequence 1 lies in half 1
    assert buffer.read(torch.zeros(SIZE)) is None


LARGE = 400_000


def publish_for_ever(block: SharedBlock) -> None:
    torch.set_num_threads(1)
    buffer, vector = DoubleBuffer(block, "snapshot"), torch.empty(LARGE)
    while True:
        step = buffer.sequence + 1
        buffer.publish(vector.fill_(step), step)


def test_no_torn_vector_is_read_while_publishers_are_killed_again_and_again(start) -> None:
    block = new_block(size=LARGE)
    buffer, into = DoubleBuffer(block, "snapshot"), torch.zeros(LARGE)
    pauses = np.random.default_rng(0).uniform(0.02, 0.15, 12)
    reads, last = 0, 0
    for pause in pauses:
        publisher, before = start(publish_for_ever, block), buffer.sequence
        deadline = time.monotonic() + TIMEOUT
        while buffer.sequence < before + 3:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        end = time.monotonic() + pause
        while time.monotonic() < end:
            stamp = buffer.read(into)
            if stamp is None:
                continue  # the publisher was too fast three times
            reads += 1
            low, high = into.aminmax()
            assert low == high == stamp[0] == stamp[1]
            assert stamp[0] >= last
            last = stamp[0]
        publisher.kill()
        assert join(publisher) == [-signal.SIGKILL]
        stamp = buffer.read(into)  # whatever half it died in, the newest one is whole
        assert stamp is not None and into.aminmax() == (stamp[0], stamp[0])
    assert reads > 50 and last > 50


def test_the_target_is_pulled_only_when_a_newer_one_was_published() -> None:
    network = FlatNetwork(small_net(), gradient=False)
    block = new_block(size=len(network.vector))
    store = ParameterStore(block, Accumulate(), 0)
    assert not store.target.pull(network.vector)
    store.theta.fill_(1.0)
    assert store.sync_target(10)
    assert store.target.pull(network.vector) and (network.vector == 1.0).all()
    store.theta.fill_(2.0)
    assert not store.target.pull(network.vector) and (network.vector == 1.0).all()
    assert store.sync_target(20)
    assert store.target.pull(network.vector) and (network.vector == 2.0).all()
    store.theta[0] = np.nan
    assert not store.sync_target(30)
    assert not store.target.pull(network.vector)


# Flat networks


def small_net() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))


def backward(net: nn.Module, scale: float = 1.0) -> None:
    (scale * net(torch.ones(4, 3)).square().sum()).backward()


def test_gradients_are_views_of_one_vector_after_backward_and_zero() -> None:
    torch.manual_seed(0)
    net = small_net()
    reference = small_net()
    reference.load_state_dict(net.state_dict())
    network = FlatNetwork(net)
    for scale in (1.0, 3.0, 2.0):
        network.gradient.zero_()
        reference.zero_grad()
        backward(net, scale)
        backward(reference, scale)
        expected = torch.cat([p.grad.flatten() for p in reference.parameters()])
        torch.testing.assert_close(network.gradient[: len(expected)], expected)
        assert not network.gradient[len(expected) :].any()
        start = network.gradient.data_ptr()
        for parameter in net.parameters():
            assert parameter.grad.data_ptr() == start
            start += parameter.numel() * 4


def test_parameters_are_views_of_one_vector_and_keep_their_values() -> None:
    net = small_net()
    before, obs = net(torch.ones(1, 3)), torch.ones(1, 3)
    network = FlatNetwork(net)
    assert torch.equal(net(obs), before)
    assert len(network.vector) % 16 == 0 and len(network.vector) >= 32
    network.vector.zero_()
    assert not net(obs).any()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 1
    assert network.vector.sum() == sum(p.numel() for p in net.parameters())


def test_a_flat_network_without_gradient_learns_nothing() -> None:
    network = FlatNetwork(small_net(), gradient=False)
    assert network.gradient is None
    assert not network.net(torch.ones(1, 3)).requires_grad


def test_named_tensors_and_flat_vector_are_inverse_and_share_no_memory() -> None:
    network = FlatNetwork(small_net())
    tensors = named_tensors(network.net, network.vector)
    assert {name: array.shape for name, array in tensors.items()} == {
        "0.weight": (5, 3),
        "0.bias": (5,),
        "2.weight": (2, 5),
        "2.bias": (2,),
    }
    np.testing.assert_array_equal(tensors["2.weight"], network.net[2].weight.detach())
    before = network.vector.clone()
    network.vector.zero_()
    assert torch.equal(flat_vector(network.net, tensors), before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"0.bias": np.zeros(6, np.float32)}, r"0\.bias is \[6\], expected \[5\]"),
        ({"0.weight": np.zeros((3, 5), np.float32)}, r"0\.weight is \[3, 5\], expected \[5, 3\]"),
        ({"1.weight": np.zeros(1, np.float32)}, r"1\.weight is unexpected"),
        ({"2.bias": None}, r"2\.bias is missing"),
    ],
)
def test_tensors_of_another_network_are_refused_by_name(change: dict, message: str) -> None:
    network = FlatNetwork(small_net())
    tensors = named_tensors(network.net, network.vector) | change
    tensors = {name: array for name, array in tensors.items() if array is not None}
    with pytest.raises(ValueError, match=message):
        flat_vector(network.net, tensors)


# The gradient hand-over


class AliasedFlatNetwork(FlatNetwork):
    """Local gradients of their own, handed over by a hook, as asynchronous ports do it."""

    def __init__(self, net: nn.Module):
        super().__init__(net)
        for parameter in net.parameters():
            window, parameter.grad = parameter.grad, None
            parameter.register_post_accumulate_grad_hook(
                lambda p, window=window: self.hand_over(p, window)
            )


class Piling(AliasedFlatNetwork):
    """T01: only the shared side is cleared, so that local gradients add up."""

    def hand_over(self, parameter: nn.Parameter, window: torch.Tensor) -> None:
        window.copy_(parameter.grad)


class Frozen(AliasedFlatNetwork):
    """T02: cleared locally, but an early return keeps the first gradient for ever."""

    def hand_over(self, parameter: nn.Parameter, window: torch.Tensor) -> None:
        if not hasattr(parameter, "first"):
            parameter.first = parameter.grad.clone()
        window.copy_(parameter.first)
        parameter.grad = None


class Unbound(FlatNetwork):
    """zero_grad() after binding: the views are gone."""

    def __init__(self, net: nn.Module):
        super().__init__(net)
        net.zero_grad()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_self_check_passes_and_leaves_the_network_as_it_was(optimizer: str) -> None:
    network = FlatNetwork(small_net())
    before = network.vector.clone()
    self_check(network, OPTIMIZERS[optimizer]())
    assert torch.equal(network.vector, before) and not network.gradient.any()


@pytest.mark.parametrize("broken", [Piling, Frozen, Unbound])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_self_check_refuses_a_broken_hand_over(optimizer: str, broken: type) -> None:
    with pytest.raises(RuntimeError, match="self-check"):
        self_check(broken(small_net()), OPTIMIZERS[optimizer]())


def test_the_broken_networks_show_the_published_mistakes() -> None:
    """Constant gradient 1: piled up it reads 1, 2, 3; scaled by k but frozen it reads 1, 1, 1."""
    seen: dict[type, list[float]] = {}
    for kind, factors in ((Piling, (1, 1, 1)), (Frozen, (1, 2, 3)), (FlatNetwork, (1, 2, 3))):
        network = kind(small_net())
        for k in factors:
            network.gradient.zero_()
            (k * sum(p.sum() for p in network.net.parameters())).backward()
            seen.setdefault(kind, []).append(network.gradient[0].item())
    assert seen == {Piling: [1, 2, 3], Frozen: [1, 1, 1], FlatNetwork: [1, 2, 3]}
