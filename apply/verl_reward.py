"""verl's custom reward function: the reward of a reply to its user, from a server of apply/serve.py.

    python apply/serve.py --basis BASIS --unscored -10
    python -m verl.trainer.main_ppo .. \\
        reward.custom_reward_function.path=apply/verl_reward.py \\
        reward.custom_reward_function.name=compute_score \\
        +reward.custom_reward_function.reward_kwargs.url=http://127.0.0.1:8000

extra_info of each row of the data has `prompt`, a text or messages, and `user_id`, which may be null:
the population. verl calls the function in many threads at a time; the server computes them together.
Older versions of verl name the settings without `reward.`.
"""

import json
import urllib.error
import urllib.request
from operator import methodcaller

URL = "http://127.0.0.1:8000"
SECONDS = 600  # for one answer, which may wait for others


def compute_score(data_source, solution_str, ground_truth, extra_info, url=URL, **_):
    """{"score": log-odds} of a reply; with --unknown population also how often the user was not known.

    ValueError: the server's own line where the reply has no reward; extra_info lacks something.
    """
    for name in ("prompt", "user_id"):
        if name not in extra_info:
            raise ValueError(f"extra_info of {data_source} has no {name}; it has {', '.join(extra_info)}")
    prompt = extra_info["prompt"]
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    # tolist: a table of NumPy may hold the prompt
    query = [*prompt, {"role": "assistant", "content": solution_str}]
    body = json.dumps({"query": [query], "labels": [extra_info["user_id"]]}, default=methodcaller("tolist"))
    try:
        with urllib.request.urlopen(f"{url}/get_reward", body.encode(), timeout=SECONDS) as reply:
            answer = json.load(reply)
    except urllib.error.HTTPError as error:
        raise ValueError(json.load(error)["error"]) from error
    return {"score": answer["rewards"][0]} | answer["extra_logs"]
