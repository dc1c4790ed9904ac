"""apply/ end to end on a basis of a tiny reward model, and what it refuses."""

import gzip
import json
import os
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
import texts
import torch
from conftest import ROOT, SHARED, assert_one_line_error, call_script
from safetensors import safe_open

from lore.fit.basis import load_basis, save_basis
from lore.fit.likelihood import LOGIT_SCALE
from lore.text.conversations import exchange

APPLY = ROOT / "apply"
MTBENCH = SHARED / "mtbench/comparisons.jsonl.gz"
DECODER = os.environ.get("LORE_DECODER", "no folder")  # a small one with one output and a template


def apply(name, *flags):
    return call_script(APPLY / f"{name}.py", *flags)


def good(done):
    assert done[0] == 0, done[2]
    return done[1]


def scored(basis, rows, output, *flags):
    good(apply("score", "--basis", basis, "--input", rows, "--output", output, *flags))
    return texts.read(output)


# ------------------------------------------------------------------------------------------------
# score
# ------------------------------------------------------------------------------------------------


def test_scores_are_those_of_each_persons_own_head(basis, rows, tmp_path, model):
    found = scored(basis, rows, tmp_path / "scored.jsonl", "--everybody")
    held = load_basis(basis)
    from tiny import encoder

    table = encoder(model).embed(
        [exchange("the cat?", row["response"]) for row in texts.read(rows)]
    )
    for row, e in zip(found, table):
        for user in held.everybody:
            w = torch.cat([held.W, held.W_unseen])[held.everybody.index(user)]
            assert row["rewards"][user] == pytest.approx(
                (e @ held.V @ w).item() / LOGIT_SCALE, abs=1e-4
            )
        expected = (e @ held.V @ held.W.mean(0)).item() / LOGIT_SCALE
        assert row["population"] == pytest.approx(expected, abs=1e-4)
    assert [row["id"] for row in found] == [0, 1, 2, 3] and set(found[0]["rewards"]) == {*"012345"}


def test_what_is_ones_own_counts_and_blocks_change_nothing(basis, rows, tmp_path, monkeypatch):
    import saved_basis

    held = load_basis(basis)
    E = torch.randn(len(held.user_ids), 32)
    with_own = held._replace(
        E=E, E_unseen=torch.zeros(len(held.unseen_ids), 32), deviation_spread=0.1
    )
    save_basis(tmp_path / "own.safetensors", with_own)
    user = held.user_ids[1]
    plain = scored(basis, rows, tmp_path / "a.jsonl.gz".replace(".gz", ""), "--users", user)
    monkeypatch.setattr(saved_basis, "BLOCK", 1)
    one_by_one = scored(basis, rows, tmp_path / "b.jsonl", "--users", user)
    assert [row["rewards"][user] for row in one_by_one] == pytest.approx(
        [row["rewards"][user] for row in plain], abs=1e-4
    )
    more = scored(tmp_path / "own.safetensors", rows, tmp_path / "c.jsonl", "--users", user)
    from tiny import encoder

    from lore.splits import identity_of

    table = encoder(identity_of(held.model)["model"]).embed(
        [exchange("the cat?", row["response"]) for row in texts.read(rows)]
    )
    for before, after, e in zip(plain, more, table):
        gained = after["rewards"][user] - before["rewards"][user]
        assert gained == pytest.approx((e @ E[1]).item() / LOGIT_SCALE, abs=1e-4)


def test_an_encoder_that_has_changed_is_refused(trained, basis, rows, tmp_path, text_encoder):
    flags = ("--basis", basis, "--input", rows, "--output", tmp_path / "o.jsonl", "--model")
    other = shutil.copytree(json.loads(load_basis(basis).model)["model"], tmp_path / "other")
    good(apply("score", *flags, other))  # the same, elsewhere
    template = (other / "chat_template.jinja").read_text()
    (other / "chat_template.jinja").write_text(template + "!")
    assert_one_line_error(apply("score", *flags, other), "version", "not the same model, template")
    assert_one_line_error(apply("score", *flags, text_encoder), "not the same model")
    assert_one_line_error(apply("score", *flags, tmp_path / "none"), "no folder", "--model")


# ------------------------------------------------------------------------------------------------
# adapt
# ------------------------------------------------------------------------------------------------


