"""CommunityAlignment/: from the columns of the public file to tables, on made-up conversations."""

import csv
import gzip
import json
import re
import unicodedata

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, assert_one_line_error, call_script, load_script
from texts import WORDS
from tiny import encoder

from lore.common import InputError
from lore.settings import defaults_of
from lore.splits import load_split
from lore.text.conversations import exchange
from utils import run

FOLDER = ROOT / "CommunityAlignment"
MEAN = ("--pooling", "mean")
TURNS = ("first", "second", "third", "fourth")


@pytest.fixture(scope="module")
def script():
    return load_script(FOLDER / "prepare.py")


def conversation(script, number=0, turns=1, person="ann", lang="en", preferred="response_b", **changed):
    """A row of the public file; replies are told apart by their number."""
    row = dict.fromkeys([*script.COLUMNS, script.BALANCED], "")
    row |= {"conversation_id": f"c{number}", "annotator_id": person, "assigned_lang": lang}
    row |= {"annotator_country": "india", "annotator_age": "18-34", script.BALANCED: "True"}
    for place, turn in enumerate(TURNS[:turns]):
        row[f"{turn}_turn_prompt"] = f"the {WORDS[number % 12]} {place}?"
        for letter in range(4):
            reply = f"{WORDS[(number + letter) % 13]} sat {WORDS[(letter + place) % 13]}"
            row[f"{turn}_turn_response_{'abcd'[letter]}"] = f"{reply}<|end_of_text|>"
        row[f"{turn}_turn_preferred_response"] = preferred
    return row | changed


def written(path, rows):
    with open(path, "w", newline="", encoding="utf-8-sig") as file:  # a BOM, as Excel leaves it
        table = csv.DictWriter(file, rows[0].keys())
        table.writeheader()
        table.writerows(rows)
    return path


def prepare(tmp_path, source, model, *flags):
    common = ("--source", source, "--model", model, "--data", tmp_path / "data")
    return call_script(FOLDER / "prepare.py", *common, *flags)


def frame_of(tmp_path):
    return load_split(tmp_path / "data/comparisons", "").frame


# ------------------------------------------------------------------------------------------------
# prepare.py
# ------------------------------------------------------------------------------------------------


def test_a_turn_is_its_history_its_prompt_and_the_replies_that_were_not_preferred(
    script, tmp_path, reward_model
):
    rows = [
        conversation(script, 0, 2),
        conversation(script, 1, 3, "bob", first_turn_prompt='the "cat",\nsat?'),
    ]
    done = prepare(tmp_path, written(tmp_path / "c.csv", rows), reward_model)
    assert done[0] == 0, done[2]
    assert "2 conversations by 2 people: 5 choices (15 pairs) on 5 items" in done[1]
    frame = frame_of(tmp_path)
    assert frame["turn"].value_counts().tolist() == [3] * 5
    assert frame.groupby("user_id")["place"].max().to_dict() == {"ann": 1, "bob": 2}
    assert frame["group"].nunique() == 2 and frame["item"].nunique() == 5
    assert {*frame["country"]} == {"india"} and {*frame["political"]} == {""}
    split = load_split(tmp_path / "data/comparisons", "")
    talk = []
    for turn in TURNS[:2]:
        reply = rows[0][f"{turn}_turn_response_b"].removesuffix("<|end_of_text|>")
        talk += exchange(rows[0][f"{turn}_turn_prompt"], reply)
    (expected,) = encoder(reward_model).embed([talk])
    row = frame[(frame["user_id"] == "ann") & (frame["place"] == 1)]["chosen"].iloc[0]
    assert torch.allclose(split.table[row], expected, atol=1e-5)


def test_an_item_is_the_same_whatever_its_letters(script, tmp_path, text_encoder):
    one = conversation(script, 0, 1, "ann", preferred="response_a")
    other = one | {"conversation_id": "c9", "annotator_id": "bob"}
    letters = {"a": "d", "b": "c", "c": "b", "d": "a"}
    for to, of in letters.items():
        other[f"first_turn_response_{to}"] = one[f"first_turn_response_{of}"]
    other["first_turn_prompt"] = one["first_turn_prompt"]
    other["first_turn_preferred_response"] = "response_d"
    source = written(tmp_path / "c.csv", [one, other])
    done = prepare(tmp_path, source, text_encoder, *MEAN)
    assert done[0] == 0, done[2]
    frame = frame_of(tmp_path)
    assert frame["item"].nunique() == 1 and frame["chosen"].nunique() == 1


