"""Checks whether requests on which a version failed fail on another version as well.

A caller can send rows on which any version fails, as soon as a version has gone live. Such failures must not
count against the version: before one is reverted or stopped, the other version answers a sample of them.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
from collections.abc import Sequence

from serving.batching.pending import PendingRequest
from serving.codecs.predictions import LazyPredictions
from serving.errors import ModelFailed, ProcessDied, ServingError
from serving.models.loaded_model import LoadedModel
from serving.models.probation import RequestCounts
from serving.models.replay import RecordedRequest

log = logging.getLogger("serving.model")
_MAX_SAMPLE = 8
_MAX_SECONDS = 5.0


async def excuse(tally: RequestCounts, other: LoadedModel, *, with_deaths: bool) -> None:
    """Excuse those failures in `tally` that `other` has too, as far as a sample of them shows.

    An error in here excuses nothing.

    Args:
        tally: the failures of the version under judgement.
        other: the version that it is compared with.
        with_deaths: also repeat requests under which a process died, which may kill a process of `other`.
    """
    try:
        await _excuse(tally, other, with_deaths=with_deaths)
    except Exception:
        log.exception("requests that failed could not be repeated on %s", other.version)


async def _excuse(tally: RequestCounts, other: LoadedModel, *, with_deaths: bool) -> None:
    if share := await _share_failing(other, tally.raised):
        tally.excused += round(share * max(0, tally.own_failed - len(tally.fatal)))
    if with_deaths and (share := await _share_failing(other, [*tally.fatal][-1:])):
        tally.excused += round(share * min(len(tally.fatal), tally.own_failed))
        tally.excused_deaths += round(share * tally.own_deaths)


async def _share_failing(other: LoadedModel, requests: Sequence[PendingRequest]) -> float:
    """Return the share of a sample of the requests that `other` does not answer either."""
    sample = random.sample([*requests], min(_MAX_SAMPLE, len(requests)))
    with other:
        failing = await asyncio.gather(*(_fails(other, each) for each in sample))
    return sum(failing) / max(1, len(failing))


async def _fails(other: LoadedModel, request: PendingRequest) -> bool:
    """Return whether `other` fails on a request; not if it does not accept it, or has no time for it."""
    try:
        rows = other.intake.revalidate(request.rows)
        params = other.contract.read_params(json.loads(request.key.params or "{}"))
        ((_, ticket),) = other.calls.submit(rows, params, _MAX_SECONDS, raw=True, alone=True)
        answer = await ticket.future
    except (ModelFailed, ProcessDied):
        return True
    except ServingError:
        return False
    assert isinstance(answer, LazyPredictions)
    may_be_whole = request.key.raw or other.contract.is_whole or other.contract.is_open
    if not (may_be_whole or answer.is_one_per_row(len(rows))):
        return True
    return RecordedRequest(rows, params, answer, 0.0).told() is None
