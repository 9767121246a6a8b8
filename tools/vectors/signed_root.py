"""Vectors of specs/signed-root.md: keys, notes, signed roots, and inclusion proof files."""

from __future__ import annotations

import base64
import hashlib

from polstore.errors import MalformedError, MerkleError, SignatureError
from polstore.wire import merkle, note
from polstore.wire.checkpoint import Checkpoint, open_root, run_origin, sign_root
from polstore.wire.keys import KeyKind, SigningKey, VerifierKey
from polstore.wire.note import Signature
from polstore.wire.tlog_proof import TlogProof
from tools.vectors.cases import Case, File, expect, file, invalid, valid

__all__ = ["KEY", "KEYS", "SIGNED", "run", "vectors"]

KEY = SigningKey("example.org/archive", bytes(range(32)))
OTHER = SigningKey("example.org/other", bytes(32))
KEYS = [key.line() for key in KEY.verifier_keys()]
TIME = 1_700_000_000  # 2023-11-14 22:13:20 UTC
LEAVES = [merkle.leaf_hash(b"leaf %d" % number) for number in range(5)]
CHECKPOINT = Checkpoint(run_origin(KEY.name, "mnist-1"), 5, merkle.root(LEAVES))
SIGNED = sign_root(CHECKPOINT, KEY, TIME)
TEXT = CHECKPOINT.text()
C2SP_KEY = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k"
C2SP_NOTE = (
    "This is an example message.\n\n\u2014 example.com/foo "
    "Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM=\n"
)


def vectors() -> File:
    """Return the whole file."""
    return file("signed_root", "specs/signed-root.md", [*_keys(), *_notes(), *_roots(), *_proofs()])


def run(case: Case) -> None:
    """Put one case through polstore."""
    if case["kind"] == "verifier_key":
        key = VerifierKey.parse(case["line"])
        parsed = (key.name, int(key.kind), key.public.hex(), key.line())
        expect("key", parsed, (case["name"], case["type"], case["public"], case["line"]))
        return
    if case["kind"] == "signing_key":
        signing = SigningKey(case["name"], bytes.fromhex(case["seed"]))
        expect("keys", [key.line() for key in signing.verifier_keys()], case["keys"])
        return
    keys = [VerifierKey.parse(line) for line in case["keys"]]
    data = bytes.fromhex(case["hex"]) if "hex" in case else case["text"].encode()
    match case["kind"]:
        case "note":
            parsed_note = note.parse(data)
            expect("encoding", parsed_note.encode(), data)
            signers = [[item.key.line(), item.timestamp] for item in note.verify(parsed_note, keys)]
            expect("signers", signers, case["signers"])
        case "signed_root":
            opened = open_root(data, keys)
            _expect_root(opened.checkpoint, case)
            expect("timestamp", opened.timestamp, case["timestamp"])
        case "tlog_proof":
            proof = TlogProof.parse(data)
            expect("encoding", proof.encode(), data)
            _expect_root(proof.verify(bytes.fromhex(case["leaf"]), keys).checkpoint, case)
            expect("index", proof.index, case["index"])
        case kind:
            raise AssertionError(f"unknown kind {kind}")


def _expect_root(checkpoint: Checkpoint, case: Case) -> None:
    got = (checkpoint.origin, checkpoint.size, checkpoint.root.hex())
    expect("checkpoint", got, (case["origin"], case["size"], case["root"]))


def _line(name: str, typed: bytes) -> str:
    key_id = hashlib.sha256(name.encode() + b"\n" + typed).hexdigest()[:8]
    return f"{name}+{key_id}+{base64.b64encode(typed).decode()}"


