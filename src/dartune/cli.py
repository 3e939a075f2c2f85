"""The `dartune` command: subcommands, and error messages with exit codes.

Exit codes: 0 success, 1 bug, 2 invalid input, 3 problem with this machine, 130 interrupted (Ctrl-C), 143 SIGTERM.
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

from dartune import __version__
from dartune.command_line import completion
from dartune.errors import DartuneError, InputError, machine_error
from dartune.run import sigterm
from dartune.run.redaction import printable, redacted

if TYPE_CHECKING:
    from dartune.config.schema import Config

SHOWABLE = ("data", "rewrites", "config")
CONFIGURED = ("run", "check", "diagnose", "preview", "check-reward", "score", "show", "demo")
"""Subcommands that accept a recipe and any key of the config as a flag."""
OWN_FLAGS = {
    "check": ("--all",),
    "diagnose": ("--rows",),
    "preview": ("--rows", "--mapper"),
    "adapt": ("--data", "--output", "--seed", "--force"),
}
"""Flags of these subcommands that are not keys of the config; argparse reads them."""
HELP = ("--help", "--help-all")
FOOTER = """\
Every key of the config is also a flag, as in --mapper.steps 40 or --arms base,sft. --data and --target
are short for --data.path and --target.path. `dartune run --help` shows the most important keys, --help-all all of them.
`dartune completion --help`: completion of commands, keys and file names with Tab.
Exit codes: 0 success, 1 bug, 2 invalid input, 3 problem with this machine, 130 Ctrl-C, 143 SIGTERM."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    if completion.VARIABLE in os.environ:
        completion.complete(build_parser(), CONFIGURED)
    arguments = list(sys.argv[1:] if argv is None else argv)
    # Read when torch is loaded. Beside other processes, threads that spin while they wait for each other slow down by
    # far more than the load (docs/performance.md).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        with sigterm.raise_on_sigterm():
            _dispatch(arguments)
        sys.stdout.flush()
        return 0
    except sigterm.Stopped:
        _print_stderr(f"\nstopped (SIGTERM); the same command continues: dartune {shlex.join(arguments)}")
        return 143
    except KeyboardInterrupt:
        _print_stderr(f"\ninterrupted; the same command continues: dartune {shlex.join(arguments)}")
        return 130
    except BrokenPipeError:  # the reader of stdout, such as `head`, closed the pipe
        # Python flushes stdout at exit, which would raise again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except DartuneError as error:
        for note in getattr(error, "__notes__", ()):
            _print_stderr(note)
        _print_stderr(f"error: {error}")
        return error.exit_code
    except Exception as error:
        if translated := machine_error(error):
            _print_stderr(f"error: {translated}")
            return translated.exit_code
        report = f"error: this is a bug in dartune {__version__}; please report these lines"
        _print_stderr(f"{traceback.format_exc()}{report}")
        return 1


def _print_stderr(text: str) -> None:
    print(printable(redacted(text)), file=sys.stderr)


class _Parser(argparse.ArgumentParser):
    """Raises an `InputError` where argparse would print a message and exit."""

    def error(self, message: str) -> None:
        raise InputError(f"{message}; see `{self.prog} --help`")


def _dispatch(arguments: list[str]) -> None:
    """Parse the command line and call the function of the subcommand."""
    verb = next((argument for argument in arguments if not argument.startswith("-")), None)
    overrides: dict[str, str] = {}
    keys = None
    if verb in CONFIGURED and not {"-h", "--help", "--help-all"}.isdisjoint(arguments):
        from dartune.command_line.key_help import all_keys, important_keys

        keys = all_keys(verb) if "--help-all" in arguments else important_keys(verb)
    if verb in CONFIGURED or verb in OWN_FLAGS:
        # Keys are removed before argparse runs: argparse does not know them, and a key's value may begin with a dash.
        arguments, overrides = split_overrides(arguments, OWN_FLAGS.get(verb, ()))
    parser = build_parser(keys)
    options = parser.parse_args(arguments)
    if options.verb is None:
        parser.print_help()
        return
    options.overrides = overrides
    options.work(options)


