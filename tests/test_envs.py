"""The environment: two locks that agree, a recipe and conda files that install them, and licences
that may be used together."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import Distribution, PackageNotFoundError, distributions, version
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parent.parent
ENVS = ROOT / "envs"
LOCKS = ("cpu", "gpu")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
CUDA = re.compile(r"nvidia-|cuda-|triton==")


def requirements(path: Path) -> list[Requirement]:
    lines = [line.split("#")[0].strip() for line in path.read_text().splitlines()]
    return [Requirement(line) for line in lines if line]


def names(wanted: list[Requirement]) -> set[str]:
    return {canonicalize_name(requirement.name) for requirement in wanted}


def declared(device: str) -> list[Requirement]:
    """Return what pyproject.toml asks of an environment directly; the GPU build of faiss takes the
    place of the CPU build."""
    project, groups = PYPROJECT["project"], PYPROJECT["dependency-groups"]
    texts = project["dependencies"] + project["optional-dependencies"]["workflow"] + groups["dev"]
    return [Requirement(text) for text in texts + (groups["gpu"] if device == "gpu" else [])]


def machine(minor: int, platform: str = "linux", processor: str = "x86_64") -> dict[str, str]:
    return {
        "python_version": f"3.{minor}",
        "python_full_version": f"3.{minor}.9",
        "sys_platform": platform,
        "platform_machine": processor,
    }


def chosen(device: str, where: dict[str, str]) -> list[Requirement]:
    return [
        pin
        for pin in requirements(ENVS / f"{device}.lock")
        if pin.marker is None or pin.marker.evaluate(where)
    ]


@pytest.mark.parametrize("device", LOCKS)
def test_locks_pin_everything_that_is_declared(device: str) -> None:
    pinned = requirements(ENVS / f"{device}.lock")
    for pin in pinned:
        assert [specifier.operator for specifier in pin.specifier] == ["=="], pin
        assert "*" not in str(pin.specifier), pin
    assert names(declared(device)) <= names(pinned), "run `make lock`"
    for requirement in declared(device):
        for pin in pinned:
            if canonicalize_name(pin.name) == canonicalize_name(requirement.name):
                assert next(iter(pin.specifier)).version in requirement.specifier, (
                    pin,
                    requirement,
                )


@pytest.mark.parametrize("minor", [11, 12, 13])
@pytest.mark.parametrize("device", LOCKS)
def test_each_package_has_one_version_per_python(device: str, minor: int) -> None:
    pins = chosen(device, machine(minor))
    assert len(pins) == len(names(pins))
    assert names(declared(device)) - names(pins) == ({"faiss-cpu"} if device == "gpu" else set())


@pytest.mark.parametrize("minor", [11, 12, 13])
@pytest.mark.parametrize(
    ("device", "platform", "processor", "build"),
    [
        ("cpu", "linux", "x86_64", "faiss-cpu"),
        ("cpu", "darwin", "arm64", "faiss-cpu"),
        ("gpu", "linux", "x86_64", "faiss-gpu"),
        ("gpu", "linux", "aarch64", "faiss-cpu"),
        ("gpu", "darwin", "arm64", "faiss-cpu"),
        ("gpu", "win32", "AMD64", "faiss-cpu"),
    ],
)
def test_one_build_of_faiss_on_every_machine(
    device: str, platform: str, processor: str, build: str, minor: int
) -> None:
    """They are the same Python package, so that both would overwrite each other's files."""
    pins = names(chosen(device, machine(minor, platform, processor)))
    assert {name for name in pins if name.startswith("faiss")} == {build}


def test_the_locks_differ_by_cuda_packages_and_faiss_only() -> None:
    cpu, gpu = ({str(pin) for pin in requirements(ENVS / f"{device}.lock")} for device in LOCKS)
    assert {pin.split("==")[0] for pin in cpu - gpu} == {"faiss-cpu"}
    assert {pin.split("==")[0] for pin in gpu - cpu if not CUDA.match(pin)} == {
        "faiss-cpu",
        "faiss-gpu",
    }
    assert (
        len({pin.split(";")[0].split("==")[1] for pin in cpu | gpu if pin.startswith("faiss-")})
        == 1
    )
    assert any(pin.startswith("nvidia-cudnn") for pin in gpu)
    assert not any(CUDA.match(pin) for pin in cpu)


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
def test_the_recipe_copies_what_exists(device: str) -> None:
    recipe = (ENVS / "afterimage.def").read_text().replace("{{ DEVICE }}", device)
    files = recipe.split("%files\n")[1].split("\n\n")[0].splitlines()
    assert f"    envs/{device}.lock /opt/afterimage/envs/{device}.lock" in files
    assert [line.split()[0] for line in files if not (ROOT / line.split()[0]).exists()] == []
    assert f"pip install -r envs/{device}.lock" in recipe
    assert f"AFTERIMAGE_LOCK=/opt/afterimage/envs/{device}.lock" in recipe


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


