"""A data set -> shards of latents (``tokenize``), and back as a data set of latents (``LatentDataset``)."""

from .crops import CropProtocol
from .format import TokenizedDataError
from .plan import TokenizeJob
from .reader import LatentDataset, collate_fn
from .run import Part, Tokenized, finish, tokenize
from .sampler import LatentBatchSampler
from .stop import TokenizeStopped
from .verify import verify

__all__ = [
    "CropProtocol",
    "LatentBatchSampler",
    "LatentDataset",
    "Part",
    "TokenizeJob",
    "TokenizeStopped",
    "Tokenized",
    "TokenizedDataError",
    "collate_fn",
    "finish",
    "tokenize",
    "verify",
]
