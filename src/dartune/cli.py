"""The `dartune` command: thin verbs over the pipeline, and every error as a message with an exit code.

0 done, 1 a bug, 2 your input, 3 this machine, 130 interrupted (Ctrl-C), 143 stopped (SIGTERM).
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dartune import __version__, stopping
from dartune.errors import DartuneError, InputError, machine_error
from dartune.redaction import printable, redacted

if TYPE_CHECKING:
    from dartune.config import Config

SHOWABLE = ("data", "rewrites", "config")
CONFIGURED = ("run", "check", "check-reward", "show", "demo")
"""Verbs that take a recipe and any key of the config as a flag."""
SWITCHES = {"check": ("--all",)}
"""Flags of such verbs that are no keys and take no value."""
FOOTER = """\
Any key of the config is a flag, as in --mapper.steps 40 or --arms base,sft; --data and --target are
short for --data.path and --target.path. `dartune run --help` lists them all.
Exit codes: 2 something in your input, 3 something about this machine, 1 a bug, 130 Ctrl-C, 143 SIGTERM."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        with stopping.heeded():
            _dispatch(arguments)
        sys.stdout.flush()
        return 0
    except stopping.Stopped:
        _say(f"\nstopped (SIGTERM); the same command continues: dartune {shlex.join(arguments)}")
        return 143
    except KeyboardInterrupt:
        _say(f"\ninterrupted; the same command continues: dartune {shlex.join(arguments)}")
        return 130
    except BrokenPipeError:  # the reader of our output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except DartuneError as error:
        for note in getattr(error, "__notes__", ()):
            _say(note)
        _say(f"error: {error}")
        return error.exit_code
    except Exception as error:
        if known := machine_error(error):
            _say(f"error: {known}")
            return known.exit_code
        _say(f"{traceback.format_exc()}error: this is a bug in dartune {__version__}; please report these lines")
        return 1


def _say(text: str) -> None:
    print(printable(redacted(text)), file=sys.stderr)


class _Parser(argparse.ArgumentParser):
    """Raises what argparse would print and exit with."""

    def error(self, message: str) -> None:
        raise InputError(f"{message}; see `{self.prog} --help`")


def _dispatch(arguments: list[str]) -> None:
    verb = next((word for word in arguments if not word.startswith("-")), None)
    overrides: dict[str, str] = {}
    keys = None
    if verb in CONFIGURED:
        if "-h" in arguments or "--help" in arguments:
            from dartune.arms import ARMS
            from dartune.config import describe_keys

            arms = "\n".join(f"  {name:18}{arm.says}" for name, arm in ARMS.items())
            base, whose = (_lab_config({}), "the demo's values") if verb == "demo" else (None, "their defaults")
            keys = f"Keys, with {whose}:\n{describe_keys(base)}\n\nArms:\n{arms}"
        switches = [word for word in arguments if word in SWITCHES.get(verb, ())]
        arguments, overrides = split_overrides([word for word in arguments if word not in switches])
        arguments += switches
    parser = build_parser(keys)
    options = parser.parse_args(arguments)
    if options.verb is None:
        parser.print_help()
        return
    options.overrides = overrides
    options.work(options)


