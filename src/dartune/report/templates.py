"""What all HTML pages share: templates, number formats, and solutions with their tokens shaded by probability."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import exp, isfinite
from typing import Any

from dartune.report import summary
from dartune.run import number_format

SURPRISE = (0.1, 0.5, 1.0, 2.0, 4.0)  # nats; boundaries between the six shades of a token
SHOWN_TOKENS = 1500


def render(template: str, **values: Any) -> str:
    """Return a page as HTML. Everything is escaped but `Markup`.

    Args:
        template: name of a template of `dartune.report` or `dartune.diagnosis`.
    """
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=ChoiceLoader([PackageLoader("dartune.report", ""), PackageLoader("dartune.diagnosis", "")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": number_format.percent,
        "points": number_format.points,
        "duration": number_format.duration,
        "title": summary.title,
        "number": number_format.significant,
        "flops": number_format.flops,
        "words": lambda name: str(name).replace("_", " "),
    }
    html = environment.get_template(template).render(**values)
    # Lone surrogates in the data cannot be encoded in UTF-8.
    return html.encode("utf-8", errors="replace").decode("utf-8")


@dataclass(frozen=True)
class Side:
    """A solution as the pages show it, beside another one.

    Args:
        tokens: [text, log-probability in nats] pairs; without them `text` is shown.
        alignment: in nats per token; None if it was not measured.
    """

    title: str
    text: str
    tokens: Sequence[Sequence[Any]] = ()
    alignment: float | None = None

    @property
    def shaded(self) -> list[dict[str, Any]]:
        """The tokens to show, with a shade of 0-5 each."""
        return _tokens(self.tokens)

    @property
    def hidden(self) -> int:
        """Tokens that are not shown."""
        return max(0, len(self.tokens) - SHOWN_TOKENS)


def _tokens(tokens: Sequence[Sequence[Any]]) -> list[dict[str, Any]]:
    """The tokens to show. The end token has no text, but its probability is part of the alignment."""
    shown = [_token(token) for token in tokens[:SHOWN_TOKENS]]
    if shown and not shown[-1]["text"]:
        shown[-1]["text"] = " [end]"
    return shown


def _token(token: Sequence[Any]) -> dict[str, Any]:
    """Text, shade 0-5 and log-probability of a token; the shade is None if the token was not scored."""
    text, logprob = (*token, None, None)[:2]
    if not isinstance(logprob, (int, float)) or not isfinite(logprob):
        return {"text": str(text), "shade": None, "logprob": None}
    return {"text": str(text), "shade": sum(-logprob >= bound for bound in SURPRISE), "logprob": logprob}


def shade_legend() -> list[tuple[int, str]]:
    """The range of probabilities of every shade."""
    shares = [1.0, *(exp(-bound) for bound in SURPRISE), 0.0]
    return [(shade, f"{100 * low:.0f}-{100 * high:.0f}%") for shade, (high, low) in enumerate(pairwise(shares))]
