"""References of all demonstrations by id, in arrays: about 60 bytes a row, so that a million rows fit in memory."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from dartune.data.run_records import ProbeRow
from dartune.errors import DartuneError
from dartune.rewards.alignment import Reference, style_means


class References(Mapping[str, Reference]):
    """The reference of each row of the probe, by its id."""

    def __init__(self, rows: Sequence[ProbeRow]) -> None:
        """Reads the rows once.

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
        self._pooled = array("d", np.sort(self._own).tobytes())
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
            style_means(own, self._pooled),
        )
