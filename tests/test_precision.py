"""Trained weights are float32 for every compute dtype, and an adapter shares the frozen model's memory."""

import gc

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dartune.config.load import load_config
from dartune.config.schema import ExecutionConfig, MapperConfig, SFTConfig
from dartune.data.chat_template import Renderer
from dartune.engines.base import SampleSpec
from dartune.engines.hf import HFEngine
from dartune.engines.logprobs import sequence_logprobs
from dartune.models import precision
from dartune.models.fused_rmsnorm import fuse_norms
from dartune.models.loading import save_model
from dartune.models.lora import add_lora, load_adapter, remove_lora
from dartune.models.precision import bfloat16_is_faster, cast_to_compute_dtype, compute_in
from dartune.stages.models import RunModels
from dartune.train.memory import activation_bytes, footprint
from dartune.train.sft import fine_tune
from fixtures_models import ARCHITECTURES, byte_tokenizer, save_tiny, tiny_model, without_dropout

RENDERER = Renderer(byte_tokenizer())
ROWS = [(f"what is {i} + 1?", f"{i} + 1 = {i + 1}. The answer is {i + 1}") for i in range(8)]


def model_of(architecture="llama", seed=0):
    return tiny_model(architecture, len(RENDERER.tokenizer), pad=0, eos=RENDERER.end_id, seed=seed).eval()


def test_small_steps_are_lost_in_bfloat16_weights_and_kept_in_float32_ones(tmp_path):
    settings = SFTConfig(steps=3, batch_size=4)
    moved = {}
    for name in ("bfloat16 weights", "float32 weights"):
        model = model_of()
        model = model.to(torch.bfloat16) if name.startswith("b") else compute_in(model, torch.bfloat16)
        before = [p.detach().clone() for p in model.parameters()]
        model, _ = fine_tune(model, ROWS, RENDERER, settings, 1e-6, 0, tmp_path / name)
        changed = [(p != old).float().mean() for p, old in zip(model.parameters(), before, strict=True) if p.ndim == 2]
        moved[name] = float(torch.stack(changed).mean())
    assert moved["float32 weights"] > 0.5 > 0.1 > moved["bfloat16 weights"]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_sampling_scoring_and_training_give_the_same_log_probabilities(architecture):
    model = compute_in(model_of(architecture), torch.bfloat16)
    prompts = [RENDERER.prompt_ids(question) for question, _ in ROWS[:3]]
    samples = HFEngine(model).generate(prompts, SampleSpec(2, 12, 1.0, (RENDERER.end_id,), 0))
    pairs = [(prompt, sample.ids) for prompt, group in zip(prompts, samples, strict=True) for sample in group]
    sampled = [sample.logprobs for group in samples for sample in group]
    trained = [sequence_logprobs(model, [pair])[0][0].tolist() for pair in pairs]
    for sampling, scoring, training in zip(sampled, HFEngine(model).score(pairs), trained, strict=True):
        torch.testing.assert_close(torch.tensor(sampling), torch.tensor(scoring), atol=0.03, rtol=0)
        torch.testing.assert_close(torch.tensor(scoring), torch.tensor(training), atol=0.03, rtol=0)


def test_a_cpu_computes_wide_models_in_bfloat16_if_that_is_measured_to_be_faster(monkeypatch):
    cpu = torch.device("cpu")
    measured = []

    def speedup(width):
        measured.append(width)
        return 2.4 if width == 576 else 0.6

    monkeypatch.setattr(precision, "_cpu_speedup", speedup)
    assert bfloat16_is_faster(cpu, 576) and not bfloat16_is_faster(cpu, 640)
    assert not bfloat16_is_faster(cpu, 64) and measured == [576, 640]
    assert not bfloat16_is_faster(cpu, 8192) and measured[-1] == 1024, "a larger product takes seconds"


class CastCounter(TorchDispatchMode):
    """Counts the elements that are cast to bfloat16."""

    elements = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if operation is torch.ops.aten._to_copy.default and (kwargs or {}).get("dtype") is torch.bfloat16:
            self.elements += args[0].numel()
        return operation(*args, **(kwargs or {}))


