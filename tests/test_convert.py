"""OwnData/convert.py: each layout on the schema that upstream has, what is left out, and what is refused."""

import json

import pandas as pd
import pytest
import question_formats
import texts
from conftest import ROOT, assert_one_line_error, call_script

from lore.common import InputError
from lore.text.input_rows import read_judgements

SCRIPT = ROOT / "OwnData/convert.py"
PROMPT = {"prompt": "a?"}
PAIR = {"prompt": "a?", "chosen": "b", "rejected": "c"}


def convert(folder, layout, rows, *flags):
    """(exit status, stdout, stderr) of rows in a file; what is written is in rows.jsonl."""
    source = folder / "source.json"
    source.write_text(json.dumps(rows))
    (folder / "rows.jsonl").unlink(missing_ok=True)
    return call_script(
        SCRIPT, "--from", layout, "--source", source, "--output", folder / "rows.jsonl", *flags
    )


def written(folder, layout, rows, *flags):
    """The comparisons that are written, and what is printed."""
    done = convert(folder, layout, rows, *flags)
    assert done[0] == 0, done[2]
    assert read_judgements(folder / "rows.jsonl")  # prepare.py reads them
    return texts.read(folder / "rows.jsonl"), done[1]


def talk(*said):
    roles = ("user", "assistant") * 2
    return [{"content": content, "role": role} for content, role in zip(said, roles)]


def mtbench(**changed):
    """A row of lmsys/mt_bench_human_judgments: both turns stand there, whichever is judged."""
    row = {
        "question_id": 81,
        "model_a": "m",
        "model_b": "n",
        "winner": "model_b",
        "judge": "expert_3",
        "turn": 1,
    }
    sides = {"conversation_a": talk("a?", "c", "and?", "e"), "conversation_b": talk("a?", "b", "and?", "d")}
    return row | sides | changed


def test_the_arena_is_read_with_upstreams_ids(tmp_path):
    rows = [
        mtbench(), mtbench(turn=2, winner="model_a", judge="author_0"), mtbench(winner="tie"),
        mtbench(winner="tie (bothbad)"), mtbench(judge=None), mtbench(conversation_b=talk("a?", " ")),
        mtbench(conversation_b=talk("a?", "c")), mtbench(winner=None),
        mtbench(question_id=82, turn=1, conversation_a=talk("A? ", "x"), conversation_b=talk("A? ", "y")),
    ]  # fmt: skip
    found, out = written(tmp_path, "arena", rows)
    models = {"chosen_model": "n", "rejected_model": "m"}
    assert found[0] == {"user_id": "expert_3", "prompt_id": "81", "turn": 1} | PAIR | models
    assert found[1]["chosen"] == talk("a?", "c", "and?", "e") and found[1]["user_id"] == "author_0"
    assert found[2]["prompt_id"] == "81"  # one prompt, one id
    for reason in ("2 x a tie", "1 x no person", "an empty", "two replies that are one", "1 x no vote"):
        assert reason in out
    pd.DataFrame(rows[:2]).to_parquet(tmp_path / "human.parquet")
    done = call_script(
        SCRIPT, "--from", "arena", "--source", tmp_path / "human.parquet", "--output", tmp_path / "p.jsonl"
    )
    assert done[0] == 0 and texts.read(tmp_path / "p.jsonl") == found[:2]


@pytest.mark.parametrize(
    "winner, kept",
    [
        ("A", "b"), ("model_a", "b"), ("left", "b"), ("[[A]]", "b"), ("A>>B", "b"), ("Response A", "b"), ("m", "b"),
        ("A-is-slightly-better", "b"), ({"selected": "left"}, "b"), ([{"selected": "right"}], "c"), (" b ", "c"),
        ("tie (both bad)", None), ("[[A=B]]", None), ("Tie - both good", None), ("both are bad", None),
        ("No_Preference", None), ("A < B", "c"), ("Equal", None), (1, "c"), (1.0, "c"), ("0", "b"), (True, None),
    ],
)  # fmt: skip
def test_a_winner_has_many_spellings(tmp_path, winner, kept):
    row = PROMPT | {"response_a": "b", "response_b": "c", "model_a": "m", "user_id": 7, "winner": winner}
    flags = ("--votes", "a=0", "b=1", "tie=true")
    found, _ = written(tmp_path, "arena", [row | {"winner": "a"}, row], *flags)
    assert [row["chosen"] for row in found[1:]] == ([kept] if kept else [])


