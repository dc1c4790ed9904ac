"""Tables of text."""

import numpy as np
from populations import cell, summarise_for_print, sweep

from lore.fit.evaluation import SHARED_OWN, SHUFFLED
from lore.report import statistics, text_tables
from utils import run


def test_table_of_one_seed_shows_the_interval_over_users(capsys):
    result = sweep(run, [0, 1, 2], [0.0])
    best = result.cells[0]._replace(K="best", alpha=None)
    summary = statistics.summarise([*result.cells, best])
    text_tables.print_run_table(summary)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split("  ")[0] == "K" and "alpha" not in lines[0]
    assert [line[:15].strip() for line in lines[1:5]] == [
        "0 reference",
        "1 Bradley-Terry",
        "2",
        "best possible",
    ]
    assert len({len(line) for line in lines[:5]}) == 1  # aligned
    low, high = summary[0]["unseen_interval"]
    assert f"{100 * result.unseen[0]:.1f} [{100 * low:4.1f}, {100 * high:4.1f}]" in lines[1]
    legend = next(line for line in lines if line.startswith("accuracy in percent"))
    assert "over users [95 % interval over users, Student's t]" in legend
    assert "±" not in "".join(lines)
    assert (
        lines[2].rstrip().endswith("]") and lines[3].count("[") == 3
    )  # Bradley-Terry has no difference to itself


def test_table_of_several_seeds_shows_the_spread_over_seeds(capsys):
    result = sweep(run, [1, 2], [0.0, 0.5], seeds=[0, 1, 2])
    text_tables.print_run_table(statistics.summarise(result.cells))
    lines = capsys.readouterr().out.splitlines()
    assert "alpha" in lines[0] and "± std over seeds [95 % interval" in lines[5]
    unseen = result.unseen[:, 1]  # alpha 0, K 2
    assert f"{100 * unseen.mean():.1f} ±{100 * unseen.std():4.1f} [" in lines[2]


def test_what_shuffled_labels_reach_as_well_is_called_out(capsys):
    rng = np.random.default_rng(3)
    real, shuffled = rng.uniform(0.5, 0.7, 50), rng.uniform(0.5, 0.7, 50)
    text_tables.print_run_table(summarise_for_print(cell(real), cell(shuffled, variant=SHUFFLED)))
    warnings = [x for x in capsys.readouterr().out.splitlines() if "no better" in x]
    assert len(warnings) == 1 and warnings[0].startswith("no better than shuffled labels: K = 2, ")
    assert "K = 2, unseen: " in warnings[0]
    text_tables.print_run_table(
        summarise_for_print(cell(real), cell(1 - shuffled, variant=SHUFFLED))
    )
    assert (
        "no better" in capsys.readouterr().out
    )  # the opposite of shuffled labels is as shuffled as they are
    text_tables.print_run_table(
        summarise_for_print(cell(real + 0.2), cell(shuffled, variant=SHUFFLED))
    )
    assert "no better" not in capsys.readouterr().out


def test_ranks_of_the_same_numbers_are_one_row_and_their_warning_one_line(capsys):
    rng = np.random.default_rng(4)
    same = rng.uniform(0.5, 0.7, 50)
    other = rng.uniform(0.5, 0.7, 50)
    cells = []
    for K in (1, 2, 3, 4, 5, 6):
        cells += [cell(same, K=K), cell(other, K=K, variant=SHUFFLED)]
    cells.append(cell(same + 0.1, K=7))  # has no shuffled counterpart
    text_tables.print_run_table(summarise_for_print(*cells))
    lines = capsys.readouterr().out.splitlines()
    names = [line.split("   ")[0].strip() for line in lines[1:5]]
    assert names == ["1 Bradley-Terry", "2 .. 6 as 1", "7", "1 .. 6, shuffled labels"]
    warnings = [line for line in lines if "no better" in line]
    assert len(warnings) == 1 and warnings[0].count("K = 2 .. 6 as 1, unseen: ") == 1
    assert warnings[0].count("K = ") == 4  # two rows, seen and unseen


def test_the_best_rank_is_marked_and_what_it_does_not_beat_is_named(capsys):
    rng = np.random.default_rng(5)
    real = rng.uniform(0.5, 0.7, 50)
    cells = [
        cell(real, K=1)._replace(best=False),
        cell(real + 0.02, K=2)._replace(best=True),
        cell(real + 0.1, K=3)._replace(best=False),
        cell(real + 0.05, K=1, variant=SHARED_OWN)._replace(alpha=None),
    ]
    text_tables.print_run_table(summarise_for_print(*cells))
    lines = capsys.readouterr().out.splitlines()
    starred = [line.split()[0] for line in lines if " * " in line]
    assert starred == ["2"] and any(line.startswith("*: ") for line in lines)
    (beaten,) = [line for line in lines if line.startswith('no better than "shared + own"')]
    assert "K = 2, unseen: -3.0" in beaten and "K = 3" not in beaten and "K = 1" not in beaten
    text_tables.print_both_sides([cells[0]._replace(both_sides={"seen": [0, 9], "unseen": [2, 8]})])
    assert capsys.readouterr().out.endswith("trained: 0 of 9 (seen), 2 of 8 (unseen)\n")
