"""Names of files in what is logged."""

import json

from pipelines.loading.loader import Loader
from pipelines.sources import open_source
from tests.pipelines.photos import write_folder

NAME = "two\nlines \x1b[31mred\x9b\u202e"
SHOWN = r"two\nlines \x1b[31mred\x9b\u202e"


def test_names_with_line_breaks_and_escape_codes_are_shown_as_python_writes_them(tmp_path, caplog):
    write_folder(tmp_path, {"a": 4, NAME: 4})
    (tmp_path / NAME / "0.jpg").write_bytes(b"no image")
    (tmp_path / "a" / f"1.{NAME}").write_bytes(b"left out")
    loader = Loader(
        open_source(tmp_path), batch_size=9, seed=0, max_bad_fraction=0.5, quarantine=tmp_path / "bad.jsonl"
    )
    next(loader)
    loader.close()
    told = [message for message in caplog.messages if "a bad image is replaced" in message]
    assert len(told) == 1 and f"{SHOWN}/0.jpg" in told[0]
    assert any("left out" in message and SHOWN in message for message in caplog.messages)
    assert all(message.isprintable() for message in caplog.messages)
    assert NAME in json.loads((tmp_path / "bad.jsonl").read_text())["image"]
