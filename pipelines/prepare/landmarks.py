"""The landmarks of a data set, taken along to one that is made of it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipelines.common.errors import UserError
from pipelines.common.files import load_array
from pipelines.common.log import get_logger
from pipelines.loading.landmarks import LandmarkFile

FILE = "landmarks.npy"

logger = get_logger(__name__)


def taken_along(data: Sequence[str | Path], images: int, form: str = "recordio") -> np.ndarray | None:
    """Of the one set at ``data``, a folder or a ``.rec`` with ``images``, float32 (images, 5, 2); None without any.

    A warning tells of landmarks that are left out: not written in that ``form``, of one set among several, or not of
    as many images.
    """
    beside = [(path if path.is_dir() else path.parent) / FILE for path in map(Path, data)]
    found = [file for file in beside if file.is_file()]
    if not found:
        return None
    if len(data) > 1:
        reason = "of one of several data sets"
    elif not (Path(data[0]).is_dir() or Path(data[0]).suffix == ".rec"):
        reason = "only a folder's or a .rec file's images are surely in its order"
    elif form != "recordio":
        reason = "only RecordIO has them beside it"
    else:
        try:
            LandmarkFile(found[0], images)
            return load_array(found[0])
        except UserError as error:
            reason = str(error)
    logger.warning("%s is left out: %s", found[0], reason)
    return None
