"""``.bin`` sets of every make are read, and nothing else is run."""

import lzma
import pickle
import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.sources.bins import read_bin, write_bin

IMAGES = [b"\xff\xd8 first", b"\xff\xd8\x00\x80 second", b"3", b"\n4\r"]
SAME = [True, False]


def read_pickle(folder, content):
    path = folder / "set.bin"
    path.write_bytes(content)
    return read_bin(path)


def check(found):
    assert found.encoded == IMAGES
    assert (found.same.tolist(), found.same.dtype) == (SAME, np.bool_)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    "images",
    [IMAGES, [np.frombuffer(image, np.uint8) for image in IMAGES], [np.array(bytearray(image)) for image in IMAGES]],
)
@pytest.mark.parametrize("same", [SAME, list(np.array(SAME)), np.array(SAME), [1, 0], tuple(np.float32([1, 0]))])
@pytest.mark.parametrize("container", [tuple, list])
def test_python_3_pickles(tmp_path, protocol, images, same, container):
    check(read_pickle(tmp_path, pickle.dumps(container((images, same)), protocol)))


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("kind", ["i1", "u1", "<i4", ">i4", "i8", ">i8", "u2", "f2", "f4", "f8", ">f8", "O"])
def test_flags_of_any_numbers(tmp_path, protocol, kind):
    for flags in (np.array([1, 0], kind), list(np.array([1, 0], kind)), np.array([[True], [False]]).astype(kind)):
        check(read_pickle(tmp_path, pickle.dumps((IMAGES, flags), protocol)))
        with pytest.raises(ValueError, match="a flag is 2"):
            read_pickle(tmp_path, pickle.dumps((IMAGES, np.array([1, 2], kind)), protocol))


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    "images",
    [
        list(map(bytearray, IMAGES)),
        list(map(np.bytes_, IMAGES)),
        np.array(IMAGES),
        np.array(IMAGES, object),
        np.array([np.frombuffer(image, np.uint8) for image in IMAGES], object),
    ],
    ids=["bytearray", "bytes_", "array of bytes_", "array of objects", "array of arrays"],
)
def test_images_of_other_types(tmp_path, protocol, images):
    check(read_pickle(tmp_path, pickle.dumps((images, SAME), protocol)))


def test_names_of_numpy_2(tmp_path):
    content = pickle.dumps((list(map(np.array, map(bytearray, IMAGES))), list(np.array(SAME))), 2)
    for old, new in ((b"numpy.core.", b"numpy._core."), (b"numpy._core.", b"numpy.core.")):
        check(read_pickle(tmp_path, content.replace(old, new)))


def python_2_string(content):
    return b"T" + struct.pack("<i", len(content)) + content  # BINSTRING, which Python 3 does not write


def test_python_2_pickle(tmp_path):
    strings = b"".join(map(python_2_string, IMAGES))
    check(read_pickle(tmp_path, b"\x80\x02](" + strings + b"e](\x88\x89e\x86."))

    dtype = b"cnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR(K\x01(K\x00t" + dtype + b"\x89%stb"
    )
    arrays = b"".join(array % python_2_string(image) for image in IMAGES)
    check(read_pickle(tmp_path, b"\x80\x02](" + arrays + b"e](\x88\x89e\x86."))


def test_written_sets_are_read_by_insightface_and_here(tmp_path):
    path = tmp_path / "set.bin"
    write_bin(path, [np.frombuffer(IMAGES[0], np.uint8), *IMAGES[1:]], np.array(SAME))
    check(read_bin(path))
    with path.open("rb") as file:
        bins, issame_list = pickle.load(file, encoding="bytes")
    assert bins == IMAGES and all(type(image) is bytes for image in bins)
    assert issame_list == SAME and all(type(flag) is bool for flag in issame_list)
    with pytest.raises(ValueError, match="3 images for 2 pairs"):
        write_bin(path, IMAGES[:3], np.array(SAME))
    check(read_bin(path))
    assert list(tmp_path.iterdir()) == [path]


class Calls:
    def __init__(self, function, *args):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


