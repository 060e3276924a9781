"""A data set -> shards of latents (``tokenize``), and back as a data set of latents (``LatentDataset``)."""

from .crops import CropProtocol
from .format import TokenizedDataError
from .local import Tokenized, tokenize
from .plan import OpenJob, ShardTask, TokenizeJob, settle_plan
from .reader import LatentDataset, LatentItem
from .shard import write_shard
from .verify import verify

__all__ = [
    "CropProtocol",
    "LatentDataset",
    "LatentItem",
    "OpenJob",
    "ShardTask",
    "TokenizeJob",
    "Tokenized",
    "TokenizedDataError",
    "settle_plan",
    "tokenize",
    "verify",
    "write_shard",
]
