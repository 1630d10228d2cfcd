"""Confines a model process without privileges: Landlock for files and TCP, seccomp for other system calls.

A confined process can read the files of Python, its packages and its own version, and can write only its
scratch folder. It can open no socket, except TCP connections to ports that the operator allows. It cannot
signal or trace processes that it has not started. Its child processes are confined as well.

https://docs.kernel.org/userspace-api/landlock.html describes Landlock.
"""

from __future__ import annotations

import ctypes
import errno
import glob
import os
import platform
import site
import struct
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION_FLAG, _PATH_BENEATH, _NET_PORT = 1, 1, 2
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 2, 4, 8
_REFER, _TRUNCATE, _IOCTL = 1 << 13, 1 << 14, 1 << 15
_ABI_1_RIGHTS = (1 << 13) - 1
_FILE_RIGHTS = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL
_READ_RIGHTS = _EXECUTE | _READ_FILE | _READ_DIR
_DEVICE_RIGHTS = _READ_FILE | _WRITE_FILE | _TRUNCATE | _IOCTL
_BIND_TCP, _CONNECT_TCP = 1, 2
_SCOPED = 3
"""Blocks abstract Unix sockets and signals to processes outside the sandbox."""
_ABI_WITH_TCP = 4

_READABLE = (
    *("/usr", "/lib", "/lib64", "/lib32", "/bin", "/sbin", "/proc", "/sys", "/opt/conda", "/opt/nvidia"),
    *("/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/localtime", "/etc/timezone"),
    *("/etc/mime.types", "/etc/ssl/certs", "/etc/ssl/openssl.cnf", "/etc/ca-certificates", "/etc/pki/tls"),
    *("/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf", "/etc/passwd", "/etc/group", "/etc/os-release"),
    *("/etc/alternatives", "/etc/fonts"),
)
_DEVICES = ("null", "zero", "full", "random", "urandom", "nvidia*", "nvidia-caps/*", "dri/*", "kfd")

_AF_INET, _AF_INET6 = 2, 10
_SOCK_STREAM, _IPPROTO_TCP = 1, 6
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _FILTER = 38, 22, 2
_LOAD, _JUMP_IF_EQUAL, _JUMP_IF_AT_LEAST, _AND, _RETURN = 0x20, 0x15, 0x35, 0x54, 0x06
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_X32 = 0x40000000


class _Machine(NamedTuple):
    """Facts about a processor architecture that a seccomp filter needs: its id and system call numbers."""

    audit: int
    socket: int
    denied: tuple[int, ...]
    """ptrace, process_vm_readv and _writev, bpf, perf_event_open, userfaultfd, keyctl, add_key, request_key,
    unshare, setns, io_uring_setup and pidfd_getfd."""


_MACHINES = {
    "x86_64": _Machine(0xC000003E, 41, (101, 310, 311, 321, 298, 323, 250, 248, 249, 272, 308, 425, 438)),
    "aarch64": _Machine(0xC00000B7, 198, (117, 270, 271, 280, 241, 282, 219, 217, 218, 97, 268, 425, 438)),
}


def unsupported(ports: Sequence[object] = ()) -> str:
    """Return why this machine cannot confine a process; empty if it can."""
    if sys.platform != "linux" or platform.machine() not in _MACHINES:
        return f"it needs Linux on {' or '.join(_MACHINES)}"
    abi = _abi()
    if abi < 1:
        return "this kernel has no Landlock: it needs Linux 5.13 or later, with `landlock` among its LSMs"
    if ports and abi < _ABI_WITH_TCP:
        return "this kernel can't limit TCP connections to ports: it needs Linux 6.7 or later"
    return ""


def confine(read: Iterable[str | Path], write: Iterable[str | Path], ports: Sequence[int] = ()) -> None:
    """Confine this process and its future children permanently; call it while the process has one thread.

    Args:
        read: Files and folders to allow reading, besides those of Python, its packages and the system.
        write: Folders in which to allow creating and changing files.
        ports: TCP ports to allow connections to.

    Raises:
        OSError: The kernel does not support it.
    """
    _restrict([*_READABLE, *_python_folders(), *read], write, ports)
    _filter_calls(_MACHINES[platform.machine()], tcp=bool(ports))


def _python_folders() -> list[str]:
    """Return the folders of the interpreter, its packages, and this package."""
    this_package = str(Path(__file__).resolve().parent)
    packages = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    additional = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    return [sys.prefix, sys.base_prefix, this_package, *packages, *additional, site.getusersitepackages()]


# -- Landlock


