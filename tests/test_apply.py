"""apply/ end to end on a basis of a tiny reward model, and what it refuses."""

import json
import math
import re
import shutil
from itertools import chain

import numpy as np
import pytest
import texts
import torch
from best_of_n import best_of, choose, counts_of, vote_of
from conftest import ROOT, assert_one_line_error, call_script
from doubts import Doubts
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import encoder
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import checkpoint_export
import saved_basis
from lore.fit.basis import Basis, load_basis, save_basis
from lore.fit.likelihood import LOGIT_SCALE
from lore.text.conversations import exchange

APPLY = ROOT / "apply"


def apply(name, basis, source, output, *flags):
    """A script of apply/ with what is not None of its files: (exit status, stdout, stderr)."""
    files = {"--basis": basis, "--input": source, "--output": output}
    named = [(flag, file) for flag, file in files.items() if file is not None]
    return call_script(APPLY / f"{name}.py", *chain(*named), *flags)


def applied(*arguments):
    """What it prints, where it ends well."""
    status, out, err = apply(*arguments)
    assert status == 0, err
    return out


def by_score(basis, rows, output):
    """{user: rewards of the rows of a file}, as score.py writes them; None is the population."""
    applied("score", basis, rows, output, "--everybody")
    lines = texts.read(output)
    rewards = {user: [line["rewards"][user] for line in lines] for user in load_basis(basis).everybody}
    return rewards | {None: [line["population"] for line in lines]}


@pytest.mark.parametrize("block", [saved_basis.BLOCK, 1])
def test_scores_are_those_of_each_persons_own_head(
    with_deviations, model, rows, tmp_path, monkeypatch, block
):
    monkeypatch.setattr(saved_basis, "BLOCK", block)
    rewards = by_score(with_deviations, rows, tmp_path / "scored.jsonl")
    saved = load_basis(with_deviations)
    talks = [exchange(row["prompt"], row["response"]) for row in texts.read(rows)]
    vectors = encoder(model).embed(talks)
    W, E = torch.cat([saved.W, saved.W_unseen]), torch.cat([saved.E, saved.E_unseen])
    expected = dict(zip(saved.everybody, (vectors @ saved.V @ W.T + vectors @ E.T).T))
    expected[None] = vectors @ saved.V @ saved.W.mean(0)
    for user, values in expected.items():
        assert rewards[user] == pytest.approx((values / LOGIT_SCALE).tolist(), abs=1e-4)
    assert [row["id"] for row in texts.read(tmp_path / "scored.jsonl")] == [0, 1, 2, 3]


def test_an_encoder_that_has_changed_is_refused(basis, model, rows, tmp_path, text_encoder):
    files = (basis, rows, tmp_path / "o.jsonl")
    moved = shutil.copytree(model, tmp_path / "moved")
    applied("score", *files, "--model", moved)  # the same, elsewhere
    with open(moved / "chat_template.jinja", "a") as template:
        template.write("!")
    for model, *words in (
        (moved, "version", "not the same model, template"),
        (text_encoder, "not the same model"),
        (tmp_path / "none", "no folder", "--model"),
    ):
        assert_one_line_error(apply("score", *files, "--model", model), *words)


def test_new_people_are_taken_in_and_everything_else_takes_them(basis, rows, tmp_path):
    names = ("ann", "bob")
    everybody = texts.comparisons(users=2, prompts=10, seed=5)
    pairs = [row | {"user_id": names[row["user_id"]], "split": "train"} for row in everybody[:-9]]
    pairs[:4] = [row | {"prompt_id": "one"} for row in pairs[:4]]  # two pairs each
    pairs += [row | {"user_id": "eve", "split": "test"} for row in everybody[-9:]]
    source = texts.write(tmp_path / "new.jsonl", [*pairs, pairs[0] | {"user_id": "ann "}])
    output = tmp_path / "adapted.safetensors"
    out = applied("adapt", basis, source, output)
    assert "certificate" in out and "left out: 1 x the same judgement again" in out
    assert "left out: 9 x of a test side (split), 1 people: eve" in out
    saved, before = load_basis(output), load_basis(basis)
    assert saved.unseen_ids == (*before.unseen_ids, *names) and saved.V.equal(before.V)
    assert torch.allclose(saved.W_unseen.sum(1), torch.ones(len(saved.unseen_ids)), atol=1e-5)
    for row in texts.report(tmp_path / "adapted.json")["rows"]:
        assert row["gap"] <= 1e-6 and row["pairs"] in (5, 6) and len(row["spread"]) == 3
        assert 0 <= row["leave_one_out"] <= 1 and saved.words[row["user_id"]] == row["word"]
        assert saved.pairs[row["user_id"]] == row["pairs"]
        assert row["prompts_left_out"] == row["pairs"] - 1
    assert saved.held_out == before.held_out and {*before.pairs} < {*saved.pairs}
    applied("score", output, rows, tmp_path / "o.jsonl", "--users", "ann")
    assert [*texts.read(tmp_path / "o.jsonl")[0]["rewards"]] == ["ann"]
    single = texts.write(tmp_path / "single.jsonl", [{**everybody[0], "user_id": "cem"}])
    assert_one_line_error(apply("adapt", basis, single, output), "2 people, such as ann, who would be lost")
    assert "too few prompts to say" in applied("adapt", basis, single, tmp_path / "cem.safetensors")


