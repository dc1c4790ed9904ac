"""RewardBench 2 on the rewards of a basis: its rows, the official score, how sure it is, and eval_rb2.py."""

import random
from collections import Counter

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT, assert_one_line_error, call_script, load_script, printed
from texts import report, text, write
from tiny import encoder

from lore.common import InputError
from lore.fit.basis import Basis, save_basis
from lore.text.conversations import exchange

SCRIPT = ROOT / "PRISM/eval_rb2.py"
RB2 = load_script(SCRIPT)
BENCH = load_script(ROOT / "PRISM/rewardbench2.py")


def bench_row(row_id="1", subset="Math", prompt="the cat?", chosen=("yes",), rejected=("no", "it")):
    row = {"id": row_id, "subset": subset, "prompt": prompt, "chosen": [*chosen]}
    more = {"num_incorrect": len(rejected), "total_completions": 0, "models": []}
    return {**row, "rejected": [*rejected], "num_correct": len(chosen), **more}


def bench():
    rng = random.Random(1)

    def replies(count):
        return [f"{text(rng, 2, 6)} {rng.random():.5f}" for _ in range(count)]

    rows = []
    for name in BENCH.SUBSETS[:5]:
        for i in range(4):
            rows.append(bench_row(str(i), name, text(rng, 2, 6), replies(1), replies(3)))
    for n in range(3):
        for kind, correct in (("ref", 1), ("tied", 3)):
            prompt = text(rng, 2, 6)
            rows.append(bench_row(f"{kind}:{n}", "Ties", prompt, replies(correct), replies(2)))
    return rows


def bench_file(folder, rows):
    return write(folder / "bench.jsonl", rows)


def evaluate(folder, source, model, *flags, call=printed):
    common = ("--source", source, "--model", model, "--data", folder, "--results", folder)
    return call(SCRIPT, *common, *flags)


def table_of(folder, name="eval_rb2"):
    return pd.read_csv(folder / f"{name}.csv", index_col="reward")


# ------------------------------------------------------------------------------------ The score ---


def columns(*scores):
    return np.array(scores, dtype=float).T  # heads x replies -> (m, H)


def ties(rows, draws=0):
    """Scores (1 + draws, H) of [(id, correct, (m, H))]."""
    named = [{"id": row_id, "num_correct": number, "subset": "Ties"} for row_id, number, _ in rows]
    return BENCH.subset_scores(named, [scores for *_, scores in rows], draws)["Ties"]


def test_ties_by_hand(capsys):
    pairs = [  # 2 correct, then incorrect ones: margin, D, accurate; of ref
        ([5, 4, 1, 0], [9, 1, 2]),  # 3, 1, yes; 7
        ([9, 5, 4, 0], [5, 3, 3]),  # 1, 4, yes; 2: margin < D
        ([5, 5, 5, 1], [1, 2, 0]),  # 0, 0, no; -1: equal to the best wrong
        ([4, 4, 1, 1], [2, 1, 1]),  # 3, 0, yes; 1: correct ones exactly equal
    ]
    rows = []
    for n, (tied, ref) in enumerate(pairs):
        rows += [(f"tied:{n}", 2, columns(tied)), (f"ref:{n}", 1, columns(ref))]
    lonely = [("tied:4", 2, columns([1, 2, 3]))]  # counts for the accuracy alone
    # min(tied, ref) / D - 1; -1 / 0 and 1 / 0
    closeness = (np.tanh(3 / 1 - 1) + np.tanh(1 / 4 - 1) + -1 + 1) / 4
    expected = 0.30 * 3 / 5 + 0.30 * 3 / 4 + 0.20 * 2 / 4 + 0.20 * 2 / 4 + 0.01 * closeness
    value = ties(rows + lonely)[0, 0]
    assert value == pytest.approx(expected, abs=1e-12)
    assert np.isnan(ties(lonely)).all()
    BENCH.print_lonely([{"id": row_id, "subset": "Ties"} for row_id, *_ in rows + lonely])
    assert "1 of 9 Ties rows lack their ref or tied partner" in capsys.readouterr().out
    of_equals = [("tied:0", 2, columns([1, 1, 1])), ("ref:0", 1, columns([1, 1]))]
    assert ties(of_equals)[0, 0] == pytest.approx(0)  # 0 / 0 counts as zero
    negative = [(*row, -scores) for *row, scores in rows]
    two_heads = [(*row, np.concatenate([scores, -scores], axis=1)) for *row, scores in rows]
    each = [ties(some)[0, 0] for some in (rows, negative)]
    assert ties(two_heads)[0] == pytest.approx(each)  # a head's score is its own


