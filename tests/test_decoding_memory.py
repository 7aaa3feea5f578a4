"""Decoded frames are freed as they go by, without help from Python's cyclic garbage collector."""

import subprocess
import sys
from fractions import Fraction

import av
import numpy as np
import pytest
from peak_memory import PEAK

# Prints the number of frames and how far the peak of the memory rose, in megabytes, after the
# first frames. Without the collector, frames that hold each other stay for ever.
MEASURE = f"""
{PEAK}
import gc, sys
gc.disable()
from ltx_jax.data import decoding, folder, video

def prepare(path):  # as data preparation looks at a clip
    for frame in video.decode_video(path):
        yield frame.luma(64)

def training(path):  # few frames of many, of a low rate
    yield from video.stream_video(path, frame_rate=RATE)

def examples(path):
    for start in range(0, FRAMES - 2, max(FRAMES // 20, 1)):
        yield folder.load_clip(path, 2, 64, 64, start=start / 24)
        yield video.probe(path) if start == 0 else None

path, FRAMES, RATE = sys.argv[1], int(sys.argv[3]), float(sys.argv[4])
count = 0
for _ in globals()[sys.argv[2]](path):
    count += 1
    if count == 5:
        before = peak()
print(count, (peak() - before) / 2**20, peak() / 2**20)
"""


def repeated_clip(path, height, width, count):
    """A clip whose packets are those of eight frames, again and again."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=24, options={"crf": "30", "preset": "ultrafast"})
        stream.pix_fmt, stream.height, stream.width = "yuv420p", height, width
        frames = np.zeros((8, height, width, 3), np.uint8)
        frames += np.arange(0, 80, 10, dtype=np.uint8)[:, None, None, None]
        packets = []
        for frame in frames:
            packets += stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24"))
        packets += stream.encode()
        contents = [(bytes(packet), packet.is_keyframe) for packet in packets]
        for number in range(count):
            content, is_key = contents[number % len(contents)]
            packet = av.Packet(content)
            packet.stream, packet.time_base = stream, Fraction(1, 24)
            packet.pts = packet.dts = number
            packet.duration, packet.is_keyframe = 1, is_key
            out.mux(packet)
    return path


def rise(path, what, frames, rate=24.0):
    """How many pictures came, and the rise and the peak of the memory in megabytes."""
    command = [sys.executable, "-c", MEASURE, str(path), what, str(frames), str(rate)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)
    count, *megabytes = map(float, result.stdout.split())
    return count, *megabytes


@pytest.mark.parametrize("what", ["prepare", "training", "examples"])
def test_memory_does_not_grow_with_the_frames(tmp_path, what):
    """300 frames of 1.4 MB: together 415 MB."""
    path = repeated_clip(tmp_path / "clip.mp4", 720, 1280, 300)
    count, megabytes, _ = rise(path, what, 300, rate=24.0 if what == "prepare" else 3.0)
    assert count > 20
    assert megabytes < 30


@pytest.mark.slow
def test_memory_of_600_frames_of_8k_is_flat(tmp_path):
    """50 MB a frame: 30 GB. The decoder alone holds a few frames for reference."""
    path = repeated_clip(tmp_path / "clip.mp4", 4320, 7680, 600)
    count, megabytes, peak = rise(path, "prepare", 600)
    assert count == 600
    assert megabytes < 200
    assert peak < 600