def test_scores_become_the_pairs_that_differ(tmp_path):
    row = {"annotator": "ann", "instruction": "a?", "completion": "b", "rating": 4}
    rows = [row, row | {"completion": "c", "rating": "3,5"}, row | {"completion": "d", "rating": float("nan")},
            row | {"completion": "e", "rating": 4}, row | {"annotator": "bob", "rating": 1},
            row | {"instruction": "other?", "completion": "z", "rating": 0}]  # fmt: skip
    named = ("--columns", "user_id=annotator")
    found, out = written(tmp_path, "ratings", rows, *named)
    assert [(pair["chosen"], pair["rejected"]) for pair in found] == [("b", "c"), ("e", "c")]
    assert "1 x a tie" in out and "1 x no score" in out and "read as prompt: instruction" in out
    done = convert(tmp_path, "ratings", rows, *named, "--gap", 1)
    assert_one_line_error(done, "nothing is left", "2 x two scores nearer than --gap")
    thumbs = [PROMPT | {"user_id": 1, "completion": reply, "label": reply == "b"} for reply in "cb"]
    assert written(tmp_path, "ratings", thumbs)[0] == [{"user_id": 1} | PAIR]
    ultra = {"user_id": 1, "instruction": "a?"}
    ultra["completions"] = [{"response": "c", "overall_score": 2.0}, {"response": "b", "overall_score": 7.5}]
    assert written(tmp_path, "ratings", [ultra])[0] == [{"user_id": 1} | PAIR]


def test_ranks_and_orders_become_pairs(tmp_path):
    row = PROMPT | {"user_id": 1, "responses": ["c", "b", "d"]}
    best_first = {("b", "c"), ("b", "d"), ("c", "d")}
    for ranks in (
        {"ranks": [2, 1, 3]},
        {"order": [1, 0, 2]},
        {"order": [2, 1, 3]},
        {"ranking": ["b", "c", "d"]},
    ):
        found, _ = written(tmp_path, "rankings", [row | ranks])
        assert {(pair["chosen"], pair["rejected"]) for pair in found} == best_first, ranks
    found, out = written(tmp_path, "rankings", [row | {"ranks": [1, 1, 2]}])
    assert len(found) == 2 and "1 x a tie" in out
    nectar = PROMPT | {"user_id": 1, "answers": [{"answer": "c", "rank": 2.0}, {"answer": "b", "rank": 1.0}]}
    assert written(tmp_path, "rankings", [nectar])[0] == [{"user_id": 1} | PAIR]
    rows = [PROMPT | {"user_id": 1, "response": reply, "rank": rank} for rank, reply in enumerate("bc")]
    assert written(tmp_path, "rankings", rows)[0] == [{"user_id": 1} | PAIR]
    for wrong, words in (({"ranking": [2, 1, 3]}, "--columns ranks=ranking"), ({"order": [5, 6, 7]}, "not of the"),
                         ({"ranks": [1, 2]}, "2 ranks for 3 replies"), ({}, "no list of ranks")):  # fmt: skip
        assert_one_line_error(convert(tmp_path, "rankings", [row | wrong]), words)


def test_a_column_for_each_person(tmp_path):
    row = PROMPT | {"response_a": "b", "response_b": "c", "ann": "A", "bob": "b", "cid": "tie", "dan": None}
    people = ("--annotators", "ann", "bob", "cid", "dan")
    found, out = written(tmp_path, "wide", [row], *people)
    assert [(pair["user_id"], pair["chosen"]) for pair in found] == [("ann", "b"), ("bob", "c")]
    assert "1 x a tie" in out and "1 x no vote" in out
    scores = [PROMPT | {"response": "c", "ann": 1, "bob": 5}, PROMPT | {"response": "b", "ann": 2, "bob": 3}]
    found, _ = written(tmp_path, "wide", scores, "--annotators", "ann", "bob")
    assert [(pair["user_id"], pair["chosen"]) for pair in found] == [("ann", "b"), ("bob", "c")]
    assert_one_line_error(convert(tmp_path, "wide", [row]), "--annotators", "ann, bob, cid, dan")
    done = convert(tmp_path, "wide", [row], "--annotators", "eve")
    assert_one_line_error(done, "no column eve")


FIELDS = {"prompt": "a?", "left": "c", "right": "b"}


