"""CommunityAlignment/: from the columns of the public file to tables, on made-up conversations."""

import csv
import gzip
import unicodedata

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, assert_one_line_error, call_script, load_script, printed
from texts import WORDS, report
from tiny import encoder

from lore.common import InputError
from lore.settings import defaults_of
from lore.splits import load_split
from lore.text.conversations import exchange
from utils import run

FOLDER = ROOT / "CommunityAlignment"
SCRIPT = load_script(FOLDER / "prepare.py")
PEOPLE = load_script(FOLDER / "people.py")
CHOICES = load_script(FOLDER / "choices.py")
TRAIN, VARY = FOLDER / "train_basis.py", FOLDER / "vary_fewshot.py"
MEAN = ("--pooling", "mean")
TURNS = ("first", "second", "third", "fourth")
REPLIES = [f"first_turn_response_{letter}" for letter in "abcd"]


def conversation(number=0, turns=1, person="ann", lang="en", preferred="response_b", **changed):
    """A row of the public file; replies are told apart by their number."""
    row = dict.fromkeys([*SCRIPT.COLUMNS, SCRIPT.BALANCED], "")
    row |= {"conversation_id": f"c{number}", "annotator_id": person, "assigned_lang": lang}
    row |= {"annotator_country": "india", "annotator_age": "18-34", SCRIPT.BALANCED: "True"}
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


def prepare(folder, source, model, *flags, call=printed):
    """What prepare.py says of a file, or of some rows as a CSV file."""
    if isinstance(source, list):
        source = written(folder / "c.csv", source)
    common = ("--source", source, "--model", model, "--data", folder / "data")
    return call(FOLDER / "prepare.py", *common, *flags)


def frame_of(folder):
    return load_split(folder / "data/comparisons", "").frame


# ----------------------------------------------------------------------------------- prepare.py ---


def test_a_turn_is_its_history_its_prompt_and_the_replies_that_were_not_preferred(tmp_path, reward_model):
    """Whatever their letters, and its form of an accent."""
    rows = [conversation(0, 2, first_turn_prompt="Où est le café ?")]
    rows.append(conversation(1, 3, "bob", first_turn_prompt='the "cat",\nsat?'))
    letters = {name: rows[0][reply] for name, reply in zip(REPLIES, reversed(REPLIES))}
    prompt = unicodedata.normalize("NFD", rows[0]["first_turn_prompt"])
    rows.append(conversation(2, 1, "eve", preferred="response_c", first_turn_prompt=prompt, **letters))
    out = prepare(tmp_path, rows, reward_model)
    assert "3 conversations by 3 people: 6 choices (18 pairs) on 5 items" in out  # one of them twice
    split = load_split(tmp_path / "data/comparisons", "")
    frame = split.frame
    assert frame["turn"].value_counts().tolist() == [3] * 6
    assert frame.groupby("user_id")["place"].max().to_dict() == {"ann": 1, "bob": 2, "eve": 0}
    assert frame["group"].nunique() == 2 and frame["item"].nunique() == 5
    assert frame["chosen"].nunique() == 6  # a text is read as it is written
    assert {*frame["country"]} == {"india"} and {*frame["political"]} == {""}
    talk = []
    for turn in TURNS[:2]:
        reply = rows[0][f"{turn}_turn_response_b"].removesuffix("<|end_of_text|>")
        talk += exchange(rows[0][f"{turn}_turn_prompt"], reply)
    row = frame.query("user_id == 'ann' and place == 1")["chosen"].iloc[0]
    assert torch.allclose(split.table[row], encoder(reward_model).embed([talk])[0], atol=1e-5)


def test_every_trap_is_counted(tmp_path, text_encoder):
    rows = [
        conversation(0, 3, second_turn_prompt="EMPTY STRING"),
        conversation(1, 2, second_turn_preferred_response="None"),
        conversation(2, 2, second_turn_response_b="nan"),
        conversation(3, 1, **dict.fromkeys(REPLIES, "sat")),
        conversation(4, 1, **dict.fromkeys(REPLIES[::2], "sat cat")),
        conversation(5, 1, **dict(zip(REPLIES[1::2], ("it", "it<|end_of_text|>")))),
        conversation(0, 1),
        conversation(6, 0),
        conversation(7, 1, "joe", "hi"),
    ]
    lines = prepare(tmp_path, rows, text_encoder, *MEAN).splitlines()
    assert {line.removeprefix("left out: ") for line in lines if line.startswith("left out")} == {
        "1 x conversations that miss a turn: what comes after it",
        "2 x turns without a preferred reply, and those after them",
        "4 x replies equal to the preferred one",
        "1 x rejected replies that are there twice",
        "1 x choices between equal replies",
        "1 x conversations that are there twice",
        "1 x conversations of fewer than 1 choices",
    }
    assert any("6 conversations by 1 people: 5 choices (13 pairs)" in line for line in lines)
    other = ("--lang", "hi", "--data", tmp_path / "hi")
    assert "1 conversations by 1 people" in prepare(tmp_path, tmp_path / "c.csv", text_encoder, *MEAN, *other)


