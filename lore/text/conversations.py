"""Conversations: texts, and the files and Hub data sets that they come from."""

import codecs
import csv
import gzip
import hashlib
import io
import json
import re
import zlib
from itertools import chain, count
from pathlib import Path

from lore.common import require, told_as
from lore.text.json_text import SURROGATE, values_of_list

BESIDE_CONTENT = ("tool_calls", "function_call", "reasoning_content", "reasoning", "thinking")
LARGEST_CELL = 2**31 - 1  # characters of a CSV file
ROWS_AT_ONCE = 100  # of a parquet file
READ_AT_ONCE = 2**20  # bytes of one of its columns
PARQUET_MARK = b"PAR1"  # its first bytes
GZIP_MARK = b"\x1f\x8b"  # the first bytes of a packed file, whatever its name
DELIMITERS = (",", ";", "\t")  # of the cells of a table
TABLES = (".csv", ".tsv", ".tab")
PANDAS_INDEX = re.compile(r"__index_level_\d+__")  # a column of numbers without a name
SAVED_MARKS = ("state.json", "dataset_dict.json")  # files in a folder of datasets.save_to_disk
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
DAMAGE = (EOFError, gzip.BadGzipFile, zlib.error, UnicodeError)
END = object()  # behind the last value of a list
STAND_INS = {b"<": "a web page", b"version https://git-lfs": "a Git LFS pointer"}  # in place of the data
NOT_WHOLE = "cut off here? download it again"


def open_unpacked(path):
    """The bytes of a file, unpacked where it is gzip by its content: names are often wrong."""
    with open(path, "rb") as file:
        packed = file.read(len(GZIP_MARK)) == GZIP_MARK
    return gzip.open(path) if packed else open(path, "rb")


def open_text(path, newline=None):
    """Its text in UTF-8, or in UTF-16 where it begins as that; a byte-order mark is no part of it.

    newline: None = every line end is read as "\\n", "" = as it is. InputError: a failed download.
    """
    with open_unpacked(path) as file:
        beginning = file.read(80)
    for mark, kind in STAND_INS.items():
        require(not beginning.startswith(mark), f"{path} is {kind}, not the data; download it again")
    wide = beginning.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    encoding = "utf-16" if wide else "utf-8-sig"
    return io.TextIOWrapper(open_unpacked(path), encoding=encoding, newline=newline)


def naming_damage(path):
    """For what cannot be unpacked, or is no text."""
    then = "no text, or in another encoding: save it as UTF-8, packed by gzip or not at all"
    return told_as(f"{path}: damaged file", *DAMAGE, then=then)


def read_json_lines(path):
    """Yield (file and line, object) of a JSON-lines file, packed or not; blank lines hold nothing.

    InputError, with file and line: what is no JSON object, a file that is something else.
    """
    with naming_damage(path), open_text(path) as file:
        for number, line in enumerate(file, start=1):
            line = line.removeprefix("\ufeff")  # of files that were joined
            if line.strip():
                where = f"{path}, line {number}"
                with broken_json(where):
                    row = json.loads(line)
                require(isinstance(row, dict), f"{where}: not a JSON object")
                yield where, row


def read_json(path):
    """Yield (file and line or row, object) of a file of JSON lines, or of one list."""
    with naming_damage(path), open_text(path) as file:
        sign = file.read(1)
        while sign.isspace() or sign == "\ufeff":
            sign = file.read(1)
        if sign == "[":
            yield from rows_of_list(path, values_of_list(file))
            return
    yield from read_json_lines(path)


def rows_of_list(path, values):
    """Yield (file and row, object) of the values of a list."""
    for number in count():
        where = f"{path}, row {number}"
        with broken_json(where):
            row = next(values, END)
        if row is END:
            return
        require(isinstance(row, dict), f"{where}: not a JSON object")
        yield where, row


def broken_json(where):
    """For a JSON text that is broken, or nested too deep."""
    form = f"one list of objects is read, or an object on every line; cells of {', '.join(TABLES)} alone"
    return told_as(f"{where}: broken JSON", ValueError, RecursionError, then=f"{form}; {NOT_WHOLE}")


