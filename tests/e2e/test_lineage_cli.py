"""A run, a run that starts from it, and the chain of both, by command line."""

import json
from dataclasses import replace
from pathlib import Path

import command_line
import pytest
import torch

from polstore import keyfile
from polstore.wire.keys import KeyKind
from polstore.wire.lineage import Lineage
from polstore.wire.note import Note, cosign
from polstore.wire.note import parse as parse_note
from polstore.wire.tlog_proof import TlogProof


@pytest.fixture
def shell(capsys, monkeypatch, tmp_path):
    threads = torch.get_num_threads()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.py").write_text(command_line.RECIPE)
    yield command_line.Shell(capsys, monkeypatch)
    torch.set_num_threads(threads)


def recorded(shell, store, run, *more):
    shell.ok(*("polstore", "record", "recipe.py", "--store", store, "--run", run, "--every", 4, "--steps", 10, *more))
    shell.ok("polstore", "commit", "--store", store, "--run", run, "--key", "key", "--out", f"{run}.root")
    challenge = ("polverify", "challenge", f"{run}.root", "--key", "key.pub", "--random", 1)
    shell.ok(*challenge, "--out", f"{run}.challenge")
    shell.ok(*("polstore", "prove", "--store", store, "--run", run, "--challenge", f"{run}.challenge"), "--out", run)


def checked(shell, run, *more):
    words = ("polverify", "check", f"{run}.root", "--key", "key.pub", "--bundle", run, "--recipe", "recipe.py")
    code, out, _ = shell(*words, "--challenge", f"{run}.challenge", "--json", *more)
    Path(f"{run}.json").write_text(out)
    return code, json.loads(out)


def test_a_chain_by_command_line(shell):
    shell.ok("polstore", "keygen", "--name", "example.com/alice", "--out", "key")
    recorded(shell, "st", "base", "--seed", 1)
    recorded(shell, "other", "tuned", "--seed", 2, "--parent", "st:base", "--parent-root", "base.root")
    assert checked(shell, "base")[0] == 0
    code, verdict = checked(shell, "tuned")
    assert (code, verdict["decision"]) == (3, "INCONCLUSIVE")
    prove = ("polstore", "lineage", "--store", "other", "--out", "tuned.lineage")
    code, _, err = shell(*prove)
    assert code == 4
    assert "no run base" in err
    made = json.loads(shell.ok(*prove, "--parent", "st", "--json"))
    assert (made["parent"], made["inherited"], made["tensors"]) == ("example.com/alice/base", 9, 9)
    lineage = ("--lineage", "tuned.lineage")
    code, verdict = checked(shell, "tuned", *lineage, "--parent-root", "base.root", "--parent-key", "key.pub")
    assert code == 0, verdict["reason"]
    assert verdict["claim"]["parent"]["origin"] == "example.com/alice/base"
    assert (
        shell("polverify", "check", "x", "--key", "x", "--bundle", "x", "--recipe", "x", "--parent-root", "x")[0] == 2
    )

    chain = ("polverify", "chain", "tuned.lineage", "--key", "key.pub")
    code, out, _ = shell(*chain)
    assert code == 3
    assert "no verdict on example.com/alice/tuned" in out
    out = shell.ok(*chain, "--verdict", "tuned.json", "--verdict", "base.json")
    assert out.startswith("ACCEPT: 1 links hold, and 2 runs were accepted, back to example.com/alice/base")
    report = json.loads(shell.ok(*chain, "--verdict", "tuned.json", "--verdict", "base.json", "--json"))
    assert [run["initial"] for run in report["runs"]] == ["parent", "seed"]
    Path("broken").write_text("{}")
    assert shell(*chain, "--verdict", "broken")[0] == 4
    assert shell("polverify", "chain", "base.root", "--key", "key.pub")[0] == 1
    assert shell(*chain, "--confidence", "1.5")[0] == 2


@pytest.fixture
def family(shell):
    """A run and its child in two stores, and the proof of their link."""
    shell.ok("polstore", "keygen", "--name", "example.com/alice", "--out", "key")
    recorded(shell, "st", "base", "--seed", 1)
    recorded(shell, "other", "tuned", "--seed", 2, "--parent", "st:base")
    shell.ok("polstore", "lineage", "--store", "other", "--parent", "st", "--out", "tuned.lineage")


