"""PersonalLLM/ from upstream columns to the paper's table, as a user runs it."""

import random
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT, assert_one_line_error, call_script, load_script, printed
from populations import assert_people_are_apart
from texts import report, text
from tiny import encoder

from lore.common import InputError
from lore.fit.basis import basis_path, load_basis
from lore.settings import defaults_of
from lore.splits import load_split, save_split
from lore.text.conversations import exchange

FOLDER = ROOT / "PersonalLLM"
TRAIN, VARY = FOLDER / "train_basis.py", FOLDER / "vary_fewshot.py"
PREPARE = load_script(FOLDER / "prepare.py")
PEOPLE = load_script(FOLDER / "people.py")
NAMES = PREPARE.REWARD_MODELS


def planted(prompts, tests, features=64, seed=0, **changed):
    sizes = {"planted_prompts": prompts, "planted_tests": tests, "planted_features": features}
    return PEOPLE.plant(defaults_of(PEOPLE, seed=seed, **sizes, **changed))


def drawn(sides, a, num_seen, num_unseen, train_prompts, few_shot_prompts, seed):
    """Groups of a population, and the true mixtures of its seen people."""
    groups = PEOPLE.split(sides, a, num_seen, num_unseen, train_prompts, few_shot_prompts, seed)
    return groups, PEOPLE.true_mixtures(sides, a, "seen", num_seen, seed)[0]


def upstream(prompts, responses=8, seed=0):
    """Data frame in the upstream columns; scores are random numbers, of another scale for each reward model."""
    rng = random.Random(seed)
    rows = []
    for number in range(prompts):
        row = {"prompt": text(rng, 2, 8), "subset": "s", "prompt_id": number}
        for i in range(1, responses + 1):
            row |= {f"response_{i}": f"{text(rng, 2, 8)} {i}", f"response_{i}_model": "m"}
            row |= {f"response_{i}_{name}": rng.gauss(0, 1 + 9 * n) for n, name in enumerate(NAMES)}
        rows.append(row)
    return pd.DataFrame(rows)


def write(folder, train, test):
    folder.mkdir(parents=True, exist_ok=True)
    for side, frame in (("train", train), ("test", test)):
        frame.to_parquet(folder / f"{side}-00000-of-00001.parquet")


def prepare(folder, model, *flags, call=printed):
    common = ("--source", folder, "--data", folder / "data", "--model", model)
    return call(FOLDER / "prepare.py", *common, *flags)


FEW = ("--num_seen", 6, "--num_unseen", 4, "--train_prompts", 8, "--num_iterations", 20)
QUICK = (*FEW, "--few_shot_prompts", 3)
MEAN = ("--pooling", "mean")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, reward_model):
    folder = tmp_path_factory.mktemp("personalllm")
    train = upstream(21)
    train.loc[2, "response_5"] = "the cat sat " * 60  # too long: the prompt is left out whole
    write(folder, train, upstream(7, seed=1))
    out = prepare(folder, reward_model, "--max_length", 100)
    assert "train: 21 prompts, 8 responses each" in out and "8 of 168 rows left out" in out
    assert "test: 7 prompts" in out and "% saved" in out
    return folder


@pytest.mark.parametrize("rewritten", [False, True])
def test_every_response_has_its_own_vector_and_its_own_scores(prepared, tmp_path, reward_model, rewritten):
    """As prepared, and as others have rewritten it: rows and columns in another order, other columns."""
    for name in ("train", "test"):
        side = load_split(prepared / f"data/{name}", "", columns=["reply"])
        assert list(side.frame) == ["prompt", "response", "reply", *NAMES]
        frame = side.frame.sample(frac=1, random_state=3).rename_axis("row").assign(length=7, note="x")
        save_split(tmp_path / name, side._replace(frame=frame[[*reversed(list(frame))]]))
    sides = PEOPLE.load(tmp_path if rewritten else prepared / "data")
    assert sides.head.shape == (32, 1)
    alone = encoder(reward_model, share=False)
    for side, original in ((sides.train, upstream(21).drop(index=2)), (sides.test, upstream(7, seed=1))):
        assert side.scores.shape == (len(original), 8, 10)
        for prompt, response in ((0, 0), (3, 7), (6, 2)):
            row, text = original.iloc[prompt], f"response_{response + 1}"
            vector = side.table[side.reply[prompt, response]]
            assert torch.allclose(vector, alone.embed([exchange(row["prompt"], row[text])])[0], atol=1e-5)
            assert side.scores[prompt, response].tolist() == [row[f"{text}_{name}"] for name in NAMES]


