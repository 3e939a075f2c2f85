"""Sharing a prompt changes neither log-probabilities nor gradients."""

import itertools
import math
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dartune.engines import logprobs, sliced_head
from dartune.engines.logprobs import (
    anchored_logprobs,
    batch_by_length,
    group_logprobs,
    read_completions,
    read_prompts,
    sequence_logprobs,
)
from dartune.errors import InputError
from dartune.models.activations import recompute_activations
from dartune.models.lora import add_lora
from dartune.models.precision import compute_in
from fixtures_models import ARCHITECTURES, tiny_model, without_dropout

VOCABULARY, SLICE = 60, 16
# Prompt length and completion lengths of each group: ragged, empty, one token, no completion.
SHAPES = [(9, (5, 0, 7)), (1, (1,)), (4, (2, 6, 3, 1)), (6, ())]


def sliding_model(window: int = 6):
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    return MistralForCausalLM(
        MistralConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=128,
            sliding_window=window,
        )
    )


def softcapped_model():
    """A model whose logits are not the output of its head."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    shape = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    config = Gemma2Config(
        **shape,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        final_logit_softcapping=1.0,
        sliding_window=64,
    )
    return Gemma2ForCausalLM(config)


def biased_model():
    model = tiny_model("llama", VOCABULARY, pad=0, eos=1)
    model.lm_head = torch.nn.Linear(model.config.hidden_size, VOCABULARY)
    return model


def make(name: str):
    special = {"sliding": sliding_model, "softcapped": softcapped_model, "biased": biased_model}
    model = special[name]() if name in special else tiny_model(name, VOCABULARY, pad=0, eos=1)
    return model.eval()


def random_groups(shapes=SHAPES, seed=0):
    rng = random.Random(seed)

    def tokens(length):
        return [rng.randrange(VOCABULARY) for _ in range(length)]

    return [(tokens(prompt), [tokens(length) for length in lengths]) for prompt, lengths in shapes]


def flat(groups):
    return [(prompt, completion) for prompt, completions in groups for completion in completions]


@torch.no_grad()
def one_by_one(model, rows):
    """Log-probabilities without batch, padding or cache."""
    result = []
    for prompt, response in rows:
        logprobs = model(torch.tensor([[*prompt, *response]])).logits[0].log_softmax(dim=-1)
        result.append([logprobs[len(prompt) + t - 1, token].item() for t, token in enumerate(response)])
    return result


def gradients(model, logprobs, mask):
    weights = torch.linspace(-1, 1, mask.numel()).view(mask.shape)
    model.zero_grad()
    (logprobs * weights * mask).sum().backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("name", [*ARCHITECTURES, "sliding"])
def test_both_forwards_equal_the_textbook_way(name):
    model, groups = make(name), random_groups()
    rows = flat(groups)
    expected = one_by_one(model, rows)
    for values_by_row, mask in (group_logprobs(model, groups)[:2], sequence_logprobs(model, rows)):
        assert values_by_row.dtype == torch.float32
        assert mask.tolist() == [[t < len(response) for t in range(7)] for _, response in rows]
        assert (values_by_row[~mask] == 0).all()
        for row, values in zip(values_by_row, expected, strict=True):
            assert row[: len(values)].tolist() == pytest.approx(values, abs=1e-5)


@pytest.mark.parametrize("name", [*ARCHITECTURES, "sliding"])
@pytest.mark.parametrize("shapes", [SHAPES, [(5, (4, 4)), (8, (3, 6))]], ids=["ragged", "uniform"])
def test_gradients_flow_through_the_shared_prompt(name, shapes):
    model, groups = make(name), random_groups(shapes)
    shared = gradients(model, *group_logprobs(model, groups)[:2])
    plain = gradients(model, *sequence_logprobs(model, flat(groups)))
    for weight, gradient in plain.items():
        torch.testing.assert_close(shared[weight], gradient, atol=2e-5, rtol=1e-4, msg=weight)


def test_the_entropy_is_that_of_the_predictive_distribution():
    model, groups = make("llama"), random_groups()
    _, mask, entropy = group_logprobs(model, groups, with_entropy=True)
    for row, (prompt, response) in zip(entropy, flat(groups), strict=True):
        logprobs = model(torch.tensor([[*prompt, *response]])).logits[0].log_softmax(dim=-1)
        expected = -(logprobs.exp() * logprobs).sum(dim=-1)[len(prompt) - 1 : len(prompt) + len(response) - 1]
        assert row[: len(response)].tolist() == pytest.approx(expected.tolist(), abs=1e-5)
    assert (entropy[~mask] == 0).all() and not entropy.requires_grad


@pytest.fixture
def in_slices(monkeypatch):
    """A function after whose call the vocabulary is processed in four slices."""

    def enable():
        monkeypatch.setattr(sliced_head, "CPU_LOGITS", 1)
        monkeypatch.setattr(sliced_head, "MIN_SLICE", SLICE)

    return enable


@pytest.mark.parametrize("name", [*ARCHITECTURES, "softcapped", "biased"])
@pytest.mark.parametrize("wrapped", [False, True], ids=["plain", "lora"])
def test_slices_of_the_vocabulary_give_the_same_values_and_gradients(name, wrapped, in_slices):
    model, groups = make(name), random_groups()
    if wrapped:
        model = add_lora(model, 4)
    unsliced = group_logprobs(model, groups, with_entropy=True)
    expected = gradients(model, *unsliced[:2])
    in_slices()
    sliced = group_logprobs(model, groups, with_entropy=True)
    torch.testing.assert_close(sliced[0], unsliced[0])
    torch.testing.assert_close(sliced[2], unsliced[2])
    for weight, gradient in gradients(model, *sliced[:2]).items():
        torch.testing.assert_close(gradient, expected[weight], atol=1e-6, rtol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(sequence_logprobs(model, flat(groups))[0], unsliced[0])


class Shapes(TorchDispatchMode):
    """Records the shapes of all tensors that are computed."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        self.seen.update(tuple(leaf.shape) for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor))
        return result


