"""A throw-away SLURM cluster on this machine: real daemons, several virtual nodes, fake GPUs; no
accounting, no authentication.

    python tests/slurm/cluster.py install        what is missing, from Debian's packages (root)
    python tests/slurm/cluster.py start FOLDER   everything but /etc/slurm/*.conf lies in FOLDER
    python tests/slurm/cluster.py stop FOLDER    ends its jobs and daemons, removes the links and FOLDER

The configuration must be found at /etc/slurm, not by SLURM_CONF: Snakemake's plugin takes every
SLURM_* variable away before its inner `srun`. So links are laid there, and nothing is started where
a configuration of somebody else is.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

MARK = "# A throw-away cluster of Afterimage's tests."
ETC = Path("/etc/slurm")
FILES = ("slurm.conf", "gres.conf", "cgroup.conf")
TOOLS = ("slurmctld", "slurmd", "sbatch", "srun", "squeue", "scancel", "scontrol", "sinfo", "rsync")
PACKAGES = ("slurmctld", "slurmd", "slurm-client", "rsync")

CONF = """\
{mark}
ClusterName=throwaway
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/none
CredType=cred/none
SlurmctldPort={port}
ReturnToService=2
MpiDefault=none
SwitchType=switch/none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool/%n
SlurmctldPidFile={root}/run/slurmctld.pid
SlurmdPidFile={root}/run/slurmd.%n.pid
SlurmctldLogFile={root}/log/slurmctld.log
SlurmdLogFile={root}/log/slurmd.%n.log
SlurmdParameters=config_overrides
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
GresTypes=gpu
SlurmctldTimeout=30
SlurmdTimeout={timeout}
InactiveLimit=0
KillWait={killwait}
MinJobAge=300
Waittime=0
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=1-00:00:00 DefaultTime=00:30:00 OverTimeLimit=0 PriorityTier=1 State=UP
PartitionName=urgent Nodes=ALL MaxTime=1-00:00:00 PriorityTier=10 PreemptMode=OFF State=UP
PartitionName=gone Nodes=ALL MaxTime=1-00:00:00 PriorityTier=1 PreemptMode=CANCEL State=UP
"""
NODE = (
    "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={cpus} "
    "SocketsPerBoard=1 CoresPerSocket={cpus} "
    "ThreadsPerCore=1 RealMemory={memory} Gres=gpu:{gpus} State=UNKNOWN"
)


class NoClusterError(RuntimeError):
    """Why there can be no cluster here."""


@dataclass
class Cluster:
    """The cluster in one folder.

    Attributes:
        root: The folder.
        nodes: Virtual nodes n1, n2, ...
        cpus: Of each, whatever this machine has.
        memory: Of each, MB; SLURM does not enforce it here.
        gpus: Of each; character devices that say nothing.
        timeout: Seconds until a silent node is taken for dead.
        killwait: Seconds between SIGTERM and SIGKILL at a time limit or `scancel`.
    """

    root: Path
    nodes: int = 3
    cpus: int = 16
    memory: int = 64000
    gpus: int = 2
    timeout: int = 15
    killwait: int = 20

    @property
    def names(self) -> list[str]:
        return [f"n{i}" for i in range(1, self.nodes + 1)]

    # ---- start and stop --------------------------------------------------------------------------

    def start(self) -> None:
        """Write the configuration and start the daemons.

        Raises:
            NoClusterError: if that cannot be done here; nothing is left behind then.
        """
        refuse_unless_possible()
        try:
            self._write()
            self._link()
            self.start_controller()
            for name in self.names:
                self.start_node(name)
            self.wait_for(lambda: self.idle() == self.nodes, "all nodes")
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End all jobs and daemons; remove the links and the folder."""
        if self.pid("slurmctld"):
            with suppress(subprocess.SubprocessError):
                subprocess.run(["scancel", "--user", "root"], capture_output=True, timeout=20)
        for name in self.names:
            self.kill_node(name)
        self.stop_controller()
        for name in FILES:
            if _ours(ETC / name):
                (ETC / name).unlink()
        with suppress(OSError):
            ETC.rmdir()  # only if it is empty
        shutil.rmtree(self.root, ignore_errors=True)

    def _write(self) -> None:
        for name in (
            "etc",
            "log",
            "run",
            "state",
            "dev",
            *(f"spool/{node}" for node in self.names),
        ):
            (self.root / name).mkdir(parents=True, exist_ok=True)
        for i in range(self.gpus):
            with suppress(FileExistsError):
                os.mknod(
                    self.root / "dev" / f"nvidia{i}", stat.S_IFCHR | 0o666, os.makedev(1, 3)
                )  # the numbers of /dev/null
        host = socket.gethostname().split(".")[0]
        ports = free_ports(1 + self.nodes)
        nodes = "\n".join(
            NODE.format(
                name=name, host=host, port=port, cpus=self.cpus, memory=self.memory, gpus=self.gpus
            )
            for name, port in zip(self.names, ports[1:], strict=True)
        )
        texts = {
            "slurm.conf": CONF.format(
                mark=MARK,
                host=host,
                port=ports[0],
                root=self.root,
                nodes=nodes,
                timeout=self.timeout,
                killwait=self.killwait,
            ),
            "gres.conf": f"{MARK}\nName=gpu File={self.root}/dev/nvidia[0-{self.gpus - 1}]\n",
            "cgroup.conf": f"{MARK}\n",
        }
        for name, text in texts.items():
            (self.root / "etc" / name).write_text(text)

    def _link(self) -> None:
        ETC.mkdir(exist_ok=True)
        for name in FILES:
            if _ours(ETC / name):
                (ETC / name).unlink()  # left by a test that was killed
            (ETC / name).symlink_to(self.root / "etc" / name)

    # ---- faults ----------------------------------------------------------------------------------

    def start_controller(self) -> None:
        _run("slurmctld")
        self.wait_for(lambda: _answers("scontrol", "ping"), "the controller")

    def stop_controller(self) -> None:
        self._kill("slurmctld", signal.SIGTERM)

    def start_node(self, name: str) -> None:
        _run("slurmd", "-N", name)

    def kill_node(self, name: str) -> None:
        """Let a node die as at a power cut: its daemon and all that runs on it."""
        self._kill(f"slurmd.{name}", signal.SIGKILL)
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get("SLURMD_NODENAME") == name:
                    parent = process.parent()
                    if parent is not None and parent.name().startswith("slurmstepd"):
                        parent.kill()
                    process.kill()

    def _kill(self, daemon: str, number: signal.Signals) -> None:
        if (pid := self.pid(daemon)) is None:
            return
        process = psutil.Process(pid)
        process.send_signal(number)
        try:
            process.wait(30)
        except psutil.TimeoutExpired:
            process.kill()
        (self.root / "run" / f"{daemon}.pid").unlink(missing_ok=True)

    def pid(self, daemon: str) -> int | None:
        """Return the process of a daemon, None if it does not run."""
        try:
            pid = int((self.root / "run" / f"{daemon}.pid").read_text())
            return pid if psutil.Process(pid).name() == daemon.split(".")[0] else None
        except (OSError, ValueError, psutil.Error):
            return None

    # ---- questions -------------------------------------------------------------------------------

    def idle(self) -> int:
        """Return the number of nodes that can take jobs."""
        return (
            len(
                _run(
                    "sinfo", "--noheader", "--Node", "--partition", "main", "--states", "idle"
                ).split("\n")
            )
            - 1
        )

    def jobs(self, *states: str) -> dict[str, tuple[str, str, str]]:
        """Return number -> (comment, state, node) of the jobs in some states (default: all that
        wait or run)."""
        listed = _run(
            "squeue",
            "--noheader",
            "--format",
            "%i|%k|%T|%N",
            *(["--states", ",".join(states)] if states else []),
        )
        rows = [line.strip().split("|") for line in listed.splitlines()]
        return {number: (comment, state, node) for number, comment, state, node in rows}

    def job_of(self, text: str, *states: str) -> str | None:
        """Return the number of a job whose comment has ``text`` in it, None if there is none."""
        return next(
            (number for number, (comment, *_) in self.jobs(*states).items() if text in comment),
            None,
        )

    @staticmethod
    def wait_for(condition, what: str, seconds: float = 60.0):
        """Return what ``condition`` gives as soon as it gives something."""
        deadline = time.monotonic() + seconds
        while not (found := condition()):
            if time.monotonic() > deadline:
                raise AssertionError(f"waited {seconds:.0f} s in vain for {what}")
            time.sleep(0.2)
        return found


