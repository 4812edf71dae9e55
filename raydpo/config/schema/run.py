"""The whole run file: its sections, and the relations between them."""

from __future__ import annotations

from pydantic import Field, model_validator

from raydpo.config.schema.best_of_n import BestOfN
from raydpo.config.schema.cluster import Cluster, Timeouts
from raydpo.config.schema.data import Data
from raydpo.config.schema.evaluate import Evaluate
from raydpo.config.schema.judge import Judge
from raydpo.config.schema.model import Model
from raydpo.config.schema.rating import Rating
from raydpo.config.schema.reference import Reference
from raydpo.config.schema.reward import Reward
from raydpo.config.schema.sampling import Sample, Sampler
from raydpo.config.schema.section import Directory, Section
from raydpo.config.schema.training import Sft, Train, Training


class RunFile(Section):
    """The whole run."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    output_dir: Directory
    seed: int = Field(0, ge=0, lt=2**62)  # generators take 63 bits, and every completion adds 1
    model: Model
    data: Data = Data()
    sft: Sft | None = None
    sample: Sample | None = None
    reward: Reward | None = None
    reference: Reference = Reference()
    train: Train = Train()
    sampler: Sampler = Sampler()
    rating: Rating = Rating()
    evaluate: Evaluate | None = None
    judge: Judge | None = None
    best_of_n: BestOfN | None = None
    timeouts: Timeouts = Timeouts()
    cluster: Cluster = Cluster()

    @model_validator(mode="after")
    def _pairs_come_from_somewhere(self) -> RunFile:
        if not self.data.train and self.sample is None:
            raise ValueError("no preference data: set data.train, or a sample section that makes it")
        if self.data.train and self.sample is not None:
            raise ValueError("data.train and sample both give the rows; keep one")
        return self

    @model_validator(mode="after")
    def _completions_have_room(self) -> RunFile:
        for name, part in (("sample", self.sample), ("evaluate", self.evaluate)):
            if part and part.decoding.max_tokens >= self.sampler.max_model_len:
                raise ValueError(
                    f"{name}.decoding.max_tokens={part.decoding.max_tokens} leaves no room for a prompt within "
                    f"sampler.max_model_len={self.sampler.max_model_len}; raise the latter"
                )
        return self

    @model_validator(mode="after")
    def _judged_is_sampled(self) -> RunFile:
        if self.judge is None:
            return self
        if self.evaluate is None:
            raise ValueError("judge compares the samples of evaluations; add an evaluate section")
        for name in self.judge.sets:
            if name not in self.evaluate.sets:
                known = ", ".join(self.evaluate.sets) or "none"
                raise ValueError(f"judge.sets names {name}, which evaluate.sets does not have; known are {known}")
        for temperature in self.judge.temperatures:
            if temperature not in self.evaluate.all_temperatures:
                known = ", ".join(map(str, self.evaluate.all_temperatures))
                raise ValueError(
                    f"judge.temperatures has {temperature}, at which nothing is sampled; add it to "
                    f"evaluate.temperatures, or take of {known}"
                )
        return self

    @model_validator(mode="after")
    def _best_of_n_is_rated(self) -> RunFile:
        if self.best_of_n is None:
            return self
        if self.evaluate is None:
            raise ValueError("best_of_n needs an evaluate section, whose reward and prompts it takes; add one")
        if self.evaluate.decoding.temperature == 0:
            raise ValueError(
                "evaluate.decoding.temperature=0 gives best_of_n the same completion again and again; set a "
                "temperature above 0"
            )
        return self

    @model_validator(mode="after")
    def _best_is_measured(self) -> RunFile:
        train = self.train
        data = self.data
        if train.keep_best is None:
            return self
        if self.evaluate is None:
            raise ValueError(f"train.keep_best={train.keep_best} needs an evaluate section; add one or drop keep_best")
        if train.evaluate_every is None or train.evaluate_every % train.checkpoint_every:
            raise ValueError(
                f"train.keep_best needs a checkpoint at every evaluation: set train.evaluate_every to a multiple of "
                f"train.checkpoint_every={train.checkpoint_every}"
            )
        if train.keep_best == "pair_accuracy" and not (data.held_out or data.held_out_fraction):
            raise ValueError("train.keep_best=pair_accuracy needs data.held_out or data.held_out_fraction")
        of_samples = self.sample and not data.held_out  # which are compared, whatever data.format says of files
        if train.keep_best == "pair_accuracy" and data.format == "unpaired" and not of_samples:
            raise ValueError("train.keep_best=pair_accuracy needs pairs, and rows of data.format=unpaired have none")
        return self

    @model_validator(mode="after")
    def _elastic_workers_are_alone(self) -> RunFile:
        elastic = [name for name, part in self._trainings() if part.workers.min_count]
        if elastic and (self.evaluate or self.sample or self.train.reference == "overlap"):
            raise ValueError(
                f"{elastic[0]}.workers.min_count goes with neither evaluate nor sample nor train.reference=overlap: "
                "Ray Train counts what the nodes have, not what samplers and scorers leave free of it"
            )
        return self

    @model_validator(mode="after")
    def _float32_masters(self) -> RunFile:
        for name, training in self._trainings():
            if training.zero.stage == 0 and self.model.dtype == "bfloat16":
                raise ValueError(
                    f"{name}.zero.stage=0 with bfloat16: DeepSpeed keeps no float32 master weights there, so small "
                    "updates round away; use stage 1, 2 or 3, or model.dtype=float32"
                )
        return self

    def _trainings(self) -> list[tuple[str, Training]]:
        """The sections that train something, by their keys."""
        sections: dict[str, Training | None] = {"train": self.train, "sft": self.sft, "reward": self.reward}
        return [(name, section) for name, section in sections.items() if section]
