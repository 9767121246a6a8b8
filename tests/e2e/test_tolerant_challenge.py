"""A drawn challenge and a tolerance together: the whole way by command line, for a run of another environment class."""

import json
from dataclasses import dataclass

import pytest
import torch
from command_line import Shell

from polstore.wire.challenge import Challenge
from tests.attacks import forge
from tests.attacks.elsewhere import RECIPE, Elsewhere

SEGMENTS, DRAWN = 5, 2


@dataclass
class Liar(Elsewhere):
    """Moves the weights at the end of one segment by far more than any rounding."""

    jump: int | None = None

    def end(self, index):
        if index == self.jump:
            with torch.no_grad():
                for parameter in self.training.model.parameters():
                    parameter += 0.1


def trained(jump=None):
    return Liar(config={"kind": "conv"}, fidelity="lossless", steps=SEGMENTS, every=1, jump=jump)


@pytest.fixture
def shell(capsys, monkeypatch):
    threads, onednn = torch.get_num_threads(), torch.backends.mkldnn.enabled
    torch.set_num_threads(1)
    yield Shell(capsys, monkeypatch)
    torch.set_num_threads(threads)
    torch.backends.mkldnn.set_flags(onednn)


@pytest.fixture
def asked(shell, tmp_path):
    """Sign a run, draw a challenge for it, and return the words of the check with the segments that were chosen."""

    def made(jump=None, nonce="5a" * 32):
        (tmp_path / "root").write_bytes(trained(jump).run(()).root)
        (tmp_path / "key.pub").write_text("".join(f"{key.line()}\n" for key in forge.KEY.verifier_keys()))
        (tmp_path / "recipe.py").write_bytes(RECIPE.source)
        challenge, key = tmp_path / "challenge", ("--key", tmp_path / "key.pub")
        words = ("--random", DRAWN, "--nonce", nonce, "--out", challenge)
        shell.ok("polverify", "challenge", tmp_path / "root", *key, *words)
        chosen = Challenge.parse(challenge.read_bytes())
        words = ("--bundle", tmp_path / "bundle", "--challenge", challenge, "--recipe", tmp_path / "recipe.py")
        return chosen, ("polverify", "check", tmp_path / "root", *key, *words, "--tolerant", "--json")

    return made


def answer(tmp_path, segments, jump=None):
    (tmp_path / "bundle").write_bytes(trained(jump).run(segments).data())


def test_an_honest_answer_is_accepted_within_tolerance(shell, asked, tmp_path):
    chosen, check = asked()
    answer(tmp_path, chosen.segments)
    verdict = json.loads(shell.ok(*check))
    assert verdict["reason"] == f"{DRAWN + 2} of {SEGMENTS} segments replayed within tolerance (0 bit for bit)"
    power = verdict["power"]
    assert (power["drawn"], power["population"], power["tolerated"]) == (DRAWN, SEGMENTS - 2, DRAWN + 2)
    assert power["one_bad_segment"] == pytest.approx(DRAWN / (SEGMENTS - 2))
    how = {row["index"]: row["opened"] for row in verdict["coverage"]}
    assert how == {i: "named" if i in (0, 4) else "random" if i in chosen.segments else None for i in range(SEGMENTS)}
    assert json.loads(shell.ok(*check, "--jobs", 2)) == verdict  # each worker measures the noise of its own segments


def test_other_segments_than_drawn(shell, asked, tmp_path):
    chosen, check = asked()
    left_out = next(index for index in range(SEGMENTS) if index not in chosen.segments)
    for wrong in ((*chosen.segments, left_out), chosen.segments[:-1]):
        answer(tmp_path, tuple(sorted(wrong)))
        code, out, _ = shell(*check)
        assert code == 1
        assert json.loads(out)["reason"].startswith("check 7 (challenge): opened segments: expected")


def test_a_forged_segment_is_found_where_the_nonce_draws_it(shell, asked, tmp_path):
    """And passes where it does not, which is what the stated probability says."""
    codes = {}
    for nonce in ("01" * 32, "02" * 32, "03" * 32, "04" * 32, "05" * 32, "06" * 32):
        chosen, check = asked(2, nonce)
        if (2 in chosen.segments) in codes:
            continue
        answer(tmp_path, chosen.segments, 2)
        codes[2 in chosen.segments], out, _ = shell(*check)
        if 2 in chosen.segments:
            assert json.loads(out)["reason"].startswith("check 10 (replay): segment 2")
    assert codes == {True: 1, False: 0}
