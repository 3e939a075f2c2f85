"""The training loop: resumed runs are bit-equal, damaged checkpoints are skipped, batches are exact."""

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from itertools import pairwise

import pytest
import torch
from torch import nn

from dartune.config.schema import SFTConfig
from dartune.errors import MachineError
from dartune.run import sigterm
from dartune.run.files import read_jsonl
from dartune.train import checkpoint
from dartune.train.loop import LoopConfig, _intact_metrics, check_memory, shuffled_rows, train, train_from_config


class Regression:
    """Fits a fixed linear map; the batch of a step depends on the step only."""

    def __init__(self, fail_at=None):
        self.fail_at = fail_at

    def begin(self, step):
        if step == self.fail_at:
            raise KeyboardInterrupt
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(8, 4, generator=generator)
        return [x[:4], x[4:]]

    def loss(self, model, x):
        return ((model(x) - x.flip(1)) ** 2).sum() / 32

    def shown(self, x):
        return [{"x": row.tolist()} for row in x]

    def end(self, step):
        return {"seen": step}


def new_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4))


def config(**changes):
    return LoopConfig(**{"steps": 12, "learning_rate": 1e-2, "warmup_steps": 3, "checkpoint_every": 4, **changes})


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("stop", [1, 4, 6, 11])
def test_an_interrupted_run_ends_bit_equal(tmp_path, optimizer, stop):
    uninterrupted, interrupted = new_model(), new_model()
    expected = train(uninterrupted, Regression(), config(optimizer=optimizer), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(interrupted, Regression(fail_at=stop), config(optimizer=optimizer), tmp_path / "parts")
    resumed = new_model()
    history = train(resumed, Regression(), config(optimizer=optimizer), tmp_path / "parts")
    assert history == expected
    assert read_jsonl(tmp_path / "parts" / "metrics.jsonl") == expected
    for a, b in zip(uninterrupted.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_run_with_dropout_resumes_bit_equal_and_its_dropout_depends_on_the_seed(seed, tmp_path):
    def run(folder, seed, **objective_options):
        model = nn.Sequential(new_model(), nn.Dropout(0.3), nn.Linear(4, 4))
        with torch.no_grad():
            model[2].weight.copy_(torch.eye(4))
            model[2].bias.zero_()
        objective, steps = Regression(**objective_options), {"steps": 6, "learning_rate": 1e-2, "checkpoint_every": 2}
        return train_from_config(model, lambda _: objective, SFTConfig(steps=1), folder, seed=seed, **steps)

    uninterrupted, history = run(tmp_path / "whole", seed)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", seed, fail_at=3)
    torch.rand(5)
    resumed, resumed_history = run(tmp_path / "parts", seed)
    assert resumed_history == history
    assert all(torch.equal(a, b) for a, b in zip(uninterrupted.parameters(), resumed.parameters(), strict=True))
    reseeded, _ = run(tmp_path / "other", seed + 1)
    assert not all(torch.equal(a, b) for a, b in zip(uninterrupted.parameters(), reseeded.parameters(), strict=True))


def test_a_model_whose_zero_grad_takes_no_arguments_can_be_rehearsed():
    class Wrapper(nn.Sequential):
        def zero_grad(self):
            super().zero_grad()

    class Heavy(Regression):
        def largest_microbatch(self):
            return torch.ones(2, 4)

    wrapper = Wrapper(new_model())
    check_memory(wrapper, Heavy())
    assert all(p.grad is None for p in wrapper.parameters())


def test_settings_of_accelerates_launcher_do_not_change_training(tmp_path, monkeypatch):
    from accelerate.state import AcceleratorState

    expected = train(new_model(), Regression(), config(), tmp_path / "expected")
    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    model = new_model()
    assert train(model, Regression(), config(), tmp_path / "launched") == expected
    assert "forward" not in vars(model)


def test_a_finished_run_is_a_no_op(tmp_path):
    first = train(new_model(), Regression(), config(), tmp_path)
    again = new_model()
    assert train(again, Regression(fail_at=0), config(), tmp_path) == first


def test_a_damaged_checkpoint_is_skipped_with_a_warning(tmp_path, caplog):
    train(new_model(), Regression(), config(), tmp_path)
    last, step = checkpoint.latest(tmp_path / "checkpoints")
    assert (last.name, step) == ("step-000012", 12)
    data = (last / "parameters.safetensors").read_bytes()
    (last / "parameters.safetensors").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert checkpoint.latest(tmp_path / "checkpoints")[1] == 8
    assert "step-000012 is incomplete or damaged" in caplog.text
    (last / checkpoint.COMPLETE_FILE).unlink()
    assert checkpoint.latest(tmp_path / "checkpoints")[1] == 8


def test_metrics_cut_at_any_byte_of_their_last_line_end_the_same(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(new_model(), Regression(fail_at=6), config(), tmp_path / "whole")
    lines = (tmp_path / "whole" / "metrics.jsonl").read_bytes()
    expected = train(new_model(), Regression(), config(), tmp_path / "uncut")
    cut = tmp_path / "cut.jsonl"
    first = lines[:-1].rfind(b"\n") + 1
    for end in range(first, len(lines)):
        cut.write_bytes(lines[:end])
        assert _intact_metrics(cut) == expected[: 6 if end == len(lines) - 1 else 5]
    for end in (first, first + 1, len(lines) - 2, len(lines) - 1):
        folder = tmp_path / str(end)
        shutil.copytree(tmp_path / "whole", folder)
        (folder / "metrics.jsonl").write_bytes(lines[:end])
        assert train(new_model(), Regression(), config(), folder) == expected
        assert read_jsonl(folder / "metrics.jsonl") == expected


@pytest.mark.parametrize(("intact", "resumed_at"), [(5, 4), (3, 0)])
def test_a_checkpoint_whose_metrics_are_lost_is_skipped_with_a_warning(intact, resumed_at, tmp_path, caplog):
    with pytest.raises(KeyboardInterrupt):
        train(new_model(), Regression(fail_at=10), config(), tmp_path)
    lines = (tmp_path / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "metrics.jsonl").write_bytes(b"".join([*lines[:intact], b'{"step": \0\0\n', *lines[intact + 1 :]]))
    steps = []
    expected = train(new_model(), Regression(), config(), tmp_path / "whole")
    objective = Regression()
    begin = objective.begin
    objective.begin = lambda step: steps.append(step) or begin(step)
    assert train(new_model(), objective, config(), tmp_path) == expected and steps[0] == resumed_at
    assert f"metrics.jsonl is damaged after step {intact}" in caplog.text


def test_sigterm_finishes_and_saves_the_step_and_the_next_call_continues(tmp_path):
    class Terminated(Regression):
        def begin(self, step):
            if step == 5:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().begin(step)

    with pytest.raises(sigterm.Stopped), sigterm.raise_on_sigterm():
        train(new_model(), Terminated(), config(), tmp_path / "ended")
    assert checkpoint.latest(tmp_path / "ended" / "checkpoints")[1] == 6
    expected = train(new_model(), Regression(), config(), tmp_path / "whole")
    assert train(new_model(), Regression(fail_at=5), config(), tmp_path / "ended") == expected


def test_a_second_sigterm_stops_at_once(tmp_path):
    class Slow(Regression):
        def loss(self, model, x):
            os.kill(os.getpid(), signal.SIGTERM)
            return super().loss(model, x)

    with pytest.raises(sigterm.Stopped), sigterm.raise_on_sigterm():
        train(new_model(), Slow(), config(), tmp_path)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_leftovers_of_a_crash_are_removed(tmp_path):
    (tmp_path / "checkpoints" / ".draft-000003").mkdir(parents=True)
    train(new_model(), Regression(), config(), tmp_path)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step-000008", "step-000012"]


def test_only_the_last_two_checkpoints_are_kept(tmp_path):
    train(new_model(), Regression(), config(checkpoint_every=1), tmp_path)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step-000011", "step-000012"]


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(tmp_path):
    class Broken(Regression):
        def loss(self, model, x):
            return super().loss(model, x) * (float("nan") if self.step == 6 else 1.0)

        def begin(self, step):
            self.step = step
            return super().begin(step)

    with pytest.raises(MachineError, match=r"step 7: .*not-finite\.json"):
        train(new_model(), Broken(), config(), tmp_path)
    assert checkpoint.latest(tmp_path / "checkpoints")[1] == 4
    batches = json.loads((tmp_path / "not-finite.json").read_text())["microbatches"]
    assert [batch["loss"] for batch in batches] == ["nan", "nan"]
    assert [len(batch["rows"]) for batch in batches] == [4, 4]
    assert [row["x"] for row in batches[1]["rows"]] == Regression().begin(6)[1].tolist()
    train(new_model(), Regression(), config(), tmp_path)
    assert not (tmp_path / "not-finite.json").exists()


def test_one_batch_of_eight_equals_two_of_four(tmp_path):
    class OneBatch(Regression):
        def begin(self, step):
            return [torch.cat(super().begin(step))]

    a, b = new_model(), new_model()
    train(a, Regression(), config(), tmp_path / "a")
    train(b, OneBatch(), config(), tmp_path / "b")
    for weight_a, weight_b in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(weight_a, weight_b, rtol=1e-5, atol=1e-6)


def test_the_learning_rate_warms_up_and_falls_to_zero():
    learning_rates = [config().learning_rate_at(step) for step in range(12)]
    assert learning_rates[0] == pytest.approx(1e-2 / 3) and max(learning_rates) == pytest.approx(1e-2)
    assert learning_rates[-1] < 2e-3 and all(a >= b for a, b in pairwise(learning_rates[2:]))


def test_every_epoch_has_each_row_once_in_a_new_order():
    epochs = [[], []]
    for step in range(10):
        rows = shuffled_rows(25, 5, step, seed=1)
        epochs[step // 5] += rows
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(25))
    assert epochs[0] != epochs[1]
    assert shuffled_rows(25, 5, 7, seed=1) == shuffled_rows(25, 5, 7, seed=1) != shuffled_rows(25, 5, 7, seed=2)
    across = shuffled_rows(3, 2, 1, seed=0)  # the last row of an epoch and the first of the next
    assert len(across) == 2


def test_a_killed_run_continues_bit_equal(tmp_path):
    script = textwrap.dedent(
        """
        import os, signal, sys, time
        from pathlib import Path
        sys.path.insert(0, {tests!r})
        from test_loop import Regression, config, new_model
        from dartune.train.loop import train
        class Killed(Regression):
            def begin(self, step):
                if step == 7 and {kill}:
                    os.kill(os.getpid(), signal.SIGKILL)
                return super().begin(step)
        train(new_model(), Killed(), config(), Path({folder!r}))
        """
    )
    folder = tmp_path / "killed"
    code = script.format(tests=os.path.dirname(__file__), kill=True, folder=str(folder))
    died = subprocess.run([sys.executable, "-c", code], env={**os.environ}, check=False)
    assert died.returncode == -signal.SIGKILL
    expected = train(new_model(), Regression(), config(), tmp_path / "whole")
    assert train(new_model(), Regression(), config(), folder) == expected
    assert json.dumps(read_jsonl(folder / "metrics.jsonl")) == json.dumps(expected)
