"""Damage to files, as disks, networks and enemies do it."""


def mutate(content, generator):
    """Bytes changed, words replaced by telling ones, pieces cut out, repeated or put elsewhere; the end cut off."""
    content = bytearray(content)
    for _ in range(generator.integers(1, 5)):
        at, length = generator.integers(0, max(len(content), 1)), int(generator.integers(1, 40))
        match generator.integers(6):
            case 0:
                content[at : at + 1] = generator.bytes(1)
            case 1:
                word = generator.choice([0, 1, 0x7FFFFFFF, 0xFFFFFFFF, 0xCED7230A, 0x1FFFFFFF, 0x3FFFFFFF, 0x7FC00000])
                content[at & ~3 : (at & ~3) + 4] = int(word).to_bytes(4, "little")
            case 2:
                del content[at : at + length]
            case 3:
                content[at:at] = content[at : at + length]
            case 4:
                content[at:at] = bytes(content[-length:])
            case 5:
                del content[at:]
    return bytes(content)
