"""What a method made of one population, kept on disk: a study that was interrupted goes on where it was.

A part is FOLDER/KEY.json, the key a hash of the data, the seed and the source that the method runs on: other data or
other code is another part. Of each row it holds whether a pair is right, and its log-loss.
"""

import hashlib
import json
from importlib.metadata import version

import numpy as np
import torch
from measure import ROOT

from lore.common import told_as, written_whole
from lore.fit.evaluation import Cell, Outcomes
from lore.report.statistics import by_user
from rivals import Entry


def bytes_of(tensor):
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def digest_of_data(groups, head):
    digest = hashlib.blake2b(digest_size=16)
    for group in groups:
        digest.update(" ".join(group.user_ids).encode())
        for tensor in (group.table, group.user, group.chosen, group.rejected, group.item, group.choice):
            digest.update(b"none" if tensor is None else bytes_of(tensor))
    digest.update(b"none" if head is None else bytes_of(head))
    return digest.hexdigest()


def digest_of_sources(paths):
    """Of all Python files there and below."""
    digest = hashlib.blake2b(version("torch").encode(), digest_size=16)
    for path in map(ROOT.joinpath, paths):
        for file in [path] if path.is_file() else sorted(path.rglob("*.py")):
            digest.update(file.read_bytes())
    return digest.hexdigest()


def part_path(folder, method, seed, data, sources):
    key = hashlib.blake2b(f"{method} {seed} {data} {sources}".encode(), digest_size=16)
    return folder / f"{key.hexdigest()}.json"


def save_part(path, entries):
    """entries: {row: Entry, or the reason why there is none}"""
    told = {}
    for row, entry in entries.items():
        told[row] = entry
        if not isinstance(entry, str):
            outcomes = {}
            for group, of_group in entry.cell.outcomes.items():
                right = (of_group.right > 0).tolist()
                outcomes[group] = [right, of_group.log_loss.tolist(), of_group.calibration_error]
            told[row] = [entry.cell.seed, entry[1:], outcomes]
    with written_whole(path) as file:
        file.write_text(json.dumps(told))


def load_part(path, groups):
    """What save_part was given, of these groups. InputError: a damaged file."""
    with told_as(f"{path} is damaged", ValueError, then="delete it and run again"):
        told = json.loads(path.read_text())
    entries = {}
    for row, entry in told.items():
        entries[row] = entry if isinstance(entry, str) else entry_of_row(row, *entry, groups)
    return entries


def entry_of_row(row, seed, facts, stored, groups):
    outcomes = {}
    users = {}
    for name, (right, log_loss, error) in stored.items():
        group = getattr(groups, name)
        users[name] = group.user_ids
        choice = None if group.choice is None else group.choice.cpu().numpy()
        arrays = (group.user.cpu().numpy(), group.item.numpy(), np.array(right, float), np.array(log_loss))
        outcomes[name] = Outcomes(*arrays, error, choice)
    accuracy = {name: by_user(of_group.user, of_group.right) for name, of_group in outcomes.items()}
    return Entry(Cell(seed, None, row, accuracy, users, outcomes=outcomes), *facts)
