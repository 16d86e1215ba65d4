"""The question that a call becomes, and what its answer means for the call that waited."""

from __future__ import annotations

from omni_mcp.contracts.approval import Approval
from omni_mcp.contracts.call import Call, Question
from omni_mcp.contracts.errors import ApprovalDenied, ApprovalExpired, ApprovalPending, OmniError
from omni_mcp.contracts.ids import iso_time, new_id
from omni_mcp.contracts.ports import Masker, RunLog
from omni_mcp.contracts.tool import Entry


def question_about(
    call: Call,
    entry: Entry,
    question: Question,
    rules: tuple[str, ...],
    policy_version: str,
    *,
    log: RunLog,
    masker: Masker,
    now_ns: int,
) -> Approval:
    """Return the pending question about exactly this call: its definition, its arguments, and *rules* that ask.

    Args:
        masker: takes secrets out of what a person is shown.
        now_ns: UTC nanoseconds since the epoch; the question expires `question.ttl_s` seconds later.
    """
    shown, _ = masker.mask(call.arguments)
    return Approval(
        id=new_id(),
        state="pending",
        principal=call.principal.key,
        project=call.principal.project,
        run=call.run,
        call=call.id,
        server=entry.server,
        tool=entry.name,
        name=call.name,
        definition_digest=entry.digest,
        arguments_digest=log.arguments_hmac(call.arguments),
        arguments=shown,
        labels={**entry.labels.model_dump(), "side_effects": entry.side_effects},
        hosts=tuple(map(masker.mask_text, entry.hosts_for(call.arguments))),
        rules=rules,
        approvers=question.approvers,
        policy_version=policy_version,
        asked_at_ns=now_ns,
        expires_at_ns=now_ns + int(question.ttl_s * 1_000_000_000),
    )


def still_pending(asked: Approval) -> ApprovalPending:
    """Return what a caller is told whose wait is over before the answer."""
    until = iso_time(asked.expires_at_ns)
    message = f"a person has to answer first, before {until}; what is asked: omni-mcp approvals show {asked.id}"
    return ApprovalPending(message, data={"approval": asked.id, "expires_at": until})


def raise_refusal(answered: Approval) -> None:
    """Raise what a closed question means for the call that waited for it; an approved or used one means nothing.

    Raises:
        ApprovalDenied: a person said no.
        ApprovalExpired: nobody answered in time, or the question was withdrawn.
    """
    data: dict[str, object] = {"approval": answered.id}
    errors: dict[str, OmniError] = {
        "denied": ApprovalDenied(
            f"a person said no to this call; the answer: omni-mcp approvals show {answered.id}",
            detail=f"by {answered.decided_by}",
            data=data,
        ),
        "expired": ApprovalExpired(
            f"nobody answered before {iso_time(answered.expires_at_ns)}; send the call again to ask again", data=data
        ),
        "withdrawn": ApprovalExpired(
            "the rules or the tool changed while the call waited; send it again to have it decided anew",
            detail=answered.note or "withdrawn",
            data=data,
        ),
    }
    error = errors.get(answered.state)
    if error is not None:
        raise error
