"""The same text about other people: what is swapped, what is kept, and what the lists become."""

import os
from pathlib import Path

import pytest
from text_data import write_lists

from ipfast.data.glue import TASKS, read_task
from ipfast.experiments.nlp.rewriting import Rewriter
from ipfast.experiments.nlp.word_lists import LEFT_OUT, read_word_lists


@pytest.fixture(scope="module")
def lists(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lists")
    write_lists(folder)
    return read_word_lists("experiment", folder, 0)


@pytest.fixture(scope="module")
def rewriter(lists):
    return Rewriter(lists, 0)


def test_lists_leave_out_what_tells_no_people(lists):
    assert lists.gender == (
        ("he", "she"),
        ("man", "woman"),
        ("actor", "actress"),
        ("him", "her"),
        ("his", "her"),
        ("guy", "girl"),
        ("uncle", "aunt"),
    )
    assert lists.names == (("John", "Mary"), *lists.names[1:])
    assert {*lists.names[1:]} <= {("Zoe", "Liam"), ("Liam", "Zoe")}
    assert lists.race == (("black", "white", "asian"),)
    assert {"person", "kids", "woman"} <= lists.people
    assert "priest" in LEFT_OUT["gender"]  # so that it is swapped as a word of religion
    assert any("priest" in row for row in lists.religion)


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("He saw the man.", "She saw the woman."),
        ("HE SAW A MAN", "SHE SAW A WOMAN"),
        ("an actor and a man", "an actress and a woman"),
        ("an uncle, a guy", "an aunt, a girl"),
        ("John's book is his.", "Mary's book is hers."),
        ("She gave him her book and left her.", "He gave her his book and left him."),
        ("JOHN and mary", "MARY and mary"),  # a name has a capital
        ("I saw her today", "I saw him today"),
    ],
)
def test_words_are_swapped_with_their_capitals_and_twice_is_the_text(text, other, rewriter):
    found = rewriter.rewrite((text,))
    assert found.rewritten == (other,)
    assert found.changed
    assert rewriter.rewrite(found.rewritten).rewritten == (text,)


@pytest.mark.parametrize(
    "text",
    [
        "the theme of heather",
        "man-made things",
        "the shepherd",
        "black holes and white walls",
        "Africa and Asia",
        "a host",
        "",
        "Johnson",
    ],
)
def test_other_words_stay(text, rewriter):
    found = rewriter.rewrite((text,))
    assert found.rewritten == (text,)
    assert not found.changed
    assert found.swaps == ()


def test_articles_follow_the_sound(rewriter):
    found = {rewriter.rewrite((f"a rabbi {word}",)).rewritten[0] for word in "abcdefgh"}
    assert {text[:-2] for text in found} == {"a priest", "an imam"}
    for text in found:
        assert rewriter.rewrite((text,)).rewritten[0].split()[0] in ("a", "an")
    assert rewriter.rewrite(("A rabbi.",)).rewritten[0] in ("A priest.", "An imam.")


def test_groups_of_a_text_move_together_and_chance_is_of_the_text(lists):
    """Two groups stay two groups, in both sentences; which way they go depends on the seed and the text alone."""
    columns = {word: place for row in (*lists.race, *lists.religion) for place, word in enumerate(row)}
    ways = set()
    for seed in range(8):
        rewriter = Rewriter(lists, seed)
        text = ("black people and white kids", "Asian people met a jewish person and a muslim woman")
        found = rewriter.rewrite(text)
        assert rewriter.rewrite(text) == found == Rewriter(lists, seed).rewrite(text)
        steps = {}
        for word, other, axis in found.swaps:
            if axis in ("race", "religion"):
                steps.setdefault(axis, set()).add((columns[other.lower()] - columns[word.lower()]) % 3)
        assert all(len(each) == 1 and each < {1, 2} for each in steps.values())
        assert set(steps) == {"race", "religion"}
        ways.add(tuple(sorted(min(each) for each in steps.values())))
    assert len(ways) > 1


def test_pairs_are_rewritten_alike(rewriter):
    found = rewriter.rewrite(("John saw him.", "He saw John."))
    assert found.rewritten == ("Mary saw her.", "She saw Mary.")
    assert [swap[2] for swap in found.swaps] == ["names", "gender", "gender", "names"]


@pytest.mark.data
@pytest.mark.skipif("IPFAST_DATA" not in os.environ, reason="IPFAST_DATA does not name the folder of the data sets")
def test_real_lists_pair_names_and_most_rewrites_are_undone_by_the_next():
    folder = Path(os.environ["IPFAST_DATA"])
    lists = read_word_lists("experiment", folder, 0)
    names = [name for pair in lists.names for name in pair]
    assert len(lists.names) > 60
    assert "John" in names
    assert not {"He", "Women", "Mr"} & set(names)
    rewriter = Rewriter(lists, 0)
    for task in TASKS.values():
        texts = [rewriter.rewrite(text) for text in read_task("experiment", folder, task, "dev")[0]]
        # A reversal may miss: "her" has two counterparts, and so has a group of three.
        changed = [each for each in texts if each.changed and not {"race", "religion"} & {swap[2] for swap in each.swaps}]
        undone = sum(rewriter.rewrite(each.rewritten).rewritten == each.original for each in changed)
        assert undone > 0.8 * len(changed)
