"""Config: all problems are reported at once with key and location; the resolved config reads back unchanged."""

import re
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from dartune.cli import main
from dartune.config.load import describe_keys, load_config
from dartune.config.recipe import REMOVED
from dartune.config.schema import Config, Section, SFTConfig
from dartune.errors import InputError
from dartune.run.folder import changes

RECIPES = Path(__file__).parents[1] / "recipes"
REQUIRED = {"data": "lab:values", "target": "lab:equations"}


def recipe(tmp_path, text):
    path = tmp_path / "r.yaml"
    path.write_text(text)
    return path


def problems(path, **overrides):
    with pytest.raises(InputError) as caught:
        load_config(path, {key.replace("__", "."): value for key, value in overrides.items()})
    return caught.value.problems


def test_the_lab_recipe_loads_and_flags_win(tmp_path):
    flags = {"mapper.steps": "7", "sft.learning_rates": "2e-5,1e-4", "seeds": "3"}
    config = load_config(RECIPES / "lab.yaml", flags)
    assert (config.mapper.steps, config.sft.learning_rates, config.seeds) == (7, (2e-5, 1e-4), (3,))
    assert config.mapper.path == "lab:mapper"
    assert config.mapper.learning_rate == 3e-4  # written 3e-4, which YAML 1.1 reads as text


def test_the_own_data_recipe_needs_only_two_paths(tmp_path):
    data, model = tmp_path / "my.jsonl", tmp_path / "model"
    data.touch(), model.mkdir()
    config = load_config(RECIPES / "own-data.yaml", {"data": str(data), "target": str(model)})
    assert (config.data.path, config.target.path, config.mapper.path) == (str(data), str(model), None)
    # The recipe spells out the defaults, so that running with it and without it is the same.
    assert config == load_config(None, {"data": str(data), "target": str(model)})


def test_all_problems_are_reported_at_once_with_key_and_location(tmp_path):
    path = recipe(
        tmp_path,
        "data: {path: lab:values}\n"
        "target: {path: lab:equations}\n"
        "outpt: x\n"
        "arms: [base, foo]\n"
        "mapper:\n"
        "  step: 4\n"
        "  kl: -1\n"
        "  prompt: rewrite {solution}\n"
        "sft: {steps: many, learning_rates: []}\n"
        "leak_phrases: [a]\n"
        "synthesise: 3\n",
    )
    reported = problems(path, mapper__group_size="1", steps="3", mapper="x")
    text = "\n".join(reported)
    for expected in (
        f"{path}:3 unknown key outpt, did you mean output?",
        f"{path}:4 arms.1 is 'foo' but should be 'base', 'sft',",
        f"{path}:6 unknown key mapper.step, did you mean mapper.steps?",
        f"{path}:7 mapper.kl is -1 but should be greater than or equal to 0",
        f"{path}:8 mapper.prompt is 'rewrite {{solution}}' but must contain {{question}}",
        f"{path}:9 sft.steps is 'many' but should be a whole number",
        f"{path}:9 sft.learning_rates is [] but should have at least one item",
        f"{path}:10 unknown key leak_phrases, did you mean reward.leak_phrases?",
        f"{path}:11 synthesise is 3 but should be a mapping",
        "--mapper.group_size is 1 but should be greater than or equal to 2",
        "unknown flag --steps, did you mean --mapper.steps or --sft.steps?",
        "--mapper is a section; set one of its keys",
    ):
        assert expected in text
    assert len(reported) == 12


def test_missing_keys_are_reported_with_their_flags(tmp_path):
    assert problems(None) == (
        "data.path is not set: put it into a recipe, or add --data",
        "target.path is not set: put it into a recipe, or add --target",
    )
    assert len(problems(recipe(tmp_path, "data:\ntarget:\nmapper:\n"))) == 2


