"""Blocks of token data: whole sequences, cut by counted tokens alone."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from ipfast.engines.tokens import IGNORED, packed

MASKS = st.lists(st.lists(st.booleans(), min_size=1, max_size=5), max_size=12)


def batches(masks, sizes, padding):
    """Sequences of one-number features in batches, each padded to its longest sequence and further."""
    number = 0
    start = 0
    for size, more in zip(sizes, padding, strict=True):
        rows = masks[start : start + size]
        start += size
        if not rows:
            continue
        length = max(map(len, rows)) + more
        h, y = torch.full((len(rows), length, 1), torch.nan), torch.full((len(rows), length), IGNORED)
        for i, row in enumerate(rows):
            for t, counts in enumerate(row):
                if counts:
                    h[i, t], y[i, t], number = float(number), number, number + 1
        yield h, y


@given(MASKS, st.integers(1, 9), st.booleans(), st.data())
def test_a_block_ends_with_the_sequence_that_fills_it(masks, size, uncut, data):
    sizes = data.draw(st.lists(st.integers(1, 5), min_size=len(masks), max_size=len(masks)))
    padding = data.draw(st.lists(st.integers(0, 3), min_size=len(masks), max_size=len(masks)))
    found = [(start, h.clone(), y) for start, h, y in packed(batches(masks, sizes, padding), size, "mean", uncut=uncut)]
    tokens = sum(map(sum, masks))
    values = torch.cat([h[:, 0] for _, h, _ in found]) if found else torch.zeros(0)
    assert values.tolist() == list(range(tokens))
    expected, counts = [], []
    for row in masks:
        counts.append(sum(row))
        if sum(counts) >= size:
            expected, counts = [*expected, counts], []
    if not uncut:
        assert [y.counts.tolist() for _, _, y in found] == expected + ([counts] if counts else [])
    start = 0
    for first, h, y in found:
        assert first == start
        assert y.labels.tolist() == h[:, 0].tolist()
        places = [(i, t) for i, row in enumerate(masks[start : start + len(y.counts)]) for t, c in enumerate(row) if c]
        assert list(zip(y.sequence.tolist(), y.position.tolist(), strict=True)) == places
        start += len(y.counts)
    assert start == len(masks)
