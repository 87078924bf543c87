"""Two hosts on one machine: network and host name namespaces that a virtual cable connects."""

import contextlib
import os
import shutil
import subprocess
import sys
import time

from program import fail

ADDRESSES = {"hosta": "10.77.0.1", "hostb": "10.77.0.2"}


def enter_user_namespace():
    """Starts this program again as root of a user namespace, unless it is root already. Returns false if the
    machine has no network namespaces."""
    if subprocess.run(["unshare", "-n", "true"], stderr=subprocess.DEVNULL, check=False).returncode == 0:
        return True
    command = ["unshare", "--user", "--map-root-user", "--net", "--uts"]
    if subprocess.run([*command, "true"], stderr=subprocess.DEVNULL, check=False).returncode == 0:
        os.execvp(command[0], [*command, sys.executable, *sys.argv])
    return False


class Host:
    """A namespace, in which programs run."""

    def __init__(self, name):
        self.name = name
        self.address = ADDRESSES[name]
        script = f"hostname {name}; exec sleep infinity"
        self.holder = subprocess.Popen(["unshare", "--net", "--uts", "sh", "-c", script])
        self.inside = ["nsenter", "-t", str(self.holder.pid), "--net", "--uts", "--"]

    def run(self, *command):
        subprocess.run([*self.inside, *command], check=True)

    def start(self, command, log, **variables):
        """Starts a program with its output in a file."""
        with open(log, "w") as out:
            return subprocess.Popen(
                [*self.inside, *(str(word) for word in command)],
                stdout=out,
                stderr=subprocess.STDOUT,
                env=os.environ | {key: str(value) for key, value in variables.items()},
            )


@contextlib.contextmanager
def two_hosts():
    """Yields two connected hosts."""
    if not shutil.which("ip"):
        fail("the test of two hosts needs the program ip, of the package iproute2")
    hosts = []
    try:
        hosts = [Host(name) for name in ADDRESSES]
        # Until unshare has run, the holders are in the namespace of this program.
        own = os.readlink("/proc/self/ns/net")
        for host in hosts:
            while os.readlink(f"/proc/{host.holder.pid}/ns/net") == own:
                time.sleep(0.01)
        a, b = (str(host.holder.pid) for host in hosts)
        cable = [
            "ip",
            "link",
            "add",
            "cable",
            "netns",
            a,
            "type",
            "veth",
            "peer",
            "name",
            "cable",
            "netns",
            b,
        ]
        subprocess.run(cable, check=True)
        for host in hosts:
            host.run("ip", "address", "add", f"{host.address}/24", "dev", "cable")
            host.run("ip", "link", "set", "cable", "up")
            host.run("ip", "link", "set", "lo", "up")
        yield hosts
    finally:
        for host in hosts:
            host.holder.kill()
            host.holder.wait()
