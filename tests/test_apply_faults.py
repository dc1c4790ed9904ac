"""What a user of OwnData/ and apply/ gets wrong: one line, and nothing of theirs is lost."""

import json

import pandas as pd
import pytest
import texts
import torch
from conftest import ROOT, assert_one_line_error, call_script
from safetensors import safe_open
from safetensors.torch import save_file
from test_apply import apply, good

from lore.common import InputError
from lore.fit.basis import load_basis, save_basis
from lore.text.conversations import read_rows

R = {"prompt": "the cat?", "response": "sat"}
PAIR = {"prompt": "the cat?", "candidates": ["sat", "lay on the mat"]}


def flags(basis, source, output):
    return "--basis", basis, "--input", source, "--output", output


def test_a_table_of_parquet_passes_through_and_nothing_is_null(basis, tmp_path):
    table = [PAIR | {"n": 1.0, "day": pd.Timestamp("2026-01-02")}, PAIR | {"n": None}]
    pd.DataFrame(table).to_parquet(tmp_path / "p.parquet")
    good(apply("best_of_n", *flags(basis, tmp_path / "p.parquet", tmp_path / "o.jsonl")))
    first, second = texts.read(tmp_path / "o.jsonl")
    assert first["candidates"] == PAIR["candidates"] and first["day"].startswith("2026-01-02")
    assert (first["n"], second["n"], second["day"]) == (1.0, None, None)


def test_a_csv_holds_lists_as_json_and_every_row_has_its_cells(basis, tmp_path):
    text = json.dumps(PAIR["candidates"])
    pd.DataFrame([{"prompt": "the cat?", "candidates": text}]).to_csv(
        tmp_path / "c.csv", index=False
    )
    good(apply("best_of_n", *flags(basis, tmp_path / "c.csv", tmp_path / "o.jsonl")))
    assert texts.read(tmp_path / "o.jsonl")[0]["candidates"] == PAIR["candidates"]
    head = "user_id,prompt,chosen,rejected\n"
    for content, words in (
        (head + "ann,the cat?,sat,on mat,note\n", "line 2: 5 cells for 4 columns"),
        (head + 'ann,the cat?,sat,"on\n\nmat"\nann,the cat?,sat', "line 5: 3 cells for 4 columns"),
        (head + 'ann,the cat?,sat,"on mat', "cut off here"),
        ("user_id,chosen,chosen\na,b,c\n", "column chosen is twice"),
        ("<!DOCTYPE html>\n", "web page"),
    ):
        (tmp_path / "bad.csv").write_text(content)
        with pytest.raises(InputError, match=words):
            list(read_rows(tmp_path / "bad.csv"))


@pytest.mark.parametrize("value", ["1e400", '"\\ud800"', "[1e400]"])
def test_what_json_cannot_say_is_told_before_the_model_runs(basis, tmp_path, value):
    line = json.dumps(R)
    (tmp_path / "r.jsonl").write_text(f'{line}\n{line[:-1]}, "x": {value}}}\n')
    done = apply("score", *flags(basis, tmp_path / "r.jsonl", tmp_path / "o.jsonl"))
    assert_one_line_error(done, "r.jsonl, line 2, x: ")
    assert [path.name for path in tmp_path.iterdir()] == ["r.jsonl"]


def test_nothing_is_written_over_what_is_read(basis, rows, tmp_path):
    known = texts.write(tmp_path / "me.json", [{"user_id": "u", **row} for row in judged(4)])
    pool = texts.write(tmp_path / "pool.json", [PAIR] * 30)
    source = texts.write(tmp_path / "comparisons.parquet", texts.comparisons())
    before = {path: path.read_bytes() for path in (known, pool, source, rows)}
    common = ("--model", "x", "--data", tmp_path)
    cases = [
        apply("adapt", *flags(basis, known, tmp_path / "me.safetensors")),
        apply("ask", *flags(basis, pool, tmp_path / "pool.jsonl")),
        apply("ask", *flags(basis, pool, tmp_path / "new.json")),
        apply("score", *flags(basis, rows, rows)),
        apply("score", *flags(basis, rows, basis)),
        apply("score", *flags(basis, rows, tmp_path)),
        call_script(ROOT / "OwnData/prepare.py", "--source", source, *common),
    ]
    for number, done in enumerate(cases):
        assert_one_line_error(done, "is no file" if number == 5 else "would be written over")
    assert before == {path: path.read_bytes() for path in before}


def judged(count):
    return [
        {"prompt": f"the cat {i}?", "chosen": "sat on it", "rejected": "lay"} for i in range(count)
    ]


def test_a_judgement_again_tells_nothing_new(basis, tmp_path):
    found = []
    for times in (1, 3):
        source = texts.write(
            tmp_path / "k.jsonl", [{"user_id": "u", **row} for row in judged(4) * times]
        )
        out = good(apply("adapt", *flags(basis, source, tmp_path / f"{times}.safetensors")))
        found.append(json.loads((tmp_path / f"{times}.json").read_text())["rows"])
    assert found[0] == found[1] and "8 x the same judgement again" in out


