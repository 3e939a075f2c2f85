"""What a user would otherwise write: a TRL `GRPOTrainer` whose reward is scored by a plain Hugging Face model.

    python benchmarks/stock_trl.py --steps 20

The mapper rewrites demonstrations; a rewrite with the right answer earns what it gains in log-probability under the
frozen target. Of dartune, only the lab's models and questions are used, which `main` trains on.

Settings are what is fastest for each device. On a CPU: float32, no gradient checkpointing (TRL's defaults, bfloat16
and checkpointing, are slower there), few rollouts a forward and backward. On a GPU: bfloat16, many rollouts, no
checkpointing. All of a step's rollouts are sampled as one batch. vLLM is not used.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

SCORED_AT_ONCE = 32
ROLLOUTS_AT_ONCE = {"cpu": 8, "cuda": 64}
NUMBER = re.compile(r"-?\d+")


def load(folder: str, device: str, *, trained: bool = False):
    """A model: bfloat16 on a GPU, but float32 where all of its weights are trained; float32 on a CPU."""
    dtype = torch.bfloat16 if device == "cuda" and not trained else torch.float32
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(device)


@torch.no_grad()
def score(model, tokenizer, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]) -> list[float]:
    """Summed log-probability of every completion given its prompt, by padded forwards."""
    scores = []
    for start in range(0, len(prompts), SCORED_AT_ONCE):
        chosen = slice(start, start + SCORED_AT_ONCE)
        rows = [[*prompt, *reply] for prompt, reply in zip(prompts[chosen], completions[chosen], strict=True)]
        batch = tokenizer.pad({"input_ids": rows}, padding_side="right", return_tensors="pt").to(model.device)
        logits = model(**batch).logits[:, :-1]
        targets = batch["input_ids"][:, 1:]
        logprobs = torch.log_softmax(logits.float(), dim=-1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)
        position = torch.arange(1, targets.shape[1] + 1)
        starts = torch.tensor([len(prompt) for prompt in prompts[chosen]])[:, None]
        ends = torch.tensor([len(row) for row in rows])[:, None]
        mask = (position >= starts) & (position < ends)
        scores += (logprobs * mask.to(model.device)).sum(dim=1).tolist()
    return scores


class AlignmentReward:
    """The gain of a rewrite with the right answer over its source, nats per token of the source; 0 for a wrong one."""

    __name__ = "alignment"

    def __init__(self, target, tokenizer, rows: Sequence[dict[str, str]]):
        self.target, self.tokenizer = target.eval(), tokenizer
        self.generated_tokens = 0
        sources = [self._response(row["solution"]) for row in rows]
        scores = score(self.target, tokenizer, [self._prompt(row["question"]) for row in rows], sources)
        self.source = {
            (row["question"], row["solution"]): (len(ids), one)
            for row, ids, one in zip(rows, sources, scores, strict=True)
        }

    def __call__(self, completions, completion_ids, question, solution, answer, **_: Any) -> list[float]:
        self.generated_tokens += sum(map(len, completion_ids))
        scores = score(self.target, self.tokenizer, list(map(self._prompt, question)), completion_ids)
        rewards = []
        sources = [self.source[row] for row in zip(question, solution, strict=True)]
        for one, total, (length, before), right in zip(completions, scores, sources, answer, strict=True):
            numbers = NUMBER.findall(one[0]["content"])
            correct = bool(numbers) and numbers[-1] == right
            rewards.append(max(0.0, (total - before) / length) if correct else 0.0)
        return rewards

    def _prompt(self, question: str) -> list[int]:
        messages = [{"role": "user", "content": question}]
        return self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)

    def _response(self, text: str) -> list[int]:
        return [*self.tokenizer.encode(text, add_special_tokens=False), self.tokenizer.eos_token_id]


def grpo_trainer(
    policy: str,
    target,
    tokenizer,
    rows: Sequence[dict[str, str]],
    output: str,
    *,
    questions: int,
    group: int,
    max_new_tokens: int,
    learning_rate: float,
    beta: float,
    steps: int,
    device: str,
    lora_rank: int | None = None,
    at_once: int | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> GRPOTrainer:
    """The trainer.

    Args:
        policy: folder of the model to train.
        target: the frozen model that scores.
        rows: prompt (what the mapper is asked), question, solution, answer.
        at_once: most rollouts of a forward and backward.
    """
    from peft import LoraConfig

    on_gpu = device == "cuda"
    rollouts = questions * group
    most = at_once or ROLLOUTS_AT_ONCE[device]
    batch = max(n for n in range(1, rollouts + 1) if rollouts % n == 0 and n <= most)
    data = [row | {"prompt": [{"role": "user", "content": row["prompt"]}]} for row in rows]
    lora = LoraConfig(r=lora_rank, lora_alpha=2 * lora_rank, target_modules="all-linear") if lora_rank else None
    return GRPOTrainer(
        model=load(policy, device, trained=lora_rank is None),
        processing_class=tokenizer,
        reward_funcs=[AlignmentReward(target, tokenizer, rows)],
        train_dataset=Dataset.from_list(data),
        peft_config=lora,
        callbacks=list(callbacks),
        args=GRPOConfig(
            output_dir=output,
            max_steps=steps,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=rollouts // batch,
            num_generations=group,
            max_completion_length=max_new_tokens,
            learning_rate=learning_rate,
            lr_scheduler_type="constant",
            beta=beta,
            scale_rewards="none",
            bf16=on_gpu,
            gradient_checkpointing=False,
            use_cpu=not on_gpu,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
        ),
    )


def main(steps: int, device: str) -> None:
    from dartune.lab.build import MAPPER_PROMPT
    from dartune.lab.source import model_folder
    from dartune.lab.suites import demonstration_problems, write_demonstrations

    folder = str(model_folder("lab:mapper"))
    rows = [
        {"question": one.question, "solution": one.solution, "answer": one.answer}
        for one in write_demonstrations(demonstration_problems(256, 0, 128), "values")
    ]
    rows = [row | {"prompt": MAPPER_PROMPT.format(**row)} for row in rows]
    with tempfile.TemporaryDirectory() as output:
        trainer = grpo_trainer(
            folder,
            load(str(model_folder("lab:backward")), device),
            AutoTokenizer.from_pretrained(folder),
            rows,
            output,
            questions=12,
            group=8,
            max_new_tokens=128,
            learning_rate=3e-4,
            beta=0.05,
            steps=steps,
            device=device,
        )
        trainer.args.logging_steps = 1
        trainer.train()
    for row in trainer.state.log_history:
        if "reward" in row:
            print(f"step {row['step']}: reward {row['reward']:.3f}, {row['step_time']:.2f} s")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    main(arguments.steps, arguments.device)
