"""Policies: the C2SP example, every rule of the format, and quorums against a slow reference."""

from __future__ import annotations

import itertools

import pytest

from polstore.errors import MalformedError, SignatureError
from polstore.wire import note
from polstore.wire.checkpoint import Checkpoint
from polstore.wire.keys import KeyKind, SigningKey
from polstore.wire.policy import MAX_LINES, MAX_POLICY, Policy, evidence

LOG = SigningKey("example.org/log", bytes([1]) * 32)
WITNESSES = {name: SigningKey(f"witness.example/{name}", name.encode().ljust(32, b"\x01")) for name in "ABCDEF"}
TEXT = Checkpoint("example.org/log", 3, bytes(32)).text()
C2SP = """
# the example of the specification
log {log}

witness X1 {A}
witness X2 {B} https://x2.example/prefix
\twitness X3 {C}\t
group X-witnesses 2 X1 X2 X3
witness Y1 {D}
witness Y2 {E}
witness Y3 {F}
group Y-witnesses any Y1 Y2 Y3
group X-and-Y all X-witnesses Y-witnesses
quorum X-and-Y
"""
NAMES = dict(zip(("X1", "X2", "X3", "Y1", "Y2", "Y3"), "ABCDEF", strict=True))


def vkey(key: SigningKey, kind: KeyKind = KeyKind.COSIGNATURE) -> str:
    return key.verifier_key(kind).line()


def filled(text: str) -> bytes:
    return text.format(log=vkey(LOG, KeyKind.ED25519), **{n: vkey(key) for n, key in WITNESSES.items()}).encode()


def signed(**times: int) -> note.Note:
    cosignatures = [note.cosign(TEXT, WITNESSES[name], time) for name, time in times.items()]
    return note.Note(TEXT, (note.sign(TEXT, LOG), *cosignatures))


def test_the_example_of_the_specification() -> None:
    policy = Policy.parse(filled(C2SP))
    assert [log.key for log in policy.logs] == [LOG.verifier_key(KeyKind.ED25519)]
    assert [witness.url for witness in policy.witnesses][1] == "https://x2.example/prefix"
    for cosigners in itertools.chain.from_iterable(itertools.combinations(NAMES, n) for n in range(7)):
        x, y = (sum(name.startswith(letter) for name in cosigners) for letter in "XY")
        assert policy.met(cosigners) == (x >= 2 and y >= 1), cosigners
    assert not policy.met({"X-witnesses", "Y-witnesses", "X-and-Y"}), "groups do not cosign"


def test_evidence_names_who_and_when() -> None:
    policy = Policy.parse(filled(C2SP))
    found = evidence(signed(A=50, D=40, B=70, C=60), policy)
    assert [(each.witness.name, each.timestamp) for each in found.cosigned] == [
        ("Y1", 40), ("X1", 50), ("X3", 60), ("X2", 70),
    ]  # fmt: skip
    assert [witness.name for witness in found.missing] == ["Y2", "Y3"]
    # A quorum (Y1, X1, X3) had seen it at 60; taken from the end, the quorum X2, X3, Y1 is complete at 40.
    assert (found.quorum_met, found.existed_by, found.not_before) == (True, 60, 40)


def test_without_a_quorum_there_is_no_bound() -> None:
    policy = Policy.parse(filled(C2SP))
    for note_ in (signed(), signed(A=50, B=50, C=50), signed(A=50, D=50, E=50)):
        found = evidence(note_, policy)
        assert (found.quorum_met, found.existed_by, found.not_before) == (False, None, None)
        assert len(found.cosigned) == len(note_.signatures) - 1


def test_quorum_none_asks_for_nothing_and_bounds_nothing() -> None:
    policy = Policy.parse(filled("witness a {A}\nquorum none\n"))
    found = evidence(signed(A=50), policy)
    assert (found.quorum_met, found.existed_by, found.not_before) == (True, None, None)
    assert len(found.cosigned) == 1


def test_strangers_do_not_count_and_forgers_are_refused() -> None:
    policy = Policy.parse(filled("witness a {A}\nwitness b {B}\nquorum a\n"))
    assert not evidence(signed(B=50, C=50), policy).quorum_met
    sound = signed(A=50)
    forged = note.Signature(sound.signatures[1].name, sound.signatures[1].key_id, bytes(8) + bytes(64))
    for signatures in ((forged,), (*sound.signatures, sound.signatures[1])):
        with pytest.raises(SignatureError):
            evidence(note.Note(TEXT, signatures), policy)
    moved = Checkpoint("example.org/log", 4, bytes(32)).text()
    with pytest.raises(SignatureError):
        evidence(note.Note(moved, sound.signatures), policy)


def test_a_cosignature_by_the_wrong_kind_of_key_does_not_count() -> None:
    policy = Policy.parse(filled("witness a {A}\nquorum a\n"))
    plain = note.Note(TEXT, (note.sign(TEXT, WITNESSES["A"]),))
    assert not evidence(plain, policy).quorum_met


