"""Commands without their imports: a process that has imported them forks once for each call.

The jobs of the tests' tiny studies compute for less than a second and import torch for several. A
call goes through a stand-in of the command's name, which passes its arguments, folder, environment
and standard streams on. What the command does is unchanged, but the signals that the stand-in gets
do not reach it: a test that kills jobs needs the commands themselves.
"""

import gc
import importlib
import json
import os
import pkgutil
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

COMMANDS = {
    "afterimage": "afterimage.cli:main",
    "snakemake": "snakemake.cli:main",
    "dvc": "dvc.cli:main",
}
"""Name -> the function that the installed command calls."""

IMPORTED = (
    "accelerate",
    "diffusers",
    "dvc.cli.parser",
    "dvc.repo",
    "faiss",
    "matplotlib.pyplot",
    "mlflow",
    "pandas",
    "pyarrow.parquet",
    "sklearn.datasets",
    "snakemake.api",
    "snakemake.workflow",
    "torch",
)
"""What takes longest to import, besides the modules of all commands of ``afterimage``."""

STAND_IN = """#!{python} -IS
import json, os, socket, sys

call = [os.path.basename(sys.argv[0]), *sys.argv[1:]], os.getcwd(), dict(os.environ)
text = json.dumps(call).encode()
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    socket.send_fds(server, [len(text).to_bytes(8, "big")], [0, 1, 2])
    server.sendall(text)
    answer = server.recv(1)
sys.exit(answer[0] if answer else "the process that runs the commands has ended")
"""


@contextmanager
def preloaded(folder: Path, environment: dict[str, str]) -> Iterator[Path]:
    """Start the process; yield ``folder``, which then holds the stand-ins of the commands."""
    with tempfile.TemporaryDirectory() as short:  # a socket's path has at most 103 characters
        address = f"{short}/socket"
        for name in COMMANDS:
            (folder / name).write_text(STAND_IN.format(python=sys.executable, address=address))
            (folder / name).chmod(0o755)
        server = subprocess.Popen(
            [sys.executable, "-P", __file__, address],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )
        with server:  # ends the process by closing its standard input
            assert server.stdout is not None
            assert server.stdout.readline() == b"ready\n", "it ended before it was ready"
            yield folder


def serve(address: str) -> None:
    """Fork for each call until standard input is closed, by the end of the tests at the latest."""
    with socket.socket(socket.AF_UNIX) as calls:
        calls.bind(address)
        calls.listen(64)
        print("ready", flush=True)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no zombies
        while 0 not in select.select([0, calls], [], [])[0]:
            connection, _ = calls.accept()
            if os.fork() == 0:
                calls.close()
                answer(connection)
            connection.close()


def answer(connection: socket.socket) -> None:
    """Run a call in a process of its own, and send its exit status; for the command, return."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    size, descriptors, _, _ = socket.recv_fds(connection, 8, 3)
    with connection.makefile("rb") as stream:
        argv, folder, environment = json.loads(stream.read(int.from_bytes(size, "big")))
    command = os.fork()
    if command:
        _, status = os.waitpid(command, 0)
        code = os.waitstatus_to_exitcode(status)
        with suppress(BrokenPipeError):  # nobody waits for it any more
            connection.sendall(bytes([code if code >= 0 else 128 - code]))
        os._exit(0)
    connection.close()
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = argv
    first = argv[1 : argv.index(THEN)] if THEN in argv else argv[1:]
    # Adapters: diffusers was imported without peft.
    if first[:1] in (["train"], ["attribution"]) and uses_texts(first):
        os.execv(sys.executable, [sys.executable, "-m", "afterimage.cli", *first])
    if uses_texts(first):  # text packages are not hidden from it
        for name in TEXT:
            if sys.modules.get(name, name) is None:
                del sys.modules[name]
    sys.exit(pkgutil.resolve_name(COMMANDS[argv[0]])())


if __name__ == "__main__":
    from afterimage.cli import COMMANDS as VERBS
    from afterimage.cli import SINGLE, THEN, uses_texts
    from afterimage.engines.patches import TEXT, defer_imports

    defer_imports()  # as every step of a study does
    modules = {module for verbs in VERBS.values() for module, _ in verbs.values()}
    modules |= {module for module, _ in SINGLE.values()} | set(IMPORTED)
    for name in sorted(modules | {name.partition(":")[0] for name in COMMANDS.values()}):
        importlib.import_module(name)
    gc.freeze()  # else every process looks through all of it once more when it ends
    serve(sys.argv[1])