def _keys() -> list[Case]:
    def sound(name: str, comment: str, line: str) -> Case:
        key = VerifierKey.parse(line)
        fields: Case = {"name": key.name, "type": int(key.kind), "public": key.public.hex()}
        return valid(f"key_{name}", comment, kind="verifier_key", line=line, **fields)

    public = KEY.verifier_keys()[0].public
    prime = 2**255 - 19
    weak = {
        "neutral": (1).to_bytes(32, "little"),
        "order_2": (prime - 1).to_bytes(32, "little"),
        "order_4": bytes(32),
        "order_8_a": bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"),
        "order_8_b": bytes.fromhex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a"),
        "order_8_sign": bytes.fromhex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa"),
        "y_is_prime": prime.to_bytes(32, "little"),
        "y_above_prime": (prime + 3).to_bytes(32, "little"),
        "no_point": (2).to_bytes(32, "little"),
    }
    line = KEYS[0]
    faults = {
        "no_plus": ("one field", line.replace("+", "")),
        "key_id_upper": ("the key id in capitals", line.replace(*_upper(line))),
        "key_id_other": ("a key id of another key", line.replace(line.split("+")[1], KEYS[1].split("+")[1])),
        "name_other": ("the key id binds the name", line.replace("archive", "archiv")),
        "name_empty": ("no name", _line("", b"\x01" + public)),
        "name_space": ("a space in the name", _line("a b", b"\x01" + public)),
        "name_wide_space": ("a Unicode space in the name", _line("a\u2003b", b"\x01" + public)),
        "type_unknown": ("a type that is not known here", _line("n", b"\x06" + public)),
        "public_short": ("31 bytes", _line("n", b"\x01" + public[:31])),
        "base64_cut": ("a character is missing", line[:-1]),
        "newline": ("an end of line in the key", line + "\n"),
        **{f"weak_{name}": (f"weak public key: {name}", _line("n", b"\x01" + key)) for name, key in weak.items()},
    }
    return [
        sound("c2sp", "the vector of C2SP signed-note", C2SP_KEY),
        sound("ed25519", "type 01", KEYS[0]),
        sound("cosignature", "type 04", KEYS[1]),
        sound("unicode", "a name in another script", _line("ключ/архив", b"\x01" + public)),
        valid(
            "signing_key",
            "both verifier keys of a seed",
            kind="signing_key",
            name=KEY.name,
            seed=KEY.seed.hex(),
            keys=KEYS,
        ),
        *(
            invalid(f"key_{name}", comment, MalformedError, kind="verifier_key", line=line)
            for name, (comment, line) in faults.items()
        ),
    ]


def _upper(line: str) -> tuple[str, str]:
    key_id = line.split("+")[1]
    return key_id, key_id.upper()


def _note(*signatures: Signature, text: str = TEXT) -> str:
    return text + "\n" + "".join(item.line() for item in signatures)


