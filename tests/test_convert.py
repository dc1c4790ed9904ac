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
REPLIES = PROMPT | {"response_a": "b", "response_b": "c"}


def convert(folder, layout, rows, *flags):
    """(exit status, stdout, stderr) of rows in a file, or of the text of a table; it writes rows.jsonl."""
    source = folder / ("source.csv" if isinstance(rows, str) else "source.json")
    source.write_text(rows if isinstance(rows, str) else json.dumps(rows))
    output = folder / "rows.jsonl"
    output.unlink(missing_ok=True)
    return call_script(SCRIPT, "--from", layout, "--source", source, "--output", output, *flags)


def written(folder, layout, rows, *flags):
    """The comparisons that are written, and what is printed."""
    done = convert(folder, layout, rows, *flags)
    assert done[0] == 0, done[2]
    assert read_judgements(folder / "rows.jsonl")  # prepare.py reads them
    return texts.read(folder / "rows.jsonl"), done[1]


def chosen(folder, layout, rows, *flags):
    """{person: the reply preferred} of what is written."""
    return {pair["user_id"]: pair["chosen"] for pair in written(folder, layout, rows, *flags)[0]}


def talk(*said):
    roles = ("user", "assistant") * 2
    return [{"content": content, "role": role} for content, role in zip(said, roles)]


def mtbench(**changed):
    """A row of lmsys/mt_bench_human_judgments: both turns stand there, whichever is judged."""
    row = {"question_id": 81, "model_a": "m", "model_b": "n", "winner": "model_b"}
    row |= {"judge": "expert_3", "turn": 1}
    sides = {"conversation_a": talk("a?", "c", "and?", "e"), "conversation_b": talk("a?", "b", "and?", "d")}
    return row | sides | changed


def test_the_arena_is_read_with_upstreams_ids(tmp_path):
    rows = [
        mtbench(), mtbench(turn=2, winner="model_a", judge="author_0"), mtbench(winner="tie (bothbad)"),
        mtbench(judge=None), mtbench(conversation_b=talk("a?", " ")), mtbench(conversation_b=talk("a?", "c")),
        mtbench(winner=None), mtbench(question_id=82, conversation_a=talk("A? ", "x"), conversation_b=talk("A? ", "y")),
    ]  # fmt: skip
    found, out = written(tmp_path, "arena", rows)
    assert found[0] == {"user_id": "expert_3", "prompt_id": "81", "turn": 1} | PAIR
    assert found[1]["chosen"] == talk("a?", "c", "and?", "e") and found[1]["user_id"] == "author_0"
    assert found[2]["prompt_id"] == "81"  # one prompt, one id
    for reason in ("1 x a tie", "1 x no user_id", "in an empty one", "are the same (first: ", "1 x no vote"):
        assert reason in out
    pd.DataFrame(rows[:2]).to_parquet(tmp_path / "human.parquet")
    files = ("--source", tmp_path / "human.parquet", "--output", tmp_path / "p.jsonl")
    assert call_script(SCRIPT, "--from", "arena", *files)[0] == 0
    assert texts.read(tmp_path / "p.jsonl") == found[:2]


def test_a_winner_has_many_spellings(tmp_path):
    spellings = {
        "b": ("A", "model_a", "left", "[[A]]", "A>>B", "Response A", "m", "A-is-slightly-better", 0),
        "c": ({"selected": "right"}, [{"selected": "right"}], " b ", "A < B", 1, 1.0),
        None: ("tie (both bad)", "[[A=B]]", "Tie - both good", "both are bad", "No_Preference", "Equal", True),
    }  # fmt: skip
    said = [(winner, kept) for kept, winners in spellings.items() for winner in winners]
    sides = REPLIES | {"model_a": "m"}
    rows = [sides | {"user_id": number, "winner": winner} for number, (winner, _) in enumerate(said)]
    expected = {number: kept for number, (_, kept) in enumerate(said) if kept}
    assert chosen(tmp_path, "arena", rows, "--votes", "a=0", "b=1", "tie=true") == expected
    for yes, no in ((True, False), ("True", "False"), (1, 0), ("1.0", "0.0")):  # in a column each
        three = {"user_id": 1, "winner_model_a": no, "winner_model_b": yes, "winner_tie": no}
        assert chosen(tmp_path, "arena", [REPLIES | three]) == {1: "c"}
    found, out = written(tmp_path, "arena", [REPLIES | {"user_id": 1, "preferred": "B"}])
    assert found[0]["chosen"] == "c" and "read as winner: preferred" in out


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
    thumbs = "user_id,prompt,completion,label\n1,a?,c,False\n1,a?,b,True\n"
    lists = {"user_id": 1, "instruction": "a?"}
    inside = [{"response": "c", "overall_score": 2.0}, {"response": "b", "overall_score": 7.5}]
    beside = {"responses": ["c", "b"], "ratings": ["3,5", "4"]}
    for rows in ([lists | {"completions": inside}], [lists | {"completions": []}, lists | beside], thumbs):
        assert written(tmp_path, "ratings", rows)[0] in ([{"user_id": 1} | PAIR], [{"user_id": "1"} | PAIR])