def test_a_nul_character_is_reported_with_its_key(tmp_path):
    (tmp_path / "r.yaml").write_text('output: "a\\0b"\ndata: {path: lab:values}\ntarget: {path: lab:backward}\n')
    with pytest.raises(InputError) as caught:
        load_config(tmp_path / "r.yaml")
    assert len(caught.value.problems) == 1 and "output" in str(caught.value) and "NUL" in str(caught.value)


def test_a_key_given_twice_is_a_problem(tmp_path):
    path = recipe(tmp_path, "data: {path: lab:values}\nmapper:\n  steps: 1\n  kl: 0.1\n  steps: 2\n")
    message = f"{path}:5 mapper.steps is given twice, first in line 3"
    assert problems(path, target="lab:equations") == (message,)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n- b\n", "must map keys to values"),
        ("a: [1\n", "is not YAML"),
        ("a: !!python/object/apply:os.system ['true']\n", "is not YAML"),
        ("name: 2026-99-99\n", "cannot be read"),
        ("\udcff", "cannot read the recipe"),
    ],
)
def test_a_file_that_is_not_a_recipe(tmp_path, text, message):
    path = tmp_path / "r.yaml"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError, match=message):
        load_config(path)


def test_a_missing_recipe_and_a_folder(tmp_path):
    (tmp_path / "mine.yaml").touch()
    with pytest.raises(InputError, match=r"there is no recipe .*min\.yaml, did you mean .*mine\.yaml\?"):
        load_config(tmp_path / "min.yaml")
    with pytest.raises(InputError, match="is a folder, not a recipe; if it holds data, give --data "):
        load_config(tmp_path)
    (tmp_path / "config.resolved.yaml").touch()
    with pytest.raises(InputError, match="to repeat that run, give .*config.resolved.yaml"):
        load_config(tmp_path)


def test_missing_files_are_problems_and_hub_ids_are_not(tmp_path):
    reported = problems(
        None,
        data="no.jsonl",
        target="./no/model",
        mapper__path="/no/model",
        evaluate__suites__hard="no.csv",
    )
    assert [line.split(":")[0] for line in reported] == [
        "--data",
        "--target",
        "--mapper.path",
        "--evaluate.suites.hard",
    ]
    config = load_config(None, {"data": "hub:openai/gsm8k:main", "target": "Qwen/Qwen3-0.6B"})
    assert config.target.path == "Qwen/Qwen3-0.6B"


def test_a_wrong_setting_does_not_hide_missing_files(tmp_path):
    text = "data: {path: no.jsonl}\ntarget: {path: 5}\nsft: {steps: 0}\nevaluate: {suites: {hard: no.csv, bad+: x}}\n"
    path = recipe(tmp_path, text)
    wrong = problems(path, mapper__path="./no/model", mapper__step="1")
    expected = [
        "unknown flag --mapper.step",
        f"{path}:2 target.path is 5",
        f"{path}:3 sft.steps is 0",
        f"{path}:4 evaluate.suites.bad+ is 'bad+'",
        f"{path}:1 data.path: there is no file or folder 'no.jsonl'",
        "--mapper.path: there is no model folder './no/model'",
        f"{path}:4 evaluate.suites.hard: there is no file or folder 'no.csv'",
    ]
    assert len(wrong) == len(expected)
    assert all(line.startswith(start) for line, start in zip(wrong, expected, strict=True))