def test_the_interval_over_rows_is_that_of_a_mean_of_subsets():
    rng = np.random.default_rng(0)
    rows, scores, right = [], [], []
    for name in BENCH.SUBSETS[:5]:
        wins = rng.random((200, 2)) < (0.5, 0.8)  # of the reference, of another reward
        right.append(wins)
        for number, won in enumerate(wins):
            rows.append({"id": str(number), "subset": name, "num_correct": 1})
            scores.append(np.stack([won * 2.0, np.ones(2)]))  # the correct reply has 2 or 0
    for number in range(40):  # pairs of which both rewards get everything right
        for kind, correct in (("ref", 1), ("tied", 2)):
            rows.append({"id": f"{kind}:{number}", "subset": "Ties", "num_correct": correct})
            scores.append(np.repeat([[9.0]] * correct + [[1.0]], 2, axis=1))
    by_subset = BENCH.subset_scores(rows, scores, BENCH.DRAWS)
    ((mean, low, high),) = BENCH.over_first(by_subset["Overall"])
    gains = [np.diff(wins * 1.0) for wins in right]
    assert mean == pytest.approx(sum(gain.mean() for gain in gains) / 6)
    half = 1.96 * np.square([gain.std() / 200**0.5 for gain in gains]).sum() ** 0.5 / 6
    assert (high - low) / 2 == pytest.approx(half, rel=0.15) and low < mean < high
    for name, wins in zip(BENCH.SUBSETS, right):
        low, high = BENCH.interval(by_subset[name])[0]  # of the reference
        half = 1.96 * wins[:, 0].std() / 200**0.5
        assert (high - low) / 2 == pytest.approx(half, rel=0.15) and low < wins[:, 0].mean() < high


def test_the_two_rows_of_a_pair_are_drawn_together():
    rows = [("ref:7", 1, columns([2, 1])), ("tied:7", 2, columns([2, 2, 1]))]
    assert np.allclose(ties(rows, 20), ties(rows))


def test_a_basis_that_lost_general_quality_is_called_so(capsys):
    names = ["reference head", "column 0", "mean mixture"]
    table = pd.DataFrame({"Math": [0.9, 0.5, 0.4], "Ties": [0.7, 0.6, 0.6]}, names)
    for some, points in ((table, "-30.0"), (table * 0 + 0.5, "+0.0")):
        RB2.print_lost(some)
        out = capsys.readouterr().out
        assert f"mean mixture: {points} points above the reference head" in out
        assert ("overfitting" in out) == (points == "-30.0")


# -------------------------------------------------------------------------------------- Rewards ---


@pytest.fixture(scope="module")
def a_basis(tmp_path_factory):
    path = tmp_path_factory.mktemp("basis") / "basis.safetensors"
    torch.manual_seed(0)
    V, W = torch.randn(32, 3), torch.rand(4, 3).softmax(1)
    basis = Basis(V, W[:3], ("user1", "user2", "user3"), W[3:], ("user9",))
    save_basis(path, basis)
    return path, basis


