"""What the scripts of apply/ write: all of it can be written, which is known before the model is loaded, and
nothing of the user's is lost.

A file that is there already is replaced only where the same script has written it; its name says what
is in it; links stay links; what is written is there whole, or not at all.
"""

import json
import os
import shutil
from contextlib import contextmanager
from pathlib import Path

from lore.common import require, require_apart, require_writable
from lore.text.conversations import read_json_lines

ROWS = (".jsonl", ".json", ".ndjson", "")  # suffixes of JSON lines, before .gz
REPLIES = ("response", "messages", "candidates")  # of which each row that is written has some
PAGE = (".html", ".htm", "")
TITLE = "<title>LoRe: "


def require_output(path, read, suffixes, beside=()):
    """InputError: no name, one of another format, what is read as well, what cannot be written.

    read: paths of what is read; beside: further paths that are written.
    """
    require(path, "where to? name a file with --output")
    require(not path.endswith(os.sep), f"--output {path} is a folder's name; name a file")
    require_apart([path, *beside], read)
    suffix = Path(path.removesuffix(".gz") if suffixes == ROWS else path).suffix.lower()
    formats = " or ".join(filter(None, suffixes))
    require(suffix in suffixes, f"--output {path}: what is written is {formats}; give it such a name")


def require_ours(path, is_ours):
    """InputError: a file is there that is not of this script, and would be lost."""
    if not is_filled(path):
        return
    try:
        ours = is_ours(Path(path))
    except (ValueError, KeyError, TypeError, AttributeError):  # an InputError is a ValueError
        ours = False
    text = "is there, not written by this script, and would be lost"
    require(ours, f"{path} {text}; name another file, or delete it")


def is_filled(path):
    return Path(path).exists() and Path(path).stat().st_size > 0


def require_rows(path, read, field, beside=()):
    """Before rows are written that have this field. InputError: see require_output and require_ours."""
    require_output(path, read, ROWS, beside)

    def is_ours(file):
        _, row = next(read_json_lines(file), ("", {}))
        return field in row and row.keys() & {*REPLIES}

    require_ours(path, is_ours)


def require_page(path, read):
    """Before a page of HTML is written."""
    require_output(path, read, PAGE)
    require_ours(path, lambda file: TITLE in file.read_text(encoding="utf-8")[:1000])


def require_results(prefix, output, picture=False):
    """Before PREFIX.json is written beside an output, and PREFIX.png as a picture. InputError: of something else."""

    def is_ours(file):
        results = json.loads(file.read_text(encoding="utf-8"))
        settings = results["settings"]
        return "rows" in results and Path(settings["output"]).name == Path(output).name

    require_ours(f"{prefix}.json", is_ours)
    if picture:
        require_ours(f"{prefix}.png", lambda _: Path(f"{prefix}.json").exists())


def require_folder(path):
    """Before a folder is written. InputError: no name, something is there, it cannot be made."""
    require(path, "where to? name a new folder with --output")
    require(not os.path.lexists(path), f"{path} is there already; name a new folder, or delete it")
    require_writable(path)


@contextmanager
def whole_folder(path):
    """A temporary folder that is renamed to PATH when the block ends well, removed otherwise."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.mkdir()
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
