"""Whatever ends a run, the same command ends with the files of an uninterrupted one: the short form of long.py."""

import json
import os
import shutil
import signal
import subprocess

import pytest
from attempts import Server
from world import World

# One point a stage, out of those that long.py draws: before which call, or in which flush, the process dies.
POINTS = {
    "data": {"calls": 9},
    "probe": {"flushes": 4, "seed": 1},
    "warmup": {"calls": 47},
    "mapper-s0": {"flushes": 26, "seed": 2},
    "synthesise-s0": {"flushes": 3, "seed": 3},
    "train-sft-s0-lr0.001": {"calls": 60},
    "train-dart-s0-lr0.001": {"flushes": 12, "seed": 4},
    "train-grpo_tokens-s0-lr0.001": {"calls": 101},
    "evaluate-dart-s0": {"flushes": 5, "seed": 5},
    "report": {"calls": 11},
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("crash")
    server = Server(folder / "said.log")
    yield World(folder / "world", server)
    server.close()


def assert_ends_the_same(world):
    ended = world.server(world.command)
    assert ended["exit"] == 0, world.server.said()
    assert world.differences() == []


@pytest.mark.slow
@pytest.mark.parametrize("stage", POINTS)
def test_killed_in_any_stage_it_ends_the_same(stage, world):
    world.without(stage)
    assert world.server(world.command, stage=stage, **POINTS[stage])["exit"] == -signal.SIGKILL
    assert_ends_the_same(world)


@pytest.mark.slow
def test_sigterm_ends_it_with_a_message_and_143(world):
    world.without("mapper-s0")
    ended = world.server(world.command, stage="mapper-s0", calls=50, signal=int(signal.SIGTERM))
    assert ended["exit"] == 143 and "the same command continues: dartune run" in world.server.said()
    assert "Traceback" not in world.server.said()
    assert_ends_the_same(world)


@pytest.mark.slow
def test_files_that_may_not_grow_end_it_with_a_message_and_3(world):
    world.without("train-sft-s0-lr0.001")
    ended = world.server(world.command, file_bytes=60_000)
    assert ended["exit"] == 3 and "too large" in world.server.said() and "it continues" in world.server.said()
    assert_ends_the_same(world)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["stages/mapper-s0/DONE", "stages/warmup/model/model.safetensors", "stages/synthesise-s0/rows.jsonl"]
)
def test_a_file_of_a_finished_stage_that_was_cut_is_made_again(name, world):
    world.without()
    os.truncate(world.run / name, (world.run / name).stat().st_size // 2)
    assert_ends_the_same(world)


@pytest.mark.slow
def test_a_folder_that_cannot_be_written_is_told(world):
    shutil.rmtree(world.run, ignore_errors=True)
    world.run.mkdir()
    mounted = os.geteuid() == 0
    if mounted and subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", world.run], check=False).returncode:
        pytest.skip("root may write everywhere, and may not mount here")
    world.run.chmod(0o555) if not mounted else None
    try:
        assert world.server(world.command)["exit"] == 3
        assert f"cannot write {world.run}" in world.server.said() and "Traceback" not in world.server.said()
    finally:
        if mounted:
            subprocess.run(["umount", world.run], check=True)
        else:
            world.run.chmod(0o755)


@pytest.mark.slow
def test_clocks_that_jump_change_durations_only(world):
    world.without("mapper-s0")
    world.server(world.command, stage="mapper-s0", calls=40, jumps=1)
    assert world.server(world.command, jumps=2)["exit"] == 0
    strange = [name for name in world.differences(("DONE",)) if not name.startswith("report/")]
    assert strange == []
    seconds = json.loads((world.run / "stages/mapper-s0/DONE").read_text())["cost"]["seconds"]
    assert seconds >= 0