def test_flags_are_parsed_as_the_type_of_their_key():
    config = load_config(
        None,
        {
            **REQUIRED,
            "output": "12",  # text stays text
            "target.system_prompt": "null",
            "target.trust_remote_code": "true",
            "data.columns.question": "Problem",
            "seeds": "3,4",
            "reward.answer_logprob": "-2",
            "reward.leak_phrases": "[as given, 'a, b']",
            "mapper.learning_rate": "2e-5",
            "arms": "base",
        },
    )
    assert config.output == config.name == "12"
    assert config.target.system_prompt is None
    assert config.target.trust_remote_code is True
    assert config.data.columns == {"question": "Problem"}
    assert config.seeds == (3, 4)
    assert config.reward.answer_logprob == -2.0
    assert config.reward.leak_phrases == ("as given", "a, b")
    assert config.mapper.learning_rate == 2e-5
    assert config.arms == ("base",)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("mapper.steps", "-1"),
        ("mapper.steps", "1.5"),
        ("mapper.steps", "true"),
        ("mapper.learning_rate", "0"),
        ("mapper.learning_rate", ".nan"),
        ("mapper.learning_rate", "3"),
        ("mapper.temperature", ".inf"),
        ("reward.quantity_coverage", "1.1"),
        ("reward.own_samples", "1.5"),
        ("mapper.temperature", "0"),
        ("reward.answer_logprob", "0.1"),
        ("synthesise.ladder", "rewrite,rewrite"),
        ("synthesise.ladder", "[]"),
        ("sft.learning_rates", "1e-5,1e-5"),
        ("arms", "[]"),
        ("seeds", "0,0"),
        ("seeds", "-1"),
        ("evaluate.suites.a/b", "lab:values"),
        ("target.dtype", "int8"),
        ("target.trust_remote_code", "perhaps"),
        ("data.path", ""),
        ("data.columns", "[1"),
    ],
)
def test_values_out_of_range_are_refused(key, value):
    (message,) = problems(None, **REQUIRED, **{key: value})
    assert message.startswith(f"--{key}")


def test_a_config_cannot_be_changed():
    config = load_config(None, REQUIRED)
    with pytest.raises(ValidationError, match="frozen"):
        config.mapper.steps = 3


CHARACTERS = st.characters(codec="utf-8", exclude_categories=("Cs", "Cc"))


@given(
    prompt=st.text(CHARACTERS, max_size=40),
    rates=st.lists(st.floats(1e-9, 1), min_size=1, max_size=3, unique=True),
    phrases=st.lists(st.text(CHARACTERS, min_size=1), max_size=3),
)
@example(prompt="2e-5", rates=[2e-5], phrases=["0E0", "null", "yes", "1_000", "a: b", " ", "# x"])
@settings(deadline=None, max_examples=50)
def test_the_resolved_config_reads_back_to_an_equal_one(tmp_path_factory, prompt, rates, phrases):
    config = Config.model_validate(
        {
            "output": prompt or "x",
            "data": {"path": "lab:values"},
            "target": {"path": "lab:equations", "system_prompt": f"{prompt}\nsecond line\n\n"},
            "mapper": {"prompt": f"{prompt}{{question}}\n{{solution}}"},
            "reward": {"leak_phrases": phrases},
            "sft": {"learning_rates": rates},
        }
    )
    path = tmp_path_factory.mktemp("resolved") / "config.resolved.yaml"
    path.write_text(config.resolved_yaml(), encoding="utf-8")
    assert load_config(path) == config


def test_every_key_has_a_description_and_is_listed_in_the_help():
    help_text = describe_keys()

    def keys(section, prefix=""):
        for name, field in section.model_fields.items():
            if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
                assert field.annotation.__doc__
                yield from keys(field.annotation, f"{prefix}{name}.")
            else:
                assert field.description, f"{prefix}{name} has no description"
                yield f"{prefix}{name}"

    listed = re.findall(r"^  --(\S+) \[", help_text, flags=re.M)
    assert listed == sorted(keys(Config), key=listed.index)
    assert "--data.path [required]" in help_text and "--data.limit [null]" in help_text


