"""The other parts of the work as a user would otherwise do them: transformers' `generate`, TRL's `SFTTrainer`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from datasets import Dataset
from stock_trl import load
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer


@torch.no_grad()
def generate(
    model, tokenizer, prompts: Sequence[Sequence[int]], *, n: int, max_new_tokens: int, greedy: bool, at_once: int
) -> list[list[int]]:
    """`n` completions of every prompt, in batches of `at_once` left-padded prompts, in the order given."""
    completions = []
    for start in range(0, len(prompts), at_once):
        batch = tokenizer.pad(
            {"input_ids": [list(prompt) for prompt in prompts[start : start + at_once]]},
            padding_side="left",
            return_tensors="pt",
        ).to(model.device)
        sampling = {} if greedy else {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
        output = model.generate(
            **batch, do_sample=not greedy, num_return_sequences=n, max_new_tokens=max_new_tokens, **sampling
        )
        for row in output[:, batch["input_ids"].shape[1] :].tolist():
            end = row.index(tokenizer.eos_token_id) + 1 if tokenizer.eos_token_id in row else len(row)
            completions.append(row[:end])
    return completions


def sft_trainer(
    folder: str,
    tokenizer,
    rows: Sequence[tuple[str, str]],
    output: str,
    *,
    batch_size: int,
    learning_rate: float,
    steps: int,
    device: str,
    callbacks: Sequence[TrainerCallback] = (),
) -> SFTTrainer:
    """A trainer on the completions of (question, solution) rows."""
    data = [
        {"prompt": [{"role": "user", "content": question}], "completion": [{"role": "assistant", "content": solution}]}
        for question, solution in rows
    ]
    return SFTTrainer(
        model=load(folder, device, trained=True),
        processing_class=tokenizer,
        train_dataset=Dataset.from_list(data),
        callbacks=list(callbacks),
        args=SFTConfig(
            output_dir=output,
            max_steps=steps,
            per_device_train_batch_size=batch_size,
            learning_rate=learning_rate,
            lr_scheduler_type="constant",
            max_length=None,
            bf16=device == "cuda",
            gradient_checkpointing=False,
            use_cpu=device == "cpu",
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
        ),
    )
