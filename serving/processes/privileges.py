"""Drops the privileges of model processes, and protects the memory of the front from them.

Model code is arbitrary code. It must not read the memory of the front, even if both run as the same user. The
front and the model processes therefore refuse to be traced or dumped. Model processes also drop all
capabilities. `serving.sandbox` confines them further, to their own files.
"""

from __future__ import annotations

import ctypes
import sys

from serving.processes.descendants import prctl

_PR_SET_DUMPABLE, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 4, 24, 38
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 47, 4
_CAPABILITY_VERSION = 0x20080522
_MAX_CAPABILITY = 63


def hide_memory() -> None:
    """Prevent other processes of the same user from tracing this process or dumping its memory."""
    prctl(_PR_SET_DUMPABLE, 0)


def drop_privileges() -> None:
    """Drop all capabilities, prevent new ones, and hide the memory of this process.

    Call it before `die_with_parent`: a change of capabilities may clear the parent-death signal.
    """
    if sys.platform != "linux":
        return
    prctl(_PR_SET_NO_NEW_PRIVS, 1)
    prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    for capability in range(_MAX_CAPABILITY + 1):
        prctl(_PR_CAPBSET_DROP, capability)  # fails for capabilities that the kernel does not know
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)
    no_capabilities = (ctypes.c_uint32 * 6)()
    ctypes.CDLL(None).capset(header, no_capabilities)
    hide_memory()
