"""The layers of the package: a room imports from lower floors alone."""

import ast
from pathlib import Path

import pytest

import afterimage

PACKAGE = Path(afterimage.__file__).parent
FLOORS = (
    {"config", "provenance", "seeds", "progress", "meta_device"},
    {"artifacts"},
    {"scratch"},
    {"images"},
    {"metrics", "diffusion"},
    {"plan"},
    {"tracking", "data", "training"},
    {"engines"},
    {"methods", "attacks", "cli"},
    {"attribution", "report"},
    {"selection", "standalone"},
)
PLANNERS = {"plan", "tracking", "engines", "cli"}
"""Rooms that plan a study or look after it. No step's code reads the plan: a step sees its resolved
config."""


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def imports(path: Path) -> set[str]:
    """Return the rooms that a module imports from, anywhere in its text."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {room(name) for name in found if name.startswith("afterimage.")} - {"__version__"}


MODULES = {
    path: path.relative_to(PACKAGE).with_suffix("").parts[0]
    for path in PACKAGE.rglob("*.py")
    if path.parent != PACKAGE or path.stem != "__init__"
}


def test_every_room_has_a_floor():
    assert set(MODULES.values()) == set().union(*FLOORS)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_from_lower_floors_alone(path):
    own = MODULES[path]
    height = next(level for level, rooms in enumerate(FLOORS) if own in rooms)
    allowed = set().union({own}, *FLOORS[:height])
    assert imports(path) <= allowed
    if own not in PLANNERS:
        assert "plan" not in imports(path)


def test_the_plan_needs_no_network_library():
    """Imported by every call of snakemake and of the command line."""
    import subprocess
    import sys

    code = "import sys, afterimage.plan.jobs, afterimage.plan.resolved, afterimage.plan.inputs;"
    code += "print(sorted({'torch', 'diffusers', 'pandas', 'scipy', 'sklearn'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