def split_overrides(arguments: Sequence[str], own_flags: Sequence[str] = ()) -> tuple[list[str], dict[str, str]]:
    """Separate `--key value` and `--key=value` from the other arguments of a command line.

    Args:
        own_flags: flags that are not keys; they stay among the other arguments.

    Returns:
        The remaining arguments, and the values by key.

    Raises:
        InputError: a key has no value, or is given twice.
    """
    remaining: list[str] = []
    overrides: dict[str, str] = {}
    problems = []
    iterator = iter(arguments)
    for argument in iterator:
        if not argument.startswith("--") or argument in HELP or argument.partition("=")[0] in own_flags:
            remaining.append(argument)
            continue
        key, equals, value = argument[2:].partition("=")
        if not equals:
            following = next(iterator, None)
            if following is None or following.startswith("--"):
                problems.append(f"--{key} needs a value, as in --{key} VALUE")
                iterator = iter([*([following] if following else []), *iterator])
                continue
            value = following
        if key in overrides:
            problems.append(f"--{key} is given twice")
        overrides[key] = value
    if problems:
        raise InputError("the command line cannot be used", problems)
    return remaining, overrides


def _config(options: argparse.Namespace) -> Config:
    from dartune.config.load import load_config

    return load_config(options.recipe, options.overrides)


def _check(options: argparse.Namespace) -> None:
    config = _config(options)  # before the import, so that a wrong recipe is reported without loading torch
    from dartune.check import check

    print(printable(check(config, every=options.all)))


def _diagnose(options: argparse.Namespace) -> None:
    config = _config(options)
    from dartune.diagnosis.command import diagnose

    flags = [f"--{key}={value}" for key, value in options.overrides.items()]
    recipe = [] if options.recipe is None else [str(options.recipe)]
    if text := diagnose(config, options.rows, [*recipe, *flags]):
        print(printable(text))


def _preview(options: argparse.Namespace) -> None:
    config = _config(options)
    from dartune.diagnosis.preview import preview

    preview(config, options.rows, options.mapper)


def _run(options: argparse.Namespace) -> None:
    _run_pipeline(_config(options))


def _run_pipeline(config: Config) -> None:
    # Imported after the config is loaded: an invalid key is then reported without the seconds that torch takes.
    from dartune import pipeline

    if summary := pipeline.run(config):  # empty on all ranks but 0
        print(summary)


def _lab_config(overrides: Mapping[str, str]) -> Config:
    from dartune.config.load import load_config
    from dartune.config.recipe import SHIPPED

    return load_config(SHIPPED / "lab.yaml", overrides)


def _demo(options: argparse.Namespace) -> None:
    _run_pipeline(_lab_config(options.overrides))


def _status(options: argparse.Namespace) -> None:
    from dartune.run.status import runs_in, status_lines

    print("\n".join(line for run in runs_in(options.run) for line in status_lines(run)))


def _compare(options: argparse.Namespace) -> None:
    from dartune.report.compare_runs import compare

    print(compare(options.runs))


def _push(options: argparse.Namespace) -> None:
    from dartune.publish.push import push

    names = ("what", "arm", "seed", "licence", "private", "dry_run")
    print(push(options.run, options.to, **{name: getattr(options, name) for name in names}))


def _export(options: argparse.Namespace) -> None:
    from dartune.publish.export import export

    names = ("view", "arm", "seed")
    print(export(options.run, options.layout, options.output, **{name: getattr(options, name) for name in names}))


def _adapt(options: argparse.Namespace) -> None:
    from dartune.trained_mapper.adapt import adapt

    flags = {"flags": options.overrides, "seed": options.seed, "force": options.force}
    if summary := adapt(options.run, options.data, options.output, **flags):  # empty on all ranks but 0
        print(printable(summary))


def _report(options: argparse.Namespace) -> None:
    from dartune.report.build import rebuild_report
    from dartune.run.status import runs_in

    for run in runs_in(options.run):
        print(rebuild_report(run, options.section))


def _benchmark(options: argparse.Namespace) -> None:
    from dartune.publish.lm_eval import benchmark

    tasks, arms = ([name for name in text.split(",") if name] for text in (options.tasks, options.arms))
    print(benchmark(options.run, tasks, arms, seed=options.seed, limit=options.limit, include=options.include))


