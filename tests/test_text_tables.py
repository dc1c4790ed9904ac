"""Tables of text."""

import numpy as np
from populations import cell, summarise_for_print, sweep

from lore.fit.evaluation import SHARED_OWN, SHUFFLED
from lore.report import statistics, text_tables
from utils import run

RNG = np.random.default_rng(3)
SOME, OTHERS = RNG.uniform(0.5, 0.7, (2, 50))  # accuracies of fifty people


def printed(capsys, summary):
    for table in text_tables.run_tables(summary):
        text_tables.print_table(table)
    return capsys.readouterr().out.splitlines()


def lines_with(words, lines):
    return [line for line in lines if words in line]


def test_table_of_one_seed_shows_the_interval_over_users(capsys):
    result = sweep(run, [0, 1, 2], [0.0])
    best = result.cells[0]._replace(K="best", alpha=None)
    summary = statistics.summarise([*result.cells, best])
    lines = printed(capsys, summary)
    assert lines[0].split("  ")[0] == "K" and "alpha" not in lines[0]
    names = [line[:15].strip() for line in lines[1:5]]
    assert names == ["0 reference", "1 Bradley-Terry", "2", "best possible"]
    assert len({len(line) for line in lines[:5]}) == 1  # aligned
    low, high = summary[0]["unseen_interval"]
    assert f"{100 * result.unseen[0]:.1f} [{100 * low:4.1f}, {100 * high:4.1f}]" in lines[1]
    (legend,) = lines_with("accuracy in percent", lines)
    assert "over users [95 % interval over users, Student's t]" in legend
    assert "±" not in "".join(lines)
    # Bradley-Terry has no difference to itself
    assert lines[2].rstrip().endswith("]") and lines[3].count("[") == 3


def test_table_of_several_seeds_shows_the_spread_over_seeds(capsys):
    result = sweep(run, [1, 2], [0.0, 0.5], seeds=[0, 1, 2])
    lines = printed(capsys, statistics.summarise(result.cells))
    assert "alpha" in lines[0] and "± std over seeds [95 % interval" in lines[5]
    unseen = result.unseen[:, 1]  # alpha 0, K 2
    assert f"{100 * unseen.mean():.1f} ±{100 * unseen.std():4.1f} [" in lines[2]


def test_what_shuffled_labels_reach_as_well_is_called_out(capsys):
    # the opposite of shuffled labels is as shuffled as they are
    for shuffled in (OTHERS, 1 - OTHERS):
        summary = summarise_for_print(cell(SOME), cell(shuffled, variant=SHUFFLED))
        (line,) = lines_with("no better", printed(capsys, summary))
        assert line.startswith("no better than shuffled labels: K = 2, seen: ")
        assert "K = 2, unseen: " in line
    summary = summarise_for_print(cell(SOME + 0.2), cell(OTHERS, variant=SHUFFLED))
    assert not lines_with("no better", printed(capsys, summary))


def test_ranks_of_the_same_numbers_are_one_row_and_their_warning_one_line(capsys):
    cells = []
    for K in (1, 2, 3, 4, 5, 6):
        cells += [cell(SOME, K=K), cell(OTHERS, K=K, variant=SHUFFLED)]
    every = printed(capsys, summarise_for_print(*cells))
    assert lines_with("every rank chooses as Bradley-Terry does", every)  # of 0.0 points nothing is said
    assert not lines_with("smallest difference", every)
    cells.append(cell(SOME + 0.1, K=7))  # has no shuffled counterpart
    lines = printed(capsys, summarise_for_print(*cells))
    names = [line.split("   ")[0].strip() for line in lines[1:5]]
    assert names == ["1 Bradley-Terry", "2 .. 6 as 1", "7", "1 .. 6, shuffled labels"]
    (warning,) = lines_with("no better", lines)
    assert warning.count("K = 2 .. 6 as 1, unseen: ") == 1
    assert warning.count("K = ") == 4  # two rows, seen and unseen


def test_the_best_rank_is_starred_and_what_it_does_not_beat_is_named(capsys):
    cells = [
        cell(SOME, K=1)._replace(best=False),
        cell(SOME + 0.02, K=2)._replace(best=True),
        cell(SOME + OTHERS / 5, K=3)._replace(best=False),
        cell(SOME + 0.05, K=1, variant=SHARED_OWN)._replace(alpha=None),
    ]
    lines = printed(capsys, summarise_for_print(*cells))
    assert [line.split()[0] for line in lines_with(" * ", lines)] == ["2"]
    assert lines_with("smallest difference to Bradley-Terry that any rank", lines)
    assert any(line.startswith("*: ") for line in lines)
    (beaten,) = lines_with('no better than "shared + own"', lines)
    assert "K = 2, unseen: -3.0" in beaten and "K = 3" not in beaten and "K = 1" not in beaten
    text_tables.print_both_sides([cells[0]._replace(both_sides={"seen": [0, 9], "unseen": [2, 8]})])
    assert capsys.readouterr().out.endswith("trained: 0 of 9 (seen), 2 of 8 (unseen)\n")
