"""PRISM/ from the public files to a table, and RewardBench 2, as a user runs them."""

import hashlib
import json
import random
from collections import Counter
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT, SHARED, assert_one_line_error, call_script, load_script, run_script
from texts import text

import utils
from lore.common import InputError
from lore.fit.basis import Basis, basis_path, load_basis, save_basis
from lore.settings import SETTING, defaults_of
from lore.splits import load_split
from lore.text.encoder import Encoder

FOLDER = ROOT / "PRISM"
PREPARE = load_script(FOLDER / "prepare.py")
GENERATE = load_script(FOLDER / "generate-prism-embeddings.py")
PEOPLE = load_script(FOLDER / "people.py")
RB2 = load_script(FOLDER / "eval_rb2.py")
REWARDBENCH2 = load_script(FOLDER / "rewardbench2.py")
PUBLISHED = "6da3b5aee8d7250ff82974c2b50928c31434793b4f96f03fa887ac3d546dcc12"


def user(name, completed=6):
    return {
        "user_id": name,
        "num_completed_conversations": completed,
        "survey_only": completed == 0,
        "age": "18-24",
    }


def message(turn, role, content, chosen=None, **fields):
    extra = (
        {}
        if role == "user"
        else {"model_name": "m", "score": 50, "if_chosen": chosen, "within_turn_id": 0}
    )
    return {"turn": turn, "role": role, "content": content, **extra, **fields}


def conversation(name, owner, turns):
    """Upstream row of turns [(question, [chosen replies], [rejected replies])]."""
    history = []
    for turn, (question, chosen, rejected) in enumerate(turns):
        history += [message(turn, "user", question)] if question is not None else []
        replies = [(text, True) for text in chosen] + [(text, False) for text in rejected]
        history += [message(turn, "model", text, flag) for text, flag in replies]
    row = {
        "conversation_id": name,
        "user_id": owner,
        "conversation_type": "unguided",
        "open_feedback": "",
    }
    return {**row, "conversation_turns": len(turns), "conversation_history": history}


def write(folder, users, conversations):
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (("survey.jsonl", users), ("conversations.jsonl", conversations)):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def upstream(folder, people=10, dialogues=6, seed=0):
    """Made-up dialogues whose choices are drawn at random."""
    rng = random.Random(seed)
    users = [user(f"user{i}") for i in range(people)] + [user("idle", 0)]
    rows = []
    for i in range(people):
        for _ in range(dialogues):
            turns = []
            for turn in range(rng.randint(2, 3)):
                replies = list(
                    {f"{text(rng, 2, 6)} {rng.random():.6f}" for _ in range(2 if turn else 4)}
                )
                turns.append((text(rng, 2, 6), replies[:1], replies[1:]))
            rows.append(conversation(f"c{len(rows)}", f"user{i}", turns))
    write(folder, users, rows)


def prepare(folder, *flags):
    return call_script(FOLDER / "prepare.py", "--source", folder, "--data", folder / "data", *flags)


def generate(folder, model, *flags):
    return call_script(
        FOLDER / "generate-prism-embeddings.py", "--data", folder / "data", "--model", model, *flags
    )


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, reward_model):
    """Folder whose data/ holds embedded dialogues of ten people."""
    folder = tmp_path_factory.mktemp("prism")
    upstream(folder)
    status, out, err = run_script(
        FOLDER / "prepare.py", "--source", folder, "--data", folder / "data"
    )
    assert status == 0, err
    assert (
        "60 dialogues by 10 users" in out
        and "8 seen and 2 unseen users" in out
        and "left out in all dialogues: nothing" in out
    )
    script, flags = (
        FOLDER / "generate-prism-embeddings.py",
        ("--data", folder / "data", "--model", reward_model),
    )
    status, out, err = run_script(script, *flags)
    assert status == 0, err
    assert "comparisons of 60 dialogues" in out
    return folder


# ------------------------------------------------------------------------------------------------------------------
# prepare.py
# ------------------------------------------------------------------------------------------------------------------


def real_ids():
    """(user of each dialogue, number of its replies): the real ones."""
    folder = SHARED / "prism"
    owner = pd.read_csv(folder / "local_clusters_opening_prompt_0-05.csv.gz").set_index(
        "conversation_id"
    )["user_id"]
    return owner, pd.read_csv(folder / "local_clusters_model_response_0-05.csv.gz").groupby(
        "conversation_id"
    ).size()


def real_structure():
    """(users, conversations) with the real ids and replies per dialogue; the texts are made up."""
    owner, replies = real_ids()
    number = lambda name: int(name.lstrip("cuser"))
    users = [user(f"user{i}", int(f"user{i}" in set(owner))) for i in range(1500)]
    rows = []
    for name in sorted(owner.index, key=number):
        turns = [
            (f"q{turn} {name}", ["yes"] * (name != "c2536"), [f"no {i}" for i in range(size - 1)])
            for turn, size in enumerate(PEOPLE.replies_per_turn(int(replies[name])))
        ]
        rows.append(conversation(name, owner[name], turns))
    return users, rows


@pytest.mark.skipif(
    not SHARED.exists(), reason=f"the real ids are not at {SHARED}; set LORE_SHARED to their folder"
)
def test_the_published_split_of_the_real_ids_byte_for_byte(tmp_path):
    users, rows = real_structure()
    write(tmp_path, users, rows)
    status, out, err = prepare(tmp_path)
    assert status == 0, err
    content = (tmp_path / "data/prism_split_ids_50.json").read_bytes()
    assert len(content) == 161034 and hashlib.sha256(content).hexdigest() == PUBLISHED
    assert "left out: dialogue c2536 of user469" in out and "8010 dialogues by 1396 users" in out
    assert (
        "1029 seen and 258 unseen users" in out and "3861 training and 3866 test dialogues" in out
    )
    split = json.loads(content)
    assert split["train_dialog_ids"][:4] == ["c7428", "c7454", "c7487", "c2530"]
    halves = prepare(tmp_path, "--seen_fraction", 0.5)[
        1
    ]  # the published rule halves before users are left out
    assert "651 seen and 636 unseen users" in halves


