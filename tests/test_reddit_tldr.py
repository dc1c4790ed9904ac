"""RedditTLDR/ end to end, as a user starts it: upstream files in, table, JSON and picture out."""

import json
import random

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT, SHARED, assert_one_line_error, call_script, load_script, printed
from populations import assert_people_are_apart
from texts import report, text, write
from tiny import encoder

from lore.fit.basis import load_basis
from lore.settings import defaults_of
from lore.splits import load_split, save_split
from lore.text.conversations import exchange

FOLDER = ROOT / "RedditTLDR"
TRAIN, VARY = FOLDER / "train_basis.py", FOLDER / "vary_fewshot.py"
PEOPLE = load_script(FOLDER / "people.py")
MEAN = ("--pooling", "mean")
FEW = ("--min_comparisons", 4, "--max_few_shot", 6, "--num_iterations", 20)


def row(worker="w0", post="the cat sat", texts=(" short", " longer one"), choice=0, split="train"):
    """A comparison in the upstream format."""
    summaries = [{"text": text, "policy": "ref", "note": None} for text in texts]
    info = {"id": "t3_x", "post": post, "title": "t", "subreddit": "s"}
    fields = {"worker": worker, "choice": choice, "batch": "b", "split": split}
    return {"info": info, "summaries": summaries, **fields, "extra": {"confidence": 9}}


# a CNN/DM row of the batch files: an article and no post
NEWS = row() | {"info": {"id": "x", "site": "dailymail", "title": "t", "article": "long"}}


def many_rows(workers=6):
    """Sixteen of each worker, half of them of each side."""
    rng = random.Random(0)
    rows = []
    for split, count in (("train", 8), ("valid1", 4), ("valid2", 4)):
        posts = [text(rng, 20) for _ in range(30)]
        for number in range(workers * count):
            texts = (text(rng, 4), text(rng, 9))
            choice = (number // count + rng.randrange(4) // 3) % 2
            rows.append(row(f"w{number // count}", rng.choice(posts), texts, choice, split))
    return rows


def put(folder, name, rows):
    folder.mkdir(exist_ok=True, parents=True)
    write(folder / name, rows)


def prepare(folder, model, *flags, call=printed):
    common = ("--source", folder, "--model", model, "--data", folder / "data")
    return call(FOLDER / "prepare.py", *common, *flags)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, reward_model):
    """data/ made by prepare.py from batch files with a tiny reward model."""
    folder = tmp_path_factory.mktemp("reddit")
    rows = many_rows()
    put(folder, "batch0.json", rows[:48])
    put(folder, "batch1.jsonl.gz", [*rows[48:], NEWS])
    out = prepare(folder, reward_model)
    for side in ("train", "validation"):
        assert f"{side}: 48 comparisons by 6 workers" in out
    assert "left out: 1 x news (CNN/DM)" in out
    return folder / "data"


# ----------------------------------------------------------------------------------- prepare.py ---


def test_what_is_no_comparison_or_one_again_is_counted_and_left_out(tmp_path, text_encoder):
    same = row(texts=(" same ", "same"))
    rows = [row(post="  "), same, row(texts=("", "x")), row(), row(choice=1), NEWS, row("w1")]
    put(tmp_path, "b.json", rows)
    put(tmp_path, "copy.json.gz", rows)  # the same file under another name
    put(tmp_path, "other.json", [row(choice=choice) | {"batch": "other"} for choice in range(2)])
    out = prepare(tmp_path, text_encoder, *MEAN, "--limit", 2)
    assert "train: 3 comparisons by 2 workers on 1 posts" in out
    for words in (
        "2 x empty post or summary", "1 x two identical summaries", "1 x news", "2 x the same judgement again",
        "copy.json.gz holds the same as",
    ):  # fmt: skip
        assert words in out
    split = load_split(tmp_path / "data/train", "")
    assert split.frame[["chosen", "rejected"]].to_numpy().tolist() == [[0, 1], [1, 0]]
    talks = [exchange("the cat sat", reply) for reply in ("short", "longer one")]  # the first one won
    assert torch.allclose(split.table, encoder(text_encoder, "mean").embed(talks), atol=1e-5)


