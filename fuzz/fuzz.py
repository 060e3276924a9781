"""Coverage-guided fuzzing of everything that reads files from elsewhere.

    pip install -e '.[dev,fuzz]'
    python fuzz/fuzz.py image -max_total_time=600            # with atheris; options are libFuzzer's
    python fuzz/fuzz.py image --plain 600                    # seconds, without it: a loop of random mutations

Targets and their seeds are those of the tests (``tests/reliability/strategies.py``): image, tar, latent, config,
weights, kl-config, authors, state. A result or the documented error is fine; anything else is a crash, and its input is
written to ``crash-*`` by libFuzzer, to ``crash.bin`` by the plain loop.
"""

import argparse
import random
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "reliability"))

Run = Callable[[bytes], bool]


def main() -> None:
    from strategies import targets

    with tempfile.TemporaryDirectory() as scratch:
        known = targets(Path(scratch))
        parser = argparse.ArgumentParser(description="Fuzz one reader; see the top of this file.")
        parser.add_argument("target", choices=sorted(known))
        parser.add_argument("--plain", type=float, metavar="SECONDS", help="random mutations, without atheris")
        options, others = parser.parse_known_args()
        target = known[options.target]

        def run(content: bytes) -> bool:
            with tempfile.TemporaryDirectory(dir=scratch) as folder, warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return target.check(content, Path(folder))

        if options.plain is not None:
            loop(run, target.seeds, options.plain)
        else:
            guided(run, target.seeds, Path(scratch), others)


def guided(run: Run, seeds: list[bytes], scratch: Path, options: list[str]) -> None:
    """libFuzzer, from the seeds on; guided by the coverage of our own modules. Does not return."""
    import atheris

    corpus = scratch / "corpus"
    corpus.mkdir()
    for i, seed in enumerate(seeds):
        (corpus / str(i)).write_bytes(seed)
    for name in ("codec", "data.images", "data.tar", "training.checkpoint"):
        module = sys.modules[f"ssdd.{name}"]
        for attribute, value in vars(module).items():
            if callable(value) and getattr(value, "__module__", "") == module.__name__ and hasattr(value, "__code__"):
                setattr(module, attribute, atheris.instrument_func(value))
    atheris.Setup([sys.argv[0], *options, str(corpus)], lambda content: int(run(content)) * 0)
    atheris.Fuzz()


def loop(run: Run, seeds: list[bytes], seconds: float) -> None:
    """Mutates seeds, and what was accepted of their mutants, until the time is over or something else is raised."""
    chance = random.Random(0)
    corpus, outcomes = list(seeds), Counter[bool]()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        content = mutate(chance.choice(corpus), chance)
        try:
            accepted = run(content)
        except Exception:
            Path("crash.bin").write_bytes(content)
            print(f"crash after {outcomes.total():,} inputs: written to crash.bin", file=sys.stderr)
            raise
        outcomes[accepted] += 1
        if accepted and len(corpus) < 1000:
            corpus.append(content)
    print(f"{outcomes.total():,} inputs: {outcomes[True]:,} accepted, {outcomes[False]:,} refused, no crash")


def mutate(content: bytes, chance: random.Random) -> bytes:
    """Up to eight changes of bits, bytes and pieces, half of them in the first 256 bytes."""
    changed = bytearray(content)
    for _ in range(chance.randint(1, 8)):
        reach = max(1, len(changed) if chance.random() < 0.5 else min(len(changed), 256))
        at = chance.randrange(reach)
        how = chance.randrange(5)
        if how == 0 and changed:
            changed[min(at, len(changed) - 1)] ^= 1 << chance.randrange(8)
        elif how == 1:
            size = chance.choice([1, 2, 4, 8])
            changed[at : at + size] = chance.choice([bytes(size), b"\xff" * size, chance.randbytes(size)])
        elif how == 2:
            changed[at:at] = chance.randbytes(chance.randint(1, 16))
        elif how == 3:
            del changed[at : at + chance.randint(1, 64)]
        else:
            begin = chance.randrange(reach)
            changed[at:at] = changed[begin : begin + chance.randint(1, 256)]
    return bytes(changed)


if __name__ == "__main__":
    main()
