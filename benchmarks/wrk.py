"""Load by wrk, and what it measured."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_MS = {"us": 0.001, "ms": 1.0, "s": 1000.0, "m": 60_000.0}
_SCRIPT = """
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.body = {body}
"""
# Over several paths in turn; the requests are made once, so that they cost the load nothing.
_IN_TURN = """
local requests, turn = {{}}, 0
function init()
  for path in ("{paths}"):gmatch("%S+") do requests[#requests + 1] = wrk.format(nil, path) end
end
function request()
  turn = turn % #requests + 1
  return requests[turn]
end
"""


class WrkNotInstalled(Exception):
    """wrk, which makes the load, is not installed."""


@dataclass(frozen=True, slots=True)
class LoadResult:
    """Requests a second, latencies in milliseconds, and how many requests failed."""

    rate: float
    p50: float
    p99: float
    failed: int
    worst: float = float("nan")


def drive(
    url: str, body: Any, folder: Path, *, connections: int, seconds: float, paths: Sequence[str] = ()
) -> LoadResult:
    """POST `body` as JSON to `url` over this many connections for this long; to `paths` there in turn.

    Without a body they are asked by GET.

    Raises:
        NoWrk: wrk is not installed.
    """
    if shutil.which("wrk") is None:
        raise WrkNotInstalled(
            "wrk makes the load and is not installed: apt-get install wrk, or brew install wrk"
        )
    script = folder / "post.lua"
    # A JSON text in a JSON string is a string in Lua, too, as long as it has no escapes but quotes.
    in_turn = _IN_TURN.format(paths=" ".join(paths)) if paths else ""
    posting = "" if body is None else _SCRIPT.format(body=json.dumps(json.dumps(body)))
    script.write_text(posting + in_turn)
    command = [
        "wrk",
        "-t1",
        f"-c{connections}",
        f"-d{max(1, round(seconds))}s",
        "--latency",
        "--timeout=30s",  # after its own 2 s wrk leaves the slow ones out of the latencies
        "-s",
        str(script),
        url,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return parse(done.stdout)


def parse(text: str) -> LoadResult:
    """What wrk printed."""
    failed = sum(int(count) for count in re.findall(r"Non-2xx or 3xx responses: (\d+)", text))
    for errors in re.findall(r"Socket errors: (.*)", text):
        failed += sum(int(count) for count in re.findall(r"\d+", errors))
    rate = re.search(r"Requests/sec:\s+([\d.]+)", text)
    return LoadResult(
        float(rate[1]) if rate else 0.0,
        _latency(r"50%\s+", text),
        _latency(r"99%\s+", text),
        failed,
        _latency(r"Latency\s+\S+\s+\S+\s+", text),  # average, deviation, and the maximum
    )


def _latency(before: str, text: str) -> float:
    match = re.search(rf"{before}([\d.]+)(us|ms|s|m)\b", text)
    return float(match[1]) * _MS[match[2]] if match else float("nan")