def test_answers_are_added_to_earlier_ones_or_replace_them(with_deviations, tmp_path):
    rows = [row | {"user_id": "ann"} for row in texts.comparisons(users=1, prompts=12, seed=5)]
    questions = []
    for row in rows[5:]:
        choice = len(questions) % 2
        pair = [row["chosen"], row["rejected"]][:: 1 - 2 * choice]
        questions.append({"user_id": "ann", "prompt": row["prompt"], "candidates": pair, "choice": choice})
    bob = [row | {"user_id": "bob"} for row in rows[:3]]

    def taken_in(before, name, rows, *flags):
        source, output = texts.write(tmp_path / f"{name}.jsonl", rows), tmp_path / f"{name}.safetensors"
        out = applied("adapt", before, source, output, *flags)
        return output, load_basis(output), out

    first, known, _ = taken_in(with_deviations, "first", rows[:5] + bob)
    _, added, out = taken_in(first, "added", rows[3:5] + questions)
    assert "answered before: 1 people: ann, 5 x" in out and "left out: 2 x a judgement that the basis" in out
    _, at_once, _ = taken_in(with_deviations, "at_once", rows + bob)
    _, anew, _ = taken_in(first, "anew", questions, "--replace")
    _, alone, _ = taken_in(with_deviations, "alone", questions)
    for basis, expected in ((added, at_once), (anew, alone)):
        assert basis.everybody == known.everybody and basis.pairs["ann"] == expected.pairs["ann"]
        for mine, theirs in zip(basis.parameters_of(["ann"]), expected.parameters_of(["ann"])):
            assert torch.allclose(mine, theirs, atol=1e-4)
        for mine, theirs in zip(basis.parameters_of(["bob"]), known.parameters_of(["bob"])):
            assert mine.equal(theirs)
        assert len(basis.answered) == basis.pairs["ann"] + 3 and basis.prior.mean.equal(known.prior.mean)
    lost = apply("adapt", with_deviations, tmp_path / "first.jsonl", tmp_path / "at_once.safetensors")
    assert_one_line_error(lost, "7 answers, such as of ann, which would be lost")
    upper = texts.write(tmp_path / "upper.jsonl", [rows[0] | {"user_id": "ANN"}])
    done = apply("adapt", first, upper, tmp_path / "upper.safetensors")
    assert_one_line_error(done, "upper.jsonl, line 1", "has a user ann already")
    # of a person of the fit the basis holds no answers
    seen = [row | {"user_id": known.user_ids[0]} for row in rows]
    done = apply("adapt", first, texts.write(tmp_path / "seen.jsonl", seen), tmp_path / "x.safetensors")
    assert_one_line_error(done, "seen.jsonl, line 1", "already", "--replace")
    _, replaced, _ = taken_in(first, "seen", seen, "--replace")
    assert replaced.everybody == known.everybody and not replaced.W[0].equal(known.W[0])
    assert replaced.W[1:].equal(known.W[1:]) and replaced.pairs[known.user_ids[0]] == len(rows)


