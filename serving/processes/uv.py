"""Runs uv, which makes environments and installs packages into them."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import sys
from pathlib import Path

from serving.errors import EnvironmentUnavailable

_SECONDS = 600.0
_MAX_OUTPUT_LENGTH = 400
_PASSED_ON = re.compile(
    r"(UV_\w+|XDG_\w+|LC_\w+|LANG|PATH|HOME|USER|TMPDIR|LD_LIBRARY_PATH|NETRC|SSL_CERT_(FILE|DIR)"
    r"|(HTTP|HTTPS|ALL|NO)_PROXY)$",
    re.IGNORECASE,
)
"""Environment variables for uv. Building a package runs code that comes with it, which gets no others."""
_DECORATION = re.compile(r"[^\x20-\x7e]+")


def find() -> str:
    """Return the path of uv, beside this Python or on the PATH.

    Raises:
        NoEnvironment: it is not installed.
    """
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    if (program := shutil.which("uv", path=path)) is None:
        raise EnvironmentUnavailable(
            "it needs an environment of its own, which uv makes, and uv is not installed where this "
            "service runs: install the extra `environments`, or put uv on the PATH"
        )
    return program


async def run(failed: str, *command: str, cwd: Path | None = None) -> None:
    """Run a command of uv, in a folder apart from any project and its settings if `cwd` is given.

    Raises:
        NoEnvironment: it `failed`; the message ends with uv's own words.
    """
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=cwd,
        stdin=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        env={name: value for name, value in os.environ.items() if _PASSED_ON.match(name)},
    )
    try:
        async with asyncio.timeout(_SECONDS):
            _, said = await process.communicate()
    except TimeoutError:
        raise EnvironmentUnavailable(f"its environment was not ready after {_SECONDS:g} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        text = said.decode(errors="replace")
        start = max(text.find("error:"), text.find("×"), 0)  # warnings stand before
        reason = " ".join(_DECORATION.sub(" ", text[start:]).split())[:_MAX_OUTPUT_LENGTH]
        raise EnvironmentUnavailable(f"{failed}. uv reports: {reason}")
