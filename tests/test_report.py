"""`report`: what finished runs said, grouped, summed up and drawn; bad run folders do no harm."""

import base64
import io
import json
import re
import sys
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from async_dqn import cli
from async_dqn.report.bootstrap import iqm
from async_dqn.report.figures import aggregate
from async_dqn.report.grouping import collect
from async_dqn.report.results import Cost, median, quantity, read_run, run_name

HEADER = "step,wall_s,cpu_s,episodes,mean,std,min,max\n"
Points = list[tuple[float, ...]]  # step, wall_s, cpu_s, episodes, mean


def write_run(
    folder: Path,
    points: Points,
    reached: bool = False,
    status: str | None = None,
    env: str = "CartPole-v1",
    seed: int = 0,
    goal: float | None = 475.0,
    rules: dict | None = None,
    **settings,
) -> Path:
    """A run folder with these evaluations; the last one is that of the end."""
    folder.mkdir(parents=True)
    sections = {
        "environment": {"env": env, **(rules or {})},
        "algorithm": {"algorithm": "n-step-q", "double": settings.pop("double", False)},
        "parallel": {"mode": "async", "workers": 2} | settings,
        "evaluation": {"stop_at_return": goal, "eval_episodes": 100},
        "run": {"seed": seed},
    }
    config = {"settings": sections, "versions": {"torch": "2.13"}, "git_revision": "abc123"}
    (folder / "config.json").write_text(json.dumps(config))
    lines = [",".join(map(str, [*point, 1, 0, 9])) for point in points]
    (folder / "evaluations.csv").write_text(HEADER + "".join(f"{line}\n" for line in lines))
    step, wall_s, cpu_s, _, mean = points[-1]
    result = {
        "status": status or ("threshold reached" if reached else "budget reached"),
        **{"steps": step, "wall_s": wall_s, "cpu_s": cpu_s, "startup_s": 1.0, "final_mean": mean},
        "seconds_to_threshold": wall_s if reached else None,
        "steps_to_threshold": step if reached else None,
    }
    (folder / "result.json").write_text(json.dumps(result))
    return folder


def solved(step: int) -> Points:
    """Evaluations of a run that reached 475 at `step`, at 1000 steps/s after one second."""
    return [
        (step // 2, 1 + step / 2000, step / 1000, 10, 100.0),
        (step, 1 + step / 1000, step / 500, 100, 480.0),
    ]


def rows(out: Path) -> dict[str, list[str]]:
    """Rows of the summary in report.md, by method."""
    table = (out / "report.md").read_text().split("\n\n| ")[1]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in f"| {table}".split("\n")]
    return {row[0]: row[1:] for row in cells[2:] if len(row) > 2}


def test_summary_of_known_runs(tmp_path, capsys):
    for seed, step in enumerate([10_000, 30_000, 20_000]):
        write_run(tmp_path / f"s{seed}", solved(step), reached=True, seed=seed)
    assert cli.main(["report", str(tmp_path)]) == 0
    assert capsys.readouterr().out.strip().endswith("report.html")
    assert rows(tmp_path) == {
        "async-n-step-q": [
            "3 of 3",
            "20,000 (10,000 to 30,000)",
            "21 (11 to 31)",
            "40 (20 to 60)",
            "480",
            "1,000",
        ]
    }
    text = (tmp_path / "report.md").read_text()
    assert "torch 2.13" in text and "abc123" in text


def test_misses_count_with_their_stopping_time_and_are_marked(tmp_path):
    write_run(tmp_path / "a", solved(10_000), reached=True)
    missed: Points = [(5000, 6, 10, 10, 20.0), (90_000, 91, 180, 100, 300.0)]
    for seed in (1, 2):
        write_run(tmp_path / f"m{seed}", missed, seed=seed)
    cli.main(["report", str(tmp_path)])
    cells = rows(tmp_path)["async-n-step-q"]
    assert cells[:2] == ["1 of 3", "> 90,000 (10,000 to > 90,000)"]


