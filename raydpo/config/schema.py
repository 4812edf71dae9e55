"""The run file: one strict schema, no heavy import.

Every section is a frozen pydantic model that refuses unknown keys; bounds live on the fields, relations between
fields in validators. Units are in the names or the comments: lengths in tokens, batch sizes in rows.
"""

from __future__ import annotations

import datetime
import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
Cpus = Annotated[float, Field(ge=0)]


def _absolute(path: str) -> str:
    """Workers run elsewhere, so a relative path is made absolute where the run file is read; a URI stays."""
    if "://" in path:
        return path
    local = os.path.expanduser(path)
    if local.startswith("~"):
        raise ValueError(f"there is no user {local.split('/')[0][1:]!r}; write the directory out")
    return str(Path(local).absolute())


def _absolute_if_local(model: str) -> str:
    """A model may also be a hub name, which is what a name without a directory is taken for."""
    looks_local = model.startswith((".", "/", "~")) or Path(model).exists()
    return _absolute(model) if looks_local else model


def _local(path: str) -> str:
    if "://" in path:
        raise ValueError(f"{path} is an address; set a directory, on a disk that every node mounts")
    return path


def _listed(names: object) -> object:
    """A single name is a list of one."""
    return [names] if isinstance(names, str) else names


Location = Annotated[str, AfterValidator(_absolute)]
Directory = Annotated[str, AfterValidator(_local), AfterValidator(_absolute)]
ModelLocation = Annotated[str, AfterValidator(_absolute_if_local)]
Names = Annotated[list[str], Field(min_length=1), BeforeValidator(_listed)]


class Section(BaseModel):
    """A section of the run file: immutable, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Model(Section):
    """The policy's starting weights, its tokenizer and the number format of every forward pass."""

    path: ModelLocation  # a directory in Hugging Face format, or a hub name where a hub can be reached
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    fp32_head: bool = False  # logits in float32 although dtype is bfloat16: half the rounding error, a slower head


class Columns(Section):
    """What the input files call their columns; data.format says which of them are read."""

    prompt: str = "prompt"
    chosen: str = "chosen"
    rejected: str = "rejected"
    margin: str | None = None  # of pairs, where they have one: how far apart the completions are
    completion: str = "completion"
    label: str = "label"  # true or false: whether the completion is wanted
    completions: str = "completions"
    ranks: str = "ranks"  # one whole number a completion, 1 is the best, equal ones are ties
    scores: str = "scores"  # or one number a completion, the higher the better

    def read_by(self, rows: str) -> list[str]:
        """Keys of the columns that rows of a format have, by data.format."""
        return ["prompt", *_COLUMNS_OF[rows]]


_COLUMNS_OF = {
    "pairs": ("chosen", "rejected", "margin"),
    "unpaired": ("completion", "label"),
    "ranked": ("completions", "ranks", "scores"),
}
Format = Literal["pairs", "unpaired", "ranked"]


class Data(Section):
    """Preference data and how it becomes tokens."""

    train: list[Location] = []  # .jsonl, .jsonl.gz, .parquet, or globs; empty when the sample stage makes the rows
    held_out: list[Location] = []  # rows never trained on, for pair accuracy
    held_out_fraction: float = Field(0.0, ge=0, lt=1)  # or: this share of the prompts, chosen by their hash
    format: Format = "pairs"  # what a row of these files is: two completions, one with a label, or several in order
    columns: Columns = Columns()
    ignore: list[str] = []  # columns, and keys of chat messages, that mean something and are left out knowingly
    max_length: PositiveInt = 1024  # tokens of prompt plus the longer completion
    truncation: Literal["error", "drop", "truncate_prompt_left", "truncate_completion"] = "error"
    append_eos: bool = True
    date: datetime.date | None = None  # for chat templates that print today's date, which are refused without it
    rows_per_shard: PositiveInt = 1000

    @model_validator(mode="after")
    def _one_held_out_rule(self) -> Data:
        if self.held_out and self.held_out_fraction:
            raise ValueError("held_out and held_out_fraction exclude each other; keep one")
        return self

    @model_validator(mode="after")
    def _nothing_that_is_read_is_ignored(self) -> Data:
        read = {getattr(self.columns, key) for key in self.columns.read_by(self.format)} | {"role", "content"}
        both = sorted(read.intersection(self.ignore))
        if both:
            raise ValueError(f"data.ignore names {', '.join(both)}, which is read; take it out of the list")
        return self

    @model_validator(mode="after")
    def _columns_that_are_named_are_read(self) -> Data:
        named = {key for key, value in self.columns if value != getattr(Columns(), key)}
        unread = sorted(named.difference(self.columns.read_by(self.format)))
        if unread:
            raise ValueError(
                f"data.columns.{unread[0]} is set, and rows of data.format={self.format} have no such column; remove "
                "it, or set the format that has it"
            )
        return self


