"""All texts of a task as tokens, made once for all cells of it."""

from __future__ import annotations

from dataclasses import dataclass

from .classifier import Pretrained, Tokens, check_known, tokenize
from .problem import Problem


@dataclass(frozen=True)
class Texts:
    """Tokens of the training texts, of V and of the test half; and of those of the halves' rewrites that are other texts."""

    problem: Problem
    pretrained: Pretrained
    train: Tokens
    val: Tokens
    test: Tokens
    val_rewritten: Tokens
    test_rewritten: Tokens


def make_texts(problem: Problem, pretrained: Pretrained, longest: int) -> Texts:
    """Tokens of a task for one model, at most `longest` of a text.

    Raises:
        InputError: the model's tokenizer cannot be loaded, or does not know most of the training texts.
    """
    halves = (problem.val, problem.test)
    train = tokenize(pretrained, problem.texts, longest)
    check_known(pretrained, train)
    return Texts(
        problem,
        pretrained,
        train,
        *(tokenize(pretrained, half.texts, longest) for half in halves),
        *(tokenize(pretrained, half.rewritten(half.changed), longest) for half in halves),
    )
