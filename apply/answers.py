"""SESSIONS: what people answered on a page, as OwnData/prepare.py and adapt.py read it. Nothing is lost.

A line {user_id, prompt or messages, chosen, rejected, shown_left, rule, time} is on the disk before the page
goes on. The file says what people mean now and nothing else. What is no comparison, "cannot say" and answers
taken back, is appended to a second file beside it, NAME.aside.jsonl, as is a last line that a crash has cut.

    after a crash           who reads SESSIONS sees every answer that a page has confirmed
    a last line cut         no page has confirmed it: set aside at the next start, told
    an answer taken back    goes to the second file first, then SESSIONS is written anew, whole, without it
"""

import fcntl
import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

from lore.common import InputError, require, written_whole
from lore.text.conversations import read_json_lines
from questions import WAYS

CANNOT_SAY = "cannot say"
TAKEN_BACK = "taken back"
CUT = "cut line"
TICK = timedelta(microseconds=1)


class Answers:
    """What stands in SESSIONS and beside it; one process at a time has it.

    rows: those of SESSIONS; unsure: those of "cannot say" that nobody has taken back.
    InputError: another process has it, a broken line that is not the last.
    """

    def __init__(self, path):
        self.path = Path(path)
        self.aside = aside_of(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.hold()
        self.path.touch()  # not later: a file that somebody has moved away is missed, not begun anew
        self.stamps = None  # of the files as they were read
        self.read()

    def hold(self):
        """The right to write, which ends with the process, however that ends."""
        # this one is never replaced, as SESSIONS is; closed with the process
        self.lock = os.open(self.aside, os.O_WRONLY | os.O_CREAT, 0o666)
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"{self.path} is in use by another session; end that one first") from error
        except OSError as error:
            print(f"{self.aside} cannot be locked here ({error}): start no second session on it")

    def mend(self, path):
        """A last line without an end gets it, or goes aside where it is no JSON: it was never confirmed."""
        whole = path.read_bytes()
        last = whole.rpartition(b"\n")[2]
        if not last:
            return
        try:
            json.loads(last)
        except ValueError:
            os.truncate(path, len(whole) - len(last))
            said = {"event": CUT, "time": now(), "line": last.decode(errors="replace")}
            append_line(self.aside, in_bytes(said))
            print(f"{path}: its last line was cut off, no page has confirmed it; it is in {self.aside}")
        else:
            append_line(path, b"\n")

    def read(self):
        """What the files say, read where they are others than before, whoever has changed them."""
        if self.stamps == self.stamps_now():
            return
        self.mend(self.aside)  # first: what is cut off the other goes behind it
        self.mend(self.path)
        self.rows = read_answers(self.path)
        self.unsure = []
        for where, row in read_json_lines(self.aside):
            said = row.get("of") if row.get("event") == TAKEN_BACK else row
            require(row.get("event") == CUT or is_answer(said), f"{where}: not a line of session.py")
            if row["event"] == CANNOT_SAY:
                self.unsure.append(row)
            elif said in self.unsure:
                self.unsure.remove(said)
        self.stamps = self.stamps_now()

    def stamps_now(self):
        """What is another where a file has changed. OSError: it is not there."""
        files = map(os.stat, (self.path, self.aside))
        return [(file.st_ino, file.st_size, file.st_mtime_ns) for file in files]

    def next_time(self):
        """Now, but after all that was answered before, whatever became of the clock."""
        last = max((row["time"] for row in (*self.rows[-1:], *self.unsure[-1:])), default="")
        time = now()
        return time if time > last else (datetime.fromisoformat(last) + TICK).isoformat()

    def of(self, user):
        """(rows, unsure) of one person."""
        chosen = [row for row in self.rows if row["user_id"] == user]
        return chosen, [row for row in self.unsure if row["user_id"] == user]

    def choose(self, row):
        """Append an answer. OSError: it could not be written, and does not count."""
        append_line(self.path, in_bytes(row | {"time": self.next_time()}))

    def pass_over(self, row):
        """Append a "cannot say", `left` and `right` in place of chosen and rejected."""
        append_line(self.aside, in_bytes({"event": CANNOT_SAY} | row | {"time": self.next_time()}))

    def take_back(self, row):
        """Undo a row of either kind. OSError: it could not be written, and still counts."""
        said = {"event": TAKEN_BACK, "user_id": row["user_id"], "of": row, "time": self.next_time()}
        append_line(self.aside, in_bytes(said))
        if row in self.rows:
            staying = [*self.rows]
            staying.remove(row)  # it alone, whatever is like it
            with written_whole(self.path) as temporary:
                temporary.write_bytes(b"".join(map(in_bytes, staying)))


def read_answers(path):
    """The rows of SESSIONS. InputError: it is not there, or has a line of something else."""
    require(Path(path).exists(), f"{path} is missing: nobody has answered yet")
    rows = []
    for where, row in read_json_lines(path):
        require(is_ours(row), f"{where}: not a line of session.py")
        rows.append(row)
    return rows


def aside_of(path):
    """NAME.aside.jsonl of SESSIONS."""
    return Path(path).with_suffix(".aside.jsonl")


def is_answer(row):
    """Whether a row says who dealt with a question, when, and how the question came about."""
    try:
        datetime.fromisoformat(row["time"])
        return isinstance(row["user_id"], str) and row["rule"] in WAYS
    except (KeyError, TypeError, ValueError):
        return False


def is_ours(row):
    """Whether a row is one of SESSIONS."""
    return is_answer(row) and row.get("shown_left") in ("chosen", "rejected")


def now():
    return datetime.now(UTC).isoformat(timespec="microseconds")


def in_bytes(row):
    """A row as a line."""
    return json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def append_line(path, line):
    """The line at the end of a file, on the disk when this returns. OSError: none of it is there."""
    with open(path, "ab", buffering=0) as file:
        size = file.tell()
        try:
            while line:
                line = line[file.write(line) :]
            os.fsync(file.fileno())
        except OSError:
            file.truncate(size)  # where this fails too, the next reading mends it
            raise
