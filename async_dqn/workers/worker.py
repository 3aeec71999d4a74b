"""A worker process: an actor-learner on its own lease of the step budget."""

import contextlib
import gc
import os
import time
import traceback

import torch

from async_dqn.parameters.flat_network import FlatNetwork
from async_dqn.parameters.layout import STEPS
from async_dqn.processes.child_side import RecordPipe, in_child
from async_dqn.workers.learner import Learner
from async_dqn.workers.pipeline import FirstLearner, LastStage
from async_dqn.workers.run_spec import ProcessArgs

REPORT_SECONDS = 1.0
NICENESS = 5  # where cores are short, target synchronisation and evaluation go first


def run_worker(start: ProcessArgs, learner_kind: type[Learner] = Learner) -> None:
    """Entry point of worker `start.index`."""
    with in_child(start.title, start.parent, start.log, start.pipe) as pipe:
        _train(start, pipe, learner_kind)


def _train(start: ProcessArgs, pipe: RecordPipe, learner_kind: type[Learner]) -> None:
    torch.set_num_threads(1)
    os.nice(NICENESS)
    store = start.run_spec.store(start.block, start.index)
    store.enter(start.incarnation)
    start.run_spec.seed_globals(start.index, start.incarnation)
    if start.run_spec.config.parallel.model_parallel:
        # A name that no other run has used: a trainer is known by its pid and the time it started.
        rendezvous = start.log.parent / f"rendezvous-{start.parent.pid}-{start.parent.started}"
        if start.index:
            stage = LastStage(
                start.run_spec, FlatNetwork(start.run_spec.network()), store, rendezvous
            )
            while not store.leaving:
                stage.serve(start.run_spec.learning_rate(store.steps))
                store.count_cpu()
            return
        learner = FirstLearner(start.run_spec, store, rendezvous)
    else:
        learner = learner_kind(start.run_spec, store, start.index)
    with contextlib.closing(learner):
        _learn(start, pipe, learner)


def _learn(start: ProcessArgs, pipe: RecordPipe, learner: Learner) -> None:
    """Rollout after rollout, while there is budget and the trainer has not ended it."""
    store, slot, limits = learner.store, learner.slot, start.block["lease_limits"]
    learner.reset(start.index, start.incarnation)
    gc.freeze()  # what is there by now stays: no collection need look at it again
    reported, fault = time.monotonic(), learner.envs.fault
    while not store.leaving:
        budget = int(limits[start.index] - slot[STEPS])
        if budget > 0:
            learner.update(budget)
            if learner.envs.fault is not fault:
                if repr(learner.envs.fault) != repr(fault):
                    traceback.print_exception(learner.envs.fault)  # into the log
                fault = learner.envs.fault
        else:
            store.idle(start.run_spec.learning_rate(store.steps))
        store.count_cpu()
        if time.monotonic() - reported >= REPORT_SECONDS:
            reported = time.monotonic()
            _report(learner, pipe)
    _report(learner, pipe)


def _report(learner: Learner, pipe: RecordPipe) -> None:
    """Send what happened since the last report that got through."""
    if pipe.send({"kind": "training", **learner.record()}):
        learner.clear()
