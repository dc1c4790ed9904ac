"""What a user of OwnData/ and apply/ gets wrong: one line, and nothing of theirs is lost."""

import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
import texts
import torch
from conftest import ROOT, assert_one_line_error, call_script, printed
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_apply import applied, apply

import saved_basis
from lore.common import InputError
from lore.fit.basis import load_basis, save_basis
from lore.text.conversations import read_rows

PAIR = {"prompt": "the cat?", "candidates": ["sat", "lay on the mat"]}


def test_tables_pass_through_and_nothing_is_null(basis, tmp_path):
    output = tmp_path / "o.jsonl"
    table = [PAIR | {"n": 1.0, "day": pd.Timestamp("2026-01-02")}, PAIR | {"n": None}]
    pd.DataFrame(table).to_parquet(tmp_path / "p.parquet")
    applied("best_of_n", basis, tmp_path / "p.parquet", output)
    first, second = texts.read(output)
    assert first["candidates"] == PAIR["candidates"] and first["day"].startswith("2026-01-02")
    assert (first["n"], second["n"], second["day"]) == (1.0, None, None)
    cells = PAIR | {"candidates": json.dumps(PAIR["candidates"])}
    pd.DataFrame([cells]).to_csv(tmp_path / "c.csv", index=False)
    applied("best_of_n", basis, tmp_path / "c.csv", output)
    assert texts.read(output)[0]["candidates"] == PAIR["candidates"]


def test_every_row_of_a_table_has_its_cells(tmp_path):
    head = "user_id,prompt,chosen,rejected\n"
    for content, words in (
        (head + 'ann,the cat?,sat,"on\n\nmat"\nann,the cat?,sat', "line 5: 3 cells for 4 columns"),
        ("user_id,chosen, chosen,,\na,b,c,,\n", "column chosen is twice"),  # a column without a name is none
    ):
        (tmp_path / "bad.csv").write_text(content)
        with pytest.raises(InputError, match=words):
            list(read_rows(tmp_path / "bad.csv"))


ABOUT_CATS = [{"prompt": f"the cat {number}?"} for number in range(8)]
JUDGED = [{"user_id": "u", "chosen": "sat on it", "rejected": "lay"} | asked for asked in ABOUT_CATS[:4]]


SCRIPTS = ("score", "best_of_n", "ask", "adapt", "report")


@pytest.fixture
def given(trained, basis, tmp_path, rows):
    """Of each script of apply/ a name for its output, the basis, the input, and flags for few questions."""
    pool = texts.write(tmp_path / "pool.jsonl", [PAIR | asked for asked in ABOUT_CATS])
    return {
        "score": ("o.jsonl", basis, rows),
        "best_of_n": ("o.jsonl.gz", basis, pool),
        "ask": ("o.jsonl", basis, pool, "--questions", 2, "--trials", 3),
        "adapt": ("o.safetensors", basis, texts.write(tmp_path / "new.jsonl", JUDGED)),
        "report": ("o.html", None, trained / "results/train_basis.json"),
        "export": ("o", basis, None),
    }


def write(name, given, output):
    _, basis, source, *flags = given[name]
    return apply(name, basis, source, output, *flags)


@pytest.mark.parametrize("name", [*SCRIPTS, "export"])
def test_what_cannot_be_written_or_would_be_lost_is_told_before_the_model(name, given, tmp_path, monkeypatch):
    monkeypatch.setattr(saved_basis, "encoder_of_basis", None)  # nobody comes this far
    output = given[name][0]
    mine = tmp_path / "mine"
    mine.mkdir()
    contents = {
        "notes": "mine", output: '{"mine": 1}', "picture.png": "mine", "b.json": '{"mine": 1}',
        "c.json": '{"settings": {"output": "c"}, "rows": []}', "cities.jsonl": '{"population": 2800000}',
    }  # fmt: skip
    for file, content in contents.items():
        (mine / file).write_text(content)
    (mine / f"link-{output}").symlink_to(mine / output)
    paths = ["", "/dev/null", mine, mine / "notes" / output, mine / output, mine / f"link-{output}"]
    if name != "export":
        paths += [mine / f"o.{kind}" for kind in ("csv", "parquet", "png", "txt", "jsonl.zst")]
        paths.append(given[name][2])  # what is read
    # what is written beside it; a field of the same name is no mark of the script
    beside = {"adapt": ("b", "c"), "ask": ("b", "c", "picture"), "score": ("cities",)}
    paths += [mine / f"{stem}{Path(output).suffix}" for stem in beside.get(name, ())]
    before = {path: path.read_bytes() for path in mine.iterdir()}
    for path in paths:
        assert_one_line_error(write(name, given, path), str(path).partition(".")[0] or "--output")
    assert {path: path.read_bytes() for path in mine.iterdir()} == before
    assert (mine / f"link-{output}").is_symlink()