def test_what_is_asked_for_is_kept_and_parquet_is_the_same(tmp_path, text_encoder, reward_model):
    rows = [conversation(i, 1 + i % 3, f"p{i % 2}") for i in range(6)]
    rows[4] |= {SCRIPT.BALANCED: "False", "second_turn_response_a": "the cat sat " * 60}
    source = written(tmp_path / "c.csv", rows)
    frame = pd.DataFrame(rows).replace("", None)
    frame[SCRIPT.BALANCED] = frame[SCRIPT.BALANCED] == "True"
    frame.to_parquet(tmp_path / "c.parquet")
    (tmp_path / "packed.csv").write_bytes(gzip.compress(source.read_bytes()))
    frames = []
    for name in ("c.csv", "c.parquet", "packed.csv"):
        out = prepare(tmp_path / name[:3], tmp_path / name, text_encoder, *MEAN, "--balanced")
        assert "5 conversations by 2 people" in out
        frames.append(frame_of(tmp_path / name[:3]))
    assert frames[0].equals(frames[1]) and frames[0].equals(frames[2])
    for name, flags, *said in (
        ("a", ("--min_turns", 2), "4 conversations", "2 x conversations of fewer than 2 choices"),
        ("b", ("--first_turn_only", "--limit", 2), "2 conversations by 2 people: 2 choices (6 pairs)"),
    ):
        out = prepare(tmp_path / name, source, text_encoder, *MEAN, *flags)
        assert all(words in out for words in said)
    prepare(tmp_path / "long", source, reward_model, "--max_length", 60)  # the choice goes as a whole
    assert frame_of(tmp_path / "long").groupby("place").size().tolist() == [18, 9, 6]
    for value, meant in (("True", True), (" 1", True), (True, True), (0.0, False), ("", False)):
        assert SCRIPT.is_true("here", value) == meant
    with pytest.raises(InputError, match="neither true nor false"):
        SCRIPT.is_true("here", "yes")


BAD = [
    ([{"conversation_id": "c", "assigned_lang": "en"}], "annotator_id is missing"),
    ([conversation(first_turn_preferred_response="response_e")], "line 2: 'response_e' of"),
    ([conversation(person="EMPTY STRING")], "line 2: no conversation_id, annotator_id"),
    ([conversation(**dict.fromkeys(REPLIES, "sat"))], "nothing is left of --lang en; the file has en (1)"),
    ([conversation(lang="hi")], "nothing is left of --lang en; the file has hi (1)"),
]


@pytest.mark.parametrize("rows, words", BAD)
def test_a_bad_file_is_one_line(tmp_path, text_encoder, rows, words):
    done = prepare(tmp_path, rows, text_encoder, *MEAN, call=call_script)
    assert_one_line_error(done, words)
    assert not (tmp_path / "data").exists()


def test_a_file_that_is_none_and_one_that_would_be_lost_are_one_line(tmp_path, text_encoder):
    def refused(source, *words):
        done = prepare(tmp_path, source, text_encoder, *MEAN, call=call_script)
        assert_one_line_error(done, *words)

    refused(tmp_path / "no.csv", "is no file")
    refused("", "which conversations?")
    table = pd.DataFrame([conversation()])
    for value in ([{"role": "user", "content": "?"}], 1.0):
        table["first_turn_prompt"] = pd.Series([value], dtype=object)
        table.to_parquet(tmp_path / "c.parquet")
        refused(tmp_path / "c.parquet", "row 0: first_turn_prompt is a", "not text")
    (tmp_path / "data").mkdir()
    source = tmp_path / "data/comparisons.parquet"
    refused(written(source, [conversation()]), "would be written over")  # told before it is read
    pd.DataFrame({"chosen": ["mine"]}).to_parquet(source)
    refused([conversation()], "would be lost")