def record(responses, **changed):
    """A record as argilla's to_json writes it."""
    record = {
        "id": "r1",
        "fields": FIELDS,
        "metadata": {},
        "suggestions": {},
        "vectors": {},
        "status": "completed",
    }
    return record | {"responses": responses, "_server_id": "s1"} | changed


def test_records_of_argilla(tmp_path):
    ann = {"user_id": "7f", "value": ["right", "left"]}
    nested = [record({"better": [ann, {"user_id": "8e", "value": ["left", "right"], "status": "draft"}]}),
              record({"better": [ann]}, status="pending"), record({}, status="pending"),
              record({"better": [{"user_id": "9d", "value": "left"}]})]  # fmt: skip
    found, out = written(tmp_path, "argilla", nested)
    assert [(pair["user_id"], pair["chosen"]) for pair in found] == [("9d", "c"), ("7f", "b")]
    assert "1 x a draft" in out and "still pending" in out and "no answer yet" in out
    flat = FIELDS | {
        "id": "r1",
        "status": "pending",
        "better.responses": [["right", "left"], ["left", "right"]],
    }
    flat |= {"better.responses.users": ["7f", "8e"], "better.responses.status": ["submitted", "discarded"]}
    found, out = written(tmp_path, "argilla", [flat])
    assert found == [{"user_id": "7f"} | PAIR] and "1 x an answer that is discarded" in out
    both = record({"better": [ann, {"user_id": "8e", "value": ["left", "right"]}]})
    found, _ = written(tmp_path, "argilla", [both])
    assert [(pair["user_id"], pair["chosen"]) for pair in found] == [("7f", "b"), ("8e", "c")]
    served = {"status": "submitted", "user_id": "7f"}
    served["values"] = {"better": {"value": [{"value": "right", "rank": 1}, {"value": "left", "rank": 1}]}}
    done = convert(tmp_path, "argilla", [record([served])])
    assert_one_line_error(done, "nothing is left", "1 x a tie")
    rated = [record({"stars": [{"user_id": "7f", "value": stars}]}, fields=PROMPT | {"response": reply})
             for reply, stars in (("b", 5), ("c", 2))]  # fmt: skip
    assert written(tmp_path, "argilla", rated)[0] == [{"user_id": "7f"} | PAIR]
    two = record({"better": [ann], "safer": [ann]})
    assert_one_line_error(convert(tmp_path, "argilla", [two]), "--question NAME, of better, safer")
    found, out = written(tmp_path, "argilla", [two], "--question", "safer")
    assert len(found) == 1 and "1 x an answer to another question" in out
    other = record({"better": [ann | {"value": ["x", "left"]}]})
    assert_one_line_error(convert(tmp_path, "argilla", [other]), "'x', which is no field")


def annotation(selected, person, **changed):
    """An annotation as Label Studio's JSON export has it."""
    value = {"from_name": "pw", "to_name": "pw", "type": "pairwise", "value": {"selected": selected}}
    return {"result": [value] if selected else [], "completed_by": person, "was_cancelled": False} | changed


def test_tasks_of_label_studio(tmp_path):
    data = {"prompt": "a?", "answer1": "b", "answer2": "c"}
    annotations = [annotation("left", 10), annotation("right", {"id": 11, "email": "x@y"}), annotation(None, 12),
                   annotation("left", 13, was_cancelled=True), annotation("left", None)]  # fmt: skip
    task = {
        "id": 1,
        "data": data,
        "annotations": annotations,
        "drafts": [annotation("left", 14)],
        "predictions": [],
    }
    found, out = written(tmp_path, "labelstudio", [task, task | {"annotations": [], "drafts": []}])
    assert [(pair["user_id"], pair["chosen"]) for pair in found] == [(10, "b"), (11, "c")]
    for reason in ("a draft", "no vote", "skipped", "no person", "without an annotation"):
        assert (
            f"1 x {reason}" in out or f"1 x a task {reason}" in out or f"1 x a task that was {reason}" in out
        )
    two = annotation("left", 10)
    two["result"] = two["result"] + [two["result"][0] | {"from_name": "safer"}]
    done = convert(tmp_path, "labelstudio", [task | {"annotations": [two]}])
    assert_one_line_error(done, "--question NAME, of pw, safer")
    named = task | {"data": {"q": "a?", "x": "b", "y": "c"}}
    flags = ("--columns", "prompt=q", "response_a=x", "response_b=y")
    assert written(tmp_path, "labelstudio", [named], *flags)[0] == found
    short = data | {"id": 1, "pw": [{"selected": "left"}], "annotator": 10, "annotation_id": 5}  # JSON_MIN
    flags = ("--columns", "user_id=annotator", "winner=pw")
    assert written(tmp_path, "arena", [short], *flags)[0] == [{"user_id": 10} | PAIR]


