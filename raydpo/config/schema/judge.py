"""The section `judge`: who compares completions, with what, and what it may cost."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from raydpo.config.schema.section import Cpus, Location, ModelLocation, NonNegativeInt, PositiveInt, Section

Price = Annotated[float, Field(ge=0)]


class Prices(Section):
    """What an endpoint charges, in one currency per million tokens."""

    input: Price = 0.0
    output: Price = 0.0


class Budget(Section):
    """What a judge may use of its endpoint in all, restarts included; nothing is asked beyond it."""

    requests: PositiveInt | None = None
    tokens: PositiveInt | None = None  # of questions and replies together
    cost: float | None = Field(None, gt=0)  # in the currency of the prices


class AskedJudge(Section):
    """One judge: a reward function, or a model behind an OpenAI-compatible endpoint, remote or served by the run."""

    reward: str | None = None  # a reward function: the higher reward wins, equal ones tie
    model: str | None = None  # the name by which the endpoint at base_url knows it
    serve: ModelLocation | None = None  # a chat model that the run serves with vLLM while it judges
    base_url: str | None = None  # default: OpenAI's own
    # The variable that holds the key. By default OPENAI_API_KEY for OpenAI itself, and no key for any other base_url.
    api_key_env: str | None = Field(None, pattern=r"^[A-Z_][A-Z0-9_]*$")
    question: str = "dialogue"  # summary, concise_summary, dialogue, or a file with {prompt}, {first} and {second}
    temperature: float | None = Field(0.0, ge=0)  # null: not said, for models that refuse it
    max_tokens: PositiveInt = 256  # of a reply
    parallel: PositiveInt = 8  # requests at once
    timeout: float = Field(60.0, gt=0)  # seconds for one reply
    retries: NonNegativeInt = 5  # of a request that fails, with backoff
    prices: Prices = Prices()
    budget: Budget = Budget()
    cpus: Cpus = 1  # of the server that serve starts
    gpus: float = Field(0, ge=0)  # the same
    max_model_len: PositiveInt = 4096  # the same
    start_timeout: PositiveInt = 600  # seconds until the server must answer

    @model_validator(mode="after")
    def _one_kind(self) -> AskedJudge:
        named = [name for name in ("reward", "model", "serve") if getattr(self, name)]
        if len(named) != 1:
            raise ValueError(f"a judge has one of reward, model and serve; this one has {', '.join(named) or 'none'}")
        if self.base_url and not self.model:
            raise ValueError("base_url is where a judge with model is asked; set model, or remove base_url")
        if self.budget.cost is not None and self.prices == Prices():
            raise ValueError("budget.cost needs prices.input and prices.output; set what the endpoint charges")
        return self


class Judge(Section):
    """Compare the samples of evaluations with others on the same prompts, by judges, and count who wins."""

    judges: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")], AskedJudge] = Field(min_length=1)
    against: Literal["reference", "chosen"] | Location = "reference"  # or the output_dir of another run
    column: str = "chosen"  # of the files in evaluate.prompts: what against=chosen compares with
    steps: Literal["all", "last"] = "all"  # evaluations that are judged; the reference's too, unless it is the other
    sets: list[str] = []  # of evaluate.sets, whose samples are judged beside those of the section's own prompts
    temperatures: list[float] = []  # of evaluate.temperatures, the same beside decoding.temperature
    limit: PositiveInt | None = None  # prompts of each evaluation
    swap: bool = True  # ask about every two completions in both orders; false: in one of them, drawn by hash
    labels: list[Location] = []  # rows with prompt, first, second and a human's label: first, second or tie
