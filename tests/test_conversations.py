"""Texts, and the files that they come from."""

import gzip
import json

import pandas as pd
import pytest

from lore.common import InputError
from lore.text import json_text
from lore.text.conversations import data_files, distinct, exchange, fetch_rows, read_json_lines, read_rows

ROWS = [{"a": 1}, {"a": 2}]
TEXT = '{"a": 1}\n{"a": 2}\n'


def packed(content):
    return gzip.compress(content, mtime=0)  # the same name of a case in every process


def test_repeats_are_found_and_lists_in_place_of_text_are_refused():
    talks = [exchange("the cat", "sat on the mat"), exchange("hello", "ok")]
    assert distinct([*talks, talks[0]]) == (talks, [0, 1, 0])
    with pytest.raises(InputError, match=r"content of a message is a list, not text: \"\['a', 'b'"):
        distinct([exchange("question", ["a", "b"])])
    with pytest.raises(InputError, match="half a character"):
        distinct([exchange("question", "a \udfff b")])


STORED = {
    "plain.json": TEXT.encode(),
    "packed.jsonl.gz": packed(TEXT.encode()),
    "packed under a plain name.json": packed(TEXT.encode()),
    "plain under a packed name.json.gz": TEXT.encode(),
    "marked.json": TEXT.encode("utf-8-sig"),
    "marked and packed.json": packed(TEXT.encode("utf-8-sig")),
    "joined.json": b"".join(line.encode("utf-8-sig") for line in TEXT.splitlines(True)),
    "wide.json": TEXT.encode("utf-16"),
    "windows.json": TEXT.replace("\n", "\r\n").encode(),
}


def test_json_lines_however_they_are_stored(tmp_path):
    for name, content in STORED.items():
        path = tmp_path / name
        path.write_bytes(content)
        assert list(read_json_lines(path)) == [(f"{path}, line {i + 1}", ROWS[i]) for i in range(2)]
    # blank lines and line separators of Unicode are no rows
    path = tmp_path / "a.json"
    path.write_text('\n{"a": 1}\n  \n\n{"a": "x\u2028y\x85z"}\n\n', encoding="utf-8")
    expected = [(f"{path}, line 2", ROWS[0]), (f"{path}, line 5", {"a": "x\u2028y\x85z"})]
    assert list(read_json_lines(path)) == expected
    (tmp_path / "empty.json").write_text("")
    assert not list(read_json_lines(tmp_path / "empty.json"))


def flipped(content):
    return content[:20] + bytes(255 - byte for byte in content[20:40]) + content[40:]


BROKEN = [
    ("broken.json", TEXT + '{"a": \n', "broken.json, line 3: broken JSON"),
    ("number.json", TEXT + '{"a": ' + "1" * 5000 + "}\n", "line 3: broken JSON .*digits"),
    ("page.json.gz", "<html>\n<b>rate limit</b>\n", "page.json.gz is a web page"),
    ("pointer.json", "version https://git-lfs.github.com/spec/v1\noid 0\n", "is a Git LFS pointer"),
    ("number.json", TEXT + "1\n", "line 3: not a JSON object"),
    ("pretty.json", '{\n  "a": 1\n}\n', "line 1: broken JSON .*an object on every line"),
    ("cut.json.gz", packed(TEXT.encode() * 500)[:-20], "cut.json.gz: damaged file"),
    ("flipped.json.gz", flipped(packed(TEXT.encode() * 500)), "damaged file"),
    ("latin.json", TEXT.encode() + b'{"a": "\xe9"}\n', "latin.json: .*save it as UTF-8"),
    ("a.pkl", b"\x80\x04\x95\xff", "a.pkl: damaged file .*no text"),
    ("a.parquet", "no table", "a.parquet cannot be read: "),
]
BROKEN_LISTS = [
    ('[{"a": 1}, 1]', "a.json, row 1: not a JSON object"), ("[" * 100_000, "row 0: broken JSON"),
    ('[{"a": 1}', "row 0: broken JSON .*cut off here"), ('[{"a": 1},', "row 1: broken JSON"), ("[", "row 0"),
    ('[{"a": 1} {"a": 2}]', "row 0: broken JSON .no comma"), ('[{"a": tru}]', "row 0: broken JSON .Expecting"),
    ("[null]", "row 0: not a JSON object"), ('[{"a": 1}]\n[{"a": 1}]', "more follows the list"), ("[,{}]", "row 0"),
    ('[{"a": ' + "1" * 5000 + "}]", "row 0: broken JSON .*digits"), ('[{"a": "x', "row 0: broken JSON"),
]  # fmt: skip
BROKEN += [("a.json", content, message) for content, message in BROKEN_LISTS]


@pytest.mark.parametrize("name, content, message", BROKEN)
def test_what_is_wrong_with_json_is_one_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message):
        list(read_rows(tmp_path / name))