def test_heads_in_other_files_and_files_that_hold_none(tmp_path, a_basis):
    path, basis = a_basis
    for name, held in (
        ("V.pt", basis.V), ("dict.pt", {"V": basis.V, "W": basis.W}), ("weight.pt", basis.V[:, :1].T),
        ("other.pt", {"weights": basis.V}), ("code.pt", Counter),  # needs code: refused by weights_only
    ):  # fmt: skip
        torch.save(held, tmp_path / name)
    for name, held in (
        ("V", basis.V), ("three", np.ones((32, 2, 2))), ("none", np.ones((32, 0))), ("object", np.array([{}])),
        ("complex", np.ones((32, 2), dtype=complex)), ("nan", np.full((32, 2), np.nan)),
    ):  # fmt: skip
        np.save(tmp_path / name, held)
    (tmp_path / "text.pt").write_text("no tensor")
    (tmp_path / "empty.npy").touch()
    for name, columns in (
        ("V.pt", 3),
        ("dict.pt", 3),
        ("V.npy", 3),
        ("weight.pt", 1),
    ):  # (1, d): score.weight
        heads, _ = RB2.load_heads(tmp_path / name, 32, [])
        assert list(heads) == [f"column {k}" for k in range(columns)]
        assert torch.equal(torch.stack([*heads.values()], dim=1), basis.V[:, :columns])
    everybody = RB2.load_heads(path, 32, ["all"])[0]
    assert list(everybody)[-4:] == ["user1", "user2", "user3", "user9"]
    plain = "does not hold a plain tensor V"
    for name, width, users, words in (
        *((f"{name}.pt", 32, [], plain) for name in ("other", "code", "text")),
        *((f"{name}.npy", 32, [], plain) for name in ("object", "empty", "three", "none", "complex")),
        ("nan.npy", 32, [], "holds NaN or infinity"),
        ("V.pt", 31, [], "rewards of width 32, but the embeddings have 31"),
        (path, 31, [], "basis of width 32, but the embeddings have 31"),
        (path, 32, ["user7"], "has no user user7; it has 4, such as user1"),
        ("V.pt", 32, ["user1"], "only a .safetensors basis"),
        ("V.txt", 32, [], "is a .safetensors, .pt or .npy file"),
        ("missing.pt", 32, [], "cannot be read"),
    ):
        with pytest.raises(InputError, match=words):
            RB2.load_heads(tmp_path / name, width, users)


# ----------------------------------------------------------------------------------- The script ---


def test_every_head_gets_the_official_score_of_its_own_rewards(tmp_path, reward_model, a_basis):
    path, basis = a_basis
    rows = bench()
    rows[0]["rejected"][0] = rows[0]["chosen"][0]  # an exact tie
    too_long = bench_row("long", rejected=("no", "the cat sat " * 60, "it"))  # its row is left out whole
    source = bench_file(tmp_path, [too_long, *rows])
    flags = ("--max_length", 60, "--rm_head", path, "--users", "user2", "user9")
    out = evaluate(tmp_path, source, reward_model, *flags)
    assert "4 of 108 rows left out" in out
    table = table_of(tmp_path)
    names = ["reference head", "column 0", "column 1", "column 2", "mean mixture", "user2", "user9"]
    assert table.index.tolist() == names
    assert table.columns.tolist() == [*BENCH.SUBSETS, "Overall"]
    model = encoder(reward_model)
    W = torch.stack([basis.W.mean(0), basis.W[1], basis.W_unseen[0]])
    heads = torch.cat([model.head, basis.V, basis.V @ W.T], dim=1)  # (d, 7)
    credit = {}
    for row in rows:
        talks = [exchange(row["prompt"], reply) for reply in row["chosen"] + row["rejected"]]
        scores = (model.embed(talks) @ heads).numpy()
        if row["subset"] != "Ties":
            right = np.isclose(scores, scores.max(axis=0), atol=1e-6)
            credit.setdefault(row["subset"], []).append(right[0] / right.sum(axis=0))
    for subset, values in credit.items():
        assert table[subset].tolist() == pytest.approx(np.mean(values, axis=0)), subset
    assert np.allclose(table["Overall"], table[[*BENCH.SUBSETS]].mean(axis=1))
    rewards = report(tmp_path / "eval_rb2.json")["rows"]
    assert [row["reward"] for row in rewards] == names
    assert rewards[0]["Ties"] == pytest.approx(table["Ties"].iloc[0])
    assert len(rewards[0]["Ties_interval"]) == 2
    assert "points above the reference head, mean of the subsets" in out
    # as pandas writes it: num_correct 1.0, replies as arrays, a row twice and one of Ties twice
    frame = pd.DataFrame([too_long, *rows, rows[0], rows[-1]]).astype({"num_correct": float})
    frame.to_parquet(tmp_path / "bench.parquet")
    again = evaluate(tmp_path, tmp_path / "bench.parquet", reward_model, *flags)
    assert "2 rows that stand there a second time" in again and "second time" not in out
    assert "rb2: done already" in again and table.equals(table_of(tmp_path))
    pd.read_parquet(tmp_path / "rb2.parquet")[::-1].to_parquet(tmp_path / "rb2.parquet")
    done = evaluate(tmp_path, source, reward_model, *flags, call=call_script)
    assert_one_line_error(done, "rb2.parquet was changed by others")