def test_the_best_of_n_is_the_best_scored(basis, rows, tmp_path):
    replies = [row["response"] for row in texts.read(rows)]
    # words again, and in lines that end otherwise: no other reply, no tie
    row = {"prompt": "the cat?", "candidates": [*replies, *(f"{reply} \r\n" for reply in replies)]}
    source = texts.write(tmp_path / "candidates.jsonl", [row])
    output = tmp_path / "chosen.jsonl"
    out = applied("best_of_n", basis, source, output, "--everybody", "--vote")
    assert "1 prompts; population: 0 with ties" in out
    (chosen,) = texts.read(output)
    of_everybody = by_score(basis, rows, tmp_path / "scored.jsonl")
    for user, best in chosen["best"].items():
        rewards = of_everybody[user]
        assert best == max(range(4), key=rewards.__getitem__)
        gain = rewards[best] - rewards[chosen["population_best"]]
        assert chosen["gain"][user] == pytest.approx(gain, abs=1e-4)
    assert chosen["tied"] == {} and chosen["population_tied"] == [] and chosen["vote"]["borda"] in range(4)


def test_votes_and_ties_that_one_can_count_by_hand():
    # three people, two of whom like 0 most, one of whom likes 1 most and 0 least
    rewards = np.array([[3, 3, 0], [2, 2, 2], [0, 0, 1]], dtype=float)
    cycle = np.array([[2, 0, 1], [1, 2, 0], [0, 1, 2]], dtype=float)  # Condorcet's paradox
    assert vote_of("abc", rewards) == {"borda": 0, "majority": 0}  # 4, 4 and 1 points
    assert vote_of("aabc", rewards[[0, 0, 1, 2]]) == {"borda": 0, "majority": 0}  # as if it stood once
    assert vote_of("abc", cycle)["majority"] is None
    half = np.array([[0, 1], [1, 0], [0, 2]], dtype=float)  # 2 points each for b and c, and half of one for c
    assert vote_of("abc", half)["borda"] == 2
    best, tied = best_of(["a", "b", "a"], np.array([[1.0, 0], [1, 2], [1, 0]]))
    assert best.tolist() == [0, 1] and tied == {0: [1]}


def test_a_person_named_population_is_not_the_population():
    users, fields = ["population"], {"prompt": "a?", "candidates": ["b", "c", "d"]}
    rewards = torch.tensor([[1.0], [0.0], [1.0]])  # of the person: 0 and 2 are tied
    row = saved_basis.Row("here", fields, torch.eye(3), torch.tensor([2.0, 2.0, 0.0]), rewards)
    basis = Basis(torch.ones(3, 1), torch.ones(1, 1), users, torch.ones(0, 1), ())
    chosen = choose(row, users, Doubts(basis, users), vote=False)
    assert (chosen["population_tied"], chosen["tied"]) == ([1], {"population": [2]})
    assert counts_of(chosen, users).tolist() == [[0], [0], [1]]


def test_a_basis_that_is_worse_than_none_says_so(basis, rows, tmp_path):
    saved = load_basis(basis)
    assert {*saved.held_out} == {"personal", "population"} and len(saved.pairs) == 6
    path = tmp_path / "b.safetensors"
    pair = {"prompt": "the cat?", "candidates": ["sat", "lay"]}
    candidates = texts.write(tmp_path / "candidates.jsonl", [pair])
    for personal, words in ((0.8, "worse than none"), (0.66, "makes it worse"), (0.6, "")):
        save_basis(path, saved._replace(held_out={"personal": personal, "population": 0.65}))
        for name, source in (("score", rows), ("best_of_n", candidates)):
            out = applied(name, path, source, tmp_path / f"{name}.jsonl")
            assert ("beware" in out) == bool(words) and words in out


@pytest.fixture
def pool():
    """A pair of replies to each of some prompts."""
    rows = texts.comparisons(users=1, prompts=30)
    return [{"prompt": row["prompt"], "candidates": sorted([row["chosen"], row["rejected"]])} for row in rows]


