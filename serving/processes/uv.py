"""Runs uv, which creates environments and installs packages into them."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import sys
from pathlib import Path

from serving.promotion_errors import EnvironmentUnavailable
from serving.text import install_command, shorten

_TIMEOUT_SECONDS = 600.0
_MAX_OUTPUT_LENGTH = 400
_INHERITED_VARIABLES = re.compile(
    r"(UV_\w+|XDG_\w+|LC_\w+|LANG|PATH|HOME|USER|TMPDIR|LD_LIBRARY_PATH|NETRC|SSL_CERT_(FILE|DIR)"
    r"|(HTTP|HTTPS|ALL|NO)_PROXY)$",
    re.IGNORECASE,
)
"""Environment variables that uv inherits. Building a package runs its code, which sees no others."""
_DECORATION = re.compile(r"[^\x20-\x7e]+")


def find() -> str:
    """Return the path of uv, next to this Python or on the PATH.

    Raises:
        EnvironmentUnavailable: uv is not installed.
    """
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    if (program := shutil.which("uv", path=path)) is None:
        raise EnvironmentUnavailable(
            "it needs an environment of its own, which uv creates, and uv is not installed where this "
            f"service runs: {install_command('environments')}, or put uv on the PATH"
        )
    return program


async def run(failure: str, *command: str, cwd: Path | None = None) -> None:
    """Run uv.

    Args:
        failure: The beginning of the error message.
        command: The program and its arguments.
        cwd: A working directory outside any project, so that uv reads no settings of a project.

    Raises:
        EnvironmentUnavailable: The command failed or timed out. The message ends with the output of uv.
    """
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=cwd,
        stdin=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,  # Ctrl-C in the terminal must not make a version look faulty
        env={name: value for name, value in os.environ.items() if _INHERITED_VARIABLES.match(name)},
    )
    try:
        async with asyncio.timeout(_TIMEOUT_SECONDS):
            _, errors = await process.communicate()
    except TimeoutError:
        raise EnvironmentUnavailable(f"its environment was not ready after {_TIMEOUT_SECONDS:g} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        text = errors.decode(errors="replace")
        start = max(text.find("error:"), text.find("×"), 0)  # skip warnings
        reason = shorten(" ".join(_DECORATION.sub(" ", text[start:]).split()), _MAX_OUTPUT_LENGTH)
        raise EnvironmentUnavailable(f"{failure}. uv reports: {reason}")
