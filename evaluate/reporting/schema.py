"""What ``results.json`` holds.

The commands that write it build these classes, and what reads the files checks them by these.

Rates are fractions, and null where they are not defined. Files may hold more than is written here; what only newer
commands write may be missing.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, FiniteFloat, model_validator

from evaluate.reporting.breakdowns import ByFmr
from evaluate.reporting.fields import Count, Curve, Lengths, Number, Rate, RateKey
from evaluate.reporting.uncertainty import Interval, Uncertain

FORMAT = 1  # of the files that are written; files from before it was written count as 0
IJB_FAR, MEGAFACE_FAR = "0.0001", "1e-06"  # the FARs whose figures a report puts first, as keys


def printable(text: str) -> str:
    """Bytes of a file's name that are no text, which Python keeps as surrogates, become �."""
    return text.encode(errors="surrogateescape").decode(errors="replace")


def _text(value: object) -> object:
    if not isinstance(value, str) or "\0" in value:
        raise ValueError("a text is expected")
    return value


_Far = Annotated[float, Field(gt=0, le=1), BeforeValidator(float)]  # a key in JSON is a text
_PRINTABLE = BeforeValidator(lambda text: printable(text) if isinstance(text, str) else text)
Name = Annotated[str, _PRINTABLE, Field(min_length=1)]
FileName = Annotated[Any, AfterValidator(_text)]  # a str of any bytes, which pydantic's own would refuse
Pair = Field(min_length=2, max_length=2)
PairKind = Literal["genuine", "impostor"]


def _with_key(needed: str) -> AfterValidator:
    """Figures by a rate, among which is the one that a report puts first."""

    def check(figures: dict[str, object]) -> dict[str, object]:
        if needed not in figures:
            raise ValueError(f"'{needed}' is missing")
        return figures

    return AfterValidator(check)


def _counts(figures: dict[str, object]) -> dict[str, object]:
    for key in figures:
        if not re.fullmatch("[1-9][0-9]{0,17}", key):
            raise ValueError(f"{key!r} is no count")
    return figures


class Roc(Lengths):
    far: Curve
    tar: Curve


class Det(Lengths):
    fpir: Curve
    fnir: Curve


class Histogram(Lengths):
    edges: Annotated[Curve, Field(min_length=2)]
    genuine: list[FiniteFloat]
    impostor: list[FiniteFloat]


class SetFigures(Uncertain):
    """The figures of a verification set; see `evaluate.protocols.folds.VerificationResult`.

    There are intervals of ``accuracy`` and ``val``.
    """

    pairs: Count | None = None
    accuracy: Rate | None
    std: FiniteFloat | None
    val: Number = None
    val_std: Number = None
    far: Number = None
    threshold: FiniteFloat | None


class VerificationSet(SetFigures):
    """A verification set with what a report draws.

    ``band``: the ROC's 95 % intervals of TAR (low, high) by FAR; ``worst``: a picture in the results' folder.
    """

    folds: list[FiniteFloat] | None = None
    roc: Roc
    band: dict[_Far, Interval] = {}
    histogram: Histogram
    worst: FileName | None = None
    by: ByFmr | None = None


class HardPair(BaseModel):
    """Two templates that are told apart, or taken for one person, wrongly; ``images`` are paths of some of each."""

    templates: Annotated[list[int], Pair]
    score: FiniteFloat
    images: Annotated[list[list[FileName]], Pair] = [[], []]


class OneToOne(Uncertain):
    """IJB 1:1; ``tar``, its intervals, ``far`` (which is really met) and ``threshold`` by the FAR that is asked for."""

    tar: Annotated[dict[RateKey, Rate | None], _with_key(IJB_FAR)]
    far: dict[RateKey, Number] | None = None
    threshold: Annotated[dict[RateKey, Number], _with_key(IJB_FAR)]
    rule: str | None = None
    genuine: Count
    impostor: Count
    roc: Roc
    histogram: Histogram
    hardest: dict[PairKind, list[HardPair]]
    by: ByFmr | None = None


class Identification(Uncertain):
    """Rates of mates among the first k entries, and TPIR by the FPIR that is asked for; intervals by either."""

    rank1: Rate | None
    rank5: Rate | None = None
    rank10: Rate | None = None
    tpir: dict[RateKey, Rate | None]

    @property
    def ranks(self) -> dict[str, float | None]:
        return {"rank1": self.rank1, "rank5": self.rank5, "rank10": self.rank10}

    @property
    def rates(self) -> dict[str, float | None]:
        """All figures, as ``interval`` names them."""
        return self.ranks | self.tpir


class Joint(Identification):
    threshold: dict[RateKey, Number] | None = None
    cmc: Curve


class OpenSet(Identification):
    galleries: dict[str, Identification] | None = None
    cmc: Curve
    det: Det


class OneToMany(BaseModel):
    """IJB 1:N; see `evaluate.protocols.identification`."""

    joint: Joint
    open_set: OpenSet


class Noises(BaseModel):
    """How many images a list of noises names, and how many of them there are."""

    listed: Count
    found: Count


