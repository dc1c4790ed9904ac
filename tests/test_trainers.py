"""apply/reward_function.py, as TRL calls it."""

import pytest
import texts
from reward_function import reward_function
from test_apply import by_score
from tiny import a_model

from lore.common import InputError
from lore.fit.basis import load_basis

REPLIES = ["the cat sat", "nothing", "she said hello", "the dog lay beside it"]  # of the fixture rows


@pytest.fixture(scope="module")
def reward(basis):
    return reward_function(basis)


@pytest.fixture
def expected(basis, rows, tmp_path):
    """REPLIES to the population and three people: (users, rewards)."""
    rewards = by_score(basis, rows, tmp_path / "scored.jsonl")
    people = [None, *load_basis(basis).everybody[:3]]
    return people, [rewards[user][number] for number, user in enumerate(people)]


STANDARD = ["the cat? "] * 4, REPLIES
CONVERSATIONAL = (
    [[{"role": "user", "content": "the cat?"}]] * 4,
    [[{"role": "assistant", "content": reply}] for reply in REPLIES],
)


@pytest.mark.parametrize("prompts, completions", [STANDARD, CONVERSATIONAL])
def test_rewards_are_those_of_score_in_both_formats(basis, reward, expected, prompts, completions):
    people, rewards = expected
    logged = {}
    columns = {"trainer_state": None, "log_extra": None, "answer": ["x"] * 4, "completion_ids": [[1]] * 4}
    columns["log_metric"] = logged.__setitem__
    found = reward(prompts=prompts, completions=completions, user_id=people, **columns)
    assert found == pytest.approx(rewards, abs=1e-4) and {*map(type, found)} == {float}
    assert logged == {"unknown_users": 0, "unscored": 0} and reward.__name__ == "personal_reward"
    of_one = reward_function(basis, user=people[2])(prompts=prompts, completions=completions)
    assert of_one[2] == pytest.approx(rewards[2], abs=1e-4)


def test_a_completion_without_a_reward_is_none_and_counted(basis, reward):
    completions = ["sat", "", "the cat " * 1000, "<|im_start|> sat"]
    asked = {"prompts": ["the cat? "] * 4, "completions": completions, "user_id": [None] * 4}
    logged = {}
    found = reward(**asked, log_metric=logged.__setitem__)
    assert [number is None for number in found] == [False, True, True, True]
    assert logged == {"unknown_users": 0, "unscored": 3}
    assert reward(["the cat? "], [""], [None]) == [None] and reward([], [], []) == []
    lenient = reward_function(basis, unknown="population", unscored=-2.0)
    found = lenient(**asked | {"user_id": ["nobody"] * 4}, log_metric=logged.__setitem__)
    assert found[1:] == [-2.0, -2.0, None] and logged == {"unknown_users": 4, "unscored": 3}


ONE = {"prompts": ["the cat? "], "completions": ["sat"], "user_id": [None]}
REFUSED = [  # a call, or settings before the run
    (ONE | {"user_id": ["nobody"]}, "no user nobody"),
    (ONE | {"user_id": [float("nan")]}, "no user id"),
    (ONE | {"user_id": ["nan"]}, "no id"),
    (ONE | {"user_id": []}, "0 user_id for 1 prompts"),
    (ONE | {"user_id": None}, "whose rewards"),
    (ONE | {"completions": []}, "0 completions for 1 prompts"),
    (ONE | {"completions": [[{"role": "assistant", "content": "sat"}]]}, "a str and a list"),
    (ONE | {"prompts": ["<|im_start|>user\nthe cat?"]}, "chat template"),
    ({"user": "nobody"}, "no user nobody"),
    ({"unknown": "drop"}, "refuse or population"),
    ({"maximum": 3}, "no setting"),
    ({"unscored": "none"}, "neither a number nor"),
    ({"unscored": float("nan")}, "neither a number nor"),
    ({"policy": texts.__file__}, "--policy"),
]


@pytest.mark.parametrize(("given", "words"), REFUSED)
def test_what_cannot_be_meant_ends_the_run(basis, reward, given, words):
    with pytest.raises(InputError, match=words):
        reward(**given) if "prompts" in given else reward_function(basis, **given)


@pytest.mark.parametrize("prompts", [STANDARD[0], CONVERSATIONAL[0]])
def test_trl_trains_on_them(basis, tokenizer, prompts, tmp_path):
    """One step of GRPO with a tiny policy; what TRL has given is scored as score.py does."""
    trl = pytest.importorskip("trl", reason="TRL is missing: pip install -r requirements-dev.txt")
    from datasets import Dataset

    tokens = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": 0, "eos_token_id": 1}
    policy = a_model("LlamaForCausalLM", tmp_path / "policy", tokenizer, num_hidden_layers=1, **tokens)
    people = [None, *load_basis(basis).everybody[:3]]
    table = Dataset.from_dict({"prompt": prompts, "user_id": people})
    reward = reward_function(basis, unscored=-1.0)
    calls = []

    def noted(**columns):
        calls.append((columns, reward(**columns)))
        return calls[-1][1]

    noted.__name__ = reward.__name__
    settings = trl.GRPOConfig(
        output_dir=str(tmp_path), per_device_train_batch_size=4, num_generations=2, max_completion_length=6,
        max_steps=1, report_to=[], use_cpu=True, save_strategy="no", logging_steps=1, disable_tqdm=True,
    )  # fmt: skip
    trainer = trl.GRPOTrainer(str(policy), noted, settings, table)
    trainer.train()
    ((columns, rewards),) = calls
    log = trainer.state.log_history[0]
    assert log["rewards/personal_reward/mean"] == pytest.approx(sum(rewards) / 4, abs=1e-4)
    assert log["unknown_users"] == 0
    rows = []
    for prompt, completion in zip(columns["prompts"], columns["completions"]):
        if not isinstance(prompt, str):
            prompt, completion = prompt[0]["content"], completion[0]["content"]
        rows.append({"prompt": prompt.strip(), "response": completion.strip()})
    source = texts.write(tmp_path / "rows.jsonl", rows)
    expected = by_score(basis, source, tmp_path / "scored.jsonl")
    for number, (user, found) in enumerate(zip(columns["user_id"], rewards)):
        assert found == pytest.approx(expected[user][number], abs=1e-4)
