"""The witness protocol against a witness that is not ours: all its answers, and what its cosignature is worth."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
import real_witness
from small_ledger import KEY, SmallLedger

from polstore.errors import ServiceError, StaleError
from polstore.http import post
from polstore.wire import note as notes
from polstore.wire.checkpoint import open_root
from polstore.wire.keys import KeyKind, SigningKey, VerifierKey
from polstore.wire.policy import Policy, evidence
from polstore.wire.text import to_base64
from polstore.witness import submit, witness_head

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

pytestmark = pytest.mark.skipif(not real_witness.is_there(), reason=real_witness.MISSING)

STRANGER = SigningKey(KEY.name, bytes(reversed(range(32))))


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, VerifierKey]]:
    folder = tmp_path_factory.mktemp("witness")
    with real_witness.witness(folder, KEY.name, KEY.verifier_key(KeyKind.ED25519)) as found:
        yield found


@pytest.fixture(scope="module")
def grown(service: tuple[str, VerifierKey]) -> SmallLedger:
    """A ledger that the witness saw grow to 12 leaves."""
    url, key = service
    ledger = SmallLedger(1)
    for size in (1, 2, 5, 12):
        ledger.grow(size)
        began = int(time.time())
        (found,) = witness_head(ledger, url, [key]).found  # each time it has to be told the old size first, but once
        assert found.key == key
        assert found.timestamp is not None
        assert began <= found.timestamp <= time.time()
    return ledger


def raw(url: str, old: int, proof: Sequence[bytes], head: bytes) -> int:
    """Send what our own client would not."""
    body = "".join([f"old {old}\n", *(to_base64(item) + "\n" for item in proof), "\n"]).encode() + head
    return post(url + "/add-checkpoint", body, "text/plain", 2**16).status


def test_growth_is_cosigned_and_counts_in_a_quorum(service: tuple[str, VerifierKey], grown: SmallLedger) -> None:
    _, key = service
    opened = open_root(grown.head(), KEY.verifier_keys())
    assert len(opened.note.signatures) == 3
    other = SigningKey("witness.example/w2", bytes(32)).verifier_key(KeyKind.COSIGNATURE)
    for quorum, met in (("w1", True), ("w2", False), ("any", True), ("all", False)):
        text = f"witness w1 {key.line()}\nwitness w2 {other.line()}\n"
        text += f"quorum {quorum}\n" if quorum[0] == "w" else f"group g {quorum} w1 w2\nquorum g\n"
        found = evidence(opened.note, Policy.parse(text.encode()))
        assert [each.witness.name for each in found.cosigned] == ["w1"]
        assert found.quorum_met == met


def test_asking_again_keeps_the_earlier_cosignature(service: tuple[str, VerifierKey], grown: SmallLedger) -> None:
    url, key = service
    before = grown.head()
    assert witness_head(grown, url, [key], 12).head == before == grown.head()


def test_statuses(service: tuple[str, VerifierKey], grown: SmallLedger) -> None:
    url, _ = service
    longer, split = SmallLedger(20), SmallLedger(20, b"other")
    proof = longer.consistency_proof(12, 20)
    assert raw(url, 12, (), SmallLedger(8).head()) == 400, "rollback"
    assert raw(url, 5, longer.consistency_proof(5, 20), longer.head()) == 409, "stale"
    assert raw(url, 12, split.consistency_proof(12, 20), split.head()) == 422, "split view"
    assert raw(url, 12, proof, SmallLedger(20, key=STRANGER).head()) == 403, "signed by a stranger"
    broken = notes.parse(longer.head())
    false = notes.Signature(broken.signatures[0].name, broken.signatures[0].key_id, bytes(64))
    assert raw(url, 12, proof, notes.Note(broken.text, (false,)).encode()) == 403, "false signature"
    assert raw(url, 12, proof[:-1], longer.head()) == 422, "cut proof"
    assert raw(url, 12, proof, longer.head()[:-2]) == 400, "malformed"


def test_what_our_client_makes_of_them(service: tuple[str, VerifierKey], grown: SmallLedger) -> None:
    url, key = service
    longer, split = SmallLedger(20), SmallLedger(20, b"other")
    with pytest.raises(StaleError) as stale:
        submit(url, longer.head(), 5, longer.consistency_proof(5, 20), [key])
    assert stale.value.size == 12
    for ledger, message in (
        (SmallLedger(8), "rolled back"),
        (split, "422"),
        (SmallLedger(20, key=STRANGER), "403"),
    ):
        before = ledger.head()
        with pytest.raises(ServiceError, match=message):
            witness_head(ledger, url, [key])
        assert ledger.head() == before
    unknown = SmallLedger(20)
    moved = notes.parse(unknown.head())
    text = moved.text.replace("archive", "elsewhere")
    with pytest.raises(ServiceError, match="404"):
        submit(url, notes.Note(text, moved.signatures).encode(), 0, (), [key])


def test_a_cosignature_under_another_key_is_not_kept(service: tuple[str, VerifierKey], grown: SmallLedger) -> None:
    url, _ = service
    other = SigningKey(real_witness.NAME, bytes(32)).verifier_key(KeyKind.COSIGNATURE)
    before = grown.head()
    with pytest.raises(ServiceError, match="no signature of a known key"):
        witness_head(grown, url, [other], 12)
    assert grown.head() == before