def test_parts_odd_texts_and_a_second_run(tmp_path, text_encoder):
    train, test = upstream(6), upstream(3, seed=1)
    for number, column, odd in ((1, "response_2", "None"), (2, "prompt", "12"), (5, "response_8", "")):
        train.loc[number, column] = odd
    test.loc[0, "prompt"] = train.loc[0, "prompt"]
    for number, part in enumerate((train[:4], train[4:])):
        part.to_csv(tmp_path / f"train-0000{number}-of-00002.csv", index=False)
    test.to_csv(tmp_path / "test.csv", index=False)
    (tmp_path / "train_log.csv").write_text("not data")
    (tmp_path / "copy").mkdir()
    shutil.copy(tmp_path / "test.csv", tmp_path / "copy")
    out = prepare(tmp_path, text_encoder, *MEAN)
    assert "train: 6 prompts" in out and "holds the same as" in out
    assert "warning: prompts on both the training and the test side: 1" in out
    sides = PEOPLE.load(tmp_path / "data")
    assert sides.train.scores.shape == (6, 8, 10)
    assert sides.train.scores[5, 1, 0] == pytest.approx(train["response_2_gemma_2b"][5])
    out = prepare(tmp_path, text_encoder, *MEAN)  # data/ lies in --source
    assert out.count("done already") == 2
    done = prepare(tmp_path, text_encoder, *MEAN, "--limit", 3, call=call_script)
    assert_one_line_error(done, "take the same settings and text (--limit)")
    (tmp_path / "train.csv").write_text("prompt")
    done = prepare(tmp_path, text_encoder, *MEAN, call=call_script)  # do they hold the same?
    needed = "one train.parquet, .csv or .jsonl, or its parts"
    assert_one_line_error(done, needed, "-of-00002.csv", "train.csv")
    for file in tmp_path.glob("train*.csv"):
        file.unlink()
    done = prepare(tmp_path, text_encoder, *MEAN, call=call_script)
    assert_one_line_error(done, f"{needed} train-00000-of-00001.., is needed: none")


def test_what_prepare_refuses(tmp_path, text_encoder):
    good = upstream(3)
    name = "response_3_gemma_2b"
    for bad, words in (
        (good.drop(columns="response_2_beaver_7b"), "row 0 has no number in response_2_beaver_7b"),
        (good.drop(columns="prompt"), "row 0: prompt is missing or no text"),
        (good.drop(columns="response_4"), "row 0: response_4 is missing"),
        (good.assign(**{name: [1.0, 2.0, float("inf")]}), f"row 2 has no number in {name}"),
        (good.assign(**{name: ["1", "2", "x"]}), f"row 2 has no number in {name}"),
        (good.assign(response_4=["a", None, "b"]), "row 1: response_4 is missing or no text"),
        (upstream(3, responses=1), "1 columns response_1, response_2, ..; a comparison needs two"),
        (good[:0], "no test prompts"),
    ):
        write(tmp_path, good, bad)
        done = prepare(tmp_path, text_encoder, *MEAN, call=call_script)
        assert_one_line_error(done, "test", words)


