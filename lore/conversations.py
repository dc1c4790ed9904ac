"""Conversations: texts, and where they come from."""

import gzip
import hashlib
import json
import re
import zlib
from pathlib import Path

from lore.common import InputError

SURROGATE = re.compile("[\ud800-\udfff]")  # JSON may hold one, no tokenizer takes it


def read_json_lines(path):
    """Yield (line number, object) of a plain or gzipped JSON-lines file. InputError with file and line."""
    opener = gzip.open if Path(path).suffix == ".gz" else open
    number = 0
    try:
        with opener(path, "rt", encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if number == 1 and line.lstrip().startswith("<"):
                    raise InputError(
                        f"{path} is a web page under the name of a data file; download it again"
                    )
                if number == 1 and line.startswith("version https://git-lfs"):
                    raise InputError(
                        f"{path} is a Git LFS pointer, not the data; fetch it with: git lfs pull"
                    )
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise InputError(f"{path}, line {number}: not a JSON object")
                yield number, row
    except json.JSONDecodeError as error:
        cut = (
            ""
            if line.endswith("\n")
            else ", and no line end: the file is cut off here; download it again"
        )
        raise InputError(f"{path}, line {number}: broken JSON ({error.msg}){cut}") from error
    except (EOFError, gzip.BadGzipFile, zlib.error, UnicodeDecodeError) as error:
        raise InputError(f"{path}, after line {number}: damaged file ({error})") from error


def exchange(prompt, reply):
    """One prompt and its reply as a conversation."""
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": reply}]


def distinct(conversations):
    """(conversations without repeats, row of each one given among them). InputError: a content that is not text."""
    rows, unique = {}, []
    numbers = []
    for conversation in conversations:
        for message in conversation:
            if not isinstance(message["content"], str):
                kind = type(message["content"]).__name__
                raise InputError(
                    f"the content of a message is a {kind}, not text: {str(message['content'])[:60]!r}"
                )
            if SURROGATE.search(message["content"]):
                raise InputError(
                    f"half a character (a lone surrogate) in the text {message['content'][:60]!r}"
                )
        key = hashlib.sha256(json.dumps(conversation).encode()).digest()
        if key not in rows:
            rows[key] = len(unique)
            unique.append(conversation)
        numbers.append(rows[key])
    return unique, numbers
