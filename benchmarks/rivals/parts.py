"""What a method made of one population, kept on disk: a study that was interrupted goes on where it was.

A part is FOLDER/KEY.safetensors, the key a hash of the data, the seed and the source that the method runs on: other
data or other code is another part. Whether a pair is right, and its log-loss, are tensors ROW/GROUP/NAME; what else
is said of a row stands in the header.
"""

import hashlib
import json
from importlib.metadata import version

import torch
from measure import ROOT
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from lore.common import InputError, written_whole
from lore.fit.evaluation import Cell, Outcomes, share_right
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
    return folder / f"{key.hexdigest()}.safetensors"


def save_part(path, entries):
    """entries: {row: Entry, or the reason why there is none}"""
    tensors = {}
    told = {}
    for row, entry in entries.items():
        if isinstance(entry, str):
            told[row] = entry
            continue
        told[row] = {"facts": entry[1:], "seed": entry.cell.seed, "calibration_error": {}}
        for group, outcomes in entry.cell.outcomes.items():
            told[row]["calibration_error"][group] = outcomes.calibration_error
            tensors[f"{row}/{group}/right"] = torch.from_numpy(outcomes.right > 0)
            tensors[f"{row}/{group}/log_loss"] = torch.from_numpy(outcomes.log_loss).float()
    with written_whole(path) as file:
        save_file(tensors, file, {"rows": json.dumps(told)})


def load_part(path, groups):
    """What save_part was given, of these groups. InputError: a damaged file."""
    try:
        with safe_open(path, "pt") as file:
            told = json.loads(file.metadata()["rows"])
        tensors = load_file(path)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged ({error}); delete it and run again") from error
    entries = {}
    for row, facts in told.items():
        entries[row] = facts if isinstance(facts, str) else entry_of_row(row, facts, tensors, groups)
    return entries


def entry_of_row(row, told, tensors, groups):
    accuracy = {}
    outcomes = {}
    users = {}
    for name, error in told["calibration_error"].items():
        group = getattr(groups, name)
        users[name] = group.user_ids
        right = tensors[f"{row}/{name}/right"].double()
        log_loss = tensors[f"{row}/{name}/log_loss"].double()
        accuracy[name] = share_right(right, group.user.cpu(), len(group.user_ids)).numpy()
        choice = None if group.choice is None else group.choice.cpu().numpy()
        arrays = (group.user.cpu(), group.item, right, log_loss)
        outcomes[name] = Outcomes(*[array.numpy() for array in arrays], error, choice)
    cell = Cell(told["seed"], None, row, accuracy, users, outcomes=outcomes)
    return Entry(cell, *told["facts"])