@pytest.mark.parametrize(
    "text",
    [
        "quorum none",
        "quorum none\n",
        "  quorum\tnone  \n\n# comment\n   # another\n",
        "log {log}\nquorum none\n",
        "log {log} https://example.org/\nquorum none\n",
        "witness any {A}\nwitness all {B}\ngroup g all any all\nquorum g\n",
        "witness a {A}\nquorum a\ngroup g 1 a\n",
    ],
)
def test_files_that_are_read(text: str) -> None:
    data = filled(text)
    if data.endswith(b"\n"):
        Policy.parse(data)
    else:
        with pytest.raises(MalformedError, match="may be cut"):
            Policy.parse(data)


def test_names_are_octets() -> None:
    data = filled("witness XX {A}\nwitness K {B}\nquorum XX\n")
    policy = Policy.parse(data.replace(b"XX", b"\xff\xfe"))
    assert policy.met({b"\xff\xfe".decode("utf-8", "surrogateescape")})
    assert policy.witnesses[0].name != policy.witnesses[1].name
    kelvin = Policy.parse(data.replace(b"XX", "\N{KELVIN SIGN}".encode()))
    assert not kelvin.met({"K"})
    # A space that only Unicode knows separates nothing.
    assert Policy.parse(data.replace(b"XX", "a\u00a0b".encode())).quorum == "a\u00a0b"


FAULTS = {
    "nothing": "",
    "no quorum": "witness a {A}\n",
    "two quorums": "witness a {A}\nquorum a\nquorum none\n",
    "unknown quorum": "quorum a\n",
    "quorum before its name": "quorum a\nwitness a {A}\n",
    "quorum with too much": "quorum none none\n",
    "unknown word": "quorum none\nwitnesses a {A}\n",
    "word in capitals": "Quorum none\n",
    "a group without members": "witness a {A}\ngroup g any\nquorum g\n",
    "a group of strangers": "witness a {A}\ngroup g any a b\nquorum g\n",
    "a group of itself": "witness a {A}\ngroup g any a g\nquorum g\n",
    "a group of none": "witness a {A}\ngroup g any a none\nquorum g\n",
    "a member twice": "witness a {A}\ngroup g 2 a a\nquorum g\n",
    "a member of two groups": "witness a {A}\ngroup g any a\ngroup h any a\nquorum h\n",
    "threshold 0": "witness a {A}\ngroup g 0 a\nquorum g\n",
    "threshold above n": "witness a {A}\ngroup g 2 a\nquorum g\n",
    "threshold with a zero": "witness a {A}\ngroup g 01 a\nquorum g\n",
    "threshold with a sign": "witness a {A}\ngroup g +1 a\nquorum g\n",
    "threshold in words": "witness a {A}\ngroup g one a\nquorum g\n",
    "name none": "witness none {A}\nquorum none\n",
    "name twice": "witness a {A}\nwitness a {B}\nquorum a\n",
    "group named as a witness": "witness a {A}\ngroup a any a\nquorum a\n",
    "witness key twice": "witness a {A}\nwitness b {A}\nquorum a\n",
    "log key twice": "log {log}\nlog {log}\nquorum none\n",
    "log with a cosignature key": "log {A}\nquorum none\n",
    "witness with a log key": "witness a {log}\nquorum none\n",
    "witness without a key": "witness a\nquorum none\n",
    "log with too much": "log {log} https://a https://b\nquorum none\n",
    "control character": "quorum none\n# \x0b\n",
    "carriage return": "quorum none\r\n",
    "delete": "# \x7f\nquorum none\n",
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults(name: str) -> None:
    with pytest.raises(MalformedError):
        Policy.parse(filled(FAULTS[name]))


def test_the_same_key_under_another_name_is_the_same_key() -> None:
    other = SigningKey("another.example", WITNESSES["A"].private_key(KeyKind.COSIGNATURE).private_bytes_raw())
    typed = bytes([4]) + WITNESSES["A"].verifier_key(KeyKind.COSIGNATURE).public
    assert other.verifier_key(KeyKind.ED25519).public == typed[1:]
    from polstore.wire.keys import VerifierKey

    line = VerifierKey("another.example", KeyKind.COSIGNATURE, typed[1:]).line()
    with pytest.raises(MalformedError, match="each key once"):
        Policy.parse(filled("witness a {A}\n") + f"witness b {line}\nquorum none\n".encode())


def test_caps() -> None:
    comment = b"#" * (MAX_POLICY - 14) + b"\nquorum none\n"
    Policy.parse(comment)
    with pytest.raises(MalformedError, match="too long"):
        Policy.parse(b"##" + comment)
    many = [vkey(SigningKey("w", number.to_bytes(32, "big"))) for number in range(MAX_LINES + 1)]
    lines = [f"witness {number} {line}\n" for number, line in enumerate(many)]
    assert len(Policy.parse("".join([*lines[:-1], "quorum 0\n"]).encode()).witnesses) == MAX_LINES
    with pytest.raises(MalformedError, match="lines of one kind"):
        Policy.parse("".join([*lines, "quorum 0\n"]).encode())
