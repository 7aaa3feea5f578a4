"""Memory of the web page over many videos of many sizes: python -m benchmarks.page_memory [VIDEOS]

Samples videos with the model that ships, through what the page calls, in 20 sizes one after the
other, and prints the resident memory after each 20. Sizes come back, so that programs are forgotten
and read again.
"""

import itertools
import sys
import tempfile
from pathlib import Path

from ltx_jax import sample
from ltx_jax.demo.studio import Studio

SIZES = list(itertools.product((32, 64, 96, 128), (32, 64, 96, 128, 160)))


def resident_megabytes() -> float:
    """Memory of this process that is not swapped out."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


def main(videos: int = 100) -> None:
    """Samples the videos; the last column should be flat once all sizes have been seen."""
    arguments = [
        "--num_frames",
        "9",
        "--num_inference_steps",
        "2",
        "--height",
        "128",
        "--width",
        "160",
    ]
    with tempfile.TemporaryDirectory() as folder:
        studio = Studio(sample.parse(arguments), Path(folder), arguments=arguments)
        for number, (height, width) in enumerate(
            itertools.islice(itertools.cycle(SIZES), videos), 1
        ):
            studio.make("a red star moves left", height=height, width=width, seed=number)
            if number % len(SIZES) == 0:
                print(f"{number} videos: {resident_megabytes():.0f} MB", flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