def test_from_embeddings_to_the_papers_table_and_pictures(prepared, tmp_path):
    common = ("--data", prepared / "data", "--results", tmp_path)
    out = printed(TRAIN, *common, *QUICK, "--K_list", 0, 1, 3, "--dirichlet_list", 0.001, 0.1)
    header, *lines = out.strip().splitlines()[-5:-1]
    assert header.split("  ")[0] == "K" and "a = 0.001: seen" in header and "overall" in header
    for a in ("0.001", "0.1"):
        output = tmp_path / f"train_basis_a{a}"
        rows = report(tmp_path / f"train_basis_a{a}.json")["rows"]
        assert [row["K"] for row in rows] == [0, 1, 3]
        for picture in (f"train_basis_a{a}.png", f"train_basis_a{a}_mixtures.png"):
            assert (tmp_path / picture).exists()
        basis = load_basis(basis_path(output, 3, 0.0, 0), 32)
        assert len(basis.user_ids) == 6 and len(basis.unseen_ids) == 4
    overall = [(6 * row["seen"] + 4 * row["unseen"]) / 10 for row in rows]  # of 0.1, the last column
    assert [line.split()[-1] for line in lines] == [f"{100 * value:.1f}" for value in overall]
    printed(TRAIN, *common, *QUICK, "--K_list", 0, "--dirichlet_list", 0.1, "--standardise")
    (standardised,) = report(tmp_path / "train_basis_standardised_a0.1.json")["rows"]
    assert standardised["of_each_user"] != rows[0]["of_each_user"]
    flags = (*common, *FEW, "--dirichlet_list", 0.1, "--max_shots", 12, "--trials", 2, "--num_shots")
    printed(VARY, *flags, 1, 12)
    rows = report(tmp_path / "vary_fewshot_a0.1.json")["rows"]
    assert [(row["K"], row["shots"]) for row in rows] == [(K, s) for K in (1, 5) for s in (1, 12)]
    assert (tmp_path / "vary_fewshot_a0.1.png").exists()
    done = call_script(VARY, *flags, 13)
    assert_one_line_error(done, "shots = 13", "12 to draw from")