def test_new_people_are_taken_in_and_everything_else_takes_them(basis, rows, tmp_path):
    everybody = texts.comparisons(users=2, prompts=10, seed=5)
    for row in everybody:
        row["user_id"] = ("ann", "bob")[row["user_id"]]
    source = texts.write(tmp_path / "new.jsonl", everybody[:-9])
    output = tmp_path / "adapted.safetensors"
    out = good(apply("adapt", "--basis", basis, "--input", source, "--output", output))
    assert "ann" in out and "certificate" in out
    held, before = load_basis(output), load_basis(basis)
    assert held.unseen_ids == (*before.unseen_ids, "ann", "bob") and held.V.equal(before.V)
    assert torch.allclose(held.W_unseen.sum(1), torch.ones(len(held.unseen_ids)), atol=1e-5)
    for row in json.loads((tmp_path / "adapted.json").read_text())["rows"]:
        assert row["gap"] <= 1e-6 and row["pairs"] in (5, 6) and len(row["spread"]) == 3
        assert 0 <= row["leave_one_out"] <= 1 and row["word"]
    assert "ann" in scored(output, rows, tmp_path / "o.jsonl", "--users", "ann")[0]["rewards"]
    again = ("--basis", output, "--input", source, "--output", tmp_path / "twice.safetensors")
    assert_one_line_error(apply("adapt", *again), "new.jsonl, line 1", "already")
    one = texts.write(tmp_path / "one.jsonl", [{**everybody[0], "user_id": "cem"}])
    flags = ("--basis", basis, "--input", one, "--output")
    assert_one_line_error(
        apply("adapt", *flags, output), "2 people, such as ann, who would be lost"
    )
    out = good(apply("adapt", *flags, tmp_path / "cem.safetensors"))
    assert "too few pairs to say" in out


# ------------------------------------------------------------------------------------------------
# best_of_n
# ------------------------------------------------------------------------------------------------


def test_the_best_of_n_is_the_best_scored(basis, rows, tmp_path):
    replies = [row["response"] for row in texts.read(rows)]
    row = {"prompt": "the cat?", "candidates": [*replies, replies[0]]}
    source = texts.write(tmp_path / "candidates.jsonl", [row])
    output = tmp_path / "chosen.jsonl"
    flags = ("--basis", basis, "--input", source, "--output", output, "--everybody", "--vote")
    good(apply("best_of_n", *flags))
    (found,) = texts.read(output)
    by_score = scored(basis, rows, tmp_path / "scored.jsonl", "--everybody")
    for user, best in found["best"].items():
        rewards = [one["rewards"][user] for one in by_score]
        assert best == max(range(4), key=rewards.__getitem__)
        gain = rewards[best] - rewards[found["population_best"]]
        assert found["gain"][user] == pytest.approx(gain, abs=1e-4)
    assert found["tied"] == {}  # the same words twice are no tie
    assert found["vote"]["borda"] in range(5)


def test_votes_and_ties_that_one_can_count_by_hand():
    import numpy as np
    from conftest import load_script

    script = load_script(APPLY / "best_of_n.py")
    # three people, two of whom like 0 most, one of whom likes 1 most and 0 least
    rewards = np.array([[3, 3, 0], [2, 2, 2], [0, 0, 1]], dtype=float)
    assert script.vote_of("abc", rewards) == {"borda": 0, "majority": 0}  # 4, 4 and 1 points
    twice = rewards[[0, 0, 1, 2]]
    assert script.vote_of("aabc", twice) == {"borda": 0, "majority": 0}  # as if it stood there once
    cycle = np.array([[2, 0, 1], [1, 2, 0], [0, 1, 2]], dtype=float)  # Condorcet's paradox
    assert script.vote_of("abc", cycle)["majority"] is None
    best, tied = script.best_of(["a", "b", "a"], np.array([[1.0, 0], [1, 2], [1, 0]]))
    assert best.tolist() == [0, 1] and tied == {0: [1]}


# ------------------------------------------------------------------------------------------------
# ask
# ------------------------------------------------------------------------------------------------


