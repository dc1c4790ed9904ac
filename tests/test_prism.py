"""PRISM/ from the public files to a table, as a user runs it."""

import hashlib
import json
import random
import re
import shutil
from collections import Counter
from itertools import chain

import pandas as pd
import pytest
import torch
from conftest import ROOT, SHARED, assert_one_line_error, call_script, load_script, printed
from populations import assert_people_are_apart
from texts import read, report, text, write
from tiny import encoder

from lore.common import InputError
from lore.fit.basis import basis_path, load_basis
from lore.settings import defaults_of
from lore.splits import load_split

FOLDER = ROOT / "PRISM"
TRAIN, VARY = FOLDER / "train_basis.py", FOLDER / "vary_fewshot.py"
PREPARE = load_script(FOLDER / "prepare.py")
GENERATE = load_script(FOLDER / "generate-prism-embeddings.py")
PEOPLE = load_script(FOLDER / "people.py")
PUBLISHED = "6da3b5aee8d7250ff82974c2b50928c31434793b4f96f03fa887ac3d546dcc12"


def user(name, completed=6):
    return {"user_id": name, "num_completed_conversations": completed, "survey_only": not completed}


def message(turn, role, content, **of_reply):
    return {"turn": turn, "role": role, "content": content, **of_reply}


def conversation(name, user_id, turns):
    """Upstream row of turns [(question, [chosen replies], [rejected replies])]."""
    history = []
    for turn, (question, chosen, rejected) in enumerate(turns):
        history += [message(turn, "user", question)] if question is not None else []
        for choice, replies in ((True, chosen), (False, rejected)):
            history += [message(turn, "model", reply, if_chosen=choice, score=50) for reply in replies]
    row = {"conversation_id": name, "user_id": user_id, "conversation_turns": len(turns)}
    return row | {"conversation_history": history}


def put(folder, users, conversations):
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / "survey.jsonl", users)
    write(folder / "conversations.jsonl", conversations)


def upstream(folder):
    """Made-up dialogues, six each of ten people, whose choices are drawn at random."""
    rng = random.Random(0)
    rows = []
    for number in range(60):
        turns = []
        for turn in range(rng.randint(2, 3)):
            chosen, *rejected = (f"{text(rng, 2, 6)} {rng.random():.6f}" for _ in range(2 if turn else 4))
            turns.append((text(rng, 2, 6), [chosen], rejected))
        rows.append(conversation(f"c{number}", f"user{number // 6}", turns))
    put(folder, [*(user(f"user{i}") for i in range(10)), user("idle", 0)], rows)


def prepare(folder, *flags, call=printed):
    return call(FOLDER / "prepare.py", "--source", folder, "--data", folder / "data", *flags)


def generate(folder, model, *flags, call=printed):
    common = ("--data", folder / "data", "--model", model)
    return call(FOLDER / "generate-prism-embeddings.py", *common, *flags)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, reward_model):
    """data/ with the embedded dialogues of ten people."""
    folder = tmp_path_factory.mktemp("prism")
    upstream(folder)
    out = prepare(folder)
    assert "60 dialogues by 10 users" in out and "8 seen and 2 unseen users" in out
    assert "left out in all dialogues: nothing" in out
    assert "comparisons of 60 dialogues" in generate(folder, reward_model)
    return folder / "data"


# ----------------------------------------------------------------------------------- prepare.py ---


REAL = SHARED / "prism"