def test_a_child_is_checked_against_a_static_archive(family, shell):
    shell.ok("polstore", "publish", "www", "--store", "other")
    words = ("polverify", "check", "tuned.root", "--key", "key.pub", "--bundle", "www", "--recipe", "recipe.py")
    verdict = json.loads(shell.ok(*words, "--segment", 2, "--lineage", "tuned.lineage", "--json"))
    assert verdict["checks"][5]["detail"].startswith("9 tensors are those of example.com/alice/base")
    code, out, _ = shell(*words, "--segment", 2)
    assert (code, out.splitlines()[0]) == (
        3,
        "INCONCLUSIVE: check 5 (initial state): declared as parent, and no lineage was given",
    )
    shell.ok(*words, "--challenge", "tuned.challenge", "--lineage", "tuned.lineage")


def test_a_child_s_records_and_snapshots_are_shown(family, shell):
    challenge = ("polverify", "challenge", "tuned.root", "--key", "key.pub", "--out", "tuned.challenge")
    for kind in ("--records", "--audit"):
        shell.ok("polstore", "prove", "--store", "other", kind, "--out", "shown")
        shell.ok(*challenge, "--records", "shown", "--odd", 1, "--top", 1, "--random", 0)
        Path("tuned").unlink()
        Path("shown").rename("tuned")
        code, verdict = checked(shell, "tuned", "--lineage", "tuned.lineage")
        assert (code, verdict["reason"][:7]) == (1, "check 7")  # all that was asked for is not opened yet
    answer = ("polstore", "prove", "--store", "other", "--challenge", "tuned.challenge", "--audit", "--out", "tuned")
    shell.ok(*answer)
    code, verdict = checked(shell, "tuned", "--lineage", "tuned.lineage", "--audit", "full")
    assert code == 0, verdict["reason"]


def test_a_parent_in_the_ledger_and_under_a_policy(family, shell):
    shell.ok("polstore", "log", "prove", "--store", "st", "--run", "base", "--out", "base.tlog-proof")
    shell.ok("polstore", "log", "prove", "--store", "other", "--run", "tuned", "--out", "tuned.tlog-proof")
    log = Path("key.pub").read_text().splitlines()[0]
    Path("policy").write_text(f"log {log}\nquorum none\n")
    words = ("polverify", "check", "tuned.root", "--policy", "policy", "--bundle", "tuned", "--recipe", "recipe.py")
    words += ("--lineage", "tuned.lineage", "--json", "--parent-proof")
    for more in ((), ("--parent-key", "key.pub")):
        verdict = json.loads(shell.ok(*words, "base.tlog-proof", *more))
        assert "in the ledger example.com/alice;" in verdict["checks"][5]["detail"]
    code, out, _ = shell(*words, "tuned.tlog-proof")
    assert (code, json.loads(out)["reason"][:7]) == (1, "check 5")
    shell.ok("polstore", "keygen", "--name", "example.com/alice", "--out", "eve")
    assert shell(*words, "base.tlog-proof", "--parent-key", "eve.pub")[0] == 1
    shell.fails(2, *words, "base.tlog-proof", "--parent-name", "x", says="--parent-key with it")

    chain = ("polverify", "chain", "tuned.lineage")
    assert shell(*chain, "--policy", "policy")[0] == 3  # the links hold, and no verdicts were given
    shell.fails(2, *chain, says="whose signature?")
    eve = Path("eve.pub").read_text().splitlines()[0]
    Path("policy").write_text(f"log {eve}\nquorum none\n")
    assert shell(*chain, "--policy", "policy")[0] == 1


def cosigned(note, witness, text=None):
    """A note with a witness's cosignature, of its own text or another one."""
    note = parse_note(note)
    return Note(note.text, (*note.signatures, cosign(text or note.text, witness, 1_800_000_000))).encode()


