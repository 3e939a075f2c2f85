"""Tests of the adapted data set: no row is lost, it loads with `datasets`, and TRL's trainer trains on it."""

import json
import re

import pytest

from dartune.data.adapted_dataset import ROW_FIELDS, accounting, read_adapted, write_adapted
from dartune.data.chat_template import Renderer
from dartune.errors import DartuneError, InputError
from fixtures_models import save_tiny

NOTE = {"target": "tiny", "mapper": "a copy of the target", "seed": 0}


def row(number, provenance, **changes):
    solution = "" if provenance == "dropped" else f"Take {number}. So {number}"
    fields = {
        "id": f"r{number}",
        "question": f"What is {number}?",
        "solution": solution,
        "messages": [
            {"role": "user", "content": f"What is {number}?"},
            {"role": "assistant", "content": solution},
        ],
        "source_solution": "Überlegung\n= x",
        "answer": str(number),
        "provenance": provenance,
        "alignment_before": -2.5,
        "alignment_after": None if provenance == "dropped" else -1.0,
        "reward": {"reward": 1.5, "gain": 1.5} if provenance == "rewrite" else {},
        "gates": {"answer": True, "format": True} if provenance != "dropped" else {},
        "hacks": [],
        "hacks_refused": ["leak"] if provenance == "dropped" else [],
        "reason": "the best accepted candidate",
    }
    return fields | changes


ROWS = [row(n, p) for n, p in enumerate(["rewrite", "rewrite", "own", "original", "dropped", "rewrite"])]


def load_view(tmp_path, *name):
    import datasets

    return datasets.load_dataset(str(tmp_path / "adapted"), *name, split="train", cache_dir=str(tmp_path / "cache"))


def test_reading_returns_the_written_rows(tmp_path):
    folder = write_adapted(tmp_path / "adapted", ROWS, provenance_note=NOTE)
    assert read_adapted(folder) == ROWS
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "data.jsonl",
        "keep_original.parquet",
        "success_only.parquet",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["adapted"]


def test_both_views_load_with_datasets(tmp_path):
    write_adapted(tmp_path / "adapted", ROWS, provenance_note=NOTE)
    default, everything = load_view(tmp_path), load_view(tmp_path, "keep_original")
    assert default["id"] == ["r0", "r1", "r2", "r5"]
    assert everything["id"] == ["r0", "r1", "r2", "r3", "r5"]
    assert default.features == everything.features
    assert set(ROW_FIELDS) <= set(default.column_names)
    first = default[0]
    assert first["messages"] == first["prompt"] + first["completion"] == ROWS[0]["messages"]
    assert first["reward"] == {"gain": 1.5, "reward": 1.5} and first["gates"] == {
        "answer": True,
        "format": True,
    }
    assert everything[3]["reward"] == {"gain": None, "reward": None}