@pytest.mark.parametrize("piece", [1, 2, 3, 5, 8, 13, 2**20])
@pytest.mark.parametrize("style", [{}, {"indent": 1, "ensure_ascii": False}])
def test_a_json_list_is_read_in_pieces_as_its_lines_are(tmp_path, monkeypatch, piece, style):
    """Wherever a piece ends: within an escape, a number, a word."""
    monkeypatch.setattr(json_text, "READ_AT_ONCE", piece)
    rows = [{"a": 'x"\\ [{,}] \u20ac\U0001f600', "b": [-1.5e-3, {"c": None}]}, {}, {"n": 123456, "t": True}]
    text = f" \n{json.dumps(rows, **style)}\n"
    for name, content in (("a.json", text.encode()), ("a.json.gz", packed(text.encode("utf-8-sig")))):
        (tmp_path / name).write_bytes(content)
        expected = [(f"{tmp_path / name}, row {number}", row) for number, row in enumerate(rows)]
        assert [*read_rows(tmp_path / name)] == expected
    (tmp_path / "none.json").write_text("[ ]")
    assert not [*read_rows(tmp_path / "none.json")]


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.TAB", "a.csv.gz"])
def test_cells_are_parted_by_commas_semicolons_or_tabs(tmp_path, name):
    frame = pd.DataFrame({"a, b": ['x;"y", z\t', "\n"], "c;": ["1,5", "'"], "d": ["", '\\"']})
    for delimiter in ",;\t":
        for encoding in ("utf-8", "utf-8-sig", "utf-16"):
            options = {"encoding": encoding, "compression": "gzip" if name.endswith("gz") else None}
            frame.to_csv(tmp_path / name, sep=delimiter, index=False, **options)
            assert [row for _, row in read_rows(tmp_path / name)] == frame.to_dict("records")
    (tmp_path / name).write_text('a,b\n"say \\"hi\\", now",x\n')
    with pytest.raises(InputError, match=r"line 2: broken CSV .* is written twice"):
        list(read_rows(tmp_path / name))


def test_folders_of_datasets_are_read_split_by_split(tmp_path):
    from datasets import Dataset, DatasetDict

    rows = Dataset.from_list(ROWS)
    rows.save_to_disk(tmp_path / "alone")
    DatasetDict(train=rows).save_to_disk(tmp_path / "single")
    DatasetDict(train=rows, test=rows.select([1])).save_to_disk(tmp_path / "both")
    (tmp_path / "files").mkdir()
    rows.to_parquet(tmp_path / "files/a.parquet")
    for name in ("alone", "single", "single:train", "both:train", "both/train", "files"):
        source = f"{tmp_path}/{name}"
        assert [*read_rows(source)] == [(f"{source}, row {number}", row) for number, row in enumerate(ROWS)]
    found = [*fetch_rows(str(tmp_path / "files"), split="train")]
    assert found == [(f"{tmp_path}/files, train row {number}", row) for number, row in enumerate(ROWS)]
    (tmp_path / "empty").mkdir()
    for source, words in (
        (f"{tmp_path}/both", f"name a split as {tmp_path}/both:SPLIT, of train, test"),
        (f"{tmp_path}/both:dev", "of train, test"),
        (f"{tmp_path}/alone:train", "alone:SPLIT, of none"),
        (f"{tmp_path}/empty", "cannot be fetched"),
        (f"{tmp_path}/none", "is no file and no folder"),
        ("lore-tests/nothing:train", "is no file or folder here that can be read, and cannot be fetched"),
    ):
        with pytest.raises(InputError, match=words):
            list(read_rows(source))


def test_rows_of_a_table_are_counted_whatever_its_index(tmp_path):
    frame = pd.DataFrame({"a": ["x", "None", "y"], "b": ["1", "", "nan"]}, index=[7, 0, 7])
    frame.to_parquet(tmp_path / "a.parquet")
    frame.to_csv(tmp_path / "a.csv", index=False, encoding="utf-8-sig")
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(r) + "\n" for r in frame.to_dict("records")))
    for name in ("a.parquet", "a.csv", "a.jsonl"):
        found = list(read_rows(tmp_path / name))
        assert [row for _, row in found] == frame.to_dict("records")
        place = {"a.parquet": "row 2", "a.csv": "line 4", "a.jsonl": "line 3"}[name]  # of a CSV the file's
        assert found[2][0] == f"{tmp_path / name}, {place}"
    frame.set_index("a").to_parquet(tmp_path / "named.parquet")
    assert [row for _, row in read_rows(tmp_path / "named.parquet")] == frame.to_dict("records")


def test_hidden_files_and_second_copies_are_not_read(tmp_path, capsys):
    (tmp_path / "a.json").write_text(TEXT)
    (tmp_path / "._a.json").write_bytes(b"\x00\x05\x16\x07 of macOS")
    (tmp_path / "b.json.gz").write_bytes(packed(TEXT.encode()))
    (tmp_path / "c.json").write_text(TEXT + TEXT)
    assert data_files(tmp_path.iterdir()) == [tmp_path / "a.json", tmp_path / "c.json"]
    copies = [line for line in capsys.readouterr().out.splitlines() if "holds the same as" in line]
    assert copies == [f"{tmp_path / 'b.json.gz'} holds the same as {tmp_path / 'a.json'}: left out"]