# ------------------------------------------------------------------------------------ The mains ---


@pytest.fixture(scope="module")
def answers(tmp_path_factory, reward_model):
    """data/ of six people who are all asked the same, twice in part, and who answer at random."""
    folder = tmp_path_factory.mktemp("answers")
    rng = np.random.default_rng(0)
    rows = []
    for number in range(12):
        for person in range(6):
            letter = f"response_{'abcd'[rng.integers(4)]}"
            row = conversation(number, 1 + number % 3, f"p{person}", preferred=letter)
            if person == 0 and letter != "response_d":
                row["first_turn_response_d"] = ""
            rows.append(row | {"conversation_id": f"c{number}.{person}"})
    rows += [conversation(100, 1, "alone")]  # a person with one turn
    rows += [row | {"conversation_id": f"again{i}"} for i, row in enumerate(rows[:8])]
    prepare(folder, rows, reward_model)
    return folder / "data"


QUICK = ("--solver", "adam", "--num_iterations", 20, "--min_choices", 2)


def test_from_choices_to_tables(answers, tmp_path):
    common = ("--data", answers, "--results", tmp_path, *QUICK)
    for likelihood in ("pairs", "softmax"):
        out = printed(TRAIN, *common, "--K_list", 0, 1, 2, "--likelihood", likelihood, "--who")
        assert " 0 are on the training side" in out and "plurality of others" in out
        assert "who had been asked the same before" in out
    saved = report(tmp_path / "train_basis.json")
    assert saved["consistency"]["choices"] >= 8 and saved["settings"]["split"] == "group"
    assert saved["who"]["rows"] == [] and saved["by_choice"] and saved["of_shared_items"]
    printed(VARY, *common, "--K_list", 1, 2, "--num_shots", 1, 2, "--trials", 2, "--max_few_shot", 4)
    printed(TRAIN, *common, "--K_list", 1, 2, "--baselines", "--split", "turn")
    rows = report(tmp_path / "train_basis_turn.json")["by_choice"]
    assert not any("unseen_over_shuffled" in row for row in rows)
    out = printed(TRAIN, *common, "--K_list", 0, "--who", "--repeats", 2, "--resplit")
    assert "unseen people of one fit: seed 0, K = 0" in out
    splits = [PEOPLE.split(PEOPLE.load(answers), "group", 2, 32, 0.5, "pairs", seed) for seed in range(2)]
    first, second = (CHOICES.chance(groups.unseen) for groups in splits)
    assert first != second and f"chance: {50 * (first + second):.1f} %" in out  # that of all splits


def test_settings_that_cannot_be_end_with_one_line(answers):
    for flags, words in (
        (("--min_choices", 500), "have 500 choices on each side; lower --min_choices"),
        (("--likelihood", "softmax"), "--likelihood softmax: the ridge solver"),
        (("--split", "user"), "split 'user'"),
    ):
        assert_one_line_error(call_script(TRAIN, "--data", answers, *flags), words)


def test_planted_tastes_are_found_by_group_and_the_split_by_turn_flatters():
    few = {"planted_people": 60, "planted_conversations": 30, "planted_prompts": 30, "planted_features": 64}
    prepared = PEOPLE.plant(defaults_of(PEOPLE, seed=0, planted_popularity=1.5, **few))
    of_deal = {}
    for deal, ranks in (("turn", [1]), ("group", [1, 2])):
        groups = PEOPLE.split(prepared, deal, 5, 32, 0.5, "pairs", 0)
        of_deal[deal] = run(ranks, [0.0], None, *groups, *groups.sizes, "cpu", solver="ridge")
    by_turn, by_group = of_deal.values()
    assert by_group.cells[0].both_sides["unseen"][0] == 0
    assert by_turn.cells[0].both_sides["unseen"][0] >= 25
    assert by_turn.unseen[0] > by_group.unseen[0] + 0.02
    assert by_group.unseen[1] > by_group.unseen[0] + 0.01
    fit, planted = by_group.cells[1].fit, prepared.planted
    W = torch.stack([planted.W[user] for user in by_group.cells[1].users["seen"]])  # (C, directions)
    assert F.cosine_similarity(fit.V @ fit.W.T, planted.V @ W.T, dim=0).mean() > 0.6
