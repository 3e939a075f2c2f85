"""Loaded models equal the saved ones; incomplete, pickled and unsupported ones are rejected with the reason."""

import json
import sys

import pytest
import torch
import transformers
from safetensors.torch import save_file

from dartune.engines.hf import HFEngine
from dartune.errors import InputError, MachineError
from dartune.models.loading import (
    context_length,
    end_ids,
    load_model,
    load_tokenizer,
    save_model,
    stop_at,
)
from dartune.models.lora import add_lora, load_adapter, merge_lora, remove_lora, without_adapter
from dartune.models.model_files import model_problems
from fixtures_models import ARCHITECTURES, byte_tokenizer, save_tiny, tiny_model

IDS = torch.tensor([[5, 6, 7, 8]])


@pytest.fixture
def folder(tmp_path):
    return save_tiny(tmp_path / "model")


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError("a local path must not use the network")

    monkeypatch.setattr("socket.socket.connect", fail)
    monkeypatch.setattr("socket.getaddrinfo", fail)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_saved_model_is_loaded_unchanged(architecture, tmp_path):
    tokenizer = byte_tokenizer()
    model = tiny_model(architecture, len(tokenizer), pad=0, eos=1).eval()
    save_model(model, tokenizer, tmp_path / "saved")
    again = load_model(tmp_path / "saved")
    assert torch.equal(again(IDS).logits, model(IDS).logits)
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert (again.get_input_embeddings().weight is again.get_output_embeddings().weight) == tied
    assert not again.training and again.config._attn_implementation == "sdpa"
    text = "2 + 2 = 4 <|im_end|>"
    assert load_tokenizer(tmp_path / "saved").encode(text) == tokenizer.encode(text)
    assert not list((tmp_path / "saved").glob("*.bin"))


def test_dtype_and_device(folder):
    assert load_model(str(folder), device="cpu").dtype == torch.float32
    assert load_model(folder, dtype="bfloat16").dtype == torch.bfloat16
    with pytest.raises(InputError) as caught:
        load_model(folder, dtype="float8", device="abacus")
    assert "abacus" in str(caught.value) and "float8" in str(caught.value)


def test_a_missing_folder_is_not_looked_up_on_the_hub(tmp_path):
    for load in (load_model, load_tokenizer):
        for path in (tmp_path / "nowhere", str(tmp_path / "nowhere"), "./no/where/at/all"):
            with pytest.raises(InputError, match="no folder"):
                load(path)


def test_all_problems_of_a_folder_are_listed(tmp_path):
    with pytest.raises(InputError) as caught:
        load_model(tmp_path, dtype="int3")
    problems = "\n".join(caught.value.problems)
    assert all(word in problems for word in ("int3", "config.json", "no weights", "no tokenizer"))


def test_pickled_weights_are_rejected_with_instructions(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(InputError, match="save_pretrained"):
        load_model(folder)


def test_a_missing_shard_is_named(folder):
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    weights = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weights}))
    assert model_problems(folder) == ["the weight file model-00002-of-00002.safetensors is missing"]


def test_weights_that_transformers_would_initialise_at_random_are_an_error(folder):
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    del weights["model.norm.weight"]
    weights["model.layers.0.mlp.up_proj.weight"] = torch.zeros(3, 3)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError) as caught:
        load_model(folder)
    assert "model.norm.weight is missing" in str(caught.value)
    assert "up_proj.weight has another shape" in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_an_error(value, folder):
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][3] = value
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"weight model\.norm\.weight is not finite"):
        load_model(folder)