def test_different_questions_are_chosen_from_the_pool_and_tried_out(pool, basis, with_deviations, tmp_path):
    # each of them again: turned round, with line ends of another kind, as messages
    again = [row | {"candidates": row["candidates"][::-1]} for row in pool]
    again += [row | {"candidates": [f"{reply}\r\n" for reply in row["candidates"]]} for row in pool]
    for row in pool:
        messages = exchange(f" {row['prompt'].upper()}", "")[:1]
        again.append({"messages": messages, "candidates": row["candidates"]})
    source = texts.write(tmp_path / "pool.jsonl", pool + again)
    ask = ("ask", with_deviations, source, tmp_path / "asked.jsonl")
    out = applied(*ask, "--questions", 8, "--trials", 20, "--format", "labelstudio")
    asked = texts.read(tmp_path / "asked.jsonl")
    tasks = texts.report(tmp_path / "asked.labelstudio.json")
    lefts = [row["candidates"][0] for row in asked]
    assert [task["data"]["left"] for task in tasks] == lefts and "Pairwise" in out
    assert len({row["prompt"] for row in asked}) == 8 == len(asked)
    assert all(row["told"] > 0 for row in asked)
    assert f"left out: {len(again)} x the same question again" in out
    rows = texts.report(tmp_path / "asked.json")["rows"]
    assert rows[0]["chosen"] == rows[0]["random"] <= rows[-1]["best"] and len(rows) == 9
    assert (tmp_path / "asked.png").exists() and "chosen minus random" in out
    out = applied(*ask, "--questions", len(pool) + 1, "--trials", 2)
    assert f"no more than {len(texts.read(tmp_path / 'asked.jsonl'))} questions of the pool" in out
    texts.write(source, pool[:1])
    assert_one_line_error(apply(*ask), "1 different pairs")
    first = basis.with_name("train_basis_K1_alpha0_seed0.safetensors")
    assert_one_line_error(apply("ask", first, *ask[2:]), "one reward for everybody")


def test_a_second_round_goes_on_from_the_answers_wherever_they_are(
    pool, with_deviations, tmp_path, monkeypatch
):
    monkeypatch.setattr("lore.report.pictures.plot_questions", lambda prefix: None)
    source = texts.write(tmp_path / "pool.jsonl", pool)

    def ask(name, basis, count, *flags):
        output = tmp_path / f"{name}.jsonl"
        out = applied("ask", basis, source, output, "--trials", 2, "--questions", count, *flags)
        return texts.read(output), out

    first, _ = ask("first", with_deviations, 3)
    answered = [row | {"choice": number % 2} for number, row in enumerate(first)]
    answered[2] |= {"candidates": first[2]["candidates"][::-1]}
    answers = texts.write(tmp_path / "answers.jsonl", answered)
    second, out = ask("second", with_deviations, 3, "--known", answers)
    assert "left out: 3 x a question that was asked before" in out
    assert len({row["prompt"] for row in first + second}) == 6
    # who was asked in vain is not asked again either
    texts.write(answers, [*answered, second[0] | {"choice": None}, second[1]])
    later, _ = ask("later", with_deviations, 3, "--known", answers)
    assert not {row["prompt"] for row in first + second[:2]} & {row["prompt"] for row in later}
    # from the file of a basis: the same person, known by the same answers
    mine = texts.write(tmp_path / "mine.jsonl", [row | {"user_id": "ann"} for row in answered])
    adapted = tmp_path / "adapted.safetensors"
    applied("adapt", with_deviations, mine, adapted)
    third, _ = ask("third", adapted, 3, "--user", "ann")
    for row, again in zip(second, third):
        assert again == row | {"user_id": "ann", "told": pytest.approx(row["told"], rel=1e-2)}
    both, out = ask("both", adapted, 3, "--user", "ann", "--known", mine)
    assert both == third and "left out: 3 x a question that was asked before" in out
    # the next question depends on what is answered
    orders = set()
    for choice in (0, 1):
        known = [row | {"choice": choice} for row in first]
        rows, _ = ask("next", with_deviations, 4, "--known", texts.write(answers, known))
        orders.add(tuple(row["prompt"] for row in rows))
    assert len(orders) == 2
    two = texts.write(tmp_path / "two.jsonl", [answered[0] | {"user_id": user} for user in "ab"])
    for *flags, words in (
        ("--user", "eve", "no user eve"),
        ("--user", "Ann", "--known", mine, "holds no answer of Ann"),
        ("--known", tmp_path / "none.jsonl", "is no file"),
        ("--user", load_basis(adapted).user_ids[0], "holds no answers"),
        ("--known", texts.write(answers, [answered[0] | {"choice": 5}]), "line 1: choice is 5"),
        ("--known", two, "whose"),
    ):
        assert_one_line_error(apply("ask", adapted, source, tmp_path / "x.jsonl", *flags), words)