@pytest.mark.parametrize("name", SCRIPTS)
def test_what_a_script_has_written_it_replaces_and_links_stay(name, given, tmp_path):
    output = tmp_path / given[name][0]
    (tmp_path / "far").mkdir()
    output.symlink_to(tmp_path / "far" / output.name)
    if name == "adapt":  # which writes no picture
        output.with_name("o.png").write_text("mine")
    for _ in range(2):
        status, _, err = write(name, given, output)
        assert status == 0, err
    assert output.is_symlink() and (tmp_path / "far" / output.name).stat().st_size
    assert not [*tmp_path.glob("**/*.tmp")]


def test_a_basis_takes_no_other_basis_s_place(trained, basis, given, tmp_path):
    """Nor the results beside it, though the same people stand in both."""
    results = shutil.copytree(trained / "results", tmp_path / "results")
    first = results / "train_basis_K1_alpha0_seed0.safetensors"
    copied = shutil.copy(basis, results / "copy.safetensors")
    for path in (first, copied):
        assert_one_line_error(write("adapt", given, path), "not written by this")
    done = write("adapt", given, results / "train_basis.safetensors")
    assert_one_line_error(done, "train_basis.json is there")


def test_nothing_is_written_over_what_is_read(basis, rows, tmp_path):
    known = texts.write(tmp_path / "me.json", JUDGED)
    pool = texts.write(tmp_path / "pool.json", [PAIR] * 30)
    source = texts.write(tmp_path / "comparisons.parquet", texts.comparisons())
    before = {path: path.read_bytes() for path in (known, pool, source, rows)}
    common = ("--model", "x", "--data", tmp_path)
    cases = [
        apply("adapt", basis, known, tmp_path / "me.safetensors"),
        apply("ask", basis, pool, tmp_path / "pool.jsonl"),
        apply("ask", basis, pool, tmp_path / "new.json"),
        apply("score", basis, rows, basis),
        call_script(ROOT / "OwnData/prepare.py", "--source", source, *common),
    ]
    for done in cases:
        assert_one_line_error(done, "would be written over")
    pd.DataFrame(texts.comparisons()).to_parquet(source)  # raw, and not what is read
    before[source] = source.read_bytes()
    done = call_script(ROOT / "OwnData/prepare.py", "--source", known, *common)
    assert_one_line_error(done, "comparisons.parquet is there, not written by this script")
    assert before == {path: path.read_bytes() for path in before}


def test_a_page_of_the_few_shot_curve_alone_and_of_no_results(trained, tmp_path):
    page = tmp_path / "p.html"
    applied("report", None, trained / "results/vary_fewshot.json", page)
    assert "Accuracy against what is known" in page.read_text()
    whole = texts.report(trained / "results/train_basis.json")
    for bad in ({"rows": [{}]}, {"rows": 5}, {"summary": []}, {"summary": None}, {"settings": []}):
        source = texts.write(tmp_path / "bad.json", [whole | bad])
        assert_one_line_error(apply("report", None, source, page), "is no .json of train_basis.py")