def read_rows(source):
    """(file and line, row as a dictionary) pairs of a file, a folder or a data set of the Hub, one by one.

    A file is parquet by its content, a table of cells by its name, a list or lines of JSON by its first
    sign. A few rows are in memory at a time. Every cell of a table is text.
    """
    require(source, "which rows? name their file with --input")
    if not Path(source).is_file():
        return read_data_set(source)
    if is_table(source):
        return read_csv(source)
    with open(source, "rb") as file:
        is_marked = file.read(len(PARQUET_MARK)) == PARQUET_MARK
    is_parquet = is_marked or Path(source).suffix.lower() == ".parquet"
    return read_parquet(source) if is_parquet else read_json(source)


def is_table(path):
    return Path(path).name.lower().removesuffix(".gz").endswith(TABLES)


def read_csv(path, columns=None):
    """Yield (file and line, {column: text}) of a table, packed or not, one row in memory at a time.

    Its cells are parted by commas, semicolons or tabs. columns: those that are wanted, None = all.
    InputError, with file and line: a column missing or twice, a row of more or fewer cells than the
    first, a file cut off, or that is something else.
    """
    csv.field_size_limit(LARGEST_CELL)
    quotes = f'a quote within a quoted cell is written twice, ""; {NOT_WHOLE}'
    with naming_damage(path), open_text(path, newline="") as file:
        lines = watched(path, file)
        first = next(lines, "")
        rows = csv.reader(chain([first], lines), delimiter=max(DELIMITERS, key=first.count), strict=True)
        with told_as(f"{path}, line 1: broken CSV", csv.Error, then=quotes):
            header = [name.strip() for name in next(rows, [])]
        positions = columns_of(path, header, columns)
        while True:
            where = f"{path}, line {rows.line_num + 1}"  # where the row begins
            with told_as(f"{where}: broken CSV", csv.Error, then=quotes):
                cells = next(rows, None)
            if cells is None:
                return
            if cells:  # no blank line
                counts = f"{len(cells)} cells for {len(header)} columns"
                require(len(cells) == len(header), f"{where}: {counts}; {NOT_WHOLE}")
                yield where, {name: cells[position] for name, position in positions.items()}


def watched(path, file):
    """The lines of a file; says so where the last one has no end, which a CSV file may have or have lost."""
    line = "\n"
    for line in file:
        yield line
    if not line.endswith(("\n", "\r")):
        print(f"{path}: its last line has no end; if the file was cut off there, download it again")


def columns_of(path, header, columns):
    """{column: position} of those wanted, None = all with a name. InputError: one is missing or there twice."""
    positions = {}
    for name in filter(None, header) if columns is None else columns:
        times = "twice" if name in header else "missing"
        require(header.count(name) == 1, f"{path}: the column {name} is {times}")
        positions[name] = header.index(name)
    return positions


def read_parquet(path, columns=None):
    """Yield (file and row, {column: value}) of a parquet file, a few rows in memory at a time.

    columns: those that are wanted, None = all. Values are as they stand there: whole numbers stay whole
    beside an empty cell. InputError: a column missing or twice, or no parquet.
    """
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    options = {"buffer_size": READ_AT_ONCE, "pre_buffer": False}
    unreadable = told_as(f"{path} cannot be read", OSError, ValueError, ArrowException)
    with unreadable, ParquetFile(path, **options) as file:
        names = [name for name in file.schema_arrow.names if not PANDAS_INDEX.fullmatch(name)]
        wanted = [*columns_of(path, names, columns)]
        number = 0
        for batch in file.iter_batches(ROWS_AT_ONCE, columns=wanted):
            for row in batch.to_pylist():
                yield f"{path}, row {number}", row
                number += 1


def fetch_rows(name, **options):
    """Yield (place, row) of a Hub data set; options are those of `load_dataset`. InputError: not to be had."""
    from datasets import load_dataset

    for split, rows in loaded_splits(load_dataset, name, **options).items():
        for number, row in enumerate(rows):
            yield f"{name}, {split or options['split']} row {number}", row


