"""Start-up: processor time that every verb of the command line takes before it does any work.

    python benchmarks/imports.py [--against REVISION] [--runs 5] [--only "train run"]

Each verb is started with ``--help``, which imports what the verb imports, and the median of user plus system time over the runs
is printed; what Python and argparse take by themselves is in the first row. With ``--against`` the same is done with the
package of a git revision, the two taking turns, and the ratio of the medians is printed: above 1 this tree is faster. What a
verb imports only while it works is in none of the numbers.
"""

import argparse
import io
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTHON_ITSELF = "(python)"


def verbs() -> list[str]:
    """Return all commands: "train run", ..., "verify", ..."""
    from afterimage.cli import COMMANDS, SINGLE

    return [*(f"{phase} {verb}" for phase, named in COMMANDS.items() for verb in named), *SINGLE]


def seconds(source: Path, verb: str) -> float:
    """Return the processor time of one process that imports what ``verb`` imports from ``source``.

    Raises:
        SystemExit: if the process fails.
    """
    started = "-c pass" if verb == PYTHON_ITSELF else f"-m afterimage.cli {verb} --help"
    process = subprocess.Popen(
        [sys.executable, *started.split()],
        env=os.environ | {"PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
    )
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"afterimage {verb} --help failed with {source}")
    return used.ru_utime + used.ru_stime


@contextmanager
def package_of(revision: str) -> Iterator[Path]:
    """Unpack ``src`` of a git revision into a temporary folder."""
    packed = subprocess.run(
        ["git", "archive", revision, "src"], cwd=ROOT, check=True, stdout=subprocess.PIPE
    ).stdout
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
            archive.extractall(folder, filter="data")
        yield Path(folder) / "src"


def measure(sources: list[Path], verb: str, runs: int) -> list[float]:
    """Return the median for each source; a first run of each, which may compile modules, is not counted."""
    taken = [[seconds(source, verb) for source in sources] for _ in range(runs + 1)]
    return [statistics.median(column) for column in zip(*taken[1:], strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--against", metavar="REVISION", help="git revision to compare with")
    parser.add_argument("--runs", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--only", action="append", metavar="VERB", help="may be repeated")
    args = parser.parse_args()
    wanted = [PYTHON_ITSELF, *(args.only or verbs())]
    here = ROOT / "src"
    if args.against is None:
        print(f"{'verb':28} {'seconds':>8}")
        for verb in wanted:
            print(f"{verb:28} {measure([here], verb, args.runs)[0]:8.2f}", flush=True)
        return
    with package_of(args.against) as there:
        print(f"{'verb':28} {args.against:>14} {'this tree':>10} {'ratio':>6}")
        for verb in wanted:
            before, after = measure([there, here], verb, args.runs)
            print(f"{verb:28} {before:14.2f} {after:10.2f} {before / after:6.2f}", flush=True)


if __name__ == "__main__":
    main()
