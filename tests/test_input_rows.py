"""What a row may hold, whatever kind of file it stands in: taken as it is, or refused in one line."""

import json
import math
from decimal import Decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import texts
from pyarrow import parquet

from lore.common import InputError
from lore.text.conversations import exchange
from lore.text.input_rows import (
    candidates_of,
    first_times,
    identifier,
    in_json,
    judgement,
    messages_of,
    prompt_key,
    read_judgements,
    reply_of,
    rows_of,
)

ASK, SAY = exchange("a?", "b")
PAIR = {"user_id": "ann", "prompt": "a?", "chosen": "b", "rejected": "c"}
CHOSEN, REJECTED = [ASK, SAY], [ASK, SAY | {"content": "c"}]


def rows_in(path, rows):
    """The rows of a file of JSON lines, or that pandas writes, in whose CSV files a list stands as JSON."""
    frame = pd.DataFrame(rows)
    if path.suffix == ".jsonl":
        texts.write(path, rows)
    elif path.suffix == ".csv":
        frame.map(lambda cell: cell if isinstance(cell, str) else json.dumps(cell)).to_csv(path, index=False)
    else:
        frame.to_parquet(path)
    return [row for _, row in rows_of(path)]


kinds = pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])


MESSAGES = [ASK, {"content": 'it\'s \\d "b"', "role": "assistant"}]
PRINTED = {
    "python": str(MESSAGES),
    "json": json.dumps(MESSAGES),
    "json twice": json.dumps(json.dumps(MESSAGES)),
    "numpy": str(np.array(MESSAGES)),
    "numpy, in lines": str(np.array([ASK | {"content": "long " * 30}] * 3)),
    "from and value": str([{"from": "human", "value": "a?"}]),
    "lists in an object": json.dumps({"messages": [ASK, SAY]}),
    "parts": str([{"type": "text", "text": "b"}]),
    "of duckdb": "[{'content': a?, 'role': user}, {'content': b, 'role': assistant}]",
    "of trino": "[{content=a?, role=user}, {content=b, role=assistant}]",
    "cut off": str([ASK | {"content": "long"}])[:-4] + " and lo",
    "arrays in a list": "[array({'role': 'assistant', 'content': 'x'}, dtype=object)]",
    "ordered": "[OrderedDict([('role', 'assistant'), ('content', 'x')])]",
    "enumerated": "[{'role': <Role.USER: 'user'>, 'content': 'x'}]",
    "objects": "[ChatMessage(role='user', content='a?')]",
}
REPLIES = (
    '["a", "b"]', '[{"name": "pear"}]', "[1, 2]", "[]", "{}", '{"role": "admin"}', "[{'a': 1}]", "[1](x) {y}",
    '{"type": "text", "text": "hello"}', '{"role": "user", "name": "x"}',
    json.dumps({"model": "gpt-4", "messages": [ASK]}), str(MESSAGES) + " is how to call it",
    "(as said) [a] {b}", "[(x, y)]", "a\r\nb\rc\n", " b ", "None", "[x]",
)  # fmt: skip


@pytest.mark.parametrize("name", PRINTED)
@kinds
def test_a_list_of_messages_that_became_a_text_is_refused(name, kind, tmp_path):
    row = {"prompt": "a?", "chosen": PRINTED[name], "rejected": "c", "user_id": "ann"}
    (found,) = rows_in(tmp_path / f"r.{kind}", [row])
    if kind == "csv" and name == "json":  # as a list is written there
        assert found["chosen"] == MESSAGES
        return
    with pytest.raises(InputError, match="here: chosen is a list of messages that has become a text"):
        judgement("here", found)
    with pytest.raises(InputError, match="here: prompt is a list of messages that has become"):
        reply_of("here", {"prompt": PRINTED[name], "response": "b"})
    with pytest.raises(InputError, match=r"here: candidates\[1\] is a list of messages"):
        candidates_of("here", {"prompt": "a?", "candidates": ["b", PRINTED[name]]})


@kinds
def test_any_other_text_arrives_byte_for_byte(kind, tmp_path):
    rows = [{"prompt": f"{reply}?", "response": reply} for reply in REPLIES]
    for row, found in zip(rows, rows_in(tmp_path / f"r.{kind}", rows), strict=True):
        assert reply_of("here", found) == exchange(row["prompt"], row["response"])


