"""A data set -> shards of latents (``tokenize``), and back as a data set of latents (``LatentDataset``)."""

from .crops import CropProtocol
from .format import TokenizedDataError
from .plan import OpenJob, ShardTask, TokenizeJob, settle_plan
from .reader import LatentDataset, LatentItem
from .run import Tokenized, tokenize
from .shard import write_shard
from .stop import TokenizeStopped
from .verify import verify

__all__ = [
    "CropProtocol",
    "LatentDataset",
    "LatentItem",
    "OpenJob",
    "ShardTask",
    "TokenizeJob",
    "TokenizeStopped",
    "Tokenized",
    "TokenizedDataError",
    "settle_plan",
    "tokenize",
    "verify",
    "write_shard",
]