def test_a_pair_is_the_best_against_the_worst_of_the_eight():
    sides = planted(50, 20, 8)
    train, test, *_ = sides
    groups, weights = drawn(sides, 0.1, 5, 4, 7, 3, seed=1)
    assert [g.counts.tolist() for g in groups] == [[7] * 5, [20] * 5, [3] * 4, [20] * 4]
    assert_people_are_apart(groups)
    for group, side in zip(groups, (train, test, train, test)):
        assert group.table is side.table  # nothing is copied
    for group, side in zip(groups[:2], sides):
        for user, chosen, rejected in zip(group.user, group.chosen.tolist(), group.rejected.tolist()):
            score = side.scores[chosen // 8] @ weights[user]
            assert [*side.reply[chosen // 8, [score.argmax(), score.argmin()]]] == [chosen, rejected]
    pairs = set(zip(groups.train.user.tolist(), (groups.train.chosen // 8).tolist()))
    assert len(pairs) == 35  # each prompt once per person
    numbers = set()  # of side and prompt, everywhere the same
    for side, group in zip("abab", groups):
        numbers |= {(side, *pair) for pair in zip((group.chosen // 8).tolist(), group.prompt.tolist())}
    assert len(numbers) == len({number[:2] for number in numbers}) == len({number[2] for number in numbers})


def test_a_population_does_not_depend_on_the_others():
    sides = planted(50, 20, 8)
    first, weights = drawn(sides, 0.01, 5, 4, 7, 3, seed=1)
    assert np.array_equal(weights, drawn(sides, 0.01, 5, 4, 7, 3, seed=1)[1])  # the same draws
    # fewer people, more prompts: the same people
    more, some = drawn(sides, 0.01, 3, 6, 9, 5, seed=1)
    assert np.array_equal(weights[:3], some)
    assert torch.equal(more.unseen.chosen[: 4 * 20], first.unseen.chosen)
    assert set(first.train.chosen[:7].tolist()) <= set(more.train.chosen[:9].tolist())
    for a, seed in ((0.1, 1), (0.01, 2)):
        assert not np.array_equal(weights, drawn(sides, a, 5, 4, 7, 3, seed=seed)[1])
    assert np.allclose(weights.sum(1), 1) and np.isfinite(weights).all()


def test_prompts_whose_responses_are_all_equal_are_left_out_and_counted(capsys):
    sides = planted(50, 20, 8)
    train, test, *_ = sides
    test.scores[3] = 1.5
    groups, _ = drawn(sides, 0.1, 5, 4, 7, 3, seed=1)
    assert groups.seen.counts.tolist() == [19] * 5 and groups.unseen.counts.tolist() == [19] * 4
    assert "left out: 9 times a prompt of a person" in capsys.readouterr().out
    train.scores[:30] = 0.0  # people keep their number of pairs, from other prompts
    groups, _ = drawn(sides, 0.1, 5, 4, 7, 3, seed=1)
    assert groups.train.counts.tolist() == [7] * 5 and (groups.train.chosen >= 240).all()
    test.reply[4] = test.reply[4, 0]  # eight times the same text: no person can tell
    groups, _ = drawn(sides, 0.1, 5, 4, 7, 3, seed=1)
    assert groups.seen.counts.tolist() == [18] * 5
    train.scores[:46] = 0.0
    with pytest.raises(InputError, match="seen0000: 4 prompts tell responses apart, 7 were asked"):
        drawn(sides, 0.1, 5, 4, 7, 3, seed=1)


def test_standardised_scores_have_one_scale_taken_from_training():
    sides = planted(500, 50, 8)
    wide = [side._replace(scores=side.scores * np.arange(1, 11) + 3) for side in sides[:2]]
    ours, tests, *_ = sides._replace(train=wide[0], test=wide[1]).standardised()
    assert np.allclose(ours.scores.mean((0, 1)), 0) and np.allclose(ours.scores.std((0, 1)), 1)
    scale, shift = wide[0].scores.std((0, 1)), wide[0].scores.mean((0, 1))
    assert np.allclose(tests.scores * scale + shift, wide[1].scores)
    sides.train.scores[..., 2] = 1.0
    with pytest.raises(InputError, match="reward model number 2 gives all training responses one"):
        sides.standardised()


def test_planted_reward_models_agree_as_much_as_they_say():
    sides = planted(2000, 10, planted_agreement=0.3, planted_unexplained=0.2)
    train, test, *_ = sides
    correlation = np.corrcoef(train.scores.reshape(-1, 10).T)
    off = correlation[~np.eye(10, dtype=bool)]
    assert off.mean() == pytest.approx(0.3 * 0.8, abs=0.07)  # what no embedding tells is not shared
    assert train.scores.shape == (2000, 8, 10) and test.reply.shape == (10, 8)
    X = train.table.numpy()
    scores = train.scores.reshape(-1, 10)
    residual = scores - X @ np.linalg.lstsq(X, scores, rcond=None)[0]
    assert residual.var() == pytest.approx(0.2, abs=0.02)


def test_what_training_refuses(prepared, tmp_path):
    for extra, *words in (
        (("--dirichlet_list", 0.1, 0), "0 is no Dirichlet parameter"),
        (("--dirichlet_list", 0.1, 0.1), "holds a value twice"),
        (("--synthetic", "--planted_agreement", 2), "agreement up to 1"),
        (("--synthetic", "--planted_tests", 0), "at least one prompt"),
        (("--train_prompts", 21), "21 and 3 prompts a person", "between 1 and 20"),
        (("--few_shot_prompts", 0), "8 and 0 prompts a person"),
        (("--num_unseen", 0), "at least one person each"),
    ):
        assert_one_line_error(call_script(TRAIN, "--data", prepared / "data", *QUICK, *extra), *words)
    train, test = (load_split(prepared / f"data/{name}", "", columns=["reply"]) for name in ("train", "test"))
    frame = test.frame
    narrow = {"table": test.table[:, :31], "head": test.head[:31]}
    save_split(tmp_path / "train", train)
    for broken, words in (
        (narrow, "differ in width: 32 and 31"),
        ({"model": "another"}, "differ in model"),
        ({"frame": frame[:-1]}, "test.parquet: 55 rows are not 8 responses to each of 7"),
        ({"frame": frame[:0]}, "0 rows are not"),
        ({"frame": frame.iloc[[0, *range(55)]]}, "56 rows are not 8 responses to each of 7"),
        ({"frame": frame[frame["response"] < 4]}, "differ in responses: 8 and 4"),
        ({"frame": frame.assign(gemma_2b=float("nan"))}, "a score that is no number"),
        ({"frame": frame.assign(gemma_2b="x")}, "a score that is no number"),
    ):
        save_split(tmp_path / "test", test._replace(**broken))
        assert_one_line_error(call_script(TRAIN, "--data", tmp_path, *QUICK), words)
