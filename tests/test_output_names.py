"""Names of finished videos: no process loses a video to another, and half a video is none."""

import multiprocessing

import numpy as np
import pytest

from ltx_jax.config import SampleConfig
from ltx_jax.data import writing
from ltx_jax.inference import outputs

CLIP = np.zeros((9, 16, 16, 3), np.uint8)


def plan(path, **changes):
    [item] = outputs.planned_videos(SampleConfig(prompt="a star", output_path=str(path), **changes))
    return item


def write(item, value):
    with outputs.claimed(item) as taken:
        writing.write_video(taken.path, CLIP + np.uint8(value), 8.0)
    return taken.path


@pytest.mark.parametrize("to_file", [False, True])
def test_two_runs_with_one_name_keep_both_videos(to_file, tmp_path, capsys):
    out = tmp_path / "a.mp4" if to_file else tmp_path
    items = [plan(out) for _ in range(2)]  # both before either has written
    paths = [write(item, value) for item, value in zip(items, (50, 200), strict=True)]
    assert len({*paths}) == 2
    assert paths[1].name == f"{paths[0].stem}_1.mp4"
    assert f"notice: another run has written {paths[0]}" in capsys.readouterr().err
    assert len(list(tmp_path.iterdir())) == 2


def test_a_run_replaces_the_video_that_was_there_when_it_began(tmp_path, capsys):
    first = write(plan(tmp_path / "a.mp4"), 50)
    again, late = plan(tmp_path / "a.mp4"), plan(tmp_path / "a.mp4")
    assert write(again, 60) == first
    assert write(late, 70).name == "a_1.mp4"  # what it would have replaced is gone
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "a_1.mp4"]


def claim(item, start, names):
    start.wait()
    with outputs.claimed(item) as taken:
        taken.path.write_bytes(b"x")
        names.put(taken.path.name)


def test_processes_that_finish_at_once_take_different_names(tmp_path):
    context = multiprocessing.get_context("fork")
    start, names = context.Event(), context.Queue()
    item = plan(tmp_path)
    running = [context.Process(target=claim, args=(item, start, names)) for _ in range(8)]
    for process in running:
        process.start()
    start.set()
    taken = {names.get(timeout=30) for _ in running}
    for process in running:
        process.join()
    assert len(taken) == 8


def test_a_video_that_fails_leaves_no_name_behind(tmp_path):
    with pytest.raises(RuntimeError), outputs.claimed(plan(tmp_path)):
        raise RuntimeError
    assert not list(tmp_path.iterdir())


def test_a_video_that_is_cut_off_is_made_again(tmp_path):
    (tmp_path / "prompts.txt").write_text("a star\n")
    cfg = SampleConfig(prompts_file=str(tmp_path / "prompts.txt"), output_path=str(tmp_path))
    [item] = outputs.planned_videos(cfg)
    writing.write_video(item.path, CLIP, 8.0)
    outputs.write_sidecar(cfg, item, "", {})
    assert outputs.done(cfg, item)
    whole = item.path.read_bytes()
    for length in (0, 7, len(whole) // 2, len(whole) - 1):
        item.path.write_bytes(whole[:length])
        assert not outputs.done(cfg, item)