@pytest.mark.skipif(
    not SHARED.exists(), reason=f"the real ids are not at {SHARED}; set LORE_SHARED to their folder"
)
def test_the_structure_written_down_for_planted_dialogues_is_the_real_one():
    owner, replies = real_ids()
    dialogues = owner.value_counts().value_counts()
    assert replies.value_counts().to_dict() == PEOPLE.DIALOGUES_OF_REPLIES
    assert {count: dialogues[count] for count in (6, 7)} == PEOPLE.PEOPLE_OF_DIALOGUES
    assert all(
        sum(PEOPLE.replies_per_turn(count)) == count for count in PEOPLE.DIALOGUES_OF_REPLIES
    )


def test_a_turn_gives_one_pair_per_rejected_reply_and_says_what_it_leaves_out():
    counts = Counter()
    turns = [
        {
            "user": [" hi "],
            "chosen": ["yes", "yes"],
            "rejected": ["no", " yes ", "EMPTY STRING", "never"],
        },
        {"user": ["and?"], "chosen": ["EMPTY STRING"], "rejected": ["one", "two"]},
        {"user": ["then?"], "chosen": ["good", "other"], "rejected": ["bad"]},
        {"user": ["lost"], "chosen": [], "rejected": ["a", "b"]},
        {"user": ["after"], "chosen": ["x"], "rejected": ["y"]},
    ]
    assert PREPARE.clean(turns, counts) == [
        {"prompt": "hi", "chosen": "yes", "rejected": ["no", "never"]},
        {"prompt": "and?", "chosen": "", "rejected": []},
        {"prompt": "then?", "chosen": "good", "rejected": ["bad"]},
    ]
    assert +counts == {
        "repeated chosen replies": 1,
        "pairs of identical replies": 1,
        "pairs with an empty reply": 3,
        "second chosen replies with another text": 1,
        "turns after a history that breaks off": 2,
    }


def test_a_comparison_is_the_history_with_one_reply_or_the_other_as_text():
    turns = [
        {"prompt": "hi", "chosen": "yes", "rejected": ["no", "never"]},
        {"prompt": "and?", "chosen": "good", "rejected": ["bad"]},
    ]
    records = list(GENERATE.comparisons({"dialogue": "c1", "user_id": "u", "turns": turns}))
    plain = lambda talk: " | ".join(f"{m['role']}: {m['content']}" for m in talk)
    assert [(r["turn"], plain(r["chosen"]), plain(r["rejected"])) for r in records] == [
        (0, "user: hi | assistant: yes", "user: hi | assistant: no"),
        (0, "user: hi | assistant: yes", "user: hi | assistant: never"),
        (
            1,
            "user: hi | assistant: yes | user: and? | assistant: good",
            "user: hi | assistant: yes | user: and? | assistant: bad",
        ),
    ]


def test_only_a_dialogue_without_any_full_turn_is_left_out(tmp_path):
    full, no_chosen, no_user = ("q", ["yes"], ["no"]), ("q", [], ["no"]), (None, ["yes"], ["no"])
    rows = [conversation(f"c{i}", "u", [full, no_chosen]) for i in range(6)]
    rows += [conversation("c6", "u", [no_chosen, no_user, ("q", ["yes"], [])])]
    rows += [conversation(f"d{i}", "v", [full]) for i in range(6)]
    write(tmp_path, [user("u"), user("v"), user("w", 0)], rows)
    status, out, err = prepare(tmp_path, "--seen_fraction", 0.5)
    assert status == 0, err
    assert "left out: dialogue c6 of u" in out and "12 dialogues by 2 users" in out
    assert "6 turns after a history that breaks off" in out
    lines = (tmp_path / "data/dialogues.jsonl").read_text().splitlines()
    assert [json.loads(line)["dialogue"] for line in lines] == [
        *(f"c{i}" for i in range(6)),
        *(f"d{i}" for i in range(6)),
    ]


def test_another_split_leaves_the_dialogues_as_they_are(tmp_path):
    upstream(tmp_path)
    assert prepare(tmp_path)[0] == 0
    names = ("dialogues.jsonl", "prism_split_ids_50.json")
    first = [(tmp_path / "data" / name).read_bytes() for name in names]
    assert prepare(tmp_path, "--seen_fraction", 0.5, "--seed", 1)[0] == 0
    second = [(tmp_path / "data" / name).read_bytes() for name in names]
    assert (
        first[0] == second[0] and first[1] != second[1]
    )  # so that a new split needs no new embedding


