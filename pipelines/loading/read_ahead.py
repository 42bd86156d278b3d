"""A thread that reads, decodes and copies batches ahead of their use, so that training waits for no disk.

On a GPU it works on a stream of its own: images and labels are copied beside the training step, whose stream waits for
them where it needs them. Python's interpreter lock is the one thing that both threads want; DALI, torch and reads of
files let go of it.
"""

import atexit
import functools
import os
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from itertools import islice
from queue import SimpleQueue
from threading import Semaphore, Thread, current_thread

import torch

from pipelines.common.cpu import one_thread_here
from pipelines.loading.batch import Batch, EncodedBatch
from pipelines.loading.decoder import Decoder, UndecodableError

THREAD = "read ahead"  # the name of those that make batches
_PATIENCE = 10.0  # seconds that ``close`` waits for a read that hangs

Mend = Callable[[EncodedBatch, dict[int, str]], EncodedBatch]


@functools.cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """The one on which batches are made for a device: torch keeps what memory was freed for the stream that had it."""
    return torch.cuda.Stream(device)


class ReadAhead(Iterator[Batch]):
    """The batches that ``encoded`` yields, decoded, in order.

    What ``encoded`` or the decoding raises is raised in the place of its batch, and ends it. The thread ends with that,
    with ``close``, with the last reference to this object, or with the process.

    Args:
        depth: batches that are decoded at a time, and finished ones that may lie ready.
        mend: what to decode in place of a batch whose rows are undecodable, by the reasons; it may raise instead.
        dtype: of the images.
    """

    def __init__(
        self, encoded: Iterator[EncodedBatch], decoder: Decoder, *, depth: int, mend: Mend, dtype: torch.dtype
    ) -> None:
        self._device = decoder.device
        stream = _stream(self._device) if self._device.type == "cuda" else None
        self._worker = _Worker(_decoded(encoded, decoder, depth, mend, dtype), depth, stream)
        # Not bound to this object, which the thread must not keep alive.
        weakref.finalize(self, self._worker.end, _PATIENCE).atexit = False
        self.closed = False
        self._worker.start()

    def __next__(self) -> Batch:
        if self.closed:
            raise StopIteration
        made = self._worker.made.get()
        if isinstance(made, BaseException):
            self.closed = True
            raise made
        batch, there = made
        self._worker.room.release()
        if there:
            stream = torch.cuda.current_stream(self._device)
            stream.wait_event(there)
            for tensor in (batch.images, batch.labels, batch.clean, batch.landmarks):
                if tensor is not None:
                    tensor.record_stream(stream)  # else its memory would be reused when the other stream is done
        return batch

    def close(self, patience: float | None = _PATIENCE) -> None:
        """End the thread and the decoder's; wait so many seconds for it, should it hang in a read. None: for ever."""
        self.closed = True
        self._worker.end(patience)


class _Worker(Thread):
    """Puts the batches that ``batches`` makes into ``made``, each with the event that it is there on a GPU.

    So many as there is ``room`` lie there; who takes one out makes room.
    """

    def __init__(self, batches: Generator[Batch, None, None], room: int, stream: torch.cuda.Stream | None) -> None:
        super().__init__(name=THREAD, daemon=True)
        self.made: SimpleQueue[tuple[Batch, torch.cuda.Event | None] | BaseException] = SimpleQueue()
        self.room = Semaphore(room)
        self._batches, self._stream = batches, stream
        self._ended = False
        self._process = os.getpid()
        _running.add(self)

    def run(self) -> None:
        one_thread_here()  # the decoding has all the cores busy
        try:
            with ExitStack() as opened:
                if self._stream:
                    opened.enter_context(torch.cuda.stream(self._stream))
                opened.callback(self._batches.close)
                for batch in self._batches:
                    there = self._stream.record_event() if self._stream else None
                    self.room.acquire()
                    if self._ended:
                        return
                    self.made.put((batch, there))
                    del batch
            self.made.put(StopIteration())
        except BaseException as error:
            self.made.put(error)
        finally:
            _running.discard(self)

    def end(self, patience: float | None) -> None:
        if os.getpid() != self._process:  # a fork, which has no such thread; its locks may be held for good
            return
        self._ended = True
        self.room.release()
        if self is not current_thread():  # where the garbage is collected is anywhere
            self.join(patience)


_running: set[_Worker] = set()


@atexit.register
def _end_all() -> None:
    """Before the interpreter is taken down around threads that use it. Registered after DALI's, so called before."""
    for worker in list(_running):
        worker.end(_PATIENCE)


def _decoded(
    encoded: Iterator[EncodedBatch], decoder: Decoder, depth: int, mend: Mend, dtype: torch.dtype
) -> Generator[Batch, None, None]:
    ahead: deque[EncodedBatch] = deque()
    failure: Exception | None = None  # of what comes behind those ahead
    try:
        while True:
            try:
                for batch in islice(encoded, depth - len(ahead)):
                    decoder.submit(batch.encoded, batch.parameters)
                    ahead.append(batch)
            except Exception as error:
                failure, encoded = error, iter(())
            if not ahead:
                break
            pixels = None
            while pixels is None:
                try:
                    pixels = decoder.result()
                except UndecodableError as error:
                    ahead[0] = mend(ahead[0], error.reasons)
                    decoder.amend(ahead[0].encoded)
            yield ahead.popleft().with_images(pixels, dtype)
        if failure:
            raise failure
    finally:
        decoder.clear()
