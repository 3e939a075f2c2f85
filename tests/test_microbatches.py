"""A step is split so that no forward exceeds the token limit; the split changes results only by rounding."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dartune import distributed
from dartune.config.schema import ExecutionConfig, MapperConfig
from dartune.data.chat_template import Renderer
from dartune.data.records import Demonstration
from dartune.engines.hf import HFEngine
from dartune.train import memory
from dartune.train.loop import check_memory
from dartune.train.microbatches import padded_tokens, slice_group, split_by_tokens
from dartune.train.rl import PolicyObjective, largest_microbatch
from dartune.train.sft import SFTObjective, _padded_tokens
from fixtures_models import byte_tokenizer, tiny_model

RENDERER = Renderer(byte_tokenizer())
GROUPS = st.lists(
    st.tuples(st.integers(1, 30), st.lists(st.integers(1, 40), min_size=1, max_size=6)), min_size=1, max_size=6
)


@given(st.lists(st.integers(1, 50)), st.integers(1, 100))
def test_splitting_keeps_all_values_and_the_limit(lengths, limit):
    batches = split_by_tokens(lengths, sum, limit)
    assert [length for batch in batches for length in batch] == lengths
    assert all(sum(batch) <= limit or len(batch) == 1 for batch in batches)


@given(GROUPS, st.integers(40, 300), st.booleans())
def test_a_group_is_split_only_where_it_does_not_fit(groups, limit, shared):
    for g, (prompt, lengths) in enumerate(groups):
        completions = [(1,) * length for length in lengths]
        slices = slice_group((1,) * prompt, completions, g, limit, shared)
        assert [i for part in slices for i in range(part.start, part.stop)] == list(range(len(completions)))
        sizes = [padded_tokens([((1,) * prompt, completions[part.start : part.stop])], shared) for part in slices]
        assert all(size <= limit or part.stop - part.start == 1 for size, part in zip(sizes, slices, strict=True))
        group_size = padded_tokens([((1,) * prompt, completions)], shared)
        assert (len(slices) == 1) == (group_size <= limit or len(completions) == 1)


class Fixed(PolicyObjective):
    """A policy objective with random rewards."""

    def prompt(self, row):
        return row.question

    def score_samples(self, step, rows, samples):
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
    default_count, expected = gradients(model, policy(tmp_path, model))
    small_count, summed = gradients(model, policy(tmp_path, model, microbatch_tokens=80))
    assert small_count > 4 > default_count
    torch.testing.assert_close(summed, expected, atol=1e-5, rtol=1e-4)


def test_a_cpu_has_a_lower_limit_of_tokens_per_forward(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "CPU_TOKENS", 80)
    model = tiny_model("qwen3", len(RENDERER.tokenizer), pad=0, eos=RENDERER.end_id)
    batches = policy(tmp_path, model).begin(0)
    assert len(batches) > 4
    assert all(padded_tokens(batch.groups, shared=True) <= 80 for batch in batches)
    assert memory.max_forward_tokens(torch.nn.Linear(1, 1, device="meta"), 16384) == 16384


def test_smaller_microbatches_of_fine_tuning_give_the_same_gradient():
    model = tiny_model("llama", len(RENDERER.tokenizer), pad=0, eos=RENDERER.end_id)
    rows = [("why? " * i, "because " * (7 - i)) for i in range(1, 7)]
    results = [
        gradients(model, SFTObjective(rows, RENDERER, 6, 0, 512, limit))
        for limit in (ExecutionConfig().microbatch_tokens, 70)
    ]
    (default_count, expected), (small_count, summed) = results
    assert small_count > default_count == 1
    torch.testing.assert_close(summed, expected, atol=1e-5, rtol=1e-4)


def test_eight_microbatches_of_one_row_and_one_of_eight_differ_by_unbiased_rounding():
    model = tiny_model("llama", len(RENDERER.tokenizer), pad=0, eos=RENDERER.end_id)
    rows = [("why? " * (1 + i % 3), "because " * (8 - i)) for i in range(8)]
    results = [gradients(model, SFTObjective(rows, RENDERER, 8, 0, 512, limit)) for limit in (100_000, 1)]
    (one_count, expected), (eight_count, summed) = results
    assert (one_count, eight_count) == (1, 8)
    difference = torch.cat([(a - b).flatten() for a, b in zip(expected, summed, strict=True)])
    size = torch.cat([gradient.flatten() for gradient in expected]).abs().mean()
    assert difference.abs().mean() < 1e-4 * size and abs(difference.mean()) < 1e-6 * size


def test_a_microbatch_is_written_as_text(tmp_path):
    model = tiny_model("llama", len(RENDERER.tokenizer), pad=0, eos=RENDERER.end_id)
    objective = SFTObjective([("why?", "so")] * 3, RENDERER, 3, 0, 512, 100_000)
    shown = [row for batch in objective.begin(0) for row in objective.shown(batch)]
    assert len(shown) == 3 and "why?" in shown[0]["prompt"] and shown[0]["response"] == "so<|im_end|>"
    objective = policy(tmp_path, model)
    shown = [row for batch in objective.begin(0) for row in objective.shown(batch)]
    assert len(shown) == 4 * 4 and all("why?" in row["prompt"] for row in shown)
    assert json.loads(json.dumps(shown))[0].keys() == {"prompt", "response", "advantage", "start"}


def test_the_rehearsed_microbatch_is_as_large_as_any_step_and_changes_nothing(tmp_path):
    model = tiny_model("llama", len(RENDERER.tokenizer), pad=0, eos=RENDERER.end_id)
    objective = policy(tmp_path, model)
    heaviest = padded_tokens(objective.largest_microbatch().groups, shared=True)
    for step in range(3):
        assert all(padded_tokens(batch.groups, shared=True) <= heaviest for batch in objective.begin(step))
    check_memory(model, objective)
    assert all(p.grad is None for p in model.parameters())
    untouched = policy(tmp_path, model)
    for after_rehearsal, expected in zip(gradients(model, objective)[1], gradients(model, untouched)[1], strict=True):
        assert torch.equal(after_rehearsal, expected)
    sft = SFTObjective([("q" * i, "a" * i) for i in range(1, 9)], RENDERER, 2, 0, 512, 1000)
    assert len(sft.largest_microbatch().rows[-1][1]) == 9  # the longest response and its end token


@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=12), st.integers(1, 8), st.integers(60, 300), st.integers(1, 3)
)
def test_no_step_of_fine_tuning_is_larger_than_the_rehearsed_microbatch(lengths, batch_size, limit, world_size):
    objective = SFTObjective([("q", "a" * length) for length in lengths], RENDERER, batch_size, 0, 512, limit)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed, "_count", world_size)
        rows = objective.largest_microbatch().rows
        assert len(rows) == 1 or _padded_tokens(rows) <= limit
        for step in range(6):
            for rank in range(world_size):
                patch.setattr(distributed, "_rank", rank)
                assert all(_padded_tokens(batch.rows) <= _padded_tokens(rows) for batch in objective.begin(step))


def test_shorter_rows_that_fill_a_forward_better_are_rehearsed():
    rows = [("q", "x" * 300)] * 4 + [("q", "y" * 150)] * 8
    objective = SFTObjective(rows, RENDERER, 4, 0, 512, 530)
    heaviest = objective.largest_microbatch().rows
    sizes = [_padded_tokens(batch.rows) for step in range(3) for batch in objective.begin(step)]
    assert len(heaviest) == 3 and _padded_tokens(heaviest) == max(sizes)


@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=8),
    st.integers(1, 4),
    st.lists(st.lists(st.integers(1, 20), min_size=3, max_size=3), min_size=4, max_size=4),
    st.integers(30, 250),
    st.booleans(),
)
def test_no_step_of_reinforcement_learning_is_larger_than_the_rehearsed_microbatch(
    prompts, groups, samples, limit, shared
):
    prompts = sorted(prompts, reverse=True)
    groups = min(groups, len(prompts))
    first, counts, length = largest_microbatch(prompts, groups, 3, 20, limit, shared)
    largest = padded_tokens(
        [((1,) * prompts[first + i], [(1,) * length] * count) for i, count in enumerate(counts)], shared
    )
    assert largest <= limit or counts == [1]
    selected = [(1,) * prompt for prompt in prompts[-groups:]]
    completions = [[(1,) * length for length in group] for group in samples[:groups]]
    slices = [part for i in range(groups) for part in slice_group(selected[i], completions[i], i, limit, shared)]

    def tokens(batch):
        return padded_tokens(
            [(selected[part.group], completions[part.group][part.start : part.stop]) for part in batch], shared
        )

    assert all(tokens(batch) <= largest for batch in split_by_tokens(slices, tokens, limit))


def test_the_longest_prompt_in_tokens_is_rehearsed(tmp_path):
    model = tiny_model("qwen3", len(RENDERER.tokenizer), pad=0, eos=RENDERER.end_id)
    objective = policy(tmp_path, model)
    # Fewer characters, but more bytes and so more tokens.
    objective.demonstrations = [Demonstration("0", "why? " * 10, "so"), Demonstration("1", "\u65e5\u672c" * 12, "so")]
    assert objective.largest_microbatch().groups[0][0] == RENDERER.prompt_ids("\u65e5\u672c" * 12)


def test_fewer_rows_than_processes_can_be_rehearsed(tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "_count", 8)
    monkeypatch.setattr(distributed, "_rank", 7)
    model = tiny_model("qwen3", len(RENDERER.tokenizer), pad=0, eos=RENDERER.end_id)
    assert len(SFTObjective([("q", "a")] * 4, RENDERER, 4, 0, 512, 1000).largest_microbatch().rows) == 1
    assert len(policy(tmp_path, model).largest_microbatch().groups) == 1


def test_an_idle_process_counts_a_microbatch_once(tmp_path):
    model = tiny_model("qwen3", len(RENDERER.tokenizer), pad=0, eos=RENDERER.end_id)
    objective = policy(tmp_path, model, microbatch_tokens=80)
    metrics = []
    for idle in (0, 3):
        batches = objective.begin(0)
        for batch in [*batches, *batches[:1] * idle]:
            objective.loss(model, batch)
        metrics.append(objective.end(0))
    assert metrics[0]["entropy"] == metrics[1]["entropy"] > 0 and metrics[0]["kl"] == metrics[1]["kl"]


def test_a_batch_that_does_not_fit_in_memory_is_halved_and_gives_the_same_samples():
    from dartune.engines.base import SampleSpec

    model = tiny_model("qwen3", len(RENDERER.tokenizer), pad=0, eos=RENDERER.end_id).eval()
    prompts = [RENDERER.prompt_ids("why? " * (i + 1)) for i in range(6)]
    spec = SampleSpec(4, 8, 1.0, (RENDERER.end_id,), 0)
    expected = HFEngine(model).generate(prompts, spec)
    pairs = [(prompt, sample.ids) for prompt, group in zip(prompts, expected, strict=True) for sample in group]
    scores = HFEngine(model).score(pairs)
    forward = model.forward

    def limited_forward(*args, input_ids=None, **kwargs):
        if input_ids.numel() > 300:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
        return forward(*args, input_ids=input_ids, **kwargs)

    model.forward = limited_forward
    engine = HFEngine(model)
    samples = engine.generate(prompts, spec)
    assert [[sample.ids for sample in group] for group in samples] == [[s.ids for s in group] for group in expected]
    for row, expected_row in zip(engine.score(pairs), scores, strict=True):
        torch.testing.assert_close(row, expected_row, atol=1e-5, rtol=1e-4)
