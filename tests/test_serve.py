"""apply/serve.py: what it takes, what it gives, and whom it keeps waiting."""

import asyncio
import copy
import hashlib
import json
import math
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import texts
import torch
from conftest import TURN
from queries import Reader
from scorer import Scorer
from serve import Queue
from servers import post, served
from test_apply import by_score
from tokenizers import AddedToken
from verl_reward import compute_score

from lore.common import InputError
from lore.fit.basis import Basis, load_basis, save_basis
from lore.text.conversations import exchange
from lore.text.tokens import Tokeniser


def template(begin, turn, reply):
    """A chat template: what stands before the turns, a turn m, and what a prompt for a reply ends in."""
    turns = "{% for m in messages %}" + turn + "{% endfor %}"
    return f"{begin}{turns}{{% if add_generation_prompt %}}{reply}{{% endif %}}"


OWN = template("{{ bos_token }}", TURN, "<|assistant|>\n")
LLAMA = template(  # the day of rendering in a system turn that is always there, as Llama 3.1's
    "{{ bos_token }}{% if messages[0].role == 'system' %}{% set told = messages[0].content | trim %}"
    "{% set messages = messages[1:] %}{% else %}{% set told = '' %}{% endif %}"
    "<|start_header_id|>system<|end_header_id|>\n\nToday Date: {{ date_string }}\n\n{{ told }}<|eot_id|>",
    "<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>",
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
)
QWEN = template(  # a system text of its own, and room for thoughts in the last reply, as Qwen3's
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou help.<|im_end|>\n{% endif %}",
    "<|im_start|>{{ m.role }}\n{% set parts = m.content.split('</think>') %}"
    "{% if m.role != 'assistant' %}{{ m.content }}{% else %}{% if loop.last %}<think>\n"
    "{{ parts[0].split('<think>')[-1].strip('\n') if parts | length > 1 else '' }}\n</think>\n\n{% endif %}"
    "{{ parts[-1].lstrip('\n') }}{% endif %}<|im_end|>\n",
    "<|im_start|>assistant\n",
)
GEMMA = template(  # no system text, roles by other names
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}",
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<end_of_turn>\n",
    "<start_of_turn>model\n",
)
MISTRAL = template(  # no line ends, and a reply that follows its mark at once
    "{{ bos_token }}",
    "{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %}{{ m.content }}{{ eos_token }}{% endif %}",
    "",
)
FAMILIES = {  # template, special tokens: first, end, padding, others
    "own": (OWN, "<s>", "</s>", "<pad>", "<|end|>"),
    "llama": (LLAMA, "<|begin_of_text|>", "<|eot_id|>", "<|pad|>", "<|start_header_id|>"),
    "qwen": (QWEN, None, "<|im_end|>", "<|endoftext|>", "<|im_start|>"),
    "gemma": (GEMMA, "<bos>", "<eos>", "<pad>", "<start_of_turn>", "<end_of_turn>"),
    "mistral": (MISTRAL, "<s>", "</s>", "</s>", "[INST]", "[/INST]"),
}
SYSTEM = {"role": "system", "content": "Be brief."}
ASKED = exchange("Why did it drift?", "gulls cried")
TALKS = [ASKED, [SYSTEM, *ASKED], [*exchange("Hi", "Hello."), *exchange(" Why? ", "No\n\none knows. ")]]


@pytest.fixture(scope="module")
def families(tokenizer):
    """{family: a tokenizer with its template}."""
    found = {}
    for name, (template, first, end, padding, *others) in FAMILIES.items():
        words = copy.deepcopy(tokenizer)
        tokens = {*others, first, end, padding} - {None}
        words.add_tokens([AddedToken(token, special=True) for token in sorted(tokens)])
        words.bos_token, words.eos_token, words.pad_token = first, end, padding
        words.chat_template = template
        found[name] = words
    return found


@pytest.fixture(scope="module")
def reader(families):
    """reader(family of the model, of the policy): a Reader."""

    @cache
    def make(family, policy=None):
        words = families[family]
        tokeniser = Tokeniser(family, words, "last", math.inf, 10**6)
        encoder = SimpleNamespace(tokenizer=words, pooling="last", tokeniser=tokeniser)
        return Reader(encoder, families.get(policy))

    return make


def rendered(words, talk, **options):
    options = {"date_string": "26 Jul 2024"} | options
    return words.apply_chat_template(talk, tokenize=False, **options)


