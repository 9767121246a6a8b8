"""Replays in several processes at once: the same verdict as one after the other, whatever happens in them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from polstore.terminal import plain
from polverify.verdict import Decision
from tests.attacks import forge
from tests.attacks.forge import Evidence, Trainer, edit

if TYPE_CHECKING:
    from polstore.codec.snapshot import Snapshot
    from polverify.verdict import Verdict


class Progress(list[tuple[str, int, int]]):
    def __call__(self, what: str, done: int, total: int) -> None:
        self.append((what, done, total))

    def of(self, what: str) -> list[tuple[int, int]]:
        return [(done, total) for name, done, total in self if name == what]


def both(judge: Any, evidence: Evidence, **wishes: Any) -> Verdict:
    """The verdict of one process and of two, which must be the same."""
    seen = Progress(), Progress()
    one, two = (judge(evidence, jobs=jobs, progress=each, **wishes) for jobs, each in zip((1, 2), seen, strict=True))
    assert plain(two.as_json()) == plain(one.as_json())
    assert {(what, total) for what, _, total in seen[1]} == {(what, total) for what, _, total in seen[0]}
    if one.decision is not Decision.REJECT:
        assert sorted(seen[1].of("replaying")) == seen[1].of("replaying")  # never backwards
        assert seen[1].of("replaying")[-1] == seen[0].of("replaying")[-1]
    return one


class Ulps(Trainer):
    """Commits one weight of some segments' ends one unit in the last place off."""

    wrong: tuple[int, ...] = ()

    def commit(self, index: int, committed: Snapshot) -> Snapshot:
        if index not in self.wrong:
            return committed

        def change(data: Any) -> Any:
            data.view("<u4")[0] += 1
            return data

        return edit(committed, "parameter/0.weight", change)


def test_an_honest_run(judge, honest):
    verdict = both(judge, honest)
    assert verdict.decision is Decision.ACCEPT
    assert len(verdict.segments) == forge.SEGMENTS


def test_the_first_forged_segment_decides(judge):
    forger = Ulps()
    forger.wrong = (2, 3)
    verdict = both(judge, forger.run())
    assert verdict.decision is Decision.REJECT
    assert "segment 2, state after step 9" in verdict.reason
    assert [result.index for result in verdict.segments] == [0, 1]