def test_of_a_part_of_the_bench_there_is_no_overall(tmp_path, reward_model):
    source = bench_file(tmp_path, bench())
    out = evaluate(tmp_path, source, reward_model, "--subset", "precise if", "--limit", 2)
    assert "2 rows" in out and "percent; Overall is the mean of the six subsets, not all here" in out
    table = table_of(tmp_path, "eval_rb2_precise_if_first2")
    assert table.columns.tolist() == ["Precise IF", "Overall"] and np.isnan(table["Overall"]).all()
    rows = [row for row in bench() if not row["id"].startswith("tied")]
    out = evaluate(tmp_path, bench_file(tmp_path, rows), reward_model)
    assert "not all here" in out and "3 of 3 Ties rows lack" in out
    assert "without any pair there is no score" in out
    table = table_of(tmp_path)
    assert np.isnan(table["Ties"]).all() and np.isnan(table["Overall"]).all()


BAD = [
    (bench_row(subset="Poems"), "subset 'Poems'"),
    (bench_row(chosen=()), "chosen and rejected replies"),
    (bench_row() | {"rejected": ["a", ["b"]]}, "all of them text"),
    (bench_row() | {"rejected": "xyz"}, "chosen and rejected replies"),
    (bench_row() | {"num_correct": 2}, "num_correct is 2, chosen replies: 1"),
    (bench_row("7", "Ties"), "the id of a Ties row is ref:N or tied:N, not '7'"),
    (bench_row("tied:7", "Ties"), "1 correct replies"),
    (bench_row("ref:7", "Ties", chosen=("a", "b")), "2 correct replies"),
]


@pytest.mark.parametrize("row, words", BAD)
def test_rows_that_the_bench_does_not_have_end_with_file_and_line(tmp_path, row, words):
    with pytest.raises(InputError) as error:
        BENCH.read_bench(bench_file(tmp_path, [bench_row(), row]), "", 0)
    assert "bench.jsonl, line 2" in str(error.value) and words in str(error.value)


def test_what_else_the_bench_refuses(tmp_path, reward_model, text_encoder):
    torch.save(torch.randn(31, 2), tmp_path / "V.pt")
    source = bench_file(tmp_path, bench()[:4])
    again = write(tmp_path / "again.jsonl", [bench_row("ref:1", "Ties", prompt) for prompt in "ab"])
    for source_and_flags, *words in (
        ((tmp_path / "none.jsonl",), "no file or folder here", "cannot be fetched"),
        ((source, "--subset", "Math"), "holds no row of Math"),
        ((source, "--subset", "Maths"), "subset = Maths: use one of Factuality, Precise IF"),
        ((source, "--model", text_encoder, "--pooling", "mean"), "nothing to score"),
        ((source, "--users", "user1"), "name their basis with --rm_head"),
        ((source, "--model", reward_model, "--rm_head", tmp_path / "V.pt"), "width 31, but the embeddings have 32"),
        ((tmp_path,), "is a folder; name the JSON-lines or parquet file"),
        ((again,), "line 2", "ref:1 stands here for the second time"),
    ):  # fmt: skip
        done = call_script(SCRIPT, "--data", tmp_path / "data", "--source", *source_and_flags)
        assert_one_line_error(done, *words)
    assert not (tmp_path / "data").exists()  # nothing was embedded