@pytest.mark.skipif(not REAL.exists(), reason=f"no real ids at {REAL}: LORE_SHARED")
def test_the_published_split_of_the_real_ids_byte_for_byte(tmp_path):
    """The real ids and replies per dialogue; the texts are made up."""
    opening, reply = (
        REAL / f"local_clusters_{kind}_0-05.csv.gz" for kind in ("opening_prompt", "model_response")
    )
    user_of = pd.read_csv(opening).set_index("conversation_id")["user_id"]
    replies = pd.read_csv(reply).groupby("conversation_id").size()
    users = {f"user{i}": [] for i in range(1500)}
    rows = []
    for name in sorted(user_of.index, key=lambda name: int(name[1:])):
        turns = []
        chosen = [] if name == "c2536" else ["yes"]
        for size in PEOPLE.replies_per_turn(int(replies[name])):
            turns.append(("q", chosen, [f"no {i}" for i in range(size - 1)]))
        rows.append(conversation(name, user_of[name], turns))
        users[user_of[name]] += [name] if chosen else []
    surveyed = {*user_of}
    put(tmp_path, [user(name, int(name in surveyed)) for name in users], rows)
    out = prepare(tmp_path)
    content = (tmp_path / "data/prism_split_ids_50.json").read_bytes()
    assert len(content) == 161034 and hashlib.sha256(content).hexdigest() == PUBLISHED
    assert "left out: dialogue c2536 of user469" in out and "8010 dialogues by 1396 users" in out
    assert "1029 seen and 258 unseen users" in out and "3861 training and 3866 test dialogues" in out
    sizes = lambda *split: [len(ids) for ids in PEOPLE.split_users(*split).values()][2:]
    assert sizes(users, 0.5, 0.5, 6, 123) == [651, 636]  # halved before users are left out
    busy = {user: ids for user, ids in users.items() if len(ids) >= 6}
    assert sizes(busy, 0.5, 0.5, 1, 0) == [643, 644]  # as --resplit --seen_fraction 0.5 does
    # the structure that is written down for planted dialogues
    dialogues = user_of.value_counts().value_counts()
    assert replies.value_counts().to_dict() == PEOPLE.DIALOGUES_OF_REPLIES
    assert {count: dialogues[count] for count in (6, 7)} == PEOPLE.PEOPLE_OF_DIALOGUES
    for count in PEOPLE.DIALOGUES_OF_REPLIES:
        assert sum(PEOPLE.replies_per_turn(count)) == count


def test_a_turn_gives_a_comparison_for_each_rejected_reply_and_says_what_it_leaves_out():
    counts = Counter()
    turns = []
    for user, chosen, rejected in (
        (" hi ", ["yes"] * 2, ["no", " yes ", "EMPTY STRING", "never"]),
        ("and?", ["EMPTY STRING"], ["one", "two"]),
        ("then?", ["good", "other"], ["bad"]),
        ("lost", [], ["a", "b"]),
        ("after", ["x"], ["y"]),
    ):
        turns.append({"user": [user], "chosen": chosen, "rejected": rejected})
    dialogue = {"dialogue": "c1", "user_id": "u", "turns": PREPARE.clean(turns, counts)}
    assert +counts == {
        "repeated chosen replies": 1,
        "pairs of identical replies": 1,
        "pairs with an empty reply": 3,
        "second chosen replies with another text": 1,
        "turns after a history that breaks off": 2,
    }
    records = list(GENERATE.comparisons(dialogue))
    plain = lambda talk: " | ".join(m["content"] for m in talk)
    assert [(r["turn"], plain(r["chosen"]), plain(r["rejected"])) for r in records] == [
        (0, "hi | yes", "hi | no"),
        (0, "hi | yes", "hi | never"),
        (2, "hi | yes | and? |  | then? | good", "hi | yes | and? |  | then? | bad"),
    ]
    assert [m["role"] for m in records[2]["chosen"]] == ["user", "assistant"] * 3


def test_only_a_dialogue_without_any_full_turn_is_left_out(tmp_path):
    full, no_chosen, no_user = ("q", ["yes"], ["no"]), ("q", [], ["no"]), (None, ["yes"], ["no"])
    rows = [conversation(f"c{i}", "u", [full, no_chosen]) for i in range(6)]
    rows += [conversation("c6", "u", [no_chosen, no_user, ("q", ["yes"], [])])]
    rows += [conversation(f"d{i}", "v", [full]) for i in range(6)]
    put(tmp_path, [user("u"), user("v"), user("w", 0)], rows)
    out = prepare(tmp_path, "--seen_fraction", 0.5)
    assert "left out: dialogue c6 of u" in out and "12 dialogues by 2 users" in out
    assert "6 turns after a history that breaks off" in out
    names = [row["dialogue"] for row in read(tmp_path / "data/dialogues.jsonl")]
    assert names == [f"{letter}{i}" for letter in "cd" for i in range(6)]


