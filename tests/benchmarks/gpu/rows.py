"""Rows of an acceptance run on a GPU that does not exist."""

from benchmarks.gpu.conduct import Outcome

PLACES = [
    dict(decode_on="cpu", threads=4),
    dict(decode_on="cpu", threads=2),
    dict(decode_on="gpu", hw_decoder_load=0.65, threads=4),
]


def figure(name, value, unit="", **of):
    return {"kind": "figure", "name": name, "value": value, "unit": unit, **({"of": of} if of else {})}


def check(name, value, passed=True, limit="", **of):
    return {"kind": "check", "name": name, "value": value, "unit": "", "limit": limit, "passed": passed, "of": of}


def decode(slowed, cores, speeds):
    """By place of ``PLACES``, at both batch sizes."""
    rows = []
    for place, loss, used, speed in zip(PLACES, slowed, cores, speeds):
        for batch in (128, 384):
            rows += [
                figure("loader alone", speed, "images/s", batch=batch, **place),
                figure("cores used", used, batch=batch, **place),
                figure("step slowed down by", loss, "%", batch=batch, **place),
            ]
    return rows


def head(fused, triton):
    """By margin, milliseconds."""
    times = {"fused": fused, "triton": triton}
    rows = [
        figure("step of the head", value, "ms", method=method, identities=1_000_000, rate=1.0, margin=margin)
        for method, values in times.items()
        for margin, value in zip(("arcface", "curricularface"), values)
    ]
    return [*rows, figure("step of the head", 99.0, "ms", method="materialised", identities=1_000_000, rate=1.0)]


def compiled(**speedups):
    return [figure("compiled over eager", value, "x", network=network) for network, value in speedups.items()]


def outcomes(**parts):
    return [Outcome(name, "done", rows, 12.0) for name, rows in parts.items()]


def rows_of(found):
    return [{"part": outcome.part, **row} for outcome in found for row in outcome.rows]