def renderings(words, talk):
    """Texts of a conversation as trainers send them, with their prompts."""
    day = "28 November 2026"
    prompt = rendered(words, talk[:-1], add_generation_prompt=True, date_string=day)
    text = prompt + talk[-1]["content"]
    first, end, padding = words.bos_token or "", words.eos_token, words.pad_token
    yield rendered(words, talk), None
    yield rendered(words, talk, add_generation_prompt=True), None
    yield text, prompt
    yield f"{padding} {padding}" + padding + text + end + padding * 2, prompt
    yield text.removeprefix(first), prompt
    yield padding + first + text + f"{end}\n", prompt
    yield f"{prompt}<think>\n\n</think>\n\n{talk[-1]['content']}", prompt


def talks_of(family):
    return [talk for talk in TALKS if SYSTEM not in talk or family not in ("gemma", "mistral")]


# --------------------------------------------------------------------- One decision for each query ---


@pytest.mark.parametrize("family", FAMILIES)
def test_the_three_forms_of_a_conversation_are_one(family, families, reader):
    words, read = families[family], reader(family)
    for talk in talks_of(family):
        right = rendered(words, read.conversation("", talk, None))
        for text, prompt in renderings(words, talk):
            assert rendered(words, read.conversation("", text, prompt)) == right, text
        prompt = rendered(words, talk[:-1], add_generation_prompt=True)
        for asked in ((prompt, talk[-1]["content"]), (talk[:-1], talk[-1:])):  # as TRL has them
            assert rendered(words, read.completed("", *asked)) == right
    right = rendered(words, ASKED)
    prompt, reply = (message["content"] for message in ASKED)
    for end in ("", words.eos_token, "\n</s>", "<|im_end|>\n", "<|eot_id|>", words.pad_token * 3):
        for asked in (prompt, f"{prompt} "):
            assert rendered(words, read.conversation("", f"{prompt} {reply}{end}", asked)) == right
        talk = exchange(f"{prompt} ", f" {reply}{end}")
        assert rendered(words, read.conversation("", talk, None)) == right


@pytest.mark.parametrize("family", FAMILIES)
def test_a_text_of_another_family_is_refused_or_taken_apart(family, families, reader):
    for policy in FAMILIES.keys() - {family}:
        for talk in talks_of(policy):
            for text, prompt in renderings(families[policy], talk):
                with pytest.raises(InputError, match="chat template"):
                    reader(family).conversation("query 0", text, prompt)
                found = reader(family, policy).conversation("query 0", text, prompt)
                assert found == reader(family).conversation("query 0", talk, None)


@pytest.mark.parametrize(
    ("text", "prompt"),
    [
        ("<s><|user|>\nWhy?<|assistant|>\nNo.<|end|>", None),  # a turn that does not end
        ("<s><|user|>\nWhy?</s>Because<|end|>\n<|assistant|>\nNo.", None),
        ("<s><|user|>\nWhy?<|end|>\n<|assistant|>\nNo.<|end|>\n<|user|>\nAnd?<|end|>\n<|assistant|>\nNo.",
         "<s><|user|>\nWhy?<|end|>\n<|assistant|>\n"),  # it went on after its end
        ("Why? No.<|end|>\n<|user|>\nAnd", "Why?"),
        ("Why? No.<|im_start|>user", "Why?"),
        ("[INST] Why? [/INST] No.", "[INST] Why? [/INST]"),
        ("<\uff5cUser\uff5c>Why?<\uff5cAssistant\uff5c>No.", "<\uff5cUser\uff5c>Why?<\uff5cAssistant\uff5c>"),
        ("USER: Why? ASSISTANT: No.</s>", "USER: Why? ASSISTANT:"),
        ("### Instruction:\nWhy?\n\n### Response:\nNo.", "### Instruction:\nWhy?\n\n### Response:\n"),
        ("\n\nHuman: Why?\n\nAssistant: No.", "\n\nHuman: Why?\n\nAssistant:"),
        ("system\nHelp.\nuser\nWhy?\nassistant\nNo.", "system\nHelp.\nuser\nWhy?\nassistant\n"),
        ("Why? [{'role': 'assistant', 'content': 'No.'}]", "Why? "),
        ("Why?Never.", "Why? "),  # another prompt
        ("Why? No.", None),
        (exchange("<|im_start|>user\nWhy?<|im_end|>", "No."), None),
        (exchange("Why?", "No.</s> Yes."), None),
        (7, None),
    ],
)  # fmt: skip
def test_signs_of_a_template_where_words_should_be_are_refused(reader, text, prompt):
    with pytest.raises(InputError, match=r"^query 3") as refusal:
        reader("own").conversation("query 3", text, prompt)
    assert len(str(refusal.value)) < 200


