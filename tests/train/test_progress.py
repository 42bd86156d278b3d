"""What a run prints and keeps."""

import json

from rich.table import Table

from train.progress import RunLog


def test_names_print_as_they_are(tmp_path, capsys):
    name = "a [bold] :smile: b"
    log = RunLog(tmp_path, 10, 0, tensorboard=False)
    log.say(f"verified {name}: 50%")
    log.step({"step": 1, "loss": 1.0}, f"step {name}")
    table = Table("set", name)
    table.add_row(name, "1")
    log.say(table)
    log.close()
    assert capsys.readouterr().out.count(name) == 4
    assert json.loads((tmp_path / "log.jsonl").read_text()) == {"step": 1, "loss": 1.0}
