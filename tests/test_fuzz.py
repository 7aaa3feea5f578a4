"""Damaged files of every kind: each is read, or refused in one message (see fuzz.py)."""

import fuzz
import pytest


@pytest.mark.slow
@pytest.mark.parametrize("kind", fuzz.KINDS)
def test_damaged_files_are_read_or_refused(kind):
    cases = fuzz.cases_of(0, 150, [kind])
    failures = [
        f"case {case.number}, {outcome.name}: {outcome.text}"
        for case, outcome in fuzz.run(cases, seed=1)
        if outcome.verdict == "failed"
    ]
    assert not failures
