"""What the rows of a probe are compared with: references of all demonstrations, and measurements over all of them.

References are in arrays: about 60 bytes a row, so that a million rows fit in memory.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dartune.data.run_records import ProbeRow
from dartune.errors import DartuneError
from dartune.gates.gate_input import GateThresholds
from dartune.rewards.alignment import FEWEST_SAMPLES, Reference, style_means, typical_alignment


@dataclass(frozen=True, slots=True)
class Calibration:
    """What a probe measures over all rows of a data set, and applies to each of them.

    New rows for a trained mapper are judged by the calibration of its run. Measured on the new rows instead, it would
    differ with the number of rows: a percentile of three rows is an outlier.

    Args:
        thresholds: thresholds of the gates.
        style: mean log-probabilities (nats per token, ascending) of the target's finished samples.
        typical_tokens: median length of these samples, for rows without one; 0 if there are too few.
        typical_alignment: median alignment of these samples, for rows without one; None if there are too few.
    """

    thresholds: GateThresholds
    style: Sequence[float]
    typical_tokens: int
    typical_alignment: float | None


def median_tokens(lengths: Sequence[int]) -> int:
    """The typical length of own samples in tokens; 0 if there are too few samples."""
    return int(np.median(np.asarray(lengths))) if len(lengths) >= FEWEST_SAMPLES else 0


def recorded_typical_alignment(rows: Iterable[ProbeRow]) -> float | None:
    """`typical_alignment` of a complete probe, read back from the caps in its rows.

    A row's cap is the alignment of its own samples minus that of its source, or 0 if that is negative. A row without
    own samples has the typical alignment in this place, so the value is exact where such a row has a cap above 0.
    Otherwise it is the median over the rows.
    """
    natural = array("d")
    for row in rows:
        if row["cap"] is None:  # a row without samples, in a data set with too few of them
            return None
        if not row["style"] and row["cap"] > 0:
            return row["source_alignment"] + row["cap"]
        if row["style"]:
            natural.append(row["source_alignment"] + row["cap"])
    return typical_alignment(natural)


class References(Mapping[str, Reference]):
    """The reference of each row of the probe, by its id."""

    def __init__(self, rows: Sequence[ProbeRow], style: Sequence[float] | None = None) -> None:
        """Reads the rows once.

        Args:
            style: `Calibration.style`, for rows with few own samples; None: that of these rows.

        Raises:
            DartuneError: an id is there twice.
        """
        self._rows = rows
        names, ends = array("q"), array("q", [0])
        self._lengths, self._expected = array("q"), array("q")
        self._alignments, self._caps, self._own = array("d"), array("d"), array("d")
        for row in rows:
            names.append(hash(row["id"]))
            self._lengths.append(row["length"])
            self._expected.append(row["expected_tokens"])
            self._alignments.append(row["source_alignment"])
            self._caps.append(float("nan") if row["cap"] is None else row["cap"])
            self._own.extend(sorted(sample["mean_logprob"] for sample in row["style"]))
            ends.append(len(self._own))
        self._ends = ends
        self.pooled = array("d", np.sort(self._own).tobytes()) if style is None else style
        self._order = np.argsort(names)
        self._names = np.asarray(names)[self._order]
        if len(np.unique(self._names)) < len(self._names):
            raise DartuneError("two rows of the probe have the same id; was its file edited?")

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[str]:
        return (row["id"] for row in self._rows)

    def __getitem__(self, name: str) -> Reference:
        place = int(np.searchsorted(self._names, hash(name)))
        if place == len(self) or self._names[place] != hash(name):
            raise KeyError(name)
        return self._reference(int(self._order[place]))

    def values(self) -> Iterator[Reference]:
        return map(self._reference, range(len(self)))

    def _reference(self, row: int) -> Reference:
        own = self._own[self._ends[row] : self._ends[row + 1]]
        cap = self._caps[row]
        return Reference(
            self._lengths[row],
            self._alignments[row],
            None if np.isnan(cap) else cap,
            self._expected[row],
            style_means(own, self.pooled),
        )
