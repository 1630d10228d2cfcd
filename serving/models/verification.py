"""What a loaded version shows of itself before it takes requests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from serving.batching.sharing_proof import UNDECIDED, Sharing, overridden
from serving.contract.contract import Contract
from serving.models.candidate_verifier import CandidateVerifier
from serving.models.input_example import Example
from serving.models.replay import Comparison, RecordedRequest
from serving.processes.pool import Pool


@dataclass(frozen=True, slots=True)
class Verification:
    """What has been found out about a version.

    `unverified` is why it has not answered an example, and empty if it has.
    """

    contract: Contract
    unverified: str = ""
    sharing: Sharing = UNDECIDED
    comparison: Comparison | None = None


async def verify(contract: Contract, example: Example | None, pool: Pool, seconds: float) -> Verification:
    """Have the first process answer the input example, or a generated row, and correct the contract by that.

    Raises:
        LoadFailed: a process that had to be replaced did not load.
        VerificationFailed: it does not answer the example as its contract says, or not within `seconds`.
    """
    replica = pool.replicas[0]
    trial = CandidateVerifier(contract.with_input_schema(replica.facts.get("input_schema")), replica, seconds)
    if example:
        await trial.verify(example)
        return Verification(trial.contract)
    failure = await trial.sample()
    await pool.renew()
    return Verification(
        trial.contract, failure or "only a row generated from its types and bounds was answered"
    )


async def rehearse(
    verified: Verification,
    example: Example | None,
    pool: Pool,
    seconds: float,
    recorded: Sequence[RecordedRequest],
    *,
    decided: Sharing | None,
) -> Verification:
    """Find out whether callers may share a call, have recorded requests answered, and compare.

    Args:
        verified: what `verify` returned.
        example: the input example.
        pool: has the processes.
        seconds: the time that each of these may take.
        recorded: requests that another version has answered.
        decided: whether callers may share a call, where that is known.

    Raises:
        LoadFailed: a process that had to be replaced did not load.
        VerificationFailed: it fails on one of the requests.
    """
    trial = CandidateVerifier(verified.contract, pool.replicas[0], seconds)
    sharing = overridden(verified.contract.batching) or decided or await trial.prove(example, recorded)
    await pool.renew()
    trial = CandidateVerifier(verified.contract, pool.replicas[0], seconds)
    comparison = await trial.rehearse(recorded, shared=sharing.allowed)
    return replace(verified, sharing=sharing, comparison=comparison)
