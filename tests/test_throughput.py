"""What is counted while embedding, and told in the end."""

import numpy as np

from lore.text.conversations import exchange, text_bytes
from lore.text.packing import pack_trees
from lore.text.throughput import Tally, count_tokens


def test_tokens_are_counted_alone_in_trees_and_with_padding():
    lists = [[1, 2, 3, 4], [1, 2, 9], [7]]
    ids = [np.array(tokens, dtype=np.int32) for tokens in lists]
    trees = [*pack_trees([0, 1], ids), *pack_trees([2], ids)]
    counts = {"texts": 3, "plain": 8, "tokens": 6}
    assert count_tokens(trees, padded=False) == counts | {"padded": 6}
    assert count_tokens(trees, padded=True) == counts | {"padded": 10}  # two rows of five


def test_sums_and_notes_are_told_once_all_is_done(capsys):
    talks = [exchange("a", "b"), exchange("a", "c")]
    with Tally(sum(map(text_bytes, talks))) as tally:
        tally.start_clock()
        tally.count({"cut": 1, "cut_replies": 0, "repeated": 2})
        for talk in talks:
            tally.advance({"texts": 1, "plain": 10, "tokens": 5, "padded": 5}, [talk])
    tally.report()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "1 of 2 conversations are too long: the oldest part of their prompt is left out"
    assert lines[1].startswith("2 of 2 texts have the tokens of another text")
    assert lines[2].startswith("2 texts, 10 tokens computed (50% saved by sharing, 0.0% padding): ")
    assert len(lines) == 3


def test_a_process_without_a_part_reports_nothing(capsys):
    with Tally(0) as tally:
        pass
    tally.report()
    assert capsys.readouterr().out == ""
