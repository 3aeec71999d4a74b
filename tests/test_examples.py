"""The notebook, cell by cell, as a kernel runs it: from no file, its classes in `__main__`."""

import json
import os
import subprocess
import sys

import pytest

from runs import ROOT


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_quickstart_does_what_it_says(tmp_path) -> None:
    notebook = json.loads((ROOT / "examples" / "quickstart.ipynb").read_text())
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] for cell in cells)
    source = "\n\n".join("".join(cell["source"]) for cell in cells)
    done = subprocess.run(
        [sys.executable, "-"],
        input=f"{source}\nprint(agent.plot()._repr_png_()[:4], remembering.evaluate(100)[0])\n",
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    said = done.stdout
    assert "over 100 episodes" in said and float(said.split(" +- ")[0].split()[-1]) >= 475
    assert "checked      1,000 observations: the same actions" in said
    picture, score = said.splitlines()[-1].rsplit(" ", 1)
    assert picture == r"b'\x89PNG'"
    assert float(score) >= 0.9
    (played,) = tmp_path.glob("runs/CartPole-v1/*/play.gif")
    assert played.stat().st_size > 10_000
