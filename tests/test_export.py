"""`dartune export`: the layouts of other training tools, read by `datasets` and by the tools that are installed."""

import json
import os

import pytest
import yaml

from dartune.cli import build_parser, main
from dartune.data.adapted_dataset import VIEWS, write_adapted
from dartune.data.chat_template import Renderer
from dartune.errors import InputError
from dartune.publish.export import export
from dartune.publish.layouts import LAYOUTS, dataset_name
from dartune.run.files import read_jsonl
from dartune.run.folder import DONE
from fixtures_models import byte_tokenizer, save_tiny
from test_adapted import row

SYSTEM = "Think in short steps.\nAnswer in English."
NOTE = {"target": "tiny", "seed": 0}
PROVENANCES = ["rewrite", "own", "original", "dropped", *["rewrite"] * 10]
# Line separators, template syntax, format fields and quotes are ordinary text in every layout.
ROWS = [row(number, provenance) for number, provenance in enumerate(PROVENANCES)]
ROWS[4] = row(4, "rewrite", question="What is {4}?\u2028 {{ x }} \"q\" 'ü'", solution="{solution} {{ y }}\n\n4")
ROWS[4]["messages"] = [
    {"role": "user", "content": ROWS[4]["question"]},
    {"role": "assistant", "content": ROWS[4]["solution"]},
]
TRAINED = [row for row in ROWS if row["provenance"] in VIEWS["success_only"].provenances]
CASES = [(True, None), (True, SYSTEM), (False, None), (False, SYSTEM)]
every_case = pytest.mark.parametrize(("chat", "system"), CASES, ids=["chat", "chat-system", "plain", "plain-system"])


def adapted(folder, *, chat=True, system=None, rows=ROWS):
    return write_adapted(folder / "adapted", rows, provenance_note=NOTE, chat=chat, system_prompt=system)


def conversation(row, system):
    return [*([{"role": "system", "content": system}] if system else []), *row["messages"]]


def prompt_text(row, system):
    return f"{system}\n{row['question']}\n" if system else f"{row['question']}\n"


def load(path, **arguments):
    import datasets

    return datasets.load_dataset(str(path), split="train", cache_dir=str(path.parent / "cache"), **arguments)


def expected_ids(row, system, tokenizer):
    """The ids and labels that dartune trains on."""
    renderer = Renderer(tokenizer, system)
    prompt, response = renderer.prompt_ids(row["question"]), renderer.response_ids(row["solution"])
    return prompt + response, [-100] * len(prompt) + response


def test_the_command_offers_every_layout_and_view():
    [verbs] = [action for action in build_parser()._actions if action.dest == "verb"]
    flags = {action.dest: action.choices for action in verbs.choices["export"]._actions}
    assert list(flags["layout"]) == list(LAYOUTS) and list(flags["view"]) == list(VIEWS)


@every_case
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_loads_with_datasets(layout, chat, system, tmp_path):
    export(adapted(tmp_path, chat=chat, system=system), layout, tmp_path / "out")
    loaded = load(tmp_path / "out").to_list()
    assert loaded == read_jsonl(tmp_path / "out" / "train.jsonl") and len(loaded) == len(TRAINED)
    for exported, source in zip(loaded, TRAINED, strict=True):
        messages = conversation(source, system)
        if layout == "openai" or (chat and layout != "trl"):
            assert exported == {"messages": messages}
        elif chat:
            assert exported == {"prompt": messages[:-1], "completion": messages[-1:]}
        else:
            names = ("instruction", "output") if layout == "llama-factory" else ("prompt", "completion")
            texts = prompt_text(source, system), source["solution"]
            assert exported == dict(zip(names, texts, strict=True))


