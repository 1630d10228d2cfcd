"""Listening sockets of the HTTP server: TCP, Unix, inherited by number, or passed by systemd.

An error names the setting that caused it. The sockets listen before the application is created, so that a
port in use is reported at once. Connections wait in the backlog meanwhile.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path

from serving.settings.parsing import with_brackets
from serving.settings.settings import Settings

BACKLOG = 2048
_FIRST_PASSED_DESCRIPTOR = 3
"""The first descriptor that systemd passes; see sd_listen_fds(3)."""
_ADMIN_NAME, _GRPC_NAME = "admin", "grpc"
_CONNECT_SECONDS = 1.0


class StartupError(Exception):
    """The service cannot start with a setting, which the message names."""


@dataclass(slots=True)
class Sockets:
    """The listening sockets, for clients and for operators."""

    main: list[socket.socket] = field(default_factory=list)
    admin: socket.socket | None = None
    file: tuple[Path, int] | None = None
    """The path of a Unix socket that this process has created, and its inode."""

    def all(self) -> list[socket.socket]:
        """Return all sockets."""
        return [*self.main, *([self.admin] if self.admin else [])]

    def admin_port(self) -> int | None:
        """Return the port of the socket for operators; None if they share the main sockets."""
        return int(self.admin.getsockname()[1]) if self.admin else None

    def is_loopback(self) -> bool:
        """Return whether every main socket has a loopback address."""
        return all(_is_tcp(each) and ip_address(each.getsockname()[0]).is_loopback for each in self.main)

    def is_local(self) -> bool:
        """Return whether only processes on this machine can connect to the main sockets."""
        return all(not _is_tcp(each) or ip_address(each.getsockname()[0]).is_loopback for each in self.main)

    def remove_file(self) -> None:
        """Remove the Unix socket from the file system, unless another process has replaced it."""
        if self.file:
            path, inode = self.file
            with suppress(OSError):
                if path.stat().st_ino == inode:
                    path.unlink()


def open_sockets(settings: Settings, environment: Mapping[str, str]) -> Sockets:
    """Open the listening sockets, and check that the port of gRPC is free.

    Sockets from systemd take precedence over `SERVING_FD`, then `SERVING_UDS`, then host and port.

    Args:
        settings: Addresses of the service.
        environment: Contains the variables of systemd, if it has passed sockets.

    Raises:
        StartupError: A socket cannot be opened.
    """
    sockets = Sockets()
    try:
        _fill(sockets, settings, environment)
    except BaseException:
        sockets.remove_file()
        for listening in sockets.all():
            listening.close()
        raise
    return sockets


def _fill(sockets: Sockets, settings: Settings, environment: Mapping[str, str]) -> None:
    _take_passed_sockets(sockets, environment)
    if not sockets.main:
        if settings.fd is not None:
            sockets.main.append(_inherited(settings.fd, "SERVING_FD"))
        elif settings.uds is not None:
            _bind_unix(sockets, settings.uds, int(settings.uds_mode, 8))
        else:
            sockets.main.append(_bind_tcp(settings.host, settings.port, "SERVING_PORT"))
    if settings.admin_port is not None and sockets.admin is None:
        sockets.admin = _bind_tcp(settings.host, settings.admin_port, "SERVING_ADMIN_PORT")
    if settings.grpc_port is not None:
        _bind_tcp(settings.host, settings.grpc_port, "SERVING_GRPC_PORT").close()
    for listening in filter(_is_tcp, sockets.all()):
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # connections inherit it


def describe(listening: socket.socket, scheme: str) -> str:
    """Return the URL of a socket, such as `http://[::1]:8000`; `unix:PATH` for a Unix socket."""
    if not _is_tcp(listening):
        return f"unix:{listening.getsockname()}"
    host, port = listening.getsockname()[:2]
    return f"{scheme}://{with_brackets(host)}:{port}"


def _is_tcp(listening: socket.socket) -> bool:
    return listening.family in (socket.AF_INET, socket.AF_INET6)


# -- TCP


def _bind_tcp(host: str, port: int, variable: str) -> socket.socket:
    family, address = _resolve(host, port)
    try:
        # `::` accepts IPv4 too, where the system allows it.
        dual = family == socket.AF_INET6 and host == "::" and socket.has_dualstack_ipv6()
        return socket.create_server(address, family=family, backlog=BACKLOG, dualstack_ipv6=dual)
    except OSError as error:
        cause = variable if error.errno in (errno.EADDRINUSE, errno.EACCES) else "SERVING_HOST"
        where = f"{with_brackets(host)}:{port}"
        raise StartupError(f"{cause}: cannot listen on {where}: {_reason(error)}") from error


def _resolve(host: str, port: int) -> tuple[socket.AddressFamily, tuple[str, int]]:
    """Return the family and address of a host; prefer IPv4 for a name that has both."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        reason = _reason(error) if isinstance(error, OSError) else "not a host name"
        raise StartupError(f"SERVING_HOST: cannot resolve {host!r}: {reason}") from error
    family, *_, address = min(found, key=lambda entry: entry[0] != socket.AF_INET)
    return family, address  # type: ignore[return-value]  # addresses of IPv6 have four parts


