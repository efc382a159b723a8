"""A real Slurm on this machine: one slurmctld and two slurmd on loopback, all state in one folder.

`why_no_slurm` says why it cannot be had here; `slurm_machine` starts it and stops it by its own pid
files. Nothing of it is a service of the machine, so several may run side by side.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

__all__ = [
    "SlurmMachine",
    "end_daemon",
    "settings_of",
    "slurm_machine",
    "start_munge",
    "why_no_slurm",
]

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "sinfo")
NODES = ("n1", "n2")
DAEMON_PATH = "/usr/sbin:/sbin"

COMMON = """\
SlurmUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge/munge.sock
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
KillWait=2
MinJobAge=300
ReturnToService=2
GresTypes=gpu
NodeName=DEFAULT CPUs=4 RealMemory=6000
"""
"""Of every Slurm of the tests; nodes claim four cores each."""

CONFIG = (
    COMMON
    + """\
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdTimeout=10
NodeName=n1 NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[1]} Gres=gpu:1
NodeName=n2 NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[2]}
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=60 State=UP
PartitionName=gpu Nodes=n1 MaxTime=60 State=UP
"""
)
"""Two nodes; a fake GPU (a device file) on the first."""


def why_no_slurm() -> str | None:
    """Return why Slurm cannot be started here, None where it can."""
    path = f"{os.environ['PATH']}:{DAEMON_PATH}"
    missing = [name for name in PROGRAMS if shutil.which(name, path=path) is None]
    if missing:
        return f"no {', '.join(missing)}; apt-get install -y slurmctld slurmd slurm-client munge"
    if os.geteuid() != 0:
        return "slurmd must be started as root"
    return None


@dataclass(frozen=True)
class SlurmMachine:
    """A running Slurm."""

    folder: Path
    environment: dict[str, str]
    """What a program needs to reach it: SLURM_CONF, and PATH with the daemons."""

    def run(self, *command: str, check: bool = True, timeout_s: float = 60) -> str:
        """Run a Slurm command and return what it printed."""
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=timeout_s
        )
        if check and done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr or done.stdout}")
        return done.stdout

    def jobs(self, state: str | None = None) -> list[int]:
        """Return the numbers of the jobs in the queue, oldest first; of one state, if given."""
        lines = self.run("squeue", "-h", "-o", "%i %T").split("\n")
        found = [line.split() for line in lines if line.strip()]
        return sorted(int(number) for number, now in found if state in (None, now))

    def nodes(self) -> list[str]:
        """Return the states of the nodes."""
        return self.run("sinfo", "-h", "-N", "-p", "main", "-o", "%T", check=False).split()

    def wait_for(self, wanted, timeout_s: float = 60) -> None:
        """Wait until a function of this machine returns something true."""
        until = time.monotonic() + timeout_s
        while not wanted(self):
            if time.monotonic() > until:
                raise AssertionError(f"waited {timeout_s} s in vain; the queue:\n{self.report()}")
            time.sleep(0.2)

    def report(self) -> str:
        """Return the nodes and the queue, for a failing test."""
        return self.run("sinfo", "-N", "-l", check=False) + self.run("squeue", check=False)

    def pid(self, daemon: str) -> int:
        """Return the process of ``slurmctld``, ``slurmd.n1``, ``slurmd.n2`` or ``munge/munged``."""
        return int((self.folder / f"{daemon}.pid").read_text())

    def start_node(self, node: str) -> None:
        """Start the slurmd of a node."""
        self.run("slurmd", "-f", str(self.folder / "slurm.conf"), "-N", node)


@contextmanager
def slurm_machine():
    """Start Slurm, put its SLURM_CONF into this process's environment, and stop it at the end.

    Skips the test, with the reason, where Slurm cannot be started.
    """
    reason = why_no_slurm()
    if reason is not None:
        pytest.skip(reason)
    # Not below pytest's own folder: munged runs as its own user, who may not enter that one.
    folder = Path(tempfile.mkdtemp(prefix="slurm-test-", dir="/tmp"))
    config = CONFIG.format(folder=folder, ports=_free_ports(3))
    machine = SlurmMachine(folder, settings_of(folder, config))
    outside = os.environ.get("SLURM_CONF")
    try:
        _start(machine)
        os.environ["SLURM_CONF"] = machine.environment["SLURM_CONF"]
        yield machine
    finally:
        if outside is None:
            os.environ.pop("SLURM_CONF", None)
        else:
            os.environ["SLURM_CONF"] = outside
        _stop(machine)
        shutil.rmtree(folder, ignore_errors=True)


def settings_of(folder: Path, config: str) -> dict[str, str]:
    """Write the settings of a Slurm; return the environment of its programs."""
    folder.chmod(0o755)
    for name in ("state", "log", "munge", *(f"spool.{node}" for node in NODES)):
        (folder / name).mkdir()
    (folder / "slurm.conf").write_text(config)
    (folder / "gres.conf").write_text("NodeName=n1 Name=gpu File=/dev/null\n")
    key = folder / "munge" / "key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    for path in (key.parent, key):
        shutil.chown(path, "munge", "munge")
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("SLURM")},
        "PATH": f"{os.environ['PATH']}:{DAEMON_PATH}",
        "SLURM_CONF": str(folder / "slurm.conf"),
    }


def _free_ports(n: int) -> list[int]:
    """Return ports that nobody listens on."""
    sockets = [socket.socket() for _ in range(n)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def start_munge(machine: SlurmMachine) -> None:
    """Start what tells Slurm's programs who asks them."""
    munge = machine.folder / "munge"
    files = {"key-file": "key", "socket": "munge.sock", "pid-file": "munged.pid"}
    files |= {"log-file": "munged.log", "seed-file": "munged.seed"}
    machine.run(
        "runuser", "-u", "munge", "--", "/usr/sbin/munged",
        *(f"--{option}={munge / name}" for option, name in files.items()),
    )  # fmt: skip


def _start(machine: SlurmMachine) -> None:
    """Start the daemons and wait until both nodes are idle."""
    start_munge(machine)
    machine.run("slurmctld", "-f", str(machine.folder / "slurm.conf"))
    for node in NODES:
        machine.start_node(node)
    machine.wait_for(lambda m: m.nodes() == ["idle", "idle"])


def _stop(machine: SlurmMachine) -> None:
    """Cancel what is left and stop the daemons of this machine, by their pid files."""
    with suppress(subprocess.TimeoutExpired, AssertionError, RuntimeError):
        machine.run("scancel", "-u", "root", check=False, timeout_s=20)
        machine.wait_for(lambda m: not m.jobs(), timeout_s=15)
    for daemon in (*(f"slurmd.{node}" for node in NODES), "slurmctld", "munge/munged"):
        end_daemon(machine, daemon)


def end_daemon(machine: SlurmMachine, daemon: str) -> None:
    """Stop one daemon and wait until it is gone."""
    with suppress(OSError, ValueError):
        number = machine.pid(daemon)
        os.kill(number, signal.SIGTERM)
        for _ in range(50):
            os.kill(number, 0)  # raises once it is gone
            time.sleep(0.1)
        os.kill(number, signal.SIGKILL)