def test_a_view_is_selected_and_a_second_export_replaces_the_first(tmp_path):
    folder = adapted(tmp_path)
    assert main(["export", str(folder), "--layout", "trl", "--output", str(tmp_path / "out")]) == 0
    flags = ["--layout", "trl", "--output", str(tmp_path / "out"), "--view", "keep_original"]
    (tmp_path / "out" / ".train.jsonl.draft").write_text("of an interrupted export", encoding="utf-8")
    assert main(["export", str(folder), *flags]) == 0
    assert len(read_jsonl(tmp_path / "out" / "train.jsonl")) == len(TRAINED) + 1
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["train.jsonl"]


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")
@every_case
def test_trl_trains_on_the_same_tokens_as_dartune(chat, system, tmp_path):
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    export(adapted(tmp_path, chat=chat, system=system), "trl", tmp_path / "out")
    model = save_tiny(tmp_path / "model", "qwen3", chat=chat)
    settings = {"report_to": [], "use_cpu": True, "bf16": False, "gradient_checkpointing": False, "disable_tqdm": True}
    config = SFTConfig(output_dir=str(tmp_path / "trl"), **settings)
    trainer = SFTTrainer(model=str(model), args=config, train_dataset=load(tmp_path / "out"))
    tokenizer = AutoTokenizer.from_pretrained(model)
    for index, source in enumerate(TRAINED):
        batch = trainer.data_collator([trainer.train_dataset[index]])
        ids, labels = expected_ids(source, system, tokenizer)
        if chat:  # TRL also trains on the line break that the template writes after the end token
            ids, labels = (values + tokenizer.encode("\n") for values in (ids, labels))
        assert (batch["input_ids"][0].tolist(), batch["labels"][0].tolist()) == (ids, labels)


@every_case
def test_dataset_info_describes_the_rows_to_llama_factory(chat, system, tmp_path):
    """The rules of LLaMA-Factory's `data/README.md`; its own reader is tried below where it is installed."""
    output = tmp_path / "my data, 1"
    export(adapted(tmp_path, chat=chat, system=system), "llama-factory", output)
    [(name, entry)] = json.loads((output / "dataset_info.json").read_text(encoding="utf-8")).items()
    assert name == dataset_name(output) == "my-data-1"
    rows = read_jsonl(output / entry["file_name"])
    columns = entry["columns"]
    assert all(set(columns.values()) == set(exported) for exported in rows)
    if not chat:
        assert entry["formatting"] == "alpaca" and set(columns) == {"prompt", "response"}
        return
    tags = entry["tags"]
    assert entry["formatting"] == "sharegpt" and set(columns) == {"messages"}
    for exported in rows:
        turns = [(turn[tags["role_tag"]], turn[tags["content_tag"]]) for turn in exported[columns["messages"]]]
        system_turns = [(tags["system_tag"], system)] if system else []
        assert turns[: len(system_turns)] == system_turns
        assert [role for role, _ in turns[len(system_turns) :]] == [tags["user_tag"], tags["assistant_tag"]]


@every_case
def test_llama_factory_reads_its_layout(chat, system, tmp_path, monkeypatch):
    monkeypatch.setenv("DISABLE_VERSION_CHECK", "1")
    data = pytest.importorskip("llamafactory.data", reason="LLaMA-Factory is not installed")
    from llamafactory.data.loader import _load_single_dataset
    from llamafactory.data.parser import get_dataset_list
    from llamafactory.data.processor.supervised import SupervisedDatasetProcessor
    from llamafactory.hparams import DataArguments, ModelArguments
    from transformers import Seq2SeqTrainingArguments

    output = tmp_path / "out"
    export(adapted(tmp_path, chat=chat, system=system), "llama-factory", output)
    tokenizer = byte_tokenizer(chat)
    if chat:
        tokenizer.eos_token = "<|im_end|>"  # as in the published models with this template
    arguments = DataArguments(template="chatml" if chat else "fewshot", dataset_dir=str(output), dataset="out")
    template = data.get_template_and_fix_tokenizer(tokenizer, arguments)
    [description] = get_dataset_list(["out"], str(output))
    model_arguments = ModelArguments(model_name_or_path="none", cache_dir=str(tmp_path / "cache"))
    training = Seq2SeqTrainingArguments(output_dir=str(tmp_path / "training"), use_cpu=True)
    rows = _load_single_dataset(description, model_arguments, arguments, training)
    processor = SupervisedDatasetProcessor(template, tokenizer, None, arguments)
    encoded = processor.preprocess_dataset(rows.to_dict())
    assert len(encoded["input_ids"]) == len(TRAINED)
    # The templates add a line break after the end token, or a blank line before it.
    for source, ids, labels in zip(TRAINED, encoded["input_ids"], encoded["labels"], strict=True):
        expected, expected_labels = expected_ids(source, system, tokenizer)
        added = tokenizer.encode("\n") if chat else tokenizer.encode("\n\n")
        if chat:
            assert (ids, labels) == (expected + added, expected_labels + added)
        else:
            text = tokenizer.decode([index for index in labels if index != -100])
            assert text == f"{source['solution']}\n\n{tokenizer.eos_token}"
            assert tokenizer.decode(ids) == prompt_text(source, system) + text


