"""A run, a run that starts from it, and the chain of both, by command line."""

import json
from pathlib import Path

import command_line
import pytest
import torch


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
    challenge = ("polverify", "challenge", f"{run}.root", "--key", "key.pub", "--segments", 2, "--random", 1)
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
