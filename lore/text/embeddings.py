"""Text to vectors on disk: each distinct conversation once, in parts that outlast a crash."""

import fcntl
import hashlib
import itertools
import json
import os
import shutil
import socket
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pyarrow import ArrowException, parquet
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from lore.common import InputError, require, told_as, written_whole
from lore.processes import by_first_process, from_first, rank, world
from lore.splits import Split, identity_of, save_split
from lore.text.conversations import distinct, text_bytes
from lore.text.encoder import Encoder, Vectors
from lore.text.packing import split_into_parts
from lore.text.throughput import Tally


@contextmanager
def lock_folder(folder):
    """The right to write here, which ends with the process, however that ends.

    InputError: another process has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            hint = "wait, or choose another --data"
            raise InputError(f"{folder} is being written by {file.read()}; {hint}") from error
        except OSError as error:
            hint = "start no second process on it"
            print(f"{folder} cannot be locked on this file system ({error}): {hint}")
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


# ------------------------------------------------------------------------------------- one part ---


def part_file(folder, number):
    return folder / f"{number:05d}.safetensors"


def save_part(file, key, part, head):
    """Write the Vectors of a part, whole, with the reward head and a hash of all."""
    tensors = {"vectors": part.table, "left_out": torch.tensor(part.left_out, dtype=torch.int64)}
    if head is not None:
        tensors["head"] = head
    with written_whole(file) as temporary:
        save_file(tensors, temporary, {"key": key, "sha256": hash_tensors(tensors)})


def read_part(file, key):
    """(Vectors, head) of a finished part; None where it is missing, damaged, or of something else."""
    tensors = {}
    try:
        with safe_open(file, framework="pt") as opened:
            header = opened.metadata() or {}
            names = opened.keys()
            for name in names:
                tensors[name] = opened.get_tensor(name)
    except (SafetensorError, OSError):
        return None
    if (header.get("key"), header.get("sha256")) != (key, hash_tensors(tensors)):
        return None
    return Vectors(tensors["vectors"], tensors["left_out"].tolist()), tensors.get("head")


def hash_tensors(tensors):
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


# -------------------------------------------------------------------------------------- one run ---


@dataclass
class Run:
    """What is to be embedded, and where it goes; the fields are the arguments of embed_split.

    frame: from here on with row numbers of the conversations; conversations: the distinct ones; folder: of
    the parts, lists of their numbers; made_of: all that the result depends on; keys: one for each part.
    """

    path: Path
    frame: object
    encoder: Encoder
    columns: list
    made_from: str
    whole: str

    def __post_init__(self):
        self.folder = Path(f"{self.path}.parts")
        talks = itertools.chain.from_iterable(self.frame[column] for column in self.columns)
        self.conversations, rows = distinct(talks)
        numbers = np.array(rows).reshape(len(self.columns), len(self.frame))
        self.frame = self.frame.reset_index(drop=True).assign(**dict(zip(self.columns, numbers)))
        content = [self.encoder.identity, self.frame.to_csv(), self.made_from]
        digest = hashlib.sha256(json.dumps(content).encode())
        for conversation in self.conversations:
            digest.update(json.dumps(conversation).encode())
        self.fingerprint = digest.hexdigest()
        self.made_of = self.encoder.identity | {"fingerprint of the text": self.fingerprint}
        self.parts = split_into_parts(self.conversations, self.encoder.packs)
        self.keys = []
        for rows in self.parts:
            of_part = json.dumps([self.fingerprint, rows])
            self.keys.append(hashlib.sha256(of_part.encode()).hexdigest())

    def is_finished(self):
        """Whether the Split is there already. InputError: one of another model, settings or text is."""
        table = f"{self.path}.safetensors"
        if not (Path(table).exists() and Path(f"{self.path}.parquet").exists()):
            return False
        kinds = (SafetensorError, ArrowException, OSError)
        damage = told_as(f"{table} or its .parquet is damaged", *kinds, then="delete both and start again")
        with damage, safe_open(table, framework="pt") as file:
            header = file.metadata() or {}
            parquet.read_metadata(f"{self.path}.parquet")
        before = identity_of(header.get("model", "")) or {}
        require_same(table, before | {"fingerprint of the text": header.get("fingerprint")}, self.made_of)
        return True

    def require_same_run(self):
        """Write what the parts are made of. InputError: the folder holds parts of something else."""
        file = self.folder / "manifest.json"
        made_of = self.made_of | {"share": self.encoder.packs}
        if file.exists():
            then = f"delete {self.folder} and start again"
            with told_as(f"{file} is damaged", ValueError, TypeError, then=then):
                before = dict(json.loads(file.read_text()))
            require_same(self.folder, before, made_of)
        with written_whole(file) as temporary:
            temporary.write_text(json.dumps(made_of, indent=1))

    def unfinished_parts(self):
        """Numbers of the parts that are still to be computed."""
        pending = []
        for number, key in enumerate(self.keys):
            file = part_file(self.folder, number)
            if read_part(file, key) is None:
                pending.append(number)
                if file.exists():
                    print(f"{file} is damaged, or of other text: computed again")
        if len(pending) < len(self.keys):
            print(f"{len(self.keys) - len(pending)} of {len(self.keys)} parts are there already")
        return pending

    def require_disk(self, pending):
        """InputError: no room for the parts that are pending, and for the table beside all parts."""
        vectors = len(self.conversations)
        vectors += sum(len(self.parts[number]) for number in pending)
        needed = vectors * self.encoder.num_features * self.encoder.dtype.itemsize
        free = shutil.disk_usage(self.folder).free
        sizes = f"needs {needed / 1e6:,.2f} MB of disk, {free / 1e6:,.2f} MB are free"
        require(needed <= free, f"{self.folder}: {sizes}")

    def start(self, held):
        """Numbers of the parts to compute, the folder locked until `held` ends; None: all is done."""
        if not self.is_finished():
            held.enter_context(lock_folder(self.folder))
            if not self.is_finished():  # by a process that has ended just now
                self.require_same_run()
                half_written = self.path.parent.glob(f"{self.path.name}.*.tmp")
                for file in (*self.folder.glob("*.tmp"), *half_written):
                    file.unlink()
                pending = self.unfinished_parts()
                self.require_disk(pending)
                return pending
        print(f"{self.path}: done already")
        return None

    def compute(self, numbers):
        """Embed parts and save each of them."""
        texts = []
        for number in numbers:
            texts.append([self.conversations[row] for row in self.parts[number]])
        with Tally(sum(map(text_bytes, itertools.chain(*texts)))) as tally:
            for number, part in zip(numbers, self.encoder.embed_parts(texts, tally)):
                file = part_file(self.folder, number)
                save_part(file, self.keys[number], part, self.encoder.head)
        tally.report()

    def read(self, number):
        """(Vectors, head) of a part. InputError: it is not there any more."""
        file = part_file(self.folder, number)
        part = read_part(file, self.keys[number])
        require(part, f"{file} is missing or damaged; start again")
        return part

    def merge(self):
        """Put the parts together to the Split, without the conversations that are left out."""
        too_long = np.zeros(len(self.conversations), dtype=bool)
        for number, rows in enumerate(self.parts):
            part, head = self.read(number)
            too_long[[rows[i] for i in part.left_out]] = True
        frame = self.leave_out(too_long)
        new_row = np.cumsum(~too_long) - 1  # of a conversation, where the others are gone
        for column in self.columns:
            frame[column] = new_row[frame[column].to_numpy()]

        def blocks():
            for number, rows in enumerate(self.parts):
                staying = [row for row in rows if not too_long[row]]
                yield new_row[staying], self.read(number)[0].table

        shape = (int((~too_long).sum()), self.encoder.num_features)
        table = torch.empty(shape, dtype=self.encoder.dtype, device="meta")
        split = Split(table, frame, head, json.dumps(self.encoder.identity), self.made_from)
        save_split(self.path, split, blocks(), fingerprint=self.fingerprint)

    def leave_out(self, too_long):
        """The frame without the rows of conversations that are too long, and says how many go."""
        lost = too_long[self.frame[list(self.columns)].to_numpy()].any(axis=1)
        way_out = "a larger --max_length, or another model"
        if lost.any() and len(self.columns) == 1 and not self.whole:
            reply = self.conversations[int(too_long.argmax())][-1]["content"][:60]
            text = f"longer than the model takes is the reply {reply!r} alone; {way_out}"
            raise InputError(f"{self.path}: {text}")
        if self.whole:
            lost = self.frame[self.whole].isin(self.frame[self.whole][lost]).to_numpy()
        if lost.any():
            kind = f" (every row of the same {self.whole})" if self.whole else ""
            why = f"the replies of {too_long.sum()} conversations alone are longer than the model takes"
            print(f"{self.path}: {lost.sum()} of {len(lost)} rows left out{kind}: {why}")
        require(not lost.all(), f"{self.path}: no row is left; {way_out}")
        return self.frame[~lost].reset_index(drop=True)


def require_same(file, before, made_of):
    """InputError: what is there was made of something else."""
    for name, value in made_of.items():
        differ = f"made with {name} = {before.get(name)!r}, this run has {value!r}"
        way_out = "take the same settings and text (--limit), delete it, or choose another --data"
        require(before.get(name) == value, f"{file} was {differ}; {way_out}")


@by_first_process
def delete_parts(folder):
    """After the table is there and the lock is given back: a new owner finds the table."""
    shutil.rmtree(folder, ignore_errors=True)


def embed_split(path, frame, encoder, columns=("chosen", "rejected"), made_from="", whole=""):
    """Embed the conversations of a frame and save the Split at PATH; goes on where a run was stopped.

    frame: conversations in `columns`, which become their row numbers, plus ids; made_from: what the
    reader of the Split compares with its source; whole: a column whose equal values stay or go together
    where a reply is too long for the model (pairs go one by one; of a single column, none may go without
    it). Several processes share the parts; what they make does not depend on how many there are.
    InputError where PATH, or what is there of it, was made of other text or in another way.
    """
    run = Run(Path(path), frame, encoder, list(columns), made_from, whole)
    with ExitStack() as held:
        pending = from_first(lambda: run.start(held))
        if pending is not None:
            print(f"{path}: {len(frame)} rows, {len(run.conversations)} distinct conversations")
            run.compute(pending[rank() :: world()])
            from_first(run.merge)
    delete_parts(run.folder)
