"""People taken into a saved basis: which of their judgements count, the pairs of these, the basis with them in it."""

from math import isfinite

import pandas as pd
import torch

from lore.common import InputError, require
from lore.fit.basis import stacked_deviations
from lore.fit.comparisons import Comparisons
from lore.fit.groups import names_of
from lore.text.input_rows import first_times
from saved_basis import embedded


def require_new(judgements, basis, path, back=(), advice="give new people other ids"):
    """InputError: somebody stands in the basis already, but for those of `back`, who may come again."""
    there = {user.casefold(): user for user in basis.everybody}
    for each in judgements:
        user = there.get(each.user_id.casefold())
        if user is not None and not (user == each.user_id and user in back):
            raise InputError(f"{each.file_and_line}: {path} has a user {user} already; {advice}")


def to_fit(judgements):
    """Those that tell something new and are not of a test side; prints what is left out, and whom."""
    fitted = [each for each in judgements if each.side != "test"]
    if len(fitted) < len(judgements):
        count = len(judgements) - len(fitted)
        nobody = {each.user_id for each in judgements} - {each.user_id for each in fitted}
        print(f"left out: {count} x of a test side (split), {len(nobody)} people{names_of(nobody)}")
    require(fitted, "every comparison is of a test side (split): none is left to fit")
    return [fitted[number] for number in first_times(fitted)]


def embedded_pairs(judgements, encoder):
    """Comparisons of all people of a file, sorted by id."""
    rows = [(each.file_and_line, each, [each.chosen, each.rejected]) for each in judgements]
    table, numbers = embedded(rows, encoder)
    return pairs_of(judgements, table, *torch.stack(numbers, 1).numpy())


def pairs_of(judgements, table, chosen, rejected):
    """Comparisons of judgements whose replies are these rows of a table."""
    frame = pd.DataFrame(
        {"user_id": [each.user_id for each in judgements], "chosen": chosen, "rejected": rejected}
    )
    frame["prompt"] = [each.prompt_id for each in judgements]
    return Comparisons.from_frame(table, frame, prompt="prompt")


def people_rows(pairs, newcomers):
    """One dict per person."""
    columns = {
        "user_id": pairs.user_ids,
        "pairs": pairs.counts.tolist(),
        "mixture": newcomers.mixtures.W.tolist(),
        "spread": newcomers.mixtures.spread.tolist(),
        "gap": newcomers.mixtures.gap.tolist(),
        "leave_one_out": newcomers.accuracy.tolist(),
        "population": newcomers.population.tolist(),
        "gain": newcomers.gain.tolist(),
        "gain_error": [error if isfinite(error) else None for error in newcomers.error.tolist()],
        "prompts_left_out": newcomers.prompts.tolist(),
        "word": [*map(newcomers.word, range(len(pairs.user_ids)))],
    }
    return [dict(zip(columns, values)) for values in zip(*columns.values())]


def extend(basis, pairs, newcomers, rows):
    """The basis with these people where they were, new ones behind the others, and what is said of them."""
    mixtures = newcomers.mixtures
    there = {*basis.everybody}
    new = [user for user in pairs.user_ids if user not in there]
    more = {"unseen_ids": (*basis.unseen_ids, *new)}
    more["mean"] = basis.prior.mean  # that of the fit, whoever changes
    positions = basis._replace(unseen_ids=more["unseen_ids"]).positions(pairs.user_ids)
    parameters = {"W": mixtures.W.float()}
    if mixtures.deviations is not None:
        parameters["E"] = stacked_deviations(mixtures.deviations, pairs.user_ids)
    for name, values in parameters.items():
        before = [getattr(basis, name), getattr(basis, f"{name}_unseen")]
        everybody = torch.cat([*before, values.new_zeros(len(new), values.shape[1])])
        everybody[positions] = values
        more[name], more[f"{name}_unseen"] = everybody.tensor_split([len(basis.user_ids)])
    for name, column in (("pairs", "pairs"), ("words", "word")):
        said = {row["user_id"]: row[column] for row in rows}
        more[name] = (getattr(basis, name) or {}) | said
    return basis._replace(**more)
