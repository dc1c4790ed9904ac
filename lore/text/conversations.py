"""Conversations: texts, and the files and Hub data sets that they come from."""

import codecs
import csv
import gzip
import hashlib
import io
import json
import re
import zlib
from itertools import chain
from pathlib import Path

from lore.common import InputError, require
from lore.text.json_text import SURROGATE, JsonText

BESIDE_CONTENT = ("tool_calls", "function_call", "reasoning_content", "reasoning", "thinking")
LARGEST_CELL = 2**31 - 1  # characters of a CSV file
ROWS_AT_ONCE = 100  # of a parquet file
READ_AT_ONCE = 2**20  # bytes of one of its columns
PARQUET_MARK = b"PAR1"  # its first bytes
STRANGE_MARKS = {  # first bytes of what is not read, and what to do with it
    b"PK\x03\x04": "a spreadsheet or a zip archive; save the sheet as CSV, or unpack the archive",
    b"ARROW1": "an Arrow file; name the folder that datasets.save_to_disk wrote, or store it as parquet",
    b"\xff\xff\xff\xff": "an Arrow file; name the folder that datasets.save_to_disk wrote",
    b"\x28\xb5\x2f\xfd": "packed by zstd; unpack it first",
    b"BZh": "packed by bzip2; unpack it first",
    b"\xfd7zXZ": "packed by xz; unpack it first",
    b"\x80\x04": "a pickle, which is not opened; store it as JSON lines",
    b"\x80\x05": "a pickle, which is not opened; store it as JSON lines",
}
DELIMITERS = (",", ";", "\t")  # of the cells of a table
TABLES = (".csv", ".tsv", ".tab")
PANDAS_INDEX = re.compile(r"__index_level_\d+__")  # a column of numbers without a name
GZIP_MARK = b"\x1f\x8b"  # the first bytes of a packed file, whatever its name
SAVED_MARKS = ("state.json", "dataset_dict.json")  # files in a folder of datasets.save_to_disk
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
DAMAGE = (EOFError, gzip.BadGzipFile, zlib.error, UnicodeError)


def open_unpacked(path):
    """The bytes of a file, unpacked where it is gzip by its content: names are often wrong."""
    with open(path, "rb") as file:
        packed = file.read(len(GZIP_MARK)) == GZIP_MARK
    return gzip.open(path) if packed else open(path, "rb")


def open_text(path, newline=None):
    """Its text in UTF-8, or in UTF-16 where it begins as that; a byte-order mark is no part of it.

    newline: None = every line end is read as "\\n", "" = as it is.
    """
    with open_unpacked(path) as file:
        mark = file.read(2)
    wide = mark in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    encoding = "utf-16" if wide else "utf-8-sig"
    return io.TextIOWrapper(open_unpacked(path), encoding=encoding, newline=newline)


def damage(error):
    """What one of DAMAGE means, for an error."""
    wrong = isinstance(error, UnicodeError)
    return f"damaged file ({error})" + ("; or in another encoding: save it as UTF-8" if wrong else "")


def read_json_lines(path):
    """Yield (line number, object) of a JSON-lines file, packed or not; blank lines hold nothing.

    InputError, with file and line: what is no JSON object, a file that is something else.
    """
    number = 0
    try:
        with open_text(path) as file:
            for number, line in enumerate(file, start=1):
                if number == 1:
                    refuse_stand_in(path, line)
                line = line.removeprefix("\ufeff")  # of files that were joined
                if line.strip():
                    yield number, parse_object(path, number, line)
    except DAMAGE as error:
        raise InputError(f"{path}, after line {number}: {damage(error)}") from error


def refuse_stand_in(path, line):
    """InputError where the first line is of what a failed download leaves in place of the data."""
    if line.lstrip().startswith("<"):
        raise InputError(f"{path} is a web page under the name of a data file; download it again")
    if line.startswith("version https://git-lfs"):
        raise InputError(f"{path} is a Git LFS pointer, not the data; fetch it with: git lfs pull")