def _call(number: int, *arguments: object) -> int:
    result = int(ctypes.CDLL(None, use_errno=True).syscall(ctypes.c_long(number), *arguments))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def _abi() -> int:
    with suppress(OSError):
        return _call(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(_VERSION_FLAG))
    return 0


def _restrict(read: Iterable[str | Path], write: Iterable[str | Path], ports: Sequence[int]) -> None:
    abi = _abi()
    files = _ABI_1_RIGHTS | (_REFER if abi >= 2 else 0) | (_TRUNCATE if abi >= 3 else 0)
    files |= _IOCTL if abi >= 5 else 0
    net = _BIND_TCP | _CONNECT_TCP if abi >= _ABI_WITH_TCP else 0
    # The size depends on the ABI: older kernels know shorter attributes.
    attributes = struct.pack("=QQQ", files, net, _SCOPED if abi >= 6 else 0)
    size = 8 if abi < _ABI_WITH_TCP else 16 if abi < 6 else 24
    ruleset = _call(_CREATE_RULESET, attributes, ctypes.c_size_t(size), ctypes.c_uint32(0))
    try:
        for path in read:
            _allow_path(ruleset, path, _READ_RIGHTS & files)
        for path in write:
            _allow_path(ruleset, path, files)
        _allow_path(ruleset, "/dev/shm", files)  # noqa: S108 (multiprocessing needs it; not a temporary file)
        for name in _DEVICES:
            for device in glob.glob(f"/dev/{name}"):
                _allow_path(ruleset, device, _DEVICE_RIGHTS & files)
        for port in ports:
            rule = struct.pack("=QQ", _CONNECT_TCP, port)
            _call(_ADD_RULE, ctypes.c_int(ruleset), ctypes.c_int(_NET_PORT), rule, ctypes.c_uint32(0))
        ctypes.CDLL(None).prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        _call(_RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint32(0))
    finally:
        os.close(ruleset)


def _allow_path(ruleset: int, path: str | Path, access: int) -> None:
    """Add a rule; ignore a path that does not exist."""
    try:
        handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if not os.path.isdir(f"/proc/self/fd/{handle}"):
            access &= _FILE_RIGHTS
        rule = struct.pack("=Qi", access, handle)
        _call(_ADD_RULE, ctypes.c_int(ruleset), ctypes.c_int(_PATH_BENEATH), rule, ctypes.c_uint32(0))
    finally:
        os.close(handle)


# -- seccomp


def _filter_calls(machine: _Machine, *, tcp: bool) -> None:
    """Deny all sockets, or all except TCP, and system calls that circumvent the other limits."""
    deny = _ERRNO | errno.EACCES
    program = [
        (_LOAD, 0, 0, 4),  # the architecture: the numbers below are valid for only one
        (_JUMP_IF_EQUAL, 1, 0, machine.audit),
        (_RETURN, 0, 0, deny),
        (_LOAD, 0, 0, 0),  # the number of the system call
        (_JUMP_IF_AT_LEAST, 0, 1, _X32),
        (_RETURN, 0, 0, deny),
    ]
    for number in machine.denied:
        program += [(_JUMP_IF_EQUAL, 0, 1, number), (_RETURN, 0, 0, deny)]
    program += [(_JUMP_IF_EQUAL, 1, 0, machine.socket), (_RETURN, 0, 0, _ALLOW)]
    if tcp:
        program += [
            (_LOAD, 0, 0, 16),  # the domain
            (_JUMP_IF_EQUAL, 2, 0, _AF_INET),
            (_JUMP_IF_EQUAL, 1, 0, _AF_INET6),
            (_RETURN, 0, 0, deny),
            (_LOAD, 0, 0, 24),  # the type, combined with flags
            (_AND, 0, 0, 0xF),
            (_JUMP_IF_EQUAL, 1, 0, _SOCK_STREAM),
            (_RETURN, 0, 0, deny),
            (_LOAD, 0, 0, 32),  # the protocol: MPTCP would bypass Landlock
            (_JUMP_IF_EQUAL, 2, 0, 0),
            (_JUMP_IF_EQUAL, 1, 0, _IPPROTO_TCP),
            (_RETURN, 0, 0, deny),
            (_RETURN, 0, 0, _ALLOW),
        ]
    else:
        program.append((_RETURN, 0, 0, deny))
    packed = b"".join(struct.pack("=HBBI", *instruction) for instruction in program)
    buffer = ctypes.create_string_buffer(packed, len(packed))
    header = struct.pack("@HP", len(program), ctypes.addressof(buffer))
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_SECCOMP, _FILTER, header, 0, 0):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