def read_data_set(source):
    """Yield (place, row) of what `datasets` has: a folder, or NAME of the Hub; :SPLIT or :CONFIG:SPLIT behind it.

    InputError: neither there nor to be had, or several splits of which none is named.
    """
    name, *choice = str(source).split(":")
    of_file = name.lower().endswith((*TABLES, ".json", ".jsonl", ".parquet", ".gz"))
    on_hub = HUB_NAME.fullmatch(name) and not of_file
    require(Path(name).is_dir() or on_hub, f"{source} is no file and no folder")
    from datasets import load_dataset, load_from_disk

    if any((Path(name) / mark).exists() for mark in SAVED_MARKS):
        splits = loaded_splits(load_from_disk, name)
    else:
        splits = loaded_splits(load_dataset, name, *choice[:-1])
    split = choice[-1] if choice else next(iter(splits))
    clear = split in splits and (choice or len(splits) == 1)
    require(clear, f"{source}: name a split as {name}:SPLIT, of {', '.join(splits) or 'none'}")
    for number, row in enumerate(splits[split]):
        yield f"{source}, row {number}", row


def loaded_splits(load, name, *choice, **options):
    """{split: rows} that a function of `datasets` loads, "" where there are no splits. InputError: nothing."""
    from datasets import Dataset
    from datasets.exceptions import DatasetsError
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()  # the error says what each of its trials would
    what = "is no file or folder here that can be read, and cannot be fetched"
    with told_as(f"{name} {what}", OSError, ValueError, DatasetsError):
        loaded = load(name, *choice, **options)
    return {"": loaded} if isinstance(loaded, Dataset) else loaded


def find_file(source, name):
    """Path of one file of a data set: in a local folder, or fetched from the Hub. InputError: neither.

    For JSON lines as they are: a data set's own loader hides line numbers.
    """
    if Path(source).is_dir():
        require((Path(source) / name).is_file(), f"{Path(source) / name} is missing")
        return Path(source) / name
    from huggingface_hub import hf_hub_download

    with told_as(f"{source} is no folder here, and its {name} cannot be fetched", OSError, ValueError):
        return Path(hf_hub_download(source, name, repo_type="dataset"))


def data_files(paths):
    """The files to read, by name: no hidden ones (macOS lays "._NAME" beside each), none of the same content twice."""
    first_of = {}
    for path in sorted(map(Path, paths)):
        if path.name.startswith("."):
            continue
        digest = content_hash(path)
        if digest in first_of:
            print(f"{path} holds the same as {first_of[digest]}: left out")
        else:
            first_of[digest] = path
    return list(first_of.values())


def content_hash(path):
    """SHA-256 of the bytes of a file, unpacked. InputError: a damaged file."""
    with naming_damage(path), open_unpacked(path) as file:
        return hashlib.file_digest(file, "sha256").digest()


def exchange(prompt, reply):
    """One prompt and its reply as a conversation."""
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": reply}]


def spoken(message):
    """What is said in a message; the rest, as times and ids, may differ in one prompt."""
    return {name: message[name] for name in ("role", "content", *BESIDE_CONTENT) if name in message}


def text_bytes(conversation):
    """How long its text is, whatever a tokenizer makes of it."""
    return sum(len(message["content"].encode()) for message in conversation)


def require_text(conversation, where=""):
    """InputError, beginning with `where`: a content that is not text, or that no tokenizer takes."""
    for message in conversation:
        content = message["content"]
        start = repr(str(content)[:60])
        kind = type(content).__name__
        require(isinstance(content, str), f"{where}the content of a message is a {kind}, not text: {start}")
        whole = not SURROGATE.search(content)
        require(whole, f"{where}half a character (a lone surrogate) in the text {start}")


def distinct(conversations):
    """(conversations without repeats, row of each one given among them). InputError: see require_text."""
    unique = []
    numbers = []
    row_of = {}
    for conversation in conversations:
        require_text(conversation)
        key = hashlib.sha256(json.dumps(conversation).encode()).digest()
        if key not in row_of:
            row_of[key] = len(unique)
            unique.append(conversation)
        numbers.append(row_of[key])
    return unique, numbers