def test_values_that_equal_those_of_prism_give_the_same_dialogues(tmp_path):
    """6.0 conversations, turn 1.0, if_chosen 1: what a tool between may have made of them."""
    upstream(tmp_path)
    assert prepare(tmp_path)[0] == 0
    names = ("dialogues.jsonl", "prism_split_ids_50.json")
    before = [(tmp_path / "data" / name).read_bytes() for name in names]
    for name in ("survey.jsonl", "conversations.jsonl"):
        rows = [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
        for row in rows:
            if "num_completed_conversations" in row:
                row["num_completed_conversations"] = float(row["num_completed_conversations"])
            for said in row.get("conversation_history", []):
                said["turn"] = float(said["turn"])
                if "if_chosen" in said:
                    said["if_chosen"] = int(said["if_chosen"])
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert prepare(tmp_path)[0] == 0
    assert before == [(tmp_path / "data" / name).read_bytes() for name in names]


def mend(turns=None, **fields):
    """A conversation of user0 with one thing wrong."""
    row = conversation("c0", "user0", turns or [("q", ["yes"], ["no"])])
    return {**row, **fields}


@pytest.mark.parametrize(
    "row, words",
    [
        (mend(user_id="stranger"), ["c0 is by 'stranger'", "not in survey.jsonl"]),
        (
            mend(conversation_history=[message(0, "model", "x", None)]),
            ["message 0", "a reply without if_chosen"],
        ),
        (mend(conversation_history=[message(3, "user", "x")]), ["turn 3 of a dialogue of 1 turns"]),
        (mend(conversation_history=[message(0.5, "user", "x")]), ["turn 0.5 of a dialogue"]),
        (mend(conversation_history=[message(0, "model", "x", 2)]), ["a reply without if_chosen"]),
        (mend(conversation_turns=1.5), ["needs conversation_turns"]),
        (
            mend(conversation_history=[message(-1, "user", "x")]),
            ["turn -1 of a dialogue of 1 turns"],
        ),
        (mend(conversation_history=[message("0", "user", "x")]), ["turn '0' of a dialogue"]),
        (
            mend(conversation_history=[message(0, "user", ["a", "b"])]),
            ["content is a list, not text"],
        ),
        (
            mend(conversation_history=[message(0, "model", ["a"], False)]),
            ["content is a list, not text"],
        ),
        (mend(conversation_history=[message(0, "system", "x")]), ["role is 'system'"]),
        (mend(conversation_history=["x"]), ["message 0", "not an object"]),
        (mend(conversation_history=None), ["conversation_history"]),
        (mend(conversation_id=None), ["conversation_id None is missing"]),
        (mend(user_id=["user0"]), ["c0 is by ['user0']"]),
        (
            mend(conversation_history=[message(0, "user", "a \ud800 b")]),
            ["message 0", "half a character"],
        ),
    ],
)
def test_rows_that_prism_does_not_have_end_with_file_and_line(tmp_path, row, words):
    write(tmp_path, [user("user0")], [conversation("c9", "user0", [("q", ["yes"], ["no"])]), row])
    assert_one_line_error(prepare(tmp_path), "conversations.jsonl, line 2", *words)


def test_files_that_are_not_the_data_end_with_one_line(tmp_path):
    upstream(tmp_path)
    good = (tmp_path / "conversations.jsonl").read_text()
    for content, words in (
        ("<!DOCTYPE html>\n<html>too many requests</html>", ["conversations.jsonl is a web page"]),
        (good[:-100], ["conversations.jsonl, line 60", "cut off here"]),
        (
            good + good.splitlines()[0] + "\n",
            ["line 61", "'c0' is missing or stands here for the second time"],
        ),
        ("", ["too few users with 6 dialogues"]),
    ):
        (tmp_path / "conversations.jsonl").write_text(content)
        assert_one_line_error(prepare(tmp_path), *words)
    (tmp_path / "conversations.jsonl").unlink()
    assert_one_line_error(prepare(tmp_path), "conversations.jsonl is missing")
    (tmp_path / "survey.jsonl").write_text('{"user_id": "u"}\n')
    assert_one_line_error(prepare(tmp_path), "survey.jsonl, line 1", "num_completed_conversations")
    (tmp_path / "survey.jsonl").write_text(2 * (json.dumps(user("u")) + "\n"))
    assert_one_line_error(
        prepare(tmp_path), "survey.jsonl, line 2", "u stands here for the second time"
    )
    flags = ("--data", tmp_path / "data")
    assert_one_line_error(
        prepare(tmp_path / "nowhere", *flags), "nowhere is no folder here", "cannot be fetched"
    )
    assert_one_line_error(prepare(tmp_path, "--seen_fraction", 1.0), "between 0 and 1")


# ------------------------------------------------------------------------------------------------------------------
# generate-prism-embeddings.py
# ------------------------------------------------------------------------------------------------------------------


def test_every_vector_is_that_of_its_own_conversation(prepared, reward_model):
    split = load_split(prepared / "data/prism", "")
    lines = (prepared / "data/dialogues.jsonl").read_text().splitlines()
    records = [record for line in lines for record in GENERATE.comparisons(json.loads(line))]
    assert len(records) == len(split.frame)
    encoder = Encoder(str(reward_model), "last", torch.device("cpu"), share=False)
    for record, row in list(zip(records, split.frame.itertuples()))[::7]:
        assert (record["user_id"], record["dialogue"], record["turn"]) == (
            row.user_id,
            row.dialogue,
            row.turn,
        )
        for side in ("chosen", "rejected"):
            tokens = torch.tensor(encoder.tokens([record[side]])[0][0][None])
            with torch.no_grad():
                alone = encoder.model.base_model(input_ids=tokens).last_hidden_state[0, -1]
            assert torch.allclose(split.table[getattr(row, side)], alone, atol=1e-5)
    contents = {json.dumps(record[side]) for record in records for side in ("chosen", "rejected")}
    assert len(split.table) == len(contents)  # each distinct conversation once


def test_the_first_dialogues_only_and_what_is_missing(prepared, text_encoder, tmp_path):
    (tmp_path / "data").mkdir()
    assert_one_line_error(
        generate(tmp_path, text_encoder), "dialogues.jsonl is missing", "PRISM/prepare.py"
    )
    (tmp_path / "data/dialogues.jsonl").write_bytes(
        (prepared / "data/dialogues.jsonl").read_bytes()
    )
    status, _, err = generate(tmp_path, text_encoder, "--pooling", "mean", "--limit", 3)
    assert status == 0, err
    split = load_split(tmp_path / "data/prism", "")
    assert split.frame["dialogue"].unique().tolist() == ["c0", "c1", "c2"] and split.head is None
    assert_one_line_error(
        generate(tmp_path, text_encoder, "--pooling", "mean"),
        "made of other text, perhaps with another --limit",
    )
    again = generate(tmp_path, text_encoder, "--pooling", "mean", "--limit", 3, "--max_length", 20)
    assert_one_line_error(
        again, "was made with", '"max_length": 0', "this run has", '"max_length": 20'
    )
    (tmp_path / "data/dialogues.jsonl").write_text('{"user_id": "u"}\n')
    assert_one_line_error(
        generate(tmp_path, text_encoder, "--pooling", "mean"), "line 1: no dialogue with its turns"
    )
    (tmp_path / "data/dialogues.jsonl").write_text("")
    assert_one_line_error(
        generate(tmp_path, text_encoder, "--pooling", "mean"), "holds no comparison"
    )


# ------------------------------------------------------------------------------------------------------------------
# train_basis.py, vary_fewshot.py
# ------------------------------------------------------------------------------------------------------------------

QUICK = ("--num_iterations", 20)


def test_from_embeddings_to_table_picture_and_bases(prepared, tmp_path):
    common = ("--data", prepared / "data", "--results", tmp_path, *QUICK, "--alpha_list", 0, 1e4)
    for run in (
        partial(call_script, FOLDER / "train_basis.py"),
        partial(run_script, "train_basis.py", cwd=FOLDER),
    ):
        status, out, err = run(*common, "--K_list", 0, 1, 3)
        assert status == 0, err
    assert (
        "unseen              2 people      6 dialogues" in out
        and "cosine to head" in out
        and "1 Bradley-Terry" in out
    )
    report = json.loads((tmp_path / "train_basis.json").read_text())
    assert [(row["alpha"], row["K"]) for row in report["rows"]] == [
        (a, K) for a in (0, 1e4) for K in (0, 1, 3)
    ]
    health = report["rows"][2]
    basis = load_basis(basis_path(tmp_path / "train_basis", 3, 0.0, 0), 32)
    assert (
        health["columns"] == basis.V.shape[1]
        and len(basis.user_ids) == 8
        and len(basis.unseen_ids) == 2
    )
    assert "last" in basis.model and torch.allclose(basis.W.sum(1), torch.ones(8))
    assert (tmp_path / "train_basis.png").exists()
    flags = (
        "--data",
        prepared / "data",
        "--results",
        tmp_path,
        *QUICK,
        "--K_list",
        0,
        2,
        "--trials",
        2,
        "--alpha_list",
        0,
    )
    status, out, err = call_script(FOLDER / "vary_fewshot.py", *flags)
    assert status == 0, err
    rows = json.loads((tmp_path / "vary_fewshot.json").read_text())["rows"]
    assert [(row["K"], row["shots"]) for row in rows] == [
        (K, s) for K in (0, 2) for s in (1, 2, 3, "all")
    ]
    assert rows[-1]["unseen"] == rows[-2]["unseen"]  # all = 3 of 3 dialogues
    assert (tmp_path / "vary_fewshot.png").exists()


def test_no_person_and_no_dialogue_is_on_two_sides(prepared):
    dialogues = PEOPLE.load(prepared / "data")
    groups = PEOPLE.split(dialogues)
    assert not set(groups.train.user_ids) & set(groups.unseen.user_ids)
    assert (
        groups.train.user_ids == groups.seen.user_ids
        and groups.unseen.user_ids == groups.few_shot_train.user_ids
    )
    for train, test in ((groups.train, groups.seen), (groups.few_shot_train, groups.unseen)):
        rows = [set(g.chosen.tolist()) | set(g.rejected.tolist()) for g in (train, test)]
        assert not rows[0] & rows[1]
    frame = dialogues.comparisons.frame
    for group in groups:
        pairs = list(
            zip(
                group.chosen.tolist(),
                group.rejected.tolist(),
                group.user.tolist(),
                group.shot.tolist(),
            )
        )
        found = frame.set_index(["chosen", "rejected"]).loc[[pair[:2] for pair in pairs]]
        assert found["user_id"].tolist() == [group.user_ids[pair[2]] for pair in pairs]
        assert len(set(zip(found["dialogue"], (pair[3] for pair in pairs)))) == len(
            set(group.shot.tolist())
        )
    assert sum(map(len, groups)) == len(frame)


def test_choices_drawn_at_random_are_not_predicted(tmp_path, reward_model):
    """A label that leaks into the text would be found here: the published list of rejected replies gives 0.95."""
    upstream(tmp_path, people=40, seed=3)
    assert (
        prepare(tmp_path, "--seen_fraction", 0.5)[0] == 0
        and generate(tmp_path, reward_model)[0] == 0
    )
    dialogues = PEOPLE.load(tmp_path / "data")
    groups = PEOPLE.split(dialogues)
    sizes = (len(groups.train.user_ids), len(groups.unseen.user_ids))
    result = utils.run_regularized(
        [1, 3], [0.0], dialogues.comparisons.head, *groups, *sizes, "cpu", num_iterations=300
    )
    pairs = min(len(groups.seen), len(groups.unseen))
    assert np.abs(np.concatenate([result.seen, result.unseen]) - 0.5).max() < 4 * np.sqrt(
        0.25 / pairs
    )
    assert result.train[1] > 0.6  # it did learn something


def test_a_person_without_pairs_on_a_side_is_left_out_and_counted(prepared, capsys):
    dialogues = PEOPLE.load(prepared / "data")
    ids, frame = dialogues.ids, dialogues.comparisons.frame
    person, other = list(ids["seen_user_ids"])[:2]
    test_side = frame["dialogue"].isin(ids["test_dialog_ids"])
    rest = frame[(frame["user_id"] != person) | ~test_side]
    fewer = dialogues._replace(comparisons=dialogues.comparisons._replace(frame=rest))
    groups = PEOPLE.split(fewer)
    assert person not in groups.train.user_ids and other in groups.train.user_ids
    assert "left out: 1 people without pairs on both sides" in capsys.readouterr().out
    with pytest.raises(InputError, match="nobody seen, or unseen, has pairs"):
        PEOPLE.split(fewer._replace(ids={**ids, "test_dialog_ids": []}))
    for wrong in (
        {"test_dialog_ids": ids["train_dialog_ids"]},
        {"unseen_user_ids": ids["seen_user_ids"]},
    ):
        with pytest.raises(InputError, match="trains and tests, or a person is seen and unseen"):
            PEOPLE.split(dialogues._replace(ids={**ids, **wrong}))


def test_a_split_with_a_byte_order_mark_is_the_same(prepared, tmp_path):
    for file in (prepared / "data").iterdir():
        mark = b"\xef\xbb\xbf" if file.suffix == ".json" else b""
        (tmp_path / file.name).write_bytes(mark + file.read_bytes())
    assert PEOPLE.load(tmp_path).ids == PEOPLE.load(prepared / "data").ids


def test_training_without_data_or_with_settings_that_cannot_be(prepared, tmp_path):
    train, vary = FOLDER / "train_basis.py", FOLDER / "vary_fewshot.py"
    for script in (train, vary):
        assert_one_line_error(
            call_script(script, "--data", tmp_path),
            "prism_split_ids_50.json is missing",
            "prepare.py",
        )
    flags = ("--data", prepared / "data", *QUICK)
    assert_one_line_error(
        call_script(vary, *flags, "--num_shots", 1, 4), "no unseen person has 4 training dialogues"
    )
    (tmp_path / "prism_split_ids_50.json").write_text('{"train_dialog_ids": []}')
    assert_one_line_error(
        call_script(train, "--data", tmp_path), "prism_split_ids_50.json is damaged"
    )
    (tmp_path / "prism_split_ids_50.json").write_text("null")
    assert_one_line_error(
        call_script(train, "--data", tmp_path), "prism_split_ids_50.json is damaged"
    )
    (tmp_path / "prism_split_ids_50.json").write_bytes(
        (prepared / "data/prism_split_ids_50.json").read_bytes()
    )
    assert_one_line_error(call_script(train, "--data", tmp_path), "prism.safetensors is missing")
    for name in ("prism.safetensors", "prism.parquet", "dialogues.jsonl"):
        (tmp_path / name).write_bytes((prepared / "data" / name).read_bytes())
    with open(tmp_path / "dialogues.jsonl", "a") as file:  # prepared again from other texts
        file.write('{"dialogue": "new"}\n')
    assert_one_line_error(
        call_script(train, "--data", tmp_path),
        "was made of another",
        "run again: python PRISM/generate",
    )
    for wrong, words in (
        (("--planted_accuracy", 2), "above 0.5, which is chance"),
        (("--planted_users", 1), "at least 2 people"),
        (("--planted_directions", 65), "directions between 1 and the width"),
        (("--planted_concentration", 0), "a concentration above 0"),
        (("--seed", 2**32), "a seed is below 2 ** 32"),
        (("--alpha_list", "nan"), "--alpha_list nan"),
    ):
        assert_one_line_error(
            call_script(train, "--synthetic", "--results", tmp_path, *wrong), words
        )


def test_planted_dialogues_have_the_structure_and_the_accuracy_they_say():
    dialogues = PEOPLE.plant(defaults_of(PEOPLE, seed=5, planted_users=120))
    ids = dialogues.ids
    table, frame, *_, population = dialogues.comparisons
    assert len(ids["seen_user_ids"]) == 96 and len(ids["unseen_user_ids"]) == 24
    sizes = frame.groupby(["dialogue", "turn"]).size()
    assert sizes.groupby("turn").max()[0] == 3 and sizes[
        sizes.index.get_level_values("turn") > 0
    ].unique().tolist() == [1]
    assert frame.groupby(["dialogue", "turn"])["chosen"].nunique().max() == 1
    rewards = torch.stack(
        [table @ population.V @ w for w in population.W.values()]
    )  # (users, rows)
    number = {name: i for i, name in enumerate(population.W)}
    mine, chosen, rejected = (
        list(c) for c in (frame["user_id"].map(number), frame["chosen"], frame["rejected"])
    )
    agree = rewards[mine, chosen] > rewards[mine, rejected]
    assert agree.double().mean().item() == pytest.approx(0.9, abs=0.01)
    again = PEOPLE.plant(defaults_of(PEOPLE, seed=5, planted_users=120))
    assert again.comparisons.frame.equals(frame)
    assert torch.equal(again.comparisons.table, table)
    assert [PEOPLE.replies_per_turn(n) for n in (3, 4, 5, 6, 9)] == [
        [1, 2],
        [2, 2],
        [3, 2],
        [4, 2],
        [3, 2, 2, 2],
    ]


def test_planted_people_from_the_shell(tmp_path):
    few = ("--synthetic", "--results", tmp_path, "--alpha_list", 0, "--num_iterations", 1000)
    status, _, err = run_script(FOLDER / "train_basis.py", *few, "--K_list", 0, 1, 5)
    assert status == 0, err
    rows = json.loads((tmp_path / "train_basis_synthetic.json").read_text())["rows"]
    reference, one, many, best = (row["unseen"] for row in rows)
    assert reference < one < many < best
    assert call_script(FOLDER / "vary_fewshot.py", *few, "--trials", 2)[0] == 0


# ------------------------------------------------------------------------------------------------------------------
# eval_rb2.py
# ------------------------------------------------------------------------------------------------------------------


def bench_row(
    row_id="1",
    subset="Math",
    prompt="the cat?",
    chosen=("yes",),
    rejected=("no", "never", "nothing"),
):
    row = {
        "id": row_id,
        "subset": subset,
        "prompt": prompt,
        "chosen": list(chosen),
        "rejected": list(rejected),
    }
    return {
        **row,
        "num_correct": len(chosen),
        "num_incorrect": len(rejected),
        "total_completions": 0,
        "models": [],
    }


def bench():
    rng = random.Random(1)
    replies = lambda n: [text(rng, 2, 6) + f" {rng.random():.5f}" for _ in range(n)]
    rows = [
        bench_row(str(i), name, text(rng, 2, 6), replies(1), replies(3))
        for name in REWARDBENCH2.SUBSETS[:5]
        for i in range(4)
    ]
    for n in range(3):
        rows += [
            bench_row(f"{kind}:{n}", "Ties", text(rng, 2, 6), replies(m), replies(2))
            for kind, m in (("ref", 1), ("tied", 3))
        ]
    return rows


def bench_file(folder, rows):
    path = folder / "bench.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def columns(*scores):
    return np.array(scores, dtype=float).T  # heads x replies -> (m, H)


def test_a_row_is_one_over_the_number_of_replies_at_the_top():
    scores = columns([3, 1, 2, 0], [1, 3, 2, 0], [3, 3, 0, 0], [3, 3, 3, 3], [2, 2, 3, 3])
    assert REWARDBENCH2.best_of_row(scores).tolist() == [1, 0, 0.5, 0.25, 0]


def test_ties_by_hand():
    # correct | incorrect                                                                  margin  D    accurate
    tied_0, ref_0 = (
        columns([5, 4, 1, 0]),
        columns([9, 1, 2]),
    )  # 2 correct, then 2 wrong     3     1    yes; ref 7
    tied_1, ref_1 = (
        columns([9, 5, 4, 0]),
        columns([5, 3, 3]),
    )  # margin 1 < D = 4            1     4    yes; ref 2
    tied_2, ref_2 = (
        columns([5, 5, 5, 1]),
        columns([1, 2, 0]),
    )  # equal to the best wrong     0     0    no;  ref -1
    tied_3, ref_3 = (
        columns([4, 4, 1, 1]),
        columns([2, 1, 1]),
    )  # correct ones exactly equal  3     0    yes; ref 1
    rows = []
    for n, (tied, ref) in enumerate(
        ((tied_0, ref_0), (tied_1, ref_1), (tied_2, ref_2), (tied_3, ref_3))
    ):
        rows += [(f"tied:{n}", 2, tied), (f"ref:{n}", 1, ref)]
    closeness = (
        np.tanh(3 / 1 - 1) + np.tanh(1 / 4 - 1) + -1 + 1
    ) / 4  # min(tied, ref) / D - 1; -1 / 0 and 1 / 0
    expected = 0.30 * 3 / 4 + 0.30 * 3 / 4 + 0.20 * 2 / 4 + 0.20 * 2 / 4 + 0.01 * closeness
    value, pairs = REWARDBENCH2.ties(rows)
    assert pairs == 4 and value[0] == pytest.approx(expected, abs=1e-12)
    same = [(f"tied:{n}", 2, columns([1, 1, 1])) for n in range(2)] + [
        ("ref:0", 1, columns([1, 1]))
    ]
    assert REWARDBENCH2.ties(same)[0][0] == pytest.approx(0.01 * 0)  # 0 / 0 counts as zero
    both = [
        (row_id, correct, np.concatenate([scores, -scores], axis=1))
        for row_id, correct, scores in rows
    ]
    alone = [(row_id, correct, -scores) for row_id, correct, scores in rows]
    assert REWARDBENCH2.ties(both)[0].tolist() == [
        value[0],
        REWARDBENCH2.ties(alone)[0][0],
    ]  # a head's score is its own


def test_a_ties_row_without_its_partner_counts_for_accuracy_alone(capsys):
    good, bad = columns([5, 4, 1]), columns([1, 2, 3])
    rows = [("tied:0", 2, good), ("ref:0", 1, columns([5, 4])), ("tied:1", 2, bad)]
    value, pairs = REWARDBENCH2.ties(rows)  # D = 1, tied margin 3, ref margin 1
    assert pairs == 1 and value[0] == pytest.approx(
        0.30 / 2 + 0.30 + 0.20 * 1 + 0.20 * 0 + 0.01 * np.tanh(1 / 1 - 1)
    )
    named = [
        {"id": row_id, "num_correct": correct, "subset": "Ties"} for row_id, correct, _ in rows
    ]
    REWARDBENCH2.subset_scores(named, [scores for *_, scores in rows])
    assert "1 of 3 Ties rows lack their ref or tied partner" in capsys.readouterr().out
    result = REWARDBENCH2.subset_scores(named[2:], [bad])
    assert (
        np.isnan(result["Ties"]).all()
        and "without any pair there is no score" in capsys.readouterr().out
    )


@pytest.fixture(scope="module")
def a_basis(tmp_path_factory):
    folder = tmp_path_factory.mktemp("basis")
    torch.manual_seed(0)
    V, W = torch.randn(32, 3), torch.rand(4, 3).softmax(1)
    basis = Basis(V, W[:3], ("user1", "user2", "user3"), W[3:], ("user9",))
    save_basis(folder / "basis.safetensors", basis)
    return folder, basis


def test_every_head_gets_the_official_score_of_its_own_rewards(tmp_path, reward_model, a_basis):
    folder, basis = a_basis
    rows = bench()
    rows[0]["rejected"][0] = rows[0]["chosen"][0]  # an exact tie
    common = (
        "--source",
        bench_file(tmp_path, rows),
        "--model",
        reward_model,
        "--data",
        tmp_path / "data",
    )
    flags = (
        "--rm_head",
        folder / "basis.safetensors",
        "--users",
        "user2",
        "user9",
        "--results",
        tmp_path / "results",
    )
    status, out, err = run_script(FOLDER / "eval_rb2.py", *common, *flags)
    assert status == 0, err
    table = pd.read_csv(tmp_path / "results/eval_rb2.csv", index_col="reward")
    names = ["reference head", "column 0", "column 1", "column 2", "mean mixture", "user2", "user9"]
    assert table.index.tolist() == names and table.columns.tolist() == [
        *REWARDBENCH2.SUBSETS,
        "Overall",
    ]
    model = Encoder(str(reward_model), "last", torch.device("cpu"))
    ours = [
        model.head[:, 0],
        *basis.V.T,
        basis.V @ basis.W.mean(0),
        basis.V @ basis.W[1],
        basis.V @ basis.W_unseen[0],
    ]
    for name, head in zip(names, ours):
        credit = {}
        for row in rows:
            talks = [[{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": reply}]
                     for reply in row["chosen"] + row["rejected"]]  # fmt: skip
            scores = (model.embed(talks) @ head).numpy()
            if row["subset"] != "Ties":
                best = scores.max()
                right = np.isclose(scores, best, atol=1e-6)
                credit.setdefault(row["subset"], []).append(right[0] / right.sum())
        for subset, values in credit.items():
            assert table.loc[name, subset] == pytest.approx(np.mean(values)), (name, subset)
        assert table.loc[name, "Overall"] == pytest.approx(
            table.loc[name, list(REWARDBENCH2.SUBSETS)].mean()
        )
    rewards = json.loads((tmp_path / "results/eval_rb2.json").read_text())["rows"]
    assert [row["reward"] for row in rewards] == names and rewards[0]["Ties"] == pytest.approx(
        table["Ties"].iloc[0]
    )
    assert "points above the reference head, mean of the subsets: mean mixture" in out
    status, again, _ = run_script(
        FOLDER / "eval_rb2.py", *common, "--results", tmp_path / "results"
    )
    assert status == 0 and "rb2: done already" in again  # another head needs no model


def test_rows_of_the_bench_that_pandas_has_written_get_the_same_scores(tmp_path, reward_model):
    """num_correct 1.0, replies as arrays, a shuffled index, a row twice and one of Ties twice."""
    rows = bench()
    frame = pd.DataFrame([*rows, rows[0], rows[-1]]).astype(
        {"num_correct": float, "num_incorrect": float}
    )
    frame.index = frame.index[::-1]
    frame.to_parquet(tmp_path / "bench.parquet")
    frame.to_json(tmp_path / "floats.jsonl", orient="records", lines=True)
    tables = []
    for source in (
        bench_file(tmp_path, rows),
        tmp_path / "bench.parquet",
        tmp_path / "floats.jsonl",
    ):
        flags = ("--source", source, "--model", reward_model, "--data", tmp_path / "data")
        done = call_script(FOLDER / "eval_rb2.py", *flags, "--results", tmp_path / source.stem)
        assert done[0] == 0, done[2]
        assert ("2 rows that stand there a second time" in done[1]) == (len(tables) > 0)
        tables.append((tmp_path / source.stem / "eval_rb2.csv").read_bytes())
    assert tables[0] == tables[1] == tables[2]
    assert "done already" in done[1]  # the same texts, so the same table of embeddings


def test_a_row_of_the_bench_with_a_reply_too_long_is_left_out_whole(tmp_path, reward_model):
    rows = bench()
    flags = ("--model", reward_model, "--max_length", 60)
    tables = []
    for name, long in (("short", rows[1:]), ("long", rows)):
        (tmp_path / name).mkdir()
        if name == "long":
            rows[0]["rejected"][1] = "the cat sat " * 60
        source = ("--source", bench_file(tmp_path / name, long), "--data", tmp_path / name)
        done = call_script(FOLDER / "eval_rb2.py", *source, *flags, "--results", tmp_path / name)
        assert done[0] == 0, done[2]
        tables.append(pd.read_csv(tmp_path / name / "eval_rb2.csv", index_col="reward"))
    assert "left out" in done[1]
    assert np.allclose(*tables, atol=1e-6)  # other texts beside them round the vectors otherwise


def test_embeddings_of_the_bench_in_another_order_are_refused(tmp_path, reward_model):
    flags = ("--source", bench_file(tmp_path, bench()), "--model", reward_model, "--data", tmp_path)
    assert call_script(FOLDER / "eval_rb2.py", *flags, "--results", tmp_path)[0] == 0
    pd.read_parquet(tmp_path / "rb2.parquet")[::-1].to_parquet(tmp_path / "rb2.parquet")
    done = call_script(FOLDER / "eval_rb2.py", *flags, "--results", tmp_path)
    assert_one_line_error(done, "rb2.parquet was changed by others")


def test_a_basis_that_lost_general_quality_is_called_so(capsys):
    table = pd.DataFrame(
        {"Math": [0.9, 0.5, 0.4], "Ties": [0.7, 0.6, 0.6]},
        ["reference head", "column 0", "mean mixture"],
    )
    RB2.compare(table)
    out = capsys.readouterr().out
    assert "mean mixture -30.0, columns -25.0 .. -25.0" in out and "overfitting" in out
    RB2.compare(table * 0 + 0.5)
    assert "overfitting" not in capsys.readouterr().out


def test_one_subset_or_the_first_rows(tmp_path, reward_model):
    common = (
        "--source",
        bench_file(tmp_path, bench()),
        "--model",
        reward_model,
        "--data",
        tmp_path,
        "--results",
        tmp_path,
    )
    status, out, err = call_script(
        FOLDER / "eval_rb2.py", *common, "--subset", "precise if", "--limit", 2
    )
    assert status == 0, err
    assert "2 rows; percent; Overall is the mean of the six subsets, not all here" in out
    table = pd.read_csv(tmp_path / "eval_rb2_precise_if_first2.csv", index_col="reward")
    assert table.columns.tolist() == ["Precise IF", "Overall"] and np.isnan(table["Overall"]).all()
    assert_one_line_error(
        call_script(FOLDER / "eval_rb2.py", *common, "--subset", "Maths"),
        "subset = Maths",
        "Precise IF",
    )


def test_heads_in_other_files_and_files_that_hold_none(tmp_path, a_basis):
    folder, basis = a_basis
    torch.save(basis.V, tmp_path / "V.pt")
    torch.save({"V": basis.V, "W": basis.W}, tmp_path / "dict.pt")
    np.save(tmp_path / "V.npy", basis.V.numpy())
    torch.save(basis.V[:, :1].T, tmp_path / "weight.pt")  # (1, d), as score.weight
    for name in ("V.pt", "dict.pt", "V.npy"):
        heads, _ = RB2.load_heads(tmp_path / name, 32, [])
        assert list(heads) == ["column 0", "column 1", "column 2"] and torch.equal(
            heads["column 2"], basis.V[:, 2]
        )
    assert torch.equal(RB2.load_heads(tmp_path / "weight.pt", 32, [])[0]["column 0"], basis.V[:, 0])
    np.save(tmp_path / "nan.npy", np.full((32, 2), np.nan))
    everybody = RB2.load_heads(folder / "basis.safetensors", 32, ["all"])[0]
    assert list(everybody)[-4:] == ["user1", "user2", "user3", "user9"]
    torch.save({"weights": basis.V}, tmp_path / "other.pt")
    torch.save(Counter, tmp_path / "code.pt")  # needs code to load: refused by weights_only
    np.save(tmp_path / "object.npy", np.array([{}], dtype=object), allow_pickle=True)
    (tmp_path / "text.pt").write_text("no tensor")
    (tmp_path / "empty.pt").touch()
    (tmp_path / "empty.npy").touch()
    np.save(tmp_path / "three.npy", np.ones((32, 2, 2)))
    np.save(tmp_path / "none.npy", np.ones((32, 0)))
    np.save(tmp_path / "complex.npy", np.ones((32, 2), dtype=complex))
    for name in (
        "other.pt",
        "code.pt",
        "object.npy",
        "text.pt",
        "empty.pt",
        "empty.npy",
        "three.npy",
        "none.npy",
        "complex.npy",
    ):
        with pytest.raises(InputError, match="does not hold a plain tensor V"):
            RB2.load_heads(tmp_path / name, 32, [])
    for name, width, users, message_ in (
        ("nan.npy", 32, [], "holds NaN or infinity"),
        ("V.pt", 31, [], "rewards of width 32, but the embeddings have 31"),
        (folder / "basis.safetensors", 31, [], "basis of width 32, but the embeddings have 31"),
        (folder / "basis.safetensors", 32, ["user7"], "has no user user7; it has 4, such as user1"),
        ("V.pt", 32, ["user1"], "only a .safetensors basis"),
        ("V.txt", 32, [], "is a .safetensors, .pt or .npy file"),
        ("none.pt", 32, [], "cannot be read"),
    ):
        with pytest.raises(InputError, match=message_):
            RB2.load_heads(tmp_path / name, width, users)


def test_a_wrong_width_is_noticed_before_anything_is_embedded(tmp_path, reward_model):
    torch.save(torch.randn(31, 2), tmp_path / "V.pt")
    common = (
        "--source",
        bench_file(tmp_path, bench()),
        "--model",
        reward_model,
        "--data",
        tmp_path / "data",
    )
    done = call_script(FOLDER / "eval_rb2.py", *common, "--rm_head", tmp_path / "V.pt")
    assert_one_line_error(done, "rewards of width 31, but the embeddings have 32")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    "row, words",
    [
        (bench_row(subset="Poems"), ["line 2", "subset 'Poems'"]),
        (bench_row(chosen=()), ["line 2", "chosen and rejected replies"]),
        ({**bench_row(), "rejected": ["a", ["b"]]}, ["line 2", "all of them text"]),
        ({**bench_row(), "chosen": 5}, ["line 2", "chosen and rejected replies"]),
        ({**bench_row(), "rejected": "xyz"}, ["line 2", "chosen and rejected replies"]),
        ({**bench_row(), "num_correct": 2}, ["line 2", "num_correct is 2, chosen replies: 1"]),
        ({**bench_row(), "num_correct": 1.5}, ["line 2", "num_correct is 1.5"]),
        ({**bench_row(), "num_correct": "1"}, ["line 2", "num_correct is '1'"]),
        ({**bench_row(), "num_correct": True}, ["line 2", "num_correct is True"]),
        (bench_row("7", "Ties"), ["line 2", "ref:N or tied:N", "'7'"]),
        (bench_row("tied:7", "Ties"), ["line 2", "1 correct replies"]),
        (bench_row("ref:7", "Ties", chosen=("a", "b")), ["line 2", "2 correct replies"]),
    ],
)
def test_rows_that_the_bench_does_not_have_end_with_file_and_line(
    tmp_path, reward_model, row, words
):
    source = bench_file(tmp_path, [bench_row(), row])
    assert_one_line_error(
        call_script(FOLDER / "eval_rb2.py", "--source", source, "--model", reward_model), *words
    )


def test_what_else_the_bench_refuses(tmp_path, text_encoder):
    script = FOLDER / "eval_rb2.py"
    assert_one_line_error(
        call_script(script, "--source", tmp_path / "none.jsonl"),
        "no file or folder here",
        "cannot be fetched",
    )
    source = bench_file(tmp_path, bench()[:4])
    assert_one_line_error(
        call_script(script, "--source", source, "--subset", "Math"), "holds no row of Math"
    )
    done = call_script(script, "--source", source, "--model", text_encoder, "--pooling", "mean")
    assert_one_line_error(done, "nothing to score")
    assert_one_line_error(
        call_script(script, "--source", source, "--users", "user1"),
        "name their basis with --rm_head",
    )
    assert_one_line_error(
        call_script(script, "--source", tmp_path),
        "is a folder; name the JSON-lines or parquet file",
    )
    other = bench_row("ref:1", "Ties") | {"prompt": "another"}
    source = bench_file(tmp_path, [bench_row("ref:1", "Ties"), other])
    assert_one_line_error(
        call_script(script, "--source", source), "line 2", "ref:1 stands here for the second time"
    )


def test_without_any_pair_of_ties_there_is_no_overall(tmp_path, reward_model):
    rows = [row for row in bench() if not row["id"].startswith("tied")]
    flags = (
        "--source",
        bench_file(tmp_path, rows),
        "--model",
        reward_model,
        "--data",
        tmp_path,
        "--results",
        tmp_path,
    )
    status, out, err = call_script(FOLDER / "eval_rb2.py", *flags)
    assert status == 0, err
    assert "not all here" in out and "3 of 3 Ties rows lack" in out
    table = pd.read_csv(tmp_path / "eval_rb2.csv", index_col="reward")
    assert np.isnan(table["Ties"]).all() and np.isnan(table["Overall"]).all()


# ------------------------------------------------------------------------------------------------------------------


def test_help_of_every_script_is_quick_and_names_every_flag():
    for script in (
        "prepare.py",
        "generate-prism-embeddings.py",
        "train_basis.py",
        "vary_fewshot.py",
        "eval_rb2.py",
    ):
        status, out, err = call_script(FOLDER / script, "--help")
        block = (FOLDER / script).read_text().split("settings ---", 1)[1].split("# ---", 1)[0]
        matches = [SETTING.match(line) for line in block.splitlines()[1:] if line]
        assert status == 0 and not err and all(f"--{match[1]}" in out for match in matches)
        assert all(match[2] for match in matches), "a setting without its meaning on the same line"


def test_ridge_finds_planted_people_without_being_told_how(tmp_path):
    few = (
        "--synthetic",
        "--results",
        tmp_path,
        "--K_list",
        1,
        4,
        "--solver",
        "ridge",
        "--repeats",
        2,
        "--resplit",
    )
    status, out, err = call_script(FOLDER / "train_basis.py", *few)
    assert (
        status == 0 and "alpha_list = [10000.0] is not used" in out and "± std over splits" in out
    ), err
    one, four = json.loads((tmp_path / "train_basis_synthetic.json").read_text())["summary"][:2]
    assert one["K"] == 1 and four["K"] == 4 and four["unseen"] > one["unseen"]
    status, out, err = call_script(
        FOLDER / "vary_fewshot.py", "--synthetic", "--results", tmp_path, "--solver", "ridge"
    )
    assert status == 0, err


def test_people_drawn_anew_are_as_many_and_their_dialogues_are_halved_again():
    dialogues = PEOPLE.plant(defaults_of(PEOPLE, seed=0))
    ids = dialogues.ids
    anew = PEOPLE.drawn_anew(dialogues, seed=3)
    for key in ("seen_user_ids", "unseen_user_ids", "train_dialog_ids"):
        assert abs(len(anew[key]) - len(ids[key])) <= 2 and {*anew[key]} != {*ids[key]}
    assert not {*anew["train_dialog_ids"]} & {*anew["test_dialog_ids"]}
    assert not {*anew["seen_user_ids"]} & {*anew["unseen_user_ids"]}