def test_what_others_have_rewritten_is_the_same_comparisons(tmp_path, text_encoder):
    """choice 1.0 is 1, a list from parquet is an array, the index says nothing, what a row lacks is null."""
    rows = [*many_rows(workers=3), NEWS]
    put(tmp_path / "plain", "b.json", rows)
    frame = pd.DataFrame(rows).astype({"choice": float})
    put(tmp_path / "floats", "b.json", json.loads(frame.to_json(orient="records")))
    nulls = dict.fromkeys(("post", "article", "site"))
    frame["info"] = [nulls | info for info in frame["info"]]
    for side, part in frame.groupby(frame["split"] != "train"):  # as refs/convert/parquet of the Hub
        folder = tmp_path / "parquet/comparisons" / ("validation" if side else "train")
        folder.mkdir(parents=True)
        part.to_parquet(folder / "0000.parquet")
    tables = []
    for name in ("plain", "floats", "parquet"):
        assert "left out: 1 x news" in prepare(tmp_path / name, text_encoder, *MEAN)
        tables += [load_split(tmp_path / name / "data" / side, "") for side in ("train", "validation")]
    for number, split in enumerate(tables):
        assert split.frame.equals(tables[number % 2].frame) and split.table.equal(tables[number % 2].table)


BAD = [
    ({"worker": ""}, "no worker"),
    ({"worker": 7}, "no worker"),
    ({"choice": 2}, "choice is 2"),
    ({"choice": "1"}, "choice is '1'"),
    ({"summaries": row()["summaries"][:1]}, "two summaries"),
    ({"summaries": ["a", "b"]}, "two summaries"),
    (row(post=None), "not text"),
    (row(texts=("a", ["b", "c"])), "not text"),
]


@pytest.mark.parametrize("change, words", BAD)
def test_rows_that_no_comparison_has_end_with_file_and_line(tmp_path, text_encoder, change, words):
    put(tmp_path, "b.json", [row(), row() | change])
    done = prepare(tmp_path, text_encoder, *MEAN, call=call_script)
    assert_one_line_error(done, "b.json, line 2", words)


def test_sources_without_a_comparison_end_with_one_line(tmp_path, text_encoder):
    for words in ("holds no batch files", "no comparison of Reddit posts"):
        assert_one_line_error(prepare(tmp_path, text_encoder, *MEAN, call=call_script), words)
        put(tmp_path, "b.json", [NEWS])


# ------------------------------------------------------------------------------------ people.py ---


def test_no_worker_and_no_comparison_is_on_two_sides():
    sides = PEOPLE.plant(defaults_of(PEOPLE, seed=0))
    train, test = sides.train, sides.test
    groups = PEOPLE.split(sides, 50, 30, 7, 0.0, seed=1)
    seen, unseen = groups.train.user_ids, groups.unseen.user_ids
    assert_people_are_apart(groups)
    counts = [group.counts.tolist() for group in groups]
    assert counts == [[30] * 20, [200] * 20, [7] * 20, [200] * 20]
    for group, split in zip(groups, (train, test, train, test)):  # a pair is that of who made it
        assert group.table is split.table
        made = set(zip(split.frame["user_id"], split.frame["chosen"], split.frame["rejected"]))
        users = np.array(group.user_ids)[group.user]
        assert set(zip(users, group.chosen.tolist(), group.rejected.tolist())) <= made
    assert PEOPLE.split(sides, 50, 30, 7, 0.0, seed=2).train.user_ids != seen
    fewer = test.frame["user_id"].isin(["planted0003", "planted0007"]) & (test.frame.index % 2 == 0)
    sides = sides._replace(test=test._replace(frame=test.frame[~fewer]))
    without = PEOPLE.split(sides, 1, 30, 7, 0.0, seed=1, drop_smallest=2)  # as published, of either side
    gone = {f"planted{number:04d}" for number in (0, 1, 3, 7)}  # those of equal size by name
    assert {*seen, *unseen} - {*without.train.user_ids, *without.unseen.user_ids} == gone


# -------------------------------------------------------------- train_basis.py, vary_fewshot.py ---


