"""Films of a run while it trains, for its folder and for TensorBoard."""

import contextlib
import signal
import time
from collections.abc import Sequence
from pathlib import Path

from async_dqn.api import AsyncDQN
from async_dqn.config.config import UserError
from async_dqn.runs.checkpoint import marked
from async_dqn.runs.folder import is_locked
from async_dqn.runs.progress import print_line
from async_dqn.runs.writers import Board
from async_dqn.watch.film import film
from async_dqn.watch.play import Stage

LOOK_S = 1.0
VIDEOS = "videos"  # folder in that of a run
TAG = "play"


def record(folder: Path, every: int, modules: Sequence[str], most: int, seed: int) -> None:
    """Film one episode of the newest checkpoint, at most so many steps of it, whenever the run has
    come `every` global steps further; until it ends. Raises UserError."""
    if not (folder / "checkpoints").is_dir():
        raise UserError(f"--record wants the folder of a run ({folder} is none)")
    with contextlib.suppress(ValueError):  # another than the main thread
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the trainer, which then ends
    (folder / VIDEOS).mkdir(exist_ok=True)
    # TensorBoard reads one file of a folder at a time: not beside that of the run.
    board, filmed = Board(folder / VIDEOS), -1
    while True:
        ends = (folder / "result.json").exists() or not is_locked(folder)
        latest = marked(folder / "checkpoints", "latest")
        step = -1 if latest is None else int(latest.name.rpartition("-")[2])
        if step // every > filmed // every or (ends and step > filmed):
            path = folder / VIDEOS / f"step-{step:012}.gif"
            try:
                _film(latest, path, modules, most, seed)
            except UserError:
                if latest.exists():
                    raise
                continue  # only the newest checkpoints are kept: take the next one
            filmed = step
            board.picture(TAG, path.read_bytes(), step)
            print_line(f"film         {path}")
        if ends:
            return
        time.sleep(LOOK_S)


def _film(checkpoint: Path, path: Path, modules: Sequence[str], most: int, seed: int) -> None:
    agent = AsyncDQN.load(checkpoint, import_modules=modules)
    with contextlib.closing(Stage(agent)) as stage, film(path, stage.fps) as show:
        for shot in stage.episode(seed, most):
            show(shot.picture)
