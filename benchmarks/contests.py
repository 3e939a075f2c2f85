"""What is compared with what: each function measures one part of the work and returns what `results/` keeps of it."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import stock_rest
import stock_trl
import torch
from floors import Work as Tokens
from floors import bare_forward, decode_bytes, flops, layers_only, rl_flops
from loads import Load, end_after, frozen
from measuring import ByStep, by_turns, compared, spread
from transformers import TrainerCallback

from dartune.answers.checker import AnswerChecker
from dartune.config.schema import ExecutionConfig, MapperConfig, SFTConfig
from dartune.engines.base import SampleSpec
from dartune.engines.hf import HFEngine
from dartune.gates.gate_input import GateThresholds
from dartune.lab.suites import suite, write_demonstrations
from dartune.models.loading import load_model
from dartune.models.precision import compute_in
from dartune.rewards.references import source_references
from dartune.rewards.reward import GatedReward
from dartune.stages.mapper import train_mapper
from dartune.train.sft import fine_tune

ENDLESS = 1_000_000  # steps of a training that is stopped from outside
WITHOUT_CHECKPOINTS = ExecutionConfig(checkpoint_every=ENDLESS)
LORA_RANK = 16
KL = 0.05
NEW_TOKENS = 64


@dataclass(frozen=True)
class Bench:
    """The circumstances of a measurement; `folder` is for what is thrown away."""

    device: str
    rounds: int
    budget: float
    folder: Path
    checker: AnswerChecker

    def __post_init__(self) -> None:
        # Notation is compared by a process of its own, whose start (a second, once a run) would fall into some round.
        self.checker.check([(r"\sqrt{8}", r"2\sqrt{2}")])

    def duel(self, contenders: Mapping[str, Callable]) -> dict[str, Any]:
        contenders = {name: _as_it_comes(work) if name == "stock" else work for name, work in contenders.items()}
        return compared(by_turns(contenders, self.device, self.rounds, self.budget))


def _as_it_comes(work: Callable) -> Callable:
    """Stock's turn: with all of PyTorch's ways of attention, of which dartune switches one off for its process."""

    def turn() -> Any:
        before = torch.backends.cuda.cudnn_sdp_enabled()
        torch.backends.cuda.enable_cudnn_sdp(True)
        try:
            return work()
        finally:
            torch.backends.cuda.enable_cudnn_sdp(before)

    return turn


class AfterStep(TrainerCallback):
    """Tells the end of every step of a transformers trainer."""

    def __init__(self, tell: Callable[[], None]):
        self.tell = tell

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.tell()


def rl_step(bench: Bench, load: Load, questions: int, group: int, new: int, lora: bool = False) -> dict[str, Any]:
    """A step of mapper training: sampling, reward, update."""
    stock = ByStep(lambda pause: _stock_rl(bench, load, questions, group, new, lora, pause))
    ours = ByStep(lambda pause: _our_rl(bench, load, questions, group, new, lora, pause))
    with closing(stock), closing(ours):
        found = bench.duel({"stock": stock, "dartune": ours})
    model = frozen(load.target, bench.device)
    asked = [len(prompt) for prompt in load.prompts(len(load.rows))]
    read = [len(load.renderer.prompt_ids(row.question)) for row in load.rows]
    generated = mean(found["dartune"]["generated_tokens"])
    found["operations"] = rl_flops(model, questions * mean(asked), questions * mean(read), generated, lora)
    return found | {"rollouts": [questions, group], "prompt_tokens": mean(asked), "adapter": "lora" if lora else "full"}


def _stock_rl(bench: Bench, load: Load, questions: int, group: int, new: int, lora: bool, pause: Callable) -> None:
    rows = [
        {"prompt": load.asked(row), "question": row.question, "solution": row.solution, "answer": row.answer}
        for row in load.rows
    ]
    trainer = stock_trl.grpo_trainer(
        str(load.policy),
        stock_trl.load(str(load.target), bench.device),
        load.tokenizer,
        rows,
        str(bench.folder / "stock"),
        questions=questions,
        group=group,
        max_new_tokens=new,
        learning_rate=load.learning_rate,
        beta=KL,
        steps=ENDLESS,
        device=bench.device,
        lora_rank=LORA_RANK if lora else None,
    )
    reward = trainer.reward_funcs[0]

    def tell() -> None:
        generated, reward.generated_tokens = reward.generated_tokens, 0
        pause({"generated_tokens": generated})

    trainer.add_callback(AfterStep(tell))
    trainer.train()


def _our_rl(bench: Bench, load: Load, questions: int, group: int, new: int, lora: bool, pause: Callable) -> None:
    """As `pipeline.py` sets it up: an adapter sits on the frozen start, and a random start is the target itself."""
    target = HFEngine(frozen(load.target, bench.device), adapter=False)
    same = load.policy == load.target
    start = target if same else HFEngine(frozen(load.policy, bench.device), adapter=False)
    if lora:
        model = start.model
    else:
        model = compute_in(load_model(load.policy, dtype="float32", device=bench.device), start.model.dtype)
    references = source_references(target, load.renderer, load.rows)
    reward = GatedReward(target, load.renderer, bench.checker, GateThresholds(answer_logprob=-0.7), references)
    config = MapperConfig(
        prompt=load.request,
        steps=ENDLESS,
        questions_per_step=questions,
        group_size=group,
        max_new_tokens=new,
        learning_rate=load.learning_rate,
        kl=KL,
        lora_rank=LORA_RANK if lora else None,
    )
    folder = _fresh(bench, "mapper")
    words = load.rows, reward, start, load.renderer, config, 0, folder
    train_mapper(model, *words, execution=WITHOUT_CHECKPOINTS, on_step=lambda _, row: pause(_tokens(row)))


def _tokens(row: Mapping[str, Any]) -> dict[str, Any]:
    return {"generated_tokens": row["generated_tokens"]}


def scoring(bench: Bench, load: Load, questions: int, group: int, rollouts: bool = False) -> dict[str, Any]:
    """Log-probabilities of completions under the frozen target: the mapper's own `rollouts`, or 64 tokens each."""
    model, plain = frozen(load.target, bench.device), stock_trl.load(str(load.target), bench.device).eval()
    engine, end = HFEngine(model), load.renderer.end_id
    if rollouts:
        rows = load.rows[:questions]
        prompts = [load.renderer.prompt_ids(row.question) for row in rows]
        mapper = HFEngine(frozen(load.policy, bench.device))
        samples = mapper.generate(load.prompts(questions), SampleSpec(group, 128, 1.0, (end,), 0))
        completions = [sample.ids for samples_of_one in samples for sample in samples_of_one]
    else:
        prompts = load.prompts(questions)
        completions = _completions(engine.vocabulary, questions * group)
    pairs = [(prompts[i // group], completion) for i, completion in enumerate(completions)]
    tokens = Tokens(sum(map(len, prompts)) + sum(map(len, completions)), sum(map(len, completions)))
    found = bench.duel(
        {
            "stock": lambda: stock_trl.score(plain, load.tokenizer, *map(list, zip(*pairs, strict=True))) and None,
            "bare forward": partial(bare_forward, model, tokens),
            "layers alone": partial(layers_only, model, tokens),
            "dartune": lambda: engine.score(pairs) and None,
        }
    )
    found["operations"] = flops(model, tokens)
    peaks = [found[name]["peak_bytes"] for name in ("dartune", "layers alone")]
    found["peak_over_layers"] = peaks[0] / peaks[1] if all(peaks) else None
    return found | {"tokens": tokens.read, "vocabulary": engine.vocabulary}


def _completions(vocabulary: int, n: int) -> list[list[int]]:
    """Different ones, of the tokens after the special ones."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(8, vocabulary, (n, NEW_TOKENS), generator=generator).tolist()


def sampling(
    bench: Bench, load: Load, prompts: int, n: int, *, new: int, at_once: int, mean_length: int | None = None
) -> dict[str, Any]:
    """`n` samples a prompt; where `mean_length` is given, a random model ends its texts after as many tokens."""
    model, plain = frozen(load.policy, bench.device), stock_trl.load(str(load.policy), bench.device).eval()
    if load.name != "lab":
        for one in (model, plain):
            end_after(one, load.renderer.end_id, mean_length)
    asked = load.prompts(prompts)
    found = _generated(bench, load, model, plain, asked, n=n, new=new, at_once=at_once, greedy=False)
    if bench.device == "cuda" and mean_length is None:
        found["bytes"] = decode_bytes(model, asked, n, new)
    return found | {"prompts": prompts, "samples": n, "at_once": at_once, "new_tokens": new, "mean_length": mean_length}


def evaluation(bench: Bench, load: Load, questions: int, *, new: int, at_once: int) -> dict[str, Any]:
    """Greedy solutions of the target, questions of two suites."""
    model, plain = frozen(load.target, bench.device), stock_trl.load(str(load.target), bench.device).eval()
    suites = ("in_distribution", "retention_long")
    rows = [row for name in suites for row in write_demonstrations(suite(name, questions // 2), "values", name)]
    asked = [load.renderer.prompt_ids(row.question) for row in rows]
    found = _generated(bench, load, model, plain, asked, n=1, new=new, at_once=at_once, greedy=True)
    return found | {"prompts": len(asked), "samples": 1, "at_once": at_once, "new_tokens": new}


def _generated(bench: Bench, load: Load, model, plain, asked, *, n: int, new: int, at_once: int, greedy: bool):
    engine = HFEngine(model)
    spec = SampleSpec(n, new, 0.0 if greedy else 1.0, (load.renderer.end_id,), 0)

    def ours() -> dict[str, int]:
        return {"generated_tokens": sum(len(one.ids) for group in engine.generate(asked, spec) for one in group)}

    def stock() -> dict[str, int]:
        torch.manual_seed(0)
        made = stock_rest.generate(
            plain, load.tokenizer, asked, n=n, max_new_tokens=new, greedy=greedy, at_once=at_once
        )
        return {"generated_tokens": sum(map(len, made))}

    return bench.duel({"stock": stock, "dartune": ours})


def sft_step(bench: Bench, load: Load, batch_size: int) -> dict[str, Any]:
    """A step of fine-tuning on the demonstrations, all weights."""
    rows = [(row.question, row.solution) for row in load.rows]
    config = SFTConfig(steps=ENDLESS, batch_size=batch_size)

    def our_training(pause: Callable) -> None:
        dtype = frozen(load.target, bench.device).dtype
        model = compute_in(load_model(load.target, dtype="float32", device=bench.device), dtype)

        def tell(_: int, row: Mapping[str, Any]) -> None:
            pause({key: row[key] for key in ("read_tokens", "trained_tokens")})

        folder = _fresh(bench, "sft")
        words = rows, load.renderer, config, load.learning_rate, 0, folder
        fine_tune(model, *words, execution=WITHOUT_CHECKPOINTS, on_step=tell)

    def stock_training(pause: Callable) -> None:
        settings = {"batch_size": batch_size, "learning_rate": load.learning_rate, "steps": ENDLESS}
        trainer = stock_rest.sft_trainer(
            str(load.target), load.tokenizer, rows, str(bench.folder / "stock"), device=bench.device, **settings
        )
        trainer.add_callback(AfterStep(lambda: pause({})))
        trainer.train()

    with closing(ByStep(stock_training)) as stock, closing(ByStep(our_training)) as ours:
        found = bench.duel({"stock": stock, "dartune": ours})
    mine = found["dartune"]
    tokens = Tokens(mean(mine["read_tokens"]), mean(mine["trained_tokens"]))
    found["operations"] = 3 * flops(frozen(load.target, bench.device), tokens)
    return found | {"batch_size": batch_size}


def start_up(bench: Bench) -> dict[str, Any]:
    """`dartune --help`, from the shell's point of view."""
    taken = [_command("--help") for _ in range(1 + max(3, bench.rounds))]
    return {"seconds": taken[1:]} | spread(taken[1:])


def demo(bench: Bench) -> dict[str, Any]:
    """`dartune demo`, what `make demo` runs once it has installed: once, from the shell's point of view."""
    taken = [_command("demo", "--output", str(_fresh(bench, "demo")))]
    return {"seconds": taken} | spread(taken)


def _command(*words: str) -> float:
    """How long the command line takes."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "dartune", *words], check=True, capture_output=True)
    return time.perf_counter() - start


def _fresh(bench: Bench, name: str) -> Path:
    """A folder that no training has been in."""
    return bench.folder / f"{name}-{time.monotonic_ns()}"