@pytest.mark.parametrize(
    ("costs", "expected"),
    [
        ([Cost(3, False), Cost(1, False), Cost(2, False)], Cost(2, False)),
        ([Cost(3, False), Cost(1, False)], Cost(2, False)),
        # Stopping early does not make a miss fast.
        ([Cost(1, True), Cost(5, False), Cost(9, False)], Cost(9, False)),
        ([Cost(1, True), Cost(2, True), Cost(9, False)], Cost(1, True)),
        ([Cost(4, False), Cost(8, True)], Cost(6, True)),
    ],
)
def test_median_with_misses(costs, expected):
    assert median(costs) == expected


def test_a_failed_run_never_arrives(tmp_path):
    write_run(tmp_path / "good", solved(10_000), reached=True)
    write_run(tmp_path / "bad", [(100, 2, 2, 10, 9.0)], status="failed", seed=1)
    cli.main(["report", str(tmp_path)])
    cells = rows(tmp_path)["async-n-step-q"]
    assert cells[0] == "1 of 2 (seed 1 failed)"
    assert cells[1] == "- (10,000 to -)"
    assert "Failed: async-n-step-q, seed 1" in (tmp_path / "report.md").read_text()


def test_another_threshold_is_read_off_the_evaluations_that_confirm(tmp_path):
    points: Points = [
        (1000, 2, 3, 10, 210.0),  # a lucky screening
        (2000, 3, 4, 100, 205.0),
        (3000, 4, 5, 100, 480.0),
    ]
    run = read_run(write_run(tmp_path / "run", points, reached=True))
    assert [run.cost(clock, 200) for clock in ("step", "wall_s", "cpu_s")] == [
        (2000, False),
        (3, False),
        (4, False),
    ]
    assert run.cost("step", 475) == (3000, False)
    assert run.cost("step", 490) == (3000, True)


def test_curves_are_step_functions_over_seeds():
    generator = np.random.default_rng(0)
    from async_dqn.report.results import RunResult

    runs = []
    for seed in range(5):
        step = np.sort(generator.choice(1000, 20, replace=False)).astype(float)
        curve = {"step": step, "mean": generator.normal(size=20)}
        runs.append(RunResult("E", "m", seed, "budget reached", curve))
    x, middle, low, high = aggregate(runs, "step")
    assert x[0] == max(run.curve["step"][0] for run in runs)
    assert x[-1] == max(run.curve["step"][-1] for run in runs)
    for k, at in enumerate(x):
        last = [
            next(m for s, m in zip(r.curve["step"][::-1], r.curve["mean"][::-1]) if s <= at)
            for r in runs
        ]
        assert middle[k] == pytest.approx(iqm(last))
    assert (low <= middle + 1e-9).all() and (middle <= high + 1e-9).all()


def test_the_page_needs_nothing_else_and_has_the_pictures(tmp_path):
    write_run(tmp_path / "run", solved(10_000), reached=True)
    cli.main(["report", str(tmp_path)])
    page = (tmp_path / "report.html").read_text()
    assert not re.search(r"<script|<link|https?:|@import|url\(", page)
    sources = re.findall(r'src="([^"]*)"', page)
    pictures = [base64.b64decode(s.removeprefix("data:image/png;base64,")) for s in sources]
    names = re.findall(r"!\[.*\]\((.*)\)", (tmp_path / "report.md").read_text())
    assert names == ["scores.png", "threshold.png", "speed.png"]
    assert [(tmp_path / name).read_bytes() for name in names] == pictures
    for picture in pictures:
        pixels = matplotlib.image.imread(io.BytesIO(picture))
        assert pixels.shape[1] >= 1500 and len(np.unique(pixels[::9, ::9, 0])) > 5


def test_hostile_names_stay_text(tmp_path):
    env = "<script>alert(1)</script>|$x_{$`*"
    write_run(tmp_path / "run", solved(10_000), reached=True, env=env)
    assert cli.main(["report", str(tmp_path)]) == 0
    assert "<script" not in (tmp_path / "report.html").read_text()
    assert "<script" not in (tmp_path / "report.md").read_text().replace("\\<", "")


def test_methods_are_told_apart_by_their_settings(tmp_path):
    for k, settings in enumerate([{}, {"double": True}, {"workers": 4}]):
        for seed in (0, 1):
            run = tmp_path / f"{k}-{seed}"
            write_run(run, solved(10_000), reached=True, seed=seed, **settings)
    (comparison,), _, _ = collect([tmp_path])
    assert {label: len(runs) for label, runs in comparison.methods.items()} == {
        "async-n-step-q, double": 2,
        "async-n-step-q, workers 2": 2,
        "async-n-step-q, workers 4": 2,
    }


