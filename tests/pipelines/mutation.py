"""Damage to files, as disks, networks and enemies do it."""

_WORDS = [
    0,
    1,
    0x7F,
    0xFF,
    0xFFFF,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFF,
    0xCED7230A,
    0x1FFFFFFF,
    0x3FFFFFFF,
    0x7FC00000,
    1 << 31,
    1 << 62,
]
_NUMBERS = [b"-1", b"0", b"99999999999999999999", b"1e999", b"nan", b"\0", b"\xff\xfe", b"\t", b"\n", b"9" * 400]


def mutate(content, generator):
    """One to four pieces of damage, each of a kind of its own: see ``_DAMAGE``."""
    content = bytearray(content)
    for _ in range(generator.integers(1, 5)):
        at, length = int(generator.integers(0, max(len(content), 1))), int(generator.integers(1, 40))
        _DAMAGE[generator.integers(len(_DAMAGE))](content, at, length, generator)
    return bytes(content)


def _byte(content, at, length, generator):
    content[at : at + 1] = generator.bytes(1)


def _bit(content, at, length, generator):
    content[at : at + 1] = bytes(byte ^ 1 << int(generator.integers(8)) for byte in content[at : at + 1])


def _word(content, at, length, generator):
    size = int(generator.choice([2, 4, 8]))
    word = int(generator.choice(_WORDS)) & (1 << 8 * size) - 1
    at -= at % size
    content[at : at + size] = word.to_bytes(size, str(generator.choice(["little", "big"])))


def _number(content, at, length, generator):
    content[at : at + length % 4] = _NUMBERS[generator.integers(len(_NUMBERS))]


def _cut_out(content, at, length, generator):
    del content[at : at + length]


def _cut_off(content, at, length, generator):
    del content[at:]


def _zeroed(content, at, length, generator):
    content[at : at + 16 * length] = bytes(len(content[at : at + 16 * length]))


def _repeated(content, at, length, generator):
    content[at:at] = content[at : at + length]


def _inserted(content, at, length, generator):
    content[at:at] = content[-length:]


def _swapped(content, at, length, generator):
    other = int(generator.integers(0, max(len(content), 1)))
    first, second = content[at : at + 16 * length], content[other : other + 16 * length]
    content[at : at + len(second)], content[other : other + len(first)] = second, first


_DAMAGE = [_byte, _bit, _word, _number, _cut_out, _cut_off, _zeroed, _repeated, _inserted, _swapped]
