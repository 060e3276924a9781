"""How many images a second does the training data loader read, decode, resize, crop and batch by itself?

    python benchmarks/loader.py photos/ more.tar --resolution 128 --workers 0 1 2

Checks docs/data.md, "How fast the loader is". No network runs, so the figure is an upper bound on the images that a
training run can see per second. Every row reads the same crops; the first batches, which wait for the workers to start,
are not counted. 0 workers: the crops are made in the measuring process itself.
"""

import argparse
import itertools
import os
import time

from tqdm import tqdm

from ssdd.data.loader import BrokenImages, CropStream, crop_batches
from ssdd.data.sources import open_source

PREFETCHED = 2  # batches that each worker has ready before anybody asks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", help="folders, tar files, hf:OWNER/NAME")
    parser.add_argument("--resolution", type=int, default=128, help="side of the crops in pixels (default: 128)")
    parser.add_argument("--scale", type=float, default=2.0, help="as --data.scale in training (default: 2)")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2], help="one row for each (default: 0 1 2)")
    parser.add_argument("--batch-size", type=int, default=64, help="images in a batch (default: 64)")
    parser.add_argument("--images", type=int, default=4096, help="images measured in each row (default: 4096)")
    options = parser.parse_args()

    started = time.perf_counter()
    stream = CropStream(open_source(options.paths), options.resolution, options.scale, flip=True, seed=0)
    opened = time.perf_counter() - started
    print(f"{len(stream.source):,} images, opened in {opened:.2f} s; {os.cpu_count()} CPU cores")
    print(f"crops of {options.resolution} px, scale up to {options.scale:g}, batches of {options.batch_size}\n")
    print("workers  images/s  skipped")
    for workers in options.workers:
        broken = BrokenImages()
        rate = measure(stream, workers, options.batch_size, options.images, broken)
        print(f"{workers:7}  {rate:8,.0f}  {broken.count:7}")


def measure(stream: CropStream, workers: int, batch_size: int, images: int, broken: BrokenImages) -> float:
    """Return images per second with so many workers, under a progress bar."""
    batches = crop_batches(stream, 0, batch_size, workers, broken=broken)
    for _ in itertools.islice(batches, max(1, PREFETCHED * workers)):
        pass
    count = -(-images // batch_size)
    started = time.perf_counter()
    with tqdm(total=count * batch_size, unit="image", desc=f"{workers} workers", leave=False) as bar:
        for batch in itertools.islice(batches, count):
            bar.update(len(batch))
    return count * batch_size / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