class MegaFace(Uncertain):
    """``rank1`` by the number of distractors, ``tar`` and ``threshold`` by FAR; intervals by either."""

    probes: Count
    distractors: Count
    searches: Count | None = None
    rank1: Annotated[dict[str, Rate], Field(min_length=1), AfterValidator(_counts)]
    tar: Annotated[dict[RateKey, Rate | None], _with_key(MEGAFACE_FAR)]
    threshold: dict[RateKey, Number] | None = None
    roc: Roc
    noises: dict[str, Noises] | None = None

    @property
    def searched(self) -> tuple[int, ...]:
        return (self.distractors,)


class TinyFace(Uncertain):
    """TinyFace's closed set: how many images of each kind there are, and ranks."""

    probes: Count
    mates: Count
    distractors: Count
    rank1: Rate
    rank5: Rate
    rank20: Rate

    @property
    def searched(self) -> tuple[int, ...]:
        return self.mates, self.distractors

    @property
    def rates(self) -> dict[str, float | None]:
        """All figures, as ``interval`` names them."""
        return {"rank1": self.rank1, "rank5": self.rank5, "rank20": self.rank20}


class Rates(Uncertain):
    """What any protocol gives: ``rates`` by what they are called, the first put first, and a ``text`` that explains."""

    text: str = ""
    rates: Annotated[dict[Name, Rate | None], Field(min_length=1)]


class Confusion(BaseModel):
    """Two images that are alike, or unlike, though they should not be; ``people`` whom they show, ``images`` paths."""

    people: Annotated[list[FileName], Pair]
    images: Annotated[list[FileName], Pair]
    score: FiniteFloat


class Thresholds(Uncertain):
    """``threshold``, a cosine that is to be exceeded, by the wanted rate of false accepts, and its 95 % interval.

    The interval is null where too few strangers exceed the threshold to tell one. ``left_out``: photographs that are in
    no figure, as no face was found in them, or in none of their person's in the gallery. ``confusions`` are by title,
    ``worst`` is their picture in the results' folder.
    """

    threshold: dict[RateKey, FiniteFloat]
    threshold_interval: dict[RateKey, Interval | None]
    left_out: Count = 0
    confusions: dict[str, list[Confusion]]
    worst: FileName | None = None

    @model_validator(mode="after")
    def _known(self) -> "Thresholds":
        if lost := sorted(self.threshold.keys() - self.threshold_interval.keys()):
            raise ValueError(f"threshold_interval lacks {', '.join(lost)}")
        return self


class OwnPairs(Thresholds):
    """All pairs of one's own images; ``tar`` and ``far``, the one really met, by the wanted FAR."""

    threshold: Annotated[dict[RateKey, FiniteFloat], Field(min_length=1)]
    images: Count
    people: Count
    genuine: Count
    impostor: Count
    tar: Annotated[dict[RateKey, Rate], Field(min_length=1)]
    far: dict[RateKey, Rate]
    roc: Roc
    histogram: Histogram


class OwnGallery(Thresholds, Identification):
    """One's own gallery searched by its people's probes and, for ``tpir`` by FPIR, by unknown ones."""

    gallery: Count
    people: Count
    probes: Count
    unknown: Count
    cmc: Curve
    det: Det | None = None

    @property
    def searched(self) -> tuple[int, ...]:
        return self.people, self.gallery


class Settings(BaseModel):
    """How IJB templates were made."""

    views: Count
    flip: str
    norm: str
    detector_score: bool


class File(BaseModel):
    """``input`` says which images the network took."""

    format: Count = 0
    input: str | None = None

    @model_validator(mode="after")
    def _known(self) -> "File":
        if self.format > FORMAT:
            raise ValueError(f"its format is {self.format}, and this version of Facemill reads up to {FORMAT}")
        return self


class Results(File):
    """``results.json`` of a model: figures of one IJB target, of verification sets by name, other sets, own people."""

    name: Name
    target: Literal["IJBB", "IJBC"] | None = None
    settings: Settings | None = None
    verification: OneToOne | None = None
    identification: OneToMany | None = None
    flip: bool | None = None  # of the verification sets
    sets: Annotated[dict[Name, VerificationSet], Field(min_length=1)] | None = None
    rfw: ByFmr | None = None  # its four groups at one threshold
    megaface: MegaFace | None = None
    tinyface: TinyFace | None = None
    ijbs: Annotated[dict[str, Identification], Field(min_length=1)] | None = None  # by pairing
    own_pairs: OwnPairs | None = None
    own_gallery: OwnGallery | None = None
    protocols: Annotated[dict[Name, Rates], Field(min_length=1)] | None = None  # others, by their names

    @model_validator(mode="after")
    def _any(self) -> "Results":
        if (self.verification or self.identification) and not self.target:
            raise ValueError("target is missing: IJBB or IJBC")
        own = "own_pairs", "own_gallery"
        kinds = "verification", "identification", "sets", "megaface", "tinyface", "ijbs", *own, "protocols"
        if not any(getattr(self, kind) for kind in kinds):
            raise ValueError(f"there is neither {', '.join(kinds[:-1])} nor {kinds[-1]}")
        return self
