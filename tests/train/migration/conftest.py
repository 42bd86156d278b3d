"""The command, called in this process."""

import sys

import pytest
import torch

from train.migrate import main


@pytest.fixture
def migrate(monkeypatch, capsys):
    """``migrate(*arguments)`` runs the command; returns what it prints."""

    def call(*arguments):
        threads = torch.get_num_threads()  # a run settles them for itself
        monkeypatch.setattr(sys, "argv", ["migrate", *map(str, arguments)])
        try:
            main()
        finally:
            torch.set_num_threads(threads)
        return capsys.readouterr().out

    return call