@every_case
def test_the_axolotl_config_names_file_and_columns(chat, system, tmp_path):
    output = tmp_path / "out"
    export(adapted(tmp_path, chat=chat, system=system), "axolotl", output)
    config = yaml.safe_load((output / "datasets.yml").read_text(encoding="utf-8"))
    [dataset] = config["datasets"]
    assert dataset["path"] == str(output / "train.jsonl") and dataset["ds_type"] == "json"
    exported = read_jsonl(output / "train.jsonl")[0]
    if chat:
        assert dataset["type"] == "chat_template" and set(exported) == {"messages"}
    else:
        kind = dataset["type"]
        assert {kind["field_instruction"], kind["field_output"]} == set(exported)


@every_case
def test_axolotl_reads_its_layout(chat, system, tmp_path, monkeypatch):
    monkeypatch.setenv("AXOLOTL_DO_NOT_TRACK", "1")
    pytest.importorskip("axolotl", reason="axolotl is not installed")
    from axolotl.utils.data.shared import datasets_with_name_generator, load_dataset_with_config
    from axolotl.utils.data.wrappers import get_dataset_wrapper
    from axolotl.utils.dict import DictDefault
    from axolotl.utils.schemas.datasets import SFTDataset

    output = tmp_path / "out"
    export(adapted(tmp_path, chat=chat, system=system), "axolotl", output)
    config = DictDefault(yaml.safe_load((output / "datasets.yml").read_text(encoding="utf-8")))
    for dataset in config.datasets:
        SFTDataset.model_validate(dataset.to_dict())
    config |= {"sequence_len": 1024, "dataset_keep_in_memory": True}
    tokenizer = byte_tokenizer(chat)
    if chat:
        tokenizer.eos_token = "<|im_end|>"
    [dataset_config] = datasets_with_name_generator(config.datasets)
    rows = load_dataset_with_config(dataset_config, False)
    base, _, style = dataset_config.type.partition(":") if chat else ("", "", "")
    encoded, _ = get_dataset_wrapper(dataset_config, tokenizer, config, base, rows, style or None)
    assert len(encoded) == len(TRAINED)
    for source, exported in zip(TRAINED, encoded, strict=True):
        ids, labels = expected_ids(source, system, tokenizer)
        if chat:  # the line break after the end token is not trained
            ids, labels = ids + tokenizer.encode("\n"), labels + [-100] * len(tokenizer.encode("\n"))
        assert (exported["input_ids"], exported["labels"]) == (ids, labels)


@every_case
def test_the_openai_layout_follows_the_documented_rules(chat, system, tmp_path):
    export(adapted(tmp_path, chat=chat, system=system), "openai", tmp_path / "out")
    lines = (tmp_path / "out" / "train.jsonl").read_bytes().split(b"\n")
    assert lines.pop() == b"" and len(lines) >= 10
    for line in lines:
        exported = json.loads(line.decode("utf-8"))
        assert set(exported) == {"messages"}
        roles = [message["role"] for message in exported["messages"]]
        assert roles == [*(["system"] if system else []), "user", "assistant"]
        for message in exported["messages"]:
            assert set(message) == {"role", "content"}
            assert isinstance(message["content"], str) and message["content"]


