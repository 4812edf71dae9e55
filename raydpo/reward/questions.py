"""What judges are asked, in words, and how their choice is read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from raydpo.errors import UserError

QUESTIONS = {
    "summary": """Here are a text and two summaries of it, A and B. Which one is the better summary? A good summary \
holds what matters most in the text, says nothing that the text does not say, and can be understood without it.

--- TEXT ---
{prompt}

--- SUMMARY A ---
{first}

--- SUMMARY B ---
{second}
--- END ---""",
    "concise_summary": """Here are a text and two summaries of it, A and B. Which one is better at saying what matters \
most in few words? A good summary holds the main points and nothing that the text does not say; it leaves out side \
issues, and of two that tell as much the shorter one is better.

--- TEXT ---
{prompt}

--- SUMMARY A ---
{first}

--- SUMMARY B ---
{second}
--- END ---""",
    "dialogue": """Here are a conversation and two replies, A and B, that an assistant might give next. Which one \
helps the user more? A helpful reply does what the user asks for, is right, and wastes none of the user's time.

--- CONVERSATION ---
{prompt}

--- REPLY A ---
{first}

--- REPLY B ---
{second}
--- END ---""",
}

_HOW = """

First compare the two in one sentence. Then give your choice on a last line of its own, which reads exactly \
"Choice: A" or "Choice: B"."""
_FIRMER = """

Answer with one line and nothing else: "Choice: A" or "Choice: B". Choose even if both seem equally good or bad."""

_CHOICE = re.compile(r"[*_`\s]*Choice:[*_`\s]*([AB])[*_`.\s]*")  # marks of emphasis aside, to the letter
_PLACES = re.compile(r"\{(prompt|first|second)\}")


def read_question(name: str) -> str:
    """A question by its name in QUESTIONS, or from a file. UserError for one that does not show all three texts."""
    if name in QUESTIONS:
        return QUESTIONS[name]
    try:
        text = Path(name).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        known = ", ".join(QUESTIONS)
        raise UserError(
            f"judge question {name!r} is none of {known}, and no file that can be read ({error})."
        ) from error
    if lacking := [place for place in ("prompt", "first", "second") if f"{{{place}}}" not in text]:
        raise UserError(
            f"judge question {name} lacks {', '.join(f'{{{place}}}' for place in lacking)}; it must show the judge the "
            "prompt and both completions, which are called A ({first}) and B ({second})."
        )
    return text.strip()


def first_wording(question: str, *, prompt: str, first: str, second: str) -> str:
    """The whole message to the judge."""
    return _filled(question, {"prompt": prompt, "first": first, "second": second}) + _HOW


def firmer_wording(question: str, *, prompt: str, first: str, second: str) -> str:
    """The same, for a judge that has answered the first without a choice."""
    return _filled(question, {"prompt": prompt, "first": first, "second": second}) + _FIRMER


def read_choice(reply: str) -> Literal["first", "second"] | None:
    """The choice on the last line that is not empty; None where that line is anything else."""
    lines = [line for line in reply.splitlines() if line.strip()]
    found = _CHOICE.fullmatch(lines[-1]) if lines else None
    if found is None:
        return None
    return "first" if found[1] == "A" else "second"


def _filled(question: str, texts: Mapping[str, str]) -> str:
    """In one go, so that braces inside the texts stand for themselves."""
    return _PLACES.sub(lambda place: texts[place[1]].strip(), question)
