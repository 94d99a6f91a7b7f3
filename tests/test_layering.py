"""The walls between rooms: a room imports from lower floors only, and importing it is cheap."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "equivariant_jax"
ROOT = PACKAGE.parent

SYMMETRY = ("euclidean", "frames", "lie", "flow", "vision", "permutation")
PROBLEMS = ("generative", "self_supervised", "invariance", "statistics")
ALLOWED = {
    "core": {"core"},
    "nn": {"core", "nn"},
    "data": {"core", "data"},
    "training": {"core", "training"},
    **{room: {"core", "nn", room} for room in SYMMETRY},
    **{room: {"core", "nn", room, *SYMMETRY} for room in PROBLEMS},
}
# What costs seconds to import, or is not installed everywhere: only inside functions, in every room.
HEAVY = {
    "av",
    "sklearn",
    "e3nn_jax",
    "tensorflow_datasets",
    "grain",
    "orbax",
    "matplotlib",
    "tyro",
    "ase",
    "scipy",
    "tqdm",
    "tblite",
    "lmdb",
    "torch",
}
ROOMS = sorted(p.name for p in PACKAGE.iterdir() if (p / "__init__.py").exists())


def modules():
    return sorted(p for p in PACKAGE.rglob("*.py") if p.parent != PACKAGE)


def imports(node):
    """Names of modules that a statement imports."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        base = node.module or ""
        return [base, *(f"{base}.{alias.name}" for alias in node.names)] if base == "equivariant_jax" else [base]
    return []


def violations(source, room):
    """Imports that break a wall: `(line, name)`."""
    tree = ast.parse(source)
    found = []
    for node in ast.walk(tree):
        for name in imports(node):
            parts = name.split(".")
            if parts[0] in ("experiments", "tests", "notebooks"):
                found.append((node.lineno, name))
            if (
                parts[0] == "equivariant_jax"
                and len(parts) > 1
                and parts[1] in ALLOWED
                and parts[1] not in ALLOWED[room]
            ):
                found.append((node.lineno, name))
    for node in tree.body:
        found += [(node.lineno, name) for name in imports(node) if name.split(".")[0] in HEAVY]
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_walls(path):
    room = path.relative_to(PACKAGE).parts[0]
    assert room in ALLOWED, f"{room} is not on the map"
    assert not violations(path.read_text(), room)


def test_the_check_sees_violations():
    assert violations("from equivariant_jax.euclidean import gaunt", "core")
    assert violations("from equivariant_jax import training", "data")
    assert violations("def f():\n    import experiments.report", "lie")
    assert violations("import e3nn_jax as e3nn", "euclidean")
    assert violations("from equivariant_jax.lie import kernels", "euclidean")
    assert not violations("def f():\n    import e3nn_jax", "euclidean")
    assert not violations("from equivariant_jax.core import graphs", "data")


def test_no_jit_inside_pure_rooms():
    """The caller jits; what is itself the outermost caller compiles: training, sentinel, checks, ASE calculator."""
    exempt = {"training", "core/backend.py", "core/checks.py", "euclidean/dynamics.py"}
    for path in modules():
        relative = str(path.relative_to(PACKAGE))
        if relative in exempt or relative.split("/")[0] in exempt:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr in ("jit", "pmap") and isinstance(node.value, ast.Name):
                pytest.fail(f"{relative}:{node.lineno} calls jax.{node.attr}")


def test_no_rooms_without_a_name():
    for path in ROOT.joinpath("equivariant_jax").rglob("*.py"):
        assert path.stem not in ("utils", "helpers", "common", "misc"), path
        assert len(path.read_text().splitlines()) <= 600, f"{path} holds more than one idea"


TIMER = """
import time, jax, jax.numpy
start = time.process_time()
import equivariant_jax.{room}
print(time.process_time() - start)
"""


@pytest.mark.parametrize("room", ROOMS)
def test_importing_a_room_is_cheap(room):
    """Under one second of processor time beyond `import jax` (the best of three: other processes must not decide)."""
    best = min(
        float(subprocess.run([sys.executable, "-c", TIMER.format(room=room)], cwd=ROOT, capture_output=True, text=True,
                             check=True).stdout)
        for _ in range(3)
    )  # fmt: skip
    assert best < 1.0
