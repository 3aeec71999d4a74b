"""`distill RUN`: a small network that decides like the agent, as a file, and what that costs."""

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from async_dqn.agent import Agent
from async_dqn.api import AsyncDQN
from async_dqn.config.config import SETTINGS, UserError
from async_dqn.config.fields import show
from async_dqn.config.options import agent_parser, parse_value
from async_dqn.deploy import files
from async_dqn.distill.student import student_of
from async_dqn.play import Player, play
from async_dqn.runs.progress import print_line

HEADER = ("file", "size", "a decision", "mean return", "of the agent's")


def distill(argv: Sequence[str]) -> int:
    """Teach a small network to decide like an agent, and write it as an .onnx.

    Prints what the agent, the small network, and both with their weights in bytes, take and score
    as files; FILE is the small one, in bytes with --int8.
    """
    parser = agent_parser("async-dqn distill", distill.__doc__)
    parser.add_argument("--out", metavar="FILE", required=True, help="an .onnx")
    parser.add_argument("--hidden", metavar="N,N", default="32", help="dense layers (default: 32)")
    parser.add_argument("--int8", action="store_true", help="weights in bytes")
    seen = "observations to learn from (default: 40000)"
    parser.add_argument("--observations", metavar="N", default="40000", help=seen)
    parser.add_argument("--episodes", metavar="N", default="100", help="of each (default: 100)")
    given = parser.parse(argv)
    hidden = parse_value(SETTINGS["hidden"], given["hidden"], "--hidden")
    observations, episodes = (
        parse_value(SETTINGS["eval_episodes"], given[name], f"--{name}")
        for name in ("observations", "episodes")
    )
    out, int8 = Path(given["out"]), "int8" in given
    if out.suffix != files.ONNX:
        raise UserError(f"--out must end in {files.ONNX} (got {show(str(out))})")
    files.check_file(out, int8)
    agent = AsyncDQN.load(given["run"], import_modules=given["import"], which=given["load"])
    student = student_of(agent, hidden, observations)
    student.export(out, int8)
    for line in _table(agent, student, episodes, out, int8):
        print_line(line)
    print_line(f"file         {out}")
    return 0


def _table(agent: Agent, student: Agent, episodes: int, out: Path, in_bytes: bool) -> Iterator[str]:
    """Size, time and score of four files, the first being the agent's; `out` is there already,
    the student's, perhaps in bytes."""
    yield _row(HEADER)
    first = None
    with tempfile.TemporaryDirectory() as folder:
        for name, who in (("agent", agent), (f"hidden {_widths(student)}", student)):
            for int8 in (False, True):
                path = out
                if who is agent or int8 != in_bytes:
                    path = Path(folder, "agent.onnx")
                    who.export(path, int8)
                score, decision_us = _measured(who, path, episodes)
                first = score if first is None else first
                size = f"{path.stat().st_size / 1000:,.0f} kB"
                share = f"{score / first:.0%}" if first > 0 else f"{score - first:+.2f}"
                words = f"{name}, int8" if int8 else name
                yield _row((words, size, f"{decision_us:.0f} us", f"{score:.2f}", share))


def _measured(agent: Agent, path: Path, episodes: int) -> tuple[float, float]:
    """The mean return of a file, and microseconds of a decision."""
    player = Player(path)
    with contextlib.closing(agent.make_env()) as env:
        played = list(play(player, env, episodes, seed=agent.run_spec.config.run.seed))
    decided = sum(one.deciding_s for one in played) / sum(one.steps for one in played)
    return sum(one.score for one in played) / episodes, 1e6 * decided


def _widths(student: Agent) -> str:
    return ",".join(map(str, student.run_spec.architecture.hidden))


def _row(cells: Sequence[str]) -> str:
    first, *others = cells
    return f"{first:20}" + "".join(f"{cell:>16}" for cell in others)
