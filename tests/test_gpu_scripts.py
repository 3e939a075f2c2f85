"""What is run on a GPU runs small on a CPU: the full pass, and the large lab's pretraining and configs."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from dartune.data.chat_template import Renderer
from dartune.lab.tokenizer import build_tokenizer

ROOT = Path(__file__).parents[1]


@pytest.fixture
def scripts(monkeypatch):
    for folder in ("benchmarks", "experiments"):
        monkeypatch.syspath_prepend(ROOT / folder)
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "").parent.name in ("benchmarks", "experiments"):
            sys.modules.pop(name)


def test_the_clock_counts_every_second_once(scripts):
    from clock import Clock

    class Engine:
        def score(self):
            time.sleep(0.02)

        def reward(self):
            self.score()
            time.sleep(0.01)

    clock = Clock()
    clock.wrap(Engine, "score", "score")
    clock.wrap(Engine, "reward", "reward")
    start = time.perf_counter()
    with clock.part("stage"):
        Engine().reward()
        Engine().score()
    took = time.perf_counter() - start
    parts = clock.under("stage")
    assert {path: part["calls"] for path, part in parts.items()} == {
        "rest": 1,
        "reward": 1,
        "reward/score": 1,
        "score": 1,
    }
    assert sum(part["seconds"] for part in parts.values()) == pytest.approx(took, abs=0.005)
    assert parts["reward"]["seconds"] < parts["reward/score"]["seconds"] + 0.01


@pytest.mark.slow
def test_the_full_pass_measures_every_stage(scripts, tmp_path, monkeypatch):
    out = tmp_path / "found.json"
    words = [str(ROOT / "benchmarks" / "full_pass.py"), str(out), "--shape", "tiny", "--work", str(tmp_path / "work")]
    subprocess.run([sys.executable, *words], check=True, capture_output=True, timeout=600)
    results = json.loads(out.read_text())
    mapper, settings = results["stages"]["mapper-s0"], results["settings"]
    steps = int(settings["mapper.steps"])
    assert mapper["parts"]["optimiser"]["calls"] == mapper["parts"]["generate"]["calls"] == steps
    assert len(results["mapper"]["later_step_seconds"]) == steps - 1
    most = steps * int(settings["mapper.questions_per_step"]) * 8 * int(settings["mapper.max_new_tokens"])
    assert 0.9 * most < mapper["generated_tokens"] <= most and mapper["scored_tokens"] == 2 * mapper["generated_tokens"]
    assert sum(part["seconds"] for part in mapper["parts"].values()) == pytest.approx(mapper["seconds"], rel=0.05)
    assert results["stages"]["train-sft-s0-lr1e-05"]["trained_tokens"] > 0
    import gpu_tables

    monkeypatch.setitem(gpu_tables.SOURCES, "full-pass", out)
    made = gpu_tables.parts()
    assert (
        f"| `mapper-s0` | {mapper['seconds']:.1f} | " in made["full-pass"] and "| gates | " in made["where-a-step-goes"]
    )


def test_large_batches_hold_the_examples_that_the_loss_is_of(scripts):
    from large_lab_models import IGNORED, POOL, Examples, tensors

    pool = Examples("backward", 4)[0]
    assert len(pool) == POOL and pool[0][2]
    lengths = sorted((ids.shape[1] for ids, _, _ in pool))
    assert lengths[0] < lengths[-1]
    again = Examples("backward", 4)[0]
    assert all(torch.equal(one[0], other[0]) for one, other in zip(pool, again, strict=True))
    renderer = Renderer(build_tokenizer())
    row = (renderer.prompt_ids("Ada has 3 . How many does Ada have ?"), renderer.response_ids("Ada is 3 ,"))
    ids, wanted = tensors([row, (row[0], row[1][:1])])
    reads, says = len(row[0]), row[1]
    assert ids[0].tolist() == [*row[0], *row[1]]
    assert wanted[0].tolist() == [IGNORED] * (reads - 1) + says + [IGNORED]
    assert wanted[1].tolist() == [IGNORED] * (reads - 1) + says[:1] + [IGNORED] * len(says)


def test_the_learning_rate_follows_the_clock(scripts):
    from large_lab import SIZES
    from large_lab_models import WARMUP_STEPS, learning_rate

    plan = SIZES["full"].plan
    assert learning_rate(plan, 0, 0.0) == pytest.approx(plan.learning_rate / WARMUP_STEPS)
    assert learning_rate(plan, 1000, plan.seconds / 2) == plan.learning_rate
    assert learning_rate(plan, 1000, plan.seconds * 0.8) == pytest.approx(plan.learning_rate / 2)
    assert learning_rate(plan, 1000, plan.seconds * 1.1) == 0


def test_the_large_lab_is_large_and_its_parts_are_configs(scripts, tmp_path):
    from large_lab import ALL, MODELS, PARTS, SIZES, configured

    from dartune.lab.build import build_model

    weights = sum(p.numel() for p in build_model(SIZES["full"].plan.recipe, 130, 3, 0).parameters())
    assert 30e6 < weights < 40e6
    for model in MODELS:
        (tmp_path / "models" / model).mkdir(parents=True)
    for size in SIZES:
        configs = {part: configured(part, size, tmp_path, arms[-1]) for part, arms in PARTS.items()}
        assert configs["gold"].data.path == "lab:deep/backward"
        every = configured("main", size, tmp_path, ALL)
        assert set(configs["main"].arms) | set(configs["beside"].arms) == set(every.arms)
        main, beside = (configs[part].model_dump(exclude={"arms", "output", "name"}) for part in ("main", "beside"))
        assert main == beside