def parse_object(path, number, line):
    """The object of one line. InputError: broken JSON, or something else than an object."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        reason = getattr(error, "msg", str(error))
        cut = "" if line.endswith("\n") else ", and no line end: cut off here? download it again"
        if line.strip() == "{":
            cut = "; one object on every line is needed, or a list of objects"
        elif not line.lstrip().startswith(("{", "[", '"')):
            cut = f"; a table of cells is known by its name, {' or '.join(TABLES)}"
        raise InputError(f"{path}, line {number}: broken JSON ({reason}){cut}") from error
    if not isinstance(row, dict):
        raise InputError(f"{path}, line {number}: not a JSON object; one on every line is needed")
    return row


def read_json_list(path):
    """Yield (file and row, object) of a file that is one JSON list, of which a piece is in memory at a time.

    InputError, with file and row: broken JSON, something else than objects.
    """
    number = 0
    try:
        with open_text(path) as file:
            text = JsonText(file)
            separator = text.next_sign()  # the bracket
            while separator != "]":
                where = f"{path}, row {number}"
                text.pass_sign()
                if text.next_sign() == "]" and not number:
                    break
                is_object = text.next_sign() == "{"
                require(is_object, f"{where}: not a JSON object; a list of objects is needed")
                yield where, text.value()
                number += 1
                separator = text.next_sign()
                follows = separator in (",", "]")
                require(
                    follows, f"{where}: broken JSON (no comma behind it); cut off here? download it again"
                )
            text.pass_sign()
            alone = not text.next_sign()
            require(alone, f"{path}: more follows the list; one list is needed, or an object on every line")
    except (json.JSONDecodeError, RecursionError) as error:
        reason = getattr(error, "msg", str(error))
        raise InputError(
            f"{path}, row {number}: broken JSON ({reason}); cut off here? download it again"
        ) from error
    except DAMAGE as error:
        raise InputError(f"{path}, after row {number}: {damage(error)}") from error


def read_rows(source):
    """Yield (file and line, row as a dictionary) of a file, a folder or a data set of the Hub.

    A file is parquet by its content, a table of cells by its name, a list or lines of JSON by its first
    sign. A few rows are in memory at a time. Every cell of a table is text.
    """
    if not Path(source).is_file():
        yield from read_data_set(source)
        return
    if is_table(source):
        yield from read_csv(source)
        return
    with open(source, "rb") as file:
        start = file.read(8)
    for mark, kind in STRANGE_MARKS.items():
        require(not start.startswith(mark), f"{source} is {kind}")
    if start.startswith(PARQUET_MARK) or Path(source).suffix.lower() == ".parquet":
        yield from read_parquet(source)
    elif first_sign(source) == "[":
        yield from read_json_list(source)
    else:
        for number, row in read_json_lines(source):
            yield f"{source}, line {number}", row


def first_sign(path):
    """The first character that is no space. InputError: a damaged file."""
    try:
        with open_text(path) as file:
            return JsonText(file).next_sign()
    except DAMAGE as error:
        raise InputError(f"{path}: {damage(error)}") from error


def is_table(path):
    return Path(path).name.lower().removesuffix(".gz").endswith(TABLES)


def delimiter_of(line):
    """What parts most cells of a table's first line; a comma where nothing parts more."""

    def cells(delimiter):
        try:
            return len(next(csv.reader([line], delimiter=delimiter, strict=True), []))
        except csv.Error:
            return 0

    return max(DELIMITERS, key=cells)


def read_csv(path, columns=None):
    """Yield (file and line, {column: text}) of a table, packed or not, one row in memory at a time.

    Its cells are parted by commas, semicolons or tabs. columns: those that are wanted, None = all.
    InputError, with file and line: a column missing or twice, a row of more or fewer cells than the
    first, a file cut off, or that is something else.
    """
    csv.field_size_limit(LARGEST_CELL)
    try:
        with open_text(path, newline="") as file:
            lines = watched(path, file)
            first = next(lines, "")
            rows = csv.reader(chain([first], lines), delimiter=delimiter_of(first), strict=True)
            header = [name.strip() for name in next(rows, [])]
            refuse_stand_in(path, header[0] if header else "")
            positions = columns_of(path, header, columns)
            line = rows.line_num + 1
            for cells in rows:
                where = f"{path}, line {line}"  # where the row begins
                line = rows.line_num + 1
                if not cells:  # a blank line
                    continue
                if len(cells) != len(header):
                    counts = f"{len(cells)} cells for {len(header)} columns"
                    raise InputError(f"{where}: {counts}; cut off here? download it again")
                yield where, {name: cells[position] for name, position in positions.items()}
    except csv.Error as error:
        quotes = 'a quote within a quoted cell is written twice, ""'
        reason = f"broken CSV ({error}): {quotes}; or is the file cut off here?"
        raise InputError(f"{path}, line {rows.line_num}: {reason}") from error
    except DAMAGE as error:
        raise InputError(f"{path}: {damage(error)}") from error


def watched(path, file):
    """The lines of a file; says so where the last one has no end, which a CSV file may have or have lost."""
    line = "\n"
    for line in file:
        yield line
    if not line.endswith(("\n", "\r")):
        print(f"{path}: its last line has no end; if the file was cut off there, download it again")