def test_ranks_and_orders_become_pairs(tmp_path):
    row = PROMPT | {"user_id": 1, "responses": ["c", "b", "d"]}
    orders = [1, 0, 2], [2, 1, 3], ["b", "c", "d"]
    for ranks in ({"ranks": [2, 1, 3]}, *({"order": order} for order in orders)):
        found, _ = written(tmp_path, "rankings", [row | ranks])
        assert {pair["chosen"] + pair["rejected"] for pair in found} == {"bc", "bd", "cd"}, ranks
    found, out = written(tmp_path, "rankings", [row | {"ranks": [2, 1, 3]}, row | {"ranks": [1, 1, 2]}])
    assert len(found) == 3 + 2 and "1 x a tie" in out  # a rank says nothing of another list
    nectar = PROMPT | {"user_id": 1, "answers": [{"answer": "c", "rank": 2.0}, {"answer": "b", "rank": 1.0}]}
    single = [PROMPT | {"user_id": 1, "response": reply, "rank": rank} for rank, reply in enumerate("bc")]
    for rows in ([nectar], single):
        assert written(tmp_path, "rankings", rows)[0] == [{"user_id": 1} | PAIR]
    for wrong, words in (
        ({"ranking": [2, 1, 3]}, "no ranks"), ({"order": [5, 6, 7]}, "not of the replies"),
        ({"ranks": [1, 2]}, "2 ranks for 3 replies"), ({"responses": "['b']"}, "holds one as JSON"),
    ):  # fmt: skip
        assert_one_line_error(convert(tmp_path, "rankings", [row | wrong]), words)


def test_a_column_for_each_person(tmp_path):
    row = REPLIES | {"ann": "A", "bob": "b", "cid": "tie", "dan": None}
    found, out = written(tmp_path, "wide", [row], "--annotators", "ann", "bob", "cid", "dan", "ann")
    assert [(pair["user_id"], pair["chosen"]) for pair in found] == [("ann", "b"), ("bob", "c")]
    assert "1 x a tie" in out and "1 x no vote" in out
    for scores in ("a?,c,1,5\na?,b,2,3\n", "a?,c,False,True\na?,b,True,False\n"):
        table = f"prompt,response,ann,bob\n{scores}"
        assert chosen(tmp_path, "wide", table, "--annotators", "ann", "bob") == {"ann": "b", "bob": "c"}
    assert_one_line_error(convert(tmp_path, "wide", [row]), "--annotators", "ann, bob, cid, dan")
    assert_one_line_error(convert(tmp_path, "wide", [row], "--annotators", "eve"), "no column eve")


FIELDS = {"prompt": "a?", "left": "c", "right": "b"}


def record(responses, **changed):
    """A record as argilla's to_json writes it."""
    record = {"id": "r1", "fields": FIELDS, "metadata": {}, "suggestions": {}, "status": "completed"}
    return record | {"responses": responses, "_server_id": "s1"} | changed


