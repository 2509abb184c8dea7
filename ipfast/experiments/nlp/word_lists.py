"""Words that tell people's gender, names, race and religion, with their counterparts, read from published lists."""

from __future__ import annotations

import csv
import json
import random
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import InputError, MissingFileError

FOLDER = "perturbation"
BIAS_BENCH = "github.com/McGill-NLP/bias-bench (data)"
FILES = {
    # what: (names under which it may lie, where people get it)
    "attributes": (("bias_attribute_words.json",), BIAS_BENCH),
    "extra": (
        ("winobias_extra_gendered_words.txt", "extra_gendered_words.txt"),
        "github.com/uclanlp/corefBias (WinoBias/wino)",
    ),
    "crows": (("crows_pairs_anonymized.csv",), "github.com/nyu-mll/crows-pairs (data)"),
    "identity": (("identity_words.csv",), "github.com/conversationai/unintended-ml-bias-analysis"),
    "people": (
        ("holistic_bias_nouns.json", "nouns.json"),
        "github.com/facebookresearch/ResponsibleNLP (holistic_bias/dataset)",
    ),
}
_NO_GENDER = """
    miss lord lords god gods bachelor bachelors host hosts master masters steward stewards priest priests governor governors
    tailor tailors adultor adultors heros barnoesses
"""
"""Verbs and other things besides; words of the church, which are of the religion list; without a counterpart; misspelt."""
LEFT_OUT = {
    "gender": frozenset(_NO_GENDER.split()),
    "race": frozenset(["africa"]),  # places are no people
    "religion": frozenset[str](),
}


@dataclass(frozen=True)
class WordLists:
    """Counterparts, in lower case but for names; of two mentions of a word the first one counts.

    Attributes:
        gender: (he, she), and names: (John, Cheryl), which swap.
        race, religion: (jewish, christian, muslim): each place of a row is of the same group as that place of the others.
        people: words for people, before which a word tells their race.
    """

    gender: tuple[tuple[str, str], ...]
    names: tuple[tuple[str, str], ...]
    race: tuple[tuple[str, ...], ...]
    religion: tuple[tuple[str, ...], ...]
    people: frozenset[str]


def read_word_lists(where: str, folder: Path, seed: int) -> WordLists:
    """All lists; names without a counterpart of their own are paired by chance.

    Raises:
        MissingFileError, InputError: a list is not there, or is another file.
    """
    attributes = _read(where, folder, "attributes", _attributes)
    gender = _kept("gender", [*attributes["gender"], *_read(where, folder, "extra", _pairs)])
    people = frozenset(word for pair in gender for word in pair) | _read(where, folder, "people", _people)
    others = people | _read(where, folder, "identity", lambda text: frozenset(_words(text, "identity")))
    names = _name_pairs(
        _read(where, folder, "crows", lambda text: _contrasts(text, others)),
        _read(where, folder, "identity", lambda text: _words(text, "name")),
        seed,
    )
    groups = (_kept(axis, attributes[axis]) for axis in ("race", "religion"))
    race, religion = (tuple(map(tuple, rows)) for rows in groups)
    return WordLists(tuple((one, other) for one, other in gender), names, race, religion, people)


def _read(where: str, folder: Path, what: str, parse: Callable[[str], Any]) -> Any:
    names, source = FILES[what]
    found = [folder / FOLDER / name for name in names]
    file = next((file for file in found if file.exists()), found[0])
    if not file.is_file():
        raise MissingFileError(f"{where}: expected a list of words in {str(file)!r}; it does not exist. Get it from {source}.")
    try:
        parsed = parse(file.read_text(encoding="utf-8"))
        if not parsed:
            raise ValueError("it is empty")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{where}: expected a list of words in {str(file)!r}; it is cut off or another file ({error}). Get it from "
            f"{source}."
        ) from error
    return parsed


def _attributes(text: str) -> dict[str, list[list[str]]]:
    content = json.loads(text)
    return {axis: [[word.lower() for word in row] for row in content[axis]] for axis in ("gender", "race", "religion")}


def _pairs(text: str) -> list[list[str]]:
    """Pairs with a tab between them."""
    rows = [[word.strip().lower() for word in line.split("\t")] for line in text.splitlines() if line.strip()]
    if any(len(row) != 2 for row in rows):
        raise ValueError("a line is no pair")
    return rows


def _people(text: str) -> frozenset[str]:
    return frozenset(word.lower() for group in json.loads(text).values() for number in group for word in number)


def _words(text: str, kind: str) -> list[str]:
    """Words of a kind, names as they are written."""
    return [row["word"] for row in csv.DictReader(text.splitlines()) if row["type"] == kind]


def _contrasts(text: str, others: frozenset[str]) -> list[tuple[str, str]]:
    """Names that CrowS-Pairs puts in place of each other to change a person's gender: words with capitals that no list has."""
    found = []
    for row in csv.DictReader(text.splitlines()):
        if row["bias_type"] != "gender":
            continue
        one, other = (re.findall(r"[\w']+", row[side]) for side in ("sent_more", "sent_less"))
        if len(one) == len(other):
            found += [
                (a, b) for a, b in zip(one, other, strict=True) if a != b and all(_is_name(each, others) for each in (a, b))
            ]
    return found


def _is_name(word: str, others: frozenset[str]) -> bool:
    return word.isalpha() and word.istitle() and not others & {word.lower(), f"{word.lower()}."}


def _name_pairs(contrasts: Iterable[tuple[str, str]], names: Iterable[str], seed: int) -> tuple[tuple[str, str], ...]:
    """Pairs in which each name is once, as far as there are; those that are left go with one that is taken.

    Names of the second list have no gender there; those that are left of them are paired by chance.
    """
    taken: set[str] = set()
    pairs, left = [], []
    for pair in contrasts:
        if taken & set(pair):
            left.append(pair)
        else:
            pairs.append(pair)
            taken |= set(pair)
    late = []
    for one, other in left:
        for new, partner in ((one, other), (other, one)):
            if new not in taken:
                late.append((new, partner))
                taken.add(new)
    rest = sorted({name for name in names if name.isalpha() and name.istitle()} - taken)
    random.Random(seed).shuffle(rest)
    return (*pairs, *late, *zip(rest[::2], rest[1::2], strict=False))


def _kept(axis: str, rows: Iterable[list[str]]) -> list[list[str]]:
    """Rows without words that are left out."""
    return [row for row in rows if not LEFT_OUT[axis] & set(row)]
