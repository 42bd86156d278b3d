"""Locks on files, which end with the process that holds them, however it ends."""

import errno
import fcntl
from pathlib import Path

from pipelines.common.log import get_logger

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # NFS without lockd, Lustre without flock

logger = get_logger(__name__)


def take_lock(descriptor: int, folder: Path) -> bool:
    """Take the lock of an open file, until it is closed. Returns whether no other process holds it.

    On a file system without locks it is as if nobody did; a warning names ``folder``, which the lock is for.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        logger.warning("%s lies on a file system without locks: a second writer there would not be noticed", folder)
    return True