def test_thoughts_are_what_the_models_template_makes_of_them(families, reader):
    thoughts = "<think>\nHm.\n</think>\n\ngulls cried"
    talk = exchange("Why did it drift?", thoughts)
    prompt = rendered(families["qwen"], ASKED[:1], add_generation_prompt=True)
    right = rendered(families["qwen"], talk)
    assert "Hm." in right
    for query, asked in (
        (talk, None),
        (prompt + thoughts, prompt),
        (f"Why did it drift? {thoughts}", "Why did it drift?"),
    ):
        assert rendered(families["qwen"], reader("qwen").conversation("", query, asked)) == right
        with pytest.raises(InputError, match="begins with thoughts"):
            reader("own", "qwen").conversation("", query, asked)
    for reply in ("<think>\nHm, hm", "<think>Hm.</think>\n", "Hm.</think>"):  # never came to the point
        with pytest.raises(InputError, match="empty"):
            reader("own").conversation("", exchange("Why?", reply), None)


# --------------------------------------------------------------------------- Rewards and the queue ---


def test_each_query_is_worth_what_it_is_to_its_own_user():
    """Deviations of ten million people, one row in memory: a copy of them would take 80 GB."""
    width = 2048
    E = torch.ones(1, width).expand(10**7, width)
    W = torch.tensor([[0.25, 0.75]]).expand(10**7, 2)
    people = Basis(torch.randn(width, 2), W, ("x", "y"), W[:0], (), E=E, E_unseen=E[:0], mean=W[0])
    table = torch.randn(3, width)
    rewards = Scorer(people, None).of_vectors(table, ["y", None, "x"])
    personal = people.log_odds(table, ["x"])[:, 0]
    expected = [personal[0], people.population(table)[1], personal[2]]
    assert rewards.tolist() == pytest.approx([number.item() for number in expected], abs=1e-3)


class SlowScorer:
    """Notes what is computed together."""

    def __init__(self):
        self.parts = []

    def results(self, talks, users):
        time.sleep(0.01)
        self.parts.append(users)
        if "fault" in users:
            raise ZeroDivisionError
        return [talk if isinstance(talk, InputError) else float(talk[-1]["content"]) for talk in talks]


def test_small_requests_are_answered_beside_a_large_one():
    numbers = [exchange("?", str(number)) for number in range(100)]

    async def ask():
        scorer = SlowScorer()
        queue = Queue(scorer, 8, 10**5)
        worker = asyncio.create_task(queue.work())
        large = asyncio.create_task(queue.ask(numbers, ["large"] * 100))
        await asyncio.sleep(0)
        long = asyncio.create_task(queue.ask([exchange("?" * 10**6, "1")] * 5, ["long"] * 5))
        small = await queue.ask([InputError("empty"), *numbers[:2]], ["small"] * 3)
        assert not large.done() and not long.done() and len(scorer.parts) < 4
        assert small[1:] == [0, 1] and str(small[0]) == "empty"
        assert await large == [*range(100)] and await long == [1] * 5
        with pytest.raises(ZeroDivisionError):  # a fault of ours is told, and the queue goes on
            await queue.ask(numbers[:1], ["fault"])
        assert await queue.ask(numbers[:1], [None]) == [0]
        assert max(part.count("long") for part in scorer.parts) == 1
        worker.cancel()

    asyncio.run(ask())


# ------------------------------------------------------------------------------- The server itself ---


@pytest.fixture(scope="module")
def server(basis, families, tmp_path_factory):
    policy = tmp_path_factory.mktemp("policy")
    families["llama"].save_pretrained(policy)
    with served("serve", "--basis", basis, "--max_bytes", 20000, "--policy", policy) as address:
        yield address


@pytest.fixture
def score(basis, rows, tmp_path):
    """Somebody, the replies of the rows, and what score.py says of them to that person and to the population."""
    user = load_basis(basis).user_ids[0]
    rewards = by_score(basis, rows, tmp_path / "scored.jsonl")
    return user, [row["response"] for row in texts.read(rows)], rewards[user], rewards[None]


