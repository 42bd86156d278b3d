"""Two machines on one: network namespaces joined by a cable that can be pulled."""

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

CARD = "eth77"


class Machine:
    """A network of its own, for as long as the process that holds it lives; its files are this machine's."""

    def __init__(self, holder: subprocess.Popen, address: str) -> None:
        self.holder, self.address = holder, address

    def command(self, *words: str) -> list[str]:
        """The words of a command that is run there."""
        return ["nsenter", "-t", str(self.holder.pid), "-U", "-n", "--preserve-credentials", "--", *words]

    def ip(self, *words: str) -> None:
        """Set up its network."""
        self._call("ip", *words)

    def retry(self, times: int) -> None:
        """How often it sends something again before it gives a connection up: 7 are 50 seconds, 15 a quarter hour."""
        self._call("sh", "-c", f"echo {times} > /proc/sys/net/ipv4/tcp_retries2")

    def _call(self, *words: str) -> None:
        subprocess.run(self.command(*words), check=True, capture_output=True, timeout=20)

    def plug(self, state: str) -> None:
        """``up`` or ``down``: put the cable in or pull it."""
        self.ip("link", "set", CARD, state)


@contextlib.contextmanager
def two_machines() -> Iterator[tuple[Machine, Machine]]:
    """Raises ``OSError`` or ``CalledProcessError`` where it may not make them."""
    with contextlib.ExitStack() as opened:
        first = Machine(_hold(opened, ["unshare", "-r", "-n"]), "10.77.0.1")
        second = Machine(_hold(opened, first.command("unshare", "-n")), "10.77.0.2")
        first.ip("link", "add", CARD, "type", "veth", "peer", "name", CARD, "netns", str(second.holder.pid))
        for machine in (first, second):
            machine.ip("address", "add", f"{machine.address}/24", "dev", CARD)
            machine.ip("link", "set", "lo", "up")
            machine.plug("up")
        yield first, second


def _hold(opened: contextlib.ExitStack, words: list[str]) -> subprocess.Popen:
    """A process in new namespaces, once they are there."""
    holder = subprocess.Popen([*words, "sleep", "infinity"], stderr=subprocess.PIPE)
    opened.callback(lambda: (holder.kill(), holder.wait(), holder.stderr.close()))
    here, deadline = os.readlink("/proc/self/ns/net"), time.monotonic() + 10  # noqa: PTH115
    while "sleep" not in Path(f"/proc/{holder.pid}/comm").read_text() or here == _network(holder.pid):
        if holder.poll() is not None or time.monotonic() > deadline:
            raise OSError(holder.stderr.read().decode() if holder.poll() is not None else "no namespace")
        time.sleep(0.01)
    return holder


def _network(pid: int) -> str:
    return os.readlink(f"/proc/{pid}/ns/net")  # noqa: PTH115