def refuse_unless_possible() -> None:
    """Raise NoClusterError, with the reason, where no cluster can or may be started."""
    if os.geteuid() != 0:
        raise NoClusterError("only root can start SLURM's daemons with several virtual nodes")
    if "SLURM_CONF" in os.environ:
        raise NoClusterError(
            f"SLURM_CONF = {os.environ['SLURM_CONF']}: this machine belongs to a cluster"
        )
    for path in (
        Path("/run/slurm/conf/slurm.conf"),
        Path("/etc/slurm-llnl/slurm.conf"),
        *(ETC / name for name in FILES),
    ):
        if os.path.lexists(path) and not _ours(path):
            raise NoClusterError(f"{path} is there: this machine belongs to a cluster")
    if any(process.name() == "slurmctld" for process in psutil.process_iter()):
        raise NoClusterError("a slurmctld is at work on this machine")
    if missing := [tool for tool in TOOLS if shutil.which(tool) is None]:
        raise NoClusterError(
            f"{', '.join(missing)} not installed; `python tests/slurm/cluster.py install` takes "
            "them from Debian's packages"
        )


def install() -> None:
    """Install what is missing.

    Raises:
        NoClusterError: if that is not possible.
    """
    if all(shutil.which(tool) for tool in TOOLS):
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise NoClusterError(
            "SLURM is not installed, and only root on a Debian-like system can install it here"
        )
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update"], ["install", "--yes", "--no-install-recommends", *PACKAGES]):
        done = subprocess.run(
            ["apt-get", "-qq", *command], env=environment, capture_output=True, text=True
        )
        if done.returncode and command != ["update"]:
            raise NoClusterError(
                f"apt-get {' '.join(command)} failed: {done.stderr.strip()[-500:]}"
            )


def free_ports(count: int) -> list[int]:
    """Return free ports."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def _ours(path: Path) -> bool:
    """Return whether ``path`` is a link that a cluster of this script laid, alive or not."""
    if not path.is_symlink():
        return False
    target = path.readlink()
    return not target.exists() or target.read_text().startswith(MARK)


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if done.returncode:
        raise AssertionError(f"{' '.join(command)} failed: {done.stderr.strip()}")
    return done.stdout


def _answers(*command: str) -> bool:
    return subprocess.run(command, capture_output=True, timeout=60).returncode == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("install", "start", "stop"))
    parser.add_argument("folder", nargs="?", type=Path)
    args = parser.parse_args()
    if args.what != "install" and args.folder is None:
        parser.error(f"{args.what} needs a FOLDER")
    try:
        if args.what == "install":
            install()
        elif args.what == "start":
            Cluster(args.folder.resolve()).start()
            print(_run("sinfo", "--Node", "--format", "%N %P %t %c %m %G"), end="")
        else:
            Cluster(args.folder.resolve()).stop()
    except NoClusterError as reason:
        sys.exit(f"no cluster: {reason}")


if __name__ == "__main__":
    main()
