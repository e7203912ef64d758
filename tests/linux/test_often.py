"""How often the kernel says its lines, against what was read in its source, tree by tree."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitlock.linux import sentences
from splitlock.linux.detection import RULES, Kernel
from splitlock.linux.often import TABLE, Heard, often, printed
from splitlock.linux.sentences import SENTENCES, Sentence
from splitlock.linux.versions import release

TREES = ("5.10.262", "6.1.192", "6.12.118", "7.2.13", "7.3.4")
NEWER = TREES[1:]
#: By hand, from the function that says the line: the macro it says it by, and what it asks before.
READ: list[tuple[Sentence, tuple[str, ...], str, bool]] = [
    (sentences.TOOK_SPLIT, ("5.10.262",), "each time", True),  # pr_warn_ratelimited, unconditionally
    (sentences.TOOK_SPLIT, NEWER, "once a task", True),  # if (!current->reported_split_lock) pr_warn_ratelimited
    (sentences.TOOK_BUS, NEWER, "each time", True),  # pr_warn_ratelimited
    (sentences.GUEST_FATAL, TREES, "once a boot", False),  # pr_warn_once
    (sentences.GUEST_BOGUS, TREES, "once a boot", False),  # the same line of source
    (sentences.KILLED, TREES, "each time", True),  # && printk_ratelimit()
    (sentences.MSR_REFUSED, TREES, "once a boot", False),  # if (pr_warn_once(...)); __ONCE_LITE_IF(!safe && wrmsr)
    (sentences.OOPS_5_7, TREES[:2], "each time", False),  # die()
    (sentences.OOPS, TREES[2:], "each time", False),
]


def kernel(text: str) -> Kernel:
    found = release(text)
    assert found
    return Kernel(found)


@pytest.mark.parametrize(("sentence", "trees", "every", "limited"), READ)
def test_as_read(sentence: Sentence, trees: tuple[str, ...], every: str, limited: bool) -> None:
    for tree in trees:
        found = often(kernel(tree), sentence)
        assert (found.every, bool(found.limit)) == (every, limited), tree


def test_every_sentence_is_there() -> None:
    for sentence in SENTENCES:
        assert often(kernel("7.3.4"), sentence).sentence is sentence
    assert {id(entry.sentence) for entry in TABLE} == set(map(id, SENTENCES))


def test_who_is_said_once_has_a_place() -> None:
    """By which it is known again; and so has who shares a limit."""
    for entry in TABLE:
        assert (entry.every in ("once a boot", "once a task") or bool(entry.limit)) <= bool(entry.place)


def test_every_effect_that_speaks_is_there() -> None:
    """In the first Linux that the rule holds for."""
    for rule in RULES:
        if rule.effect.sentence is not None:
            first = ".".join(map(str, rule.since.since)) if rule.since else "4.19"
            often(kernel(f"{first}.0"), rule.effect.sentence)


def test_once_together() -> None:
    """`fatal` and `bogus` are one pr_warn_once, whoever the task is; a task is warned about again once it ended."""
    heard, new = Heard(), kernel("6.12.118")
    fatal, bogus, took = (
        often(new, one) for one in (sentences.GUEST_FATAL, sentences.GUEST_BOGUS, sentences.TOOK_SPLIT)
    )
    assert [heard.again(fatal, 1), heard.again(bogus, 2), heard.again(fatal, 3)] == [False, True, True]
    assert [heard.again(took, 1), heard.again(took, 2), heard.again(took, 1)] == [False, False, True]
    heard.ended(1)
    assert [heard.again(took, 1), heard.again(took, 2), heard.again(fatal, 1)] == [False, True, True]


@pytest.mark.parametrize(
    ("times", "count"),
    [
        ([], 0),
        ([0] * 10, 10),
        ([0] * 15, 10),
        ([500 * number for number in range(20)], 19),  # at 5,000 the first window is still open
        ([0] * 15 + [5000], 10),
        ([0] * 15 + [5001], 11),
        ([0] * 15 + [5001] * 15, 20),
        ([600 * number for number in range(100)], 100),  # nine in five seconds
    ],
)
def test_rate_limit(times: list[float], count: int) -> None:
    assert printed(times) == count


@given(st.lists(st.integers(0, 30_000)).map(sorted))
def test_rate_limit_bounds(times: list[int]) -> None:
    """Between none of the lines that need not be held back and all of the windows' ten."""
    count = printed(times)
    assert min(len(times), 10) <= count <= len(times)
    if times:
        assert count <= 10 * ((times[-1] - times[0]) // 5001 + 1)