def test_the_demo_s_help_shows_the_demo_s_values(capsys):
    with pytest.raises(SystemExit):
        main(["demo", "--help"])
    assert "Default: lab:values." in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["demo", "--help-all"])
    shown = capsys.readouterr().out
    assert '--data.path ["lab:values"]' in shown and "--data.limit [1000]" in shown and "[required]" not in shown


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.name)
def test_every_recipe_is_valid_apart_from_the_paths_of_the_user(path):
    values = yaml.safe_load(path.read_text())
    own = {key: "lab:x" for key in ("data", "target") if not values[key]["path"].startswith(("lab:", "hub:"))}
    load_config(path, own)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mapper: {checkpoint_every: 5}", "mapper.checkpoint_every was replaced by execution.checkpoint_every"),
        ("sft: {sharding: fsdp2}", "sft.sharding was replaced by execution.sharding"),
        (
            "direct_rl: {microbatch_tokens: 9}",
            "direct_rl.microbatch_tokens was replaced by execution.microbatch_tokens",
        ),
        ("server: {url: 'http://localhost:1'}", "server was replaced by execution.server, whose value is the address"),
    ],
)
def test_a_key_of_an_earlier_version_is_reported_with_its_new_name(text, message, tmp_path):
    path = recipe(tmp_path, f"data: {{path: lab:values}}\ntarget: {{path: lab:equations}}\n{text}\n")
    assert problems(path) == (f"{path}:3 {message}",)


def test_a_flag_of_an_earlier_version_is_reported_with_its_new_name(tmp_path):
    path = recipe(tmp_path, "data: {path: lab:values}\ntarget: {path: lab:equations}\n")
    old = {"target.device": "cpu", "server.url": "http://x", "server.model": "m", "sft.gradient_checkpointing": "true"}
    with pytest.raises(InputError) as raised:
        load_config(path, old)
    assert list(raised.value.problems) == [
        "--target.device was replaced by --execution.device",
        "--server.url was replaced by --execution.server",
        "--server.model was removed; the first model that the server lists is used",
        "--sft.gradient_checkpointing was replaced by --execution.gradient_checkpointing",
    ]


@pytest.mark.parametrize("key", [key for key in REMOVED if key != "server.model"])  # all of `server` has moved
def test_a_removed_key_is_reported_with_what_applies_instead(key, tmp_path):
    section, _, name = key.rpartition(".")
    required = {"data": "path: lab:values", "target": "path: lab:equations"}
    text = "".join(f"{other}: {{{value}}}\n" for other, value in required.items() if other != section)
    own = f"{section}: {{{required.get(section, '')}, {name}: 17}}\n".replace("{,", "{") if section else f"{name}: 17\n"
    assert problems(recipe(tmp_path, text + own)) == (
        f"{tmp_path / 'r.yaml'}:{text.count(chr(10)) + 1} {key} was removed; {REMOVED[key].message}",
    )
    with pytest.raises(InputError) as raised:
        load_config(None, {**REQUIRED, key: "17"})
    assert list(raised.value.problems) == [f"--{key} was removed; {REMOVED[key].message}"]


def test_a_config_of_an_earlier_run_is_read_if_its_removed_settings_have_the_values_that_apply_now(tmp_path):
    text = "data: {path: lab:values}\ntarget: {path: lab:equations}\n"
    text += "mapper: {max_grad_norm: 1.0, warmup_steps: 3, group_size: 6}\nreward: {length_band: null}\n"
    config = load_config(recipe(tmp_path, text + "direct_rl: {group_size: 6}\n"))
    now = "data: {path: lab:values}\ntarget: {path: lab:equations}\nmapper: {group_size: 6}\n"
    assert config == load_config(recipe(tmp_path, now))
    (problem,) = problems(recipe(tmp_path, text + "direct_rl: {group_size: 7}\n"))
    assert "direct_rl.group_size was removed; direct RL uses mapper.group_size" in problem


