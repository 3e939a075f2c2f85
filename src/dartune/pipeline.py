"""The main job, top to bottom: data -> probe -> mapper -> synthesise -> train every arm -> evaluate -> report.

Each stage is a plain call through `Run.stage`: skipped when its inputs did not change, redone (and
the reason said) when they did, continued where an interrupted attempt of it left off.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dartune.config import Config, load_config
from dartune.data.quality import check_report, show_rows
from dartune.errors import InputError
from dartune.lab import source as lab
from dartune.progress import Progress, follow
from dartune.report.gather import adapted_quality, examples, shown_rewrites
from dartune.report.page import write_report
from dartune.report.results import build_results
from dartune.report.summary import summarise
from dartune.rewards.verify import AnswerChecker
from dartune.roster import Meter, prepared
from dartune.run import Cost, Run, atomic_write_json, read_jsonl, write_jsonl

UNTRAINED_ARMS = ("base",)
SHOWN_ROWS = 3


def run(config: Config) -> str:
    """Run or resume every stage of `config`; returns the summary, with the path of the report.

    Raises:
        InputError: the data, a model or a setting is unusable (everything found is listed).
        MachineError: this machine cannot go on (disk, memory, numbers that are not finite).
    """
    with Run(Path(config.output), config=config) as run_folder, AnswerChecker() as checker:
        job = Job(config, run_folder, checker)
        job.prepare()
        if _adapts(config):
            job.probe()
            for seed in config.seeds:
                job.train_mapper(seed)
                job.synthesise(seed)
        for seed in config.seeds:
            for arm in config.arms:
                job.train_arm(arm, seed)
                job.evaluate_arm(arm, seed)
        return job.report()


def check(config: Config) -> str:
    """What `dartune check` says: data and models are read, nothing is written.

    Raises:
        InputError: everything that keeps `config` from running, at once.
    """
    data, models = prepared(config)
    report = check_report(
        [*data.train, *data.dev],
        models.renderer,
        max_tokens=models.context,
        has_answer=lambda row: row.answer is not None,
    )
    return "\n".join([*report.lines(), *data.notes])


def show(subject: Config | Path, what: str) -> str:
    """Rendered rows of a recipe's data, or rewrites of a run folder, for a person to read."""
    if what == "rewrites":
        if not isinstance(subject, Path):
            raise InputError("show rewrites needs a run folder, such as runs/lab")
        return shown_rewrites(subject)
    config = load_config(subject / "config.resolved.yaml") if isinstance(subject, Path) else subject
    data, models = prepared(config)
    return show_rows(data.train, models.renderer, SHOWN_ROWS)


def report(folder: Path) -> str:
    """Make the report of a finished run folder again; returns the summary.

    Raises:
        InputError: a stage is not finished.
    """
    config = load_config(folder / "config.resolved.yaml")
    with Run(folder) as run_folder, AnswerChecker() as checker:
        job = Job(config, run_folder, checker)
        job.data, job.models = prepared(config)
        return job.report()


def _adapts(config: Config) -> bool:
    return any(arm.startswith("dart") for arm in config.arms)