class Pool(Section):
    """An elastic pool of actors and what each of them asks of the cluster."""

    min_actors: PositiveInt = 1
    max_actors: PositiveInt = 1
    cpus: Cpus = 1
    gpus: float = Field(0, ge=0)

    @model_validator(mode="after")
    def _floor_below_ceiling(self) -> Pool:
        if self.min_actors > self.max_actors:
            raise ValueError(f"min_actors={self.min_actors} is above max_actors={self.max_actors}")
        return self


class Reference(Section):
    """The reference model and the pool that scores with it."""

    model: ModelLocation | None = None  # default: the export of the sft stage where there is one, else model.path
    store: Location | None = None  # default: <output_dir>/reference; a sweep shares one, in a directory or at s3://...
    pool: Pool = Pool()
    tokens_per_batch: PositiveInt = 4096
    keep_token_logps: bool = True


class Workers(Section):
    """The Ray Train worker group."""

    count: PositiveInt = 1
    min_count: PositiveInt | None = None  # go on with so few where the cluster has no room for `count`
    cpus: Cpus = 1
    gpus: float = Field(0, ge=0)

    @property
    def least(self) -> int:
        """Workers that training must have."""
        return self.min_count or self.count

    @model_validator(mode="after")
    def _least_is_not_most(self) -> Workers:
        if self.least > self.count:
            raise ValueError(f"workers.min_count={self.min_count} is more than workers.count={self.count}; lower it")
        return self


