"""Vectors of specs/time.md: policies, cosignatures held against them, a witness's request and answer, an imprint."""

from __future__ import annotations

import hashlib

from polstore.errors import MalformedError, PolstoreError, SignatureError
from polstore.wire import merkle, note, witness
from polstore.wire.checkpoint import Checkpoint, sign_root
from polstore.wire.keys import KeyKind, SigningKey, VerifierKey
from polstore.wire.note import Signature
from polstore.wire.policy import Policy, evidence
from tools.vectors.cases import Case, File, expect, file, invalid, valid
from tools.vectors.signed_root import KEY

__all__ = ["HEAD", "POLICY", "WITNESSED", "run", "vectors"]

WITNESSES = [SigningKey(f"witness.example/w{number}", bytes([number]) * 32) for number in (1, 2, 3)]
STRANGER = SigningKey("witness.example/w1", bytes([9]) * 32)
LEAVES = [merkle.leaf_hash(b"leaf %d" % number) for number in range(8)]
HEAD = sign_root(Checkpoint(KEY.name, 8, merkle.root(LEAVES)), KEY, 1_700_000_000)
TEXT = note.parse(HEAD).text
LOG_KEY, *W = [
    KEY.verifier_key(KeyKind.ED25519).line(),
    *(key.verifier_key(KeyKind.COSIGNATURE).line() for key in WITNESSES),
]
POLICY = f"""log {LOG_KEY}
witness one {W[0]}
witness two {W[1]} https://two.example/
witness three {W[2]}
group most 2 one two three
quorum most
"""
TIMES = (1_700_000_060, 1_700_000_040, 1_700_000_090)
COSIGNED = [note.cosign(TEXT, key, time) for key, time in zip(WITNESSES, TIMES, strict=True)]
WITNESSED = HEAD + "".join(line.line() for line in COSIGNED[:2]).encode()
NESTED = """witness a {0}
\twitness  b   {1}\t
# a comment

group any-of 1 a
group both all any-of b
quorum both
"""


def vectors() -> File:
    """Return the whole file."""
    return file("time", "specs/time.md", [*_policies(), *_evidence(), *_requests(), *_answers(), _imprint()])


def run(case: Case) -> None:
    """Put one case through polstore."""
    match case["kind"]:
        case "policy":
            policy = Policy.parse(bytes.fromhex(case["hex"]) if "hex" in case else case["policy"].encode())
            for cosigners, met in case["met"]:
                expect(f"quorum of {cosigners}", policy.met(cosigners), met)
        case "evidence":
            policy = Policy.parse(case["policy"].encode())
            found = evidence(note.parse(case["note"].encode()), policy)
            expect("cosigned", [[each.witness.name, each.timestamp] for each in found.cosigned], case["cosigned"])
            expect("missing", [each.name for each in found.missing], case["missing"])
            for name in ("quorum_met", "existed_by", "not_before"):
                expect(name, getattr(found, name), case[name])
        case "witness_request":
            proof = [bytes.fromhex(item) for item in case["proof"]]
            expect("body", witness.request(case["old"], proof, case["note"].encode()).decode(), case["body"])
        case "witness_answer":
            head = case["note"].encode()
            answer = witness.parse_signatures(note.parse(head).text, case["answer"].encode())
            keys = [VerifierKey.parse(line) for line in case["keys"]]
            expect("merged", witness.merge(head, answer, keys)[0].decode(), case["merged"])
        case "imprint":
            parsed = note.parse(case["note"].encode())
            expect("imprint", hashlib.sha256(parsed.text.encode()).hexdigest(), case["sha256"])
        case kind:
            raise AssertionError(f"unknown kind {kind}")


