"""A random order of any number of items that takes no memory."""

_MASK = (1 << 64) - 1
_ROUNDS = 6


class KeyedPermutation:
    """A permutation of 0 to length - 1, a function of the seeds: ``order[i]`` is computed, and never stored.

    A Feistel network permutes the numbers of 2 k bits; one that leads beyond the length is permuted again until it does
    not (Black and Rogaway, Ciphers with Arbitrary Finite Domains, 2002).
    """

    def __init__(self, length: int, *seeds: int) -> None:
        self._length = length
        self._half = max(1, (max(1, length - 1).bit_length() + 1) // 2)
        self._keys = [_mixed(seeds, number) for number in range(_ROUNDS)]

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> int:
        """Raise IndexError for an index outside [0, length)."""
        if not 0 <= index < self._length:
            raise IndexError(f"expected an index from 0 to {self._length - 1}, found {index}")
        mask = (1 << self._half) - 1
        while True:
            left, right = index >> self._half, index & mask
            for key in self._keys:
                left, right = right, left ^ (_hash(right ^ key) & mask)
            index = left << self._half | right
            if index < self._length:
                return index


def _mixed(seeds: tuple[int, ...], number: int) -> int:
    value = number
    for seed in seeds:
        value = _hash(value ^ seed)
    return value


def _hash(value: int) -> int:
    """Mix the bits of a number, by the function of SplitMix64 (Steele et al. 2014)."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    value = (value ^ value >> 27) * 0x94D049BB133111EB & _MASK
    return value ^ value >> 31
