"""The report of a run: results, statistics, plots, HTML page, terminal summary, and the comparison of runs."""

from dartune.report.page import write_report
from dartune.report.results import build_results, read_results
from dartune.report.schema import SCHEMA_VERSION, validate_results
from dartune.report.summary import summarise

__all__ = ["SCHEMA_VERSION", "build_results", "read_results", "summarise", "validate_results", "write_report"]
