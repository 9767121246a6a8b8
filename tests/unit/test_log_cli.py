"""`polstore log` and `polverify log` as users and scripts meet them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from polstore import keyfile
from polstore.cli.main import main as polstore_main
from polstore.prover import commit
from polstore.storage.store import open_store
from polstore.wire import merkle
from polstore.wire.checkpoint import Checkpoint, sign_root
from polstore.wire.ledger import LedgerLeaf, open_head, parse_consistency
from polstore.wire.tlog_proof import TlogProof
from polverify.cli import main as polverify_main

NAME = "example.com/alice"
MAINS = {"polstore": polstore_main, "polverify": polverify_main}


@pytest.fixture
def shell(capsys, monkeypatch, tmp_path):
    """A function that runs a command and returns (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(line):
        capsys.readouterr()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", line.split())
            with pytest.raises(SystemExit) as ended:
                MAINS[line.split()[0]]()
        return ended.value.code, *capsys.readouterr()

    return run


@pytest.fixture
def ok(shell):
    def run(line):
        code, out, err = shell(line)
        assert code == 0, (line, out, err)
        return out

    return run


@pytest.fixture
def keys(tmp_path, make_run, extend_run):
    """A store "st" with two runs and four entries, a second store "forked" by the same key, and the key's files."""
    key = keyfile.generate(NAME, tmp_path / "key")
    with open_store(tmp_path / "st", create=True) as store:
        writer = make_run(store, "r", 2, complete=False)
        make_run(store, "s", 2, seed=2)
        for end in (3, 4):
            commit(store, "r", key)
            extend_run(writer, end - 1, end)
        commit(store, "s", key)
        commit(store, "r", key)
    with open_store(tmp_path / "forked", create=True) as store:
        for seed, run in enumerate("rstuv"):
            make_run(store, run, 2, seed=seed + 5)
            commit(store, run, key)
    return key.verifier_keys()


def test_head(ok, keys):
    text = ok("polstore log head --store st")
    assert open_head(text.encode(), keys).checkpoint.size == 4
    assert ok("polstore log head --store st --out head") == ""
    assert Path("head").read_text() == text
    made = json.loads(ok("polstore log head --store st --size 2 --json"))
    checkpoint = open_head(made["head"].encode(), keys).checkpoint
    assert (made["origin"], made["size"], made["root"]) == (NAME, 2, checkpoint.root.hex())


def test_prove(ok, keys):
    with open_store("st") as store, store.read() as view:
        leaves = [LedgerLeaf.parse(view.ledger.leaf(index)) for index in range(4)]
    for words, index, size in (
        ("0", 0, 4),
        ("2", 2, 4),
        ("1 --size 3", 1, 3),
        ("--run s", 2, 4),
        ("--run r", 3, 4),
        ("--run r --leaves 4", 1, 4),
    ):
        text = ok(f"polstore log prove {words} --store st")
        proof = TlogProof.parse(text.encode())
        opened = proof.verify(leaves[index].leaf_hash(), keys)
        assert (proof.index, opened.checkpoint.size, proof.extra) == (index, size, None)
        made = json.loads(ok(f"polstore log prove {words} --store st --out p.tlog-proof --json"))
        assert Path("p.tlog-proof").read_text() == made["tlog_proof"] == text
        assert (made["index"], made["leaf"]["origin"]) == (index, leaves[index].origin)
        assert len(made["proof"]) == len(proof.proof)


def test_consistency(ok, keys):
    heads = {
        size: open_head(ok(f"polstore log head --store st --size {size}").encode(), keys).checkpoint
        for size in range(1, 5)
    }
    for old in range(1, 5):
        for new in range(old, 5):
            words = f"{old} {new}" if new < 4 else f"{old}"
            text = ok(f"polstore log consistency {words} --store st")
            proof = parse_consistency(text.encode())
            merkle.verify_consistency(old, heads[old].root, new, heads[new].root, proof)
            made = json.loads(ok(f"polstore log consistency {words} --store st --json"))
            assert made == {"old": old, "new": new, "proof": text.split()}


@pytest.mark.parametrize(
    ("line", "code", "says"),
    [
        ("polstore log prove --store st", 2, "what to prove"),
        ("polstore log prove 1 --run r --store st", 2, "what to prove"),
        ("polstore log prove 1 --leaves 3 --store st", 2, "what to prove"),
        ("polstore log prove 4 --store st", 4, "expected 0 to 3, got 4"),
        ("polstore log prove 3 --size 3 --store st", 2, "expected an index from 0 to 2, got 3"),
        ("polstore log prove 0 --size 5 --store st", 4, "no signed head of the ledger over 5 leaves"),
        ("polstore log prove 0 --size 0 --store st", 2, "expected 1 or more"),
        ("polstore log prove --run t --store st", 4, "no such run"),
        ("polstore log prove --run s --leaves 2 --store st", 4, "no signed root of that size"),
        ("polstore log head --size 9 --store st", 4, "no signed head"),
        ("polstore log head --store nothing", 4, "no store"),
        ("polstore log consistency 0 3 --store st", 2, "1 <= M <= N"),
        ("polstore log consistency 3 2 --store st", 2, "1 <= M <= N"),
        ("polstore log consistency 1 5 --store st", 4, "fewer leaves"),
        ("polverify log head --key key.pub --state seen --max-age -1", 2, "--max-age"),
        ("polverify log nothing --key key.pub --state seen", 4, "nothing"),
        ("polverify log head --key key.pub --state no/seen", 4, "no/.seen.lock"),
    ],
)
def test_faults_are_one_line(shell, ok, keys, line, code, says):
    ok("polstore log head --store st --out head")
    got, out, err = shell(line)
    assert (got, out, err.count("\n")) == (code, "", 1), (out, err)
    assert says in err, err


def test_an_empty_ledger_has_no_head(shell, make_run):
    with open_store("st", create=True) as store:
        make_run(store)
    for line in ("polstore log head --store st", "polstore log prove --run r --store st"):
        code, _, err = shell(line)
        assert code == 4
        assert "polstore commit" in err


def test_a_verifier_follows_the_log(shell, ok, keys):
    for size in (2, 4):
        ok(f"polstore log head --store st --size {size} --out head{size}")
    first = ok("polverify log head2 --key key.pub --state seen")
    assert first.startswith("ACCEPT: the first head seen, 2 leaves\n")
    assert "note: nothing was kept to compare this head with: it is trusted on first use" in first
    code, out, _ = shell("polverify log head4 --key key.pub --state seen")
    assert (code, out.splitlines()[0]) == (
        3,
        "INCONCLUSIVE: check 2 (ledger): no consistency proof from 2 to 4 leaves was given",
    )
    ok("polstore log consistency 2 4 --store st --out proof")
    assert ok("polverify log head4 --key key.pub --state seen --consistency proof").startswith("ACCEPT: 4 leaves")
    assert Path("seen").read_bytes() == Path("head4").read_bytes()
    verdict = json.loads(ok("polverify log head4 --key key.pub --state seen --json"))
    assert (verdict["decision"], verdict["claim"]["size"], verdict["warnings"]) == ("ACCEPT", 4, [])
    assert not Path("seen.evidence").exists()


def test_a_forked_log_is_rejected_and_kept_as_evidence(shell, ok, keys):
    ok("polstore log head --store st --out honest")
    ok("polstore log head --store forked --out larger")
    ok("polstore log head --store forked --size 4 --out same")
    ok("polstore log head --store forked --size 3 --out smaller")
    ok("polstore log consistency 4 5 --store forked --out proof")
    ok("polverify log honest --key key.pub --state seen")
    for line, says in (
        ("same", "split view"),
        ("smaller", "rollback"),
        ("larger --consistency proof", "not shown to extend"),
    ):
        code, out, err = shell(f"polverify log {line} --key key.pub --state seen")
        assert code == 1
        assert out.startswith("REJECT: check 2 (ledger): ")
        assert says in out
        assert "note: both notes are kept as evidence: seen.evidence/" in out
        assert err == ""
    assert Path("seen").read_bytes() == Path("honest").read_bytes()
    found = sorted(path.read_bytes() for path in Path("seen.evidence").iterdir())
    kept = Path("honest").read_bytes()
    others = [Path(name).read_bytes() for name in ("same", "smaller", "larger", "proof")]
    assert found == sorted([kept] * 3 + others)


def test_a_stale_head_is_rejected_when_asked(shell, ok, keys):
    ok("polstore log head --store st --out head")
    assert shell("polverify log head --key key.pub --state seen --max-age 3600")[0] == 0
    old = sign_root(Checkpoint(NAME, 4, merkle.EMPTY_ROOT), keyfile.load_signing_key("key"), 1_000_000)
    Path("old").write_bytes(old)
    code, out, _ = shell("polverify log old --key key.pub --state other --max-age 3600")
    assert code == 1
    assert "stale head" in out


def test_fsck_says_what_is_not_entered(shell, ok, keys):
    ok("polstore copy --from st --to copy")
    code, out, err = shell("polstore fsck --store copy")
    assert (code, out) == (0, "")
    assert err.count("not in the ledger, as it was copied or is older than that: example.com/alice/") == 4
    assert json.loads(ok("polstore fsck --store copy --json"))["ledger"] == 0
    report = json.loads(ok("polstore fsck --store st --json"))
    assert (report["ledger"], report["not_entered"], report["damages"]) == (4, [], [])
    assert json.loads(ok("polstore stats --store st --json"))["ledger"] == 4
