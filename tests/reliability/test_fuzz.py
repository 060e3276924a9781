"""Files that nobody wrote on purpose: a valid result, or the documented error in one line; nothing else, and soon.

``HYPOTHESIS_PROFILE=long python -m pytest tests/reliability/test_fuzz.py`` tries thousands of them instead of dozens.
"""

import os
import resource
import shutil
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.reliability.strategies import Target, files, targets

pytestmark = pytest.mark.slow

_COMMON = settings(
    deadline=20_000,  # milliseconds: what takes longer counts as a hang
    database=None,
    suppress_health_check=list(HealthCheck),
)
settings.register_profile("short", _COMMON, max_examples=60, derandomize=True)
settings.register_profile("long", _COMMON, max_examples=int(os.environ.get("FUZZ_EXAMPLES", "5000")))
PROFILE = settings.get_profile("long" if os.environ.get("HYPOTHESIS_PROFILE") == "long" else "short")

NAMES = ("image", "tar", "latent", "config", "weights", "kl-config", "authors", "state")
LARGE = 8 * 10**9
"""Bytes of address space beyond what is there: an allocation by a number in a file would take more."""


@pytest.fixture(scope="module")
def every_target(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Target]:
    return targets(tmp_path_factory.mktemp("seeds"))


@pytest.fixture
def limited() -> Iterator[None]:
    """No allocation of many gigabytes can succeed unnoticed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = (
        int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() if os.path.exists("/proc") else 0
    )
    if used:
        resource.setrlimit(resource.RLIMIT_AS, (used + LARGE, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.usefixtures("limited")
def test_a_result_or_one_line(name: str, every_target: dict[str, Target]) -> None:
    target = every_target[name]
    outcomes: Counter[bool] = Counter()

    @settings(PROFILE)
    @given(st.data())
    def run(data: st.DataObject) -> None:
        content = data.draw(files(name, target))
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            outcomes[target.check(content, Path(folder))] += 1

    run()
    print(f"{name}: {outcomes[True]} accepted, {outcomes[False]} refused")
    assert outcomes[False] > 5, "hardly anything is refused: the mutations do not reach what is checked"


@pytest.mark.parametrize("name", NAMES)
def test_seeds_are_valid(name: str, every_target: dict[str, Target], tmp_path: Path) -> None:
    """Otherwise every mutation is refused for the seed's own fault. The foreign ones have no weights to be valid."""
    for i, seed in enumerate(every_target[name].seeds):
        folder = tmp_path / str(i)
        folder.mkdir()
        assert every_target[name].check(seed, folder) == (name not in ("kl-config", "authors"))
        shutil.rmtree(folder)