class Job:
    """The stages of one run, in order; models are loaded when a stage first needs them."""

    def __init__(self, config: Config, run_folder: Run, checker: AnswerChecker):
        self.config, self.run, self.checker = config, run_folder, checker
        in_lab = lab.is_lab(config.data.path)
        self.judge = lab.judge if in_lab else None
        self.describe = lab.dialect if in_lab else None

    # data

    def prepare(self) -> None:
        """Read, check and split the data; write what the later stages train and test on."""
        self.data, self.models = prepared(self.config)

        def write(out: Path) -> None:
            for name, rows in self.data.parts.items():
                write_jsonl(out / f"{name}.jsonl", [asdict(row) for row in rows])

        self.run.stage("data", {"data": self.data.fingerprint}, write)

    def probe(self) -> None:
        """What the untouched target makes of the demonstrations: references, thresholds, own samples."""
        from dartune.stages.probe import probe

        config = self.config
        stage_inputs = {
            "data": self.run.key("data"),
            "target": self.models.target_fingerprint,
            "reward": config.reward.model_dump(),
            "prompt": config.mapper.prompt,
            "max_new_tokens": config.mapper.max_new_tokens,
        }

        def work(out: Path) -> Cost:
            with self.progress(len(self.data.train), "probe") as progress:
                return probe(
                    self.data.train,
                    self.models.target_engine,
                    self.models.renderer,
                    self.checker,
                    config.reward,
                    config.mapper.prompt,
                    config.mapper.max_new_tokens,
                    0,
                    out,
                    progress,
                )

        self.run.stage("probe", stage_inputs, work)

    # mapper

    def _reward(self):
        from dartune.rewards.reward import build_reward
        from dartune.stages.probe import load_probe

        rows, references, thresholds = load_probe(self.run.stage_folder("probe"))
        target, renderer = self.models.target_engine, self.models.renderer
        return rows, build_reward(self.config.reward, target, renderer, self.checker, thresholds, references)

    def train_mapper(self, seed: int) -> None:
        """Reinforcement learning of the mapper against the frozen target."""
        from dartune.stages.gold_probe import GoldProbe
        from dartune.train.mapper import train_mapper

        stage_inputs = {
            "probe": self.run.key("probe"),
            "sft": self.config.sft.model_dump() if self.config.mapper.probe_every else None,
            "mapper": self.config.mapper.model_dump(),
            "start": self.models.mapper_fingerprint,
            "seed": seed,
        }

        def work(out: Path) -> Cost:
            _, reward = self._reward()
            data, models = self.data, self.models
            probe = GoldProbe(
                self.config, models.target_copy, data.train, data.dev, reward, models.renderer, self.checker
            )
            with self.progress(self.config.mapper.steps, f"mapper, seed {seed}") as progress:
                model, cost = train_mapper(
                    self.models.mapper_copy(),
                    self.data.train,
                    reward,
                    self.models.start_engine,
                    self.models.renderer,
                    self.config.mapper,
                    seed,
                    out,
                    describe=self.describe,
                    probe=probe,
                    on_step=follow(progress, "reward", "gate_pass", "alignment_after"),
                )
            self.models.keep(model, out)
            return cost

        self.run.stage(f"mapper-s{seed}", stage_inputs, work)

    def synthesise(self, seed: int) -> None:
        """The adapted data set: `rows.jsonl` with everything, `adapted/` to publish and train on."""
        from dartune.data.adapted import accounting, write_adapted
        from dartune.stages.synthesise import synthesise

        config = self.config
        mapper_folder = self.run.stage_folder(f"mapper-s{seed}")
        stage_inputs = {
            "mapper": self.run.key(f"mapper-s{seed}"),
            "synthesise": config.synthesise.model_dump(),
            "seed": seed,
        }

        def work(out: Path) -> Cost:
            probed, reward = self._reward()
            mapper, target = self.models.trained(mapper_folder / "model"), self.models.target_engine
            meter = Meter(mapper, target)
            with self.progress(len(self.data.train), f"synthesise, seed {seed}") as progress:
                rows = synthesise(
                    self.data.train,
                    probed,
                    mapper,
                    target,
                    reward,
                    self.models.renderer,
                    config.synthesise,
                    config.mapper.prompt,
                    config.mapper.max_new_tokens,
                    seed,
                    out / "rows.jsonl",
                    progress,
                )
            published = [{key: row[key] for key in row if key not in ("ids", "logprobs")} for row in rows]
            note = {
                "run": config.name,
                "target": config.target.path,
                "mapper": config.mapper.path,
                "seed": seed,
            }
            accounting(rows, len(self.data.train))
            chat = self.models.renderer.template is not None
            write_adapted(out / "adapted", published, provenance_note=note, chat=chat)
            return meter.cost()

        self.run.stage(f"synthesise-s{seed}", stage_inputs, work)

    # arms

    def _training_rows(self, arm: str, seed: int) -> tuple[list[tuple[str, str]], str]:
        """What an arm trains on, and the key of the stage it comes from."""
        if arm == "sft":
            return [(row.question, row.solution) for row in self.data.train], self.run.key("data")
        rows = read_jsonl(self.run.stage_folder(f"synthesise-s{seed}") / "rows.jsonl")
        kept = [(row["question"], row["solution"]) for row in rows if row["provenance"] != "dropped"]
        return kept, self.run.key(f"synthesise-s{seed}")

    def train_arm(self, arm: str, seed: int) -> None:
        """Fine-tune the target once per learning rate; dev accuracy chooses, alike for every arm."""
        if arm in UNTRAINED_ARMS:
            return
        rows, source = self._training_rows(arm, seed)
        for rate in self.config.sft.learning_rates:
            stage_inputs = {
                "rows": source,
                "target": self.models.target_fingerprint,
                "sft": self.config.sft.model_dump(exclude={"learning_rates"}),
                "learning_rate": rate,
                "seed": seed,
                "max_new_tokens": self.config.evaluate.max_new_tokens,
            }
            name = f"train-{arm}-s{seed}-lr{rate:g}"
            self.run.stage(name, stage_inputs, self._training(name, rows, rate, seed))

    def _training(self, name: str, rows: list[tuple[str, str]], rate: float, seed: int) -> Callable[[Path], Cost]:
        from dartune.stages.evaluate import accuracy, evaluate
        from dartune.train.sft import fine_tune

        def work(out: Path) -> Cost:
            with self.progress(self.config.sft.steps, name) as progress:
                model, cost = fine_tune(
                    self.models.target_copy(),
                    rows,
                    self.models.renderer,
                    self.config.sft,
                    rate,
                    seed,
                    out,
                    on_step=follow(progress, "loss"),
                )
            engine = self.models.engine(model)
            meter = Meter(engine)
            limit = self.config.evaluate.max_new_tokens
            dev = evaluate({"dev": self.data.dev}, engine, self.models.renderer, self.checker, limit)
            write_jsonl(out / "dev.jsonl", dev)
            atomic_write_json(out / "dev.json", {"accuracy": accuracy(dev), "n": len(dev)})
            self.models.keep(model, out)
            return cost + meter.cost()

        return work

    def _chosen(self, arm: str, seed: int) -> tuple[float, dict[str, float]]:
        """The learning rate of best dev accuracy (the smaller one of equals), and every rate's accuracy."""
        dev = {}
        for rate in sorted(self.config.sft.learning_rates):
            folder = self.run.stage_folder(f"train-{arm}-s{seed}-lr{rate:g}")
            dev[rate] = json.loads((folder / "dev.json").read_text())["accuracy"]
        best = max(dev, key=lambda rate: (dev[rate], -rate))
        return best, {f"{rate:g}": value for rate, value in dev.items()}

    def evaluate_arm(self, arm: str, seed: int) -> None:
        """Greedy solutions of every suite, by the arm's chosen model."""
        from dartune.stages.evaluate import evaluate

        if arm in UNTRAINED_ARMS:
            name, trained, folder = f"evaluate-{arm}", self.models.target_fingerprint, None
        else:
            stage = f"train-{arm}-s{seed}-lr{self._chosen(arm, seed)[0]:g}"
            name, trained, folder = (
                f"evaluate-{arm}-s{seed}",
                self.run.key(stage),
                self.run.stage_folder(stage),
            )
        stage_inputs = {
            "model": trained,
            "suites": self.data.suites_fingerprint,
            "max_new_tokens": self.config.evaluate.max_new_tokens,
            "samples": self.config.evaluate.samples,
        }

        def work(out: Path) -> Cost:
            engine = self.models.trained(folder / "model") if folder else self.models.target_engine
            meter = Meter(engine)
            limit = self.config.evaluate.max_new_tokens
            with self.progress(sum(map(len, self.data.suites.values())), name) as progress:
                records = evaluate(
                    self.data.suites,
                    engine,
                    self.models.renderer,
                    self.checker,
                    limit,
                    samples=self.config.evaluate.samples,
                    judge=self.judge,
                    progress=progress,
                )
            write_jsonl(out / "records.jsonl", records)
            return meter.cost()

        self.run.stage(name, stage_inputs, work)

    # report

    def report(self) -> str:
        """`report/results.json` and the page, from what the stages wrote; returns the summary table."""
        results = build_results(**self._measured())
        return summarise(results, write_report(self.run.folder / "report", results))

    def _measured(self) -> dict[str, Any]:
        config, run_folder = self.config, self.run
        seeds = config.seeds if _adapts(config) else ()
        adapted = {s: read_jsonl(run_folder.stage_folder(f"synthesise-s{s}") / "rows.jsonl") for s in seeds}
        evaluations, rates = [], {}
        for arm in config.arms:
            for seed in config.seeds:
                fixed = arm in UNTRAINED_ARMS
                name = f"evaluate-{arm}" if fixed else f"evaluate-{arm}-s{seed}"
                records = read_jsonl(run_folder.stage_folder(name) / "records.jsonl")
                evaluations += [{"arm": arm, "seed": seed, **record} for record in records]
                if not fixed:
                    chosen, dev = self._chosen(arm, seed)
                    rates.setdefault(arm, {})[seed] = {"chosen": chosen, "dev": dev}
        metrics = {s: read_jsonl(run_folder.stage_folder(f"mapper-s{s}") / "metrics.jsonl") for s in seeds}
        stops = [f"Mapper, seed {s}: stopped, {row['stop']}." for s in seeds for row in metrics[s] if "stop" in row]
        return {
            "name": config.name,
            "config": config.model_dump(mode="json"),
            "evaluations": evaluations,
            "costs": {name: asdict(run_folder.cost(name)) for name in run_folder.finished_stages()},
            "mapper_metrics": metrics,
            "adapted": adapted,
            "adapted_quality": {s: adapted_quality(rows, self.judge) for s, rows in adapted.items()}
            if self.judge
            else None,
            "learning_rates": rates,
            "examples": self._examples(adapted),
            "input_rows": len(self.data.train),
            "templates": dict.fromkeys(config.arms, self.models.renderer.hash),
            "notes": [*self.data.notes, *stops],
        }

    def _examples(self, adapted: dict[int, list[dict[str, Any]]]) -> list[dict[str, Any]]:
        if not adapted:
            return []
        renderer = self.models.renderer
        probed = read_jsonl(self.run.stage_folder("probe") / "probe.jsonl")
        sources = {
            row.id: (renderer.response_ids(row.solution), known["source_logprobs"])
            for row, known in zip(self.data.train, probed, strict=True)
        }
        return examples(adapted[self.config.seeds[0]], sources, renderer.decode)

    def progress(self, total: int, label: str) -> Progress:
        return Progress(total, label, log_path=self.run.log_path)