AGAIN, MARK = "follows another reply|at the end of its prompt", "response: .* as a chat template writes"


def test_a_prompt_that_holds_its_reply_and_texts_of_a_chat_template_are_refused():
    for prompt, reply, words in (
        ([ASK, SAY], "b", AGAIN), ([ASK, SAY], [SAY], AGAIN), ("Human: a?\n\nAssistant: b", "b", AGAIN),
        ("### Instruction:\na?\n### Response:\nb", "b", AGAIN), ("<|user|>a?<|assistant|>\nb\n", " b", AGAIN),
        ("<s><|user|>\nWhy?<|end|>\n<|assistant|>\n", "b", MARK), ("[INST] Why? [/INST]", "b", MARK),
        ("<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n", "b", MARK),
        ("Why?", "b</s>", MARK), ("Why?", "b<|eot_id|>\n", MARK),
    ):  # fmt: skip
        with pytest.raises(InputError, match=words):
            reply_of("here", {"prompt": prompt, "response": reply})
    with pytest.raises(InputError, match=AGAIN):
        reply_of("here", {"messages": [ASK, SAY, SAY]})
    told = exchange("What does <|im_end|> mean?", "</s> ends a text in Llama 2.")
    for talk in (told, exchange("yes or no?", "no?")):  # words alone may be so
        prompt, reply = (message["content"] for message in talk)
        assert reply_of("here", {"prompt": prompt, "response": reply}) == talk
        assert reply_of("here", {"messages": talk}) == talk


def test_other_keys_of_messages_stay_and_make_no_prompt_another():
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "tide"}], "weight": None}
    talk = messages_of("here", [ASK, call, {"role": "tool", "content": "3"}], "messages")
    assert talk[1] == {"role": "assistant", "content": "", "tool_calls": [{"name": "tide"}]}
    sides = {"chosen": [ASK | {"id": 1}, SAY], "rejected": [ASK | {"id": 2}, SAY | {"content": "c"}]}
    assert len(judgement("here", {"user_id": "ann", **sides}).chosen) == 2


def test_ids_have_one_spelling_and_a_missing_one_is_none():
    for value in ("7", 7, 7.0, " 7\t", "7.0", "\ufeff7", "\uff17"):
        assert identifier("here", {"user_id": value}, "user_id") == "7"
    for composed in ("e\u0301va", "\u00e9va "):
        assert identifier("here", {"user_id": composed}, "user_id") == "\u00e9va"
    assert identifier("here", {"user_id": 2**63 - 1}, "user_id") == str(2**63 - 1)
    missing = ("nan", "None", "NULL", "<NA>", "NaT", "NA")
    for value in (*missing, 1.2345678901234568e18, "1.23457E+18", True, 1.5, [7]):
        with pytest.raises(InputError, match="here: user_id is "):
            identifier("here", {"user_id": value}, "user_id")


def test_a_prompt_in_two_spellings_is_one_prompt(tmp_path, capsys):
    prompts = ["Why not?", "Why not? ", "Why\r\nnot?", "why not?", "Why\u00a0not?", "Wh\u200by not?"]
    rows = [PAIR | {"prompt": prompt} for prompt in prompts]
    open_question = {"user_id": "ann", "prompt": "a?", "candidates": ["b", "c"], "choice": None}
    answered = open_question | {"choice": 0}
    path = texts.write(tmp_path / "r.jsonl", [*rows, open_question, answered])
    *judgements, choice = read_judgements(path)
    assert choice.chosen[-1]["content"] == "b"
    assert "left out: 1 x an empty choice" in capsys.readouterr().out
    assert len({judged.prompt_id for judged in judgements}) == 1
    assert [judged.chosen[0]["content"] for judged in judgements] == prompts
    assert first_times(judgements) == [0]  # and one judgement
    rows = [PAIR, PAIR | {"user_id": "Ann"}]
    with pytest.raises(InputError, match="line 2: user_id 'Ann', and 'ann' before: one person"):
        read_judgements(texts.write(tmp_path / "r.jsonl", rows))
    other = judgement("here", PAIR | {"prompt": "Why not now?"})
    assert prompt_key(other) != prompt_key(judgements[0])