def test_the_server_gives_the_rewards_of_score(server, score, families):
    user, replies, personal, common = score
    talks = [exchange("the cat?", reply) for reply in replies]
    forms = [rendered(families[name], talks[0]) for name in ("own", "llama")]
    body = {
        "query": [talks[0], *forms, f"the cat? {replies[0]}"],
        "prompts": ["", "", "", "the cat?"],
        "labels": [user, {"user_id": user}, json.dumps({"user_id": user}), ""],
    }
    status, answer = post(server, body)
    assert status == 200 and answer["scores"] == answer["rewards"] and answer["extra_logs"] == {}
    assert answer["rewards"] == pytest.approx([personal[0]] * 3 + [common[0]], abs=1e-4)
    asks = [{"query": [talk], "labels": [user]} for talk in talks]
    with ThreadPoolExecutor(4) as people:
        answers = [*people.map(lambda ask: post(server, ask)[1]["rewards"][0], asks)]
    assert answers == pytest.approx(personal, abs=1e-4)


def test_an_empty_or_long_reply_costs_the_others_nothing_in_any_form(server, families):
    words = families["own"]
    replies = ["sat", "", "the cat " * 600, "lay"]
    long = "a small boat drifted past " * 100
    talks = [exchange("the cat?", reply) for reply in replies] + [exchange(long, "sat")]
    prompts = [talk[0]["content"] for talk in talks]
    plain = [f"{talk[0]['content']} {talk[1]['content']}" for talk in talks]
    bodies = (
        {"query": talks},
        {"query": [rendered(words, talk) for talk in talks]},
        {"query": plain, "prompts": prompts},
    )
    answers = [post(server, body) for body in bodies]
    rewards = answers[0][1]["rewards"]
    assert [reward is None for reward in rewards] == [False, True, True, False, False]
    for status, answer in answers:
        assert status == 200 and answer["scores"] == answer["rewards"]
        assert [*map(type, answer["rewards"])] == [*map(type, rewards)]
        numbers = [reward or 0 for reward in answer["rewards"]]
        assert numbers == pytest.approx([reward or 0 for reward in rewards], abs=1e-4)
        assert "empty" in answer["errors"][1] and "for the reply alone" in answer["errors"][2]


REWARD, LISTS = ("get_reward",), ("classify", "v1/embeddings")
TALK = exchange("Why?", "No.")
REFUSED = [
    (REWARD, {"query": ["what?"]}, "query 0"),
    (REWARD, b'{"query": [[]], "labels": [NaN]}', "query"),
    (REWARD, {"query": [TALK], "labels": [10**400]}, "no user 1000"),
    (REWARD, {"query": [TALK], "labels": ["\ud800"]}, "no user"),
    (REWARD, {"query": [TALK], "labels": []}, "labels is no list of 1"),
    (REWARD, b"{", "Expecting"),
    (REWARD + LISTS, b"[]", "a JSON object"),
    (REWARD, b"x" * 30000, "--max_bytes"),
    (LISTS, {"input": "<|user|>\nWhy?<|end|>\n<|assistant|>\n<|end|>\n"}, "query 0"),  # an empty reply
    (LISTS, {"input": "Why? No."}, "not of this model's chat template"),
    (LISTS, {"input": []}, "neither a text nor a list"),
    (LISTS, {"messages": []}, "query 0"),
    (LISTS, {}, "neither a text nor a list"),
    (LISTS, {"messages": TALK, "model": "0"}, "model is '0': use \"user:ID\""),
    (LISTS, {"messages": TALK, "model": "user: "}, "use"),
    (LISTS, {"messages": TALK, "model": ["user:0"]}, "use"),
    (LISTS, {"messages": TALK, "model": "user:\ud800"}, "use"),
    (LISTS, {"messages": TALK, "model": "user:nobody:at all"}, "no user nobody:at all"),
    (LISTS, {"messages": TALK, "model": "user:nan"}, "no id"),
    (LISTS, {"messages": TALK, "use_activation": True}, "log-odds"),
    (LISTS, b'{"input": "\xff"}', "decode"),
    (LISTS, b"[" * 10000, "recursion"),
]


@pytest.mark.parametrize(("paths", "body", "words"), REFUSED)
def test_the_server_refuses_in_one_line(server, paths, body, words):
    for path in paths:
        status, answer = post(server, body, path)
        assert status == (413 if len(body) > 20000 else 400)
        assert words in answer["error"] and "\n" not in answer["error"]


# -------------------------------------------------------- As vLLM and SGLang, and as verl sends it ---