def logits_of(folder, rows):
    model, report = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["mismatched_keys"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    talks = [exchange(row["prompt"], row["response"]) for row in texts.read(rows)]
    rendered = tokenizer.apply_chat_template(talks, tokenize=False)
    batch = tokenizer(rendered, return_tensors="pt", padding=True, add_special_tokens=False)
    with torch.no_grad():
        return model.eval()(**batch).logits


def test_an_exported_head_gives_the_rewards_of_score_and_says_what_it_is(basis, model, rows, tmp_path):
    user = load_basis(basis).unseen_ids[0]
    rewards = by_score(basis, rows, tmp_path / "scored.jsonl")
    first, population = tmp_path / "first", tmp_path / "population"
    for folder, whose, flags in ((first, user, ("--user", user)), (population, None, ("--copy",))):
        applied("export", basis, None, folder, *flags)
        assert logits_of(folder, rows)[:, 0].tolist() == pytest.approx(rewards[whose], abs=1e-4)
    tokenizer = AutoTokenizer.from_pretrained(first)  # who cuts long texts keeps the reply
    sides = tokenizer.truncation_side, tokenizer.padding_side, tokenizer.model_max_length
    assert sides == ("left", "right", 512)
    config = texts.report(first / "config.json")
    assert config["pad_token_id"] not in (config["eos_token_id"], config["bos_token_id"])
    assert config["problem_type"] == "regression" and config["id2label"] == {"0": "reward"}
    assert (first / "model-00001-of-00002.safetensors").is_symlink()
    assert not [path for path in population.iterdir() if path.is_symlink()]
    card = (first / "README.md").read_text()
    for words in (f"person {user}", "known by 6 comparisons", 'license: "unknown"', "log-loss"):
        assert words in card, words
    assert str(model) not in card and "base_model" not in card  # of this machine alone
    assert_one_line_error(apply("export", basis, None, first), "is there already")
    assert_one_line_error(apply("export", basis, None, tmp_path / "x", "--user", "x"), "no user x")
    assert not [*tmp_path.glob("x*")]


def test_a_licence_is_what_the_head_of_a_card_says(tmp_path):
    for text, stated in (
        ("# no head\n\nlicense: mit\n", {"license": "unknown"}),
        ("---\ntags:\n- x\n---\nlicense: mit\n", {"license": "unknown"}),
        ("---\nlicense: [\n---\n", {"license": "unknown"}),
        (
            '---\nlicense: "b" # see\nlicense_name: "a: b"\n---\nx: y',
            {"license": "b", "license_name": "a: b"},
        ),
    ):
        (tmp_path / "README.md").write_text(text)
        assert checkpoint_export.licence_of(tmp_path) == stated


@pytest.mark.parametrize("whole_counts", [True, False])
def test_what_is_exported_is_what_was_scored(basis, model, rows, tmp_path, monkeypatch, whole_counts):
    """transformers reads model.safetensors and not an index beside it; should that change, it is told."""
    model = shutil.copytree(model, tmp_path / "model")
    now = load_file(model / "model.safetensors")
    before = {name: values + 0.05 * torch.randn_like(values) for name, values in now.items()}
    shard = "model-00001-of-00001.safetensors"
    save_file(before, model / shard, {"format": "pt"})
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(before, shard)}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    identity = json.dumps(encoder(model).identity)
    save_basis(tmp_path / "b.safetensors", load_basis(basis)._replace(model=identity))
    export = ("export", tmp_path / "b.safetensors", None, tmp_path / "out")
    if not whole_counts:
        monkeypatch.setattr(checkpoint_export, "weight_files", lambda _: index["weight_map"])
        done = apply(*export)
        assert done[0] == 2 and "does not score as it did" in done[2] and not (tmp_path / "out").exists()
        return
    applied(*export)
    rewards = by_score(tmp_path / "b.safetensors", rows, tmp_path / "scored.jsonl")
    assert logits_of(tmp_path / "out", rows)[:, 0].tolist() == pytest.approx(rewards[None], abs=1e-4)


@pytest.mark.parametrize("own", [False, True])
def test_heads_and_mixtures_give_everybodys_rewards(basis, with_deviations, rows, tmp_path, own):
    basis = with_deviations if own else basis
    rewards = by_score(basis, rows, tmp_path / "scored.jsonl")
    applied("export", basis, None, tmp_path / "all", "--all")
    with safe_open(tmp_path / "all/mixtures.safetensors", framework="pt") as file:
        mixtures = torch.cat([file.get_tensor("W"), file.get_tensor("population")[None]])
        users = [*json.loads(file.metadata()["user_ids"]), None]
    logits = logits_of(tmp_path / "all", rows)
    for user, found in zip(users, mixtures @ logits.T, strict=True):
        assert found.tolist() == pytest.approx(rewards[user], abs=1e-3)
    assert len(users) == len(rewards)


FETCHES = r"<(script|link|img|iframe|object|base)\b|[ '\"](src|srcset|href)=['\"](?!#)|@import|url\((?!#)"