def _show(options: argparse.Namespace) -> None:
    folder = options.recipe
    if folder is not None and folder.is_dir():
        from dartune.run.status import status_lines

        status_lines(folder)  # raises if there is no run in it
        if options.overrides:
            raise InputError(f"{folder} is a run folder; flags change recipes only")
        if options.what == "config":
            from dartune.config.load import recorded_yaml

            print(recorded_yaml(folder), end="")
            return
        subject = folder
    else:
        if options.what == "rewrites":
            raise InputError("show rewrites needs a run folder, such as runs/lab")
        subject = _config(options)
        if options.what == "config":
            print(subject.resolved_yaml(), end="")
            return
    from dartune.report.show import show

    print(show(subject, options.what))


def _check_reward(options: argparse.Namespace) -> None:
    from dartune.config.load import load_config

    with_target = "target.path" in options.overrides or "target" in options.overrides
    overrides = {"data.path": "lab:values", "target.path": "lab:backward"} | options.overrides
    if with_target:
        # Keep only the user's flag, in its short or long form; the other one is the default set above.
        overrides.pop("target.path" if "target" in options.overrides else "target", None)
    config = load_config(None, overrides)
    from dartune.red_team.check_reward import check_reward

    print(check_reward(config, options.fixtures, with_target=with_target))


def _score(options: argparse.Namespace) -> None:
    output = options.overrides.pop("output", None)
    if output is None:
        raise InputError("score writes a file: add --output scored.parquet (or .jsonl, .csv)")
    config = _config(options)
    from dartune.scoring.data_set import score_data

    if summary := score_data(config, Path(output)):  # empty on all ranks but 0
        print(printable(summary))


def _completion(options: argparse.Namespace) -> None:
    print(completion.shell_code(options.shell))


def _lab_build(options: argparse.Namespace) -> None:
    from dartune.lab import commands

    print(commands.build(options))


def _lab_show(options: argparse.Namespace) -> None:
    from dartune.lab import commands

    print(commands.show(options))


