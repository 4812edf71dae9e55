"""The run file: one strict schema, one file a section, no heavy import.

Every section is a frozen pydantic model that refuses unknown keys; bounds live on the fields, relations between
fields in validators. Units are in the names or the comments: lengths in tokens, batch sizes in rows.
"""

from raydpo.config.schema.best_of_n import BestOfN
from raydpo.config.schema.cluster import Cluster, Timeouts
from raydpo.config.schema.data import Columns, Data, Format
from raydpo.config.schema.evaluate import Evaluate, PromptSet
from raydpo.config.schema.judge import AskedJudge, Budget, Judge, Prices
from raydpo.config.schema.model import Model
from raydpo.config.schema.objective import ObjectiveSettings
from raydpo.config.schema.rating import Rating
from raydpo.config.schema.reference import Pool, Reference
from raydpo.config.schema.reward import Reward
from raydpo.config.schema.run import RunFile
from raydpo.config.schema.sampling import Decoding, Sample, Sampler
from raydpo.config.schema.section import Section
from raydpo.config.schema.training import Optimizer, Sft, Train, Training, Workers, Zero

__all__ = [
    "AskedJudge",
    "BestOfN",
    "Budget",
    "Cluster",
    "Columns",
    "Data",
    "Decoding",
    "Evaluate",
    "Format",
    "Judge",
    "Model",
    "ObjectiveSettings",
    "Optimizer",
    "Pool",
    "Prices",
    "PromptSet",
    "Rating",
    "Reference",
    "Reward",
    "RunFile",
    "Sample",
    "Sampler",
    "Section",
    "Sft",
    "Timeouts",
    "Train",
    "Training",
    "Workers",
    "Zero",
]
