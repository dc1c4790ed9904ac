"""RedditTLDR/ end to end, as a user starts it: upstream files in, table, JSON and picture out."""

import json
import random
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT, SHARED, assert_one_line_error, call_script, load_script, run_script
from texts import text, write

from lore.fit.basis import load_basis
from lore.settings import defaults_of
from lore.splits import load_split, save_split
from lore.text.conversations import exchange
from lore.text.encoder import Encoder

FOLDER = ROOT / "RedditTLDR"
PEOPLE = load_script(FOLDER / "people.py")


def row(worker="w0", post="the cat sat", texts=(" short", " longer one"), choice=0, split="train"):
    """A comparison in the upstream format."""
    summaries = [{"text": text, "policy": "ref", "note": None} for text in texts]
    info = {"id": "t3_x", "post": post, "title": "t", "subreddit": "s"}
    fields = {"worker": worker, "choice": choice, "batch": "b", "split": split}
    return {"info": info, "summaries": summaries, **fields, "extra": {"confidence": 9}}


def news():
    """A CNN/DM row of the batch files: an article and no post."""
    return row() | {"info": {"id": "x", "site": "dailymail", "title": "t", "article": "long"}}


def many_rows(workers=6, per_side=8):
    rng = random.Random(0)
    rows = []
    for split, count in (("train", per_side), ("valid1", per_side // 2), ("valid2", per_side // 2)):
        posts = [text(rng, 20) for _ in range(30)]
        for w in range(workers):
            for _ in range(count):
                texts = (text(rng, 4), text(rng, 9))
                choice = (w + rng.randrange(4) // 3) % 2
                rows.append(row(f"w{w}", rng.choice(posts), texts, choice, split))
    return rows


def put(folder, name, rows):
    folder.mkdir(exist_ok=True, parents=True)
    write(folder / name, rows)


def prepare(folder, model, *flags):
    common = ("--source", folder, "--model", model, "--data", folder / "data")
    return call_script(FOLDER / "prepare.py", *common, *flags)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, reward_model):
    """data/ made by prepare.py from batch files with a tiny reward model."""
    folder = tmp_path_factory.mktemp("reddit")
    rows = many_rows()
    put(folder, "batch0.json", rows[: len(rows) // 2])
    put(folder, "batch1.jsonl.gz", [*rows[len(rows) // 2 :], news()])
    done = prepare(folder, reward_model)
    assert done[0] == 0, done[2]
    return folder / "data", done[1]


MEAN = ("--pooling", "mean")
FEW = ("--min_comparisons", 4, "--max_few_shot", 6)


def test_prepare_counts_what_it_keeps_and_says_where_it_is(prepared):
    data, out = prepared
    for side in ("train", "validation"):
        assert f"{side}: 48 comparisons by 6 workers" in out
    assert "left out: 1 x news (CNN/DM)" in out and str(data) in out
    split = load_split(data / "train", "")
    assert list(split.frame.columns) == ["user_id", "prompt", "chosen", "rejected"]
    assert split.table.shape[1] == 32 and split.head.shape == (32, 1)


def test_train_basis_from_the_top_and_from_its_own_folder(prepared, tmp_path):
    model = load_split(prepared[0] / "train", "").model
    rows = []
    for name, run in (
        ("top", partial(call_script, FOLDER / "train_basis.py")),
        ("folder", partial(run_script, "train_basis.py", cwd=FOLDER)),
    ):
        results = tmp_path / name
        flags = ("--data", prepared[0], "--results", results, *FEW, "--num_iterations", 20)
        status, out, err = run(*flags, "--K_list", 0, 1, 2)
        assert status == 0, err
        assert "seen                3 workers      24 comparisons, d = 32" in out
        assert out.splitlines()[-1].startswith(f"results are in {results}")
        report = json.loads((results / "train_basis.json").read_text())
        assert [r["K"] for r in report["rows"]] == [0, 1, 2]
        assert report["settings"]["num_iterations"] == 20
        assert (results / "train_basis.png").exists()
        basis = load_basis(results / "train_basis_K2_alpha0_seed0.safetensors", 32)
        assert basis.V.shape == (32, 2) and len(basis.user_ids) == len(basis.W) == 3
        assert basis.model == model != ""  # so eval_rb2 warns
        rows.append([(row["seen"], row["unseen"]) for row in report["rows"]])
    assert np.allclose(*rows, atol=0.05)  # a process of its own may round a margin of 0 otherwise


def test_vary_fewshot_draws_its_curve(prepared, tmp_path):
    flags = ("--data", prepared[0], "--results", tmp_path, *FEW, "--num_shots", 2, 4, "--trials", 3)
    fit = ("--num_iterations", 20, "--K_list", 1, 2)
    status, out, err = call_script(FOLDER / "vary_fewshot.py", *flags, *fit)
    assert status == 0, err
    report = json.loads((tmp_path / "vary_fewshot.json").read_text())
    assert [(r["K"], r["shots"]) for r in report["rows"]] == [(1, 2), (1, 4), (2, 2), (2, 4)]
    assert (tmp_path / "vary_fewshot.png").exists() and "few-shot train" in out


def test_planted_workers_need_nothing_and_rank_pays(tmp_path):
    flags = ("--synthetic", "--results", tmp_path, "--K_list", 0, 1, 4, "--num_iterations", 300)
    status, out, err = call_script(FOLDER / "train_basis.py", *flags)
    assert status == 0, err
    rows = json.loads((tmp_path / "train_basis_synthetic.json").read_text())["rows"]
    rows = {row["K"]: row for row in rows}
    assert sum(line.startswith("best possible") for line in out.splitlines()) == 2  # two tables
    assert "tested items on which others were trained: 0 of" in out
    assert rows[4]["best"] and " * " in out
    assert rows[0]["unseen"] < rows[1]["unseen"] < rows[4]["unseen"] - 0.05
    assert rows[4]["unseen"] < rows["best"]["unseen"] and abs(rows["best"]["unseen"] - 0.9) < 0.02
    assert (tmp_path / "train_basis_synthetic.png").exists()


def test_the_hubs_converted_files_are_read_from_a_local_copy(tmp_path, text_encoder):
    """The folder layout and nested columns of refs/convert/parquet, where keys that a row lacks are null."""
    nulls = {"post": None, "article": "news", "site": "dailymail"}
    for side in ("train", "validation"):
        rows = []
        for given in many_rows(workers=2, per_side=4):
            if (given["split"] == "train") == (side == "train"):
                rows.append(given | {"info": {"article": None, "site": None, **given["info"]}})
        rows.append(rows[0] | {"info": {**rows[0]["info"], **nulls}})
        folder = tmp_path / "comparisons" / side
        folder.mkdir(parents=True)
        pd.DataFrame(rows).to_parquet(folder / "0000.parquet")
    status, out, err = prepare(tmp_path, text_encoder, *MEAN)
    assert status == 0, err
    for words in ("train: 8 comparisons by 2 workers", "validation: 8 comparisons", "2 x news"):
        assert words in out
    assert load_split(tmp_path / "data/validation", "").head is None


def test_no_worker_and_no_comparison_is_on_two_sides():
    sides = PEOPLE.plant(defaults_of(PEOPLE, seed=0))
    train, test = sides.train, sides.test
    groups = PEOPLE.split(sides, 50, 30, 7, 0.0, seed=1)
    seen, unseen = groups.train.user_ids, groups.unseen.user_ids
    assert groups.seen.user_ids == seen and groups.few_shot_train.user_ids == unseen
    assert not set(seen) & set(unseen) and len(seen) == len(unseen) == 20
    assert groups.train.table is train.table and groups.few_shot_train.table is train.table
    assert groups.seen.table is test.table and groups.unseen.table is test.table
    assert groups.train.counts.tolist() == [30] * 20
    assert groups.few_shot_train.counts.tolist() == [7] * 20
    assert groups.seen.counts.tolist() == groups.unseen.counts.tolist() == [200] * 20
    for group, split in zip(groups, (train, test, train, test)):  # a pair is that of who made it
        made = set(zip(split.frame["user_id"], split.frame["chosen"], split.frame["rejected"]))
        users = np.array(group.user_ids)[group.user]
        assert set(zip(users, group.chosen.tolist(), group.rejected.tolist())) <= made
    other = PEOPLE.split(sides, 50, 30, 7, 0.0, seed=2)
    assert other.train.user_ids != seen
    fewer = test.frame["user_id"].isin(["planted0003", "planted0007"]) & (test.frame.index % 2 == 0)
    sides = sides._replace(test=test._replace(frame=test.frame[~fewer]))
    without = PEOPLE.split(sides, 1, 30, 7, 0.0, seed=1, drop_smallest=2)  # as published, of either side
    gone = {f"planted{number:04d}" for number in (0, 1, 3, 7)}  # those of equal size by name
    assert {*seen, *unseen} - {*without.train.user_ids, *without.unseen.user_ids} == gone


def test_one_side_is_dealt_out_by_post(prepared, tmp_path):
    for suffix in ("safetensors", "parquet"):
        (tmp_path / f"validation.{suffix}").write_bytes((prepared[0] / f"validation.{suffix}").read_bytes())
    sides = PEOPLE.load(tmp_path)
    train, test = PEOPLE.two_sides(sides, 0.5, seed=0)
    posts = set(train.frame["prompt"]), set(test.frame["prompt"])
    assert posts[0] and posts[1] and not posts[0] & posts[1]
    assert len(train.frame) + len(test.frame) == len(load_split(tmp_path / "validation", "").frame)
    groups = PEOPLE.split(sides, 2, 100, 100, 0.5, seed=0)
    rows = [set(g.chosen.tolist()) | set(g.rejected.tolist()) for g in groups]
    assert not (rows[0] | rows[2]) & (rows[1] | rows[3])


def test_one_side_is_split_by_post_and_has_no_reference(tmp_path, text_encoder):
    put(tmp_path, "b.json", [r for r in many_rows(per_side=24) if r["split"] != "train"])
    assert prepare(tmp_path, text_encoder, *MEAN)[0] == 0
    flags = ("--data", tmp_path / "data", "--results", tmp_path, *FEW, "--num_iterations", 5)
    flags = (*flags, "--K_list", 0, 2)
    assert_one_line_error(call_script(FOLDER / "train_basis.py", *flags), "--train_posts")
    status, out, err = call_script(FOLDER / "train_basis.py", *flags, "--train_posts", 0.5)
    assert status == 0, err
    assert "posts on both the training and the test side: 0" in out
    assert "K = 0 is left out" in out and "0 reference" not in out
    rows = json.loads((tmp_path / "train_basis.json").read_text())["rows"]
    assert [r["K"] for r in rows] == [2]


def test_empty_and_identical_texts_are_counted_and_left_out(tmp_path, text_encoder):
    same = row(texts=(" same ", "same"))
    odd = [row(post="  "), same, row(texts=("", "x")), row(), row(choice=1), news()]
    put(tmp_path, "b.json", odd)
    status, out, err = prepare(tmp_path, text_encoder, *MEAN)
    assert status == 0, err
    assert "train: 2 comparisons by 1 workers on 1 posts" in out
    for words in ("2 x empty post or summary", "1 x two identical summaries", "1 x news"):
        assert words in out
    split = load_split(tmp_path / "data/train", "")
    assert split.frame[["chosen", "rejected"]].to_numpy().tolist() == [[0, 1], [1, 0]]
    encoder = Encoder(str(text_encoder), "mean", torch.device("cpu"))
    talks = [exchange("the cat sat", reply) for reply in ("short", "longer one")]
    for column, expected in zip(("chosen", "rejected"), encoder.embed(talks)):  # the first one won
        assert torch.allclose(split.table[split.frame.iloc[0][column]], expected, atol=1e-5)


def test_rows_that_pandas_has_rewritten_are_the_same_comparisons(tmp_path, text_encoder):
    """choice 1.0 is 1, a list from parquet is an array, the index says nothing."""
    rows = many_rows(workers=3)
    put(tmp_path / "plain", "b.json", rows)
    frame = pd.DataFrame(rows).astype({"choice": float})
    put(tmp_path / "floats", "b.json", json.loads(frame.to_json(orient="records")))
    for side, part in frame.groupby(frame["split"] != "train"):
        folder = tmp_path / "parquet/comparisons" / ("validation" if side else "train")
        folder.mkdir(parents=True)
        part.to_parquet(folder / "0000.parquet")
    tables = []
    for name in ("plain", "floats", "parquet"):
        status, _, err = prepare(tmp_path / name, text_encoder, *MEAN)
        assert status == 0, err
        tables.append(load_split(tmp_path / name / "data/train", ""))
    for other in tables[1:]:
        assert other.frame.equals(tables[0].frame) and torch.equal(other.table, tables[0].table)


def test_the_same_judgement_is_counted_once_and_said(tmp_path, text_encoder):
    rows = many_rows(workers=2)
    put(tmp_path, "batch1.json", rows)
    put(tmp_path, "copy.json.gz", rows)  # the same file under another name
    put(tmp_path, "other.json", [row | {"batch": "other"} for row in rows[:5]])
    (tmp_path / "._batch1.json").write_bytes(b"\0\5\26\7 Mac OS X")
    status, out, err = prepare(tmp_path, text_encoder, *MEAN)
    assert status == 0, err
    assert "train: 16 comparisons by 2 workers" in out and "5 x the same judgement again" in out
    assert "copy.json.gz holds the same as" in out


def test_limit_is_a_smoke_test(tmp_path, text_encoder):
    put(tmp_path, "b.json", many_rows())
    status, _, err = prepare(tmp_path, text_encoder, *MEAN, "--limit", 3)
    assert status == 0, err
    assert len(load_split(tmp_path / "data/train", "").frame) == 3


def test_a_second_run_skips_finished_work_and_another_model_is_refused(tmp_path, text_encoder, reward_model):
    put(tmp_path, "b.json", many_rows(workers=2))
    assert prepare(tmp_path, text_encoder, *MEAN)[0] == 0
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "data").iterdir()}
    status, out, _ = prepare(tmp_path, text_encoder, *MEAN)
    assert status == 0 and out.count("done already") == 2
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "data").iterdir()}
    done = prepare(tmp_path, reward_model)
    assert_one_line_error(done, 'was made with {"model":', "use the same settings")


BAD = [
    ({"worker": None}, "no worker"),
    ({"worker": ""}, "no worker"),
    ({"choice": 2}, "choice is 2"),
    ({"choice": 0.5}, "choice is 0.5"),
    ({"choice": "1"}, "choice is '1'"),
    ({"choice": True}, "choice is True"),
    ({"summaries": row()["summaries"][:1]}, "two summaries"),
    ({"summaries": ["a", "b"]}, "two summaries"),
    (row(post=None), "not text"),
    (row(texts=("a", ["b", "c"])), "not text"),
]


@pytest.mark.parametrize("change, words", BAD)
def test_rows_that_no_comparison_has_end_with_file_and_line(tmp_path, text_encoder, change, words):
    put(tmp_path, "b.json", [row(), row() | change])
    assert_one_line_error(prepare(tmp_path, text_encoder, *MEAN), "b.json, line 2", words)


def test_broken_files_and_empty_sources_end_with_one_line(tmp_path, text_encoder, reward_model):
    (tmp_path / "b.json").write_text(json.dumps(row()) + "\n{broken\n")
    assert_one_line_error(prepare(tmp_path, text_encoder, *MEAN), "b.json, line 2", "broken JSON")
    put(tmp_path, "b.json", [news()])
    assert_one_line_error(prepare(tmp_path, text_encoder, *MEAN), "no comparison of Reddit posts")
    done = prepare(tmp_path / "nowhere", text_encoder, *MEAN)
    assert_one_line_error(done, "nowhere", "holds no batch files")
    put(tmp_path, "b.json", [row()])
    assert_one_line_error(prepare(tmp_path, tmp_path / "no model", *MEAN), "no model cannot be loaded")
    assert_one_line_error(prepare(tmp_path, text_encoder), "has no chat template")


def test_training_without_data_names_the_command_that_makes_it(tmp_path):
    for script in ("train_basis.py", "vary_fewshot.py"):
        done = call_script(FOLDER / script, "--data", tmp_path)
        assert_one_line_error(done, "train.safetensors is missing", "python RedditTLDR/prepare.py")


def test_ridge_baselines_and_fresh_splits_from_the_shell(tmp_path):
    few = ("--planted_workers", 36, "--planted_pairs", 100, "--planted_features", 32)
    flags = ("--synthetic", "--results", tmp_path, *few, "--solver", "ridge")
    more = ("--K_list", 0, 1, 3, "--baselines", "--repeats", 2, "--resplit", "--alpha_list", 3)
    status, out, err = call_script(FOLDER / "train_basis.py", *flags, *more)
    assert status == 0, err
    assert "alpha_list = [3.0] is not used" in out and "ridge, seed 1: held-out loss" in out
    assert "± std over splits [95 % interval" in out
    report = json.loads((tmp_path / "train_basis_synthetic.json").read_text())
    summary = {(row["K"], row["variant"]): row for row in report["summary"]}
    for variant in ("population mixture", "another user's", "shuffled labels"):
        assert (3, variant) in summary
    assert ("best", "") in summary and summary[3, ""]["unseen_gain"][1] > 0
    assert summary["alone", "each user alone"]["alpha"] is None
    chosen = [row["choice"] for row in report["rows"] if row["K"] == 3 and row["variant"] == ""]
    assert all(len(choice["tried"]) >= 4 for choice in chosen)
    assert all(choice["personal_spread"] for choice in chosen)
    flags = (*flags, "--K_list", 1, 3, "--num_shots", 5, 50, "--trials", 3)
    status, out, err = call_script(FOLDER / "vary_fewshot.py", *flags)
    assert status == 0 and "over Bradley-Terry, unseen" in out, err
    done = call_script(FOLDER / "vary_fewshot.py", *flags, "--solver", "x")
    assert_one_line_error(done, "adam", "ridge")


def test_settings_that_cannot_be_end_with_one_line(prepared):
    train = FOLDER / "train_basis.py"
    common = ("--data", prepared[0])
    for flags, *words in (
        (("--K_lst", 3), "unrecognized arguments: --K_lst 3"),
        (("--rep", 2), "unrecognized arguments: --rep"),
        (("--seed", "x"), "invalid int value: 'x'"),
        (("--K_list", -1), "--K_list -1"),
        (("--K_list", 33), "K = 33", "32"),
        (("--min_comparisons", 50), "0 workers have 50 comparisons", "--min_comparisons"),
        (("--device", "cuda:77"), "cuda:77"),
        (("--max_train", -5), "--max_train -5"),
        (("--max_few_shot", 0), "--max_few_shot 0"),
        (("--repeats", 0), "repeats = 0"),
        (("--seed", 2**32 - 1, "--repeats", 2, "--resplit"), "below 2 ** 32"),
        (("--train_posts", 0.5), "one side only"),
        (("--results", prepared[0] / "train.parquet"), "train.parquet"),
    ):
        assert_one_line_error(call_script(train, *common, *FEW, *flags), *words)
    done = call_script(FOLDER / "vary_fewshot.py", *common, *FEW, "--num_shots", 7)
    assert_one_line_error(done, "shots = 7", "6 to draw from")


def test_nan_and_another_heads_width_on_disk_end_with_one_line(prepared, tmp_path):
    train = load_split(prepared[0] / "train", "")
    save_split(tmp_path / "validation", load_split(prepared[0] / "validation", ""))
    nan = train.table.index_fill(0, torch.tensor([2]), float("nan"))
    for broken, *words in (
        (train._replace(table=nan), "row 2", "NaN"),
        (train._replace(head=train.head[:-1]), "head has width 31", "32"),
        (train._replace(model="another"), "train was embedded by another"),
    ):
        save_split(tmp_path / "train", broken)
        done = call_script(FOLDER / "train_basis.py", "--data", tmp_path, *FEW)
        assert_one_line_error(done, *words)


# ------------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not SHARED.exists(), reason=f"no real comparisons at {SHARED}: LORE_SHARED")
def test_real_comparisons_from_text_to_table(tmp_path, text_encoder):
    """The real Reddit rows; the encoder is tiny and random, so this is about the pipeline, not about accuracy."""
    common = ("--model", text_encoder, *MEAN, "--data", tmp_path, "--max_length", 64)
    source = ("--source", SHARED / "tldr_comparisons")
    status, out, err = call_script(FOLDER / "prepare.py", *source, *common)
    assert status == 0, err
    assert "validation: 1776 comparisons by 31 workers on 1006 posts" in out
    assert "left out: 874 x news" in out
    assert "1776 rows, 2260 distinct conversations" in out
    flags = ("--data", tmp_path, "--results", tmp_path, "--train_posts", 0.5)
    flags = (*flags, "--min_comparisons", 10, "--num_iterations", 30)
    status, _, err = call_script(FOLDER / "train_basis.py", *flags, "--K_list", 1, 2)
    assert status == 0, err
    rows = json.loads((tmp_path / "train_basis.json").read_text())["rows"]
    far = "far from chance with a random encoder: look for a leak"
    assert all(0.4 < row["unseen"] < 0.7 for row in rows), far
    few = ("--K_list", 2, "--num_shots", 2, 8, "--trials", 3)
    status, _, err = call_script(FOLDER / "vary_fewshot.py", *flags, *few)
    assert status == 0, err