@pytest.mark.parametrize("training", [False, True])
def test_no_more_logits_than_a_slice_are_held_at_a_time(training, in_slices):
    model, rows = make("llama"), flat(random_groups())
    tokens = sum(len(response) for _, response in rows)
    with Shapes() as unsliced:
        sequence_logprobs(model, rows)
    assert tokens * VOCABULARY in map(math.prod, unsliced.seen)
    in_slices()
    with Shapes() as sliced, torch.set_grad_enabled(training):
        logprobs, _ = sequence_logprobs(model, rows)
        if training:
            logprobs.sum().backward()
    assert (tokens, SLICE) in sliced.seen
    assert tokens * VOCABULARY not in map(math.prod, sliced.seen)


def test_slices_compute_in_bfloat16_as_the_head_does(in_slices):
    model, rows = compute_in(make("llama"), torch.bfloat16), flat(random_groups())
    expected = sequence_logprobs(model, rows)[0]
    in_slices()
    torch.testing.assert_close(sequence_logprobs(model, rows)[0], expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", [*ARCHITECTURES, "sliding"])
def test_reading_completions_does_not_change_the_prefix(name):
    model, ((prompt, completions),) = make(name), random_groups([(9, (5, 0, 7))])
    with torch.no_grad():
        prefix = read_prompts(model, [prompt])
        first, second = (read_completions(model, prefix, [0] * 3, completions)[0] for _ in range(2))
    assert torch.equal(first, second)
    assert prefix.cache.get_seq_length() == len(prompt) and prefix.cache.layers[0].keys.shape[0] == 1


@pytest.mark.parametrize("function", ["group", "sequence"])
def test_only_completion_positions_reach_the_head(function):
    model, groups = make("llama"), random_groups([(30, (4, 2)), (20, (3,))])
    positions = []
    model.lm_head.register_forward_hook(lambda module, inputs, output: positions.append(output.shape[:-1].numel()))
    if function == "group":
        group_logprobs(model, groups)
        assert sum(positions) == 2 + (3 + 1 + 2)  # each prompt's last position, then all but the first tokens
    else:
        sequence_logprobs(model, flat(groups))
        assert sum(positions) == 4 + 2 + 3


@pytest.mark.parametrize("name", [*ARCHITECTURES, "sliding"])
def test_batches_by_length_change_neither_values_nor_gradients(name, monkeypatch):
    model, groups = make(name), random_groups()
    one_batch = group_logprobs(model, groups, with_entropy=True)
    expected = gradients(model, *one_batch[:2])
    monkeypatch.setattr(logprobs, "CPU_FORWARD_OVERHEAD", 0)
    lengths = {len(completion) for _, completion in flat(groups)}
    assert len(batch_by_length([len(completion) for _, completion in flat(groups)], 0)) == len(lengths) > 4
    batches = group_logprobs(model, groups, with_entropy=True)
    assert torch.equal(batches[1], one_batch[1])
    torch.testing.assert_close(batches[0], one_batch[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(batches[2], one_batch[2], atol=1e-5, rtol=1e-5)
    for weight, gradient in gradients(model, *batches[:2]).items():
        torch.testing.assert_close(gradient, expected[weight], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(sequence_logprobs(model, flat(groups))[0], one_batch[0], atol=1e-5, rtol=1e-5)


@given(st.lists(st.integers(0, 30), max_size=8), st.integers(0, 40), st.integers(0, 60) | st.none())
def test_batches_by_length_have_the_least_cost(lengths, overhead, limit):
    def max_rows(longest):
        return len(lengths) if limit is None else max(1, limit // max(1, longest))

    def cost(batches):
        longest = [max(lengths[i] for i in batch) for batch in batches]
        if any(len(batch) > max_rows(length) for batch, length in zip(batches, longest, strict=True)):
            return math.inf
        return sum(len(batch) * length + overhead for batch, length in zip(batches, longest, strict=True))

    batches = batch_by_length(lengths, overhead, max_rows)
    assert cost(batches) < math.inf
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    cuts = itertools.product([False, True], repeat=max(0, len(lengths) - 1))
    for cut in cuts if lengths else ():
        ends = [i + 1 for i, is_end in enumerate(cut) if is_end] + [len(lengths)]
        alternative = [order[low:high] for low, high in itertools.pairwise([0, *ends])]
        assert cost(batches) <= cost(alternative)


def test_empty_completions_give_empty_results():
    model = make("llama")
    assert group_logprobs(model, [([1, 2], [])])[0].shape == (0, 0)
    logprobs, mask, entropy = group_logprobs(model, [([1, 2], [[], []])], with_entropy=True)
    assert logprobs.shape == mask.shape == entropy.shape == (2, 0)
    assert sequence_logprobs(model, [([1, 2], [])])[0].shape == (1, 0)


def test_all_empty_prompts_are_listed():
    for call in (
        lambda model: group_logprobs(model, [([], [[1]]), ([1], [[1]]), ([], [[2]])]),
        lambda model: sequence_logprobs(model, [([], [1]), ([1], [1]), ([], [2])]),
    ):
        with pytest.raises(InputError) as caught:
            call(make("llama"))
        assert caught.value.problems == ("prompt 0 is empty", "prompt 2 is empty")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_activation_checkpointing_changes_neither_values_nor_gradients(architecture):
    model, results = without_dropout(make(architecture)), []
    model.train()
    for checkpointed in (False, True):
        if checkpointed:
            recompute_activations(model)
        logprobs, mask, entropy = group_logprobs(model, random_groups(), with_entropy=True)
        (logprobs * mask).sum().backward()
        results.append((logprobs.detach(), entropy.detach(), [p.grad.clone() for p in model.parameters()]))
        model.zero_grad()
    torch.testing.assert_close(*results, atol=1e-4, rtol=1e-4)


def test_recurrent_models_are_rejected():
    from transformers import AutoModelForCausalLM, Qwen3NextConfig

    config = Qwen3NextConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        linear_num_key_heads=2,
        linear_num_value_heads=2,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        num_experts=2,
        num_experts_per_tok=1,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
        layer_types=["linear_attention", "full_attention"],
    )
    with pytest.raises(InputError, match="state other than keys and values"):
        group_logprobs(AutoModelForCausalLM.from_config(config).eval(), random_groups())


def test_gradients_under_ddp_are_those_of_the_plain_model(tmp_path):
    import torch.distributed as dist

    model, groups = make("llama"), random_groups()
    expected = gradients(model, *group_logprobs(model, groups)[:2])
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        wrapped = torch.nn.parallel.DistributedDataParallel(model)
        for _ in range(2):  # the second round would fail if the first left a reduction unfinished
            for weight, gradient in gradients(model, *group_logprobs(wrapped, groups)[:2]).items():
                torch.testing.assert_close(gradient, expected[weight], atol=1e-6, rtol=1e-5)
    finally:
        dist.destroy_process_group()


def test_the_divergence_from_an_anchor_is_the_kl_over_the_vocabulary():
    model, anchor = make("llama"), tiny_model("llama", VOCABULARY, pad=0, eos=1, seed=1).eval()
    rows = flat(random_groups())
    rows = [(prompt, response) for prompt, response in rows if response]
    logprobs, kl, mask = anchored_logprobs(model, anchor, rows)
    plain, same_mask = sequence_logprobs(model, rows)
    torch.testing.assert_close(logprobs, plain)
    assert torch.equal(mask, same_mask)
    for i, (prompt, response) in enumerate(rows):
        ids = torch.tensor([[*prompt, *response]])
        positions = slice(len(prompt) - 1, len(prompt) + len(response) - 1)
        model_logprobs, anchor_logprobs = (m(ids).logits[0, positions].log_softmax(-1) for m in (model, anchor))
        expected = (anchor_logprobs.exp() * (anchor_logprobs - model_logprobs)).sum(-1)
        torch.testing.assert_close(kl[i, : len(response)], expected, atol=1e-5, rtol=1e-4)
    assert not anchored_logprobs(model, model, rows)[1].any() and kl.requires_grad
    kl.sum().backward()
    assert model.get_input_embeddings().weight.grad.abs().sum() > 0
    assert anchor.get_input_embeddings().weight.grad is None


def test_the_check_of_the_head_uses_no_random_numbers(monkeypatch):
    """A resumed run makes this check at another step than an uninterrupted one: with dropout the two would differ."""
    monkeypatch.setattr(sliced_head, "CPU_LOGITS", 64)
    model = tiny_model("gpt2", 64, pad=0, eos=1).train()
    states = []
    for _ in range(2):  # only the first makes the check
        torch.manual_seed(0)
        sequence_logprobs(model, [([1, 2, 3], [4, 5])])
        states.append(torch.get_rng_state())
    assert torch.equal(*states)
    assert all(module.training for module in model.modules())
