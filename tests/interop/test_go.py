"""Go's own transparency log packages read what polstore writes, make the same proofs, and the other way round."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from polstore.static_files import StaticFiles
from polstore.tile_files import export_log
from polstore.wire import merkle, note
from polstore.wire.checkpoint import Checkpoint, open_root, sign_root
from polstore.wire.keys import KeyKind, SigningKey, VerifierKey
from polstore.wire.tiles import Tile

SOURCES = Path(__file__).resolve().parents[2] / "tools" / "interop"
GO_PACKAGES = Path("/usr/share/gocode")  # where Debian's golang-golang-x-mod-dev puts sumdb
ORIGIN = "example.com/log"
KEY = SigningKey(ORIGIN, bytes(range(32)))
NOW = 1_800_000_000
LARGEST = 70_000
# Around every power of 256, the powers of two between them, and a size that fills no tile.
SIZES = sorted(
    {
        1, 2, 3, 4, 5, 7, 8, 127, 128, 129, 254, 255, 256, 257, 258, 510, 511, 512, 513, 767, 768, 1_000, 4_095, 4_096,
        4_097, 32_768, 65_279, 65_280, 65_281, 65_534, 65_535, 65_536, 65_537, 65_791, 65_792, 65_793, 69_999, LARGEST,
    }
)  # fmt: skip


def text(data):
    return base64.b64encode(data).decode()


def texts(items):
    return [text(item) for item in items]


class Numbers:
    """A log whose leaf i is the number i in decimal, signed at one size."""

    def __init__(self, size):
        self.size = size
        self.hashes = [merkle.leaf_hash(self.leaf(index)) for index in range(size)]
        self.node = merkle.nodes_of(self.hashes)

    def leaf(self, index):
        return b"%d" % index

    def root(self, size):
        return merkle.root_from_nodes(size, self.node)

    def head(self):
        return sign_root(Checkpoint(ORIGIN, self.size, self.root(self.size)), KEY, NOW)


@pytest.fixture(scope="session")
def go(tmp_path_factory):
    """The compiled program, as a function from a request to its answer."""
    compiler = shutil.which("go")
    if compiler is None or not (GO_PACKAGES / "src/golang.org/x/mod/sumdb/tlog").is_dir():
        pytest.skip("needs Debian's packages golang-go and golang-golang-x-mod-dev")
    folder = tmp_path_factory.mktemp("go")
    program = folder / "interop"
    environment = os.environ | {
        "GO111MODULE": "off",
        "GOPATH": str(GO_PACKAGES),
        "GOCACHE": str(folder / "cache"),
        "GOFLAGS": "",
        "HOME": str(folder),
    }
    command = [compiler, "build", "-o", str(program), "."]
    built = subprocess.run(command, cwd=SOURCES, env=environment, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr

    def ask(**request):
        done = subprocess.run(
            [program], input=json.dumps(request), capture_output=True, text=True, check=False, timeout=120
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return ask


@pytest.fixture(scope="session")
def log():
    return Numbers(LARGEST)


@pytest.fixture(scope="session")
def exported(tmp_path_factory, log):
    """Our tiles at every size, as one growing archive has them."""
    files = StaticFiles(tmp_path_factory.mktemp("archive"))
    export_log(log, files, SIZES)
    return files.directory


def chosen(size):
    """Indices worth a proof: both ends and both sides of every border between tiles."""
    near = {0, 1, size // 2, size - 2, size - 1}
    near |= {border + step for border in (256, 512, 65_280, 65_536) for step in (-1, 0, 1)}
    return sorted(index for index in near if 0 <= index < size)


def tree_request(log, directory, size, root=None):
    return {
        "Directory": str(directory),
        "Size": size,
        "Root": text(log.root(size) if root is None else root),
        "Inclusion": [
            {
                "Index": index,
                "Leaf": text(log.leaf(index)),
                "Proof": texts(merkle.inclusion_proof(index, size, log.node)),
            }
            for index in chosen(size)
        ],
        "Consistency": [
            {"Size": old, "Root": text(log.root(old)), "Proof": texts(merkle.consistency_proof(old, size, log.node))}
            for old in sorted({index + 1 for index in chosen(size)})
        ],
    }


def test_go_reads_our_tiles_and_makes_the_same_proofs(go, log, exported):
    requests = [tree_request(log, exported, size) for size in SIZES]
    answers = go(Trees=requests)["Trees"]
    proofs = 0
    for size, request, answer in zip(SIZES, requests, answers, strict=True):
        assert answer["Error"] == "", size
        assert answer["Root"] == request["Root"], size
        assert [proof or [] for proof in answer["Inclusion"]] == [item["Proof"] for item in request["Inclusion"]]
        assert [proof or [] for proof in answer["Consistency"]] == [item["Proof"] for item in request["Consistency"]]
        proofs += len(answer["Inclusion"]) + len(answer["Consistency"])
    assert proofs > 500


def test_go_finds_our_entries_under_our_hashes(go, log, exported):
    sizes = [1, 255, 256, 257, LARGEST]
    requests = [{"Directory": str(exported), "Size": size, "Root": text(log.root(size))} for size in sizes]
    assert go(Entries=requests)["Entries"] == [""] * len(sizes)


@pytest.mark.parametrize("fault", ["root", "tile", "missing", "proof", "old root", "entry"])
def test_go_refuses_what_is_wrong(go, log, exported, tmp_path, fault):
    """The comparison above can fail."""
    size = 300
    kept = [Tile(-1, 0), Tile(-1, 1, 44), Tile(0, 0), Tile(0, 1, 44), Tile(1, 0, 1)]
    archive = tmp_path / "archive"
    export_log(Numbers(size), StaticFiles(archive))
    assert all((archive / tile.path()).exists() for tile in kept)
    request = tree_request(log, archive, size)
    sound = go(Trees=[request], Entries=[request])
    assert (sound["Trees"][0]["Error"], sound["Entries"]) == ("", [""])
    match fault:
        case "root":
            request["Root"] = text(log.root(301))
        case "tile":
            path = archive / kept[2].path()
            path.write_bytes(b"\xff" + path.read_bytes()[1:])
        case "missing":
            (archive / kept[3].path()).unlink()
        case "proof":
            request["Inclusion"][0]["Proof"][0] = text(bytes(32))
        case "old root":
            request["Consistency"][0]["Root"] = text(bytes(32))
        case "entry":
            path = archive / kept[0].path()
            path.write_bytes(path.read_bytes().replace(b"\x03255", b"\x03254"))
    if fault == "entry":
        assert "entry 255 has another hash" in go(Entries=[request])["Entries"][0]
    else:
        assert go(Trees=[request])["Trees"][0]["Error"] != ""


def test_go_opens_our_signed_heads(go, log, exported):
    signed = (exported / "checkpoint").read_bytes()
    keys = [key.line() for key in KEY.verifier_keys()]
    one, both, false, strange = go(
        Notes=[
            {"Note": text(signed), "Keys": keys[:1]},
            {"Note": text(signed), "Keys": keys},
            {"Note": text(signed.replace(b"\n70000\n", b"\n70001\n")), "Keys": keys},
            {"Note": text(signed), "Keys": [SigningKey(ORIGIN, bytes(32)).verifier_keys()[0].line()]},
        ]
    )["Notes"]
    ids = ["+".join(line.split("+")[:2]) for line in keys]
    assert (one["Error"], one["Signers"], one["Times"]) == ("", ids[:1], None)
    assert (both["Error"], both["Signers"], both["Times"]) == ("", ids, [NOW])
    assert both["Lines"] == [ORIGIN, str(LARGEST), text(log.root(LARGEST))]
    assert "invalid signature" in false["Error"]
    assert "no verifiable signatures" in strange["Error"]


def test_ours_open_what_go_signs(go, log):
    checkpoint = Checkpoint(ORIGIN, LARGEST, log.root(LARGEST))
    request = {
        "Text": checkpoint.text(),
        "Name": ORIGIN,
        "Seed": text(bytes([1]) * 32),
        "CosignSeed": text(bytes([2]) * 32),
        "CosignatureAt": NOW,
    }
    (answer,) = go(Sign=[request])["Sign"]
    assert answer["Error"] == ""
    signed = base64.b64decode(answer["Note"])
    keys = [VerifierKey.parse(line) for line in answer["Keys"]]
    assert keys[0] == SigningKey(ORIGIN, bytes([1]) * 32).verifier_keys()[0]
    opened = open_root(signed, keys)
    assert (opened.checkpoint, opened.timestamp) == (checkpoint, NOW)
    assert note.parse(signed).encode() == signed


def test_both_sign_the_same_bytes(go, log):
    ours = note.parse(Numbers(5).head())
    seeds = [key.private_bytes_raw() for key in map(KEY.private_key, KeyKind)]
    request = {"Text": ours.text, "Name": ORIGIN, "CosignatureAt": NOW}
    request |= {"Seed": text(seeds[0]), "CosignSeed": text(seeds[1])}
    (answer,) = go(Sign=[request])["Sign"]
    assert base64.b64decode(answer["Note"]) == ours.encode()