def test_a_page_shows_what_is_of_its_run_escapes_ids_and_tells_them_apart(trained, model, tmp_path):
    rows = texts.comparisons()
    for row in rows:
        row["user_id"] = f"<img src=x-a-long-{row['user_id']}-name-of-a-person>"
    rows += [row | {"user_id": "bob"} for row in rows[:2]]
    assert texts.prepare(tmp_path, rows, model)[0] == 0
    results = shutil.copytree(trained / "results", tmp_path / "results")  # of other people
    common = ("--data", tmp_path / "data", "--results", results, "--min_comparisons", 3)
    fit = ("--solver", "adam", "--num_iterations", 20, "--K_list", 1, 2, "--max_few_shot", 4)
    out = printed(ROOT / "OwnData/train_basis.py", *common, *fit)
    few = "fewer than 3 comparisons on one of the sides (--min_comparisons): bob"
    assert f"left out: 1 of 7 people with {few}" in out
    assert "comparisons to train on, of people beyond --max_few_shot 4" in out
    page = ("report", None, results / "train_basis.json", tmp_path / "p.html")
    replies = ("--texts", tmp_path / "own.jsonl.gz")
    applied(*page, *replies, "--replies", 0)
    text = page[-1].read_text()
    assert "<img" not in text and "Accuracy against what is known" not in text
    assert "vary_fewshot.json, written 20" in text and "a curve of other people" in text
    labels = re.findall('text-anchor="end">([^<]*)<title>', text)
    assert len(labels) == 6 == len({*labels}), labels
    # a basis of the same people that was fitted once more, and one of another model
    path = results / "train_basis_K2_alpha0_seed0.safetensors"
    saved = load_basis(path)
    save_basis(path, saved._replace(held_out={"personal": 0.5, "population": 0.5}))
    applied(*page)
    text = page[-1].read_text()
    assert "K2_alpha0_seed0.safetensors: a basis of another run" in text and "mixtures" not in text
    save_basis(path, saved._replace(model='{"model": "another"}'))
    done = apply(*page, *replies)
    assert_one_line_error(done, "was learned on", "of which the prepared texts are")


NAMED = ("model", "version", "pooling", "dtype")
ENCODER = dict.fromkeys((*NAMED, "head"), "x") | {"max_length": 9}
ANSWERS = {"answers": torch.ones(1, 32)}
DAMAGE = [
    ({"V": torch.ones(32)}, {}, "V has shape"),
    ({"W": torch.ones(3, 3).int()}, {}, "no floating-point"),
    ({"W": torch.full((3, 3), 5.0)}, {}, "no mixtures"),
    ({}, {"user_ids": '"abc"'}, "not a list of texts"),
    ({}, {"user_ids": "[[1], [2], [3]]"}, "not a list of texts"),
    ({}, {"user_ids": '["a", "a", "b"]'}, "a stands for two people"),
    ({}, {"strength": "-1"}, "strength -1"),
    ({}, {"held_out": '{"personal": "x"}'}, "held_out"),
    (ANSWERS | {"answered": torch.tensor([[0, 0, 1, 5, 5]])}, {}, "replies without vectors"),
    (ANSWERS, {}, "replies without vectors"),
    ({}, {"model": '{"model": "x"}'}, "no encoder"),
    *[({}, {"model": json.dumps(ENCODER | {name: 7})}, f"says {name} = 7") for name in NAMED],
]


@pytest.mark.parametrize("tensors, header, words", DAMAGE)
def test_a_damaged_basis_is_one_line(basis, rows, tmp_path, tensors, header, words):
    with safe_open(basis, framework="pt") as file:
        said = file.metadata()
    save_file(load_file(basis) | tensors, tmp_path / "b.safetensors", said | header)
    assert_one_line_error(apply("score", tmp_path / "b.safetensors", rows, tmp_path / "o"), words)


def test_a_damaged_table_or_manifest_is_one_line(tmp_path, model):
    assert texts.prepare(tmp_path, texts.comparisons(), model)[0] == 0
    (tmp_path / "data/comparisons.parquet").write_bytes(b"")
    assert_one_line_error(texts.prepare(tmp_path, texts.comparisons(), model), "damaged")
    parts = tmp_path / "new/data/comparisons.parts"
    parts.mkdir(parents=True)
    for content in ("", "[1]"):
        (parts / "manifest.json").write_text(content)
        assert_one_line_error(texts.prepare(tmp_path / "new", texts.comparisons(), model), "damaged")
