"""A ledger that a real witness cosigns, exported as tiles, and what its cosignature is worth in a verdict."""

from __future__ import annotations

import json

import command_line
import pytest
import torch

from polstore.keyfile import load_verifier_keys
from polstore.wire import merkle
from polstore.wire import note as notes
from polstore.wire.checkpoint import parse_text
from polstore.wire.keys import KeyKind, SigningKey
from polstore.wire.tiles import decode_entries, decode_hashes, node_from_tiles, tile_of
from tests.interop import real_witness

pytestmark = pytest.mark.skipif(not real_witness.is_there(), reason=real_witness.MISSING)

NAME = "example.com/alice"


@pytest.fixture
def shell(capsys, monkeypatch):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield command_line.Shell(capsys, monkeypatch)
    torch.set_num_threads(threads)


def test_a_witnessed_head_counts_in_a_verdict(shell, tmp_path):
    recipe, store, root = tmp_path / "recipe.py", tmp_path / "st", tmp_path / "root"
    recipe.write_text(command_line.RECIPE)
    shell.ok("polstore", "keygen", "--name", NAME, "--out", tmp_path / "key")
    record = ("polstore", "record", recipe, "--store", store, "--run", "r", "--every", 2, "--seed", 1, "--resume")
    commit = ("polstore", "commit", "--store", store, "--key", tmp_path / "key", "--out", root)
    shell.ok(*record, "--steps", 2)
    shell.ok(*commit)
    (log,) = (key for key in load_verifier_keys(tmp_path / "key.pub") if key.kind is KeyKind.ED25519)
    with real_witness.witness(tmp_path, NAME, log) as (url, key):
        (tmp_path / "policy").write_text(f"log {log.line()}\nwitness w1 {key.line()}\nquorum w1\n")
        witness = ("polstore", "log", "witness", url, "--store", store, "--policy", tmp_path / "policy")
        assert json.loads(shell.ok(*witness, "--json"))["cosigned"][0]["witness"] == real_witness.NAME
        shell.ok(*record, "--steps", 6)
        shell.ok(*commit)
        shell.ok(*witness)  # which takes a consistency proof from the head before
        other = SigningKey(real_witness.NAME, bytes(32)).verifier_key(KeyKind.COSIGNATURE)
        (tmp_path / "other.pub").write_text(other.line() + "\n")
        shell.fails(4, *witness[:-2], "--witness-key", tmp_path / "other.pub", says="no signature of a known key")
        shell.fails(2, *witness[:-2], says="whose cosignature?")
    head = shell.ok("polstore", "log", "head", "--store", store)
    assert len(notes.parse(head.encode()).signatures) == 3
    shell.ok("polstore", "log", "prove", "--store", store, "--run", "r", "--out", tmp_path / "proof")
    shell.ok("polstore", "prove", "--store", store, "--segment", 1, "--out", tmp_path / "bundle")
    check = ("polverify", "check", root, "--bundle", tmp_path / "bundle", "--recipe", recipe, "--json")
    check += ("--policy", tmp_path / "policy")
    verdict = json.loads(shell.ok(*check, "--ledger", tmp_path / "proof"))
    assert [verdict["checks"][number]["outcome"] for number in (2, 3)] == ["passed", "passed"]
    (seen,) = [piece for piece in verdict["claim"]["time"] if piece["kind"] == "witnessed"]
    assert seen["on"] == "ledger head"
    assert seen["quorum_met"]
    code, out, _ = shell(*check)  # the root itself was not cosigned
    assert code == 1
    assert "check 2" in json.loads(out)["reason"]


def test_the_ledger_as_tiles(shell, tmp_path):
    recipe, store, tiles = tmp_path / "recipe.py", tmp_path / "st", tmp_path / "tiles"
    recipe.write_text(command_line.RECIPE)
    shell.ok("polstore", "keygen", "--name", NAME, "--out", tmp_path / "key")
    export = ("polstore", "log", "export-tiles", tiles, "--store", store, "--json")
    for steps in (1, 2, 3):
        record = ("polstore", "record", recipe, "--store", store, "--run", "r", "--every", 1, "--seed", 1, "--resume")
        shell.ok(*record, "--steps", steps)
        if steps == 1:
            shell.fails(4, *export)
        shell.ok("polstore", "commit", "--store", store, "--key", tmp_path / "key", "--out", tmp_path / "root")
        assert json.loads(shell.ok(*export))["size"] == steps
        head = parse_text(notes.parse((tiles / "checkpoint").read_bytes()).text)
        assert (head.origin, head.size) == (NAME, steps)
        node = node_from_tiles(steps, lambda tile: decode_hashes(tile, (tiles / tile.path()).read_bytes()))
        entries = decode_entries(tile := tile_of(-1, 0, steps), (tiles / tile.path()).read_bytes())
        assert merkle.root_from_nodes(steps, node) == head.root
        assert merkle.root([merkle.leaf_hash(entry) for entry in entries]) == head.root
