"""Reward functions: text in, number out.

A function is named in the run file, either by one of FUNCTIONS or as `package.module:function`.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import math
import traceback
from collections.abc import Callable, Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from raydpo.errors import UserError
from raydpo.reward.contract import Group, Rate, RatedGroup, where

_FORMS = ("package.module:function", "reward_model:PATH", "ensemble:PATH,PATH", "implicit:PATH")

RewardFunction = Callable[
    [Sequence[str], Sequence[str]], list[float]
]  # (prompts, completions) -> one reward a completion


def check_function(name: str) -> None:
    """Raise UserError for a function that cannot be there, without importing it: fit for a preflight."""
    module, colon, function = name.partition(":")
    if not colon:
        if name not in FUNCTIONS:
            raise UserError(f"there is no reward function {name!r}; {_nearest(name)}")
        if name == "vader":
            _require_vader()
        return
    if not all(part.isidentifier() for part in [*module.split("."), function]):
        raise UserError(f"reward {name!r} is not of the form package.module:function")
    # Only the top-level package: finding a submodule would import its parents.
    if importlib.util.find_spec(module.partition(".")[0]) is None:
        raise _no_module(name, module.partition(".")[0])


def load_function(name: str) -> RewardFunction:
    """The function of this name; its rewards are checked to be finite and one a completion.

    Raises UserError for a name that leads nowhere (which part failed is in the message), and, when called, for
    rewards that are no use. What the function itself raises passes through.
    """
    check_function(name)
    return _checked(name, _imported(name) if ":" in name else FUNCTIONS[name]())


def rate_by_function(name: str) -> Rate:
    """The function of this name as a reward of groups. It rates all that it is given in one call.

    Raises UserError as load_function does; when called, as rate_groups does.
    """
    function = load_function(name)

    def rate(groups: Sequence[Group]) -> Iterator[list[RatedGroup]]:
        if groups:
            rewards = rate_groups(name, function, groups)
            yield [RatedGroup(group, values) for group, values in zip(groups, rewards, strict=True)]

    return rate


def rate_groups(name: str, function: RewardFunction, groups: Sequence[Group]) -> list[list[float]]:
    """The rewards of groups, all in one call, which is what models behind a function like best.

    Where that fails, prompts are tried one by one to find the one to name. Raises UserError with function, row, prompt
    and what was wrong; its cause is what the function raised.
    """
    try:
        return _rated(function, groups)
    except Exception as error:
        traceback.print_exc()
        for group in groups:
            try:
                _rated(function, [group])
            except Exception as own:
                raise _failed(name, own, f"prompt {group.row}, {group.prompt!r}") from own
        raise _failed(name, error, f"{where(groups)} together, and at none of them alone") from error


def function_source(name: str) -> str | None:
    """A name for the code behind a function: the hash of the file that defines it. What that imports is not seen.

    None where there is no such file. Raises UserError for a function that cannot be there.
    """
    check_function(name)
    module = name.partition(":")[0] if ":" in name else __name__
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():  # built in, or in an archive
        return None
    return hashlib.blake2b(Path(spec.origin).read_bytes(), digest_size=16).hexdigest()


def _vader() -> RewardFunction:
    """VADER's compound score, -1..1, of the whole review: prompt and completion together."""
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    analyzer = SentimentIntensityAnalyzer()

    def score(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
        texts = (prompt + completion for prompt, completion in zip(prompts, completions, strict=True))
        return [analyzer.polarity_scores(text)["compound"] for text in texts]

    return score


def _length() -> RewardFunction:
    """Words of the completion: a reward whose right answer is plain to see, for debugging."""
    return lambda prompts, completions: [float(len(completion.split())) for completion in completions]


FUNCTIONS: dict[str, Callable[[], RewardFunction]] = {"length": _length, "vader": _vader}


def _imported(name: str) -> Callable[..., Any]:
    module_name, _, function_name = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # A module that the function's own module misses is the function's business: keep that traceback.
        if not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise _no_module(name, str(error.name)) from error
    if function_name not in vars(module):
        raise UserError(f"reward {name!r}: module {module_name} has no {function_name!r}; {_offers(module)}")
    function = vars(module)[function_name]
    if not callable(function):
        kind = type(function).__name__
        raise UserError(f"reward {name!r}: {function_name} is of type {kind}, not a function; {_offers(module)}")
    return function


def _checked(name: str, function: Callable[..., Any]) -> RewardFunction:
    def score(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
        rewards = list(function(prompts, completions))
        if len(rewards) != len(completions):
            raise UserError(
                f"reward {name!r} gave {len(rewards)} rewards for {len(completions)} completions, the first of them "
                f"for prompt {prompts[0] if prompts else ''!r}; return exactly one a completion, in their order"
            )
        return [_finite(name, prompt, reward) for prompt, reward in zip(prompts, rewards, strict=True)]

    return score


def _rated(function: RewardFunction, groups: Sequence[Group]) -> list[list[float]]:
    prompts: list[str] = []
    completions: list[str] = []
    for group in groups:
        prompts += [group.prompt] * len(group.completions)
        completions += group.completions
    rewards = iter(function(prompts, completions))
    return [[next(rewards) for _ in group.completions] for group in groups]


def _failed(name: str, error: Exception, place: str) -> UserError:
    if isinstance(error, UserError):  # one of ours, with function, prompt and value in it
        return UserError(f"{error} (at {place})")
    frame = traceback.extract_tb(error.__traceback__)[-1]
    line = f"{frame.filename}:{frame.lineno}"
    return UserError(
        f"reward {name!r} raised {type(error).__name__}: {error} ({line}) at {place}; mend the function and start "
        "again: what has been sampled is kept."
    )


def _finite(name: str, prompt: str, reward: Any) -> float:
    try:
        value = float(reward)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"reward {name!r} gave {reward!r} for prompt {prompt!r}; a reward is a finite number")
    return value


def _require_vader() -> None:
    if importlib.util.find_spec("vaderSentiment") is None:
        raise UserError("reward 'vader' needs the package vaderSentiment: pip install 'raydpo[demo]'")


def _nearest(name: str) -> str:
    near = get_close_matches(name, FUNCTIONS, n=1)
    known = f"known are {', '.join([*FUNCTIONS, *_FORMS])}"
    return f"did you mean {near[0]!r}? ({known})" if near else known


def _no_module(name: str, missing: str) -> UserError:
    return UserError(f"reward {name!r}: there is no module {missing!r}; install it, or put its folder on PYTHONPATH")


def _offers(module: Any) -> str:
    own = [key for key, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__]
    functions = [key for key in own if callable(vars(module)[key]) and not key.startswith("_")]
    return f"it defines {', '.join(functions)}" if functions else "it defines no public function"
