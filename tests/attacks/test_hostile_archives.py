"""A static archive is filled by whoever likes: what contradicts a hash is the proof's fault and rejects it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from polstore.errors import UsageError
from polstore.wire import canonical, merkle
from polstore.wire.archive_files import blob_name, decode_salts, encode_salts, snapshot_name
from polstore.wire.challenge import Challenge
from polstore.wire.checkpoint import Checkpoint, sign_root
from polstore.wire.manifest import Manifest
from polstore.wire.segment import SegmentRecord
from polstore.wire.tiles import ENTRIES, Tile, decode_entries, encode_entries
from polverify.remote import verify_archive
from polverify.verdict import Decision
from polverify.verify import Request
from tests.attacks import forge
from tests.attacks.served import ENTRY_TILE, KINDS, SIZE, Archive, ask, only, rejected, served
from tests.static_server import Handler, serving


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("change", ["bit", "cut", "longer", "empty", "page"])
def test_wrong_content_is_the_proof_s_fault(archive: Archive, kind: str, change: str) -> None:
    def answer(handler: Handler) -> bool:
        data = handler.file()
        changed = {
            "bit": bytes([data[0] ^ 1]) + data[1:],
            "cut": data[:-1],
            "longer": data + b"\0",
            "empty": b"",
            "page": b"<html><body>Not here. Try our new site!</body></html>",
        }
        return handler.answer(changed[change])

    rejected(served(archive, only(archive.names()[kind], answer)))


def test_nothing_more_is_fetched_after_what_contradicts_a_hash(archive: Archive) -> None:
    wrong = {"entries": ("run/run/dataset", "run/run/salts", "snapshot", "blob")}
    wrong |= {"hyperparameters": ("run/run/dataset", "run/run/salts", "snapshot"), "dataset": ("snapshot",)}
    for kind, later in wrong.items():
        name = archive.names()[kind]
        hook = only(name, lambda handler: handler.answer(handler.file()[::-1]))
        with serving(archive.directory, hook) as server:
            rejected(ask(archive, server.address))
            assert not [path for path in server.asked if any(f"/{part}" in path for part in later)], server.asked


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_in_place_of_another_of_its_kind(archive: Archive, kind: str) -> None:
    """Each is sound in itself, but not what was asked for."""
    records = [SegmentRecord.parse(leaf) for leaf in archive.leaves[1:]]
    manifest = Manifest.parse(archive.leaves[0])
    other = {
        "entries": encode_entries([*archive.leaves[:2], archive.leaves[3], archive.leaves[2], *archive.leaves[4:]]),
        "salts": (archive.directory / "run/run/salts/2").read_bytes(),
        "dataset": bytes(32 * 64),
        "snapshot": (archive.directory / snapshot_name(records[3].end_state)).read_bytes(),
        "steps": (archive.directory / blob_name(records[3].steps)).read_bytes(),
        "hyperparameters": (archive.directory / blob_name(records[3].steps)).read_bytes(),
        "frame": (archive.directory / blob_name(manifest.optimizer.hyperparameters)).read_bytes(),
    }
    rejected(served(archive, only(archive.names()[kind], lambda handler: handler.answer(other[kind]))))


def test_salts_that_are_not_the_committed_ones_fail_where_the_data_is_checked(archive: Archive) -> None:
    def answer(handler: Handler) -> bool:
        salts = decode_salts(handler.file())
        return handler.answer(encode_salts([(index, bytes(32)) for index, _ in salts]))

    verdict = served(archive, only("run/run/salts/1", answer))
    assert verdict.decision is Decision.REJECT
    assert verdict.reason.startswith("check 9 (data)"), verdict.reason


@pytest.mark.parametrize("run", ["..", ".", "../../etc", "a/b", "a%2fb", "a b", "-", "a?b", "a#b", "x" * 65, "a\\b"])
def test_a_run_s_name_leads_to_no_other_folder(archive: Archive, run: str) -> None:
    """The signer chose the name; it is part of every address."""
    root = sign_root(Checkpoint(f"{forge.KEY.name}/{run}", SIZE, bytes(32)), forge.KEY, 1)
    with serving(archive.directory) as server:
        verdict = ask(archive, server.address, root=root)
        assert verdict.decision is Decision.REJECT
        assert "name of a run" in verdict.reason
        assert server.asked == []
    verdict = ask(archive, str(archive.directory), root=root)
    assert "name of a run" in verdict.reason


def test_nothing_is_fetched_for_a_root_that_is_not_signed(archive: Archive) -> None:
    with serving(archive.directory) as server:
        verdict = ask(archive, server.address, keys=forge.OTHER_KEY.verifier_keys())
        assert verdict.decision is Decision.REJECT
        assert server.asked == []
        assert verdict.claim["bytes_fetched"] == 0


def test_a_challenge_for_another_root_fetches_nothing(archive: Archive) -> None:
    challenge = Challenge.draw(f"{forge.KEY.name}/run", SIZE, bytes(32), random=1, nonce=bytes(32))
    with serving(archive.directory) as server:
        verdict = ask(archive, server.address, challenge=challenge)
        assert "challenge is for another root" in verdict.reason
        assert server.asked == []


def test_a_root_over_more_leaves_than_a_bundle_holds(archive: Archive) -> None:
    root = sign_root(Checkpoint(f"{forge.KEY.name}/run", 2**40, bytes(32)), forge.KEY, 1)
    verdict = ask(archive, str(archive.directory), root=root)
    assert "leaves under the signed root" in verdict.reason


def test_a_snapshot_that_is_stored_against_itself(archive: Archive) -> None:
    """Its record fits its digest; the chain of bases just never ends."""
    name = snapshot_name(archive.record.end_state)
    fields = list(canonical.decode((archive.directory / name).read_bytes(), limit=1 << 20, what="record"))  # type: ignore[arg-type]
    fields[2] = archive.record.end_state  # stored against itself
    looped = canonical.encode(tuple(fields))
    verdict = served(archive, only(name, lambda handler: handler.answer(looped)))
    assert verdict.decision is Decision.REJECT, verdict.reason
    assert "stored against itself" in verdict.reason, verdict.reason


@pytest.mark.parametrize("size", [b"", b"12", b"-1\n", b"1_0\n", b"99999999999999999999999\n", b"NaN\n", None])
def test_what_the_archive_says_of_its_size_is_only_a_claim(archive: Archive, size: bytes | None) -> None:
    def answer(handler: Handler) -> bool:
        return handler.answer(b"", 404) if size is None else handler.answer(size)

    verdict = served(archive, only("run/run/size", answer))
    assert verdict.decision is Decision.ACCEPT, verdict.reason
    assert verdict.claim["bytes_in_archive"] is None


def test_a_forged_run_is_caught_from_an_archive_as_from_a_bundle(archive: Archive) -> None:
    """The leaves join up, are signed and served without fault; one state is not what the training gives."""
    changed = list(archive.leaves)
    changed[0], changed[1] = archive.leaves[0], archive.leaves[2]
    root = sign_root(
        Checkpoint(f"{forge.KEY.name}/run", SIZE, merkle.root([merkle.leaf_hash(leaf) for leaf in changed])),
        forge.KEY,
        forge.NOW,
    )
    hook = only(ENTRY_TILE, lambda handler: handler.answer(encode_entries(changed)))
    verdict = served(archive, hook, root=root)
    assert verdict.reason.startswith("check 6 (continuity)"), verdict.reason
    assert len(decode_entries(Tile(ENTRIES, 0, SIZE), encode_entries(changed))) == SIZE


@pytest.mark.parametrize("size", [1, 2**47, 2**48])
def test_a_manifest_that_claims_another_size_of_the_dataset(archive: Archive, size: int) -> None:
    """Sizes that no tile, or no proof, can be of are the proof's fault and nobody's crash."""
    manifest = Manifest.parse(archive.leaves[0])
    changed = [replace(manifest, dataset=replace(manifest.dataset, size=size)).encode(), *archive.leaves[1:]]
    root = merkle.root([merkle.leaf_hash(leaf) for leaf in changed])
    signed = sign_root(Checkpoint(f"{forge.KEY.name}/run", SIZE, root), forge.KEY, forge.NOW)

    def answer(handler: Handler) -> bool:
        if handler.path == f"/{ENTRY_TILE}":
            return handler.answer(encode_entries(changed))
        return "/dataset/" in handler.path and handler.answer(bytes(8192))

    rejected(served(archive, answer, root=signed))


def test_what_to_open_must_be_said_once(archive: Archive) -> None:
    challenge = Challenge.draw(f"{forge.KEY.name}/run", SIZE, bytes(32), random=1, nonce=bytes(32))
    request = Request(archive.root, forge.KEY.verifier_keys(), str(archive.directory), forge.RECIPE)
    with pytest.raises(UsageError, match="neither"):
        verify_archive(request)
    with pytest.raises(UsageError, match="both"):
        verify_archive(Request(*(archive.root, request.keys, request.bundle, request.recipe, challenge)), [1])
