"""Tables of errors by group: what of several models stands out."""

import re

import numpy as np
import pytest

from evaluate.breakdowns.pairs import PairGroups, Pairs, breakdown
from evaluate.reporting.breakdown_sections import breakdowns
from evaluate.reporting.page import Page


def by_group(pairs, seed):
    """Errors of two groups on so many pairs of people who are in one pair each, by scores at random."""
    rng = np.random.default_rng(seed)
    same = np.arange(pairs) % 2 == 0
    first = np.arange(pairs) * 2
    people, groups = (first, first + ~same), PairGroups(("x", "y"), np.arange(pairs) // 2 % 2)
    return breakdown(Pairs(rng.normal(same, 0.5), same, people, {0.01: 1.1}, "pairs", groups=groups))


@pytest.mark.parametrize(("pairs", "marked"), [(400, True), (500, False)])
def test_none_is_marked_where_groups_have_other_pairs(tmp_path, monkeypatch, pairs, marked):
    monkeypatch.setattr(Page, "figures", lambda *_: None)
    page = Page(tmp_path, {"a": "#000", "b": "#fff"})
    breakdowns(page, "RFW", {"a": by_group(400, 0), "b": by_group(pairs, 1)})
    tables = [part for part in page.parts if re.search("<th>F(N)?MR</th>", part)]
    assert len(tables) == 2 and all((table.count('<td class="best">') >= 2) == marked for table in tables)
    assert marked or not any('<td class="best">' in table for table in tables)