def test_make_refuses_a_python_of_another_version(tmp_path: Path) -> None:
    old = tmp_path / "python3.10"
    old.write_text(
        f'#!/bin/sh\nexec {sys.executable} -c "import sys; sys.version_info = (3, 10, 2); $2"\n'
    )
    old.chmod(0o755)
    command = ["make", "setup", f"PYTHON={old}", f"VENV={tmp_path / 'venv'}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0
    assert "PYTHON is Python 3.10, but Python 3.11, 3.12 or 3.13 is needed" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["python3.10"]


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A folder with the Makefile, a lock and stand-ins that note what is installed; nothing is
    fetched."""
    folder = tmp_path / "clone"
    (folder / "envs").mkdir(parents=True)
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    for name in ("cpu.lock", "gpu.lock"):
        (folder / "envs" / name).write_text(f"{name[:3]}==1\n")
    stub = folder / "envs" / "uv.sh"
    stub.write_text('#!/bin/sh\necho "$@" >> installed.txt\n')
    stub.chmod(0o755)
    python = folder / "python"
    venv = 'mkdir -p "$4/bin"; echo > "$4/pyvenv.cfg"; rm -f "$4/made-from"; for program in pip python; do ln -sf /bin/true "$4/bin/$program"; done'
    python.write_text(
        f'#!/bin/sh\nif [ "$1" = -m ]; then {venv}; else exec {sys.executable} "$@"; fi\n'
    )
    python.chmod(0o755)
    return folder


def made(folder: Path, *settings: str) -> bool:
    """Run `make setup`; tell whether it made the environment."""
    subprocess.run(
        ["make", "setup", f"PYTHON={folder / 'python'}", *settings],
        cwd=folder,
        check=True,
        capture_output=True,
    )
    log = folder / "installed.txt"
    was_made = log.exists()
    log.unlink(missing_ok=True)
    return was_made


def test_the_environment_is_made_again_only_when_what_decides_it_changed(clone: Path) -> None:
    assert made(clone)
    assert not made(clone)
    for name in ("Makefile", "pyproject.toml", "envs/cpu.lock"):
        os.utime(clone / name)  # as a checkout does
    (clone / "envs" / "gpu.lock").write_text("gpu==2\n")  # another environment's
    assert not made(clone)
    assert made(clone, "LOCK=envs/gpu.lock")
    assert made(clone)
    for name in ("envs/cpu.lock", "pyproject.toml"):
        (clone / name).write_text((clone / name).read_text() + "# changed\n")
        assert made(clone)
        assert not made(clone)
    moved = clone.rename(clone.with_name("moved"))
    assert made(moved)
    assert not made(moved)


def test_what_the_wheel_of_torch_asks_for_beyond_the_lock_is_installed(clone: Path) -> None:
    """Where there is only the CUDA wheel of torch, an exact sync of cpu.lock would leave out the
    CUDA libraries that it loads."""
    command = ["make", "setup", f"PYTHON={clone / 'python'}"]
    subprocess.run(command, cwd=clone, check=True, capture_output=True)
    lock, package = (clone / "installed.txt").read_text().splitlines()
    assert "--no-deps" not in lock
    assert lock == ".venv pip install --quiet -r envs/cpu.lock"
    assert package == ".venv pip install --quiet --no-build-isolation --no-deps -e ."


def test_the_steps_can_be_imported_to_compile_them() -> None:
    code = (ROOT / "Makefile").read_text().partition("define IMPORT_STEPS\n")[2]
    code = (
        code.partition("endef")[0] + "import sys\nprint('afterimage.training.job' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True"]


def test_an_interrupted_installation_is_made_again(clone: Path) -> None:
    (clone / "envs" / "uv.sh").write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(subprocess.CalledProcessError):
        made(clone)
    (clone / "envs" / "uv.sh").write_text('#!/bin/sh\necho "$@" >> installed.txt\n')
    assert made(clone)


@pytest.mark.parametrize(
    ("settings", "variables", "expected"),
    [
        ("", {}, {"UV_INDEX_STRATEGY": "unsafe-best-match"}),
        (
            ":env:.find-links='/a "
            "/b'\nglobal.find-links='/c'\nglobal.extra-index-url='x\\ny'\ninstall.index-url='z'",
            {},
            {"UV_FIND_LINKS": "/a,/b", "UV_INDEX": "x y", "UV_DEFAULT_INDEX": "z"},
        ),
        ("global.index-url='z'\ninstall.index-url='w'", {}, {"UV_DEFAULT_INDEX": "w"}),
        (
            "global.index-url='z'\nglobal.find-links='/c'",
            {"UV_FIND_LINKS": ""},
            {"UV_DEFAULT_INDEX": "z", "UV_FIND_LINKS": ""},
        ),
        ("global.cert='/c.pem'", {"SSL_CERT_FILE": "/own.pem"}, {"SSL_CERT_FILE": "/own.pem"}),
    ],
)
def test_uv_is_told_what_pip_is_set_to(
    tmp_path: Path, settings: str, variables: dict[str, str], expected: dict[str, str]
) -> None:
    programs = {"pip": f"cat <<'END'\n{settings}\nEND\n", "uv": 'echo "$@"; env\n'}
    for name, text in programs.items():
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{text}")
        (tmp_path / "bin" / name).chmod(0o755)
    command = [str(ENVS / "uv.sh"), str(tmp_path), "pip", "sync", "a b"]
    surroundings = {"PATH": os.environ["PATH"], **variables}
    done = subprocess.run(command, env=surroundings, capture_output=True, text=True, check=True)
    said, *lines = done.stdout.splitlines()
    assert said == "pip sync a b"
    given = dict(line.split("=", 1) for line in lines)
    assert given["VIRTUAL_ENV"] == str(tmp_path)
    given = {name: value for name, value in given.items() if name.startswith(("UV_", "SSL_"))}
    assert given == {"UV_INDEX_STRATEGY": "unsafe-best-match"} | expected


# ---- licences ------------------------------------------------------------------------------------

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
    "Apache 2.0 License": "Apache-2.0",
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
    """Return the licence of a distribution as SPDX where it is spelled in a known way, or as it
    stands."""
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
    """NVIDIA's libraries, which torch's CUDA wheels pull in, are not looked at: proprietary, free
    to use, not in cpu.lock."""
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
