"""A real Slurm over three hosts: its controller, where runs are driven, and two nodes."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from hosts import Host, network
from slurm_machine import COMMON, SlurmMachine, end_daemon, settings_of, start_munge, why_no_slurm

__all__ = ["SlurmHosts", "slurm_hosts"]

CONFIG = (
    COMMON
    + """\
ClusterName=hosts
SlurmctldHost=ctl({ctl})
SlurmctldPort=26817
SlurmdPort=26818
SlurmdTimeout=6
NodeName=n1 NodeAddr={n1} Gres=gpu:1
NodeName=n2 NodeAddr={n2}
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=60 State=UP
"""
)
"""A node that does not answer for six seconds is down; usual are three hundred."""


@dataclass(frozen=True)
class SlurmHosts(SlurmMachine):
    """A running Slurm whose commands are given on the controller's host."""

    controller: Host
    hosts: dict[str, Host]
    """The nodes."""

    def run(self, *command: str, check: bool = True, timeout_s: float = 60) -> str:
        """Run a Slurm command and return what it printed."""
        return self.controller.run(*command, check=check, timeout_s=timeout_s, **self._told)

    def start(self, *command: object):
        """Start a program on the controller's host."""
        return self.controller.start(*command, **self._told)

    @property
    def _told(self) -> dict[str, str]:
        return {"SLURM_CONF": self.environment["SLURM_CONF"]}

    def start_controller(self) -> None:
        """Start slurmctld."""
        command = ("slurmctld", "-D", "-f", self._told["SLURM_CONF"])
        self.controller.start(*command, log=self.folder / "log" / "ctl.out", **self._told)

    def start_node(self, node: str) -> None:
        """Start the slurmd of a node's host."""
        command = ("slurmd", "-D", "-f", self._told["SLURM_CONF"], "-N", node)
        self.hosts[node].start(*command, log=self.folder / "log" / f"{node}.out", **self._told)

    def host_of(self, job: int) -> Host:
        """Return where a job runs."""
        return self.hosts[self.run("squeue", "-h", "-j", str(job), "-o", "%N").strip()]


@contextmanager
def slurm_hosts(folder: Path):
    """Start Slurm over three hosts, and end it with them; skip the test where it cannot be had."""
    reason = why_no_slurm()
    if reason is not None:
        pytest.skip(reason)
    # Not below pytest's own folder: munged runs as its own user, who may not enter that one.
    own = Path(tempfile.mkdtemp(prefix="slurm-hosts-", dir="/tmp"))
    with network(folder, "ctl", "n1", "n2") as net:
        hosts = {host.name: host for host in net.hosts}
        config = CONFIG.format(folder=own, **{name: h.address for name, h in hosts.items()})
        machine = SlurmHosts(own, settings_of(own, config), hosts.pop("ctl"), hosts)
        try:
            # Outside the hosts: its socket is a file, which all of them see.
            start_munge(SlurmMachine(own, machine.environment))
            machine.start_controller()
            for node in machine.hosts:
                machine.start_node(node)
            machine.wait_for(lambda m: m.nodes() == ["idle", "idle"])
            yield machine
        finally:
            end_daemon(machine, "munge/munged")
            net.down()
            shutil.rmtree(own, ignore_errors=True)