def test_questions_are_chosen_from_the_pool_and_tried_out(basis, tmp_path):
    pool = {(row["prompt"], row["chosen"], row["rejected"]) for row in texts.comparisons(2, 40)}
    pool = [{"prompt": p, "candidates": [a, b]} for p, a, b in sorted(pool)]
    source = texts.write(tmp_path / "pool.jsonl", pool)
    flags = ("--basis", basis, "--input", source, "--output", tmp_path / "asked.jsonl")
    out = good(apply("ask", *flags, "--questions", 4, "--trials", 20))
    asked = texts.read(tmp_path / "asked.jsonl")
    told = [row["told"] for row in asked]
    assert len(asked) == 4 and told == sorted(told, reverse=True)  # log det is submodular
    rows = json.loads((tmp_path / "asked.json").read_text())["rows"]
    assert rows[0]["chosen"] == rows[0]["random"] <= rows[-1]["best"] and len(rows) == 5
    assert (tmp_path / "asked.png").exists() and "chosen minus random" in out
    assert_one_line_error(apply("ask", *flags, "--questions", 90), "pairs")
    one = basis.with_name("train_basis_K1_alpha0_seed0.safetensors")
    assert_one_line_error(apply("ask", "--basis", one, *flags[2:]), "one reward for everybody")


def test_the_greedy_design_agrees_with_determinants_written_out():
    from ask import most_telling

    from lore.fit.mixtures import Prior

    torch.manual_seed(0)
    z = torch.randn(12, 3, dtype=torch.float64)
    prior = Prior(torch.tensor([0.5, 0.3, 0.2]), 1.5)
    numbers, told = most_telling(z, prior, 3)
    B = torch.linalg.qr(torch.eye(3, 2, dtype=torch.float64) - 1 / 3)[0]
    p = torch.sigmoid(z @ prior.mean.double())
    H = 1.5 * torch.eye(2, dtype=torch.float64)
    left = set(range(12))
    for number, gain in zip(numbers, told):
        gains = {
            i: torch.logdet(H + p[i] * (1 - p[i]) * torch.outer(z[i] @ B, z[i] @ B))
            - torch.logdet(H)
            for i in left
        }
        assert number == max(gains, key=gains.get) and gain == pytest.approx(gains[number].item())
        H = H + p[number] * (1 - p[number]) * torch.outer(z[number] @ B, z[number] @ B)
        left.remove(number)


# ------------------------------------------------------------------------------------------------
# export
# ------------------------------------------------------------------------------------------------


def logits_of(folder, rows):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model, report = AutoModelForSequenceClassification.from_pretrained(
        folder, output_loading_info=True
    )
    assert not report["missing_keys"] and not report["mismatched_keys"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rendered = []
    for row in texts.read(rows):
        talk = exchange(row["prompt"], row["response"])
        rendered.append(tokenizer.apply_chat_template(talk, tokenize=False))
    batch = tokenizer(rendered, return_tensors="pt", padding=True, add_special_tokens=False)
    with torch.no_grad():
        return model.eval()(**batch).logits


def test_an_exported_head_gives_the_rewards_of_score(basis, rows, tmp_path):
    user = load_basis(basis).user_ids[0]
    found = scored(basis, rows, tmp_path / "scored.jsonl", "--everybody")
    flags = ("--basis", basis, "--output")
    good(apply("export", *flags, tmp_path / "one", "--user", user))
    logits = logits_of(tmp_path / "one", rows)[:, 0].tolist()
    assert logits == pytest.approx([row["rewards"][user] for row in found], abs=1e-4)
    good(apply("export", *flags, tmp_path / "population"))
    logits = logits_of(tmp_path / "population", rows)[:, 0].tolist()
    assert logits == pytest.approx([row["population"] for row in found], abs=1e-4)
    config = json.loads((tmp_path / "one/config.json").read_text())
    assert config["pad_token_id"] not in (config["eos_token_id"], config["bos_token_id"])
    assert config["problem_type"] == "regression" and config["id2label"] == {"0": "reward"}
    assert (tmp_path / "one/model-00001-of-00002.safetensors").is_symlink()
    assert user in (tmp_path / "one/README.md").read_text()
    assert_one_line_error(apply("export", *flags, tmp_path / "one"), "is there already")
    assert_one_line_error(
        apply("export", *flags, tmp_path / "x", "--user", "nobody"), "no user nobody"
    )
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("x")]


