"""Selects the queued requests that form the next batch, and those to retry together after a failure."""

from __future__ import annotations

from collections import deque

from serving.batching.pending_request import Group, PendingRequest
from serving.errors import ModelFailed, NotSeparable, ProcessDied, Unprocessable

_MAX_ROWS_OF_ONE_REQUEST = 4096
"""Maximum number of rows in a batch that consists of the parts of one request."""


def next_batch(queue: deque[PendingRequest], *, shared: bool) -> Group:
    """Remove the next batch from the queue: the oldest request, and requests with the same key that fit.

    The oldest request is a batch of its own if calls are not `shared`, or if its output is streamed.
    """
    first = queue.popleft()
    if not shared or first.stream is not None:
        return [first]
    group, rows, skipped = [first], len(first.rows), []
    limit = first.max_rows if first.origin is None else _MAX_ROWS_OF_ONE_REQUEST
    while queue and rows < limit:
        request = queue.popleft()
        same_origin = first.origin is not None and request.origin is first.origin
        fits = rows + len(request.rows) <= (limit if same_origin else first.max_rows)
        if request.key == first.key and request.stream is None and fits:
            group.append(request)
            rows += len(request.rows)
        else:
            skipped.append(request)
    queue.extendleft(reversed(skipped))
    return group


def split_for_retry(group: Group, error: ModelFailed | ProcessDied | Unprocessable) -> list[Group]:
    """Return the smaller groups in which to retry a failed batch; none if a retry cannot help.

    After an exception, the batch is bisected until only the request that causes it fails. The death of a
    process is expensive, so each request is retried once, alone. If the output cannot be split, each request
    is retried alone. A stream whose client has received a chunk is not retried.
    """
    if group[0].stream is not None and group[0].stream.has_chunks:
        return []
    if isinstance(error, NotSeparable):
        return [[request] for request in group]
    if isinstance(error, ProcessDied):
        return [[request] for request in group if not request.retried]
    middle = len(group) // 2
    return [group[:middle], group[middle:]] if middle else []
