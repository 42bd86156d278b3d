"""How many class centres make a tile."""


def tile_size(batch: int, centres: int, embedding_size: int, memory: int | None) -> int:
    """Centres in a tile.

    On a CPU its numbers should stay in the cache that they are made in. On a GPU a tile should be work for longer than
    its launches take; with all that it needs it takes some 64th of the memory. Multiples of 128 keep the rows of
    products aligned for the tensor cores, so what is left of the shard is a tile of its own.

    Args:
        batch: rows of the global batch.
        centres: of the shard.
        memory: bytes of the GPU; None for a CPU.
    """
    if memory is None:
        return max(256, 2**20 // max(1, batch))
    most = memory // 64 // (8 * (batch + 2 * embedding_size))
    return max(128, min(most, centres) // 128 * 128)