def test_another_split_or_other_types_of_the_same_values_leave_the_dialogues_as_they_are(tmp_path):
    """6.0 conversations, turn 1.0, if_chosen 1: what a tool between may have made of them."""

    def written(*flags):
        prepare(tmp_path, *flags)
        names = ("dialogues.jsonl", "prism_split_ids_50.json")
        return [(tmp_path / "data" / name).read_bytes() for name in names]

    upstream(tmp_path)
    before = written()
    same, another = written("--seen_fraction", 0.5, "--seed", 1)
    assert before[0] == same and before[1] != another  # so that a new split needs no new embedding
    for name in ("survey", "conversations"):
        file = tmp_path / f"{name}.jsonl"
        floats = re.sub(r'((turns?|completed_conversations)": \d+)', r"\1.0", file.read_text())
        file.write_text(floats.replace('"if_chosen": true', '"if_chosen": 1').replace("false", "0"))
    assert before == written()


SAID = (
    (0, "model", "x"), (3, "user", "x"), (-1, "user", "x"), (0.5, "user", "x"), (0, "user", ["a", "b"]),
    (0, "system", "x"),
)  # fmt: skip
NO_MESSAGE = "message 0 needs role user or model, content that is text, turn below 1"
BAD = [
    ({"user_id": "stranger"}, "c0 is by 'stranger', who is not in survey.jsonl"),
    ({"user_id": ["user0"]}, "c0 is by ['user0']"),
    ({"conversation_id": None}, "conversation_id None is missing"),
    ({"conversation_turns": 1.5}, "needs conversation_turns"),
    ({"conversation_history": None}, "conversation_history"),
    ({"conversation_history": ["x"]}, "message 0: not an object"),
    *(({"conversation_history": [message(*wrong)]}, NO_MESSAGE) for wrong in SAID),
]


@pytest.mark.parametrize("change, words", BAD)
def test_rows_that_prism_does_not_have_end_with_file_and_line(tmp_path, change, words):
    turns = [("q", ["yes"], ["no"])]
    rows = [conversation("c9", "user0", turns), conversation("c0", "user0", turns) | change]
    put(tmp_path, [user("user0")], rows)
    assert_one_line_error(prepare(tmp_path, call=call_script), "conversations.jsonl, line 2", words)


def test_files_that_are_not_the_data_end_with_one_line(tmp_path):
    upstream(tmp_path)
    good = (tmp_path / "conversations.jsonl").read_text()
    again = good + good.splitlines()[0] + "\n"
    for name, content, *words in (
        ("conversations", good[:-100], "conversations.jsonl, line 60", "cut off here"),
        ("conversations", again, "line 61", "'c0' is missing or stands here for the second time"),
        ("conversations", "", "too few users with 6 dialogues"),
        ("survey", '{"user_id": "u"}', "survey.jsonl, line 1", "num_completed_conversations"),
        ("survey", f"{json.dumps(user('u'))}\n" * 2, "line 2: u stands here for the second"),
    ):
        (tmp_path / f"{name}.jsonl").write_text(content)
        assert_one_line_error(prepare(tmp_path, call=call_script), *words)
    for flags, *words in (
        (("--source", tmp_path / "nowhere"), "nowhere is no folder here", "cannot be fetched"),
        (("--seen_fraction", 1.0), "between 0 and 1"),
    ):
        assert_one_line_error(prepare(tmp_path, *flags, call=call_script), *words)


# ----------------------------------------------------------------- generate-prism-embeddings.py ---


