"""Check 5 as a whole: the recipe builds the declared training, and snapshot 0 came about as the manifest says.

What each tensor has to be is `polverify.initial`'s work, the evidence for a parent `polverify.lineage`'s; here they are
put to use by the kind that the manifest declares. Implements specs/verification.md, check 5. Executes nothing: the
recipe has been executed by then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from polstore.errors import RecipeError, ReplayError
from polstore.wire.lineage import Lineage
from polverify.lineage import check_link
from polverify.log import check_entry
from polverify.time import Sources, gather
from polverify.verdict import Outcome

if TYPE_CHECKING:
    from collections.abc import Sequence

    from polstore.wire.keys import VerifierKey
    from polstore.wire.manifest import Manifest
    from polstore.wire.policy import Policy
    from polverify.lineage import Link
    from polverify.log import Entered
    from polverify.replay.session import Session
    from polverify.request import Request
    from polverify.states import States

__all__ = ["check_beginning"]


def check_beginning(
    session: Session,
    manifest: Manifest,
    states: States,
    request: Request,
    logs: Sequence[VerifierKey],
    claim: dict[str, Any],
    warnings: list[str],
) -> tuple[Outcome, str]:
    """Hold what the recipe built, and the committed snapshot 0, against the manifest; returns the check's outcome.

    Args:
        session: the verifier's recipe, built.
        manifest: what was declared.
        states: the snapshots of the bundle, for all kinds but ``seed``.
        request: what the verifier holds of a parent.
        logs: log keys of the verifier's policy, of which one must have signed the parent's root, too, unless keys for
            it were given.
        claim: what the verdict lists as claimed; ``parent`` is added, once its root is the one that the run names.
        warnings: added to.

    Raises:
        RecipeError: the recipe builds another optimizer.
        ReplayError: another initial state, or one that is not accounted for.
        ProofError: the link to the parent does not hold.
    """
    declared = manifest.optimizer
    if session.optimizer_name != declared.name:
        raise RecipeError("optimizer", expected=declared.name, got=session.optimizer_name)
    if session.hyperparameters != declared.hyperparameters:
        raise RecipeError("optimizer's hyperparameters", expected=declared.hyperparameters, got=session.hyperparameters)
    kind = manifest.initial.kind
    if kind == "seed":
        return _seeded(session, manifest)
    inherited: tuple[str, ...] = ()
    shown = ""
    if kind == "parent":
        if request.lineage is None:
            return Outcome.UNDECIDED, "declared as parent, and no lineage was given"
        inherited, shown = _parent(request.lineage, manifest, request, logs, claim, warnings)
    from polverify.initial import Rebuilt, check_tensors  # loads scipy, which no other check needs

    rebuilt = Rebuilt(session.initial_entries, session.initial_scalars)
    outcome, detail, weak = check_tensors(states.get(manifest.initial.state), rebuilt, inherited)
    warnings.extend(weak)
    return outcome, shown + detail


def _seeded(session: Session, manifest: Manifest) -> tuple[Outcome, str]:
    committed = manifest.initial.state
    if session.initial_state == committed:
        return Outcome.PASSED, "rebuilt from the seed, state digests are equal"
    differences = session.differences(manifest.environment)
    if differences:
        return Outcome.UNDECIDED, "another environment class: " + "; ".join(differences)
    raise ReplayError("initial state rebuilt from the seed", expected=committed, got=session.initial_state)


def _parent(
    data: bytes,
    manifest: Manifest,
    request: Request,
    logs: Sequence[VerifierKey],
    claim: dict[str, Any],
    warnings: list[str],
) -> tuple[tuple[str, ...], str]:
    """Require that the link to the parent holds; return the names of the inherited tensors, and what to say of it."""
    keys, logs = (request.parent_keys, ()) if request.parent_keys else (request.keys, logs)
    link = check_link(Lineage.parse(data), manifest, keys, request.parent_root, any_of=logs)
    at = link.root.checkpoint
    claim["parent"] = {
        "origin": at.origin,
        "size": at.size,
        "root": at.root.hex(),
        "initial": link.parent.initial.kind,
        "inherited": len(link.inherited),
    }
    shown = f"{len(link.inherited)} tensors are those of {at.origin} after its last of {at.size - 1} segments"
    if request.parent_proof is None:
        warnings.append("the parent's signed root was not shown to be in a ledger")
    else:
        entry = check_entry(request.parent_proof, keys, at, link.parent, link.root.timestamp, any_of=logs)
        shown += f", in the ledger {entry.head.checkpoint.origin}" + _witnessed(link, entry, request.time.policy)
    warnings.append("the parent's own training is for a verdict of its own; polverify chain joins them")
    return link.inherited, shown + "; "


def _witnessed(link: Link, entry: Entered, policy: Policy | None) -> str:
    """Require the policy's quorum on the parent's ledger head, or on its root, as check 2 does of the run's own.

    Raises:
        SignatureError: no quorum, or a false cosignature of one of the policy's witnesses.
    """
    if policy is None or policy.quorum is None:
        return ""
    gather(link.root, Sources(policy), heads=[entry.head.note]).require()
    return ", which a quorum of witnesses has seen"