def test_records_of_argilla(tmp_path):
    ann = {"user_id": "7f", "value": ["right", "left"]}
    bob = {"user_id": "8e", "value": ["left", "right"]}
    nested = [record({"better": [ann, bob | {"status": "draft"}]}), record({"better": [ann]}, status="pending"),
              record({}, status="pending"), record({"better": [{"user_id": "9d", "value": "left"}]})]  # fmt: skip
    found, out = written(tmp_path, "argilla", nested)
    assert [(pair["user_id"], pair["chosen"]) for pair in found] == [("9d", "c"), ("7f", "b")]
    assert "1 x a draft" in out and "still pending" in out and "no answer yet" in out
    flat = FIELDS | {"status": "pending", "better.responses": [ann["value"], bob["value"]]}
    flat |= {"better.responses.users": ["7f", "8e"], "better.responses.status": ["submitted", "discarded"]}
    found, out = written(tmp_path, "argilla", [flat])
    assert found == [{"user_id": "7f"} | PAIR] and "1 x an answer that is discarded" in out
    printed = convert(tmp_path, "argilla", [flat | {"better.responses.users": "['7f', '8e']"}])
    assert_one_line_error(printed, "better.responses.users is no list")
    assert chosen(tmp_path, "argilla", [record({"better": [ann, bob]})]) == {"7f": "b", "8e": "c"}
    ranked = ann | {"value": [{"value": "right", "rank": 1}, {"value": "left", "rank": 1}]}
    assert_one_line_error(convert(tmp_path, "argilla", [record({"better": [ranked]})]), "1 x a tie")
    rated = [record({"stars": [{"user_id": "7f", "value": stars}]}, fields=PROMPT | {"response": reply})
             for reply, stars in (("b", 5), ("c", 2))]  # fmt: skip
    assert written(tmp_path, "argilla", rated)[0] == [{"user_id": "7f"} | PAIR]
    two = record({"better": [ann], "safer": [ann]})
    assert_one_line_error(convert(tmp_path, "argilla", [two]), "--question NAME, of better, safer")
    found, out = written(tmp_path, "argilla", [two], "--question", "safer")
    assert len(found) == 1 and "1 x an answer to the question better" in out
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
    task = {"id": 1, "data": data, "annotations": annotations, "drafts": [annotation("left", 14)]}
    found, out = written(tmp_path, "labelstudio", [task, task | {"annotations": [], "drafts": []}])
    assert [(pair["user_id"], pair["chosen"]) for pair in found] == [(10, "b"), (11, "c")]
    reasons = ("a draft", "no vote", "a task that was skipped", "no user_id", "a task without an annotation")
    assert all(f"1 x {reason}" in out for reason in reasons)
    two = annotation("left", 10)
    two["result"] = two["result"] + [two["result"][0] | {"from_name": "safer"}]
    done = convert(tmp_path, "labelstudio", [task | {"annotations": [two]}])
    assert_one_line_error(done, "--question NAME, of pw, safer")
    named = task | {"data": {"q": "a?", "x": "b", "y": "c"}}
    flags = ("--columns", "prompt=q", "response_a=x", "response_b=y")
    assert written(tmp_path, "labelstudio", [named], *flags)[0] == found
    short = data | {"id": 1, "pw": [{"selected": "left"}], "annotator": 10, "annotation_id": 5}  # JSON_MIN
    skipped = data | {"id": 2, "annotator": 10}
    found, out = written(tmp_path, "arena", [skipped, short], "--columns", "user_id=annotator", "winner=pw")
    assert found == [{"user_id": 10} | PAIR] and "1 x no vote" in out


def test_pairs_lose_what_would_be_refused(tmp_path):
    dialogue = "\n\nHuman: a?\n\nAssistant: "
    ends = ("c", "b", "", "c\n\nHuman: so?")
    rows = [{"worker": 1, "chosen": dialogue + "b", "rejected": dialogue + reply} for reply in ends]
    found, out = written(tmp_path, "pairs", rows, "--columns", "user_id=worker")
    assert len(found) == 1 and "1 x chosen and rejected are the same" in out
    empty = f"2 x rejected does not end in a reply, or in an empty one (first: {tmp_path}/source.json, row 2"
    assert empty in out
    choice = {"user_id": 1, "prompt": "a?", "candidates": ["c", "b"], "choice": 1}
    assert "chosen" not in written(tmp_path, "pairs", [choice, choice | {"choice": None}])[0][0]
    assert_one_line_error(convert(tmp_path, "pairs", [{"user_id": 1}]), "1 x no chosen; there are user_id")


def test_what_cannot_be_turned_is_one_line(tmp_path):
    kaggle = PROMPT | {"response_a": '["b"]', "response_b": '["c"]', "winner_model_a": 1, "winner_model_b": 0}
    row = REPLIES | {"user_id": 1, "winner": "a"}
    for rows, layout, flags, words in (
        ([kaggle], "arena", (), "no person in it: nothing personal can be learnt"),
        ([kaggle | {"user_id": 1}], "arena", (), "response_a is a list of turns"),
        ([row | {"winner": "c"}], "arena", (), "source.json, row 0: the winner is 'c'"),
        ([row | {"winner": True}], "arena", (), "the winner is True"),
        ([REPLIES | {"user_id": 1}], "arena", (), "no winner; there are"),
        ([row | {"system": "be good"}], "arena", (), "system would not be read"),
        ([row | {"prompt": ""}], "arena", (), "1 x an empty prompt or reply"),
        ([row | {"messages": [{"from": "human", "value": "a?"}]}], "arena", (), "no list of role and content"),
        ([row], "arena", ("--votes", "c=c"), "--votes c=c"),
        ([row], "arena", ("--columns", "turn=x"), "turn is none of"),
        ([row], "arena", ("--columns", "prompt_id=x"), "no column x"),
        ([row], "nectar", (), "which layout"),
        ([row], "ratings", (), "no response"),
        ([{"user_id": 1}], "arena", (), "no two replies"),
        ([mtbench(conversation_a=None, conversation_b=[None])], "arena", (), "1 x chosen holds None"),
        ([{"data": row, "annotations": [5]}], "labelstudio", (), "annotations is no list of objects"),
        ([row], "labelstudio", (), "--from arena --columns user_id=annotator winner="),
        ([], "arena", (), "holds no row"),
        ([row], "arena", ("--output", tmp_path / "source.json"), "is there already"),
        ([row], "arena", ("--output", tmp_path / "rows.csv"), "a name that ends in .jsonl"),
    ):  # fmt: skip
        assert_one_line_error(convert(tmp_path, layout, rows, *flags), words)
        assert not (tmp_path / "rows.jsonl").exists()


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