class Optimizer(Section):
    """The optimizer and the shape of its learning rate; lr is the peak."""

    name: Literal["rmsprop", "adamw"] = "rmsprop"
    lr: float = Field(1e-6, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: NonNegativeInt = 150
    max_grad_norm: float = Field(10.0, ge=0)  # 0 switches clipping off


class Zero(Section):
    """DeepSpeed's sharding."""

    stage: Literal[0, 1, 2, 3] = 2
    offload_optimizer: bool = False


class Objective(Section):
    """The preference loss, in TRL's words; docs/objectives.md has all of them.

    Beside the names and weights, every key is an argument of a loss. One that is left out is the loss's own default;
    one that is set for a loss without it is an error.
    """

    loss_type: Names = ["sigmoid"]  # a name, or the names of a weighted sum
    loss_weights: list[Annotated[float, Field(ge=0)]] | None = None  # one a name; by default 1
    name: Literal["dpo"] | None = None  # what run files said before there were other losses: dpo is sigmoid
    beta: float | None = Field(None, gt=0)
    label_smoothing: float | None = Field(None, ge=0, lt=0.5)
    f_divergence_type: Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"] | None = None
    f_alpha_divergence_coef: float | None = None
    ld_alpha: float | None = Field(None, ge=0, le=1)
    use_margin: bool | None = None
    use_weighting: bool | None = None
    discopop_tau: float | None = Field(None, gt=0)
    simpo_gamma: float | None = Field(None, ge=0)
    cpo_alpha: float | None = Field(None, ge=0)
    desirable_weight: float | None = Field(None, ge=0)
    undesirable_weight: float | None = Field(None, ge=0)
    unlikelihood_alpha: float | None = Field(None, ge=0, le=1)

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments that are set."""
        return self.model_dump(exclude={"loss_type", "loss_weights", "name"}, exclude_none=True)

    @model_validator(mode="after")
    def _one_name(self) -> Objective:
        if self.name and self.loss_type not in (["sigmoid"], ["dpo"]):
            asked = ", ".join(self.loss_type)
            raise ValueError(f"name={self.name} and loss_type={asked} are not the same; remove name")
        return self


class Training(Section):
    """What every kind of training shares."""

    workers: Workers = Workers()
    epochs: PositiveInt = 1
    max_steps: PositiveInt | None = None
    global_batch_size: PositiveInt = 64  # rows: pairs, ranked groups or single completions
    tokens_per_microbatch: PositiveInt = 4096  # packed tokens that one forward pass may hold
    tail: Literal["carry", "drop"] = "carry"  # the epoch's last partial batch: into the next epoch, or dropped
    optimizer: Optimizer = Optimizer()
    zero: Zero = Zero()
    activation_checkpointing: bool = False
    checkpoint_every: PositiveInt = 100  # steps
    keep_last: PositiveInt = 2  # checkpoints
    keep_every: PositiveInt | None = None  # steps: checkpoints at multiples of it stay for good
    max_failures: NonNegativeInt = 3  # restarts of the worker group before the run gives up
    metrics: list[Literal["entropy", "mean_token_accuracy", "logits"]] = []  # of every token, from all logits

    @model_validator(mode="after")
    def _batch_divides_by_workers(self) -> Training:
        size, count = self.global_batch_size, self.workers.count
        if self.workers.min_count:
            if size < count:
                raise ValueError(f"global_batch_size={size} is less than workers.count={count}; lower workers.count")
        elif size % count:
            below, above = size - size % count, size + count - size % count
            nearest = f"{below} or {above}" if below else f"{above}"
            fitting = ", ".join(str(workers) for workers in range(1, size + 1) if size % workers == 0)
            raise ValueError(
                f"global_batch_size={size} does not divide by workers.count={count}; set it to {nearest}, or keep it, "
                f"as a run that resumes must, with {fitting} workers"
            )
        return self


class Train(Training):
    """Preference training."""

    objective: Objective = Objective()
    reference: Literal["precompute", "overlap"] = "precompute"  # overlap: scored ahead of the steps, while they train
    evaluate_every: PositiveInt | None = None  # steps; the last step is evaluated in any case
    keep_best: Literal["reward", "pair_accuracy"] | None = None  # the checkpoint that evaluated best stays too
    step0_tolerance: float = Field(0.5, gt=0)  # largest |Δ logp| per sequence, in nats, that the first batch may show


class Sft(Training):
    """Supervised fine-tuning before preference training; its export becomes model and reference."""

    train: list[Location]  # rows with a completion and, optionally, a prompt
    prompt: str = "prompt"
    completion: str = "completion"


class Decoding(Section):
    """How completions are sampled."""

    temperature: float = Field(1.0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    max_tokens: PositiveInt = 64


class Sampler(Section):
    """The vLLM engines that sample; they stay up and swap weights."""

    actors: PositiveInt = 1
    cpus: Cpus = 1  # per actor
    gpus: float = Field(0, ge=0)
    max_model_len: PositiveInt = 512
    max_num_seqs: PositiveInt = 128
    kv_cache_gib: float = Field(1.0, gt=0)  # CPU only
    gpu_memory_utilization: float = Field(0.4, gt=0, lt=1)  # GPU only


class Sample(Section):
    """Sample completions from the reference, score them and compare them."""

    prompts: list[Location]
    column: str = "prompt"
    limit: PositiveInt | None = None  # prompts
    completions_per_prompt: int = Field(4, ge=2)
    pairs: Literal["all", "best_worst"] = "all"  # every two of a prompt, as one ranked row; or one pair a prompt
    decoding: Decoding = Decoding()
    scorer: str = "vader"  # a name of raydpo.reward.functions, or package.module:function

    @model_validator(mode="after")
    def _completions_differ(self) -> Sample:
        if self.decoding.temperature == 0:
            raise ValueError(
                f"sample.decoding.temperature=0 gives the same completion {self.completions_per_prompt} times; set a "
                "temperature above 0"
            )
        return self


class Evaluate(Section):
    """Sample held-out prompts from reference and policy and compare."""

    prompts: list[Location]
    column: str = "prompt"
    limit: PositiveInt | None = 256
    decoding: Decoding = Decoding()
    scorer: str = "vader"
    gpus: float = Field(0, ge=0)  # of the task that scores samples and held-out pairs by policy and reference
    tokens_per_batch: PositiveInt = 4096
    samples_in_report: PositiveInt = 16


class Timeouts(Section):
    """Seconds after which training calls something hung, names it and fails; see train.max_failures."""

    start: PositiveInt = 300  # for all workers to be placed and up; twice tried again
    worker: PositiveInt = 600  # for a worker process to answer Ray Train
    collective: PositiveInt = 1800  # for the slowest rank in any exchange between ranks
    data: PositiveInt = 600  # for the rows of the next step, the very first included


class Cluster(Section):
    """How to reach Ray. num_cpus and object_store_gib apply only to a local cluster that the job starts itself."""

    num_cpus: PositiveInt | None = None
    object_store_gib: float | None = Field(None, ge=0.0733)  # Ray's minimum is 75 MiB
    env: dict[str, str] = {}  # environment of every worker, and of a local cluster


class RunFile(Section):
    """The whole run."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    output_dir: Directory
    seed: int = Field(0, ge=0, lt=2**62)  # generators take 63 bits, and every completion adds 1
    model: Model
    data: Data = Data()
    sft: Sft | None = None
    sample: Sample | None = None
    reference: Reference = Reference()
    train: Train = Train()
    sampler: Sampler = Sampler()
    evaluate: Evaluate | None = None
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
    def _best_is_measured(self) -> RunFile:
        train, data = self.train, self.data
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
        elastic = [name for name, part in (("train", self.train), ("sft", self.sft)) if part and part.workers.min_count]
        if elastic and (self.evaluate or self.sample or self.train.reference == "overlap"):
            raise ValueError(
                f"{elastic[0]}.workers.min_count goes with neither evaluate nor sample nor train.reference=overlap: "
                "Ray Train counts what the nodes have, not what samplers and scorers leave free of it"
            )
        return self

    @model_validator(mode="after")
    def _float32_masters(self) -> RunFile:
        for name, training in (("train", self.train), ("sft", self.sft)):
            if training and training.zero.stage == 0 and self.model.dtype == "bfloat16":
                raise ValueError(
                    f"{name}.zero.stage=0 with bfloat16: DeepSpeed keeps no float32 master weights there, so small "
                    "updates round away; use stage 1, 2 or 3, or model.dtype=float32"
                )
        return self