def test_removed_keys_of_a_recipe_are_accepted_where_they_mean_what_applies_now(tmp_path):
    old = """
name: mine
output: runs/mine
data: {path: lab:values, split: train, test: 16}
target: {path: lab:equations}
mapper: {adapter: full, lora_rank: 8, temperature: 0.7}
sft: {adapter: lora, lora_rank: 8, steps: 12, warmup_steps: 3}
direct_rl: {adapter: full, lora_rank: 4, temperature: 0.7}
evaluate: {questions: 16}
"""
    now = """
output: runs/mine
data: {path: lab:values, test: 16}
target: {path: lab:equations}
mapper: {temperature: 0.7}
sft: {lora_rank: 8, steps: 12}
"""
    config = load_config(recipe(tmp_path, old))
    assert config == load_config(recipe(tmp_path, now))
    assert (config.name, config.mapper.lora_rank, config.sft.lora_rank, config.sft.warmup_steps) == ("mine", None, 8, 3)
    assert load_config(recipe(tmp_path, old), {"mapper.lora_rank": "4"}).mapper.lora_rank == 4
    changed = (
        old.replace("mine\nout", "other\nout")
        .replace("split: train", "split: test")
        .replace("adapter: full", "adapter: 1")
    )
    changed = changed.replace("warmup_steps: 3", "warmup_steps: 4").replace("questions: 16", "questions: 17")
    changed = changed.replace("sft: {adapter: lora, lora_rank: 8", "sft: {adapter: lora").replace(
        "4, temperature: 0.7", "4"
    )
    reported = "\n".join(problems(recipe(tmp_path, changed)))
    for key in ("name", "data.split", "mapper.adapter", "sft.adapter", "sft.warmup_steps", "evaluate.questions"):
        assert f"{key} was removed; " in reported
    assert "sft.adapter was removed; set `sft.lora_rank: 16` for LoRA" in reported


def test_the_record_of_an_earlier_run_is_read_although_its_removed_keys_have_other_values(tmp_path):
    old = """
name: mine
output: runs/other
arms: [base, dart]
data: {path: lab:values, split: train, test: 128}
target: {path: lab:equations}
mapper: {adapter: lora, lora_rank: 16, temperature: 0.7}
direct_rl: {temperature: 1.0, kl: 0.02}
evaluate: {questions: 16}
"""
    now = """
output: runs/other
arms: [base, dart]
data: {path: lab:values, test: 16}
target: {path: lab:equations}
mapper: {lora_rank: 16, temperature: 0.7}
"""
    record = tmp_path / "config.resolved.yaml"
    record.write_text(old)
    assert load_config(record) == load_config(recipe(tmp_path, now))
    record.write_text(old.replace("dart]", "dart, grpo_tokens]"))
    assert problems(record) == (
        f"{record}:8 direct_rl.temperature was removed; direct RL samples at mapper.temperature",
    )
    data = tmp_path / "data"
    data.mkdir()
    record.write_text(old.replace("lab:values, split: train", f"'{data}', split: test"))
    config = load_config(record)
    assert config.data.path == f"{data}#test" and config.data.test == 128


@pytest.mark.parametrize(
    ("steps", "warmup"), [(1, 0), (4, 1), (12, 3), (39, 9), (40, 10), (120, 10), (200, 10), (250, 10), (600, 10)]
)
def test_the_warm_up_of_fine_tuning_follows_from_its_steps(steps, warmup):
    assert SFTConfig(steps=steps).warmup_steps == warmup


@pytest.mark.parametrize(
    ("output", "name"), [("runs/lab", "lab"), ("runs/lab/", "lab"), ("/", "run"), ("runs/full/a-b", "a-b")]
)
def test_a_run_is_named_after_its_folder(output, name):
    assert load_config(None, {**REQUIRED, "output": output}).name == name


def test_changes_are_dotted_and_complete():
    old = {"a": {"x": 1e-6, "y": [1], "z": "k"}, "gone": 1, "same": {"deep": None}}
    new = {"a": {"x": 2e-5, "y": [1, 2], "z": "k"}, "new": True, "same": {"deep": None}}
    assert changes(old, new) == ["a.x 1e-6 -> 2e-5", "a.y [1] -> [1, 2]", "gone 1 removed", "new true added"]
