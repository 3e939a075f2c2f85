"""Recipes: each one runs for a few steps with a tiny model and small files of the same layout."""

import json
import re
import shlex
from pathlib import Path

import pytest
import yaml

from dartune.cli import main, split_overrides
from dartune.config.load import load_config
from dartune.models.loading import save_model
from dartune.run.files import read_jsonl, write_jsonl
from fixtures_models import tiny_model
from fixtures_templates import family_tokenizer

RECIPES = Path(__file__).parents[1] / "recipes"
STAND_INS = {  # recipe -> architecture, chat template, a row of its data set's layout
    "gsm8k-qwen3-0.6b": ("qwen3", "qwen3", lambda q, steps, a: {"question": q, "answer": f"{steps}\n#### {a}"}),
    "math-llama3-8b-lora": (
        "llama",
        "llama3.1",
        lambda q, steps, a: {"problem": q, "solution": f"{steps} So it is $\\boxed{{{a}}}$.", "answer": str(a)},
    ),
    "own-data": (
        "gemma3",
        "gemma3",
        lambda q, steps, a: {"question": q, "solution": f"{steps} The answer is {a}."},
    ),
    "code-qwen3-1.7b": (
        "qwen3",
        "qwen3",
        lambda q, steps, a: {
            "text": q,
            "code": f"def pens():\n    # {steps}\n    return {a}",
            "test_list": [f"assert pens() == {a}"],
        },
    ),
}
SMALLER = [
    "--mapper.steps=4",
    "--mapper.questions_per_step=2",
    "--mapper.group_size=2",
    "--mapper.max_new_tokens=16",
    "--reward.own_samples=1",
    "--synthesise.samples=1",
    "--sft.steps=5",
    "--sft.batch_size=4",
    "--evaluate.max_new_tokens=12",
]


def stand_in(name, folder):
    """Write a tiny model and small files like those of the recipe; return flags that name them, and the suite names."""
    architecture, template, row = STAND_INS[name]
    tokenizer = family_tokenizer(template)
    model = tiny_model(
        architecture, len(tokenizer), pad=0, eos=tokenizer.eos_token_id, bos=tokenizer.bos_token_id, context=4096
    )
    save_model(model, tokenizer, folder / "target")
    for part, numbers in (("data", range(2, 32)), ("test", range(40, 44))):
        rows = []
        for i in numbers:
            steps = f"Each of the {i} boxes holds 3 pens, that is {i} * 3 = {3 * i} pens."
            rows.append(row(f"{i} boxes hold 3 pens each. How many pens?", steps, 3 * i))
        write_jsonl(folder / f"{part}.jsonl", rows)
    places = {"data.path": "data.jsonl", "target.path": "target", "output": "run"}
    suites = yaml.safe_load((RECIPES / f"{name}.yaml").read_text())["evaluate"].get("suites") or {}
    places |= {f"evaluate.suites.{suite}": "test.jsonl" for suite in suites}
    flags = [argument for key, file in places.items() for argument in (f"--{key}", str(folder / file))]
    return flags, list(suites) or ["in_distribution"]


@pytest.mark.slow
@pytest.mark.parametrize("name", STAND_INS)
def test_a_recipe_can_be_checked_and_run_for_a_few_steps(name, tmp_path, capsys):
    recipe, (places, suites) = str(RECIPES / f"{name}.yaml"), stand_in(name, tmp_path)
    assert main(["check", recipe, *places]) == 0
    output = capsys.readouterr().out
    assert "have a checkable answer" in output and "mapper: about" in output
    settings = yaml.safe_load(Path(recipe).read_text())
    lora = ["--mapper.lora_rank=2"] if settings["mapper"]["lora_rank"] else []
    assert main(["run", recipe, *places, *SMALLER, *lora]) == 0
    stages = tmp_path / "run" / "stages"
    assert len(read_jsonl(stages / "mapper-s0" / "metrics.jsonl")) == 4  # a random mapper would be stopped after five
    weights = "adapter_model" if settings["mapper"]["lora_rank"] else "model"
    assert (stages / "mapper-s0" / "model" / f"{weights}.safetensors").exists()
    results = json.loads((tmp_path / "run" / "report" / "results.json").read_text())
    assert results["arms"] == settings.get("arms", ["base", "sft", "dart"])
    assert [suite["name"] for suite in results["suites"]] == suites


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_recipe_states_its_hardware_and_duration(path):
    header = "".join(line for line in path.read_text().splitlines(keepends=True) if line.startswith("#"))
    assert "Hardware:" in header and yaml.safe_load(path.read_text())["output"] == f"runs/{path.stem}"
    assert any(word in header.lower() for word in ("hour", "minute"))


def test_every_command_in_the_documents_loads(monkeypatch):
    """Every `dartune run recipes/...` in documents and recipes, with its flags."""
    monkeypatch.chdir(RECIPES.parent)
    pages = [*(RECIPES.parent / "docs").glob("*.md"), RECIPES.parent / "README.md", *RECIPES.glob("*.yaml")]
    commands = re.findall(r"dartune run\s+(recipes/\S+\.yaml)([^\n#`]*)", "\n".join(page.read_text() for page in pages))
    loaded = []
    for recipe, flags in commands:
        _, overrides = split_overrides(shlex.split(flags.rstrip("\\ ")))
        own = {key: value for key, value in overrides.items() if key not in ("data", "target")}
        places = {} if Path(recipe).stem != "own-data" else {"data.path": "recipes", "target.path": "recipes"}
        loaded.append(load_config(recipe, own | places))
    assert len(loaded) >= 8 and {"fsdp2", "ddp"} <= {config.execution.sharding for config in loaded}