def test_the_page_says_what_the_table_says_and_fetches_nothing(trained, tmp_path):
    results, page = trained / "results/train_basis.json", tmp_path / "p.html"
    applied("report", None, results, page, "--texts", trained / "own.jsonl.gz")
    text = page.read_text()
    assert not re.findall(FETCHES, text)
    for row in texts.report(results)["summary"]:
        low, high = [100 * value for value in row["unseen_interval"]]
        assert f"{100 * row['unseen']:.1f} [{low:.1f}, {high:.1f}]" in text
    parts = ("basis reward 2", "wrong", "Bradley-Terry", "git commit", "std over trials")
    said = ("foretells", "expected calibration error", "pooling last", "3 seen, 3 unseen", "likes least")
    for part in (*parts, *said, "People&#x27;s mixtures", "cosine to head", "log-loss: mean over users"):
        assert part in text, part
    assert text.count("<svg") == 3
    other = texts.write(tmp_path / "other.jsonl", texts.comparisons(seed=9))
    assert_one_line_error(apply("report", None, results, page, "--texts", other), "is not the file")
    assert_one_line_error(apply("report", None, other, "x"), "is no .json of")


BAD_ROWS = [
    ("score", {"prompt": "a?", "response": ""}, "empty"),
    ("score", {"prompt": "a?", "response": float("nan")}, "response is nothing"),
    ("score", {"response": "b"}, "a prompt or messages"),
    ("best_of_n", {"prompt": "a?", "candidates": []}, "no list of candidates"),
    ("best_of_n", {"prompt": "a?", "candidates": ["b", None]}, "candidates[1]"),
    ("ask", {"prompt": "a?", "candidates": ["b"]}, "two different candidates"),
    ("ask", {"prompt": "a?", "candidates": ["b", "b"]}, "two different candidates"),
    ("adapt", {"user_id": "u", "prompt": "a", "chosen": "b", "rejected": "b"}, "the same"),
    ("score", {"prompt": "a?", "response": "the cat " * 2000}, "for the reply alone"),
    ("score", {"prompt": "a?", "response": "b", "population": 1}, "would be lost"),
    *[
        ("score", {"prompt": "a?", "response": "b", "x": x}, ", x: ")
        for x in (math.inf, "\ud800", [math.inf])
    ],
]


@pytest.mark.parametrize("name, row, words", BAD_ROWS)
def test_a_bad_row_is_named_and_nothing_is_written(basis, tmp_path, name, row, words):
    source = texts.write(tmp_path / "bad.jsonl", [row])
    output = tmp_path / ("out.safetensors" if name == "adapt" else "out.jsonl")
    status, _, err = apply(name, basis, source, output)  # behind a bar, where the model had to run
    assert status == 2 and words in err and "bad.jsonl, line 1" in err, err
    assert [path.name for path in tmp_path.iterdir()] == ["bad.jsonl"]


def test_what_is_missing_unknown_or_twice_is_said(basis, rows, tmp_path):
    planted, output = tmp_path / "planted.safetensors", tmp_path / "o.jsonl"
    save_basis(planted, load_basis(basis)._replace(model=""))
    for name, files, flags, words in (
        ("score", (None, rows, output), "", "--basis"),
        ("score", (planted, rows, output), "", "no encoder"),
        ("score", (basis, tmp_path / "no", output), "", "is no file"),
        ("score", (basis, None, output), "", "which rows? name their file with --input"),
        ("adapt", (basis, None, tmp_path / "o.safetensors"), "", "which rows?"),
        ("ask", (basis, None, output), "", "which rows?"),
        ("score", (basis, rows, output), "--users x", "no user x"),
        ("score", (basis, rows, output), "--users 0 --users 0", "twice"),
        ("score", (basis, rows, output), "--users 0 --everybody", "one of the two"),
        ("best_of_n", (basis, rows, output), "--vote", "--vote: whose?"),
        ("serve", (basis, None, None), "--unscored nan", "unscored = nan"),
        ("serve", (basis, None, None), "--max_queries 0", "--max_queries 0"),
        ("serve", (basis, None, None), "--port 0", "--port 0"),
        ("serve", (basis, None, None), "--unknown drop", "unknown = drop"),
        ("serve", (basis, None, None), f"--policy {ROOT}", "--policy: "),
    ):
        assert_one_line_error(apply(name, *files, *flags.split()), words)