def test_a_view_without_rows_has_no_file_and_the_other_loads(tmp_path):
    rows = [row(0, "original", gates={}), row(1, "original", gates={})]
    folder = write_adapted(tmp_path / "adapted", rows, provenance_note={})
    assert len(load_view(tmp_path)) == 2
    assert not (folder / "success_only.parquet").exists()
    card_text = (folder / "README.md").read_text()
    assert "no rows here" in card_text and re.findall(r'load_dataset\("[^"]*", "(\w+)"', card_text) == ["keep_original"]
    with pytest.raises(ValueError, match="success_only"):
        load_view(tmp_path, "success_only")
    dropped = write_adapted(tmp_path / "none", [row(0, "dropped")], provenance_note={})
    assert len(read_adapted(dropped)) == 1 and not list(dropped.glob("*.parquet"))
    assert "load_dataset(" not in (dropped / "README.md").read_text()


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("chat", [True, False])
def test_a_trl_trainer_trains_on_the_response_only(chat, tmp_path):
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    write_adapted(tmp_path / "adapted", ROWS, provenance_note=NOTE, chat=chat)
    model = save_tiny(tmp_path / "model", "qwen3", chat=chat)
    config = SFTConfig(
        output_dir=str(tmp_path / "out"),
        max_steps=2,
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        report_to=[],
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        logging_steps=1,
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = SFTTrainer(model=str(model), args=config, train_dataset=load_view(tmp_path))
    result = trainer.train()
    assert result.global_step == 2 and 0 < result.training_loss < 10
    batch = trainer.data_collator([trainer.train_dataset[0]])
    trained = batch["input_ids"][0][batch["labels"][0] != -100]
    text = AutoTokenizer.from_pretrained(model).decode(trained)
    assert text == ROWS[0]["solution"] + ("<|im_end|>\n" if chat else "<|endoftext|>")


def test_the_card_states_counts_views_and_source(tmp_path):
    folder = write_adapted(tmp_path / "adapted", ROWS, provenance_note={**NOTE, "odd": "a\n---\nb: c"})
    card = (folder / "README.md").read_text()
    assert "| rewrite | 3 | 50.0% |" in card and "| dropped | 1 | 16.7% |" in card
    assert "* mapper: a copy of the target" in card and "* odd: a --- b: c" in card
    assert "-2.500 for the original" in card and "-1.000 for these" in card


SYSTEM = "Think in short steps.\nAnswer in English."


@pytest.mark.parametrize("chat", [True, False])
def test_a_system_prompt_precedes_every_question(chat, tmp_path):
    from transformers import AutoTokenizer

    folder = write_adapted(tmp_path / "adapted", ROWS, provenance_note=NOTE, chat=chat, system_prompt=SYSTEM)
    tokenizer = AutoTokenizer.from_pretrained(save_tiny(tmp_path / "model", "qwen3", chat=chat))
    first = load_view(tmp_path)[0]
    prompt_ids = Renderer(tokenizer, SYSTEM).prompt_ids(ROWS[0]["question"])
    if chat:
        turn = {"role": "system", "content": SYSTEM}
        assert first["messages"] == first["prompt"] + first["completion"] == [turn, *ROWS[0]["messages"]]
        text = tokenizer.apply_chat_template(first["prompt"], tokenize=False, add_generation_prompt=True)
        assert tokenizer.encode(text, add_special_tokens=False) == prompt_ids
    else:
        assert tokenizer.encode(first["prompt"], add_special_tokens=False) == prompt_ids
    assert all(row["messages"][0]["content"] == SYSTEM for row in read_adapted(folder))
    card = (folder / "README.md").read_text()
    assert "begins with the system prompt" in card and f"* system prompt: {' '.join(SYSTEM.split())}" in card


def test_without_a_system_prompt_the_card_mentions_none(tmp_path):
    folder = write_adapted(tmp_path / "adapted", ROWS, provenance_note=NOTE, chat=False, system_prompt=None)
    assert load_view(tmp_path)[0]["prompt"] == "What is 0?\n"
    assert read_adapted(folder) == ROWS and "system" not in (folder / "README.md").read_text()


def test_a_second_write_replaces_the_first_and_a_failed_one_does_not(tmp_path, monkeypatch):
    folder = write_adapted(tmp_path / "adapted", ROWS, provenance_note=NOTE)
    write_adapted(folder, ROWS[:2], provenance_note=NOTE)
    assert len(read_adapted(folder)) == 2

    def full_disk(*args, **kwargs):
        raise OSError("No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("pyarrow.parquet.ParquetWriter.write_table", full_disk)
        with pytest.raises(OSError):
            write_adapted(folder, ROWS, provenance_note=NOTE)
    assert len(read_adapted(folder)) == 2
    write_adapted(folder, ROWS, provenance_note=NOTE)
    assert len(read_adapted(folder)) == 6 and [path.name for path in tmp_path.iterdir()] == ["adapted"]


def test_nonfinite_numbers_become_null_and_numpy_scalars_become_json_numbers(tmp_path):
    import numpy

    changed = row(
        0,
        "rewrite",
        alignment_after=float("-inf"),
        reward={"reward": float("nan"), "gain": numpy.float32(0.5)},
        gates={"answer": numpy.bool_(True)},
        hacks={"b", "a"},
    )
    folder = write_adapted(tmp_path / "adapted", [changed], provenance_note=NOTE)
    (restored,) = read_adapted(folder)
    assert restored["alignment_after"] is None and restored["reward"] == {"reward": None, "gain": 0.5}
    assert restored["gates"] == {"answer": True} and restored["hacks"] == ["a", "b"]
    json.loads((folder / "data.jsonl").read_text(), parse_constant=pytest.fail)


def test_accounting_rejects_missing_and_repeated_rows():
    assert accounting(ROWS, 6) == {
        "input": 6,
        "adapted": 4,
        "rewrite": 3,
        "own": 1,
        "guided": 0,
        "natural": 0,
        "original": 1,
        "dropped": 1,
    }
    with pytest.raises(DartuneError, match="7 rows in, 6 out"):
        accounting(ROWS, 7)
    with pytest.raises(DartuneError, match="repeated ids .'r0'"):
        accounting([*ROWS[:5], ROWS[0]], 6)
    with pytest.raises(DartuneError, match="unknown provenance .'magic'"):
        accounting([*ROWS[:5], row(5, "magic")], 6)


def test_rows_that_cannot_be_trained_on_are_rejected(tmp_path):
    incomplete = row(1, "rewrite")
    del incomplete["reason"], incomplete["gates"]
    with pytest.raises(DartuneError, match="row 1 .r0.: has an empty solution.*row 2: lacks gates, reason"):
        write_adapted(tmp_path / "adapted", [row(0, "own", solution=" "), incomplete], provenance_note=NOTE)
    assert not list(tmp_path.iterdir())


def test_a_folder_without_a_data_set_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="no data.jsonl"):
        read_adapted(tmp_path)
    (tmp_path / "data.jsonl").write_text('{"id": ')
    with pytest.raises(InputError, match="damaged"):
        read_adapted(tmp_path)
