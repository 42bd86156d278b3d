"""What tests of RecordIO share."""

import pytest

from benchmarks.mxnet_compat import import_mxnet


@pytest.fixture(scope="module")
def mxnet():
    try:
        return import_mxnet()
    except ValueError as error:
        pytest.skip(str(error))
