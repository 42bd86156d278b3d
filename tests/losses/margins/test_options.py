"""What a margin's options may be is told alike by its constructor and by a config, and no margin takes nonsense."""

import inspect
import math

import pytest

from losses import MARGINS, Margin, create_margin
from losses.margins.options import Scale
from pipelines.common.errors import UserError
from train.config import validated

NONSENSE = [
    ("sphereface2", "t", 4, "must be 1, 2 or 3, not 4"),
    ("sphereface2", "balance", 1, "must be less than 1, not 1"),
    ("mv_softmax", "kind", "cos", "must be 'am' or 'arc', not 'cos'"),
    ("mv_softmax", "t", -1, "must be greater than or equal to 0, not -1"),
    ("elasticface", "kind", "am", "must be 'arc' or 'cos', not 'am'"),
    ("broadface", "queue_size", 0, "must be greater than or equal to 1, not 0"),
    ("sphereface_r1", "gradient", "none", "must be 'exact' or 'straight_through', not 'none'"),
    ("combined", "m1", 0.9, "must be greater than or equal to 1, not 0.9"),
    ("arcface", "s", 0, "must be greater than 0, not 0"),
    ("arcface", "m", math.pi, "must be less than 3.141592653589793, not 3.141592653589793"),
    ("cosface", "m", "much", "must be a valid number, not 'much'"),
    ("cosface", "interclass_filter", 1.5, "must be less than or equal to 1, not 1.5"),
    ("curricularface", "rate", math.nan, "must be a finite number, not nan"),
]


@pytest.mark.parametrize("name, option, value, wrong", NONSENSE)
def test_both_ways_say_the_same(name, option, value, wrong):
    with pytest.raises(UserError) as of_constructor:
        create_margin(name, **{option: value})
    assert str(of_constructor.value) == f"{MARGINS[name].__name__}: {option} {wrong}"
    tree = {"data": {"train": "x"}, "output": "y", "model": {"name": "mbf"}, "head": {"margin": name, option: value}}
    with pytest.raises(UserError) as of_config:
        validated(tree, "a.yaml")
    said = str(of_config.value).removeprefix(f"a.yaml: head.{option}: ")
    assert said.removesuffix(", unable to parse string as a number, not 'much'") in (wrong, wrong.split(",")[0])


@pytest.mark.parametrize("name", MARGINS)
def test_no_number_may_be_anything(name):
    numbers = [
        p.name for p in inspect.signature(MARGINS[name]).parameters.values() if isinstance(p.default, float | int)
    ]
    assert numbers or name == "scf"
    for option in numbers:
        for value in (math.inf, "1", [1.0]):
            with pytest.raises(UserError, match=f": {option} must be"):
                create_margin(name, **{option: value})


def test_a_margin_of_ones_own_is_checked_too():
    class Own(Margin):
        def __init__(self, s: Scale = 64.0, anything=None, *rest: int, **options: float) -> None:
            super().__init__(s, **options)

    assert Own(8, "a", 1).s == 8 and Own(interclass_filter=0.5).interclass_filter == 0.5
    with pytest.raises(UserError, match="Own: s must be greater than 0, not -1"):
        Own(-1)
    with pytest.raises(UserError, match="Own: interclass_filter must be less"):
        Own(interclass_filter=2)
