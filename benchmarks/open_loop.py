"""Open-loop load: requests at a constant rate that does not depend on earlier responses."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass
from urllib.parse import urlsplit

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass(frozen=True, slots=True)
class Response:
    """Status of one request (0 without a response), and the seconds from its due time to the response."""

    status: int
    seconds: float


async def send_at_rate(url: str, body: bytes, rate: float, seconds: float) -> list[Response]:
    """Send requests at a constant rate; a request's latency starts at its due time."""
    at = urlsplit(url)
    head = f"POST {at.path} HTTP/1.1\r\nHost: {at.netloc}\r\nContent-Type: application/json\r\n"
    request = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
    idle: deque[Connection] = deque()
    began = time.perf_counter()
    tasks = []
    for number in range(round(rate * seconds)):
        due = began + number / rate
        if (early := due - time.perf_counter()) > 0:
            await asyncio.sleep(early)
        tasks.append(asyncio.create_task(_send(at.hostname or "", at.port or 80, request, idle, due)))
    results = await asyncio.gather(*tasks)
    for _, writer in idle:
        writer.close()
    return results


async def _send(host: str, port: int, request: bytes, idle: deque[Connection], due: float) -> Response:
    try:
        reader, writer = idle.pop() if idle else await asyncio.open_connection(host, port)
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        await reader.readexactly(int(length[15:]))
    except (OSError, asyncio.IncompleteReadError):
        return Response(0, time.perf_counter() - due)
    idle.append((reader, writer))
    return Response(int(head[9:12]), time.perf_counter() - due)
