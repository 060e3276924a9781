"""Names in one piece of memory are the names that were given."""

import pickle

import pytest

from ssdd.data.names import PackedNames, natural_order

NAMES = ["b", "", "日本/é.png", "a" * 300, "caf\udce9", "b"]


def test_names_are_kept() -> None:
    packed = PackedNames(iter(NAMES))
    for names in (packed, pickle.loads(pickle.dumps(packed))):
        assert [names[i] for i in range(len(names))] == NAMES, "a name was changed, lost or moved"
    for index in (-1, len(NAMES)):
        with pytest.raises(IndexError, match=f"expected an index from 0 to 5, found {index}"):
            packed[index]
    assert len(PackedNames([])) == 0, "no names are some"


def test_natural_order() -> None:
    names = ["b10", "10", "b2", "", "2", "a", "b02c", "1"]
    assert sorted(names, key=natural_order) == ["", "1", "2", "10", "a", "b2", "b02c", "b10"]
