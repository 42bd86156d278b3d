"""Loggers for lines in which names of files stand."""

import logging

from pipelines.common.errors import escaped


def get_logger(name: str) -> logging.Logger:
    """The logger ``name``, with line breaks and escape codes in its messages as Python writes them.

    A file's name may hold any of them, and a terminal would obey.
    """
    logger = logging.getLogger(name)
    logger.addFilter(_escape)
    return logger


def _escape(record: logging.LogRecord) -> bool:
    record.msg, record.args = escaped(record.getMessage()), ()
    return True
