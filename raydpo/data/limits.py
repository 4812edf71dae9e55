"""How far token rows reach, and how far a model does: beyond its tables a forward pass ends in an IndexError."""

from __future__ import annotations

from dataclasses import dataclass

from raydpo.config.errors import UserError
from raydpo.data.tokens import TokenRow


@dataclass(frozen=True)
class Extent:
    """The largest of everything in some rows; that of no rows by default."""

    longest: int = 0  # tokens of a prompt and its longest completion: a sequence, as a model reads it
    packed: int = 0  # tokens of a prompt and all its completions: a row, as micro-batches hold it
    largest_id: int = -1

    @classmethod
    def of_row(cls, row: TokenRow) -> Extent:
        """The extent of one row."""
        prompt = len(row.prompt_ids)
        lengths = [len(ids) for ids in row.completions]
        largest = max(max(ids) for ids in (row.prompt_ids, *row.completions))
        return cls(prompt + max(lengths), prompt + sum(lengths), largest)


@dataclass(frozen=True)
class ModelLimits:
    """What a model can read; None where nothing bounds it, or nothing is known."""

    model: str
    vocabulary: int | None  # rows of its embedding: ids are below
    positions: int | None  # tokens of a sequence

    def check(self, extent: Extent) -> None:
        """Raise UserError where rows of this extent reach beyond the model."""
        if self.vocabulary is not None and extent.largest_id >= self.vocabulary:
            raise UserError(
                f"token id {extent.largest_id} is beyond the {self.vocabulary} embeddings of model {self.model!r} "
                "(vocab_size in its config.json): the tokenizer has tokens that the model lacks. Give the tokenizer "
                "that the model was trained with, resize the model's embeddings, or remove the rows with that token."
            )
        if self.positions is not None and extent.longest > self.positions:
            raise UserError(
                f"a prompt and its completion have {extent.longest} tokens, and model {self.model!r} has "
                f"{self.positions} positions; set data.max_length={self.positions} or less and a data.truncation, or "
                "use a model with more."
            )
