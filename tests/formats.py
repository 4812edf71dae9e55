"""Rows of every format as their makers publish them, and what they are as ours. Made for the tests."""

from __future__ import annotations

from typing import Any


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def said(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


SYSTEM = {"role": "system", "content": "Be brief."}
GOOD, BAD = "Yes, very.", "No, not at all."
ASK = "Is the film good?"
CHAT = {"prompt": [user(ASK)], "chosen": [said(GOOD)], "rejected": [said(BAD)]}
SYSTEM_CHAT = CHAT | {"prompt": [SYSTEM, user(ASK)]}
WANTED = {"prompt": [user(ASK)], "completion": [said(GOOD)], "label": True}
GROUP = {"prompt": [user(ASK)], "completions": [[said(BAD)], [said(GOOD)]], "ranks": [1, 0]}
TURN = "\n\nHuman: Is it good?\n\nAssistant:"

# By the format's name: rows as they are published, each with what it becomes.
EXAMPLES: dict[str, list[tuple[dict[str, Any], dict[str, Any]]]] = {
    "pairs": [
        ({"prompt": ASK, "chosen": GOOD, "rejected": BAD}, {"prompt": ASK, "chosen": GOOD, "rejected": BAD}),
        (CHAT | {"source": "here"}, CHAT),
        (CHAT | {"margin": 1.5}, CHAT | {"margin": 1.5}),
        (CHAT | {"score_chosen": 7.0, "score_rejected": 4.5}, CHAT | {"margin": 2.5}),
        # UltraFeedback, binarized: the conversation stands there three times
        (
            {"prompt": ASK, "chosen": [user(ASK), said(GOOD)], "rejected": [user(ASK), said(BAD)]}
            | {"messages": [user(ASK), said(GOOD)]},
            {"prompt": ASK, "chosen": [user(ASK), said(GOOD)], "rejected": [user(ASK), said(BAD)]},
        ),
        ({"prompt_ids": [1], "chosen_ids": [2], "rejected_ids": [3]}, {"prompt": [1], "chosen": [2], "rejected": [3]}),
    ],
    "unpaired": [({"prompt": ASK, "completion": GOOD, "label": True},) * 2, (WANTED, WANTED)],
    "ranked": [
        (
            {"prompt": ASK, "completions": [BAD, GOOD], "scores": [0.1, 0.9]},
            {"prompt": ASK, "completions": [BAD, GOOD], "ranks": [1, 0]},
        ),
    ],
    "implicit": [
        ({"chosen": [user(ASK), said(GOOD)], "rejected": [user(ASK), said(BAD)]}, CHAT),
        ({"chosen": "It is good", "rejected": "It is bad"}, {"chosen": "It is good", "rejected": "It is bad"}),
    ],
    "hh": [
        (
            {"chosen": f"{TURN} {GOOD}", "rejected": f"{TURN} {BAD}"},
            {"prompt": TURN, "chosen": f" {GOOD}", "rejected": f" {BAD}"},
        ),
    ],
    "alpaca": [
        ({"instruction": ASK, "input": "", "chosen": GOOD, "rejected": BAD}, CHAT),
        (
            {"instruction": "Is it good?", "input": "The film.", "chosen": GOOD, "rejected": BAD, "system": "Be brief."}
            | {"history": [["Hello", "Hi!"]]},
            CHAT | {"prompt": [SYSTEM, user("Hello"), said("Hi!"), user("Is it good?\nThe film.")]},
        ),
    ],
    "alpaca_kto": [({"instruction": ASK, "input": "", "output": GOOD, "kto_tag": True}, WANTED)],
    "sharegpt": [
        (
            {"conversations": [{"from": "human", "value": ASK}], "chosen": {"from": "gpt", "value": GOOD}}
            | {"rejected": {"from": "gpt", "value": BAD}, "system": "Be brief."},
            SYSTEM_CHAT,
        ),
    ],
    "sharegpt_kto": [
        ({"conversations": [{"from": "human", "value": ASK}, {"from": "gpt", "value": GOOD}], "kto_tag": True}, WANTED),
        ({"messages": [user(ASK), said(GOOD)], "kto_tag": True}, WANTED),
    ],
    "ms_swift": [
        ({"messages": [user(ASK), said(GOOD)], "rejected_response": BAD}, CHAT),
        ({"messages": [SYSTEM, user(ASK), said(GOOD)], "rejected_response": BAD}, SYSTEM_CHAT),
        ({"messages": [user(ASK), said(GOOD)], "rejected_messages": [user(ASK), said(BAD)]}, CHAT),
    ],
    "ms_swift_kto": [({"messages": [user(ASK), said(GOOD)], "label": 1}, WANTED)],
    "axolotl": [
        ({"system": "Be brief.", "question": ASK, "chosen": GOOD, "rejected": BAD}, SYSTEM_CHAT),
        ({"system": "Be brief.", "input": ASK, "chosen": GOOD, "rejected": BAD}, SYSTEM_CHAT),
        (
            {"instruction": ASK, "chosen_response": GOOD, "rejected_response": BAD}
            | {"chosen_avg_rating": 4.5, "rejected_avg_rating": 2.0},
            CHAT | {"margin": 2.5},
        ),
        ({"messages": [user(ASK)], "chosen": said(GOOD), "rejected": said(BAD)}, CHAT),
    ],
    "openrlhf": [({"input": ASK, "chosen": GOOD, "rejected": BAD}, {"prompt": ASK, "chosen": GOOD, "rejected": BAD})],
    "openrlhf_kto": [
        ({"input": ASK, "output": GOOD, "label": 0}, {"prompt": ASK, "completion": GOOD, "label": False}),
    ],
    "nemo": [
        (
            {
                "context": [user(ASK)],
                "completions": [{"rank": 1, "completion": [said(BAD)]}, {"rank": 0, "completion": [said(GOOD)]}],
            },
            GROUP,
        ),
    ],
    "ultrafeedback": [
        (
            {
                "instruction": ASK,
                "source": "made",
                "completions": [
                    {"response": BAD, "overall_score": 2.0, "model": "a"},
                    {"response": GOOD, "overall_score": 8.5, "model": "b"},
                ],
            },
            GROUP,
        ),
    ],
    "argilla": [({"instruction": ASK, "generations": [BAD, GOOD], "ratings": [1.0, 4.0]}, GROUP)],
    "nectar": [
        (
            {"prompt": f"{TURN} ", "answers": [{"answer": BAD, "rank": 2.0}, {"answer": GOOD, "rank": 1.0}]},
            {"prompt": TURN, "completions": [f" {BAD}", f" {GOOD}"], "ranks": [1, 0]},
        ),
    ],
    "reward_bench": [
        (
            {"prompt": ASK, "chosen": [GOOD], "rejected": [BAD, "Never."], "subset": "made"},
            {
                "prompt": [user(ASK)],
                "completions": [[said(GOOD)], [said(BAD)], [said("Never.")]],
                "ranks": [0, 1, 1],
            },
        ),
    ],
}
