"""A SLURM of one node on this machine: munged, slurmctld and slurmd in a folder of their own.

Jobs of the partition `urgent` preempt those of `spare`, and none of `main`.
"""

import contextlib
import ctypes
import getpass
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

PR_SET_PDEATHSIG = 1
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scancel", "scontrol")
CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
KillWait=5
SlurmdParameters=config_overrides
SchedulerType=sched/builtin
SchedulerParameters=sched_interval=1,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 RealMemory=8000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES State=UP PriorityTier=1 PreemptMode=OFF
PartitionName=spare Nodes=ALL State=UP PriorityTier=1 GraceTime=30
PartitionName=urgent Nodes=ALL State=UP PriorityTier=10 PreemptMode=OFF
"""


def missing():
    """The programs that a cluster needs and this machine lacks."""
    return [name for name in PROGRAMS if not _which(name)]


def _which(name):
    return shutil.which(name, path=os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"]))


def _free_ports(number):
    with contextlib.ExitStack() as opened:
        sockets = [opened.enter_context(socket.socket()) for _ in range(number)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


class Cluster:
    """In its context the cluster runs, and `environment` is what SLURM's commands need to find it."""

    def __init__(self):
        # Not pytest's folder: paths of sockets are at most 107 characters, and munged wants folders open to all.
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-"))
        self._daemons = {}
        self.environment = {"SLURM_CONF": str(self.folder / "slurm.conf")}

    def __enter__(self):
        self.folder.chmod(0o755)
        for name in ("state", "spool"):
            (self.folder / name).mkdir()
        key = self.folder / "munge.key"
        key.touch(0o600)
        key.write_bytes(secrets.token_bytes(128))
        host = socket.gethostname().partition(".")[0]
        fields = {"folder": self.folder, "host": host, "user": getpass.getuser(), "ports": _free_ports(2)}
        (self.folder / "slurm.conf").write_text(CONF.format(**fields))
        try:
            files = [f"--{name}={self.folder}/munge.{end}" for name, end in MUNGE_FILES.items()]
            self._start("munged", "--foreground", "--force", *files)
            self.wait((self.folder / "munge.sock").exists, 10, "munged does not start")
            self._start("slurmctld", "-D", "-c", "-f", self.environment["SLURM_CONF"])
            self.start_slurmd()
            self.wait(self._is_up, 30, "the node is not up")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error):
        with contextlib.suppress(subprocess.SubprocessError, AssertionError):
            self.call("scancel", f"--user={getpass.getuser()}", check=False)  # also ends the processes of the jobs
            self.wait(lambda: not self.call("squeue", "--noheader", check=False), 20, "jobs go on")
        for name in list(self._daemons):
            self.kill(name)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _is_up(self):
        return "idle" in self.call("sinfo", "--noheader", "--format=%T", check=False)

    def start_slurmd(self):
        self._start("slurmd", "-D", "-f", self.environment["SLURM_CONF"])

    def kill(self, name):
        """SIGKILL to a daemon."""
        daemon = self._daemons.pop(name)
        daemon.kill()
        daemon.wait()

    def call(self, *command, check=True):
        """What a command of SLURM prints."""
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=os.environ | self.environment)
        assert not check or done.returncode == 0, f"{command}: {done.stderr}{self.logs()}"
        return done.stdout.strip()

    def states(self):
        """The state of each job by its id."""
        lines = self.call("squeue", "--noheader", "--array", "--states=all", "--format=%i %T").splitlines()
        return dict(line.split() for line in lines)

    def wait(self, condition, seconds, what):
        """Wait until `condition()` is true, and return it."""
        deadline = time.monotonic() + seconds
        while not (found := condition()):
            assert time.monotonic() < deadline, f"{what} {self.logs()}"
            time.sleep(0.2)
        return found

    def logs(self):
        """The last lines of its daemons."""
        return "\n".join(line for log in self.folder.glob("*.log") for line in log.read_text().splitlines()[-12:])

    def _start(self, name, *args):
        with (self.folder / f"{name}.output.log").open("ab") as output:
            self._daemons[name] = subprocess.Popen(
                [_which(name), *args],
                stdout=output,
                stderr=output,
                env=os.environ | self.environment,
                preexec_fn=lambda: ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL),
            )


MUNGE_FILES = {"socket": "sock", "key-file": "key", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