def _notes() -> list[Case]:
    plain, timed = note.sign(TEXT, KEY), note.cosign(TEXT, KEY, TIME)
    unknown = Signature("unknown", b"abcd", b"x")
    impostor = Signature(KEY.name, b"abcd", plain.blob)
    short = Signature(KEY.name, plain.key_id, plain.blob[:63])
    late = Signature(KEY.name, timed.key_id, (TIME - 1).to_bytes(8, "big") + timed.blob[8:])
    zero_message = f"cosignature/v1\ntime 0\n{TEXT}".encode()
    zero = Signature(KEY.name, timed.key_id, bytes(8) + KEY.private_key(KeyKind.COSIGNATURE).sign(zero_message))
    gaps = "\nfirst\n\n\u2014 no signature\n\nlast\n"
    sound: list[tuple[str, str, str, list[str], list[tuple[str, int | None]]]] = [
        ("c2sp", "the vector of C2SP signed-note", C2SP_NOTE, [C2SP_KEY], [(C2SP_KEY, None)]),
        ("both", "a signature and a cosignature", _note(plain, timed), KEYS, [(KEYS[0], None), (KEYS[1], TIME)]),
        ("unknown", "unknown keys are ignored", _note(unknown, impostor, plain), KEYS, [(KEYS[0], None)]),
        ("gaps", "empty lines in the text", _note(note.sign(gaps, KEY), text=gaps), KEYS, [(KEYS[0], None)]),
        ("signatures_100", "as many as allowed", _note(*[unknown] * 99, plain), KEYS, [(KEYS[0], None)]),
    ]
    refused = {
        "no_known_key": ("another key has signed", _note(note.sign(TEXT, OTHER))),
        "false": ("the signature of another text", _note(note.sign("another text\n", KEY))),
        "false_beside_sound": ("a known key that fails rejects the whole note", _note(plain, late)),
        "signature_short": ("63 bytes", _note(short)),
        "name_moved": ("a known key id under another name", _note(Signature("elsewhere", plain.key_id, plain.blob))),
        "timestamp_changed": ("the timestamp is signed", _note(late)),
        "timestamp_zero": ("no time at all", _note(zero)),
        "cosignature_as_signature": ("types do not mix", _note(Signature(KEY.name, plain.key_id, timed.blob[8:]))),
        "signed_twice": ("two cosignatures of one key", _note(timed, note.cosign(TEXT, KEY, TIME + 1))),
    }
    good = _note(plain)
    encoded = good.split(" ")[-1].strip()
    malformed = {
        "crlf": ("ends of line of another system", good.replace("\n", "\r\n")),
        "tab": ("a control character", good.replace("mnist", "mn\tist")),
        "no_final_newline": ("the last line has no end", good[:-1]),
        "junk_after": ("a line that is no signature", good + "junk\n"),
        "junk_before": ("a line that is no signature", good.replace("\n\n", "\n\njunk\n")),
        "empty_line_after": ("an empty line at the end", good + "\n"),
        "no_gap": ("no empty line", good.replace("\n\n", "\n")),
        "no_signature": ("an empty line and nothing after it", TEXT + "\n"),
        "hyphen": ("a hyphen for the em dash", good.replace("\u2014", "-")),
        "two_spaces": ("two spaces before the signature", good.replace(" " + encoded, "  " + encoded)),
        "name_plus": ("a plus in a key name", _note(plain, Signature("a+b", b"abcd", b"x"))),
        "base64_unpadded": ("padding left out", good.replace("=", "")),
        "base64_stray_bits": (
            "bits that belong to no byte",
            _note(unknown).replace("eA==", "eB==").replace("YWJjZHg=", "YWJjZHh="),
        ),
        "base64_url": (
            "the alphabet of URLs",
            _note(Signature("a", b"\xfb\xff\xbf\xff", b"x")).replace("+", "-").replace("/", "_"),
        ),
        "signature_empty": ("a key id and no signature", _note(Signature("a", b"abcd", b""))),
        "signatures_101": ("one more than allowed", _note(*[unknown] * 100, plain)),
    }
    return [
        *(
            valid(f"note_{name}", comment, kind="note", text=text, keys=keys, signers=[list(item) for item in signers])
            for name, comment, text, keys, signers in sound
        ),
        *(
            invalid(f"note_{name}", comment, SignatureError, kind="note", text=text, keys=KEYS)
            for name, (comment, text) in refused.items()
        ),
        *(
            invalid(f"note_{name}", comment, MalformedError, kind="note", text=text, keys=KEYS)
            for name, (comment, text) in malformed.items()
        ),
        invalid(
            "note_not_utf8",
            "a byte that is no UTF-8",
            MalformedError,
            kind="note",
            hex=good.encode().replace(b"mnist", b"mn\xffst").hex(),
            keys=KEYS,
        ),
    ]


def _both(text: str, key: SigningKey = KEY) -> str:
    return _note(note.sign(text, key), note.cosign(text, key, TIME), text=text)


