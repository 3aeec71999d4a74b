"""Programs of other libraries beside ours: `python -m async_dqn.peers sb3-dqn [options]`.

A peer learns with its own library and its published settings, through that library's own API, and
writes a run folder like ours. It plays the environments that our methods play and is scored by our
evaluator: same episodes, same seeds, same rule for a threshold. Where a choice had to be made, it
favours the peer: evaluations are not on its clocks, our leaner environments replace the library's
wrappers, and the library's own logging is off. It computes with one thread where the network is
small, else with `--workers` threads. It writes no checkpoints (the library's are pickles), so that
it cannot be resumed.
"""