SYSTEM = {"role": "system", "content": "be good"}
QUESTION = {"candidates": ["b", "c"], "chosen": None}
TWO_PROMPTS = {"prompt": "", "chosen": [SYSTEM, ASK, SAY], "rejected": [SYSTEM, ASK | {"content": "z?"}, SAY]}
REFUSED = [
    ({"prompt": " "}, "a prompt or messages must be there"),
    ({"prompt": [ASK | {"content": ""}]}, "follows an empty prompt"),
    ({"prompt": "nan"}, "what a table writes for a missing text"),
    ({"user_id": ""}, "no user_id"),
    ({"user_id": math.nan}, "no user_id"),
    ({"rejected": "  "}, "rejected does not end in a reply, or in an empty one"),
    ({"chosen": math.nan}, "chosen is nothing"),
    ({"prompt": [{"content": "a?"}]}, "no role and content"),
    ({"prompt": [ASK | {"content": [1]}]}, "the content of a message is a list"),
    ({"split": "dev"}, "split is 'dev', not one of train"),
    (QUESTION | {"choice": 2}, "choice is 2"),
    (QUESTION | {"choice": True}, "choice is True"),
    (QUESTION | {"choice": 1, "candidates": ["b"]}, "two candidates"),
    (QUESTION | {"choice": 1, "candidates": ["b", "b"]}, "are the same"),
    (TWO_PROMPTS, "no prompt in common"),
    ({"prompt": [ASK, {"role": "human", "content": "x"}]}, "prompt has a role 'human', none of system"),
    ({"prompt": "", "chosen": CHOSEN, "rejected": [ASK, SAY | {"content": "b "}]}, "are the same"),
    ({"messages": REJECTED, "chosen": CHOSEN, "rejected": REJECTED}, "both prompt and messages, which says"),
    ({"messages": [SYSTEM, ASK]}, "both prompt and messages, which says"),
    ({"context": [ASK]}, "both prompt and context"),
    ({"chosen": True}, "chosen is a bool"),
]  # fmt: skip


@pytest.mark.parametrize("change, words", REFUSED)
def test_what_is_no_comparison_is_refused(change, words):
    with pytest.raises(InputError, match=f"here.*{words}"):
        judgement("here", PAIR | change)


def test_numbers_that_json_has_not_are_refused():
    for value in (math.inf, -math.inf, Decimal("Infinity"), Decimal("-Infinity")):
        with pytest.raises(InputError, match="here: infinity"):
            in_json([value], "here")
    assert in_json([math.nan, Decimal("NaN"), Decimal("1e400")], "here") == [None, None, 10**400]


def test_parquet_is_read_as_it_stands(tmp_path):
    ids = [1234567890123456789, None, 7]
    columns = {
        "n": pa.array(ids, pa.int64()), "deep": pa.array([[{"n": 2**60, "m": None}], None, []]),
        "word": pa.array(["a", None, "a"]).dictionary_encode(), "x": pa.array([1.0, None, float("nan")]),
    }  # fmt: skip
    parquet.write_table(pa.table(columns), tmp_path / "r.parquet.gzip")  # known by its content
    found = [row for _, row in rows_of(tmp_path / "r.parquet.gzip")]
    assert [row["n"] for row in found] == ids and type(found[0]["n"]) is int
    assert [row["deep"] for row in found] == [[{"n": 2**60, "m": None}], None, []]
    assert [(row["word"], row["x"]) for row in found] == [("a", 1.0), (None, None), ("a", None)]


def test_a_large_table_takes_the_memory_of_a_few_rows(tmp_path):
    """One group of rows that no compression makes smaller."""
    letters = np.random.default_rng(0).integers(97, 123, (10_000, 1000), dtype=np.uint8)
    texts_of_rows = [row.tobytes().decode() for row in letters]
    parquet.write_table(
        pa.table({"prompt": texts_of_rows, "response": texts_of_rows}), tmp_path / "r.parquet"
    )
    before = pa.total_allocated_bytes()
    taken = [pa.total_allocated_bytes() - before for _ in rows_of(tmp_path / "r.parquet")]
    assert len(taken) == 10_000 and max(taken) < 15e6  # of 20e6, and what unpacking takes