def test_a_setting_that_an_older_run_did_not_know_was_at_its_default(tmp_path):
    write_run(tmp_path / "old", solved(10_000), reached=True)
    write_run(tmp_path / "new", solved(10_000), reached=True, seed=1, min_workers=1, epochs=1)
    (comparison,), _, _ = collect([tmp_path])
    assert {label: len(runs) for label, runs in comparison.methods.items()} == {"async-n-step-q": 2}


def test_peers_are_named_and_their_advantage_is_said(tmp_path):
    for k, rate in enumerate([1e-3, 1e-3, 2e-3]):
        run = write_run(tmp_path / str(k), solved(10_000), reached=True, seed=k)
        config = json.loads((run / "config.json").read_text())
        config["peer"] = {"name": "sb3-dqn", "settings": {"learning_rate": rate}, "threads": 7}
        (run / "config.json").write_text(json.dumps(config))
    cli.main(["report", str(tmp_path)])
    assert set(rows(tmp_path)) == {
        "sb3-dqn, learning_rate 0.001",
        "sb3-dqn, learning_rate 0.002",
    }
    text = (tmp_path / "report.md").read_text()
    assert "evaluating a peer is not counted" in text and "workers: 7" in text


def test_one_section_per_environment_and_differing_thresholds(tmp_path, capsys):
    write_run(tmp_path / "c", solved(10_000), reached=True)
    write_run(tmp_path / "l", solved(10_000), reached=True, env="A/B-v0", goal=200.0)
    write_run(tmp_path / "m", solved(10_000), reached=True, env="A/B-v0", goal=100.0, seed=1)
    assert cli.main(["report", str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    assert "A/B-v0: thresholds differ (100, 200)" in capsys.readouterr().err
    names = {path.name for path in (tmp_path / "out").glob("*.png")}
    assert names == {
        *(f"CartPole-v1-{name}.png" for name in ("scores", "threshold", "speed")),
        *(f"A-B-v0-{name}.png" for name in ("scores", "speed")),
    }


def test_a_cut_off_last_line_is_left_out(tmp_path):
    run = write_run(tmp_path / "run", solved(10_000), reached=True)
    with (run / "evaluations.csv").open("a") as file:
        file.write("11000,12.0,24.0,100,4")  # of 480
    assert list(read_run(run).curve["mean"]) == [100, 480]


def test_a_run_without_a_result_counts_as_unfinished(tmp_path):
    run = write_run(tmp_path / "run", solved(10_000), reached=False)
    (run / "result.json").unlink()
    read = read_run(run)
    assert (read.status, read.final, read.totals["steps"]) == ("unfinished", 480, 10_000)


DAMAGE = {
    "config.json": ["", "[]", "{", '{"settings": {}}', '{"settings": 3}', "[" * 100_000, "\xff"],
    "evaluations.csv": ["step,mean\n1,2\n", HEADER + "a,1,1,10,5,1,1,1\n", HEADER + "1,2\n"],
    "result.json": ["not json", "[]"],
}


@pytest.mark.parametrize(("name", "text"), [(n, t) for n, ts in DAMAGE.items() for t in ts])
def test_damaged_folders_are_named_and_left_out(name, text, tmp_path, capsys):
    write_run(tmp_path / "good", solved(10_000), reached=True)
    bad = write_run(tmp_path / "bad", solved(10_000), reached=True)
    (bad / name).write_text(text, encoding="latin-1")
    comparisons, _, (warning,) = collect([tmp_path])
    assert str(bad) in warning and name in warning and "\n" not in warning
    assert len(comparisons[0].runs) == 1
    assert cli.main(["report", str(bad)]) == 2  # nothing usable remains
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1


def test_what_json_may_hold_instead_of_numbers(tmp_path):
    run = write_run(tmp_path / "run", solved(10_000))
    result = '{"status": 3, "steps": 1e999, "wall_s": NaN, "cpu_s": true, "final_mean": [1]}'
    (run / "result.json").write_text(result)
    assert cli.main(["report", str(run), "--threshold", "100"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent"], "absent is not a folder; give run folders or folders above them"),
        (["."], "no run folder at or below ."),
        ([".", "--threshold", "x"], "--threshold must be a finite number (got 'x')"),
        ([".", "--treshold", "1"], "unknown option --treshold; did you mean --threshold?"),
        ([], "the following arguments are required: RUN"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["report", *arguments]) == 2
    assert capsys.readouterr().err == f"error: {message}\n"
    assert not list(tmp_path.iterdir())


def test_without_matplotlib_the_extra_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert cli.main(["report", str(tmp_path)]) == 2
    assert ".[plot]" in capsys.readouterr().err


def test_numbers_for_people():
    written = [quantity(x) for x in (1234567.8, 499.34, 41.25, 0.3517, -110.0, 0.0, None, np.inf)]
    assert written == ["1,234,568", "499.3", "41.2", "0.352", "-110", "0", "-", "-"]


def test_run_names_are_plain_folder_names():
    assert run_name("dqn:--lam 0.8", 3) == "dqn-lam-0.8-s3"
    assert run_name("../../x", 0) == "x-s0"


def test_scores_of_different_atari_protocols_are_never_in_one_table(tmp_path):
    points, sticky = [(1000, 2.0, 2.0, 10, -3.0)], {"repeat_action_probability": 0.0}
    machado = {"env_arg": {"full_action_space": True}, "life_loss_ends": False}
    runs = {"ours": {"env_arg": sticky}, "v5": {}, "machado": machado}
    for name, rules in runs.items():
        write_run(tmp_path / name, points, env="ALE/Pong-v5", rules=rules, goal=None)
    write_run(tmp_path / "again", points, env="ALE/Pong-v5", rules={"env_arg": sticky}, goal=None)
    comparisons, _, _ = collect([tmp_path])
    assert {c.env: len(c.runs) for c in comparisons} == {
        "ALE/Pong-v5, no sticky actions, the game's own actions, a lost life ends returns": 2,
        "ALE/Pong-v5, sticky actions 0.25, the game's own actions, a lost life ends returns": 1,
        "ALE/Pong-v5, sticky actions 0.25, all 18 actions, lives not seen": 1,
    }
    assert cli.main(["report", str(tmp_path)]) == 0
    text = (tmp_path / "report.md").read_text()
    assert text.count("## ALE/Pong-v5, ") == 3


def test_a_run_says_of_which_protocol_its_score_is(tmp_path):
    words = ["--env", "ALE/Pong-v5", "--steps", "600", "--mode", "serial", "--workers", "1"]
    words += ["--eval-episodes", "1", "--max-episode-steps", "20", "--run-name", "a"]
    assert cli.main([*words, "--runs-dir", str(tmp_path), "--quiet"]) == 0
    result = json.loads((tmp_path / "ALE-Pong-v5" / "a" / "result.json").read_text())
    expected = "no sticky actions, the game's own actions, a lost life ends returns"
    assert result["protocol"] == expected


def test_the_first_sentence_is_the_verdict(tmp_path):
    for seed in range(5):
        write_run(tmp_path / f"a{seed}", solved(20_000 + 100 * seed), reached=True, seed=seed)
        missed: Points = [(5000, 6, 10, 10, 20.0), (90_000, 91, 180, 100, 300.0)]
        points = solved(10_000) if seed else missed
        write_run(tmp_path / f"b{seed}", points, reached=bool(seed), seed=seed, double=True)
    cli.main(["report", str(tmp_path)])
    text = (tmp_path / "report.md").read_text()
    words = (
        "Best: async-n-step-q reaches 475 on 5 of 5 seeds, in 21.2 s (median); then "
        "async-n-step-q, double reaches 475 on 4 of 5 seeds, in 11 s (median)."
    )
    assert text.split("\n\n")[1] == words
    assert rows(tmp_path)["async-n-step-q"][4] == "480 \\[480, 480\\]"


def test_few_seeds_are_said_to_be_few(tmp_path):
    write_run(tmp_path / "a", solved(10_000), reached=True)
    cli.main(["report", str(tmp_path)])
    first = (tmp_path / "report.md").read_text().split("\n\n")[1]
    assert first.endswith("With fewer than 5 seeds a difference may be chance.")
