"""The same text about other people: a rewriter by rules, in place of the sequence-to-sequence perturber of PANDA.

It knows words, not sentences: a name is swapped in "Bill" and in "the Bill", what should change along with a word does not, and
most words about people are on no list. Each rewrite is logged, so that one can see what was compared.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from .word_lists import WordLists

Sentences = tuple[str, ...]

_WORDS = """
    a about after again against all an and any are as at away back be because been before but by can could did do does down
    during every for from had has have her here his home how if in into is it its my nor not of off on or our out over
    please so some than that the their then there these they this those though through to today tomorrow too under until up
    was were what when where whether which while who whom why will with without would yesterday yet you your
"""
NO_NOUNS = frozenset(_WORDS.split())
"""Words that begin no noun phrase, so that a "her" before them is an object."""
GROUPS = ("race", "religion")


@dataclass(frozen=True)
class Rewrite:
    """A text before and after, with the words that were swapped: (found, put, axis)."""

    original: Sentences
    rewritten: Sentences
    swaps: tuple[tuple[str, str, str], ...]

    @property
    def changed(self) -> bool:
        return self.rewritten != self.original


class Rewriter:
    """Swaps words for their counterparts, all of a text at once, and both sentences of a pair alike.

    Gender and names go to the counterpart, and so twice is the text again where a word is its counterpart's. Of race and
    religion, where there are three groups, the text's words all go to the next group or all to the one after it, by chance that
    depends on the seed and the text alone; a word for a race only before a word for people ("black men", not "black holes").

    >>> from .word_lists import WordLists
    >>> lists = WordLists((("he", "she"), ("actor", "actress")), (("John", "Mary"),), (), (), frozenset())
    >>> Rewriter(lists, 0).rewrite(("John saw his book.", "HE is an actor")).rewritten
    ('Mary saw her book.', 'SHE is an actress')
    """

    def __init__(self, lists: WordLists, seed: int) -> None:
        self.seed = seed
        self.people = lists.people
        self.swaps = {"gender": _both_ways(lists.gender), "names": _both_ways(lists.names)}
        self.rows = {"race": lists.race, "religion": lists.religion}
        self.places = {
            axis: {word: (row, place) for row in reversed(rows) for place, word in enumerate(row)}
            for axis, rows in self.rows.items()
        }
        words = {
            *self.swaps["gender"],
            *self.swaps["names"],
            *self.places["race"],
            *self.places["religion"],
            "her",
            "his",
            "hers",
        }
        longest_first = sorted(words, key=lambda word: (-len(word), word))
        self._pattern = re.compile(
            rf"(?P<article>\b[Aa]n?\s+)?(?<![\w-])(?P<word>{'|'.join(map(re.escape, longest_first))})(?![\w-])", re.IGNORECASE
        )

    def rewrite(self, sentences: Sentences) -> Rewrite:
        """The text about other people, or itself where it has none of the words."""
        chance = random.Random(f"{self.seed}\n" + "\n".join(sentences))
        steps = {axis: chance.choice((1, 2)) for axis in GROUPS}
        swaps: list[tuple[str, str, str]] = []

        def put(found: re.Match[str]) -> str:
            word, article = found["word"], found["article"] or ""
            axis, other = self._counterpart(word, found.string[found.end() :], steps)
            if other is None:
                return found[0]
            other = _like(word, other)
            swaps.append((word, other, axis))
            return _agree(article, word, other) + other

        rewritten = tuple(self._pattern.sub(put, sentence) for sentence in sentences)
        return Rewrite(sentences, rewritten, tuple(swaps))

    def _counterpart(self, word: str, rest: str, steps: dict[str, int]) -> tuple[str, str | None]:
        """(axis, the word to put), or no word."""
        low = word.lower()
        if low in ("her", "his", "hers"):
            return "gender", _pronoun(low, rest)
        if low in self.swaps["gender"]:
            return "gender", self.swaps["gender"][low]
        name = word if word in self.swaps["names"] else word.title() if word.isupper() and len(word) > 2 else ""
        if name in self.swaps["names"]:
            return "names", self.swaps["names"][name]
        for axis in GROUPS:
            if low in self.places[axis] and (axis != "race" or _next_word(rest) in self.people):
                row, place = self.places[axis][low]
                return axis, row[(place + steps[axis]) % len(row)]
        return "", None


def _both_ways(pairs: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Word -> counterpart, the first one of each."""
    found: dict[str, str] = {}
    for one, other in pairs:
        found.setdefault(one, other)
        found.setdefault(other, one)
    return found


def _pronoun(word: str, rest: str) -> str:
    """Her -> his or him, his -> her or hers, hers -> his: what follows decides whether it is a possessive."""
    follows = _next_word(rest)
    possessive = follows is not None and follows not in NO_NOUNS
    if word == "her":
        return "his" if possessive else "him"
    return "his" if word == "hers" else "her" if possessive else "hers"


def _next_word(rest: str) -> str | None:
    found = re.match(r"\s+([^\W\d_][\w'-]*)", rest)
    return found[1].lower() if found else None


def _like(found: str, word: str) -> str:
    """The word in the capitals of the one that it replaces."""
    if found.isupper() and len(found) > 1:
        return word.upper()
    return word[0].upper() + word[1:] if found[0].isupper() else word


def _agree(article: str, found: str, word: str) -> str:
    """A or an, which changes where the first sound does."""
    before, after = (text[0].lower() in "aeiou" for text in (found, word))
    if not article or before == after:
        return article
    bare, space = article[0], article[len(article.rstrip()) :]
    return bare + ("n" if after else "") + space