def test_sampling_casts_weights_and_cached_keys_once():
    prompts = [RENDERER.prompt_ids(question) for question, _ in ROWS[:2]]
    counts = {}
    for new in (4, 24):
        model = compute_in(model_of(), torch.bfloat16)
        with CastCounter() as casts:
            HFEngine(model).generate(prompts, SampleSpec(2, new, 1.0, (), 0))
        counts[new] = casts.elements
    weights = sum(weight.numel() for weight in model.parameters())
    # Twenty more steps cast activations of four rows, but no weights.
    assert weights * 0.5 < counts[4] and counts[24] - counts[4] < weights


def test_logprobs_of_a_bfloat16_model_are_taken_in_float32():
    model = cast_to_compute_dtype(compute_in(model_of(), torch.bfloat16))
    pairs = [(RENDERER.prompt_ids("why?"), RENDERER.response_ids("because it is so"))]
    scores = torch.tensor(HFEngine(model).score(pairs)[0])
    not_bfloat16 = scores != scores.bfloat16().float()
    assert not_bfloat16.float().mean() > 0.8, "log-probabilities in bfloat16 have three digits"


def test_a_trained_model_is_cast_to_its_compute_dtype():
    model = compute_in(model_of(), torch.bfloat16)
    assert model.dtype == torch.float32
    ids = torch.tensor([RENDERER.prompt_ids("why?")])
    before = model(ids).logits.float()
    model = cast_to_compute_dtype(model)
    assert model.dtype == torch.bfloat16 and cast_to_compute_dtype(model) is model
    torch.testing.assert_close(model(ids).logits.float(), before, atol=0.05, rtol=0.05)


def run_models(tmp_path, **settings):
    save_tiny(tmp_path / "target", "llama", context=2048)
    overrides = {"data.path": "lab:values", "target.path": str(tmp_path / "target"), **settings}
    return RunModels(load_config(None, overrides))


def close(scores, expected) -> bool:
    return all(row == pytest.approx(expected_row, abs=1e-5) for row, expected_row in zip(scores, expected, strict=True))


def count_live_parameters() -> int:
    gc.collect()
    return sum(type(value) is torch.nn.Parameter for value in gc.get_objects())


@pytest.mark.slow
def test_an_adapter_is_attached_to_the_frozen_model_and_does_not_change_it(tmp_path):
    models = run_models(tmp_path, **{"mapper.lora_rank": "4"})
    pairs = [(RENDERER.prompt_ids(question), RENDERER.response_ids(text)) for question, text in ROWS]
    scores = models.target_engine.score(pairs)
    parameter_count = count_live_parameters()
    initial_mapper = models.mapper_to_train()
    assert initial_mapper is models.target_engine.model
    policy = add_lora(initial_mapper, 4)
    with torch.no_grad():
        for name, weight in policy.named_parameters():
            if "lora_B" in name:
                weight.fill_(0.05)
    assert not close(HFEngine(policy).score(pairs), scores) and close(models.target_engine.score(pairs), scores)
    assert close([list(stats.logprobs) for stats in models.target_engine.token_stats(pairs)], scores)
    trained = HFEngine(policy).score(pairs)
    assert any(p.requires_grad for p in policy.parameters())
    models.keep(policy, tmp_path / "stage")
    del policy
    assert count_live_parameters() == parameter_count and close(models.target_engine.score(pairs), scores)
    assert {path.name for path in (tmp_path / "stage" / "model").glob("*.safetensors")} == {"adapter_model.safetensors"}
    with models.mapper(tmp_path / "stage" / "model") as mapper:
        assert close(mapper.score(pairs), trained) and close(models.target_engine.score(pairs), scores)
    assert close(models.start_engine.score(pairs), scores) and count_live_parameters() == parameter_count


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("lora_rank", [None, 4])
def test_estimated_activations_match_those_of_a_larger_microbatch(architecture, lora_rank):
    model = without_dropout(model_of(architecture))
    settings, execution = MapperConfig(lora_rank=lora_rank), ExecutionConfig(microbatch_tokens=256)
    estimate = footprint(model, settings, 0, execution)
    weights = sum(p.numel() for p in model.parameters())
    if lora_rank:
        assert 0 < estimate.trained < 16 * weights
        model = add_lora(model, 4)
    else:
        assert estimate.trained == 16 * weights
    assert estimate.activations == pytest.approx(activation_bytes(model, 256), rel=0.25)


