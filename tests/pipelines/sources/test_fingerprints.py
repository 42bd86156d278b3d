"""Two data sets with the same labels have two fingerprints; one that lies elsewhere keeps its own."""

import shutil

import numpy as np
import pytest

from pipelines.common.errors import UserError
from pipelines.sources import open_source, open_sources, source
from pipelines.sources.changes import NOBODY, Changes
from tests.pipelines.photos import jpeg, write_tar


def folder(root, images):
    for name, image in images.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(image)
    return root


def listed(root, images):
    folder(root, images)
    (root / "all.txt").write_text("".join(f"{name} {name[:4]}\n" for name in images))
    return root / "all.txt"


def shard(root, images):
    root.mkdir(parents=True)
    write_tar(root / "a.tar", images)
    return root


def labels_of(images):
    return [sorted({name[:4] for name in images}).index(name[:4]) for name in images]


def parquet(root, images):
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    root.mkdir(parents=True)
    pq.write_table(pyarrow.table({"image": list(images.values()), "label": labels_of(images)}), root / "a.parquet")
    return root


def arrow(root, images):
    pyarrow = pytest.importorskip("pyarrow")
    root.mkdir(parents=True)
    table = pyarrow.table({"image": list(images.values()), "label": labels_of(images)})
    with pyarrow.ipc.new_stream(str(root / "a.arrow"), table.schema) as stream:
        stream.write_table(table)
    return root


def environment(root, images):
    lmdb = pytest.importorskip("lmdb")
    root.mkdir(parents=True)
    with lmdb.open(str(root), map_size=1 << 24) as made, made.begin(write=True) as transaction:
        for name, image in images.items():
            transaction.put(name.removesuffix(".jpg").encode(), image)
    return root


IMAGES = {f"{name}/{n}.jpg": jpeg(5 * of + n) for of, name in enumerate(("anna", "bert")) for n in range(5)}
ANOTHER_NAME = {name.replace("anna/0", "anna/9"): image for name, image in IMAGES.items()}
OTHER_PEOPLE = {name.replace("bert", "carl"): image for name, image in IMAGES.items()}
ANOTHER_IMAGE = IMAGES | {"anna/2.jpg": jpeg(77, 120)}


@pytest.mark.parametrize(
    "make, other",
    [(folder, ANOTHER_NAME), (folder, OTHER_PEOPLE), (listed, ANOTHER_NAME), (listed, OTHER_PEOPLE)]
    + [(make, ANOTHER_IMAGE) for make in (shard, parquet, arrow, environment)],
)
def test_another_set_of_the_same_labels_has_another(tmp_path, make, other):
    ours, theirs = open_source(make(tmp_path / "a", IMAGES)), open_source(make(tmp_path / "b", other))
    everything = np.arange(10)
    assert np.array_equal(ours.labels(everything), theirs.labels(everything))
    assert ours.fingerprint() != theirs.fingerprint()


@pytest.mark.parametrize("make", [folder, listed, shard, parquet, arrow, environment])
def test_it_does_not_depend_on_the_place(tmp_path, monkeypatch, make):
    path = make(tmp_path / "a", IMAGES)
    found = open_source(path).fingerprint()
    shutil.copytree(tmp_path / "a", tmp_path / "x" / "b")
    moved = tmp_path / "x" / "b" / path.relative_to(tmp_path / "a")
    assert open_source(moved).fingerprint() == found
    monkeypatch.chdir(tmp_path)
    assert open_source(moved.relative_to(tmp_path)).fingerprint() == found


def test_it_does_not_depend_on_where_absolute_names_begin(tmp_path):
    """As a list of files that each job, or each machine, has in a folder of its own."""
    found = []
    for place in ("a", "b/c"):
        folder(tmp_path / place, IMAGES)
        files = sorted((tmp_path / place).rglob("*.jpg"))
        (tmp_path / "list.txt").write_text("".join(f"{path} {path.parent.name}\n" for path in files))
        found.append(open_source(tmp_path / "list.txt").fingerprint())
    assert found[0] == found[1]
    (tmp_path / "list.txt").write_text("".join(f"{path} {path.parent.name}\n" for path in files[1:] + files[:1]))
    assert open_source(tmp_path / "list.txt").fingerprint() != found[1]


def test_names_are_taken_in_pieces(tmp_path, monkeypatch):
    whole = open_source(folder(tmp_path / "a", IMAGES)).fingerprint()
    monkeypatch.setattr(source, "_NAMES_AT_A_TIME", 3)
    assert open_source(tmp_path / "a").fingerprint() == whole


def test_names_of_any_bytes(tmp_path):
    folder(tmp_path / "a", IMAGES)
    for name in (b"\xff\xfe", b"\n", "ώμέγα".encode()):
        (tmp_path / "a" / "anna" / (name.decode(errors="surrogateescape") + ".jpg")).write_bytes(jpeg(0))
    assert 0 <= open_source(tmp_path / "a").fingerprint() < 1 << 32


def test_changes_are_refused_by_a_set_of_which_an_image_became_another(tmp_path):
    """They name images by number: the one that was wrong has another number now."""
    folder(tmp_path / "a", IMAGES)
    Changes.of(open_source(tmp_path / "a"), {1: (NOBODY, "not anna")}).save(tmp_path / "changes.txt")
    open_sources([tmp_path / "a"], [tmp_path / "changes.txt"])
    (tmp_path / "a" / "anna" / "0.jpg").rename(tmp_path / "a" / "anna" / "9.jpg")
    with pytest.raises(UserError, match=r"changes\.txt was made for other data, or another version of it"):
        open_sources([tmp_path / "a"], [tmp_path / "changes.txt"])
