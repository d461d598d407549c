"""Hosts on this machine: network namespaces with addresses of their own, on one bridge.

    with NetworkHosts(2) as hosts:
        subprocess.Popen([*hosts.within(0), "anabranch", "run", ...])
        hosts.cut_off(1)

The namespaces and the bridge are removed in any case.
"""

from __future__ import annotations

import subprocess
from contextlib import suppress
from types import TracebackType

NETWORK = "10.213.77"  # of a range for private use
PREFIX = "anabr"


class NetworkHosts:
    """``count`` hosts; a context manager. Host n is at ``address(n)``.

    ``patience`` is the number of TCP retransmissions before a connection fails; 3 take about a
    second, the kernel's default of 15 a quarter of an hour.
    """

    def __init__(self, count: int, patience: int | None = None) -> None:
        self._count = count
        self._patience = patience

    def __enter__(self) -> NetworkHosts:
        self._remove()  # what a run that was killed has left
        try:
            _ip("link", "add", f"{PREFIX}-bridge", "type", "bridge")
            _ip("link", "set", f"{PREFIX}-bridge", "up")
            for number in range(self._count):
                self._add(number)
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._remove()

    def address(self, number: int) -> str:
        """The address of a host."""
        return f"{NETWORK}.{number + 1}"

    def within(self, number: int) -> list[str]:
        """The prefix of a command that runs on a host."""
        return ["ip", "netns", "exec", _name(number)]

    def cut_off(self, number: int) -> None:
        """Drop all packets from and to the host, without any error."""
        _ip("link", "set", _link(number), "down")

    def reconnect(self, number: int) -> None:
        """Undo `cut_off`."""
        _ip("link", "set", _link(number), "up")

    def reset_connections(self, number: int) -> int:
        """Reset all connections of a host, as a firewall restart does; returns how many."""
        found = self._sockets(number)
        subprocess.run(
            [*self.within(number), "ss", "-K", "-t", "state", "established"],
            check=True, capture_output=True,
        )  # fmt: skip
        return found

    def connections(self, number: int) -> int:
        """The number of connections of a host."""
        return self._sockets(number)

    def _sockets(self, number: int) -> int:
        command = [*self.within(number), "ss", "-H", "-t", "state", "established"]
        return len(subprocess.run(command, check=True, capture_output=True).stdout.splitlines())

    def _add(self, number: int) -> None:
        name, link, inside = _name(number), _link(number), "eth0"
        _ip("netns", "add", name)
        _ip("link", "add", link, "type", "veth", "peer", "name", inside, "netns", name)
        _ip("link", "set", link, "master", f"{PREFIX}-bridge", "up")
        _ip("-n", name, "addr", "add", f"{self.address(number)}/24", "dev", inside)
        _ip("-n", name, "link", "set", inside, "up")
        _ip("-n", name, "link", "set", "lo", "up")
        if self._patience is not None:
            setting = f"net.ipv4.tcp_retries2={self._patience}"
            command = [*self.within(number), "sysctl", "-q", "-w", setting]
            subprocess.run(command, check=True, capture_output=True)

    def _remove(self) -> None:
        for number in range(self._count):
            for what in (("link", "del", _link(number)), ("netns", "del", _name(number))):
                with suppress(subprocess.CalledProcessError, OSError):
                    _ip(*what)
        with suppress(subprocess.CalledProcessError, OSError):
            _ip("link", "del", f"{PREFIX}-bridge")


def why_not() -> str | None:
    """Why network namespaces can't be created here; None if they can."""
    try:
        with NetworkHosts(1):
            return None
    except OSError as error:
        return f"no network namespaces: {error}"
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip()
        return f"no network namespaces: `{' '.join(error.cmd)}` says {said!r}"


def _name(number: int) -> str:
    return f"{PREFIX}-host-{number}"


def _link(number: int) -> str:
    return f"{PREFIX}-link-{number}"


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