def test_from_comparisons_to_tables_pictures_and_bases(prepared, tmp_path):
    common = ("--data", prepared, "--results", tmp_path, *FEW)
    out = printed(TRAIN, *common, "--K_list", 0, 1, 2)
    assert "seen                3 workers      24 comparisons, d = 32" in out
    assert out.splitlines()[-1].startswith(f"results are in {tmp_path}")
    saved = report(tmp_path / "train_basis.json")
    assert [row["K"] for row in saved["rows"]] == [0, 1, 2]
    assert saved["settings"]["num_iterations"] == 20
    basis = load_basis(tmp_path / "train_basis_K2_alpha0_seed0.safetensors", 32)
    assert basis.V.shape == (32, 2) and len(basis.user_ids) == len(basis.W) == 3
    assert basis.model == load_split(prepared / "train", "").model != ""  # so eval_rb2 warns
    assert (tmp_path / "train_basis.png").exists()
    done = call_script(VARY, *common, "--num_shots", 7)
    assert_one_line_error(done, "shots = 7", "6 to draw from")


def test_one_prepared_side_needs_a_share_and_another_model_is_refused(prepared, tmp_path):
    validation = load_split(prepared / "validation", "")
    save_split(tmp_path / "validation", validation._replace(head=None))
    flags = ("--data", tmp_path, "--results", tmp_path, *FEW, "--K_list", 0, 2)
    assert_one_line_error(call_script(TRAIN, *flags), "--train_posts")
    out = printed(TRAIN, *flags, "--min_comparisons", 2, "--train_posts", 0.5)
    assert "posts on both the training and the test side: 0" in out
    assert "K = 0 is left out" in out and "0 reference" not in out
    assert [row["K"] for row in report(tmp_path / "train_basis.json")["rows"]] == [2]
    save_split(tmp_path / "train", load_split(prepared / "train", "")._replace(model="another"))
    assert_one_line_error(call_script(TRAIN, *flags), "embedded by different models", "another")


def test_settings_that_cannot_be_end_with_one_line(prepared):
    for flags, *words in (
        (("--K_lst", 3), "unrecognized arguments: --K_lst 3"),
        (("--rep", 2), "unrecognized arguments: --rep"),
        (("--K_list", -1), "--K_list -1"),
        (("--seed", 2**32), "a seed is below 2 ** 32"),
        (("--min_comparisons", 50), "0 workers have 50 comparisons", "--min_comparisons"),
        (("--max_train", 5, 5), "max_train holds a value twice"),
        (("--max_few_shot", 0), "--max_few_shot 0"),
        (("--repeats", 0), "repeats = 0"),
        (("--seed", 2**32 - 1, "--repeats", 2, "--resplit"), "below 2 ** 32"),
        (("--train_posts", 0.5), "one side only"),
        (("--results", prepared / "train.parquet"), "train.parquet"),
    ):
        assert_one_line_error(call_script(TRAIN, "--data", prepared, *FEW, *flags), *words)


@pytest.mark.skipif(not SHARED.exists(), reason=f"no real comparisons at {SHARED}: LORE_SHARED")
def test_real_comparisons_from_text_to_table(tmp_path, text_encoder):
    """The real Reddit rows; the encoder is tiny and random, so this is about the pipeline, not about accuracy."""
    common = ("--model", text_encoder, *MEAN, "--data", tmp_path, "--max_length", 64)
    out = printed(FOLDER / "prepare.py", "--source", SHARED / "tldr_comparisons", *common)
    assert "validation: 1776 comparisons by 31 workers on 1006 posts" in out
    assert "left out: 874 x news" in out
    assert "1776 rows, 2260 distinct conversations" in out
    flags = ("--data", tmp_path, "--results", tmp_path, "--train_posts", 0.5)
    flags = (*flags, "--min_comparisons", 10, "--num_iterations", 30)
    printed(TRAIN, *flags, "--K_list", 1, 2)
    rows = report(tmp_path / "train_basis.json")["rows"]
    far = "far from chance with a random encoder: look for a leak"
    assert all(0.4 < row["unseen"] < 0.7 for row in rows), far
    printed(VARY, *flags, "--K_list", 2, "--num_shots", 2, 8, "--trials", 3)