HUMAN = "\n\nHuman: a?\n\nAssistant: "
AS_THEY_ARE = {
    "messages, a copy": {"prompt": "a?", "messages": CHOSEN, "chosen": CHOSEN, "rejected": REJECTED},
    "messages, the prompt again": {"prompt": "a?", "messages": [ASK], "chosen": "b", "rejected": "c"},
    "messages, prompt and reply": {"prompt": "a?", "messages": CHOSEN, "chosen": "b", "rejected": "c"},
    "messages, no prompt": {"messages": CHOSEN, "chosen": CHOSEN, "rejected": REJECTED},
    "context": {"context": [ASK], "chosen": SAY, "rejected": SAY | {"content": "c"}},
    "context, of a model": {"context": [ASK], "chosen": SAY | {"role": "model"}, "rejected": REJECTED[1]},
    "dialogues": {"chosen": HUMAN + "b", "rejected": HUMAN + "c\n"},
    "dialogues of another system": {"chosen": f"{HUMAN}b".replace("\n", "\r\n"), "rejected": HUMAN + "c"},
    "dialogues and a prompt": {"prompt": "a?", "chosen": HUMAN + "b", "rejected": HUMAN + "c"},
    "an open dialogue": {"prompt": HUMAN.rstrip(), "chosen": "b", "rejected": "c"},
    "a message each": {"prompt": "a?", "chosen": SAY, "rejected": REJECTED[1:]},
    "lists of their own": {"prompt": [ASK], "chosen": [SAY], "rejected": REJECTED[1:]},
    "whole conversations": {"chosen": CHOSEN, "rejected": REJECTED},
    "empty cells": PAIR | {"messages": "", "prompt_id": "", "split": " "},
    "no messages": PAIR | {"messages": []},
    "the first candidate": {"prompt": "a?", "candidates": ["b", "c"], "choice": 0},
    "the second candidate": {"prompt": "a?", "candidates": ["c", "b"], "choice": 1.0},
    "context of something else": PAIR | {"context": "of a paper"},
}


@pytest.mark.parametrize("name", AS_THEY_ARE)
@kinds
def test_other_layouts_are_read_as_they_are(name, kind, tmp_path):
    row = {"user_id": "ann"} | AS_THEY_ARE[name]
    if kind == "csv" and any(isinstance(value, dict) for value in row.values()):
        return  # no cell holds a message alone
    (found,) = rows_in(tmp_path / f"r.{kind}", [row])
    assert judgement("here", found) == judgement("here", PAIR)


def test_what_only_looks_like_a_layout_stays_what_it_is():
    written = PAIR | {"prompt": "Write a dialogue", "chosen": HUMAN + "b"}
    assert judgement("here", written).chosen[1]["content"] == HUMAN + "b"


def test_columns_of_other_names_are_named(tmp_path):
    row = {"annotator": "ann", "question": "a?", "prompt": "not this", "chosen": "b", "rejected": "c"}
    path = texts.write(tmp_path / "r.jsonl", [row])
    named = ["user_id=annotator", "prompt=question"]
    assert read_judgements(path, named)[0][1:] == judgement("here", PAIR)[1:]
    for columns, words in (
        ([], "line 1: no user_id; there are annotator, question, prompt, chosen, rejected; name yours with --columns"),
        ([*named, "prompt_id=qid"], "has no column qid"), (["user_id"], "write OURS=THEIRS"),
        (["user=annotator"], "user is none of user_id, prompt"), ([*named, named[0]], "stands there twice"),
        ([*named, "prompt_id=annotator"], "annotator stands there twice"), (["user_id=anotator"], "has no column anot"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=words):
            read_judgements(path, columns)


def test_what_is_deep_or_long_is_told_shortly(tmp_path):
    deep = tmp_path / "deep.jsonl"
    for depth in (150, 600, 100_000):
        deep.write_text('{"x": ' + "[" * depth + "]" * depth + "}\n")
        with pytest.raises(InputError, match="line 1"):
            list(rows_of(deep))
    for row in ({"user_id": "x" * 9999 + "\ud800"}, {"split": "x" * 9999}, {"user_id": {"a": "x" * 9999}},
                {"prompt": [{"x": "y" * 9999}]}, {"chosen": [{"role": ["x" * 9999], "content": "b"}]}):  # fmt: skip
        with pytest.raises(InputError) as told:
            judgement("here", PAIR | row)
            [*rows_of(texts.write(tmp_path / "r.jsonl", [PAIR | row]))]
        assert len(str(told.value)) < 250
