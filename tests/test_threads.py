"""The number of CPU threads: measured for a small model, kept by a resumed run, set by OMP_NUM_THREADS."""

import json
import os

import pytest
import torch

from dartune.models import threads
from dartune.models.threads import available_threads, fastest_threads, use_threads
from dartune.run.folder import RunFolder
from fixtures_models import tiny_model


@pytest.fixture
def machine(monkeypatch):
    """A process with four threads and four CPUs, without OMP_NUM_THREADS."""
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(threads, "PROCESS_THREADS", 4)
    monkeypatch.setattr(threads.loky, "cpu_count", lambda: 4)
    yield monkeypatch
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama", 32, pad=0, eos=1).eval()


def measured(monkeypatch, seconds):
    monkeypatch.setattr(threads, "_forward_seconds", lambda _, count: seconds[count])


def test_the_fastest_number_is_taken_and_fewer_threads_if_they_are_nearly_as_fast(machine, model):
    measured(machine, {1: 1.0, 2: 0.6, 4: 0.5})
    assert fastest_threads(model) == 4
    measured(machine, {1: 1.0, 2: 0.52, 4: 0.5})
    assert fastest_threads(model) == 2
    measured(machine, {1: 1.0, 2: 1.5, 4: 3.0})
    assert fastest_threads(model) == 1


def test_a_quota_limits_the_threads(machine, model):
    machine.setattr(threads.loky, "cpu_count", lambda: 3)
    measured(machine, {1: 1.0, 2: 0.6, 3: 0.4})
    assert available_threads() == 3 and fastest_threads(model) == 3


def test_a_large_model_takes_all_threads_without_measuring(machine, model):
    machine.setattr(threads, "SMALL_WEIGHTS", 0)
    machine.setattr(threads, "_forward_seconds", lambda *_: pytest.fail("measured"))
    assert fastest_threads(model) == 4


def test_omp_num_threads_is_followed(machine, model):
    machine.setenv("OMP_NUM_THREADS", "3")
    machine.setattr(threads, "PROCESS_THREADS", 3)
    machine.setattr(threads, "_forward_seconds", lambda *_: pytest.fail("measured"))
    assert use_threads(model, before=1) == 3 == torch.get_num_threads()


def test_work_that_continues_keeps_its_number_unless_there_are_fewer_now(machine, model):
    measured(machine, {1: 1.0, 2: 0.6, 4: 0.5})
    assert use_threads(model, before=2) == 2 == torch.get_num_threads()
    assert use_threads(model, before=8) == 4 == torch.get_num_threads()


def test_measuring_leaves_the_number_as_it_was(machine, model):
    torch.set_num_threads(1)
    assert fastest_threads(model) in (1, 2, 4) and torch.get_num_threads() == 1


def test_a_run_folder_keeps_how_it_computes(tmp_path):
    lines = []
    computing = {"device": "cpu", "dtype": "float32", "threads": 2}
    with RunFolder(tmp_path, lines.append) as folder:
        assert folder.computing == {}
        folder.note_computing(computing)
        folder.note_computing(computing)
    with RunFolder(tmp_path, lines.append) as folder:
        assert folder.computing == computing
    assert lines == ["device cpu, dtype float32, threads 2"]
    assert json.loads((tmp_path / "environment.json").read_text())["cpus"] == os.cpu_count()
