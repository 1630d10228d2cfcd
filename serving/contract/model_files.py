"""Reads the files that describe a model version, in a short-lived process with limits (`bounded_parser`)."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import serving
from serving.contract import bounded_parser
from serving.promotion_errors import UnsupportedSignature

_TIMEOUT_SECONDS = 20.0
# The process is isolated from PYTHON* variables and .pth files, and imports only this package and PyYAML.
_PROGRAM = """
import sys
sys.path.extend(sys.argv[2:])
from serving.contract.bounded_parser import main
main(sys.argv[1])
"""
_INHERITED_VARIABLES = ("LD_LIBRARY_PATH", "LANG")


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """The content of the files that describe a model version."""

    mlmodel: Mapping[str, Any]
    """The content of `MLmodel`."""
    documents: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """The content of the other YAML files, by name."""
    texts: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """The lines of the requirements files, by name."""
    example: Any = None
    """The first rows of the input example in the form of its file; None if there is no example."""
    faults: Mapping[str, str] = field(default_factory=dict)
    """Why files could not be read, by name; the key of the input example is `example`."""


async def read(folder: Path) -> ModelFiles:
    """Read the files that describe the version in `folder`.

    Raises:
        UnsupportedSignature: Its `MLmodel` cannot be read within the limits.
    """
    content = await _parse(folder)
    documents, faults = content["documents"], content["faults"]
    if "MLmodel" not in documents:
        raise UnsupportedSignature(
            f"its MLmodel file can't be read: {faults.get('MLmodel', 'there is none')}"
        )
    mlmodel = documents.pop("MLmodel")
    return ModelFiles(mlmodel, documents, content["texts"], content.get("example"), faults)


async def _parse(folder: Path) -> dict[str, Any]:
    process = await asyncio.to_thread(_start, folder)
    try:
        async with asyncio.timeout(_TIMEOUT_SECONDS):
            output, status = await asyncio.to_thread(_finish, process)
    except TimeoutError:
        raise UnsupportedSignature(f"its MLmodel file can't be read within {_TIMEOUT_SECONDS:g} s") from None
    finally:
        process.kill()
    if status or len(output) > bounded_parser.MAX_OUTPUT_BYTES:
        ending = signal.Signals(-status).name if status < 0 else f"status {status}"
        raise UnsupportedSignature(
            "its MLmodel file can't be read within the limits on time and memory: "
            f"the parser ended with {ending}"
        )
    content: dict[str, Any] = await asyncio.to_thread(json.loads, output)
    return content


def _start(folder: Path) -> subprocess.Popen[bytes]:
    """Start the parser. `subprocess` does not copy the memory map of the front, unlike a fork."""
    package = str(Path(serving.__file__).parents[1])
    return subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _PROGRAM, str(folder), package, _packages()],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C in the terminal must not make a version look unreadable
        env={name: os.environ[name] for name in _INHERITED_VARIABLES if name in os.environ},
    )


def _finish(process: subprocess.Popen[bytes]) -> tuple[bytes, int]:
    """Return the output of the parser, up to one byte above its limit, and its exit status."""
    with process:
        assert process.stdout
        output = process.stdout.read(bounded_parser.MAX_OUTPUT_BYTES + 1)
        if len(output) > bounded_parser.MAX_OUTPUT_BYTES:
            process.kill()
        return output, process.wait()


def _packages() -> str:
    """Return the folder in which PyYAML is installed."""
    spec = importlib.util.find_spec("yaml")
    assert spec
    assert spec.origin
    return str(Path(spec.origin).parents[1])