def test_ids_of_any_size_and_of_tables(basis, tmp_path):
    row = judged(1)[0]
    source = texts.write(
        tmp_path / "k.jsonl", [{"user_id": 10**400, **row}, {"user_id": "7.0", **row}]
    )
    good(apply("adapt", *flags(basis, source, tmp_path / "k.safetensors")))
    assert load_basis(tmp_path / "k.safetensors").unseen_ids[-1] == "7"
    for bad, words in (
        ({"user_id": [1]}, "neither a text"),
        ({"user_id": "u", "split": ["train"]}, "split"),
    ):
        source = texts.write(tmp_path / "k.jsonl", [row | bad])
        done = apply("adapt", *flags(basis, source, tmp_path / "o.safetensors"))
        assert_one_line_error(done, "line 1", words)


def test_users_named_behind_two_flags(basis, rows, tmp_path):
    done = apply("score", *flags(basis, rows, tmp_path / "o"), "--users", 0, "--users", 1)
    assert_one_line_error(done, "--users stands there twice")


def test_questions_for_people_with_something_of_their_own(basis, tmp_path):
    held = load_basis(basis)
    E, E_unseen = torch.randn(len(held.user_ids), 32), torch.randn(len(held.unseen_ids), 32)
    save_basis(
        tmp_path / "b.safetensors", held._replace(E=E, E_unseen=E_unseen, deviation_spread=1.0)
    )
    pool = texts.write(
        tmp_path / "pool.jsonl", [PAIR | {"prompt": f"the cat {i}?"} for i in range(8)]
    )
    output = tmp_path / "o.jsonl"
    good(
        apply(
            "ask", *flags(tmp_path / "b.safetensors", pool, output), "--questions", 2, "--trials", 3
        )
    )
    assert len(texts.read(output)) == 2


def test_a_page_of_the_few_shot_curve_alone_and_of_no_results(trained, tmp_path):
    results = trained / "results/vary_fewshot.json"
    good(apply("report", "--input", results, "--output", tmp_path / "p.html"))
    assert "Accuracy against what is known" in (tmp_path / "p.html").read_text()
    whole = json.loads((trained / "results/train_basis.json").read_text())
    for bad in ({"rows": [{}]}, {"rows": 5}, {"summary": []}, {"summary": None}, {"settings": []}):
        path = tmp_path / "bad.json"
        path.write_text(json.dumps(whole | bad))
        done = apply("report", "--input", path, "--output", tmp_path / "q.html")
        assert_one_line_error(done, "is no .json of train_basis.py")


def test_a_page_shows_no_replies_of_another_model_and_escapes_ids(
    trained, model, tmp_path, text_encoder
):
    rows = texts.comparisons()
    for row in rows:
        row["user_id"] = f"<img src=x{row['user_id']}>"
    assert texts.prepare(tmp_path, rows, model)[0] == 0
    common = ("--data", tmp_path / "data", "--results", tmp_path, "--min_comparisons", 3)
    fit = ("--solver", "adam", "--num_iterations", 20, "--K_list", 1, 2)
    good(call_script(ROOT / "OwnData/train_basis.py", *common, *fit))
    page = ("--input", tmp_path / "train_basis.json", "--output", tmp_path / "p.html", "--texts")
    good(apply("report", *page, tmp_path / "own.jsonl.gz", "--replies", 0))
    assert "<img" not in (tmp_path / "p.html").read_text()
    other = tmp_path / "other"
    other.mkdir()
    assert texts.prepare(other, rows, text_encoder, "--pooling", "mean")[0] == 0
    done = apply("report", *page, other / "own.jsonl.gz", "--prepared", other / "data")
    assert_one_line_error(done, "was learned on", "of which the prepared texts are")


DAMAGE = {
    "V of one dimension": ({"V": torch.ones(32)}, {}, "V has shape"),
    "whole numbers": ({"W": torch.ones(3, 3).int()}, {}, "no floating-point"),
    "no mixtures": ({"W": torch.full((3, 3), 5.0)}, {}, "no mixtures"),
    "ids that are a text": ({}, {"user_ids": '"abc"'}, "not a list of texts"),
    "ids that are lists": ({}, {"user_ids": "[[1], [2], [3]]"}, "not a list of texts"),
    "an id twice": ({}, {"user_ids": '["a", "a", "b"]'}, "a stands for two people"),
    "a prior below none": ({}, {"strength": "-1"}, "strength -1"),
    "an encoder of nothing": ({}, {"model": '{"model": "x"}'}, "no encoder"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_basis_is_one_line(basis, rows, tmp_path, name):
    tensors, header, words = DAMAGE[name]
    with safe_open(basis, framework="pt") as file:
        held = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        said = file.metadata()
    save_file(held | tensors, tmp_path / "b.safetensors", said | header)
    done = apply("score", *flags(tmp_path / "b.safetensors", rows, tmp_path / "o"))
    assert_one_line_error(done, words)


def test_a_damaged_table_or_manifest_is_one_line(tmp_path, model):
    assert texts.prepare(tmp_path, texts.comparisons(), model)[0] == 0
    (tmp_path / "data/comparisons.parquet").write_bytes(b"")
    assert_one_line_error(texts.prepare(tmp_path, texts.comparisons(), model), "damaged")
    parts = tmp_path / "new/data/comparisons.parts"
    parts.mkdir(parents=True)
    for content in ("", "[1]"):
        (parts / "manifest.json").write_text(content)
        assert_one_line_error(
            texts.prepare(tmp_path / "new", texts.comparisons(), model), "damaged"
        )