def split_overrides(arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Take `--key value` and `--key=value` out of a command line.

    Raises:
        InputError: a key has no value, or is given twice.
    """
    kept: list[str] = []
    overrides: dict[str, str] = {}
    problems = []
    words = iter(arguments)
    for word in words:
        if not word.startswith("--") or word == "--help":
            kept.append(word)
            continue
        key, equals, value = word[2:].partition("=")
        if not equals:
            following = next(words, None)
            if following is None or following.startswith("--"):
                problems.append(f"--{key} needs a value, as in --{key} VALUE")
                words = iter([*([following] if following else []), *words])
                continue
            value = following
        if key in overrides:
            problems.append(f"--{key} is given twice")
        overrides[key] = value
    if problems:
        raise InputError("the command line cannot be used", problems)
    return kept, overrides


def _config(options: argparse.Namespace) -> Config:
    from dartune.config import load_config

    return load_config(options.recipe, options.overrides)


def _check(options: argparse.Namespace) -> None:
    from dartune import pipeline

    print(printable(pipeline.check(_config(options), every=options.all)))


def _run(options: argparse.Namespace) -> None:
    _started(_config(options))  # first, so that a wrong key is told without waiting for torch


def _started(config: Config) -> None:
    from dartune import pipeline

    if summary := pipeline.run(config):  # of several processes one has it
        print(summary)


def _lab_config(overrides: Mapping[str, str]) -> Config:
    from dartune.config import load_config
    from dartune.recipe import SHIPPED

    return load_config(SHIPPED / "lab.yaml", overrides)


def _demo(options: argparse.Namespace) -> None:
    _started(_lab_config(options.overrides))


def _status(options: argparse.Namespace) -> None:
    from dartune.status import runs_in, status_lines

    print("\n".join(line for run in runs_in(options.run) for line in status_lines(run)))


def _compare(options: argparse.Namespace) -> None:
    from dartune.compare import compare

    print(compare(options.runs))


def _push(options: argparse.Namespace) -> None:
    from dartune.push import push

    asked = ("what", "arm", "seed", "licence", "private", "dry_run")
    print(push(options.run, options.to, **{name: getattr(options, name) for name in asked}))


def _report(options: argparse.Namespace) -> None:
    from dartune import pipeline
    from dartune.status import runs_in

    for run in runs_in(options.run):
        print(pipeline.report(run))


def _benchmark(options: argparse.Namespace) -> None:
    from dartune.benchmarks import benchmark

    named = [[word for word in text.split(",") if word] for text in (options.tasks, options.arms)]
    print(benchmark(options.run, *named, seed=options.seed, limit=options.limit, include=options.include))


def _show(options: argparse.Namespace) -> None:
    folder = options.recipe
    if folder is not None and folder.is_dir():
        from dartune.status import status_lines

        status_lines(folder)  # says so where there is no run
        if options.overrides:
            raise InputError(f"{folder} is a finished run; flags change recipes only")
        if options.what == "config":
            print((folder / "config.resolved.yaml").read_text(encoding="utf-8"), end="")
            return
        subject = folder
    else:
        if options.what == "rewrites":
            raise InputError("show rewrites needs the folder of a run, such as runs/lab")
        subject = _config(options)
        if options.what == "config":
            print(subject.resolved_yaml(), end="")
            return
    from dartune import pipeline

    print(pipeline.show(subject, options.what))


def _check_reward(options: argparse.Namespace) -> None:
    from dartune.config import load_config

    with_target = "target.path" in options.overrides or "target" in options.overrides
    overrides = {"data.path": "lab:values", "target.path": "lab:backward"} | options.overrides
    if with_target:
        overrides.pop("target.path" if "target" in options.overrides else "target", None)
    config = load_config(None, overrides)
    from dartune import attack

    print(attack.check_reward(config, options.fixtures, with_target=with_target))


def _lab_build(options: argparse.Namespace) -> None:
    from dartune.lab import commands

    print(commands.build(options))


def _lab_show(options: argparse.Namespace) -> None:
    from dartune.lab import commands

    print(commands.show(options))


def build_parser(keys: str | None = None) -> _Parser:
    """The command line; `keys` is what to print below the help of the verbs that take a config."""
    common = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}
    parser = _Parser(
        prog="dartune",
        description="Rewrite demonstrations into the words of the model that will learn from them.",
        epilog=FOOTER,
        **common,
    )
    parser.add_argument("--version", action="version", version=f"dartune {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB")

    def verb(name: str, work: Callable[[argparse.Namespace], None], text: str, usage: str) -> _Parser:
        flags, below = ("[--KEY VALUE ...]", keys) if name in CONFIGURED else ("", None)
        usage = " ".join(filter(None, ("dartune", name, usage, flags)))
        made = verbs.add_parser(name, help=text, description=text, usage=usage, epilog=below, **common)
        made.set_defaults(work=work)
        return made

    text = "run or continue everything: train the mapper, rewrite, train every arm, test, report"
    made = verb("run", _run, text, "[RECIPE.yaml]")
    recipe = "a recipe, or the name of a shipped one, such as gsm8k-qwen3-0.6b; else defaults for --data and --target"
    made.add_argument("recipe", nargs="?", type=Path, help=recipe)
    made = verb("check", _check, "check data, models and settings; trains nothing", "[RECIPE.yaml] [--all]")
    made.add_argument("recipe", nargs="?", type=Path, help=recipe)
    made.add_argument("--all", action="store_true", help="name every row of every finding, not only the first five")
    text = "try the reward on honest and on hacked rewrites; with --target its alignment, too"
    made = verb("check-reward", _check_reward, text, "[FIXTURES.jsonl | lab:EXPERT]")
    made.add_argument("fixtures", nargs="?", help="rows of question, solution, rewrite, label (honest or a hack)")
    verb("demo", _demo, "run the lab's recipe on the shipped models, on a CPU", "")
    made = verb("status", _status, "where a run stands", "RUN")
    made.add_argument("run", type=Path, help="a run folder, or the folder of a matrix")
    made = verb("report", _report, "make the report of a run folder again", "RUN")
    made.add_argument("run", type=Path, help="a run folder, or the folder of a matrix")
    made = verb("compare", _compare, "finished runs side by side, and the gaps they agree on", "RUN RUN ...")
    made.add_argument("runs", nargs="+", type=Path, help="run folders, or a folder of runs")
    text = "measure a run's models on standard benchmarks, by lm-evaluation-harness"
    _add_benchmark(verb("benchmark", _benchmark, text, "RUN --tasks TASK,..."))
    text = "show rows as they are trained on, rewrites, or the resolved config"
    made = verb("show", _show, text, f"{{{','.join(SHOWABLE)}}} [RECIPE.yaml | RUN]")
    made.add_argument("what", choices=SHOWABLE, metavar="WHAT", help=f"one of {', '.join(SHOWABLE)}")
    made.add_argument("recipe", nargs="?", type=Path, metavar="RECIPE|RUN", help="a recipe, or a run folder")
    _add_sharing(verb)
    _add_lab(verb("lab", _lab_show, "the embedded world's models", "{build,show} ..."), common)
    return parser


def _add_sharing(verb: Callable[..., _Parser]) -> None:
    text = "upload what a finished run made to the Hugging Face Hub, with a card (docs/sharing.md)"
    made = verb("push", _push, text, "RUN --to OWNER/NAME [--what {data,model,mapper}] [--dry-run] ...")
    made.add_argument("run", type=Path, help="a run folder")
    made.add_argument("--to", required=True, metavar="OWNER/NAME", help="the repository; made where there is none")
    text = "the arm's adapted data set (default), its chosen model, or its mapper"
    made.add_argument("--what", choices=("data", "model", "mapper"), default="data", help=text)
    made.add_argument("--arm", default="dart", metavar="ARM", help="default dart")
    made.add_argument("--seed", type=int, metavar="N", help="default: the first of the run")
    made.add_argument("--license", dest="licence", metavar="ID", help="for the card, as in apache-2.0")
    made.add_argument("--private", action="store_true", help="only into a repository that nobody else sees")
    made.add_argument("--dry-run", action="store_true", help="show files and card; nothing leaves this machine")


def _add_benchmark(benchmark: _Parser) -> None:
    benchmark.add_argument("run", type=Path, help="the folder of a finished run")
    text = "tasks of lm-evaluation-harness, as in gsm8k,arc_easy"
    benchmark.add_argument("--tasks", required=True, metavar="TASK,...", help=text)
    benchmark.add_argument("--arms", default="", metavar="ARM,...", help="whose models; default all of the run's")
    benchmark.add_argument("--seed", type=int, metavar="N", help="of which seed; default the run's first")
    benchmark.add_argument("--limit", type=int, metavar="N", help="questions of a task at most, to try it out")
    benchmark.add_argument(
        "--include", type=Path, metavar="FOLDER", help="tasks of your own, as the harness reads them"
    )


def _add_lab(lab: _Parser, common: dict) -> None:
    parts = lab.add_subparsers(dest="part", required=True, metavar="{build,show}")

    def part(name: str, work: Callable[[argparse.Namespace], None], text: str) -> _Parser:
        made = parts.add_parser(name, help=text, description=text, prog=f"dartune lab {name}", **common)
        help_text = "where the models are, instead of in the package"
        made.add_argument("--output", dest="folder", type=Path, metavar="FOLDER", help=help_text)
        made.set_defaults(work=work)
        return made

    build = part("build", _lab_build, "pretrain the lab's models again")
    build.add_argument("--only", metavar="NAME", help="build this model only")
    text = "pretrain for fewer steps, for a weaker model (a mapper start of 1500 steps is right half the time)"
    build.add_argument("--steps", type=int, metavar="N", help=text)
    text = "a dialect that the mapper start writes less often, as a share of its turn; may be given again"
    build.add_argument("--rare", action="append", default=[], metavar="DIALECT=SHARE", help=text)
    show = part("show", _lab_show, "measure what the lab's models can do")
    show.add_argument("--questions", type=int, default=256, metavar="N", help="per suite (default 256)")