def test_every_trap_is_counted(script, tmp_path, text_encoder):
    replies = [f"first_turn_response_{letter}" for letter in "abcd"]
    equal = dict.fromkeys(replies, "sat")
    rows = [
        conversation(script, 0, 3, second_turn_prompt="EMPTY STRING"),
        conversation(script, 1, 2, second_turn_preferred_response="None"),
        conversation(script, 2, 2, second_turn_response_b="nan"),
        conversation(script, 3, 1, **equal),
        conversation(script, 4, 1, **dict.fromkeys(replies[::2], "sat cat")),
        conversation(script, 5, 1, **dict(zip(replies[1::2], ("it", "it<|end_of_text|>")))),
        conversation(script, 0, 1),
        conversation(script, 6, 0),
        conversation(script, 7, 1, "joe", "hi"),
    ]
    done = prepare(tmp_path, written(tmp_path / "c.csv", rows), text_encoder, *MEAN)
    assert done[0] == 0, done[2]
    for line in (
        "1 x conversations that miss a turn: what comes after it",
        "2 x turns without a preferred reply, and those after them",
        "4 x replies equal to the preferred one",
        "1 x rejected replies that are there twice",
        "1 x choices between equal replies",
        "1 x conversations that are there twice",
        "1 x conversations of fewer than 1 choices",
    ):
        assert f"left out: {line}\n" in done[1], (line, done[1])
    assert "6 conversations by 1 people: 5 choices (13 pairs)" in done[1]
    done = prepare(tmp_path / "hi", tmp_path / "c.csv", text_encoder, *MEAN, "--lang", "hi")
    assert "1 conversations by 1 people" in done[1]


def test_what_is_asked_for_is_kept_and_parquet_is_the_same(script, tmp_path, text_encoder):
    rows = [conversation(script, i, 1 + i % 3, f"p{i % 2}") for i in range(6)]
    rows[4][script.BALANCED] = "False"
    source = written(tmp_path / "c.csv", rows)
    frame = pd.DataFrame(rows).replace("", None)
    frame[script.BALANCED] = frame[script.BALANCED] == "True"
    frame.to_parquet(tmp_path / "c.parquet")
    (tmp_path / "packed.csv").write_bytes(gzip.compress(source.read_bytes()))
    found = {}
    for name in ("c.csv", "c.parquet", "packed.csv"):
        done = prepare(tmp_path / name[:3], tmp_path / name, text_encoder, *MEAN, "--balanced")
        assert done[0] == 0 and "5 conversations by 2 people" in done[1], done
        found[name] = frame_of(tmp_path / name[:3])
    assert found["c.csv"].equals(found["c.parquet"]) and found["c.csv"].equals(found["packed.csv"])
    done = prepare(tmp_path / "a", source, text_encoder, *MEAN, "--min_turns", 2)
    assert "4 conversations" in done[1] and "2 x conversations of fewer than 2 choices" in done[1]
    done = prepare(tmp_path / "b", source, text_encoder, *MEAN, "--first_turn_only", "--limit", 2)
    assert "2 conversations by 2 people: 2 choices (6 pairs)" in done[1]
    for value, meant in (("True", True), (" 1", True), (True, True), (0.0, False), ("", False)):
        assert script.is_true("here", value) == meant
    with pytest.raises(InputError, match="neither true nor false"):
        script.is_true("here", "yes")


