"""Arrow files in the form of Hugging Face's data sets, as pyarrow writes and reads them."""

import json

import numpy as np
import pytest

from pipelines.sources import open_source
from pipelines.sources.ranges import RangeReader
from tests.pipelines.photos import jpeg

pyarrow = pytest.importorskip("pyarrow")

COUNT = 11
IMAGES = [jpeg(n, 16 + 8 * n) for n in range(COUNT)]
LABELS = [2, 0, 2, 1, 1, 0, 2, 2, 0, 1, 2]
NAMES = {"label": {"names": ["ann", "ben", "carl", "dora"], "_type": "ClassLabel"}}


def table(images=IMAGES, labels=LABELS, features=NAMES, kind=None, before=False):
    """With other columns before and behind, whose buffers are not to be taken for ours."""
    kind = kind or pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})
    rows = [{"bytes": image, "path": "x"} for image in images] if pyarrow.types.is_struct(kind) else images
    columns = {"image": pyarrow.array(rows, kind), "label": labels}
    others = {
        "boxes": [[1.0] * (n % 3) for n in range(len(images))],
        "sex": pyarrow.array([n % 2 == 0 or None for n in range(len(images))], pyarrow.bool_()),
        "points": pyarrow.array([[0.5, 1.5]] * len(images), pyarrow.list_(pyarrow.float32(), 2)),
        "nothing": pyarrow.nulls(len(images)),
        "where": [{"a": n, "b": {"c": "x" * n}} for n in range(len(images))],
    }
    content = {**others, **columns} if before else {**columns, **others}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    return pyarrow.table(content).replace_schema_metadata(metadata)


def write(path, content, rows=4, form=pyarrow.ipc.new_stream, **options):
    with form(str(path), content.schema, **options) as writer:
        writer.write_table(content, max_chunksize=rows)
    return path


def check(source, images=IMAGES, labels=LABELS):
    order = np.random.default_rng(0).permutation(len(images))
    read, own = source.read(order)
    assert [image.tobytes() for image in read] == [images[n] for n in order]
    assert own.tolist() == [labels[n] for n in order] == source.labels(order).tolist()


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("form", [pyarrow.ipc.new_stream, pyarrow.ipc.new_file])
@pytest.mark.parametrize("kind", [None, pyarrow.binary(), pyarrow.large_binary()])
def test_images_and_labels(tmp_path, kind, form, before):
    source = open_source(write(tmp_path / "a.arrow", table(kind=kind, before=before), form=form))
    check(source)
    assert (len(source), source.num_classes, source.identity(3)) == (COUNT, 4, "dora")
    assert source.describe(10) == "a.arrow row 10, label 2"


def test_labels_may_be_texts(tmp_path):
    source = open_source(write(tmp_path / "a.arrow", table(labels=["c", "a", "b"] * 3 + ["a", "c"], features={})))
    assert [source.identity(label) for label in source.labels(np.arange(4)).tolist()] == ["c", "a", "b", "c"]


def save(folder, shards=2):
    """As ``save_to_disk``; the order of the files is that of state.json."""
    folder.mkdir(parents=True)
    names = [f"data-{n:05d}-of-{shards:05d}.arrow" for n in range(shards)]
    for number, name in enumerate(names):
        write(folder / name, table().slice(number * 6, 6), rows=1000)
    (folder / "dataset_info.json").write_text("{}")
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))


def test_a_saved_set(tmp_path):
    save(tmp_path / "saved")
    check(open_source(tmp_path / "saved"))
    (tmp_path / "saved" / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(ValueError, match="data-00001-of-00002.arrow is missing: copy .*saved again"):
        open_source(tmp_path / "saved")


def test_saved_splits(tmp_path):
    for split in ("train", "test"):
        save(tmp_path / split)
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["test", "train"]}')
    assert open_source(tmp_path).describe(0).startswith("data-00000")
    check(open_source(tmp_path))
    check(open_source(tmp_path / "test"))
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["test", "dev"]}')
    with pytest.raises(ValueError, match="has the splits test, dev: name the folder of one"):
        open_source(tmp_path)
    (tmp_path / "dataset_dict.json").write_text('{"splits": 3}')
    with pytest.raises(ValueError, match="is no sound folder of save_to_disk"):
        open_source(tmp_path)


def test_an_image_without_bytes_is_named(tmp_path):
    source = open_source(write(tmp_path / "a.arrow", table(images=[*IMAGES[:6], None, b"", *IMAGES[8:]])))
    assert [image.tobytes() for image in source.read(np.array([5, 8]))[0]] == [IMAGES[5], IMAGES[8]]
    for row in (6, 7):
        with pytest.raises(ValueError, match=rf"a\.arrow row {row}, label 2 has no bytes"):
            source.read(np.array([row]))


def test_what_is_none_is_told(tmp_path):
    whole = write(tmp_path / "a.arrow", table()).read_bytes()
    for content, said in [
        (whole[:-8], "is cut short: the mark of its end is missing"),
        (whole[: len(whole) // 2], "is cut short"),
        (b"", "is cut short"),
        (b"no arrow at all", "is no sound Arrow file: no message begins at byte 0"),
        (whole[-8:], "is no sound Arrow file: it has no schema"),
    ]:
        (tmp_path / "a.arrow").write_bytes(content)
        with pytest.raises(ValueError, match=rf"a\.arrow {said}"):
            open_source(tmp_path / "a.arrow")
    compressed = pyarrow.ipc.IpcWriteOptions(compression="lz4")
    with pytest.raises(ValueError, match="a.arrow is no sound Arrow file"):
        open_source(write(tmp_path / "a.arrow", table(), options=compressed))
    with pytest.raises(ValueError, match="holds no images"):
        open_source(write(tmp_path / "a.arrow", table().slice(0, 0)))


def test_the_body_of_a_large_file_is_not_read(tmp_path, monkeypatch):
    """Opening costs the labels and offsets; what lies between is neither read nor kept."""
    images = [bytes(200_000) for _ in range(20)]
    path = write(tmp_path / "a.arrow", table(images=images, labels=list(range(20)), features={}))
    asked, read = [], RangeReader.read
    monkeypatch.setattr(
        RangeReader, "read", lambda self, begin, length: asked.append(length) or read(self, begin, length)
    )
    open_source(path)
    assert sum(asked) < 40_000 < path.stat().st_size / 50