def _roots() -> list[Case]:
    def sound(name: str, comment: str, text: str, keys: list[str], checkpoint: Checkpoint = CHECKPOINT) -> Case:
        fields = {"origin": checkpoint.origin, "size": checkpoint.size, "root": checkpoint.root.hex()}
        time = TIME if KEYS[1] in keys else None
        return valid(f"root_{name}", comment, kind="signed_root", text=text, keys=keys, timestamp=time, **fields)

    origin, size, root = TEXT.splitlines()
    empty = Checkpoint(KEY.name, 0, merkle.EMPTY_ROOT)
    extended = Checkpoint(origin, 5, CHECKPOINT.root, ("an extension line",))
    texts = {
        "size_underscore": ("a size that lenient parsers take", f"{origin}\n+070_000\n{root}\n"),
        "size_zero_padded": ("a leading zero", f"{origin}\n05\n{root}\n"),
        "size_plus": ("a sign", f"{origin}\n+5\n{root}\n"),
        "size_huge": ("2**48", f"{origin}\n{2**48}\n{root}\n"),
        "size_zero": ("the root of a tree that is not empty", f"{origin}\n0\n{root}\n"),
        "root_short": ("31 bytes", f"{origin}\n5\n{base64.b64encode(CHECKPOINT.root[:31]).decode()}\n"),
        "root_unpadded": ("padding left out", f"{origin}\n5\n{root.rstrip('=')}\n"),
        "root_missing": ("two lines", f"{origin}\n5\n"),
        "origin_empty": ("no origin", f"\n5\n{root}\n"),
        "extension_empty": ("an empty extension line", f"{origin}\n5\n{root}\n\n"),
    }
    signed = SIGNED.decode()
    plain, timed = note.parse(SIGNED).signatures
    foreign = f"{KEY.name}d/mnist-1\n{size}\n{root}\n"
    refused = {
        "no_cosignature": ("a given key has not signed", _note(plain)),
        "no_signature": ("a given key has not signed", _note(timed)),
        "origin_foreign": ("an origin under another name", _both(foreign)),
        "size_changed": ("the size is signed", signed.replace("\n5\n", "\n4\n")),
        "origin_changed": ("the run's name is signed", signed.replace("mnist-1", "mnist-2")),
        "signer_other": ("another key of the same name", _both(TEXT, SigningKey(KEY.name, bytes(32)))),
    }
    return [
        sound("run", "a run's root, with both keys", signed, KEYS),
        sound("without_time", "a verifier who does not ask for the time", signed, KEYS[:1]),
        sound("empty_log", "a log that has no leaf yet", sign_root(empty, KEY, TIME).decode(), KEYS, empty),
        sound("extension", "an extension line", sign_root(extended, KEY, TIME).decode(), KEYS, extended),
        *(
            invalid(f"root_{name}", comment, MalformedError, kind="signed_root", text=_both(text), keys=KEYS)
            for name, (comment, text) in texts.items()
        ),
        *(
            invalid(f"root_{name}", comment, SignatureError, kind="signed_root", text=text, keys=KEYS)
            for name, (comment, text) in refused.items()
        ),
    ]


def _proofs() -> list[Case]:
    node = merkle.nodes_of(LEAVES)
    proof = TlogProof(2, merkle.inclusion_proof(2, 5, node), SIGNED)
    extra = TlogProof(2, proof.proof, SIGNED, b"not authenticated")
    text = proof.encode().decode()
    lines = text.split("\n")
    swapped = "\n".join([*lines[:2], lines[3], lines[2], *lines[4:]])
    fields = {"kind": "tlog_proof", "keys": KEYS, "leaf": LEAVES[2].hex()}
    root = {"origin": CHECKPOINT.origin, "size": 5, "root": CHECKPOINT.root.hex(), "index": 2}
    malformed = {
        "version": ("another version", text.replace("@v1", "@v2")),
        "index_missing": ("no index", text.replace("index 2\n", "")),
        "index_zero_padded": ("a leading zero", text.replace("index 2", "index 02")),
        "extra_late": ("extra data after the index", text.replace("index 2", "index 2\nextra QQ==")),
        "hash_short": ("a hash of 1 byte", text.replace(lines[2], "QQ==")),
        "no_note": ("no signed root", text.split("\n\n")[0] + "\n\n"),
    }
    return [
        valid("proof", "a leaf and its signed root", text=text, **fields, **root),
        valid("proof_extra", "with extra data", text=extra.encode().decode(), **fields, **root),
        *(
            invalid(f"proof_{name}", comment, MalformedError, text=changed, **fields)
            for name, (comment, changed) in malformed.items()
        ),
        invalid("proof_index", "the neighbour's index", MerkleError, text=text.replace("index 2", "index 3"), **fields),
        invalid("proof_index_is_size", "no such leaf", MerkleError, text=text.replace("index 2", "index 5"), **fields),
        invalid("proof_swapped", "two hashes change places", MerkleError, text=swapped, **fields),
        invalid("proof_leaf", "another leaf", MerkleError, text=text, **fields | {"leaf": LEAVES[3].hex()}),
        invalid(
            "proof_root_changed", "the root is signed", SignatureError, text=text.replace("\n5\n", "\n4\n"), **fields
        ),
    ]