@pytest.mark.parametrize("with_own", [False, True])
def test_heads_and_mixtures_give_everybodys_rewards(basis, rows, tmp_path, with_own):
    held = load_basis(basis)
    if with_own:
        C, C_unseen = len(held.user_ids), len(held.unseen_ids)
        held = held._replace(
            E=torch.randn(C, 32), E_unseen=torch.randn(C_unseen, 32), deviation_spread=0.1
        )
    save_basis(tmp_path / "b.safetensors", held)
    basis = tmp_path / "b.safetensors"
    found = scored(basis, rows, tmp_path / "scored.jsonl", "--everybody")
    good(apply("export", "--basis", basis, "--output", tmp_path / "all", "--all"))
    logits = logits_of(tmp_path / "all", rows)
    with safe_open(tmp_path / "all/mixtures.safetensors", framework="pt") as file:
        rewards = logits @ file.get_tensor("W").T
        population = logits @ file.get_tensor("population")
        users = json.loads(file.metadata()["user_ids"])
    for row, own_rewards, common in zip(found, rewards, population):
        assert own_rewards.tolist() == pytest.approx([row["rewards"][u] for u in users], abs=1e-3)
        assert common.item() == pytest.approx(row["population"], abs=1e-3)


# ------------------------------------------------------------------------------------------------
# report
# ------------------------------------------------------------------------------------------------