def test_witnesses_of_a_policy_have_to_have_seen_the_parent_s_ledger_or_root(family, shell):
    witness = keyfile.generate("example.net/witness", Path("witness"))
    log = Path("key.pub").read_text().splitlines()[0]
    seen = next(key.line() for key in witness.verifier_keys() if key.kind is KeyKind.COSIGNATURE)
    Path("policy").write_text(f"log {log}\nwitness w {seen}\nquorum w\n")
    Path("seen.root").write_bytes(cosigned(Path("tuned.root").read_bytes(), witness))
    shell.ok("polstore", "log", "prove", "--store", "st", "--run", "base", "--out", "base.tlog-proof")
    words = ("polverify", "check", "seen.root", "--policy", "policy", "--bundle", "tuned", "--recipe", "recipe.py")
    words += ("--lineage", "tuned.lineage", "--json")

    def decided(*more):
        code, out, _ = shell(*words, *more)
        verdict = json.loads(out)
        return code, verdict["checks"][5]["detail"]

    code, detail = decided("--parent-proof", "base.tlog-proof")
    assert code == 1
    assert detail.startswith("quorum of witnesses: expected w, got cosigned by nobody")
    proof = TlogProof.parse(Path("base.tlog-proof").read_bytes())
    head = cosigned(proof.signed_root, witness)
    Path("seen.tlog-proof").write_bytes(replace(proof, signed_root=head).encode())
    code, detail = decided("--parent-proof", "seen.tlog-proof")
    assert code == 0, detail
    assert ", in the ledger example.com/alice, which a quorum of witnesses has seen; " in detail
    # A cosignature on the parent's signed root itself will do, and a false one never does.
    lineage = Lineage.parse(Path("tuned.lineage").read_bytes())
    root = replace(lineage, parent_root=cosigned(lineage.parent_root, witness))
    Path("tuned.lineage").write_bytes(root.encode())
    assert decided("--parent-proof", "base.tlog-proof")[0] == 0
    Path("tuned.lineage").write_bytes(lineage.encode())
    Path("false.tlog-proof").write_bytes(
        replace(proof, signed_root=cosigned(proof.signed_root, witness, "another\n1\ntext\n")).encode()
    )
    code, detail = decided("--parent-proof", "false.tlog-proof")
    assert (code, detail) == (1, f"the signature of {seen} is false")
    code, detail = decided()  # nothing of the parent's ledger was given, and so nothing was asked of it
    assert code == 0, detail


def test_what_lineages_and_inclusion_proofs_claim(family, shell):
    shell.ok("polstore", "log", "prove", "--store", "st", "--run", "base", "--out", "base.tlog-proof")
    shown = json.loads(shell.ok("polverify", "show", "tuned.lineage", "--json"))
    assert (shown["kind"], shown["origin"], shown["inherited"]) == ("lineage", "example.com/alice/tuned", 9)
    assert (shown["parent"]["origin"], shown["verified"]) == ("example.com/alice/base", False)
    shown = json.loads(shell.ok("polverify", "show", "base.tlog-proof", "--json"))
    assert (shown["kind"], shown["origin"], shown["leaf"]) == ("inclusion proof", "example.com/alice", 0)
    for name in ("tuned.lineage", "base.tlog-proof"):
        Path("cut").write_bytes(Path(name).read_bytes()[:-3])
        assert shell("polverify", "show", "cut")[0] == 1


def test_parents_that_cannot_be(shell):
    shell.ok("polstore", "keygen", "--name", "example.com/alice", "--out", "key")
    recorded(shell, "st", "base", "--seed", 1)
    record = ("polstore", "record", "recipe.py", "--store", "st", "--run", "r", "--every", 4, "--steps", 4)
    assert shell(*record, "--parent", "st:nobody")[0] == 4
    assert shell(*record, "--parent", "nowhere")[0] == 4
    assert shell(*record, "--parent-root", "base.root")[0] == 2
    shell.ok(*record)
    code, _, err = shell(*record[:6], "s", *record[7:], "--parent", "st:r")
    assert code == 4
    assert "no signed root" in err
    assert shell(*record[:6], "s", *record[7:], "--parent", "st")[0] == 2  # two runs in it, and none named
    assert shell("polstore", "lineage", "--store", "st", "--run", "base", "--out", "x")[0] == 2
