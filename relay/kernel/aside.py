"""A blocking call that the event loop does not do itself, in a thread of its own.

The loop's own executor has a handful of threads, and a process that ends waits for them. What may hang in the kernel, such
as a file on a network file system, would in time take them all; whatever comes after it would stand still, and so would
the end.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from relay.errors import OperatorError

T = TypeVar("T")


def aside(do: Callable[[], T]) -> "asyncio.Future[T]":
    """What `do` gives or raises, once it has. Whoever cancels the future waits for it no longer; the thread goes on.

    Called in the event loop. Raises OperatorError where there can be no thread at the moment.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def tell(found: T) -> None:
        if not future.done():
            future.set_result(found)

    def fail(error: BaseException) -> None:
        if not future.done():
            future.set_exception(error)

    def work() -> None:
        try:
            found = do()
        except BaseException as error:
            answer = partial(fail, error)
        else:
            answer = partial(tell, found)
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(answer)

    try:
        threading.Thread(target=work, name="aside", daemon=True).start()
    except RuntimeError:  # the limit of processes is reached, or memory is short
        fix = "see TasksMax= of the unit, RLIMIT_NPROC of the user, and free memory"
        raise OperatorError(f"no thread is to be had; {fix}") from None
    return future
