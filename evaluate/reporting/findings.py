"""What ``overlap.json`` and ``labels.json`` hold: what is found in data sets, not of a model."""

from typing import Literal

from pydantic import BaseModel, FiniteFloat

from evaluate.reporting.fields import Count, Number, Rate
from evaluate.reporting.schema import File, FileName


class SharedIdentity(BaseModel):
    """An identity of each set, and the cosine of their mean embeddings."""

    first: FileName
    second: FileName
    cosine: FiniteFloat


class Overlap(File):
    """``overlap.json``: the identities that two sets share, the most similar first."""

    threshold: FiniteFloat
    shared: list[SharedIdentity]


class Cut(BaseModel):
    """Where strangers part from the same person; see `evaluate.protocols.two_groups`."""

    threshold: FiniteFloat
    share: Rate
    recall: Rate


class LabelError(BaseModel):
    """An image that should have another label.

    Attributes:
        image, label, identity: its number in the data set, and whom it is taken for now.
        where: where it lies.
        error: ``nobody``: it is like nobody and left out; ``moved``: to the identity ``other``; ``new``: a further
            person under the label, a class of its own; ``merged``: the label's person is ``other``.
        to: the new label; -1 where it is left out.
        likeness: its cosine to the others of its label; null if there are none.
        other, cosine: who is most like it, or its group, under another label.
    """

    image: Count
    label: Count
    identity: FileName
    where: FileName
    error: Literal["nobody", "moved", "new", "merged"]
    to: int
    likeness: Number
    other: FileName
    cosine: FiniteFloat


class Labels(File):
    """``labels.json``: what is wrong with a set's labels, and by which thresholds, cosines."""

    images: Count
    identities: Count
    stray: Cut
    move: FiniteFloat
    merge: FiniteFloat
    errors: list[LabelError]
