"""Personal rewards for a trainer in the same process, as TRL's GRPO and RLOO call them.

    from apply.reward_function import reward_function
    trainer = GRPOTrainer(model=POLICY, reward_funcs=reward_function("me.safetensors"), train_dataset=rows, ..)

The data set has a column user_id beside its prompts, which are texts or lists of messages.
"""

import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
sys.path += [str(FOLDER), str(FOLDER.parent)]  # behind what the program that imports this has there

import torch
from queries import Reader, policy_tokenizer, user_of
from scorer import SILENT, Scorer, number_of, require_unknown, reward_of

from lore.common import InputError, require
from saved_basis import opened


def reward_function(path, user=None, policy="", unknown="refuse", unscored=None, **options):
    """A function of prompts, completions and user_id: log-odds, as of apply/score.py, each for its user.

    user: one person, whose rewards all completions get; None: each that of the user in its column.
    policy: folder or Hub name of the model whose chat template has written the prompts, where they are
    texts of a template and not the basis's. unknown: "population" gives users whom the basis does not
    know the population's rewards, "refuse" ends the run. unscored: reward of an empty or too long
    completion. options: settings of the encoder, device="cuda:1", dtype, batch_tokens, model, ..
    InputError (a ValueError): see saved_basis.opened; nobody has the id `user`.
    """
    require_unknown(unknown)
    unscored = number_of(unscored)
    trainers = torch.cuda.current_device() if torch.cuda.is_available() else None
    basis, encoder = opened(path, **options)
    user = user_of("user", user)
    basis.positions([] if user is None else [user])
    reader = Reader(encoder, policy_tokenizer(policy))
    encoder.load()
    if trainers is not None:  # with device="cuda:1" the encoder's would be current from here on
        torch.cuda.set_device(trainers)
    scorer = Scorer(basis, encoder)

    # under this name TRL logs it
    def personal_reward(prompts, completions, user_id=None, log_metric=None, **_):
        """A float for each completion; None for one that has no reward, which TRL leaves out of its group.

        Without a reward are an empty or too long reply (`unscored` gives it one) and one with signs of a
        chat template in it. Both, and unknown users, are counted by log_metric. InputError: nobody is
        named, an unknown user, a user_id that is none, no completion that can be read.
        """
        labels = [user] * len(prompts) if user is not None else user_id
        hint = "give the data set such a column (empty = the population), or name one person with user=ID"
        require(labels is not None, f"whose rewards? there is no user_id; {hint}")
        for name, values in (("user_id", labels), ("completions", completions)):
            require(len(values) == len(prompts), f"{len(values)} {name} for {len(prompts)} prompts")
        users = []
        talks = []
        for number, (prompt, completion, label) in enumerate(zip(prompts, completions, labels)):
            where = f"completion {number}"
            users.append(user_of(where, label))
            try:
                talks.append(reader.completed(where, prompt, completion))
            except InputError as error:
                talks.append(error)
        if unknown == "refuse":
            basis.positions([*filter(None, users)])
        strangers = scorer.place_unknown(talks, users, unknown)
        results = scorer.results(talks, users)
        failed = [result for result in results if isinstance(result, InputError)]
        refused = [error for error in failed if not isinstance(error, SILENT)]
        if refused and len(refused) == len(results):
            raise refused[0]
        if log_metric is not None:
            log_metric("unknown_users", strangers)
            log_metric("unscored", len(failed))
        return [reward_of(result, unscored) for result in results]

    return personal_reward