def test_an_index_cannot_name_files_of_other_folders(folder):
    (folder / "model.safetensors").rename(folder.parent / "elsewhere.safetensors")
    index = {"weight_map": {"model.norm.weight": "../elsewhere.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match="not a file of this folder"):
        load_model(folder)


def test_loading_and_saving_print_nothing(folder, tmp_path, capfd, caplog):
    save_model(load_model(folder), load_tokenizer(folder), tmp_path / "again")
    assert capfd.readouterr() == ("", "") and not caplog.records


def test_broken_files_are_input_errors(folder):
    (folder / "model.safetensors").write_bytes(b"half a fi")
    with pytest.raises(InputError, match="cannot load the model"):
        load_model(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(InputError, match="not JSON"):
        load_model(folder)


def test_code_of_a_model_is_not_run(folder, tmp_path):
    trace = tmp_path / "executed"
    (folder / "modeling_odd.py").write_text(f"open({str(trace)!r}, 'w').close()\nclass Odd: pass\n")
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "odd",
        "auto_map": dict.fromkeys(("AutoConfig", "AutoModelForCausalLM"), "modeling_odd.Odd"),
    }
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="trust_remote_code"):
        load_model(folder)
    assert not trace.exists()


@pytest.mark.parametrize("name", ["Mamba", "Mamba2", "FalconH1", "RecurrentGemma", "Qwen3Next", "Jamba"])
def test_a_model_with_a_recurrent_state_is_rejected_with_the_reason(name, tmp_path):
    getattr(transformers, f"{name}Config")().save_pretrained(tmp_path)
    byte_tokenizer(chat=True).save_pretrained(tmp_path)
    save_file({"weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="recurrent state"):
        load_model(tmp_path)


def test_an_adapter_is_not_loaded_as_a_model(tmp_path):
    add_lora(tiny_model("llama", 60, pad=0, eos=1), 2).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="LoRA adapter"):
        load_model(tmp_path)


def test_a_failed_save_keeps_the_old_model_and_leaves_no_files(folder):
    class FullDisk:
        def save_pretrained(self, folder):
            raise OSError(28, "No space left on device")

    before = load_model(folder)(IDS).logits
    other = tiny_model("qwen3", before.shape[-1], pad=0, eos=1, seed=9)
    with pytest.raises(MachineError, match="the disk is full"):
        save_model(other, FullDisk(), folder)
    assert torch.equal(load_model(folder)(IDS).logits, before)
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_saving_replaces_the_previous_model(folder):
    (folder / "stale.txt").write_text("old")
    tokenizer = load_tokenizer(folder)
    other = tiny_model("qwen3", len(tokenizer), pad=0, eos=1, seed=9).eval()
    save_model(other, tokenizer, folder)
    assert torch.equal(load_model(folder)(IDS).logits, other(IDS).logits)
    assert not (folder / "stale.txt").exists()
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_lora_leaves_the_model_unchanged_and_merges_into_it(architecture, tmp_path):
    tokenizer = byte_tokenizer()
    model = tiny_model(architecture, len(tokenizer), pad=0, eos=1).eval()
    before = model(IDS).logits
    wrapped = add_lora(model, 4).eval()
    assert torch.equal(wrapped(IDS).logits, before)
    trained = [name for name, weight in wrapped.named_parameters() if weight.requires_grad]
    assert trained and all("lora_" in name for name in trained)
    with torch.no_grad():
        for name, weight in wrapped.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
    changed = wrapped(IDS).logits
    assert not torch.allclose(changed, before)
    with without_adapter(model):
        assert torch.equal(model(IDS).logits, before)
    assert torch.equal(wrapped(IDS).logits, changed)
    save_model(wrapped, tokenizer, tmp_path / "adapter")
    assert torch.equal(remove_lora(wrapped)(IDS).logits, before)
    again = load_adapter(model, tmp_path / "adapter")
    assert torch.equal(again(IDS).logits, changed)
    save_model(merge_lora(again), tokenizer, tmp_path / "merged")
    torch.testing.assert_close(load_model(tmp_path / "merged")(IDS).logits, changed, atol=1e-5, rtol=1e-4)


def test_merging_without_lora_does_nothing_and_ranks_are_positive():
    model = tiny_model("llama", 60, pad=0, eos=1)
    assert merge_lora(model) is model and remove_lora(model) is model
    with without_adapter(model):
        assert torch.isfinite(model(torch.tensor([[1, 2]])).logits).all()
    with pytest.raises(InputError, match="lora_rank"):
        add_lora(model, 0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_context_length(architecture):
    model = tiny_model(architecture, 60, pad=0, eos=1)
    assert context_length(model) == context_length(model.config) == 512
    assert context_length(object()) == sys.maxsize


ROPES = {
    "longrope": {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "original_max_position_embeddings": 32},
    "dynamic": {"factor": 4.0},
}


@pytest.mark.parametrize("kind", ROPES)
@pytest.mark.filterwarnings("ignore")
def test_a_length_dependent_rope_does_not_mix_the_rows_of_a_batch(kind, tmp_path):
    """transformers chooses the frequencies by the longest row of a forward."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    tokenizer = byte_tokenizer()
    original_length = 32
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=128 if kind == "longrope" else original_length,
        rope_parameters={"rope_type": kind, "rope_theta": 10000.0, **ROPES[kind]},
        **sizes,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    engine = HFEngine(load_model(tmp_path))
    assert engine.context == original_length
    engine.context = 128
    short, long = ([5, 6, 7], (8, 9, 10)), ([7] * 10, tuple(range(8, 68)))
    alone = engine.score([short])[0]
    assert engine.score([short, long])[0] == pytest.approx(alone, abs=1e-5)
    assert engine.score([short])[0] == pytest.approx(alone, abs=1e-5)


def test_a_saved_model_has_the_stop_tokens_of_its_training(folder, tmp_path):
    model = load_model(folder)
    stop_at(model, (3, 5))
    save_model(model, load_tokenizer(folder), tmp_path / "saved")
    assert end_ids(tmp_path / "saved") == (3, 5)
    (tmp_path / "saved" / "generation_config.json").unlink()
    assert end_ids(tmp_path / "saved") == ()
