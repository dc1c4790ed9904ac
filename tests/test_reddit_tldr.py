"""RedditTLDR/ end to end, as a user starts it: upstream files in, table, JSON and picture out."""

import gzip
import json
import random

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT, SHARED, assert_one_line_error, call_script, load_script, run_script
from texts import text

from lore.fit.basis import load_basis
from lore.settings import SETTING, defaults_of
from lore.splits import load_split
from lore.text.conversations import exchange
from lore.text.encoder import Encoder

FOLDER = ROOT / "RedditTLDR"
PEOPLE = load_script(FOLDER / "people.py")


def row(
    worker="w0",
    post="the cat sat",
    texts=(" short", " a longer one"),
    choice=0,
    split="train",
    **info,
):
    """A comparison in the upstream format."""
    summaries = [{"text": text, "policy": "ref", "note": None} for text in texts]
    fields = {
        "worker": worker,
        "choice": choice,
        "batch": "b",
        "split": split,
        "extra": {"confidence": 9},
    }
    return {
        "info": {"id": "t3_x", "post": post, "title": "t", "subreddit": "s", **info},
        "summaries": summaries,
        **fields,
    }


def news(**fields):
    """A CNN/DM row of the batch files: an article and no post."""
    return {
        **row(**fields),
        "info": {"id": "x", "site": "dailymail", "title": "t", "article": "long"},
    }