def test_every_vector_is_that_of_its_own_conversation(prepared, reward_model):
    split = load_split(prepared / "prism", "")
    records = [*chain.from_iterable(map(GENERATE.comparisons, read(prepared / "dialogues.jsonl")))]
    assert len(records) == len(split.frame)
    alone = encoder(reward_model, share=False)
    for record, row in list(zip(records, split.frame.itertuples()))[::7]:
        for name in ("user_id", "dialogue", "turn"):
            assert record[name] == getattr(row, name)
        for side in ("chosen", "rejected"):
            assert torch.allclose(split.table[getattr(row, side)], alone.embed([record[side]])[0], atol=1e-5)
    contents = {json.dumps(record[side]) for record in records for side in ("chosen", "rejected")}
    assert len(split.table) == len(contents)  # each distinct conversation once


def test_the_first_dialogues_only_and_what_is_missing(prepared, text_encoder, tmp_path):
    flags = ("--pooling", "mean", "--limit", 3)
    done = generate(tmp_path, text_encoder, *flags, call=call_script)
    assert_one_line_error(done, "dialogues.jsonl is missing", "PRISM/prepare.py")
    source = tmp_path / "data/dialogues.jsonl"
    source.parent.mkdir()
    half = {"user_id": "u", "dialogue": "c", "turns": [{"prompt": "Why?"}]}
    for rows, words in (
        ([{"user_id": "u"}], "line 1: no dialogue"),
        ([half], "line 1: no"),
        ([], "holds no comparison"),
    ):
        write(source, rows)
        assert_one_line_error(generate(tmp_path, text_encoder, *flags, call=call_script), words)
    write(source, read(prepared / "dialogues.jsonl"))
    generate(tmp_path, text_encoder, *flags)
    split = load_split(tmp_path / "data/prism", "")
    assert split.frame["dialogue"].unique().tolist() == ["c0", "c1", "c2"] and split.head is None


# -------------------------------------------------------------- train_basis.py, vary_fewshot.py ---


def test_from_embeddings_to_table_picture_and_bases(prepared, tmp_path):
    common = ("--data", prepared, "--results", tmp_path, "--num_iterations", 20)
    out = printed(TRAIN, *common, "--alpha_list", 0, 1e4, "--K_list", 0, 1, 3)
    assert "unseen              2 people " in out
    assert "cosine to head" in out and "1 Bradley-Terry" in out
    rows = report(tmp_path / "train_basis.json")["rows"]
    assert [(row["alpha"], row["K"]) for row in rows] == [(a, K) for a in (0, 1e4) for K in (0, 1, 3)]
    basis = load_basis(basis_path(tmp_path / "train_basis", 3, 0.0, 0), 32)
    assert rows[2]["columns"] == basis.V.shape[1]
    assert len(basis.user_ids) == 8 and len(basis.unseen_ids) == 2
    assert "last" in basis.model and torch.allclose(basis.W.sum(1), torch.ones(8))
    printed(VARY, *common, "--K_list", 0, 2, "--trials", 2, "--alpha_list", 0)
    rows = report(tmp_path / "vary_fewshot.json")["rows"]
    shots = [(K, shot) for K in (0, 2) for shot in (1, 2, 3, "all")]
    assert [(row["K"], row["shots"]) for row in rows] == shots
    assert rows[-1]["unseen"] == rows[-2]["unseen"]  # all = 3 of 3 dialogues
    assert (tmp_path / "vary_fewshot.png").exists() and (tmp_path / "train_basis.png").exists()


