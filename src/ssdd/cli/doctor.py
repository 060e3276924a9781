"""``ssdd doctor``: what is installed, what each device computes, and whether it computes it right."""

from dataclasses import asdict, dataclass

from .common import ERROR, print_json


@dataclass(frozen=True)
class Doctor:
    """Check this installation: versions, devices, quick paths, and a photograph on each device in each precision.

    The photograph goes through the embedded model, and is compared with float32 on the CPU. Exit status 1 if one is
    wrong.
    """

    json: bool = False
    """Print JSON instead of a table."""
    compile: bool = True
    """Try torch.compile too, which takes a while."""


OPTIONS = Doctor


def run(options: Doctor) -> int:
    """Print what was found. Return 1 if a device computes wrongly."""
    from .checkup import quick_paths, round_trips, table, versions

    facts, paths = versions(), quick_paths(options.compile)
    if not options.json:
        print("\n".join([*(f"{name}: {version}" for name, version in facts.items()), ""]))
        print("\n".join([*(f"{name}: {state}" for name, state in paths.items()), ""]), flush=True)
    trips = round_trips(options.compile)
    if options.json:
        rows = [{**asdict(trip), "right": trip.right} for trip in trips]
        print_json({"versions": facts, "quick_paths": paths, "round_trips": rows})
    else:
        print("\n".join(table(trips)))
    return 0 if all(trip.right for trip in trips) else ERROR
