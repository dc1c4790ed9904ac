"""OwnData/ end to end: a file of comparisons in, table and basis out; and what it refuses."""

import pytest
import texts
from conftest import ROOT, SHARED, assert_one_line_error, call_script, printed

from lore.fit.basis import load_basis
from lore.splits import identity_of, load_split

FOLDER = ROOT / "OwnData"
FEW = ("--min_comparisons", 3, "--max_few_shot", 4, "--num_iterations", 30)


def test_a_file_becomes_vectors_a_table_a_basis_and_a_curve(trained, tmp_path, model):
    flags = ("--data", trained / "data", "--results", tmp_path, *FEW, "--K_list", 0, 1, 2)
    out = printed(FOLDER / "train_basis.py", *flags)
    assert "prompts trained on: 6, tested on: 6, both: 0" in out
    assert "0 of 6 (seen), 0 of 6 (unseen)" in out  # through other people either
    basis = load_basis(tmp_path / "train_basis_K2_alpha0_seed0.safetensors", 32)
    assert identity_of(basis.model)["model"] == str(model) and len(basis.everybody) == 6
    assert basis.mean is not None
    rows = texts.report(trained / "results/vary_fewshot.json")["rows"]
    assert [row["shots"] for row in rows] == [1, 3]


def test_synthetic_finds_the_planted_people(tmp_path):
    few = ("--planted_people", 40, "--planted_features", 32, "--K_list", 1, 3)
    printed(FOLDER / "train_basis.py", "--synthetic", "--results", tmp_path, *few)
    summary = texts.report(tmp_path / "train_basis_synthetic.json")["summary"]
    by_rank = {row["K"]: row["unseen"] for row in summary}
    assert by_rank[3] > by_rank[1] + 0.04 and by_rank["best"] > 0.85


def test_a_split_of_the_file_holds(tmp_path, reward_model):
    rows = texts.comparisons()
    prompts = sorted({row["prompt"] for row in rows})
    for row in rows:
        row["split"] = "train" if row["prompt"] in prompts[:8] else "validation"
    assert texts.prepare(tmp_path, rows, reward_model)[0] == 0
    flags = ("--data", tmp_path / "data", "--results", tmp_path, *FEW, "--K_list", 1)
    out = printed(FOLDER / "train_basis.py", *flags)
    assert "prompts trained on: 8, tested on: 4, both: 0" in out


def test_message_lists_and_texts_are_the_same_comparisons(tmp_path, reward_model):
    from datasets import Dataset

    rows = texts.comparisons(users=2, prompts=3)
    tables = []
    for name, kind in (("texts", dict), ("lists", texts.messages)):
        (tmp_path / name).mkdir()
        done = texts.prepare(tmp_path / name, [kind(row) for row in rows], reward_model)
        assert "6 comparisons by 2 people on 3 prompts" in done[1] and "left out: 0 x" in done[1], done[2]
        tables.append(load_split(tmp_path / name / "data/comparisons", ""))
    other = {"user_id": "annotator", "prompt": "question"}
    saved = [{other.get(name, name): value for name, value in row.items()} for row in rows]
    Dataset.from_list(saved).save_to_disk(tmp_path / "saved")
    columns = ("--columns", "user_id=annotator", "prompt=question")
    flags = ("--source", tmp_path / "saved", *columns, "--model", reward_model, "--data", tmp_path / "data")
    printed(FOLDER / "prepare.py", *flags)
    tables.append(load_split(tmp_path / "data/comparisons", ""))
    for table in tables[1:]:
        assert table.table.equal(tables[0].table) and table.frame.equals(tables[0].frame)
        assert table.made_from == tables[0].made_from  # the report takes either file


GOOD = {"user_id": "ann", "prompt": "a?", "chosen": "b", "rejected": "c"}
SECOND = [  # what is wrong with it, beside a first one
    ({"split": "train"}, {"split": "test"}, "one split for each"),
    ({"split": "train"}, {}, "some rows have"),
    ({"prompt_id": 1}, {"prompt_id": 2}, "give both one id"),
    ({}, {"chosen": "\ud800"}, "half a character"),
]


@pytest.mark.parametrize("first, second, words", SECOND)
def test_a_bad_row_is_named_with_its_line(first, second, words, tmp_path, reward_model):
    """As a prompt that would be both trained on and tested on."""
    done = texts.prepare(tmp_path, [GOOD | first, GOOD | {"user_id": "bob"} | second], reward_model)
    assert_one_line_error(done, "own.jsonl.gz, line 2", words)
    assert not (tmp_path / "data/comparisons.parquet").exists()


def test_what_is_missing_is_said(tmp_path):
    prepare, train = FOLDER / "prepare.py", FOLDER / "train_basis.py"
    assert_one_line_error(call_script(prepare), "--source")
    assert_one_line_error(call_script(prepare, "--source", tmp_path / "none"), "is no file")
    done = call_script(train, "--data", tmp_path)
    assert_one_line_error(done, "make it with: python OwnData/prepare.py")
    assert_one_line_error(call_script(train, "--synthetic", "--train_prompts", 1), "between 0 and 1")


@pytest.mark.skipif(not (SHARED / "mtbench").exists(), reason=f"MT-Bench's judgments are not at {SHARED}")
def test_real_judgments_with_a_tiny_encoder(tmp_path, text_encoder):
    """About the pipeline: a random encoder learns nothing, and must not seem to."""
    source = SHARED / "mtbench/comparisons.jsonl.gz"
    common = ("--source", source, "--model", text_encoder, "--pooling", "mean", "--max_length", 32)
    out = printed(FOLDER / "prepare.py", *common, "--data", tmp_path)
    assert "2528 comparisons by 59 people on 80 prompts" in out
    flags = ("--data", tmp_path, "--results", tmp_path, "--K_list", 1, "--solver", "adam")
    printed(FOLDER / "train_basis.py", *flags, "--num_iterations", 30)
    (row,) = texts.report(tmp_path / "train_basis.json")["summary"]
    assert 0.3 < row["unseen"] < 0.75, "far from chance: look for a leak"