# -- Unix sockets


def _bind_unix(sockets: Sockets, path: Path, mode: int) -> None:
    with _named("SERVING_UDS", f"cannot listen on {path}"):
        _remove_stale(path)
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listening.bind(str(path))
            path.chmod(mode)  # the umask of the service would exclude all other users
            sockets.file = path, path.stat().st_ino
            listening.listen(BACKLOG)
        except BaseException:
            listening.close()
            raise
    sockets.main.append(listening)


def _remove_stale(path: Path) -> None:
    """Remove a Unix socket that no process listens on, as a killed service leaves it.

    Raises:
        StartupError: The file is not a socket.
        OSError: A process listens on it.
    """
    try:
        is_socket = stat.S_ISSOCK(path.lstat().st_mode)
    except FileNotFoundError:
        return
    if not is_socket:
        raise StartupError(f"SERVING_UDS: {path} exists and is not a socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_CONNECT_SECONDS)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


# -- sockets of other processes


def _take_passed_sockets(sockets: Sockets, environment: Mapping[str, str]) -> None:
    """Take the sockets that systemd has passed to this process: `admin` for operators, others for clients."""
    if environment.get("LISTEN_PID") != str(os.getpid()):
        return  # they were meant for the parent of this process
    count = environment.get("LISTEN_FDS", "")
    if not count.isdecimal():
        raise StartupError(f"LISTEN_FDS: {count!r} is not a number of sockets")
    names = environment.get("LISTEN_FDNAMES", "").split(":")
    for index in range(int(count)):
        name = names[index] if index < len(names) else ""
        passed = _inherited(_FIRST_PASSED_DESCRIPTOR + index, "LISTEN_FDS")
        if name == _GRPC_NAME:
            raise StartupError("LISTEN_FDNAMES: gRPC cannot use a passed socket; set SERVING_GRPC_PORT")
        if name != _ADMIN_NAME:
            sockets.main.append(passed)
        elif _is_tcp(passed):
            sockets.admin = passed
        else:
            raise StartupError("LISTEN_FDNAMES: the socket `admin` must be a TCP socket")


def _inherited(descriptor: int, variable: str) -> socket.socket:
    with _named(variable, f"cannot listen on file descriptor {descriptor}"):
        inherited = socket.socket(fileno=descriptor)
        if inherited.type != socket.SOCK_STREAM:
            raise OSError(errno.EPROTOTYPE, os.strerror(errno.EPROTOTYPE))
        inherited.set_inheritable(False)
        inherited.listen(BACKLOG)
    return inherited


@contextmanager
def _named(variable: str, failure: str) -> Iterator[None]:
    """Raise an operating system error as one that names a setting.

    Raises:
        StartupError: The block has raised an `OSError`.
    """
    try:
        yield
    except OSError as error:
        raise StartupError(f"{variable}: {failure}: {_reason(error)}") from error


def _reason(error: OSError) -> str:
    """Return the reason alone: Python appends details to the texts of the system."""
    if error.errno and not isinstance(error, socket.gaierror):
        return os.strerror(error.errno)
    return error.strerror or str(error)