def test_pairs_lose_what_would_be_refused(tmp_path):
    dialogue = "\n\nHuman: a?\n\nAssistant: "
    rows = [{"worker": 1, "chosen": dialogue + "b", "rejected": dialogue + reply} for reply in ("c", "b", "")]
    found, out = written(tmp_path, "pairs", rows, "--columns", "user_id=worker")
    assert len(found) == 1 and "two replies that are one" in out
    assert "what prepare.py refuses" in out and "row 2: rejected does not end in a reply" in out


def test_what_cannot_be_turned_is_one_line(tmp_path):
    kaggle = {"id": 1, "model_a": "m", "model_b": "n", "prompt": '["a?"]', "response_a": '["b"]',
              "response_b": '["c"]', "winner_model_a": 1, "winner_model_b": 0, "winner_tie": 0}  # fmt: skip
    assert_one_line_error(
        convert(tmp_path, "arena", [kaggle]), "no person in it: nothing personal can be learnt"
    )
    row = PROMPT | {"user_id": 1, "response_a": "b", "response_b": "c", "winner": "a"}
    for rows, layout, flags, words in (
        ([row | {"winner": "c"}], "arena", (), "the winner is 'c'"),
        ([row | {"winner": True}], "arena", (), "the winner is True"),
        ([row | {"response_c": "d"}], "arena", (), "a third reply"),
        ([row | {"system": "be good"}], "arena", (), "system would not be read"),
        ([row | {"response_b": [1]}], "arena", (), "nothing is left"),
        ([row | {"prompt": ""}], "arena", (), "1 x an empty prompt or reply"),
        ([row], "arena", ("--votes", "c=c"), "--votes c=c"),
        ([row], "arena", ("--columns", "turn=x"), "turn is none of"),
        ([row], "arena", ("--columns", "prompt_id=x"), "no column x"),
        ([row], "nectar", (), "which layout"),
        ([row], "ratings", (), "no response"),
        ([{"user_id": 1}], "arena", (), "no two replies"),
        ([mtbench(conversation_a=None, conversation_b=[None])], "arena", (), "1 x an empty prompt or reply"),
        ([{"data": row, "annotations": [5]}], "labelstudio", (), "annotations is no list of objects"),
        ([row], "labelstudio", (), "--from arena --columns user_id=annotator winner="),
        ([], "arena", (), "holds no row"),
    ):  # fmt: skip
        assert_one_line_error(convert(tmp_path, layout, rows, *flags), words)
        assert not (tmp_path / "rows.jsonl").exists()
    (tmp_path / "kept.jsonl").write_text("mine")
    assert_one_line_error(
        convert(tmp_path, "arena", [row], "--output", tmp_path / "kept.jsonl"), "is there already"
    )
    assert_one_line_error(
        convert(tmp_path, "arena", [row], "--output", tmp_path / "rows.csv"), "give it such a name"
    )


@pytest.mark.parametrize("asked", [talk("a?"), talk("a?", "hm", "and?")])
@pytest.mark.parametrize("tool", ["argilla", "labelstudio"])
def test_questions_come_back_as_comparisons(tmp_path, tool, asked):
    """What ask.py writes for a tool, answered there and exported."""
    replies = [asked + [{"role": "assistant", "content": reply}] for reply in "bc"]
    question = question_formats.question_of("here", replies)
    question_formats.write_questions(tmp_path / "asked.json", tool, [question])
    question_formats.require_format(tmp_path / "asked.json", tool)  # it may be written again
    (item,) = json.loads((tmp_path / "asked.json").read_text())
    if tool == "argilla":
        item |= {"responses": {"better": [{"value": "right", "user_id": "ann"}]}, "status": "completed"}
    else:
        item["annotations"] = [annotation("right", "ann")]
    assert written(tmp_path, tool, [item])
    (judged,) = read_judgements(tmp_path / "rows.jsonl")
    assert (judged.user_id, judged.chosen, judged.rejected) == ("ann", replies[1], replies[0])
    longer = [replies[0], replies[1] + talk("so?", "d")]
    with pytest.raises(InputError, match="here: a reply that is more than a text"):
        question_formats.question_of("here", longer)
