"""Two hosts on one machine: namespaces with a network and a host name, which a virtual cable connects."""

import contextlib
import os
import shutil
import subprocess
import sys

from program import fail, wait_for

ADDRESSES = {"hosta": "10.77.0.1", "hostb": "10.77.0.2"}


def enter_user_namespace():
    """Starts this program again as root of a user namespace, unless it is root already. Returns false if the
    machine has no network namespaces."""
    if subprocess.run(["unshare", "-n", "true"], stderr=subprocess.DEVNULL, check=False).returncode == 0:
        return True
    command = ["unshare", "--user", "--map-root-user", "--net", "--uts", "--mount"]
    if subprocess.run([*command, "true"], stderr=subprocess.DEVNULL, check=False).returncode == 0:
        os.execvp(command[0], [*command, sys.executable, *sys.argv])
    return False


class Host:
    """A namespace, in which programs run."""

    def __init__(self, name, names):
        self.name = name
        self.address = ADDRESSES[name]
        script = f"mount --bind {names} /etc/hosts && hostname {name} && exec sleep infinity"
        self.holder = subprocess.Popen(["unshare", "--net", "--uts", "--mount", "sh", "-c", script])
        self.inside = ["nsenter", "-t", str(self.holder.pid), "--net", "--uts", "--mount", "--"]

    def run(self, *command):
        subprocess.run([*self.inside, *command], check=True)

    def start(self, command, log, cwd=None, **variables):
        """Starts a program with its output in a file. nsenter itself changes to the root folder."""
        with open(log, "w") as out:
            return subprocess.Popen(
                [*self.inside, "env", "-C", str(cwd or "/"), *(str(word) for word in command)],
                stdout=out,
                stderr=subprocess.STDOUT,
                env=os.environ | {key: str(value) for key, value in variables.items()},
            )


@contextlib.contextmanager
def two_hosts(folder):
    """Yields two connected hosts, which know each other's names. Writes a file to the folder."""
    if not shutil.which("ip"):
        fail("the test of two hosts needs the program ip, of the package iproute2")
    hosts = []
    names = folder / "hosts"
    lines = ["127.0.0.1 localhost", *(f"{address} {name}" for name, address in ADDRESSES.items())]
    names.write_text("\n".join(lines) + "\n")
    try:
        hosts = [Host(name, names) for name in ADDRESSES]
        for host in hosts:
            # The holder is ready when it sleeps.
            command = f"/proc/{host.holder.pid}/comm"
            wait_for(host.name, lambda command=command: open(command).read() == "sleep\n", 20)
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