def _policies() -> list[Case]:
    a, b = (f"witness {name} {line}\n" for name, line in zip("ab", W, strict=False))
    pairs: list[object] = [[[], False], [["one"], False], [["one", "three"], True], [["one", "one"], False]]
    nested: list[object] = [[["a"], False], [["b"], False], [["a", "b"], True], [["any-of", "b"], False]]
    faults = {
        "empty": ("no quorum", ""),
        "cut": ("the last line has no end", "quorum none"),
        "carriage_return": ("a carriage return", "quorum none\r\n"),
        "second_quorum": ("two quorums", a + "quorum a\nquorum none\n"),
        "quorum_unknown": ("a quorum of nobody", a + "quorum b\n"),
        "quorum_first": ("a name used before its line", "quorum a\n" + a),
        "member_unknown": ("a member that is not defined", a + "group g any a b\nquorum g\n"),
        "member_twice": ("one witness counts twice", a + "group g 2 a a\nquorum g\n"),
        "member_of_two": ("one witness in two groups", a + b + "group g any a\ngroup h all a b\nquorum h\n"),
        "member_none": ("none is no member", a + "group g any none\nquorum g\n"),
        "threshold_0": ("a group that needs nobody", a + "group g 0 a\nquorum g\n"),
        "threshold_high": ("a group that needs more than it has", a + "group g 2 a\nquorum g\n"),
        "threshold_zeros": ("a number with another spelling", a + "group g 01 a\nquorum g\n"),
        "threshold_digits": ("digits of another script", a + "group g \u0661 a\nquorum g\n"),
        "name_none": ("none is taken", f"witness none {W[0]}\nquorum none\n"),
        "name_twice": ("a name twice", a + f"witness a {W[1]}\nquorum a\n"),
        "key_twice": ("one key under two names", a + f"witness b {W[0]}\nquorum a\n"),
        "log_twice": ("one log twice", f"log {LOG_KEY}\nlog {LOG_KEY}\nquorum none\n"),
        "log_type": ("a log with a cosignature key", f"log {W[0]}\nquorum none\n"),
        "witness_type": ("a witness with a log key", f"witness a {LOG_KEY}\nquorum a\n"),
        "word_unknown": ("an unknown word", "quorum none\nlogs\n"),
        "no_break_space": ("a space that separates nothing", f"witness\u00a0a {W[0]}\nquorum none\n"),
    }
    return [
        valid("policy", "the example", kind="policy", policy=POLICY, met=pairs),
        valid(
            "policy_nested", "tabs, comments, a group of a group", kind="policy", policy=NESTED.format(*W), met=nested
        ),
        valid("policy_none", "no quorum asked for", kind="policy", policy="quorum none\n", met=[[[], True]]),
        valid(
            "policy_octets",
            "names are octets, UTF-8 or not",
            kind="policy",
            hex=(b"witness \xff " + W[0].encode() + b"\nquorum \xff\n").hex(),
            met=[[[], False]],
        ),
        *(
            invalid(f"policy_{name}", comment, MalformedError, kind="policy", policy=text)
            for name, (comment, text) in faults.items()
        ),
    ]


def _with(*lines: Signature, head: bytes = HEAD) -> str:
    return head.decode() + "".join(line.line() for line in lines)


def _damaged(line: Signature) -> Signature:
    return Signature(line.name, line.key_id, line.blob[:-1] + bytes([line.blob[-1] ^ 1]))


