"""Check whether requests that failed on one version also fail on another version.

As soon as a version is live, a caller can send rows on which every version fails. Such failures must not
count against the version: before a rollback or the end of a canary, a sample of them is repeated on the
other version.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
from collections.abc import Sequence

from serving.batching.pending_request import PendingRequest
from serving.codecs.predictions import LazyPredictions
from serving.errors import ModelFailed, ProcessDied, ServingError
from serving.models.loaded_model import LoadedModel
from serving.models.probation import RequestCounts
from serving.models.replay import RecordedRequest

log = logging.getLogger("serving.model")
_MAX_SAMPLE = 8
_MAX_SECONDS = 5.0


async def excuse(counts: RequestCounts, reference: LoadedModel, *, with_deaths: bool) -> None:
    """Excuse the failures in `counts` that also occur on `reference`, estimated from a sample.

    An error during the check excuses nothing.

    Args:
        counts: requests of the version under judgement.
        reference: version to compare with.
        with_deaths: also repeat a request that killed a process, which may kill a process of `reference`.
    """
    try:
        await _excuse(counts, reference, with_deaths=with_deaths)
    except Exception:
        log.exception("cannot repeat failed requests on %s", reference.version)


async def _excuse(counts: RequestCounts, reference: LoadedModel, *, with_deaths: bool) -> None:
    if share := await _share_failing(reference, counts.raised):
        counts.excused += round(share * max(0, counts.own_failed - len(counts.fatal)))
    if with_deaths and (share := await _share_failing(reference, [*counts.fatal][-1:])):
        counts.excused += round(share * min(len(counts.fatal), counts.own_failed))
        counts.excused_deaths += round(share * counts.own_deaths)


async def _share_failing(reference: LoadedModel, requests: Sequence[PendingRequest]) -> float:
    """Return the share of a sample of the requests that fail on `reference` too."""
    sample = random.sample([*requests], min(_MAX_SAMPLE, len(requests)))
    with reference:
        failing = await asyncio.gather(*(_fails(reference, request) for request in sample))
    return sum(failing) / max(1, len(failing))


async def _fails(reference: LoadedModel, request: PendingRequest) -> bool:
    """Return whether `reference` fails on a request; False if it rejects the request or is overloaded."""
    try:
        rows = reference.column_validator.revalidate(request.rows)
        params = reference.contract.read_params(json.loads(request.key.params or "{}"))
        ((_, pending),) = reference.calls.submit(rows, params, _MAX_SECONDS, raw=True, alone=True)
        output = await pending.future
    except (ModelFailed, ProcessDied):
        return True
    except ServingError:
        return False
    assert isinstance(output, LazyPredictions)
    may_be_whole = request.key.raw or reference.contract.is_whole or reference.contract.is_open
    if not (may_be_whole or output.is_one_per_row(len(rows))):
        return True
    return RecordedRequest(rows, params, output, 0.0).predictions() is None
