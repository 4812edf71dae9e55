"""What the rooms below are given of a run file: one section, or a few of its values together, never the whole."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from raydpo.config.schema import Cluster, Evaluate, RunFile, Sample, Timeouts, Training
from raydpo.reference.store import Store
from raydpo.reward.names import is_model
from raydpo.workspace.asked import EvaluationSettings
from raydpo.workspace.identity import TrainingSettings
from raydpo.workspace.layout import Layout, store_of
from raydpo.workspace.provenance import Part, TokenSource, sft_source, token_source
from raydpo.workspace.rewards import RewardSettings
from raydpo.workspace.rows import RowSettings, SftRows

if TYPE_CHECKING:
    from raydpo.runtime.best_of_n import BestOfNSettings
    from raydpo.runtime.cluster.preflight import Processes
    from raydpo.runtime.feed.overlap import ScoringBeside
    from raydpo.runtime.judging import JudgeSettings
    from raydpo.runtime.pairing import SampleSettings
    from raydpo.runtime.pools.scorer import ScoringSettings


class RunValues:
    """Reads a run file for its stages. What needs Ray loads it when it is asked for."""

    def __init__(self, run: RunFile) -> None:
        self._run = run

    @property
    def cluster(self) -> Cluster:
        """How to reach Ray."""
        return self._run.cluster

    @property
    def timeouts(self) -> Timeouts:
        """Of training."""
        return self._run.timeouts

    @property
    def base_model(self) -> str:
        """What the whole run starts from, and whose tokenizer it keeps."""
        return self._run.model.path

    @cached_property
    def layout(self) -> Layout:
        """Where the run keeps things."""
        run = self._run
        return Layout(
            run.output_dir,
            model=run.model.path,
            reference=run.reference,
            rows=run.data.train,
            sft=run.sft is not None,
            sample=run.sample is not None,
            reward=run.reward is not None,
        )

    def rows(self) -> RowSettings:
        """Of preference data."""
        run = self._run
        return RowSettings(
            layout=self.layout,
            data=run.data,
            sample=run.sample,
            train=run.train,
            train_is_said="train" in run.model_fields_set,
        )

    def sft_rows(self) -> SftRows:
        """Of the sft stage, which the run file must have."""
        run = self._run
        assert run.sft
        return SftRows(self.layout, run.data, run.sft, run.model.path)

    def training(self) -> TrainingSettings:
        """Of the preference training."""
        run = self._run
        return self._training_of(
            run.train,
            model=self.layout.start_model,
            reference_model=self.layout.reference_model,
            tokens=self.layout.train_tokens,
            directory=self.layout.train,
        )

    def sft_training(self) -> TrainingSettings:
        """Of the supervised fine-tuning, which the run file must have."""
        run = self._run
        assert run.sft
        return self._training_of(
            run.sft,
            model=run.model.path,
            reference_model=None,
            tokens=self.layout.sft_tokens,
            directory=self.layout.sft,
        )

    def reward_training(self) -> TrainingSettings:
        """Of the reward model, which the run file must have."""
        run = self._run
        assert run.reward
        return self._training_of(
            run.reward,
            model=run.reward.model or self.layout.start_model,
            reference_model=None,
            tokens=self.layout.train_tokens,
            directory=self.layout.reward,
        )

    def _training_of(
        self, training: Training, *, model: str, reference_model: str | None, tokens: Path, directory: Path
    ) -> TrainingSettings:
        run = self._run
        return TrainingSettings(
            training=training,
            seed=run.seed,
            dtype=run.model.dtype,
            fp32_head=run.model.fp32_head,
            model=model,
            reference_model=reference_model,
            tokens=tokens,
            directory=directory,
            chat_template=run.data.chat_template,
        )

    def evaluations(self) -> EvaluationSettings:
        """Of its evaluations, whether it asks for any or not."""
        run = self._run
        return EvaluationSettings(
            layout=self.layout,
            seed=run.seed,
            model=run.model,
            data=run.data,
            reference=run.reference,
            sampler=run.sampler,
            training=self.training(),
            train=run.train,
            evaluate=run.evaluate,
            rating=run.rating,
        )

    def rewards(self) -> RewardSettings:
        """Of how completions are rated."""
        return RewardSettings(self.layout, self._run.model, self._run.rating)

    def judging(self) -> JudgeSettings:
        """Of its judges, which the run file must have."""
        from raydpo.runtime.judging import JudgeSettings

        run = self._run
        assert run.judge
        return JudgeSettings(self.evaluations(), run.judge)

    def best_of_n(self) -> BestOfNSettings:
        """Of its Best-of-N, which the run file must have."""
        from raydpo.runtime.best_of_n import BestOfNSettings

        run = self._run
        assert run.best_of_n
        return BestOfNSettings(
            layout=self.layout,
            seed=run.seed,
            model=run.model,
            data=run.data,
            sampler=run.sampler,
            best_of_n=run.best_of_n,
            evaluate=self.rated_for_best_of_n(),
            rating=self.rewards(),
        )

    def rated_for_best_of_n(self) -> Evaluate:
        """The section evaluate with the prompts of best_of_n, which the run file must have."""
        run = self._run
        assert run.best_of_n
        assert run.evaluate
        own = run.best_of_n.model_dump(include={"prompts", "column", "limit"}, exclude_none=True)
        return run.evaluate.model_copy(update={"sets": {}, "temperatures": [], **own})

    def sampled_by(self) -> list[Sample | Evaluate]:
        """The sections that the run's engines sample for."""
        run = self._run
        best = self.rated_for_best_of_n() if run.best_of_n else None
        return [section for section in (run.sample, run.evaluate, best) if section]

    def token_source(self, part: Part) -> TokenSource:
        """What the tokens of a part are made from."""
        return sft_source(self.sft_rows()) if part == "sft" else token_source(self.rows(), part)

    def store(self) -> Store:
        """The store of its reference model. Reads the model's weights."""
        return store_of(self.layout, self._run.model, self._run.reference.pool)

    def scoring(self) -> ScoringSettings:
        """Of its reference scorers."""
        from raydpo.runtime.pools.scorer import ScoringSettings

        return ScoringSettings(self.layout.reference_model, self._run.model, self._run.reference)

    def scoring_beside(self) -> ScoringBeside:
        """Of its reference scorers where they work ahead of training."""
        from raydpo.runtime.cluster.preflight import beside_scorers
        from raydpo.runtime.feed.overlap import ScoringBeside

        return ScoringBeside(self.scoring(), beside_scorers(self.processes()), self.layout.held_out_tokens)

    def sampling(self) -> SampleSettings:
        """Of its sample stage, which the run file must have."""
        from raydpo.runtime.pairing import SampleSettings

        run = self._run
        assert run.sample
        return SampleSettings(
            layout=self.layout,
            seed=run.seed,
            model=run.model,
            data=run.data,
            sampler=run.sampler,
            sample=run.sample,
            rating=run.rating,
            probe_tokens=run.reference.tokens_per_batch,
        )

    def processes(self) -> Processes:
        """Of the processes of all stages."""
        from raydpo.runtime.cluster.preflight import Processes

        run = self._run
        rewards = {
            "sample": [run.sample.reward] if run.sample else [],
            "evaluate": [run.evaluate.reward] if run.evaluate else [],
            "bestofn": [self.rated_for_best_of_n().reward, *(run.best_of_n.rewards or [])] if run.best_of_n else [],
        }
        return Processes(
            sft=run.sft,
            reward=run.reward,
            samples=run.sample is not None,
            scorers=run.reference.pool,
            train=run.train,
            sampler=run.sampler,
            evaluate=run.evaluate,
            raters={stage: run.rating.pool for stage, names in rewards.items() if any(map(is_model, names))},
            judge=run.judge,
            best_of_n=run.best_of_n is not None,
        )
