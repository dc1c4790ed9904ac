"""Conversations that begin alike: trees, batches, parts."""

import numpy as np
import pytest
from tiny import TALKS, dialogue

from lore.text.conversations import text_bytes
from lore.text.packing import batch_trees, pack_trees, split_batch, split_into_parts


def test_a_tree_unpacks_to_its_token_lists():
    lists = [[1, 2, 3], [1, 2], [1, 2, 3, 4], [5], [1, 7, 3], [1, 2, 3], [300, 2]]
    ids = [np.array(tokens, dtype=np.int32) for tokens in lists]
    (tree,) = pack_trees(range(len(ids)), ids)
    assert len(tree.tokens) == 9 == sum(tree.new) and sorted(tree.members) == list(range(7))
    for member, path in zip(tree.members, tree.paths):
        assert [tree.tokens[i] for i in path] == lists[member]
        assert [tree.depth[i] for i in path] == list(range(len(path)))
    (first,), (second,) = split_batch([tree])
    assert first.members + second.members == tree.members
    for half in (first, second):
        for member, path in zip(half.members, half.paths):
            assert [half.tokens[i] for i in path] == lists[member]


def test_parts_hold_everything_once_families_together_longest_first(monkeypatch):
    monkeypatch.setattr("lore.text.packing.PART_BYTES", 120)
    talks = [*dialogue(2), *TALKS, *dialogue(3, name="another")]
    for together in (True, False):
        parts = split_into_parts(talks, together)
        assert sorted(row for part in parts for row in part) == list(range(len(talks))) and len(parts) > 2
        longest = [max(text_bytes(talks[row]) for row in part) for part in parts]
        assert longest[0] == max(longest) and longest[-1] == min(longest)
        where = {row: number for number, part in enumerate(parts) for row in part}
        families = {talks[row][0]["content"] for row in where}
        system = [[{"role": "system", "content": "be good"}, *talk] for talk in talks]
        assert len(split_into_parts(system, together)) > 1  # what all have in common makes no family
        for family in families if together else ():
            assert len({where[row] for row in where if talks[row][0]["content"] == family}) == 1
    assert split_into_parts(talks, True) == split_into_parts(talks[:], True)


@pytest.mark.parametrize(
    "padded, expected", [(True, [[40], [12, 10], [9, 5], [3]]), (False, [[40], [12, 10], [9, 5, 3]])]
)
def test_batches_keep_to_their_budget_largest_first(padded, expected):
    trees = [pack_trees([0], [np.arange(n, dtype=np.int32)])[0] for n in (5, 40, 10, 12, 3, 9)]
    assert [[len(tree.tokens) for tree in batch] for batch in batch_trees(trees, 24, padded)] == expected
