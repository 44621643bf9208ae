"""The environment: two locks that agree, files generated from them, and licences that may be used together."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tomllib
from importlib.metadata import Distribution, PackageNotFoundError, distributions, version
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parent.parent
ENVS = ROOT / "envs"
LOCKS = ("cpu", "gpu")


@pytest.fixture(scope="module")
def lock() -> ModuleType:
    spec = importlib.util.spec_from_file_location("lock", ENVS / "lock.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def requirements(path: Path) -> list[Requirement]:
    lines = [line.split("#")[0].strip() for line in path.read_text().splitlines()]
    return [Requirement(line) for line in lines if line]


def names(wanted: list[Requirement]) -> set[str]:
    return {canonicalize_name(requirement.name) for requirement in wanted}


def test_generated_files_are_what_the_lock_gives(lock: ModuleType) -> None:
    assert lock.stale() == []


def test_a_changed_lock_makes_the_other_lock_and_both_recipes_stale(lock: ModuleType) -> None:
    whole = lock.pins((ENVS / "gpu.lock").read_text())
    before, after = lock.generate(whole), lock.generate([*whole, "zzz==1"])
    assert {name for name in before if before[name] != after[name]} == {
        "cpu.lock",
        "gpu.lock",
        "afterimage-cpu.def",
        "afterimage-gpu.def",
    }


@pytest.mark.parametrize("device", LOCKS)
def test_locks_pin_every_direct_requirement_exactly(device: str) -> None:
    pinned = requirements(ENVS / f"{device}.lock")
    for pin in pinned:
        assert [specifier.operator for specifier in pin.specifier] == ["=="], pin
        assert "*" not in str(pin.specifier), pin
    direct = requirements(ENVS / "requirements.in")
    assert names(direct) <= names(pinned)
    for requirement in direct:
        for pin in pinned:
            if canonicalize_name(pin.name) == canonicalize_name(requirement.name):
                assert next(iter(pin.specifier)).version in requirement.specifier, (
                    pin,
                    requirement,
                )


@pytest.mark.parametrize("minor", [11, 12, 13])
@pytest.mark.parametrize("device", LOCKS)
def test_each_package_has_one_version_per_python(device: str, minor: int) -> None:
    machine = {
        "python_version": f"3.{minor}",
        "python_full_version": f"3.{minor}.9",
        "sys_platform": "linux",
    }
    chosen = [
        p
        for p in requirements(ENVS / f"{device}.lock")
        if p.marker is None or p.marker.evaluate(machine)
    ]
    assert len(chosen) == len(names(chosen))
    assert names(requirements(ENVS / "requirements.in")) <= names(chosen)


def test_the_locks_differ_by_cuda_packages_only() -> None:
    cpu, gpu = ({str(pin) for pin in requirements(ENVS / f"{device}.lock")} for device in LOCKS)
    assert cpu < gpu
    assert all(re.match(r"nvidia-|cuda-|triton==", pin) for pin in gpu - cpu)
    assert any(pin.startswith("nvidia-cudnn") for pin in gpu)
    assert not any(re.match(r"nvidia-|cuda-|triton", pin) for pin in cpu)


def test_the_package_depends_on_nothing_that_is_not_locked() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = names([Requirement(text) for text in project["dependencies"]])
    assert needed <= names(requirements(ENVS / "requirements.in"))


@pytest.mark.parametrize("path", sorted(p.name for p in ENVS.iterdir() if p.is_file()))
def test_no_host_is_named(path: str) -> None:
    text = (ENVS / path).read_text()
    assert not re.search(
        r"https?:|\bwww\.|\b[\w-]+\.(org|com|net|io)\b|--(extra-)?index-url|--find-links", text
    )


@pytest.mark.parametrize("device", LOCKS)
def test_conda_files_install_the_lock(device: str) -> None:
    conda = yaml.safe_load((ENVS / f"{device}.conda.yaml").read_text())
    assert {"pip": [f"-r {device}.lock"]} in conda["dependencies"]
    assert (ROOT / conda["variables"]["AFTERIMAGE_LOCK"]).samefile(ENVS / f"{device}.lock")


@pytest.mark.parametrize("device", LOCKS)
def test_recipes_copy_what_exists(device: str) -> None:
    recipe = (ENVS / f"afterimage-{device}.def").read_text()
    files = recipe.split("%files\n")[1].split("\n\n")[0].splitlines()
    assert [line.split()[0] for line in files if not (ROOT / line.split()[0]).exists()] == []


def test_the_running_environment_is_the_locked_one() -> None:
    wrong = []
    for pin in requirements(ENVS / "cpu.lock"):
        if pin.marker is None or pin.marker.evaluate():
            try:
                found = version(pin.name)
            except PackageNotFoundError:
                found = "missing"
            if found == "missing" or not pin.specifier.contains(Version(found), prereleases=True):
                wrong.append(f"{pin} is {found}")
    assert wrong == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("VENV={tmp}", "is no virtual environment; remove it or choose another"),
        ("LOCK={tmp}/none.lock", "none.lock is not a file; envs/cpu.lock and envs/gpu.lock are"),
    ],
)
def test_make_refuses_before_it_removes_or_installs_anything(
    tmp_path: Path, settings: str, message: str
) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    command = ["make", "setup", f"PYTHON={sys.executable}", settings.format(tmp=tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0
    assert message in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["precious.txt"]


# ---- licences -----------------------------------------------------------------------------------------------------------

ALLOWED = {
    *(
        "0BSD",
        "Apache-2.0",
        "Apache-2.0 WITH LLVM-exception",
        "BSD-2-Clause",
        "BSD-3-Clause",
        "BSL-1.0",
        "CC0-1.0",
    ),
    *(
        "CNRI-Python",
        "HPND",
        "ISC",
        "MIT",
        "MIT-0",
        "MIT-CMU",
        "MPL-2.0",
        "PSF-2.0",
        "Unlicense",
        "Zlib",
        "ZPL-2.1",
    ),
}

SPELLINGS = {
    "2-clause BSD License": "BSD-2-Clause",
    "3-Clause BSD License": "BSD-3-Clause",
    "Apache 2.0": "Apache-2.0",
    "Apache License 2.0": "Apache-2.0",
    "Apache License, Version 2.0": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "BSD": "BSD-3-Clause",
    "BSD License": "BSD-3-Clause",
    "Historical Permission Notice and Disclaimer (HPND)": "HPND",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
    "The Unlicense (Unlicense)": "Unlicense",
    "Zope Public License": "ZPL-2.1",
}
"""What distributions write -> SPDX."""

EXPLAINED = {
    "asyncssh": "EPL-2.0 or GPL-2.0-or-later; used unchanged, by DVC's git layer, under the EPL",
    "docutils": "public domain with BSD parts; its GPL part is an Emacs mode that is not installed as a module",
    "grandalf": "GPL-2.0 or EPL-1.0; used unchanged, by `dvc dag`, under the EPL",
    "pygit2": "GPL-2.0 with the linking exception of libgit2, which lets any program link with it",
    "conda-inject": "no licence field; the file in the distribution is MIT",
    "huey": "no licence field; the file in the distribution is MIT",
    "skops": "no licence field; the file in the distribution is MIT",
    "snakemake-interface-common": "no licence field; the file in the distribution is MIT",
    "snakemake-interface-logger-plugins": "no licence field; the file in the distribution is MIT",
    "snakemake-interface-report-plugins": "no licence field; the file in the distribution is MIT",
    "snakemake-interface-scheduler-plugins": "no licence field; the file in the distribution is MIT",
    "snakemake-interface-storage-plugins": "no licence field; the file in the distribution is MIT",
    "sysrsync": "no licence field; the file in the distribution is MIT",
}
"""Distribution -> why it may be used although its metadata names no licence of the list."""


def licences_of(distribution: Distribution) -> str:
    """Return the licence of a distribution as SPDX where it is spelled in a known way, or as it stands."""
    metadata = distribution.metadata
    if expression := metadata.get("License-Expression"):
        return expression
    classifiers = [
        line.split(" :: ")[-1]
        for line in metadata.get_all("Classifier") or []
        if line.startswith("License")
    ]
    named = [name for name in classifiers if name != "OSI Approved"]
    if not named:
        text = (metadata.get("License") or "").strip()
        named = [SPELLINGS.get(text, text)]
    return " AND ".join(SPELLINGS.get(name, name) for name in named)


def allowed(expression: str) -> bool:
    """Tell whether one alternative of an SPDX expression has only allowed parts."""
    flat = expression.replace("(", "").replace(")", "")
    if (
        " AND " in flat and " OR " in flat
    ):  # "A AND (B OR C)" is the only mixture met: every part must do
        return all(part in ALLOWED for part in re.split(" AND | OR ", flat))
    return any(
        all(part in ALLOWED for part in choice.split(" AND ")) for choice in flat.split(" OR ")
    )


def test_every_installed_licence_is_allowed_or_explained() -> None:
    """NVIDIA's libraries, which torch's CUDA wheels pull in, are not looked at: proprietary, free to use, not in cpu.lock."""
    locked = names(requirements(ENVS / "cpu.lock"))
    installed = {canonicalize_name(d.metadata["Name"]): d for d in distributions()}
    unclear = {
        name: licences_of(installed[name])
        for name in locked & installed.keys() - EXPLAINED.keys()
        if not allowed(licences_of(installed[name]))
    }
    assert unclear == {}
    assert EXPLAINED.keys() <= locked, "an explained package is no longer used"


@pytest.mark.parametrize(
    ("expression", "answer"),
    [
        ("MIT", True),
        ("Apache-2.0 OR GPL-2.0-or-later", True),
        ("MIT AND GPL-3.0-only", False),
        ("MPL-2.0 AND (Apache-2.0 OR MIT)", True),
        ("", False),
    ],
)
def test_licence_expressions(expression: str, answer: bool) -> None:
    assert allowed(expression) is answer
