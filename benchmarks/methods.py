"""Every algorithm and every single variant on CartPole-v1, as a Markdown table.

    python -m benchmarks.methods                # all, seeds 0 to 4
    python -m benchmarks.methods munchausen     # only these rows, printed and not written

Each row is `python launch.py OPTIONS --stop-at-return 475 --eval-episodes 100 --steps 500000
--workers 2`: solved means that a confirmed evaluation over 100 episodes reached 475 in time. Steps
are counted, which a busy machine does not change, and no seconds.
"""

from benchmarks.scores import rows_of, run

COMMON = "--stop-at-return 475 --eval-episodes 100 --steps 500000 --workers 2"
SEEDS = range(5)
METHODS = {
    "one-step Q": "--algorithm one-step-q",
    "one-step Sarsa": "--algorithm one-step-sarsa",
    "n-step Q": "--algorithm n-step-q",
    "Q(lambda), Peng": "--algorithm q-lambda",
    "Q(lambda), Watkins": "--algorithm q-lambda --trace watkins",
    "A3C": "--algorithm a3c",
    "Munchausen": "--munchausen",
    "Double": "--double",
    "dueling": "--dueling",
    "categorical": "--distributional categorical",
    "quantile": "--distributional quantile",
    "noisy, no epsilon": "--noisy --exploration noisy",
    "recurrent": "--recurrent",
    "no LayerNorm": "--layer-norm off --lr 5e-4",
    "value rescaling": "--value-rescaling",
    "reward clipping": "--reward-clip 1",
    "uniform replay": "--replay uniform --algorithm one-step-q",
    "prioritized replay": "--replay prioritized --algorithm one-step-q",
    "ladder": "--exploration ladder",
    "Ape-X ladder": "--exploration apex",
    "Boltzmann": "--exploration boltzmann",
    "shared RMSProp": "--optimizer shared-rmsprop",
    "per-worker RMSProp": "--optimizer rmsprop",
    "per-worker momentum": "--optimizer momentum",
    "staleness scaling": "--staleness-scaling",
    "max. staleness 1": "--max-staleness 1",
    "rainbow-async": "--preset rainbow-async",
}


def row(name: str) -> str:
    """Run all seeds of one method; its row of the table."""
    results = [run(f"{METHODS[name]} {COMMON}", seed) for seed in SEEDS]
    steps = [result["steps_to_threshold"] for result in results]
    cells = [
        f"`{METHODS[name]}`",
        f"{sum(n is not None for n in steps)} of {len(results)}",
        " ".join("-" if n is None else f"{n // 1000}k" for n in steps),
    ]
    return f"| {name} | {' | '.join(cells)} |"


def main() -> None:
    """Run the methods named on the command line, or all and write the table."""
    head = (
        "# Every algorithm and variant on CartPole-v1",
        "",
        f"`python launch.py OPTIONS {COMMON} --seed N`, seeds 0 to {SEEDS[-1]}; made by "
        "`python -m benchmarks.methods`. Solved: 475 over 100 greedy episodes.",
        "| method | options | solved | steps to 475, by seed |",
    )
    rows_of(METHODS, row, "methods.md", head)


if __name__ == "__main__":
    main()
