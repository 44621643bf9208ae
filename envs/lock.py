"""Makes the environment files from ``requirements.in``: two locks by ``uv``, and what is generated from them.

One resolution, for every platform and Python 3.11 to 3.13, gives both locks: ``gpu.lock`` is the whole of it, ``cpu.lock`` the
same without the CUDA packages that torch's default Linux wheel asks for. So the two cannot disagree on a version. From each
lock follow a conda file and an Apptainer recipe.

    python envs/lock.py              keep the versions of gpu.lock, take up changes of requirements.in
    python envs/lock.py --upgrade    newest versions of everything (other flags of `uv pip compile` work too)
    python envs/lock.py --check      resolve nothing and change nothing; fail if a file is not what gpu.lock gives
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
CUDA = re.compile(r"(nvidia|cuda|triton)\b")
DEVICES = ("cpu", "gpu")

LOCK = """\
# Every package of the {device} environment, for Python 3.11 to 3.13 on every platform. Made by `make lock`; do not edit.
# {note}
"""
NOTES = {
    "cpu": "Where torch's default wheel is a CUDA build, point pip to PyTorch's CPU wheels (PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS).",
    "gpu": "cpu.lock with the CUDA packages that torch's default Linux wheel needs.",
}

CONDA = """\
# Generated from {device}.lock by `make lock`; do not edit.
#
#   conda env create -f envs/{device}.conda.yaml && conda activate afterimage-{device}
#   pip install --no-build-isolation --no-deps -e .
name: afterimage-{device}
channels: [conda-forge]
dependencies:
  - python >=3.11,<3.14
  - pip
  - pip:
      - -r {device}.lock
variables:
  AFTERIMAGE_LOCK: envs/{device}.lock
"""

APPTAINER = """\
# Generated from {device}.lock by `make lock`; do not edit.
#
#   apptainer build afterimage-{device}.sif envs/afterimage-{device}.def
#   apptainer run {nv}afterimage-{device}.sif --help
#
# {hint}
Bootstrap: docker
From: python:3.11-slim-bookworm

%arguments
    PIP_EXTRA_INDEX_URL=

%files
    envs/{device}.lock /opt/afterimage/envs/{device}.lock
    pyproject.toml /opt/afterimage/pyproject.toml
    README.md /opt/afterimage/README.md
    LICENSE /opt/afterimage/LICENSE
    src /opt/afterimage/src

%post
    apt-get update
    apt-get install -y --no-install-recommends git
    rm -rf /var/lib/apt/lists/*
    export PIP_EXTRA_INDEX_URL="{{{{ PIP_EXTRA_INDEX_URL }}}}" PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
    cd /opt/afterimage
    echo "{sha256}  envs/{device}.lock" | sha256sum --check --strict
    pip install -r envs/{device}.lock
    pip install --no-build-isolation --no-deps -e .

%environment
    export AFTERIMAGE_LOCK=/opt/afterimage/envs/{device}.lock
    export MLFLOW_DISABLE_TELEMETRY=true DO_NOT_TRACK=true DVC_NO_ANALYTICS=1 HF_HUB_DISABLE_TELEMETRY=1

%runscript
    exec afterimage "$@"

%test
    afterimage --help
    python -m pip check
    python -c "import diffusers, faiss, mlflow, snakemake, torch; print('torch', torch.__version__)"

%labels
    lock_sha256 {sha256}
"""
HINTS = {
    "cpu": "torch's default Linux wheel is a CUDA build: give `--build-arg PIP_EXTRA_INDEX_URL=` PyTorch's CPU wheel index.",
    "gpu": "The wheels bring CUDA along; the host gives the driver (`--nv`).",
}


def resolve(arguments: list[str]) -> list[str]:
    """Return the pins of all packages, one per line, resolved by uv with the present ``gpu.lock`` as preference."""
    whole = HERE / "gpu.lock"
    command = ["uv", "pip", "compile", "--quiet", "--universal", "--python-version", "3.11", "--annotation-style", "line"]
    command += ["--no-header", *arguments, "requirements.in", "--output-file", whole.name]
    subprocess.run(command, cwd=HERE, check=True, stdout=subprocess.DEVNULL)
    return pins(whole.read_text())


def pins(lock: str) -> list[str]:
    """Return the lines of a lock that pin something."""
    return [line for line in lock.splitlines() if line.strip() and not line.startswith("#")]


def generate(whole: list[str]) -> dict[str, str]:
    """Return file name -> text of every generated file, given the lines of the whole resolution."""
    files = {}
    for device in DEVICES:
        kept = whole if device == "gpu" else [line for line in whole if not CUDA.match(line)]
        lock = LOCK.format(device=device.upper(), note=NOTES[device]) + "\n".join(kept) + "\n"
        sha256 = hashlib.sha256(lock.encode()).hexdigest()
        files[f"{device}.lock"] = lock
        files[f"{device}.conda.yaml"] = CONDA.format(device=device)
        files[f"afterimage-{device}.def"] = APPTAINER.format(
            device=device, nv="--nv " if device == "gpu" else "", hint=HINTS[device], sha256=sha256
        )
    return files


def stale() -> list[str]:
    """Return the names of the files that are not what ``gpu.lock`` gives."""
    files = generate(pins((HERE / "gpu.lock").read_text()))
    return [name for name, text in files.items() if not (HERE / name).is_file() or (HERE / name).read_text() != text]


def main(arguments: list[str]) -> None:
    if arguments == ["--check"]:
        if names := stale():
            sys.exit(f"not what envs/gpu.lock gives; run `make lock`: {', '.join(names)}")
        return
    for name, text in generate(resolve(arguments)).items():
        (HERE / name).write_text(text)


if __name__ == "__main__":
    main(sys.argv[1:])