def _count(text: str) -> int:
    """A number of rows on the command line."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)


def build_parser(keys: str | None = None) -> _Parser:
    """Return the parser of the command line.

    Args:
        keys: text below the help of the subcommands that accept a config.
    """
    common = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}
    parser = _Parser(
        prog="dartune",
        description="Rewrite demonstrations into the style of the model that is fine-tuned on them.",
        epilog=FOOTER,
        **common,
    )
    parser.add_argument("--version", action="version", version=f"dartune {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB")

    def verb(name: str, work: Callable[[argparse.Namespace], None], text: str, usage: str) -> _Parser:
        flags, epilog = ("[--KEY VALUE ...]", keys) if name in CONFIGURED else ("", None)
        usage = " ".join(filter(None, ("dartune", name, usage, flags)))
        subparser = verbs.add_parser(name, help=text, description=text, usage=usage, epilog=epilog, **common)
        subparser.set_defaults(work=work)
        if name in CONFIGURED:
            subparser.add_argument("--help-all", action="help", help="show this help with all keys and arms, and exit")
        return subparser

    recipe = "recipe file, or name of a shipped recipe such as gsm8k-qwen3-0.6b; without it, give --data and --target"
    run_folder = "run folder, or the output folder of a matrix"
    text = "run or continue the whole pipeline: train the mapper, rewrite, train every arm, evaluate, report"
    run = verb("run", _run, text, "[RECIPE.yaml]")
    run.add_argument("recipe", nargs="?", type=Path, help=recipe)
    _add_measuring(verb, recipe)
    verb("demo", _demo, "run the lab recipe with the shipped models; needs no GPU and no network", "")
    status = verb("status", _status, "show the state of a run, its stages and the progress", "RUN")
    status.add_argument("run", type=Path, help=run_folder)
    report = verb("report", _report, "rebuild the report of a run", "RUN")
    report.add_argument("run", type=Path, help=run_folder)
    own = "a section of your own, module:function (docs/extending.md); may be repeated"
    report.add_argument("--section", action="append", default=[], metavar="MODULE:FUNCTION", help=own)
    _add_adapt(verb)
    text = "compare finished runs: differences between arms, per run and pooled"
    compare = verb("compare", _compare, text, "RUN RUN ...")
    compare.add_argument("runs", nargs="+", type=Path, help="run folders, or a folder that contains runs")
    text = "evaluate the models of a run on standard benchmarks with lm-evaluation-harness"
    _add_benchmark(verb("benchmark", _benchmark, text, "RUN --tasks TASK,..."))
    text = "show rendered training rows, rewrites, or the resolved config"
    show = verb("show", _show, text, f"{{{','.join(SHOWABLE)}}} [RECIPE.yaml | RUN]")
    show.add_argument("what", choices=SHOWABLE, metavar="WHAT", help=f"one of {', '.join(SHOWABLE)}")
    show.add_argument("recipe", nargs="?", type=Path, metavar="RECIPE|RUN", help="recipe, or run folder")
    _add_push(verb)
    _add_export(verb)
    _add_completion(verb)
    _add_lab(verb("lab", _lab_show, "build or measure the models of the embedded lab", "{build,show} ..."), common)
    return parser


def _add_measuring(verb: Callable[..., _Parser], recipe: str) -> None:
    """Add the commands that measure data, models or a reward and train nothing."""
    check = verb("check", _check, "check data, models and settings without training", "[RECIPE.yaml] [--all]")
    check.add_argument("recipe", nargs="?", type=Path, help=recipe)
    check.add_argument("--all", action="store_true", help="list all rows of every finding instead of the first five")
    text = "measure a few rows and recommend what to do with the data, before a run"
    diagnose = verb("diagnose", _diagnose, text, "[RECIPE.yaml] [--rows N]")
    diagnose.add_argument("recipe", nargs="?", type=Path, help=recipe)
    diagnose.add_argument("--rows", type=_count, default=64, metavar="N", help="rows to measure (default: 64)")
    text = "show a few rewrites of the mapper beside their demonstrations, with gates and alignment of each token"
    preview = verb("preview", _preview, text, "[RECIPE.yaml] [--rows N] [--mapper RUN]")
    preview.add_argument("recipe", nargs="?", type=Path, help=recipe)
    preview.add_argument("--rows", type=_count, default=5, metavar="N", help="rows to rewrite (default: 5)")
    text = "run folder or model folder of a trained mapper (default: the initial mapper)"
    preview.add_argument("--mapper", type=Path, metavar="RUN", help=text)
    text = "test the gates on honest and hacked rewrites, and with --target the whole reward"
    check_reward = verb("check-reward", _check_reward, text, "[FIXTURES.jsonl | lab:EXPERT]")
    text = "rows with question, solution, rewrite and label (honest, or the name of a hack); default: built-in rows"
    check_reward.add_argument("fixtures", nargs="?", help=text)
    text = "score every row of a data set: alignment under the target, percentile among its own samples, length"
    score = verb("score", _score, text, "[RECIPE.yaml] --output FILE.{parquet,jsonl,csv}")
    score.add_argument("recipe", nargs="?", type=Path, help=recipe)


def _add_adapt(verb: Callable[..., _Parser]) -> None:
    text = (
        "rewrite more data with the trained mapper of a run, or continue; --data.columns, --data.where, --data.task, "
        "--target, --mapper.path and the keys of execution may differ from the run"
    )
    usage = "RUN --data DATA --output FOLDER [--seed N] [--force] [--KEY VALUE ...]"
    adapt = verb("adapt", _adapt, text, usage)
    adapt.add_argument("run", type=Path, help="run folder; its synthesis must be complete")
    text = "the new rows: file, folder or Hub id, read like data.path"
    adapt.add_argument("--data", required=True, metavar="DATA", help=text)
    text = "folder for the adapted rows; the same command continues in it"
    adapt.add_argument("--output", type=Path, required=True, metavar="FOLDER", help=text)
    adapt.add_argument("--seed", type=int, metavar="N", help="seed of the mapper (default: first seed of the run)")
    text = "use the mapper although the target, its chat template or the system prompt changed since the run"
    adapt.add_argument("--force", action="store_true", help=text)


def _add_push(verb: Callable[..., _Parser]) -> None:
    text = "upload a data set or model of a finished run to the Hugging Face Hub, with a card (docs/sharing.md)"
    push = verb("push", _push, text, "RUN --to OWNER/NAME [--what {data,model,mapper}] [--dry-run] ...")
    push.add_argument("run", type=Path, help="run folder")
    push.add_argument("--to", required=True, metavar="OWNER/NAME", help="repository; created if it does not exist")
    text = "what to upload: the adapted data set of the arm (default), its selected model, or its mapper"
    push.add_argument("--what", choices=("data", "model", "mapper"), default="data", help=text)
    push.add_argument("--arm", default="dart", metavar="ARM", help="arm (default: dart)")
    push.add_argument("--seed", type=int, metavar="N", help="seed (default: first seed of the run)")
    push.add_argument("--license", dest="licence", metavar="ID", help="license for the card, such as apache-2.0")
    push.add_argument("--private", action="store_true", help="create a private repository; refuse to use a public one")
    push.add_argument("--dry-run", action="store_true", help="show the files and the card without uploading")


def _add_export(verb: Callable[..., _Parser]) -> None:
    text = "write the adapted rows in the layout of another training tool (docs/sharing.md)"
    layouts = ("trl", "llama-factory", "axolotl", "openai")
    export = verb("export", _export, text, f"RUN --layout {{{','.join(layouts)}}} --output FOLDER ...")
    text = "run folder, output folder of dartune adapt, or a folder adapted/"
    export.add_argument("run", type=Path, help=text)
    text = "tool that reads the files"
    export.add_argument("--layout", required=True, choices=layouts, help=text)
    export.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="folder for the files")
    text = "success_only: rows with an adapted or natural solution (default); keep_original: also unchanged ones"
    export.add_argument("--view", choices=("success_only", "keep_original"), default="success_only", help=text)
    export.add_argument("--arm", metavar="ARM", help="arm (default: dart)")
    export.add_argument("--seed", type=int, metavar="N", help="seed (default: first seed of the run)")


def _add_benchmark(benchmark: _Parser) -> None:
    benchmark.add_argument("run", type=Path, help="folder of a finished run")
    text = "tasks of lm-evaluation-harness, such as gsm8k,arc_easy"
    benchmark.add_argument("--tasks", required=True, metavar="TASK,...", help=text)
    text = "arms whose models are evaluated (default: all arms of the run)"
    benchmark.add_argument("--arms", default="", metavar="ARM,...", help=text)
    benchmark.add_argument("--seed", type=int, metavar="N", help="seed (default: first seed of the run)")
    benchmark.add_argument("--limit", type=int, metavar="N", help="maximum questions per task, for a trial run")
    text = "folder with your own task definitions, in the format of the harness"
    benchmark.add_argument("--include", type=Path, metavar="FOLDER", help=text)


def _add_completion(verb: Callable[..., _Parser]) -> None:
    shells = "|".join(completion.SHELLS)
    text = "print the shell code that completes commands, keys, their values and file names with Tab"
    subparser = verb("completion", _completion, text, f"{{{shells}}}")
    subparser.description = (
        f'{text}. bash: add the line `eval "$(dartune completion bash)"` to ~/.bashrc. zsh: add `eval "$(dartune '
        'completion zsh)"` to ~/.zshrc, below compinit. fish: `dartune completion fish > '
        "~/.config/fish/completions/dartune.fish`"
    )
    subparser.add_argument("shell", choices=completion.SHELLS, metavar="SHELL", help=f"one of {shells}")


def _add_lab(lab: _Parser, common: dict) -> None:
    parts = lab.add_subparsers(dest="part", required=True, metavar="{build,show}")

    def part(name: str, work: Callable[[argparse.Namespace], None], text: str) -> _Parser:
        subparser = parts.add_parser(name, help=text, description=text, prog=f"dartune lab {name}", **common)
        help_text = "folder of the models (default: inside the package)"
        subparser.add_argument("--output", dest="folder", type=Path, metavar="FOLDER", help=help_text)
        subparser.set_defaults(work=work)
        return subparser

    build = part("build", _lab_build, "pretrain the lab's models again")
    build.add_argument("--only", metavar="NAME", help="build only this model")
    text = "pretraining steps; fewer give a weaker model (an initial mapper of 1500 steps is correct half the time)"
    build.add_argument("--steps", type=int, metavar="N", help=text)
    text = "make the initial mapper write a dialect less often, as a fraction of its usual share; repeatable"
    build.add_argument("--rare", action="append", default=[], metavar="DIALECT=SHARE", help=text)
    show = part("show", _lab_show, "measure the accuracy of the lab's models")
    show.add_argument("--questions", type=int, default=256, metavar="N", help="questions per suite (default: 256)")