@pytest.mark.parametrize(
    "anew", [{}, {"seed": 3}, {"seed": 3, "seen_fraction": 0.5}]
)  # the last as in the paper
def test_no_person_and_no_dialogue_is_on_two_sides(prepared, anew):
    dialogues = PEOPLE.load(prepared)
    groups = PEOPLE.split(dialogues, **anew)
    assert_people_are_apart(groups)
    assert groups.sizes == ((5, 5) if "seen_fraction" in anew else (8, 2))
    frame = dialogues.comparisons.frame
    of_group = []  # its dialogues
    for group in groups:
        pairs = list(zip(group.chosen.tolist(), group.rejected.tolist()))
        rows = frame.set_index(["chosen", "rejected"]).loc[pairs]
        assert rows["user_id"].tolist() == [group.user_ids[user] for user in group.user.tolist()]
        of_group.append({*rows["dialogue"]})
        assert len({*zip(rows["dialogue"], group.shot.tolist())}) == len({*group.shot.tolist()})
        assert len(of_group[-1]) == 3 * len(group.user_ids)  # half of each one's
    assert sum(map(len, of_group)) == len(set.union(*of_group)) == 60
    same = [{*groups.train.user_ids} == {*dialogues.ids["seen_user_ids"]}]
    same.append(of_group[0] | of_group[2] == {*dialogues.ids["train_dialog_ids"]})
    assert same == [not anew] * 2


def test_a_person_without_pairs_on_a_side_is_left_out_and_counted(prepared, capsys):
    dialogues = PEOPLE.load(prepared)
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
    for wrong in ({"test_dialog_ids": ids["train_dialog_ids"]}, {"unseen_user_ids": ids["seen_user_ids"]}):
        with pytest.raises(InputError, match="trains and tests, or a person is seen and unseen"):
            PEOPLE.split(dialogues._replace(ids={**ids, **wrong}))


def test_training_without_data_or_with_settings_that_cannot_be(prepared, tmp_path):
    flags = ("--data", tmp_path)
    split = tmp_path / "prism_split_ids_50.json"
    for damaged in ('{"train_dialog_ids": []}', "null"):
        split.write_text(damaged)
        assert_one_line_error(call_script(TRAIN, *flags), "prism_split_ids_50.json is damaged")
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    done = call_script(VARY, *flags, "--num_shots", 1, 4)
    assert_one_line_error(done, "no unseen person has 4 training dialogues")
    (tmp_path / "dialogues.jsonl").write_text("{}\n")  # prepared again from other texts
    done = call_script(TRAIN, *flags)
    assert_one_line_error(done, "was made of another", "run again: python PRISM/generate")
    for wrong, *words in (
        (("--planted_accuracy", 2), "above 0.5, which is chance"),
        (("--planted_users", 1), "at least 2 people"),
        (("--seen_fraction", 0.5), "--seen_fraction 0.5", "--resplit"),
    ):
        done = call_script(TRAIN, "--synthetic", "--results", tmp_path, *wrong)
        assert_one_line_error(done, *words)


def test_planted_dialogues_have_the_structure_and_the_accuracy_they_say():
    dialogues = PEOPLE.plant(defaults_of(PEOPLE, seed=0))
    table, frame, *_, population = dialogues.comparisons
    anew = PEOPLE.drawn_anew(dialogues, seed=3, seen_fraction=0)  # some have seven dialogues
    for ids in (dialogues.ids, anew):
        assert len(ids["seen_user_ids"]) == 160 and len(ids["unseen_user_ids"]) == 40
        assert abs(len(ids["train_dialog_ids"]) - 600) <= 2
    pairs = frame.groupby(["dialogue", "turn"]).size()
    first = pairs.index.get_level_values("turn") == 0
    assert pairs[first].max() == 3 and pairs[~first].unique().tolist() == [1]
    assert frame.groupby(["dialogue", "turn"])["chosen"].nunique().max() == 1
    W = torch.stack([population.W[user] for user in frame["user_id"]])  # (n, directions)
    X = table[frame["chosen"].tolist()] - table[frame["rejected"].tolist()]
    right = (X @ population.V * W).sum(1) > 0
    assert right.double().mean().item() == pytest.approx(0.9, abs=0.01)
    again = PEOPLE.plant(defaults_of(PEOPLE, seed=0))
    assert again.comparisons.frame.equals(frame)
    assert torch.equal(again.comparisons.table, table)  # the same draws
    turns = {3: [1, 2], 4: [2, 2], 5: [3, 2], 6: [4, 2], 9: [3, 2, 2, 2]}
    assert {count: PEOPLE.replies_per_turn(count) for count in turns} == turns