def test_too_few_rows_for_openai_are_an_error(tmp_path):
    folder = adapted(tmp_path, rows=ROWS[:5])
    with pytest.raises(InputError, match="adapted has 3 rows; OpenAI needs at least 10"):
        export(folder, "openai", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    export(folder, "trl", tmp_path / "out")


def test_an_output_folder_with_other_files_is_refused_with_the_other_problems(tmp_path):
    folder = adapted(tmp_path)
    export(folder, "llama-factory", tmp_path / "out")
    with pytest.raises(InputError, match="holds other files .dataset_info.json."):
        export(folder, "trl", tmp_path / "out")
    with pytest.raises(InputError) as error:
        export(folder, "trl", folder / "README.md", view="success_only", seed=0)
    assert list(error.value.problems) == [
        f"{folder} is the data set of one arm and seed; leave out --arm and --seed",
        f"--output {folder / 'README.md'} is a file; name a folder",
    ]


def test_a_view_without_rows_and_changed_files_are_errors(tmp_path):
    folder = adapted(tmp_path, rows=[row(0, "original"), row(1, "original")])
    with pytest.raises(InputError, match=r"has no success_only.parquet.*--view keep_original has some"):
        export(folder, "trl", tmp_path / "out")
    path = folder / "data.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text(lines[0], encoding="utf-8")
    with pytest.raises(InputError, match="has 1 rows of the view keep_original, but keep_original.parquet has 2"):
        export(folder, "trl", tmp_path / "out", view="keep_original")
    for broken in ('{"id": ', "[]", "{}"):
        path.write_text(lines[0] + broken, encoding="utf-8")
        with pytest.raises(InputError, match=r"data.jsonl line 2 is not a row"):
            export(folder, "trl", tmp_path / "out", view="keep_original")
    (folder / "keep_original.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"keep_original.parquet cannot be read"):
        export(folder, "trl", tmp_path / "out", view="keep_original")
    with pytest.raises(InputError, match="there is no run in"):
        export(tmp_path / "nothing", "trl", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_runs_and_rows_adapted_later_are_exported(tmp_path, capsys):
    from test_score_data import write_rows

    write_rows(tmp_path / "data.jsonl", 40)
    run, more = tmp_path / "run", tmp_path / "more"
    flags = ["--data", str(tmp_path / "data.jsonl"), "--target", "lab:backward", "--mapper.path", "lab:mapper"]
    flags += ["--output", str(run), "--data.where", "level >= 4", "--arms", "dart,best_of_k", "--seeds", "[2, 3]"]
    flags += ["--mapper.steps=1", "--mapper.questions_per_step=2", "--mapper.group_size=2"]
    flags += ["--mapper.max_new_tokens=96", "--synthesise.samples=2", "--sft.steps=1", "--sft.batch_size=2"]
    flags += ["--evaluate.max_new_tokens=32"]
    assert main(["run", *flags]) == 0
    # The new rows have no column `level`: the condition of the run is not applied to them.
    rows = [{"question": row["question"], "solution": row["solution"]} for row in read_jsonl(tmp_path / "data.jsonl")]
    (tmp_path / "new.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:3]), encoding="utf-8")
    assert main(["adapt", str(run), "--data", str(tmp_path / "new.jsonl"), "--output", str(more)]) == 0
    capsys.readouterr()
    for source, extra in ((run, []), (run, ["--arm", "best_of_k", "--seed", "3"]), (more, [])):
        output = tmp_path / f"out{len(os.listdir(tmp_path))}"
        command = ["export", str(source), "--layout", "trl", "--output", str(output), "--view", "keep_original", *extra]
        assert main(command) == 0
        arm, seed = extra[1::2] or ("dart", "2")
        stage = f"synthesise{'' if arm == 'dart' else f'-{arm}'}-s{seed}"
        written = read_jsonl(source / "stages" / stage / "adapted" / "data.jsonl")
        kept = [row for row in written if row["provenance"] != "dropped"]
        assert len(load(output)) == len(kept) and f"(arm {arm}, seed {seed}, keep_original)" in capsys.readouterr().out
    for extra, message in (
        (["--arm", "sft"], "--arm sft: {} has no such adapted rows; available: --arm dart with --seed 2 or 3; --arm"),
        (["--seed", "7"], "--seed 7: {} has no such adapted rows"),
        (["--arm", "dart_refreshed"], "this arm trains on renewed rows"),
    ):
        assert main(["export", str(run), "--layout", "trl", "--output", str(tmp_path / "none"), *extra]) == 2
        assert message.format(run) in capsys.readouterr().err
    record = run / "stages" / "synthesise-s2" / DONE
    (run / "stages" / "synthesise-s2" / "adapted" / "README.md").write_text("changed", encoding="utf-8")
    assert main(["export", str(run), "--layout", "trl", "--output", str(tmp_path / "none")]) == 2
    assert "README.md is missing or was changed" in capsys.readouterr().err
    record.unlink()
    assert main(["export", str(run), "--layout", "trl", "--output", str(tmp_path / "none")]) == 2
    assert "the stage synthesise-s2 of" in capsys.readouterr().err
