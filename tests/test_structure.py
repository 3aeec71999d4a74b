"""The shape of the package, read from its sources: floors, sizes, names, and what is banned."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import async_dqn

PACKAGE = Path(async_dqn.__file__).parent
# A module imports from its own folder and from strictly lower floors; the package itself (its
# version) may be imported by all.
FLOORS = (
    "config parameters",
    "networks envs processes",
    "algorithms play",
    "replay",
    "workers",
    "evaluation runs",
    "training report deploy",
    "agent",
    "compare api",
    "peers",
    "bench watch doctor track tune distill",
    "cli",
    "__main__",
)
FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names.split()}
DECLARATIVE = {"config.schema"}
SOURCES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
# Which primitives a process could die holding, and what runs or reads code from data.
HOLDABLE = {"Lock", "RLock", "Semaphore", "BoundedSemaphore", "Condition", "Barrier", "Event"}
HOLDABLE |= {"Queue", "SimpleQueue", "JoinableQueue", "Manager", "Pool", "SharedMemory"}
BANNED_MODULES = {"pickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
BANNED_CALLS = {"eval", "exec", "compile", "torch.load", "np.load", "numpy.load"}
EMPTY_NAMES = {"utils", "util", "common", "misc", "helpers", "helper"}

each_source = pytest.mark.parametrize("name", SOURCES)


def tree(name: str) -> ast.Module:
    return ast.parse(SOURCES[name].read_text())


def imports(name: str) -> Iterator[str]:
    """Dotted names a module imports anywhere in it, also inside functions."""
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: write relative imports in full"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def unit(dotted: str) -> str:
    """The entry of FLOOR that `async_dqn.a.b.C` belongs to; "" for the package itself."""
    name = dotted.removeprefix("async_dqn").lstrip(".").partition(".")[0]
    return name if name in FLOOR else ""


def own_imports(name: str) -> set[str]:
    dotted = {found for found in imports(name) if found.partition(".")[0] == "async_dqn"}
    return {unit(found) for found in dotted} - {""}


def calls(name: str) -> Iterator[str]:
    """What is called or named: `eval`, and `torch.load` as written."""
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            yield f"{node.value.id}.{node.attr}"


def test_every_module_has_a_floor_and_every_floor_its_modules() -> None:
    modules = {name.partition(".")[0] for name in SOURCES} - {"__init__"}
    assert modules == set(FLOOR), "give new modules a floor, drop those that are gone"
    assert sum(len(names.split()) for names in FLOORS) == len(FLOOR), (
        "a module stands on two floors"
    )


@each_source
def test_a_module_imports_lower_floors_only(name: str) -> None:
    own = unit(name)
    if name == "__init__":
        return  # it hands out the API late
    for other in own_imports(name) - {own}:
        assert FLOOR[other] < FLOOR[own], f"{name} (floor {FLOOR[own]}) imports {other}"


@each_source
def test_no_module_is_over_400_lines(name: str) -> None:
    most = 450 if name in DECLARATIVE else 400
    assert len(SOURCES[name].read_text().splitlines()) <= most


@each_source
def test_no_function_is_over_60_lines(name: str) -> None:
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno - node.lineno < 60, node.name


@each_source
def test_a_module_says_what_it_is_and_its_name_does_too(name: str) -> None:
    assert ast.get_docstring(tree(name))
    assert not EMPTY_NAMES & set(name.split("."))


@each_source
def test_nothing_is_unpickled_and_no_text_is_run(name: str) -> None:
    # What is pickled is for our own children: it carries the user's classes.
    allowed = {"cloudpickle"} if name in ("workers.run_spec", "training.look") else set()
    for dotted in set(imports(name)) - allowed:
        assert dotted.partition(".")[0] not in BANNED_MODULES
        assert dotted not in BANNED_CALLS
    assert not BANNED_CALLS & set(calls(name))


@each_source
def test_no_primitive_that_a_process_can_die_holding(name: str) -> None:
    imported = {found for found in imports(name) if found.startswith(("multiproc", "threading"))}
    assert not HOLDABLE & {found.rpartition(".")[2] for found in imported}
    attributes = {node.attr for node in ast.walk(tree(name)) if isinstance(node, ast.Attribute)}
    assert not HOLDABLE & attributes


def test_settings_and_pure_mathematics_need_no_torch() -> None:
    heavy = {"torch", "gymnasium", "tensorboard", "multiprocessing"}
    for name in (
        "config.fields",
        "config.cores",
        "config.schema",
        "config.config",
        "config.options",
        "config.presets",
        "algorithms.returns",
        "algorithms.exploration",
    ):
        assert not heavy & {dotted.partition(".")[0] for dotted in imports(name)}, name
