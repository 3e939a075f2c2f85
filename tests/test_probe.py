"""The probe: the same file whether interrupted or not, and references that say what it found."""

from dataclasses import replace

import pytest

from dartune.config.schema import RewardConfig
from dartune.data.row_store import RowWriter, open_rows, write_rows
from dartune.errors import DartuneError
from dartune.rewards.alignment import Reference
from dartune.run.cost import Cost
from dartune.stages import probe as module
from dartune.stages.probe_references import References
from test_reward import GOOD, RENDERER, ROW
from test_synthesise import Scripted

ROWS = [replace(ROW, id=str(index)) for index in range(7)]


@pytest.fixture
def probed(checker, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 1)
    monkeypatch.setattr(module, "BLOCK", 2)
    spent = iter(range(0, 1000, 10))

    def run(rows=ROWS):
        config = RewardConfig(own_samples=1)
        words = (rows, Scripted((GOOD,)), RENDERER, checker, config, "{question} {solution}", 200, 0, tmp_path)
        return module.probe(*words, spent=lambda: Cost(generated_tokens=next(spent)))

    return run


@pytest.mark.parametrize("kept", [0, 2, 3, 7])
def test_an_interrupted_probe_ends_with_the_same_file_and_the_cost_of_all_attempts(kept, probed, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    path = tmp_path / "probe.jsonl"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "write_rows", interrupted)
        probed()
    with RowWriter(path) as spool:
        spool.cut(kept)
    cost = probed()
    rows, thresholds = path.read_bytes(), (tmp_path / "thresholds.json").read_bytes()
    path.unlink()
    assert probed() == cost and cost.generated_tokens == 40
    assert path.read_bytes() == rows and (tmp_path / "thresholds.json").read_bytes() == thresholds
    (tmp_path / "thresholds.json").unlink()  # interrupted at the very end
    assert probed() == cost
    assert path.read_bytes() == rows and (tmp_path / "thresholds.json").read_bytes() == thresholds


def test_references_are_those_of_the_rows(tmp_path):
    def row(number, own, cap):
        shared = {"length": number + 3, "source_alignment": -0.5 * number, "expected_tokens": number + 5}
        return {"id": f"r{number}", **shared, "style": [{"mean_logprob": value} for value in own], "cap": cap}

    rows = [row(0, [], None), row(1, [-0.1 * n for n in range(9)], 0.25), row(2, [-3.0], 0.0)]
    write_rows(tmp_path / "probe.jsonl", rows)
    references = References(open_rows(tmp_path / "probe.jsonl"))
    own = [sorted(one["mean_logprob"] for one in row["style"]) for row in rows]
    everyones = sorted(value for values in own for value in values)
    for number, cap, expected in ((0, None, everyones), (1, 0.25, own[1]), (2, 0.0, everyones)):
        reference = references[f"r{number}"]
        assert list(reference.own) == expected
        assert replace(reference, own=()) == Reference(number + 3, -0.5 * number, cap, number + 5)
    assert list(references) == ["r0", "r1", "r2"] and list(references.values()) == [
        references[name] for name in references
    ]
    with pytest.raises(KeyError):
        references["r3"]
    with pytest.raises(DartuneError, match="same id"):
        References([rows[0], rows[0]])


def test_beside_a_terse_demonstration_a_row_without_samples_expects_what_the_others_write():
    def row(length, *own):
        return {"length": length, "samples": [{"stats": {"logprobs": [0.0] * tokens}} for tokens in own]}

    rows = [row(5, 40, 44), row(5), row(90), row(5, 30, 30, 30, 30, 30, 30)]
    assert list(module._expected_tokens(rows)) == [42, 30, 90, 30]
    assert list(module._expected_tokens([row(5, 40), row(5)])) == [40, 5]  # too few to call anything typical
