"""Text to vectors on disk: each distinct conversation once, in parts that outlast a crash."""

import fcntl
import hashlib
import json
import os
import shutil
import socket
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from lore.common import InputError, written_whole
from lore.conversations import distinct
from lore.encoder import Tally
from lore.packing import parts_of
from lore.processes import by_first_process, from_first, rank, world
from lore.tables import Split, save_split


@contextmanager
def claimed(folder):
    """The right to write here, which ends with the process, however that ends. InputError: another process has it."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            owner = file.read()
            raise InputError(
                f"{folder} is being written by {owner}; wait, or choose another --data"
            ) from error
        except OSError as error:
            print(
                f"{folder} cannot be locked on this file system ({error}): start no second process on it"
            )
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


def part_key(fingerprint, rows):
    return hashlib.sha256(json.dumps([fingerprint, rows]).encode()).hexdigest()


def save_part(file, key, vectors, head):
    tensors = {"vectors": vectors} | ({} if head is None else {"head": head})
    with written_whole(file) as temporary:
        save_file(tensors, temporary, {"key": key, "sha256": hash_of(vectors, head)})


def read_part(file, key):
    """(vectors, head) of a finished part; None where the file is missing, damaged, or of something else."""
    try:
        with safe_open(file, framework="pt") as opened:
            header, vectors = opened.metadata() or {}, opened.get_tensor("vectors")
            head = opened.get_tensor("head") if "head" in opened.keys() else None  # noqa: SIM118, not a dict
    except (SafetensorError, OSError):
        return None
    return (
        (vectors, head)
        if (header.get("key"), header.get("sha256")) == (key, hash_of(vectors, head))
        else None
    )


def hash_of(*tensors):
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(b"" if tensor is None else tensor.flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def finished(path, encoder, fingerprint):
    """Whether the Split is there already. InputError: one of another model, settings or text is."""
    if not (Path(f"{path}.safetensors").exists() and Path(f"{path}.parquet").exists()):
        return False
    try:
        with safe_open(f"{path}.safetensors", framework="pt") as file:
            found = file.metadata() or {}
    except SafetensorError as error:
        raise InputError(
            f"{path}.safetensors is damaged ({error}); delete it and start again"
        ) from error
    if found.get("model") != str(encoder.identity):
        raise InputError(
            f"{path}.safetensors was made with {found.get('model')}, this run has {encoder.identity};"
            " use the same settings or another --data"
        )
    if "fingerprint" not in found:
        raise InputError(
            f"{path}.safetensors is not of this script, or of an older version; delete it and start again"
        )
    if found["fingerprint"] != fingerprint:
        raise InputError(
            f"{path}.safetensors was made of other text, perhaps with another --limit;"
            " delete it and its .parquet, or choose another --data"
        )
    return True


def begin(path, folder, keys, manifest, part_bytes):
    """Numbers of the parts still to compute. InputError: parts of another run, too little disk."""
    found = folder / "manifest.json"
    if found.exists():
        before = json.loads(found.read_text())
        for name, value in manifest.items():
            if before.get(name) != value:
                raise InputError(
                    f"{folder} holds an interrupted run whose {name} is {before.get(name)!r}, not {value!r};"
                    " go on with the same, or delete that folder"
                )
    else:
        with written_whole(found) as file:
            file.write_text(json.dumps(manifest, indent=1))
    for leftover in (*folder.glob("*.tmp"), *path.parent.glob(f"{path.name}.*.tmp")):
        leftover.unlink()
    pending = []
    for number, key in enumerate(keys):
        file = part_file(folder, number)
        if read_part(file, key) is None:
            pending.append(number)
            if file.exists():
                print(f"{file} is damaged, or of another version: computed again")
    if len(pending) < len(keys):
        print(f"{len(keys) - len(pending)} of {len(keys)} parts are there already")
    needed, free = (
        sum(part_bytes[i] for i in pending) + sum(part_bytes),
        shutil.disk_usage(folder).free,
    )
    if needed > free:
        raise InputError(
            f"{folder}: needs {needed / 1e6:,.2f} MB of disk, {free / 1e6:,.2f} MB are free"
        )
    return pending


def part_file(folder, number):
    return folder / f"{number:05d}.safetensors"


def merge(path, folder, parts, keys, split, fingerprint):
    """Put the parts together to the Split at PATH."""

    def part(number):
        found = read_part(part_file(folder, number), keys[number])
        if found is None:
            raise InputError(f"{part_file(folder, number)} is missing or damaged; start again")
        return found

    blocks = ((rows, part(number)[0]) for number, rows in enumerate(parts))
    save_split(path, split._replace(head=part(0)[1]), blocks, fingerprint=fingerprint)


@by_first_process
def clean_up(folder):
    """Delete the parts of a table that is there, the lock being given back: a new owner finds the table."""
    shutil.rmtree(folder, ignore_errors=True)


def embed_split(path, frame, encoder, columns=("chosen", "rejected"), made_from=""):
    """Embed the conversations of a frame and save the Split at PATH; goes on where a run was interrupted.

    frame: conversations in `columns`, which become their row numbers, plus ids; made_from: what the reader of the Split
    compares with its source. Several processes share the parts; what they make does not depend on how many there are.
    InputError where PATH, or what is there of it, was made of other text or in another way.
    """
    path, folder = Path(path), Path(f"{path}.parts")
    conversations, rows = distinct(
        [conversation for name in columns for conversation in frame[name]]
    )
    numbers = np.array(rows).reshape(len(columns), len(frame))
    frame = frame.assign(**dict(zip(columns, numbers))).reset_index(drop=True)
    content = hashlib.sha256(json.dumps([encoder.identity, frame.to_csv(), made_from]).encode())
    for conversation in conversations:
        content.update(json.dumps(conversation).encode())
    fingerprint = content.hexdigest()
    parts = parts_of(conversations, encoder.packs)
    keys = [part_key(fingerprint, rows) for rows in parts]
    shape = (len(conversations), encoder.num_features)
    manifest = {name: str(value) for name, value in encoder.identity.items()}
    manifest |= {
        "share": encoder.packs,
        "fingerprint of the text": fingerprint,
        "parts": len(parts),
    }

    with ExitStack() as held:

        def prepare():
            if not finished(path, encoder, fingerprint):
                held.enter_context(claimed(folder))
                if not finished(path, encoder, fingerprint):  # by a process that has ended just now
                    width = encoder.num_features * encoder.dtype.itemsize
                    return begin(
                        path, folder, keys, manifest, [width * len(rows) for rows in parts]
                    )
            print(f"{path}: done already")
            return None

        pending = from_first(prepare)
        if pending is None:
            return clean_up(folder)
        print(f"{path}: {len(frame)} rows, {len(conversations)} distinct conversations")
        mine = pending[rank() :: world()]
        to_do = [[conversations[i] for i in parts[number]] for number in mine]
        with Tally([conversation for part in to_do for conversation in part]) as tally:
            for number, vectors in zip(mine, encoder.embed_parts(to_do, tally)):
                save_part(part_file(folder, number), keys[number], vectors, encoder.head)
        tally.report()
        table = torch.empty(shape, dtype=encoder.dtype, device="meta")
        split = Split(table, frame, None, str(encoder.identity), made_from)
        from_first(lambda: merge(path, folder, parts, keys, split, fingerprint))
    clean_up(folder)