def _evidence() -> list[Case]:
    def sound(name: str, comment: str, text: str, policy: str = POLICY) -> Case:
        found = evidence(note.parse(text.encode()), Policy.parse(policy.encode()))
        return valid(
            f"evidence_{name}",
            comment,
            kind="evidence",
            policy=policy,
            note=text,
            cosigned=[[each.witness.name, each.timestamp] for each in found.cosigned],
            missing=[each.name for each in found.missing],
            quorum_met=found.quorum_met,
            existed_by=found.existed_by,
            not_before=found.not_before,
        )

    redated = Signature(COSIGNED[0].name, COSIGNED[0].key_id, bytes(7) + b"\5" + COSIGNED[0].blob[8:])
    faults = {
        "false": ("a false cosignature", _with(_damaged(COSIGNED[0]))),
        "false_beside_quorum": ("a false one beside a quorum", _with(*COSIGNED[:2], _damaged(COSIGNED[2]))),
        "redated": ("the time changed", _with(redated)),
        "twice": ("one witness twice", _with(COSIGNED[0], note.cosign(TEXT, WITNESSES[0], 5))),
        "moved": ("a cosignature of another text", _with(note.cosign("other\n0\n", WITNESSES[0], 5))),
    }
    none = POLICY.replace("quorum most", "quorum none")
    return [
        sound("quorum", "the example", WITNESSED.decode()),
        sound("all", "three where two are asked for: bounds by the quorum", _with(*COSIGNED)),
        sound("one", "one where two are asked for", _with(COSIGNED[0])),
        sound("nobody", "the log's own signatures only", _with()),
        sound("stranger", "another key under a witness's name", _with(COSIGNED[0], note.cosign(TEXT, STRANGER, 5))),
        sound("wrong_type", "a witness's name over a plain signature", _with(note.sign(TEXT, WITNESSES[0]))),
        sound("quorum_none", "cosigned, and nobody asked for it: no bounds", _with(*COSIGNED), none),
        *(
            invalid(f"evidence_{name}", comment, SignatureError, kind="evidence", policy=POLICY, note=text)
            for name, (comment, text) in faults.items()
        ),
    ]


def _requests() -> list[Case]:
    def sound(name: str, comment: str, old: int) -> Case:
        nodes = merkle.nodes_of(LEAVES)
        proof = () if old in (0, len(LEAVES)) else merkle.consistency_proof(old, len(LEAVES), nodes)
        fields: Case = {"old": old, "proof": [item.hex() for item in proof], "note": HEAD.decode()}
        body = witness.request(old, proof, HEAD).decode()
        return valid(f"request_{name}", comment, kind="witness_request", **fields, body=body)

    return [
        sound("first", "nothing cosigned yet", 0),
        sound("growth", "five leaves were cosigned", 5),
        sound("again", "the same size again", 8),
    ]


def _answers() -> list[Case]:
    def case(name: str, comment: str, answer: str, **more: object) -> Case:
        fields: Case = {"note": HEAD.decode(), "answer": answer, "keys": [W[0]]} | more
        if "merged" in more:
            return valid(f"answer_{name}", comment, kind="witness_answer", **fields)
        error = fields.pop("error")
        assert isinstance(error, type)
        assert issubclass(error, PolstoreError)
        return invalid(f"answer_{name}", comment, error, kind="witness_answer", **fields)

    early, late = note.cosign(TEXT, WITNESSES[0], 1_600_000_000), COSIGNED[0]
    unknown = note.cosign(TEXT, WITNESSES[1], 5).line()
    return [
        case("one", "a cosignature is added", late.line(), merged=_with(late)),
        case("unknown", "a line of another key is dropped", unknown + late.line(), merged=_with(late)),
        case("earlier", "the earlier one stays", early.line(), note=_with(late), merged=_with(early)),
        case("later", "the earlier one stays", late.line(), note=_with(early), merged=_with(early)),
        case("none", "nothing at all", "", error=MalformedError),
        case("prose", "no signature line", "fine\n", error=MalformedError),
        case("empty_line", "an empty line would move the end of the text", "\n" + late.line(), error=MalformedError),
        case("text", "more text", "more\n\n" + late.line(), error=MalformedError),
        case("stranger", "no known key", unknown, error=SignatureError),
        case("false", "a false cosignature", _damaged(late).line(), error=SignatureError),
        case("twice", "the same key twice", early.line() + late.line(), error=SignatureError),
    ]


def _imprint() -> Case:
    digest = hashlib.sha256(TEXT.encode()).hexdigest()
    return valid(
        "imprint",
        "what a token is over: the text, whoever signs",
        kind="imprint",
        note=WITNESSED.decode(),
        sha256=digest,
    )