def test_code_in_a_pickle_is_refused_and_not_run(tmp_path):
    trap = tmp_path / "trap"
    for protocol in range(6):
        for attack in (Calls(exec, f"open({str(trap)!r}, 'w')"), Calls(eval, "1"), Calls(getattr, "", "join")):
            for content in ((IMAGES, [attack]), (attack, SAME), attack):
                with pytest.raises(ValueError, match=r"set\.bin .* asks for (builtins|__builtin__)\."):
                    read_pickle(tmp_path, pickle.dumps(content, protocol))
    assert not trap.exists()
    trusted = b"numpy.core.multiarray\nfromfile", b"pipelines.sources.bins\nread_bin"
    for name in (b"os\nsystem", b"numpy\nload", *trusted):
        with pytest.raises(ValueError, match="it asks for"):
            read_pickle(tmp_path, b"\x80\x02c" + name + b"\n.")
    # What numpy makes of an element type of one's own choosing is out of reach.
    for content in (np.array([1.5]), np.array([b"image"], object), np.zeros(2, "u1,O"), np.array(["a"])):
        with pytest.raises(ValueError, match="elements of type"):
            read_pickle(tmp_path, pickle.dumps(([content] * 4, SAME)))
    with pytest.raises(ValueError, match=r"asks for builtins\.object"):
        read_pickle(tmp_path, pickle.dumps((np.array([object()] * 4), SAME)))
    with pytest.raises(ValueError, match="codec 'rot13'"):
        read_pickle(
            tmp_path, pickle.dumps(IMAGES, 2).replace(b"latin1", b"rot13").replace(b"\6\0\0\0rot", b"\5\0\0\0rot")
        )


def test_what_is_no_set_is_refused(tmp_path):
    good = pickle.dumps((IMAGES, SAME), 4)
    for content, reason in (
        (b"", "damaged"),
        (b"\xff\xd8\xff\xe0 an image", "damaged"),
        (good[:-20], "damaged"),
        (pickle.dumps((IMAGES, SAME, 1)), "damaged or another kind"),
        (pickle.dumps((["text"] * 4, SAME)), "type str, not bytes"),
        (pickle.dumps(([b""] * 4, SAME)), "an image is empty"),
        (pickle.dumps((IMAGES[:3], SAME)), "3 images for 2 pairs"),
        (pickle.dumps(([], [])), "no pairs"),
        (pickle.dumps((IMAGES, [True, 2])), "a flag is 2"),
        (pickle.dumps((IMAGES, ["yes", "no"])), "a flag is 'yes'"),
    ):
        with pytest.raises(ValueError, match=rf"set\.bin .*{reason}"):
            read_pickle(tmp_path, content)
    with pytest.raises(FileNotFoundError):
        read_bin(tmp_path / "missing.bin")


def test_a_small_file_cannot_ask_for_much_memory(tmp_path):
    memo_index = b"\x80\x04]r" + struct.pack("<I", 1 << 22) + b"."
    length = b"\x80\x04\x8e" + struct.pack("<Q", 1 << 26) + b"."
    bytearray_length = b"\x80\x05\x96" + struct.pack("<Q", 1 << 26) + b"abc"
    for content in (memo_index, length, bytearray_length, b"\x80\x04cbuiltins\nbytearray\nJ\0\0\0\x04\x85R."):
        tracemalloc.start()
        with pytest.raises(ValueError, match=r"set\.bin"):
            read_pickle(tmp_path, content)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 1 << 20


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_bytes_are_read_or_refused(tmp_path_factory, data):
    arrays = [np.frombuffer(image, np.uint8) for image in IMAGES]
    content = bytearray(pickle.dumps((arrays, list(np.array(SAME))), data.draw(st.integers(0, 5))))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "fuzz.bin"
    path.write_bytes(content[: data.draw(st.integers(1, len(content)))])
    try:
        read_bin(path)
    except ValueError as error:
        assert "fuzz.bin" in str(error)


def test_real_sets(shared):
    lfw = read_bin(shared / "faces" / "lfw.bin")
    assert (len(lfw.encoded), len(lfw.same), int(lfw.same.sum())) == (12000, 6000, 3000)
    assert all(image[:2] == b"\xff\xd8" for image in lfw.encoded)
    assert len(read_bin(shared / "reference" / "verification" / "toy.bin").encoded) == 120
    assert read_bin(shared / "faces" / "recordio" / "validation.bin").same.all()


def test_packed_sets_are_read(tmp_path):
    """In one stream, or in several with padding between them, as xz joins them."""
    content = pickle.dumps((IMAGES, SAME), 2)
    for packed in (lzma.compress(content), lzma.compress(content[:40]) + bytes(8) + lzma.compress(content[40:])):
        (tmp_path / "hadrian.xz").write_bytes(packed)
        check(read_bin(tmp_path / "hadrian.xz"))


@pytest.mark.parametrize(
    "content, message",
    [
        (lzma.compress(pickle.dumps((IMAGES, SAME)))[:-20], "it is cut off"),
        (lzma.compress(bytes(50_000_000)), "it unpacks to more than 16 times its size"),
        (pickle.dumps((IMAGES, SAME)), "is no .xz file"),
        (lzma.compress(pickle.dumps((IMAGES, print))), "asks for builtins.print"),
    ],
)
def test_packed_files_that_are_no_set_are_refused(tmp_path, content, message):
    (tmp_path / "a.xz").write_bytes(content)
    tracemalloc.start()
    with pytest.raises(ValueError, match=f"a.xz.*{message}"):
        read_bin(tmp_path / "a.xz")
    assert tracemalloc.get_traced_memory()[1] < 20_000_000
    tracemalloc.stop()