BAD = {
    "no column": (
        lambda text: text.replace("annotator_id", "annotator"),
        "annotator_id is missing",
    ),
    "a web page": (lambda text: "<!DOCTYPE html><html></html>", "web page"),
    "a cut last row": (lambda text: text[: len(text) - 60], "cells for"),
    "cut within quotes": (lambda text: text + '"the cat', "cut off here"),
    "no such letter": (
        lambda text: text.replace("response_c\n", "response_e\n"),
        "'response_e' of",
    ),
    "no row": (lambda text: text.splitlines()[0] + "\n", "the file has no row"),
    "nothing": (lambda text: "", "conversation_id is missing"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_one_line(script, tmp_path, text_encoder, name):
    change, words = BAD[name]
    rows = [conversation(script, i) for i in range(3)]
    for row in rows:  # at the end of the line, where no column's name looks like it
        del row["first_turn_preferred_response"]
        row["first_turn_preferred_response"] = "response_c"
    source = written(tmp_path / "c.csv", rows)
    source.write_text(change(source.read_text("utf-8-sig")))
    done = prepare(tmp_path, source, text_encoder, *MEAN)
    assert_one_line_error(done, words)
    assert not (tmp_path / "data").exists()


def test_nobody_and_no_such_language_are_one_line(script, tmp_path, text_encoder):
    source = written(tmp_path / "c.csv", [conversation(script, person="EMPTY STRING")])
    done = prepare(tmp_path, source, text_encoder, *MEAN)
    assert_one_line_error(done, "line 2: no conversation_id, annotator_id")
    source = written(tmp_path / "c.csv", [conversation(script, i) for i in range(3)])
    done = prepare(tmp_path, source, text_encoder, *MEAN, "--lang", "de")
    assert_one_line_error(done, "--lang de; the file has en (3)")
    equal = {f"first_turn_response_{letter}": "sat" for letter in "abcd"}
    source = written(tmp_path / "c.csv", [conversation(script, i, **equal) for i in range(3)])
    done = prepare(tmp_path, source, text_encoder, *MEAN)
    assert_one_line_error(done, "nothing is left", "3 x choices between equal replies")
    for name, words in (("no.csv", "is no file"), ("", "which conversations?")):
        done = prepare(tmp_path, tmp_path / name if name else "", text_encoder, *MEAN)
        assert_one_line_error(done, words)
    table = pd.DataFrame([conversation(script)])
    for value in ([{"role": "user", "content": "?"}], b"the cat", 1.0):
        table["first_turn_prompt"] = pd.Series([value], dtype=object)
        table.to_parquet(tmp_path / "c.parquet")
        done = prepare(tmp_path, tmp_path / "c.parquet", text_encoder, *MEAN)
        assert_one_line_error(done, "row 0: first_turn_prompt is a", "not text")
    (tmp_path / "data").mkdir()
    written(tmp_path / "data/comparisons.parquet", [conversation(script)])  # told before it is read
    done = prepare(tmp_path, tmp_path / "data/comparisons.parquet", text_encoder, *MEAN)
    assert_one_line_error(done, "would be written over")
    pd.DataFrame({"chosen": ["mine"]}).to_parquet(tmp_path / "data/comparisons.parquet")
    done = prepare(tmp_path, source, text_encoder, *MEAN)
    assert_one_line_error(done, "would be lost")


def test_two_forms_of_an_accent_are_one_prompt_and_one_item(script, tmp_path, text_encoder):
    rows = []
    for number, form in enumerate(("NFC", "NFD")):
        row = conversation(script, 0, 1, f"p{number}", conversation_id=number)
        row["first_turn_prompt"] = unicodedata.normalize(form, "Où est le café ?")
        rows.append(row)
    done = prepare(tmp_path, written(tmp_path / "c.csv", rows), text_encoder, *MEAN)
    assert done[0] == 0, done[2]
    assert frame_of(tmp_path)[["group", "item"]].nunique().tolist() == [1, 1]


# ------------------------------------------------------------------------------------------------
# The mains
# ------------------------------------------------------------------------------------------------


def test_from_a_file_to_tables(script, tmp_path, reward_model):
    rng = np.random.default_rng(0)
    rows = []
    for number in range(12):
        for person in range(6):  # all are asked the same
            letter = f"response_{'abcd'[rng.integers(4)]}"
            row = conversation(script, number, 1 + number % 3, f"p{person}", preferred=letter)
            if person == 0 and letter != "response_d":
                row["first_turn_response_d"] = ""
            rows.append(row | {"conversation_id": f"c{number}.{person}"})
    rows += [conversation(script, 100, 1, "alone")]  # a person with one turn
    rows += [row | {"conversation_id": f"again{i}"} for i, row in enumerate(rows[:8])]
    done = prepare(tmp_path, written(tmp_path / "c.csv", rows), reward_model)
    assert done[0] == 0, done[2]
    common = ("--data", tmp_path / "data", "--results", tmp_path, "--min_choices", 2)
    quick = ("--solver", "adam", "--num_iterations", 20, "--K_list")
    for likelihood in ("pairs", "softmax"):
        flags = (*common, *quick, 0, 1, 2, "--likelihood", likelihood, "--who")
        status, out, err = call_script(FOLDER / "train_basis.py", *flags)
        assert status == 0, err
        assert "split by group: of" in out and " 0 are on the training side as well" in out
        assert "chance: 2" in out
        assert "who had been asked the same before" in out and "plurality of others" in out
    saved = json.loads((tmp_path / "train_basis.json").read_text())
    assert saved["consistency"]["choices"] >= 8 and saved["settings"]["split"] == "group"
    assert saved["who"]["rows"] == [] and saved["by_choice"] and saved["of_shared_items"]
    flags = (*common, *quick, 1, 2, "--num_shots", 1, 2, "--trials", 2, "--max_few_shot", 4)
    status, out, err = call_script(FOLDER / "vary_fewshot.py", *flags)
    assert status == 0, err
    done = call_script(FOLDER / "train_basis.py", *common, "--min_choices", 500)
    assert_one_line_error(done, "have 500 choices on each side; lower --min_choices")
    done = call_script(FOLDER / "train_basis.py", *common, "--likelihood", "softmax")
    assert_one_line_error(done, "--likelihood softmax: the ridge solver")
    chances = []
    for flags in (("--seed", 0), ("--seed", 1), ("--repeats", 2, "--resplit")):
        done = call_script(FOLDER / "train_basis.py", *common, *quick, 0, "--who", *flags)
        assert done[0] == 0, done[2]
        chances.append(float(re.search("chance: (.*) %", done[1])[1]))
    assert "unseen people of one fit: seed 0, K = 0" in done[1]
    assert chances[0] != chances[1] and abs(sum(chances[:2]) / 2 - chances[2]) < 0.11  # as printed
    flags = (*common, *quick, 1, 2, "--baselines", "--split", "turn")
    status, out, err = call_script(FOLDER / "train_basis.py", *flags)
    assert status == 0, err
    rows = json.loads((tmp_path / "train_basis_turn.json").read_text())["by_choice"]
    assert not any("unseen_over_shuffled" in row for row in rows)
    done = call_script(FOLDER / "train_basis.py", *common, "--split", "user")
    assert_one_line_error(done, "split 'user'")


def test_planted_tastes_are_found_by_group_and_the_split_by_turn_flatters(tmp_path):
    people = load_script(FOLDER / "people.py")
    few = {"planted_people": 100, "planted_popularity": 1.5}
    prepared = people.plant(defaults_of(people, seed=0, **few))
    results = []
    for deal, ranks in (("turn", [1]), ("group", [1, 2])):
        groups = people.split(prepared, deal, 5, 32, 0.5, "pairs", 0)
        results.append(run(ranks, [0.0], None, *groups, *groups.sizes, "cpu", solver="ridge"))
    by_turn, by_group = results
    assert by_group.cells[0].both_sides["unseen"][0] == 0
    assert by_turn.cells[0].both_sides["unseen"][0] >= 50
    assert by_turn.unseen[0] > by_group.unseen[0] + 0.02
    assert by_group.unseen[1] > by_group.unseen[0] + 0.01
    fit = by_group.cells[1].fit
    rewards = fit.V @ fit.W.T  # (d, K) @ (K, C)
    users = groups.train.user_ids
    W = torch.stack([prepared.planted.W[user] for user in by_group.cells[1].users["seen"]])
    cosine = F.cosine_similarity(rewards, prepared.planted.V @ W.T, dim=0)
    assert len(users) == len(cosine) and cosine.mean() > 0.6
