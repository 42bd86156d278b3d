"""What the options of margins may be: annotations by which a constructor's arguments and a config are checked."""

import math
from typing import Annotated, Literal

from pydantic import Field

Scale = Annotated[float, Field(gt=0)]
AngleMargin = Annotated[float, Field(ge=0, lt=math.pi)]
AngleFactor = Annotated[float, Field(ge=1)]
CosineMargin = Annotated[float, Field(ge=0, le=2)]
Cosine = Annotated[float, Field(ge=-1, le=1)]
Norm = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
OpenShare = Annotated[float, Field(gt=0, lt=1)]
Factor = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Gradient = Literal["exact", "straight_through"]