@pytest.mark.parametrize("architecture", ["qwen3", "llama"])
def test_the_memory_of_a_float32_copy_is_estimated_without_making_one(architecture):
    settings, execution = MapperConfig(), ExecutionConfig(microbatch_tokens=256)
    copy = fuse_norms(model_of(architecture))
    estimate = footprint(fuse_norms(model_of(architecture)).to(torch.bfloat16), settings, 0, execution)
    weights = sum(p.numel() for p in copy.parameters())
    assert estimate.trained == 18 * weights
    measured = activation_bytes(compute_in(copy, torch.bfloat16), 256)  # includes the bfloat16 copies of the weights
    assert estimate.activations + 2 * weights == pytest.approx(measured, rel=0.1)


def test_checkpointing_is_estimated_to_keep_less(tmp_path):
    plain, checkpointed = (
        footprint(model_of(), MapperConfig(), 0, ExecutionConfig(gradient_checkpointing=flag)).activations
        for flag in (False, True)
    )
    assert checkpointed < 0.6 * plain


def test_a_run_estimates_the_memory_of_each_training(tmp_path):
    models = run_models(
        tmp_path, **{"arms": "[dart, grpo_tokens]", "sft.lora_rank": "16", "execution.microbatch_tokens": "64"}
    )
    estimates = models.footprints()
    assert set(estimates) == {"mapper", "sft", "direct_rl"}
    assert estimates["mapper"].activations == estimates["direct_rl"].activations
    assert estimates["sft"].trained < estimates["mapper"].trained
    assert estimates["sft"].frozen == 2 * estimates["mapper"].frozen


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_adapter_computes_in_the_dtype_of_its_model(architecture, tmp_path):
    model = fuse_norms(model_of(architecture)).to(torch.bfloat16)
    pairs = [(RENDERER.prompt_ids(question), RENDERER.response_ids(text)) for question, text in ROWS]
    before = HFEngine(model).score(pairs)
    policy = add_lora(model, 4)
    for row, expected in zip(HFEngine(policy).score(pairs), before, strict=True):  # a new adapter changes nothing
        torch.testing.assert_close(torch.tensor(row), torch.tensor(expected), atol=0.005, rtol=0)
    dtypes = set()
    layers = [module for name, module in policy.named_modules() if name.endswith("lora_A.default")]
    for layer in layers:
        layer.register_forward_hook(lambda _, inputs, output: dtypes.update((inputs[0].dtype, output.dtype)))
    sequence_logprobs(policy, pairs[:2])[0].sum().backward()
    trained = [weight for weight in policy.parameters() if weight.requires_grad]
    assert layers and dtypes == {torch.bfloat16}
    assert all(weight.dtype == weight.grad.dtype == torch.float32 for weight in trained)
    with torch.no_grad():
        for name, weight in policy.named_parameters():
            if "lora_B" in name:
                weight.copy_(torch.randn_like(weight) * 0.05)
    scores = HFEngine(policy).score(pairs)
    save_model(cast_to_compute_dtype(policy), RENDERER.tokenizer, tmp_path / "adapter")
    loaded = load_adapter(remove_lora(policy), tmp_path / "adapter")
    assert {weight.dtype for weight in loaded.parameters()} == {torch.bfloat16}
    for row, expected, plain in zip(HFEngine(loaded).score(pairs), scores, before, strict=True):
        torch.testing.assert_close(torch.tensor(row), torch.tensor(expected), atol=0.03, rtol=0)
        assert expected != plain
