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


def test_only_whole_lines_up_to_the_step_are_kept(tmp_path):
    """A disk that was full, or a kill, leaves anything behind."""
    good = [{"step": 1, "loss": 1.0}, {"step": 2, "verify_seconds": 1.0}, {"step": 4, "loss": 0.5}]
    again = [{"step": 4, "verify_seconds": 1.0}, {"step": 5, "loss": 0.4}]
    damaged = [b"3", b"null", b'{"step": "4", "loss": 1}', b'{"loss": 1}', b"\xff\x00", b'{"step": 4, "lo']
    lines = [*(json.dumps(record).encode() for record in good + again), *damaged]
    (tmp_path / "log.jsonl").write_bytes(b"\n".join(lines))
    RunLog(tmp_path, 10, 4, tensorboard=False).close()
    assert [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()] == good
