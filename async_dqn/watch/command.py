"""`watch RUN`: an agent at play, in a window or as a film; also while it still learns."""

import contextlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from async_dqn.api import AsyncDQN
from async_dqn.config.config import SETTINGS, UserError
from async_dqn.config.options import agent_parser, parse_value
from async_dqn.runs.checkpoint import marked
from async_dqn.runs.progress import print_line
from async_dqn.watch.film import Show, check_file, film, prepare_drawing, window
from async_dqn.watch.play import Stage
from async_dqn.watch.recording import record

LOOK_S = 1.0  # between two looks for a new best checkpoint
LONGEST_RECORDED = 300  # steps of a film that is made while a run trains
LONGEST, LONGEST_GIF = 10_000, 1_000  # steps of an episode that are shown; a GIF is kept in memory


def watch(argv: Sequence[str]) -> int:
    """Show an agent playing, with its Q-values, in a window or as a film (--out).

    RUN is a run folder, also of a run that is still training, or a checkpoint.
    """
    parser = agent_parser("async-dqn watch", watch.__doc__)
    shown = f"{LONGEST:,}, of a GIF {LONGEST_GIF:,}"
    parser.add_argument("--out", metavar="FILE", help="write a .gif or .mp4; no display is needed")
    parser.add_argument("--follow", action="store_true", help="go on with each new best checkpoint")
    parser.add_argument("--episodes", metavar="N", help="(default: 1 of a film, else no end)")
    parser.add_argument("--steps", metavar="N", help=f"of each at most (default: {shown})")
    parser.add_argument("--fps", metavar="N", help="(default: the environment's)")
    parser.add_argument("--seed", metavar="N", help="of the first episode (default: 0)")
    every = f"follow a run: every N steps a GIF of {LONGEST_RECORDED} in RUN/videos, TensorBoard"
    parser.add_argument("--record", metavar="N", help=every)
    given = parser.parse(argv)
    counts = {
        name: parse_value(SETTINGS["workers"], given[name], f"--{name}")
        for name in ("episodes", "steps", "fps", "record")
        if name in given
    }
    seed = parse_value(SETTINGS["seed"], given["seed"]) if "seed" in given else 0
    if "record" in given:
        if others := {"out", "follow", "episodes"} & given.keys():
            raise UserError(f"--record goes without --{min(others)}; drop one")
        prepare_drawing()
        most = counts.get("steps", LONGEST_RECORDED)
        record(Path(given["run"]), counts["record"], given["import"], most, seed)
        return 0
    out = Path(given["out"]) if "out" in given else None
    if out is not None:
        check_file(out)
        prepare_drawing()
    with contextlib.suppress(KeyboardInterrupt):
        Viewer(given, out, counts, seed).run()
        return 0
    return 130


class Viewer:
    """Plays what there is, and with `--follow` what comes."""

    def __init__(self, given: dict[str, Any], out: Path | None, counts: dict[str, int], seed: int):
        self.given, self.out, self.counts, self.seed = given, out, counts, seed
        self.run_folder = Path(given["run"])
        self.follows = bool(given.get("follow"))
        if self.follows and not (self.run_folder / "checkpoints").is_dir():
            raise UserError(f"--follow wants the folder of a run ({self.run_folder} is none)")

    def run(self) -> None:
        """Until the episodes are over, or the run that is followed."""
        shown, ends = None, not self.follows
        while True:
            ends = ends or self._is_over()  # looked up before the last new best
            best = marked(self.run_folder / "checkpoints", "best")
            if not self.follows or (best is not None and best != shown):
                shown = best
                self._show()
            if ends:
                return
            time.sleep(LOOK_S)

    def _is_over(self) -> bool:
        return (self.run_folder / "result.json").exists()

    def _show(self) -> None:
        which = "best" if self.follows else self.given["load"]
        folder, modules = self.given["run"], self.given["import"]
        agent = AsyncDQN.load(folder, import_modules=modules, which=which)
        with contextlib.closing(Stage(agent)) as stage:
            fps = self.counts.get("fps", stage.fps)
            if self.out is None:
                with window(f"{folder}, {agent.playing}", fps) as show:
                    self._play(stage, show, self.counts.get("episodes", sys.maxsize))
                return
            path = self.out
            if self.follows:
                step = agent.playing.partition(" ")[0]
                path = path.with_name(f"{path.stem}-{step}{path.suffix}")
            with film(path, fps) as show:
                self._play(stage, show, self.counts.get("episodes", 1))
            print_line(f"film         {path} ({agent.playing})")

    def _play(self, stage: Stage, show: Show, episodes: int) -> None:
        checkpoints = self.run_folder / "checkpoints"
        best = marked(checkpoints, "best")
        is_gif = self.out is not None and self.out.suffix.lower() == ".gif"
        most = self.counts.get("steps", LONGEST_GIF if is_gif else LONGEST)
        for number in range(episodes):
            for shot in stage.episode(self.seed + number, most):
                show(shot.picture)
                if shot.last:
                    rest = "" if shot.ended else ", not shown to its end"
                    words = f"return {shot.score:g}, {shot.step:,} steps{rest}"
                    print_line(f"episode {number + 1}: {words}")
            if self.follows and marked(checkpoints, "best") != best:
                return