def many_rows(workers=6, per_side=8):
    rng = random.Random(0)

    rows = []
    for split in ("train", "valid1", "valid2"):
        posts = [text(rng, 20) for _ in range(30)]
        for w in range(workers):
            for _ in range(per_side if split == "train" else per_side // 2):
                texts = (f" {text(rng, 4)}", f" {text(rng, 9)}")
                rows.append(
                    row(
                        f"w{w}",
                        rng.choice(posts),
                        texts,
                        choice=(w + rng.randrange(4) // 3) % 2,
                        split=split,
                    )
                )
    return rows


def write(folder, name, rows):
    folder.mkdir(exist_ok=True, parents=True)
    content = "".join(json.dumps(r) + "\n" for r in rows)
    if name.endswith(".gz"):
        (folder / name).write_bytes(gzip.compress(content.encode()))
    else:
        (folder / name).write_text(content)
    return folder


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, reward_model):
    """data/ made by prepare.py from batch files with a tiny reward model."""
    base = tmp_path_factory.mktemp("reddit")
    rows = many_rows()
    write(base / "source", "batch0.json", rows[: len(rows) // 2])
    write(base / "source", "batch1.jsonl.gz", [*rows[len(rows) // 2 :], news()])
    done = call_script(
        FOLDER / "prepare.py",
        "--source",
        base / "source",
        "--model",
        reward_model,
        "--data",
        base / "data",
    )
    assert done[0] == 0, done[2]
    return base / "data", done[1]


FEW = ("--min_comparisons", 4, "--max_few_shot", 6)


def test_prepare_counts_what_it_keeps_and_says_where_it_is(prepared):
    data, out = prepared
    assert (
        "train: 48 comparisons by 6 workers" in out
        and "validation: 48 comparisons by 6 workers" in out
    )
    assert "left out: 1 x news (CNN/DM)" in out and str(data) in out
    split = load_split(data / "train", "")
    assert list(split.frame.columns) == ["user_id", "prompt", "chosen", "rejected"]
    assert split.table.shape[1] == 32 and split.head.shape == (32, 1)


def test_train_basis_from_the_top_and_from_its_own_folder(prepared, tmp_path):
    for name, script, cwd in (
        ("top", "RedditTLDR/train_basis.py", ROOT),
        ("own", "train_basis.py", FOLDER),
    ):
        results = tmp_path / name
        flags = (
            "--data",
            prepared[0],
            "--results",
            results,
            *FEW,
            "--K_list",
            0,
            1,
            2,
            "--num_iterations",
            20,
        )
        status, out, err = run_script(script, *flags, cwd=cwd)
        assert status == 0, err
        assert "seen                3 workers      24 comparisons, d = 32" in out
        assert out.splitlines()[-1].startswith(f"results are in {results}")
        report = json.loads((results / "train_basis.json").read_text())
        assert [r["K"] for r in report["rows"]] == [0, 1, 2] and report["settings"][
            "num_iterations"
        ] == 20
        assert (results / "train_basis.png").exists()
        basis = load_basis(results / "train_basis_K2_alpha0_seed0.safetensors", 32)
        assert basis.V.shape == (32, 2) and len(basis.user_ids) == len(basis.W) == 3
        assert basis.model == load_split(prepared[0] / "train", "").model != ""  # so eval_rb2 warns
    assert (tmp_path / "top/train_basis.json").read_text().split('"rows"')[1] == (
        (tmp_path / "own/train_basis.json").read_text().split('"rows"')[1]
    )


def test_vary_fewshot_draws_its_curve(prepared, tmp_path):
    flags = ("--data", prepared[0], "--results", tmp_path, *FEW, "--num_shots", 2, 4, "--trials", 3)
    status, out, err = run_script(FOLDER / "vary_fewshot.py", *flags, "--K_list", 1, 2)
    assert status == 0, err
    report = json.loads((tmp_path / "vary_fewshot.json").read_text())
    assert [(r["K"], r["shots"]) for r in report["rows"]] == [(1, 2), (1, 4), (2, 2), (2, 4)]
    assert (tmp_path / "vary_fewshot.png").exists() and "few-shot train" in out


def test_planted_workers_need_nothing_and_rank_pays(tmp_path):
    status, out, err = run_script(
        FOLDER / "train_basis.py", "--synthetic", "--results", tmp_path, "--K_list", 0, 1, 4
    )
    assert status == 0, err
    rows = {
        r["K"]: r for r in json.loads((tmp_path / "train_basis_synthetic.json").read_text())["rows"]
    }
    assert sum(line.startswith("best possible") for line in out.splitlines()) == 2  # two tables
    assert "tested items on which others were trained: 0 of" in out
    assert rows[4]["best"] and " * " in out
    assert rows[0]["unseen"] < rows[1]["unseen"] < rows[4]["unseen"] - 0.05
    assert rows[4]["unseen"] < rows["best"]["unseen"] and abs(rows["best"]["unseen"] - 0.9) < 0.02
    assert (tmp_path / "train_basis_synthetic.png").exists()


def test_the_hubs_converted_files_are_read_from_a_local_copy(tmp_path, text_encoder):
    """The folder layout and nested columns of refs/convert/parquet, where keys that a row lacks are null."""
    rows = many_rows(workers=2, per_side=4)
    for side in ("train", "validation"):
        folder = tmp_path / "hub" / "comparisons" / side
        folder.mkdir(parents=True)
        ours = [r for r in rows if (r["split"] == "train") == (side == "train")]
        null = {"post": None, "article": "news", "site": "dailymail"}
        frame = pd.DataFrame(
            [{**r, "info": {"article": None, "site": None, **r["info"]}} for r in ours]
        )
        frame = pd.concat(
            [
                frame,
                pd.DataFrame(
                    [{**row(split=ours[0]["split"]), "info": {**ours[0]["info"], **null}}]
                ),
            ]
        )
        frame.to_parquet(folder / "0000.parquet")
    flags = (
        "--source",
        tmp_path / "hub",
        "--model",
        text_encoder,
        "--pooling",
        "mean",
        "--data",
        tmp_path / "data",
    )
    status, out, err = run_script(FOLDER / "prepare.py", *flags)
    assert status == 0, err
    assert (
        "train: 8 comparisons by 2 workers" in out
        and "validation: 8 comparisons" in out
        and "2 x news" in out
    )
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
    assert (
        groups.train.counts.tolist() == [30] * 20
        and groups.few_shot_train.counts.tolist() == [7] * 20
    )
    assert groups.seen.counts.tolist() == groups.unseen.counts.tolist() == [200] * 20
    for group, split in zip(
        groups, (train, test, train, test)
    ):  # a pair belongs to the worker who made it
        made = set(zip(split.frame["user_id"], split.frame["chosen"], split.frame["rejected"]))
        owners = np.array(group.user_ids)[group.user]
        assert set(zip(owners, group.chosen.tolist(), group.rejected.tolist())) <= made
    other = PEOPLE.split(sides, 50, 30, 7, 0.0, seed=2)
    assert other.train.user_ids != seen


def test_one_side_is_dealt_out_by_post(prepared, tmp_path):
    for suffix in ("safetensors", "parquet"):
        (tmp_path / f"validation.{suffix}").write_bytes(
            (prepared[0] / f"validation.{suffix}").read_bytes()
        )
    sides = PEOPLE.load(tmp_path)
    train, test = PEOPLE.two_sides(sides, 0.5, seed=0)
    posts = set(train.frame["prompt"]), set(test.frame["prompt"])
    assert posts[0] and posts[1] and not posts[0] & posts[1]
    assert len(train.frame) + len(test.frame) == len(load_split(tmp_path / "validation", "").frame)
    groups = PEOPLE.split(sides, 2, 100, 100, 0.5, seed=0)
    rows = [set(g.chosen.tolist()) | set(g.rejected.tolist()) for g in groups]
    assert not (rows[0] | rows[2]) & (rows[1] | rows[3])


# ------------------------------------------------------------------------------------------------------------------


def prepare(folder, model, *flags):
    return call_script(
        FOLDER / "prepare.py",
        "--source",
        folder,
        "--model",
        model,
        "--pooling",
        "mean",
        "--data",
        folder / "data",
        *flags,
    )


def test_one_side_is_split_by_post_and_has_no_reference(tmp_path, text_encoder):
    write(tmp_path, "b.json", [r for r in many_rows(per_side=24) if r["split"] != "train"])
    assert prepare(tmp_path, text_encoder)[0] == 0
    flags = (
        "--data",
        tmp_path / "data",
        "--results",
        tmp_path / "results",
        *FEW,
        "--num_iterations",
        5,
        "--K_list",
        0,
        2,
    )
    assert_one_line_error(call_script(FOLDER / "train_basis.py", *flags), "--train_posts")
    status, out, err = call_script(FOLDER / "train_basis.py", *flags, "--train_posts", 0.5)
    assert status == 0, err
    assert "posts on both the training and the test side: 0" in out
    assert "K = 0 is left out" in out and "0 reference" not in out
    rows = json.loads((tmp_path / "results/train_basis.json").read_text())["rows"]
    assert [r["K"] for r in rows] == [2]


def test_empty_and_identical_texts_are_counted_and_left_out(tmp_path, text_encoder):
    odd = [
        row(post="  "),
        row(texts=(" same ", "same")),
        row(texts=("", "x")),
        row(),
        row(choice=1),
        news(),
    ]
    write(tmp_path, "b.json", odd)
    status, out, err = prepare(tmp_path, text_encoder)
    assert status == 0, err
    assert "train: 2 comparisons by 1 workers on 1 posts" in out
    assert (
        "2 x empty post or summary" in out
        and "1 x two identical summaries" in out
        and "1 x news" in out
    )
    split = load_split(tmp_path / "data/train", "")
    assert split.frame[["chosen", "rejected"]].to_numpy().tolist() == [[0, 1], [1, 0]]
    encoder = Encoder(str(text_encoder), "mean", torch.device("cpu"))
    short, longer = encoder.embed(
        [exchange("the cat sat", text) for text in ("short", "a longer one")]
    )
    first = split.frame.iloc[0]  # choice 0: the first summary won
    assert torch.equal(split.table[first["chosen"]], short) and torch.equal(
        split.table[first["rejected"]], longer
    )


def test_rows_that_pandas_has_rewritten_are_the_same_comparisons(tmp_path, text_encoder):
    """choice 1.0 is 1, a list from parquet is an array, the index says nothing."""
    rows = many_rows(workers=3)
    write(tmp_path / "plain", "b.json", rows)
    frame = pd.DataFrame(rows).astype({"choice": float})
    write(tmp_path / "floats", "b.json", json.loads(frame.to_json(orient="records")))
    for side, part in frame.groupby(frame["split"] != "train"):
        folder = tmp_path / "parquet/comparisons" / ("validation" if side else "train")
        folder.mkdir(parents=True)
        part.to_parquet(folder / "0000.parquet")
    tables = []
    for name in ("plain", "floats", "parquet"):
        status, _, err = prepare(tmp_path / name, text_encoder)
        assert status == 0, err
        tables.append(load_split(tmp_path / name / "data/train", ""))
    for other in tables[1:]:
        assert other.frame.equals(tables[0].frame) and torch.equal(other.table, tables[0].table)


def test_the_same_judgement_is_counted_once_and_said(tmp_path, text_encoder):
    rows = many_rows(workers=2)
    write(tmp_path, "batch1.json", rows)
    write(tmp_path, "copy.json.gz", rows)  # the same file under another name
    write(
        tmp_path, "other.json", [{**r, "batch": "other"} for r in rows[:5]]
    )  # under another batch
    (tmp_path / "._batch1.json").write_bytes(b"\0\5\26\7 Mac OS X")
    status, out, err = prepare(tmp_path, text_encoder)
    assert status == 0, err
    assert "train: 16 comparisons by 2 workers" in out and "5 x the same judgement again" in out
    assert "copy.json.gz holds the same as" in out


def test_limit_is_a_smoke_test(tmp_path, text_encoder):
    write(tmp_path, "b.json", many_rows())
    status, _, err = prepare(tmp_path, text_encoder, "--limit", 3)
    assert status == 0, err
    assert len(load_split(tmp_path / "data/train", "").frame) == 3


def test_a_second_run_skips_finished_work_and_another_model_is_refused(
    tmp_path, text_encoder, reward_model
):
    write(tmp_path, "b.json", many_rows(workers=2))
    assert prepare(tmp_path, text_encoder)[0] == 0
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "data").iterdir()}
    status, out, _ = prepare(tmp_path, text_encoder)
    assert status == 0 and out.count("done already") == 2
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "data").iterdir()}
    assert_one_line_error(
        prepare(tmp_path, reward_model), 'was made with {"model":', "use the same settings"
    )


@pytest.mark.parametrize(
    "bad, words",
    [
        ({**row(), "worker": None}, ["b.json, line 2", "no worker"]),
        ({**row(), "worker": ""}, ["b.json, line 2", "no worker"]),
        ({**row(), "choice": 2}, ["b.json, line 2", "choice is 2"]),
        ({**row(), "summaries": row()["summaries"][:1]}, ["b.json, line 2", "two summaries"]),
        ({**row(), "choice": 0.5}, ["b.json, line 2", "choice is 0.5"]),
        ({**row(), "choice": "1"}, ["b.json, line 2", "choice is '1'"]),
        ({**row(), "choice": True}, ["b.json, line 2", "choice is True"]),
        ({**row(), "summaries": ["a", "b"]}, ["b.json, line 2", "two summaries"]),
        (row(post=None), ["b.json, line 2", "not text"]),
        (row(texts=("a", ["b", "c"])), ["b.json, line 2", "not text"]),
        ({"hello": 1}, ["b.json, line 2", "no worker"]),
    ],
)
def test_rows_that_no_comparison_has_end_with_file_and_line(tmp_path, text_encoder, bad, words):
    write(tmp_path, "b.json", [row(), bad])
    assert_one_line_error(prepare(tmp_path, text_encoder), *words)


def test_broken_files_and_empty_sources_end_with_one_line(tmp_path, text_encoder, reward_model):
    (tmp_path / "b.json").write_text(json.dumps(row()) + "\n{broken\n")
    assert_one_line_error(prepare(tmp_path, text_encoder), "b.json, line 2", "broken JSON")
    write(tmp_path, "b.json", [news()])
    assert_one_line_error(prepare(tmp_path, text_encoder), "no comparison of Reddit posts")
    assert_one_line_error(
        prepare(tmp_path / "nowhere", text_encoder), "nowhere", "holds no batch files"
    )
    write(tmp_path, "b.json", [row()])
    assert_one_line_error(prepare(tmp_path, tmp_path / "no model"), "no model cannot be loaded")
    done = call_script(
        FOLDER / "prepare.py",
        "--source",
        tmp_path,
        "--model",
        text_encoder,
        "--data",
        tmp_path / "x",
    )
    assert_one_line_error(done, "has no chat template")


def test_training_without_data_names_the_command_that_makes_it(tmp_path):
    for script in ("train_basis.py", "vary_fewshot.py"):
        done = run_script(FOLDER / script, "--data", tmp_path)
        assert_one_line_error(done, "train.safetensors is missing", "python RedditTLDR/prepare.py")


def test_ridge_baselines_and_fresh_splits_from_the_shell(tmp_path):
    flags = ("--synthetic", "--results", tmp_path, "--K_list", 0, 1, 3, "--solver", "ridge")
    script = FOLDER / "train_basis.py"
    status, out, err = call_script(
        script, *flags, "--baselines", "--repeats", 2, "--resplit", "--alpha_list", 3
    )
    assert status == 0, err
    for words in (
        "alpha_list = [3.0] is not used",
        "ridge, seed 1: held-out loss",
        "± std over splits [95 % interval",
    ):
        assert words in out
    report = json.loads((tmp_path / "train_basis_synthetic.json").read_text())
    summary = {(row["K"], row["variant"]): row for row in report["summary"]}
    assert {*summary} >= {
        (3, "population mixture"),
        (3, "another user's"),
        (3, "shuffled labels"),
        ("best", ""),
    }
    assert (
        summary[3, ""]["unseen_gain"][1] > 0
        and summary["alone", "each user alone"]["alpha"] is None
    )
    chosen = [row["choice"] for row in report["rows"] if row["K"] == 3 and row["variant"] == ""]
    assert len(chosen) == 2 and all(
        choice["personal_spread"] and len(choice["gain"]) == 4 for choice in chosen
    )
    flags = (
        "--synthetic",
        "--results",
        tmp_path,
        "--K_list",
        1,
        3,
        "--solver",
        "ridge",
        "--num_shots",
        5,
        50,
    )
    status, out, err = call_script(FOLDER / "vary_fewshot.py", *flags)
    assert status == 0 and "over Bradley-Terry, unseen" in out, err
    assert_one_line_error(
        call_script(script, "--synthetic", "--results", tmp_path, "--solver", "x"), "adam", "ridge"
    )


def test_settings_that_cannot_be_end_with_one_line(prepared):
    flags = ("--data", prepared[0], *FEW)
    train, vary = FOLDER / "train_basis.py", FOLDER / "vary_fewshot.py"
    assert_one_line_error(call_script(train, "--K_lst", 3), "unrecognized arguments: --K_lst 3")
    assert_one_line_error(call_script(train, "--seed", "x"), "invalid int value: 'x'")
    assert_one_line_error(call_script(train, *flags, "--K_list", -1), "--K_list -1")
    assert_one_line_error(call_script(train, *flags, "--K_list", 33), "K = 33", "32")
    assert_one_line_error(
        call_script(train, "--data", prepared[0]),
        "0 workers have 50 comparisons",
        "--min_comparisons",
    )
    assert_one_line_error(call_script(train, *flags, "--device", "cuda:77"), "cuda:77")
    assert_one_line_error(call_script(train, *flags, "--max_train", -5), "--max_train -5")
    assert_one_line_error(call_script(train, *flags, "--rep", 2), "unrecognized arguments: --rep")
    assert_one_line_error(call_script(train, *flags, "--repeats", 0), "repeats = 0")
    assert_one_line_error(call_script(train, *flags, "--train_posts", 0.5), "one side only")
    assert_one_line_error(
        call_script(train, *flags, "--results", prepared[0] / "train.parquet"), "train.parquet"
    )
    assert_one_line_error(
        call_script(vary, *flags, "--num_shots", 7), "shots = 7", "6 to draw from"
    )


def test_nan_and_another_heads_width_on_disk_end_with_one_line(prepared, tmp_path):
    from lore.splits import save_split

    for broken, words in (
        (
            lambda s: s._replace(table=s.table.index_fill(0, torch.tensor([2]), float("nan"))),
            ["row 2", "NaN"],
        ),
        (lambda s: s._replace(head=s.head[:-1]), ["head has width 31", "32"]),
        (lambda s: s._replace(model="another"), ["train was embedded by another"]),
    ):
        save_split(tmp_path / "validation", load_split(prepared[0] / "validation", ""))
        save_split(tmp_path / "train", broken(load_split(prepared[0] / "train", "")))
        assert_one_line_error(
            call_script(FOLDER / "train_basis.py", "--data", tmp_path, *FEW), *words
        )


def test_help_of_every_script_is_quick_and_names_every_flag():
    for script, flags in (
        ("prepare.py", ["source", "model", "data", "device", "limit"]),
        ("train_basis.py", ["K_list", "data", "results", "seed", "device", "synthetic"]),
        (
            "vary_fewshot.py",
            ["K_list", "num_shots", "data", "results", "seed", "device", "synthetic"],
        ),
    ):
        status, out, err = run_script(FOLDER / script, "--help")
        assert status == 0 and not err and all(f"--{flag}" in out for flag in flags)
        block = (FOLDER / script).read_text().split("settings ---", 1)[1].split("# ---", 1)[0]
        matches = [SETTING.match(line) for line in block.splitlines()[1:] if line]
        assert all(match and match[2] for match in matches), (
            "a setting without its meaning on the same line"
        )


# ------------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(
    not SHARED.exists(),
    reason=f"real comparisons are not at {SHARED}; set LORE_SHARED to their folder",
)
def test_real_comparisons_from_text_to_table(tmp_path, text_encoder):
    """The real Reddit rows; the encoder is tiny and random, so this is about the pipeline, not about accuracy."""
    common = ("--model", text_encoder, "--pooling", "mean", "--data", tmp_path / "data")
    common += ("--max_length", 64, "--batch_tokens", 4096)
    status, out, err = run_script(
        FOLDER / "prepare.py", "--source", SHARED / "tldr_comparisons", *common
    )
    assert status == 0, err
    assert (
        "validation: 1776 comparisons by 31 workers on 1006 posts" in out
        and "left out: 874 x news" in out
    )
    assert "1776 rows, 2260 distinct conversations" in out
    flags = (
        "--data",
        tmp_path / "data",
        "--results",
        tmp_path / "results",
        "--train_posts",
        0.5,
        "--min_comparisons",
        10,
    )
    status, out, err = run_script(
        FOLDER / "train_basis.py", *flags, "--K_list", 1, 2, "--num_iterations", 50
    )
    assert status == 0, err
    rows = json.loads((tmp_path / "results/train_basis.json").read_text())["rows"]
    assert all(0.4 < r["unseen"] < 0.7 for r in rows), (
        "far from chance with a random encoder: look for a leak"
    )
    status, _, err = run_script(
        FOLDER / "vary_fewshot.py", *flags, "--num_shots", 2, 8, "--trials", 3
    )
    assert status == 0, err
