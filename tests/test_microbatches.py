"""A step is cut so that no forward holds more tokens than allowed, and the cut changes nothing but rounding."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dartune import processes
from dartune.config import ExecutionConfig, MapperConfig
from dartune.data.records import Demonstration
from dartune.data.render import Renderer
from dartune.models import memory
from dartune.models.hf_engine import HFEngine
from dartune.train.loop import rehearse
from dartune.train.microbatches import cut, padded_tokens, pieces
from dartune.train.policy import PolicyObjective, fullest
from dartune.train.sft import SFTObjective, _padded_tokens
from fixtures_models import byte_tokenizer, tiny_model

RENDERER = Renderer(byte_tokenizer())
GROUPS = st.lists(
    st.tuples(st.integers(1, 30), st.lists(st.integers(1, 40), min_size=1, max_size=6)), min_size=1, max_size=6
)


@given(st.lists(st.integers(1, 50)), st.integers(1, 100))
def test_cutting_loses_nothing_and_keeps_to_the_limit(lengths, limit):
    batches = cut(lengths, sum, limit)
    assert [item for batch in batches for item in batch] == lengths
    assert all(sum(batch) <= limit or len(batch) == 1 for batch in batches)


@given(GROUPS, st.integers(40, 300), st.booleans())
def test_a_group_is_split_only_where_it_does_not_fit(groups, limit, shared):
    for g, (prompt, lengths) in enumerate(groups):
        completions = [(1,) * length for length in lengths]
        found = pieces((1,) * prompt, completions, g, limit, shared)
        assert [i for one in found for i in range(one.low, one.high)] == list(range(len(completions)))
        sizes = [padded_tokens([((1,) * prompt, completions[one.low : one.high])], shared) for one in found]
        assert all(size <= limit or one.high - one.low == 1 for size, one in zip(sizes, found, strict=True))
        whole = padded_tokens([((1,) * prompt, completions)], shared)
        assert (len(found) == 1) == (whole <= limit or len(completions) == 1)


class Fixed(PolicyObjective):
    """A policy objective with given samples and rewards."""

    def prompt(self, row):
        return row.question

    def rewarded(self, step, rows, samples):
        generator = torch.Generator().manual_seed(step)
        return torch.randn(len(rows), self.config.group_size, generator=generator), {}


def gradients(model, objective, step=0):
    model.zero_grad()
    batches = objective.begin(step)
    model.train()
    for batch in batches:
        objective.loss(model, batch).backward()
    objective.end(step)
    return len(batches), [p.grad.clone() for p in model.parameters()]


def policy(tmp_path, model, **execution):
    rows = [Demonstration(str(i), "why? " * (i + 1), "so") for i in range(5)]
    config = MapperConfig(questions_per_step=4, group_size=4, max_new_tokens=12, kl=0.1)
    engine = HFEngine(model)
    settings = ExecutionConfig(**execution)
    return Fixed(rows, engine, engine, RENDERER, config, 0, tmp_path / "samples.jsonl", settings)


def test_smaller_microbatches_of_reinforcement_learning_give_the_same_gradient(tmp_path):
    model = tiny_model("qwen3", len(RENDERER.tokenizer), pad=0, eos=RENDERER.end_id)
    whole, expected = gradients(model, policy(tmp_path, model))
    parts, found = gradients(model, policy(tmp_path, model, microbatch_tokens=80))
    assert parts > 4 > whole
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_a_cpu_reads_no_more_tokens_at_once_than_its_caches_hold(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "CPU_TOKENS", 80)
    model = tiny_model("qwen3", len(RENDERER.tokenizer), pad=0, eos=RENDERER.end_id)
    batches = policy(tmp_path, model).begin(0)
    assert len(batches) > 4
    assert all(padded_tokens(batch.groups, shared=True) <= 80 for batch in batches)
    assert memory.tokens_at_once(torch.nn.Linear(1, 1, device="meta"), 16384) == 16384


def test_smaller_microbatches_of_fine_tuning_give_the_same_gradient():
    model = tiny_model("llama", len(RENDERER.tokenizer), pad=0, eos=RENDERER.end_id)
    rows = [("why? " * i, "because " * (7 - i)) for i in range(1, 7)]
    both = [
        gradients(model, SFTObjective(rows, RENDERER, 6, 0, 512, limit))
        for limit in (ExecutionConfig().microbatch_tokens, 70)
    ]
    (whole, expected), (parts, found) = both
    assert parts > whole == 1
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_eight_microbatches_of_one_row_and_one_of_eight_differ_by_rounding_that_leans_nowhere():
    model = tiny_model("llama", len(RENDERER.tokenizer), pad=0, eos=RENDERER.end_id)
    rows = [("why? " * (1 + i % 3), "because " * (8 - i)) for i in range(8)]
    both = [gradients(model, SFTObjective(rows, RENDERER, 8, 0, 512, limit)) for limit in (100_000, 1)]
    (one, whole), (eight, parts) = both
    assert (one, eight) == (1, 8)
    rest = torch.cat([(a - b).flatten() for a, b in zip(whole, parts, strict=True)])
    size = torch.cat([a.flatten() for a in whole]).abs().mean()
    assert rest.abs().mean() < 1e-4 * size and abs(rest.mean()) < 1e-6 * size


def test_a_microbatch_is_shown_as_text(tmp_path):
    model = tiny_model("llama", len(RENDERER.tokenizer), pad=0, eos=RENDERER.end_id)
    objective = SFTObjective([("why?", "so")] * 3, RENDERER, 3, 0, 512, 100_000)
    shown = [row for batch in objective.begin(0) for row in objective.shown(batch)]
    assert len(shown) == 3 and "why?" in shown[0]["prompt"] and shown[0]["response"] == "so<|im_end|>"
    objective = policy(tmp_path, model)
    shown = [row for batch in objective.begin(0) for row in objective.shown(batch)]
    assert len(shown) == 4 * 4 and all("why?" in row["prompt"] for row in shown)
    assert json.loads(json.dumps(shown))[0].keys() == {"prompt", "response", "advantage", "start"}


def test_the_rehearsed_microbatch_is_as_heavy_as_any_step_and_leaves_no_trace(tmp_path):
    model = tiny_model("llama", len(RENDERER.tokenizer), pad=0, eos=RENDERER.end_id)
    objective = policy(tmp_path, model)
    heaviest = padded_tokens(objective.heaviest().groups, shared=True)
    for step in range(3):
        assert all(padded_tokens(batch.groups, shared=True) <= heaviest for batch in objective.begin(step))
    rehearse(model, objective)
    assert all(p.grad is None for p in model.parameters())
    untouched = policy(tmp_path, model)
    for found, expected in zip(gradients(model, objective)[1], gradients(model, untouched)[1], strict=True):
        assert torch.equal(found, expected)
    sft = SFTObjective([("q" * i, "a" * i) for i in range(1, 9)], RENDERER, 2, 0, 512, 1000)
    assert len(sft.heaviest()[0][-1][1]) == 9  # the longest response and its end


@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=12), st.integers(1, 8), st.integers(60, 300), st.integers(1, 3)
)
def test_no_step_of_fine_tuning_is_heavier_than_the_rehearsed_microbatch(lengths, batch_size, limit, count):
    objective = SFTObjective([("q", "a" * length) for length in lengths], RENDERER, batch_size, 0, 512, limit)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processes, "_count", count)
        rows, _ = objective.heaviest()
        assert len(rows) == 1 or _padded_tokens(rows) <= limit
        for step in range(6):
            for rank in range(count):
                patch.setattr(processes, "_rank", rank)
                assert all(_padded_tokens(batch) <= _padded_tokens(rows) for batch, _ in objective.begin(step))


def test_shorter_rows_that_fill_a_forward_better_are_rehearsed():
    rows = [("q", "x" * 300)] * 4 + [("q", "y" * 150)] * 8
    objective = SFTObjective(rows, RENDERER, 4, 0, 512, 530)
    heaviest, _ = objective.heaviest()
    found = [_padded_tokens(batch) for step in range(3) for batch, _ in objective.begin(step)]
    assert len(heaviest) == 3 and _padded_tokens(heaviest) == max(found)


@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=8),
    st.integers(1, 4),
    st.lists(st.lists(st.integers(1, 20), min_size=3, max_size=3), min_size=4, max_size=4),
    st.integers(30, 250),
    st.booleans(),
)
def test_no_step_of_reinforcement_learning_is_heavier_than_the_rehearsed_microbatch(
    prompts, share, samples, limit, shared
):
    prompts = sorted(prompts, reverse=True)
    share = min(share, len(prompts))
    first, counts, length = fullest(prompts, share, 3, 20, limit, shared)
    found = padded_tokens(
        [((1,) * prompts[first + i], [(1,) * length] * count) for i, count in enumerate(counts)], shared
    )
    assert found <= limit or counts == [1]
    drawn = [(1,) * prompt for prompt in prompts[-share:]]
    completions = [[(1,) * length for length in group] for group in samples[:share]]
    parts = [piece for i in range(share) for piece in pieces(drawn[i], completions[i], i, limit, shared)]

    def tokens(batch):
        return padded_tokens([(drawn[one.group], completions[one.group][one.low : one.high]) for one in batch], shared)

    assert all(tokens(batch) <= found for batch in cut(parts, tokens, limit))


def test_the_longest_prompt_in_tokens_is_rehearsed(tmp_path):
    model = tiny_model("qwen3", len(RENDERER.tokenizer), pad=0, eos=RENDERER.end_id)
    objective = policy(tmp_path, model)
    # Fewer characters, but of more bytes, and so of more tokens.
    objective.demonstrations = [Demonstration("0", "why? " * 10, "so"), Demonstration("1", "\u65e5\u672c" * 12, "so")]
    assert objective.heaviest().groups[0][0] == RENDERER.prompt_ids("\u65e5\u672c" * 12)


def test_fewer_rows_than_processes_can_be_rehearsed(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "_count", 8)
    monkeypatch.setattr(processes, "_rank", 7)
    model = tiny_model("qwen3", len(RENDERER.tokenizer), pad=0, eos=RENDERER.end_id)
    assert len(SFTObjective([("q", "a")] * 4, RENDERER, 4, 0, 512, 1000).heaviest()[0]) == 1
    assert len(policy(tmp_path, model).heaviest().groups) == 1


def test_an_idle_process_counts_a_microbatch_once(tmp_path):
    model = tiny_model("qwen3", len(RENDERER.tokenizer), pad=0, eos=RENDERER.end_id)
    objective = policy(tmp_path, model, microbatch_tokens=80)
    found = []
    for idle in (0, 3):
        batches = objective.begin(0)
        for batch in [*batches, *batches[:1] * idle]:
            objective.loss(model, batch)
        found.append(objective.end(0))
    assert found[0]["entropy"] == found[1]["entropy"] > 0 and found[0]["kl"] == found[1]["kl"]


def test_a_batch_that_does_not_fit_into_memory_is_halved_and_gives_the_same_samples():
    from dartune.models.engine import SampleSpec

    model = tiny_model("qwen3", len(RENDERER.tokenizer), pad=0, eos=RENDERER.end_id).eval()
    prompts = [RENDERER.prompt_ids("why? " * (i + 1)) for i in range(6)]
    spec = SampleSpec(4, 8, 1.0, (RENDERER.end_id,), 0)
    expected = HFEngine(model).generate(prompts, spec)
    pairs = [(prompt, sample.ids) for prompt, group in zip(prompts, expected, strict=True) for sample in group]
    scores = HFEngine(model).score(pairs)
    forward = model.forward

    def small(*args, input_ids=None, **kwargs):
        if input_ids.numel() > 300:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
        return forward(*args, input_ids=input_ids, **kwargs)

    model.forward = small
    engine = HFEngine(model)
    found = engine.generate(prompts, spec)
    assert [[sample.ids for sample in group] for group in found] == [[s.ids for s in group] for group in expected]
    for one, other in zip(engine.score(pairs), scores, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