class Links(HTMLParser):
    """Whatever a page would fetch."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attributes):
        names = {name for name, value in attributes if value and not value.startswith("#")}
        if tag in ("script", "link", "img", "iframe", "object", "base") or names & {
            "src",
            "srcset",
        }:
            self.found.append(tag)


@pytest.fixture(scope="module")
def page(trained):
    output = trained / "page.html"
    flags = ("--input", trained / "results/train_basis.json", "--output", output)
    out = good(apply("report", *flags, "--texts", trained / "own.jsonl.gz"))
    assert "People's mixtures" in out
    return output


def test_the_page_says_what_the_table_says_and_fetches_nothing(trained, page):
    text = page.read_text()
    links = Links()
    links.feed(text)
    assert not links.found and "url(" not in text.replace("url(#", "") and "@import" not in text
    summary = json.loads((trained / "results/train_basis.json").read_text())["summary"]
    for row in summary:
        low, high = [100 * value for value in row["unseen_interval"]]
        assert f"{100 * row['unseen']:.1f} [{low:.1f}, {high:.1f}]" in text
    for part in ("basis reward 2", "wrong", "Bradley-Terry", "git commit", "std over trials"):
        assert part in text
    assert text.count("<svg") == 3
    other = texts.write(trained / "other.jsonl", texts.comparisons(seed=9))
    flags = ("--input", trained / "results/train_basis.json", "--output", trained / "p.html")
    assert_one_line_error(apply("report", *flags, "--texts", other), "is not the file")
    assert_one_line_error(apply("report", "--input", other, "--output", "x"), "is no .json of")


BROWSER = shutil.which("chromium")


@pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine")
@pytest.mark.parametrize("width", [1200, 420])
def test_a_browser_shows_the_page_without_asking_anyone(page, width, tmp_path):
    log = tmp_path / "net.json"
    common = [
        BROWSER,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path}/u",
    ]
    quiet = ["--disable-background-networking", "--disable-component-update", "--no-first-run"]
    size = [f"--window-size={width},2000", f"--log-net-log={log}"]
    done = subprocess.run(
        [*common, *quiet, *size, "--dump-dom", page.as_uri()],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert "People's mixtures" in done.stdout.replace("&#x27;", "'"), done.stderr
    assert done.stdout.count("<svg") == 3
    # the browser itself asks its maker for this and that; what a file:// page asks for has no origin
    assert '"initiator":"null"' not in log.read_text()


# ------------------------------------------------------------------------------------------------
# All of them
# ------------------------------------------------------------------------------------------------


def test_bad_rows_are_named_and_nothing_is_written(basis, tmp_path):
    cases = [
        ("score", {"prompt": "a?", "response": ""}, "empty"),
        ("score", {"prompt": "a?", "response": float("nan")}, "response is nothing"),
        ("score", {"response": "b"}, "a prompt or messages"),
        ("best_of_n", {"prompt": "a?", "candidates": []}, "no candidates"),
        ("best_of_n", {"prompt": "a?", "candidates": ["b", None]}, "candidates[1]"),
        ("ask", {"prompt": "a?", "candidates": ["b"]}, "two different candidates"),
        ("ask", {"prompt": "a?", "candidates": ["b", "b"]}, "two different candidates"),
        ("adapt", {"user_id": "u", "prompt": "a", "chosen": "b", "rejected": "b"}, "the same"),
        ("score", {"prompt": "a?", "response": "the cat " * 2000}, "for the reply alone"),
        ("score", {"prompt": "a?", "response": "b", "population": 1}, "would be lost"),
    ]
    for name, row, words in cases:
        source = texts.write(tmp_path / "bad.jsonl", [row])
        output = tmp_path / ("out.safetensors" if name == "adapt" else "out.jsonl")
        done = apply(name, "--basis", basis, "--input", source, "--output", output)
        assert done[0] == 2 and words in done[2] and "bad.jsonl, line 1" in done[2], (row, done)
        assert [path.name for path in tmp_path.iterdir()] == ["bad.jsonl"]


def test_what_is_missing_unknown_or_twice_is_said(basis, rows, tmp_path):
    output = ("--output", tmp_path / "o.jsonl")
    common = ("--basis", basis, "--input", rows, *output)
    assert_one_line_error(apply("score", *common[2:]), "--basis")
    assert_one_line_error(apply("score", *common, "--users", "x"), "no user x")
    assert_one_line_error(apply("score", *common, "--users", "0", "0"), "twice")
    assert_one_line_error(apply("score", *common, "--users", "0", "--everybody"), "one of the two")
    assert_one_line_error(apply("best_of_n", *common, "--vote"), "--vote: whose?")
    assert_one_line_error(
        apply("score", *common[:2], "--input", tmp_path / "no", *output), "is no file"
    )
    planted = load_basis(basis)._replace(model="")
    save_basis(tmp_path / "planted.safetensors", planted)
    done = apply("score", "--basis", tmp_path / "planted.safetensors", *common[2:])
    assert_one_line_error(done, "no encoder")


# ------------------------------------------------------------------------------------------------
# a real decoder on real replies
# ------------------------------------------------------------------------------------------------


@pytest.mark.skipif(
    not (os.path.isdir(DECODER) and MTBENCH.exists()),
    reason=f"no decoder ({DECODER}; set LORE_DECODER) or no real comparisons at {MTBENCH}",
)
def test_a_real_decoder_from_comparisons_to_a_choice_and_a_checkpoint(tmp_path):
    with gzip.open(MTBENCH, "rt") as lines:
        judgements = [json.loads(line) for line in lines]
    short = [row for row in judgements if len(row["chosen"] + row["rejected"]) < 250]
    five = [row | {"user_id": i % 5} for i, row in enumerate(short)]  # each of them is several
    done = texts.prepare(tmp_path, five, DECODER, "--max_length", 400)
    assert done[0] == 0, done[2]
    common = ("--data", tmp_path / "data", "--results", tmp_path, "--min_comparisons", 3)
    fit = ("--solver", "adam", "--num_iterations", 40, "--K_list", 0, 1, 2)
    good(call_script(ROOT / "OwnData/train_basis.py", *common, *fit))
    basis = tmp_path / "train_basis_K2_alpha0_seed0.safetensors"
    user = load_basis(basis).user_ids[0]

    known = texts.write(tmp_path / "me.jsonl", [row | {"user_id": "me"} for row in short[:5]])
    good(
        apply("adapt", "--basis", basis, "--input", known, "--output", tmp_path / "me.safetensors")
    )
    candidates = [
        {"prompt": "Name a fruit.", "candidates": ["Quince.", "As an AI, I eat no fruit."]}
    ]
    asked = texts.write(tmp_path / "asked.jsonl", candidates)
    chosen = tmp_path / "chosen.jsonl"
    flags = ("--basis", tmp_path / "me.safetensors", "--input", asked, "--output", chosen)
    good(apply("best_of_n", *flags, "--users", "me"))
    assert texts.read(chosen)[0]["prompt"] == "Name a fruit."

    replies = [{"prompt": row["prompt"], "response": row["chosen"]} for row in short[:6]]
    rows = texts.write(tmp_path / "rows.jsonl", replies)
    found = scored(basis, rows, tmp_path / "scored.jsonl", "--users", user)
    good(apply("export", "--basis", basis, "--output", tmp_path / "one", "--user", user))
    logits = logits_of(tmp_path / "one", rows)[:, 0].tolist()
    assert logits == pytest.approx([row["rewards"][user] for row in found], abs=1e-3)
