"""Verify a loaded version before it receives requests."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from serving.batching.sharing_proof import UNDECIDED, Sharing, overridden
from serving.contract.contract import Contract
from serving.errors import ProcessDied
from serving.models.candidate_verifier import CandidateVerifier
from serving.models.input_example import Example
from serving.models.replay import Comparison, RecordedRequest
from serving.processes.pool import Pool
from serving.processes.replica import Replica
from serving.promotion_errors import VerificationFailed

log = logging.getLogger("serving.model")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Verification:
    """Result of the verification of a version.

    `unverified` is the reason why no input example was predicted; empty if one was.
    """

    contract: Contract
    unverified: str = ""
    sharing: Sharing = UNDECIDED
    comparison: Comparison | None = None


async def verify(contract: Contract, example: Example | None, pool: Pool, seconds: float) -> Verification:
    """Predict the input example, or else a generated row, and adapt the contract to the output.

    Raises:
        LoadFailed: a process that had to be replaced did not load.
        VerificationFailed: the prediction for the example fails, does not fit the contract, or takes longer
            than `seconds`.
    """

    def verifier_of(replica: Replica) -> CandidateVerifier:
        schema = replica.facts.get("input_schema")
        return CandidateVerifier(contract.with_input_schema(schema), replica, seconds)

    if example:
        return await _retry_if_died(pool, lambda replica: _verify(verifier_of(replica), example))
    verifier = verifier_of(pool.replicas[0])
    failure = await verifier.sample()
    await pool.renew()
    return Verification(
        verifier.contract, failure or "it has predicted only a row generated from its types and bounds"
    )


async def replay(
    verified: Verification,
    example: Example | None,
    pool: Pool,
    seconds: float,
    recorded: Sequence[RecordedRequest],
    *,
    decided: Sharing | None,
) -> Verification:
    """Decide whether callers may share a call, then repeat recorded requests and compare the predictions.

    Args:
        verified: result of `verify`.
        example: input example of the model.
        pool: model processes of the version.
        seconds: time limit of each of the two steps.
        recorded: requests that another version has served.
        decided: an earlier decision on sharing, which then stands.

    Raises:
        LoadFailed: a process that had to be replaced did not load.
        VerificationFailed: one of the requests fails.
    """
    verifier = CandidateVerifier(verified.contract, pool.replicas[0], seconds)
    sharing = overridden(verified.contract.batching) or decided or await verifier.prove(example, recorded)
    await pool.renew()  # the proof may have killed the process

    def compare(replica: Replica) -> Awaitable[Comparison | None]:
        verifier = CandidateVerifier(verified.contract, replica, seconds)
        return verifier.replay(recorded, shared=sharing.allowed)

    return replace(verified, sharing=sharing, comparison=await _retry_if_died(pool, compare))


async def _verify(verifier: CandidateVerifier, example: Example) -> Verification:
    await verifier.verify(example)
    return Verification(verifier.contract)


async def _retry_if_died(pool: Pool, step: Callable[[Replica], Awaitable[Result]]) -> Result:
    """Run a step on a process, and once more on a new process if it dies, as for requests of clients.

    The first death may be no fault of the version, for example if the system has no memory left.
    """
    try:
        return await step(pool.replicas[0])
    except ProcessDied as error:
        log.warning("%s; it is verified once more", error)
    await pool.renew()
    try:
        return await step(pool.replicas[0])
    except ProcessDied as error:
        raise VerificationFailed(f"{error}, twice in a row") from error
