"""The data worker: a child process that reads and renders ahead of the training loop. No torch here.

Started as `python -m posttrain.data.worker` with our own pipe on its standard input and output. It answers in the order
asked, looks a few updates ahead, ignores Ctrl-C and SIGTERM (the parent decides), and ends when the pipe closes, which
the system does for a parent that was killed.
"""

from __future__ import annotations

import os
import pickle
import queue
import signal
import threading
from importlib import import_module
from typing import Any, BinaryIO

from ..core.errors import UserError

AHEAD = 8  # updates that wait, rendered, for the loop


def main() -> None:
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, signal.SIG_IGN)
    # what a library prints must not land between the messages
    pipe = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    asked: queue.SimpleQueue = queue.SimpleQueue()
    answers: queue.Queue = queue.Queue(AHEAD)
    # not sys.stdin: a thread that waits in it would abort the interpreter's shutdown
    listener = threading.Thread(target=_listen, args=(os.fdopen(os.dup(0), "rb"), asked), daemon=True)
    listener.start()
    writer = threading.Thread(target=_write, args=(pipe, answers), daemon=True)
    writer.start()
    try:
        _serve(asked, answers)
    except UserError as e:
        answers.put(("error", e))
    answers.put(None)
    writer.join()
    listener.join()  # until the parent, having read the error, closes the pipe


def _serve(asked: queue.SimpleQueue, answers: queue.Queue) -> None:
    """Answer commands; between them, render the updates that a `batches` command asked for."""
    from .updates import Updates

    _, settings = asked.get()
    work = Updates(settings)
    answers.put(("opened", work.opened))
    import_module("transformers.utils.chat_template_utils")  # half a second, spent before the tokenizer comes
    run, n = 0, work.order.total  # which `batches` command is being answered, and the next update of it
    while True:
        if n >= work.order.total or not asked.empty():
            name, value = asked.get()
            if name == "tokenizer":
                from .render import rendering  # only now: rows are being read since the start

                answers.put(("head", work.head(rendering(settings, value))))
            elif name == "batches":
                run, n = value
            elif name == "held_rows":
                answers.put(("held_rows", work.held_rows()))
            elif name == "files":
                threading.Thread(target=_hash, args=(work, answers), daemon=True).start()
        else:
            answers.put(("batch", (run, work.batch(n))))
            n += 1


def _hash(work: Any, answers: queue.Queue) -> None:
    """The files' checksums, or why they cannot be had, whenever they are ready."""
    try:
        answers.put(("files", work.files()))
    except UserError as e:
        answers.put(("error", e))


def _listen(pipe: BinaryIO, asked: queue.SimpleQueue) -> None:
    """Commands from the parent into the queue; the end of the pipe ends the process, whatever it is doing."""
    while True:
        try:
            asked.put(pickle.load(pipe))
        except (EOFError, pickle.UnpicklingError, OSError):
            os._exit(0)


def _write(pipe: BinaryIO, answers: queue.Queue) -> None:
    """Answers from the queue to the parent, so that rendering goes on while the pipe is full."""
    while (answer := answers.get()) is not None:
        try:
            pickle.dump(answer, pipe, protocol=pickle.HIGHEST_PROTOCOL)
            pipe.flush()
        except OSError:  # nobody reads any more
            os._exit(0)


if __name__ == "__main__":
    main()