def columns_of(path, header, columns):
    """{column: position} of those wanted, None = all with a name. InputError: one is missing or there twice."""
    wanted = [name for name in header if name] if columns is None else columns
    for name in wanted:
        if header.count(name) != 1:
            times = "twice" if name in header else "missing"
            raise InputError(f"{path}: the column {name} is {times}")
    return {name: header.index(name) for name in wanted}


def read_parquet(path, columns=None):
    """Yield (file and row, {column: value}) of a parquet file, a few rows in memory at a time.

    columns: those that are wanted, None = all. Values are as they stand there: whole numbers stay whole
    beside an empty cell. InputError: a column missing or twice, or no parquet.
    """
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        file = ParquetFile(path, buffer_size=READ_AT_ONCE, pre_buffer=False)
        names = [name for name in file.schema_arrow.names if not PANDAS_INDEX.fullmatch(name)]
    except (OSError, ValueError, ArrowException) as error:
        raise InputError(f"{path} cannot be read: {first_line(error)}") from error
    wanted = [*columns_of(path, names, columns)]
    number = 0
    with file:
        try:
            for batch in file.iter_batches(ROWS_AT_ONCE, columns=wanted):
                for row in batch.to_pylist():
                    yield f"{path}, row {number}", row
                    number += 1
        except (OSError, ValueError, ArrowException) as error:
            reason = f"cannot be read after row {number}: {first_line(error)}"
            raise InputError(f"{path} {reason}") from error


def fetch_rows(name, **options):
    """Yield (place, row) of a Hub data set; options are those of `load_dataset`. InputError: not to be had."""
    from datasets import Dataset, load_dataset

    try:
        loaded = load_dataset(name, **options)
    except (OSError, ValueError) as error:
        reason = f"no file or folder here, and cannot be fetched: {first_line(error)}"
        raise InputError(f"{name} is {reason}") from error
    splits = {options["split"]: loaded} if isinstance(loaded, Dataset) else loaded
    for split, rows in splits.items():
        for number, row in enumerate(rows):
            yield f"{name}, {split} row {number}", row


def read_data_set(source):
    """Yield (place, row) of what `datasets` has: a folder, or NAME of the Hub; :SPLIT or :CONFIG:SPLIT behind it.

    InputError: neither there nor to be had, or several splits of which none is named.
    """
    name, *choice = str(source).split(":")
    is_folder = Path(name).is_dir()
    on_hub = HUB_NAME.fullmatch(name) and not name.lower().endswith(
        (*TABLES, ".json", ".jsonl", ".parquet", ".gz")
    )
    require(is_folder or on_hub, f"{source} is no file and no folder")
    from datasets import Dataset, load_dataset, load_from_disk
    from datasets.exceptions import DatasetsError
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()  # the error says what each of its trials would
    try:
        if is_folder and any((Path(name) / mark).exists() for mark in SAVED_MARKS):
            loaded = load_from_disk(name)
        else:
            loaded = load_dataset(name, *choice[:-1])
    except (OSError, ValueError, DatasetsError) as error:
        what = "a folder that `datasets` cannot read" if is_folder else "no file here, and cannot be fetched"
        raise InputError(f"{name} is {what}: {first_line(error)}") from error
    splits = {"": loaded} if isinstance(loaded, Dataset) else loaded
    split = choice[-1] if choice else next(iter(splits))
    require(not choice or "" not in splits, f"{source}: {name} has no splits; name it as {name}")
    if split not in splits or (len(splits) > 1 and not choice):
        raise InputError(f"{source} has the splits {', '.join(splits)}: name it {name}:{next(iter(splits))}")
    for number, row in enumerate(splits[split]):
        yield f"{source}, row {number}", row


def find_file(source, name):
    """Path of one file of a data set: in a local folder, or fetched from the Hub. InputError: neither.

    For JSON lines as they are: a data set's own loader hides line numbers.
    """
    if Path(source).is_dir():
        if not (Path(source) / name).is_file():
            raise InputError(f"{Path(source) / name} is missing")
        return Path(source) / name
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(source, name, repo_type="dataset"))
    except (OSError, ValueError) as error:
        reason = f"its {name} cannot be fetched: {first_line(error)}"
        raise InputError(f"{source} is no folder here, and {reason}") from error


def first_line(error):
    return str(error).strip().split("\n", 1)[0]


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
    try:
        with open_unpacked(path) as file:
            return hashlib.file_digest(file, "sha256").digest()
    except DAMAGE as error:
        raise InputError(f"{path}: {damage(error)}") from error


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
        if not isinstance(content, str):
            kind = type(content).__name__
            start = repr(str(content)[:60])
            raise InputError(f"{where}the content of a message is a {kind}, not text: {start}")
        if SURROGATE.search(content):
            start = repr(content[:60])
            raise InputError(f"{where}half a character (a lone surrogate) in the text {start}")


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