def test_the_lists_of_vllm_and_sglang_have_the_rewards_of_score(server, model, score, families):
    user, replies, personal, common = score
    talks = [exchange("the cat?", reply) for reply in replies]
    sent = [rendered(families["own"], talk).removeprefix("<s>") for talk in talks]  # as verl does
    names = dict.fromkeys((f"user:{user}", f"user: {user}.0 "), personal)
    names |= dict.fromkeys(("population", None, str(model)), common)
    for name, rewards in names.items():
        body = {"model": name, "input": sent[0], "use_activation": False}
        status, answer = post(server, body, "classify")
        assert status == 200 and answer["data"][-1]["probs"][-1] == pytest.approx(rewards[0], abs=1e-4)
        status, answer = post(server, {"model": name, "input": sent}, "v1/embeddings")
        found = [each["embedding"][-1] for each in answer["data"]]
        assert found == pytest.approx(rewards, abs=1e-4)
        assert [each["index"] for each in answer["data"]] == [0, 1, 2, 3]
        status, answer = post(server, {"model": name, "messages": talks[3]}, "classify")
        (only,) = answer["data"]
        assert only.pop("probs") == pytest.approx(rewards[3:], abs=1e-4)
        assert only == {"index": 0, "label": None, "num_classes": 1}


def test_verl_gets_the_rewards_of_score_through_its_custom_function(server, score):
    user, replies, personal, common = score
    about = {"index": np.int64(3), "num_turns": None, "rollout_reward_scores": {}}
    asked = {"data_source": "own", "solution_str": replies[0], "ground_truth": ""}
    for prompt in ("the cat?", np.array([{"role": "user", "content": "the cat?"}])):
        for user_id, (reward, *_) in ((user, personal), (None, common)):
            extra_info = about | {"prompt": prompt, "user_id": user_id}
            answer = compute_score(**asked, extra_info=extra_info, url=server)
            assert answer == {"score": pytest.approx(reward, abs=1e-4)}
    with pytest.raises(ValueError, match="has no user_id"):
        compute_score(**asked, extra_info={"prompt": "a"}, url=server)
    with pytest.raises(ValueError, match="no user nobody"):
        compute_score(**asked, extra_info={"prompt": "a", "user_id": "nobody"}, url=server)


def test_unknown_users_get_the_populations_reward_where_that_is_said(basis, model, tmp_path):
    people = load_basis(basis)
    people = people._replace(user_ids=("ann:b", "J\u00fcrgen", *people.user_ids[2:]))
    path = tmp_path / "people.safetensors"
    save_basis(path, people)
    talk = exchange("the cat?", "sat")
    labels = ["nobody", None, "ann:b", "Ju\u0308rgen", {"user": "0"}]
    with served("serve", "--basis", path, "--unknown", "population", "--unscored", "-3") as address:
        status, answer = post(address, {"query": [talk] * 5, "labels": labels})
        unknown, common, ann, jurgen, broken = answer["rewards"]
        assert status == 200 and unknown == common and broken is None
        assert len({common, ann, jurgen}) == 3
        assert answer["extra_logs"] == {"unknown_users": 1}
        assert post(address, {"query": [talk]})[1]["extra_logs"] == {"unknown_users": 0}
        asked = {"messages": talk, "model": "user:ann:b"}
        assert post(address, asked, "classify")[1]["data"][0]["probs"] == pytest.approx([ann], abs=1e-5)
        _, answer = post(address, asked | {"model": "user:x"}, "v1/embeddings")
        assert answer["data"][0]["embedding"] == pytest.approx([common], abs=1e-5)
        assert answer["extra_logs"] == {"unknown_users": 1}
        _, answer = post(address, {"messages": exchange("the cat?", "")}, "classify")
        assert answer["data"][0]["probs"] == [-3.0]
        extra_info = {"prompt": "the cat?", "user_id": "x"}
        assert compute_score("", "sat", "", extra_info, address)["unknown_users"] == 1
        assert post(address, None, "users") == (200, {"users": [*people.everybody]})
        version = hashlib.sha256(path.read_bytes()).hexdigest()
        about = {"people": 6, "rank": 3, "model": str(model), "basis": version}
        assert post(address, None, "health") == (200, about)


def test_a_label_that_names_nobody_costs_the_others_nothing(server, basis):
    user = load_basis(basis).unseen_ids[0]
    labels = [user, [], {"user": user}, "{", "nobody", " ", math.nan, None]
    status, answer = post(server, {"query": [exchange("the cat?", "sat")] * len(labels), "labels": labels})
    assert status == 200
    words = ["", "label is [], no", "without a user_id", "broken JSON", "no user nobody", "", "nan", ""]
    for reward, error, expected in zip(answer["rewards"], answer["errors"], words):
        assert (reward is None) == bool(expected) and expected in (error or "")
    mine, *_, common, _, same = answer["rewards"]
    assert common == pytest.approx(same, abs=1e-5) != mine
