"""How much fits: the largest batch and the most identities."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache

from train.config import Config
from train.planning.step import USABLE, Setting, StepTrace, chosen_tile, trace_classifier, trace_step

_MOST = 2**31  # identities: more do not occur
_MANY_TILES = 12


def fits(trace: StepTrace, setting: Setting) -> bool:
    """Whether a step fits into the memory that a rank may use."""
    return trace.memory.total <= USABLE * setting.memory


def largest_batch(config: Config, setting: Setting) -> int:
    """The largest batch a rank whose step fits; 0 where not even one of 2 does.

    All other ranks take as many images, so the head's rows grow with it.
    """

    def needed(batch: int) -> int:
        return trace_step(config.with_values(data={"batch_size": batch}), setting).memory.total

    return _largest(needed, int(USABLE * setting.memory), 2, config.data.batch_size)


def most_identities(config: Config, setting: Setting, trace: StepTrace) -> int:
    """The most identities, over all ranks, with which the step of ``trace`` fits; 0 where it does not with 2."""

    @cache
    def traced(identities: int) -> int:
        head = trace_classifier(config, replace(setting, identities=identities))
        return replace(trace, head=head).memory.total

    # With more tiles than these each takes as much as the last, and tracing them all would take minutes.
    tile = chosen_tile(config, replace(setting, identities=_MOST))
    far = setting.ranks * round(_MANY_TILES * tile / config.head.highest_sample_rate)

    def needed(identities: int) -> int:
        if identities <= far:
            return traced(identities)
        return traced(far) + (traced(far) - traced(far // 2)) * (identities - far) // (far - far // 2)

    return min(_MOST, _largest(needed, int(USABLE * setting.memory), 2, setting.identities))


def _largest(needed: Callable[[int], int], limit: int, least: int, guess: int) -> int:
    """The largest n from ``least`` on with ``needed(n) <= limit``, or 0.

    ``needed`` never falls and grows nearly evenly, so each try is where a straight line through the last two says.
    """
    low, at_low = least, needed(least)
    if at_low > limit:
        return 0
    high, at_high = max(guess, least + 1), needed(max(guess, least + 1))
    while at_high <= limit:
        if high >= _MOST:
            return high
        slope = max(1e-9, (at_high - at_low) / (high - low))
        low, at_low, high = high, at_high, min(_MOST, high + max(1, round(1.02 * (limit - at_high) / slope)))
        at_high = needed(high)
    while high - low > 1:
        middle = low + round((limit - at_low) / (at_high - at_low) * (high - low))
        middle = min(max(middle, low + 1), high - 1)
        at_middle = needed(middle)
        if at_middle <= limit:
            low, at_low = middle, at_middle
        else:
            high, at_high = middle, at_middle
    return low
