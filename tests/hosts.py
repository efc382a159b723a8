"""Several hosts on this machine: namespaces of their own, joined by a switch that can cut them off.

A host is a process in network, name, process and mount namespaces of its own; all that runs on it
runs inside these. The switch is a bridge in one more. No namespace has a name and none reaches the
outside, so any number of these may be at work side by side, and nothing can be left behind: a host
ends with its first process, which ends when the pipe from this process closes, however that comes.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from programs import PATIENCE_S

__all__ = ["Host", "Network", "network", "wait_for", "why_no_hosts"]

PROGRAMS = ("ip", "nsenter", "unshare", "mount", "hostname")
SYSTEM_PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
OWN = ("--net", "--uts", "--pid", "--mount")
# Orphans are taken in by the first process, which must not leave them zombies when they end.
FIRST = 'hostname "$1"; mount --bind "$2" /etc/hosts; mount -t tmpfs none /dev/shm; '
FIRST += "ip link set lo up; echo up; exec env --ignore-signal=CHLD cat"
SWITCH = "ip link set lo up; ip link add br0 type bridge; ip link set br0 up; echo up; exec cat"


def why_no_hosts() -> str | None:
    """Return why there can be no hosts here, None where there can."""
    missing = [name for name in PROGRAMS if shutil.which(name, path=SYSTEM_PATH) is None]
    if missing:
        return f"no {', '.join(missing)}; apt-get install -y iproute2 util-linux hostname"
    if os.geteuid() != 0:
        return "namespaces must be made as root"
    tried = _call(
        *("unshare", *OWN, "--fork", "--kill-child", "--mount-proc", "sh", "-c"),
        "ip link add end0 type veth peer name end1 && ip link add br0 type bridge && hostname me",
    )
    if tried.returncode != 0:
        return f"namespaces are not to be had: {tried.stderr.strip()}"
    return None


def _call(
    *command: object, timeout_s: float = 60, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        [*map(str, command)],
        env=os.environ | {"PATH": SYSTEM_PATH} | environment,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def _must(*command: object) -> str:
    """Run a command that must work; return what it printed."""
    done = _call(*command)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, command))}: {done.stderr or done.stdout}")
    return done.stdout


def _first_process(*command: str) -> subprocess.Popen[str]:
    """Start what holds namespaces, and wait until it says that they are set up."""
    process = subprocess.Popen(
        ["unshare", *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PATH": SYSTEM_PATH},
        text=True,
        start_new_session=True,  # a Ctrl-C is for the tests
    )
    assert process.stdout is not None
    assert process.stderr is not None
    if process.stdout.readline() != "up\n":
        raise RuntimeError(f"no namespaces: {process.communicate(timeout=60)[1]}")
    return process


def _is_within(entering: subprocess.Popen[str]) -> bool:
    """Whether the program that ``nsenter`` starts has taken its place, or is over."""
    if entering.poll() is not None:
        return True
    with suppress(psutil.Error):
        waiting = psutil.Process(entering.pid)
        # Between the fork and the program itself, the child has nsenter's command, then none.
        not_yet = ([], waiting.cmdline())
        return any(child.cmdline() not in not_yet for child in waiting.children())
    return False


class Host:
    """A host: its programs, its link, its sudden end.

    Parameters
    ----------
    network
        What it is joined to.
    number
        Its place there, from 1; the last part of its address.
    name
        What ``hostname`` says on it.
    """

    def __init__(self, network: Network, number: int, name: str) -> None:
        self.network, self.name, self.port = network, name, f"port{number}"
        self.address = network.address(number)
        self._first: subprocess.Popen[str] | None = None
        self._started: list[subprocess.Popen[str]] = []

    def boot(self) -> None:
        """Start a host that is not there, with a link that is up."""
        own = ("--fork", "--kill-child", "--mount-proc", "sh", "-c", FIRST, "sh")
        self._first = _first_process(*OWN, *own, self.name, str(self.network.hosts_file))
        switch = self.network.switch("ip", "link")
        ends = ("type", "veth", "peer", "name", "eth0", "netns", self.pid)
        _must(*switch, "add", self.port, *ends)
        _must(*switch, "set", self.port, "master", "br0", "up")
        _must(*self.command("ip", "addr", "add", f"{self.address}/24", "dev", "eth0"))
        _must(*self.command("ip", "link", "set", "eth0", "up"))

    @property
    def pid(self) -> int:
        """The first process of the host, as it is seen from outside."""
        assert self._first is not None, f"{self.name} is down"
        (first,) = psutil.Process(self._first.pid).children()
        return first.pid

    def command(self, *command: object) -> list[str]:
        """Return the command that runs another on this host."""
        return ["nsenter", f"--target={self.pid}", *OWN, "--", *map(str, command)]

    def run(
        self, *command: object, check: bool = True, timeout_s: float = 60, **environment: str
    ) -> str:
        """Run a command on this host to its end, and return what it printed."""
        done = _call(*self.command(*command), timeout_s=timeout_s, **environment)
        if check and done.returncode != 0:
            raise RuntimeError(f"{self.name}: {' '.join(map(str, command))}: {done.stderr}")
        return done.stdout

    def start(self, *command: object, log: Path | None = None, **environment: str):
        """Start a program on this host; its messages are collected, or go to a log.

        It ends with the host, or by its own process number within it: what is returned is the
        process that waits for it outside. The program is there, or over, when this returns.
        """
        output = subprocess.PIPE if log is None else log.open("w")
        try:
            process = subprocess.Popen(
                self.command(*command),
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                text=True,
                cwd="/",
                env=os.environ | {"PATH": SYSTEM_PATH} | environment,
            )
        finally:
            if log is not None:
                output.close()
        self._started.append(process)
        wait_for(lambda: _is_within(process), f"the start of {command[0]} on {self.name}")
        return process

    def processes(self, containing: str = "") -> list[psutil.Process]:
        """Return the living processes of this host whose command has some words."""
        if self._first is None:
            return []
        own = os.readlink(f"/proc/{self.pid}/ns/pid")
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                is_own = os.readlink(f"/proc/{process.pid}/ns/pid") == own
                is_alive = process.status() != psutil.STATUS_ZOMBIE
                if is_own and is_alive and containing in " ".join(process.cmdline()):
                    found.append(process)
        return found

    def cut(self) -> None:
        """Take its link down; its processes live on."""
        _must(*self.network.switch("ip", "link", "set", self.port, "down"))

    def join(self) -> None:
        """Bring its link up again."""
        _must(*self.network.switch("ip", "link", "set", self.port, "up"))

    def crash(self) -> None:
        """End all its processes at once, by SIGKILL; the host is gone when this returns."""
        if self._first is None:
            return
        # The system kills what lives in a process namespace before its first process is gone.
        with suppress(psutil.Error, ValueError):
            os.kill(self.pid, signal.SIGKILL)
        self._first.kill()
        self._first.communicate(timeout=PATIENCE_S)
        self._first = None
        for process in self._started:
            process.kill()  # what waited outside for a program that was stopped is stopped itself
            process.wait(PATIENCE_S)
            if process.stdout is not None:
                process.stdout.close()
        self._started.clear()
        # The system removes the link a little later, which is too late for a host booted at once.
        _call(*self.network.switch("ip", "link", "delete", self.port))


class Network:
    """Hosts that see one another and nobody else."""

    def __init__(self, folder: Path, names: tuple[str, ...]) -> None:
        self.folder = folder
        self.hosts_file = folder / "hosts"
        self._switch: subprocess.Popen[str] | None = None
        self.hosts = [Host(self, number, name) for number, name in enumerate(names, 1)]
        lines = ["127.0.0.1 localhost", *(f"{host.address} {host.name}" for host in self.hosts)]
        self.hosts_file.write_text("\n".join(lines) + "\n")

    @staticmethod
    def address(number: int) -> str:
        """Return the address of a host: another in each process, though none sees the others."""
        return f"10.{77 + os.getpid() // 256 % 64}.{os.getpid() % 256}.{number}"

    def switch(self, *command: object) -> list[str]:
        """Return the command that runs another at the switch."""
        assert self._switch is not None
        return ["nsenter", f"--target={self._switch.pid}", "--net", "--", *map(str, command)]

    def up(self) -> None:
        """Start the switch and the hosts."""
        self._switch = _first_process("--net", "sh", "-c", SWITCH)
        for host in self.hosts:
            host.boot()

    def down(self) -> None:
        """End all of it."""
        for host in self.hosts:
            host.crash()
        if self._switch is not None:
            self._switch.kill()
            self._switch.communicate(timeout=PATIENCE_S)
            self._switch = None


@contextmanager
def network(folder: Path, *names: str):
    """Start hosts, and end them with all that runs on them; skip the test where there can be none.

    Parameters
    ----------
    folder
        For their files; it is there on all of them, as every folder is.
    names
        What the hosts are called.
    """
    reason = why_no_hosts()
    if reason is not None:
        pytest.skip(reason)
    made = Network(folder, names)
    try:
        made.up()
        yield made
    finally:
        made.down()


def wait_for(wanted, what: str, timeout_s: float = PATIENCE_S) -> None:
    """Wait until a function returns something true."""
    until = time.monotonic() + timeout_s
    while not wanted():
        assert time.monotonic() < until, f"waited in vain for {what}"
        time.sleep(0.1)
