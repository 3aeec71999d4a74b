"""The five MinAtar games from one preset, as a Markdown table beside published scores.

    python -m benchmarks.minatar            # five games, seeds 0 to 2, about 40 minutes
    python -m benchmarks.minatar Asterix    # one game, printed and not written

The score is the evaluation of the final parameters: 100 greedy episodes, v1 (minimal) actions. The
published ones are training returns with v0 (six) actions, so the last column repeats that: mean
return of the last 100 training episodes, v0, seed 0.
"""

import statistics
from typing import NamedTuple

from benchmarks.scores import rows_of, run

OPTIONS = "--env MinAtar/{game}-{version} --steps 5000000 --workers 2"
SEEDS = range(3)


class Game(NamedTuple):
    """The wanted score, and what others published after 5 M frames (Young & Tian 2019, figure)."""

    goal: float
    dqn: float  # with replay
    actor_critic: float  # AC(lambda)


GAMES = {
    "Asterix": Game(40, 17, 19),
    "Breakout": Game(25, 10, 17.5),
    "Freeway": Game(60, 50, 47.5),
    "Seaquest": Game(20, 20, 15.5),
    "SpaceInvaders": Game(150, 44, 185),
}


def row(name: str) -> str:
    """Run all seeds of one game; its row of the table."""
    game = GAMES[name]
    results = [run(OPTIONS.format(game=name, version="v1"), seed) for seed in SEEDS]
    published = run(OPTIONS.format(game=name, version="v0"), 0)
    scores = [result["final_mean"] for result in results]
    cells = [
        f"{game.goal:g}",
        f"{sum(score >= game.goal for score in scores)} of {len(scores)}",
        " ".join(f"{score:.1f}" for score in scores),
        f"{statistics.median(result['wall_s'] for result in results):.0f}",
        f"{statistics.median(result['steps/s'] for result in results):,.0f}",
        f"{game.dqn:g}, {game.actor_critic:g}",
        f"{published['training return']:.1f}",
    ]
    return f"| {name} | {' | '.join(cells)} |"


def main() -> None:
    """Run the games named on the command line, or all and write the table."""
    head = (
        "# MinAtar, five games from one preset",
        "",
        f"`python launch.py {OPTIONS.format(game='GAME', version='v1')} --seed N`, seeds 0 to "
        f"{SEEDS[-1]}; made by `python -m benchmarks.minatar`.",
        "",
        "Scores: 100 greedy episodes of the final parameters, sticky actions 0.1, difficulty "
        "ramping, episodes cut at 10,000 steps. Published: training returns of v0 after 5 M "
        "frames, read off a figure (Young & Tian 2019), DQN with replay and AC(lambda); ours in "
        "that protocol: mean of the last 100 training episodes, v0, seed 0.",
        "| game | goal | met by | score by seed | seconds, median | steps/s "
        "| published: DQN, AC(lambda) | ours, that protocol |",
    )
    rows_of(GAMES, row, "minatar-five.md", head)


if __name__ == "__main__":
    main()
