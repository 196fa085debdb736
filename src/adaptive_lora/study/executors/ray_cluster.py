"""`--executor ray`: a bank is one task on a Ray cluster; with the extra `ray`.

Ray's own retries are off: what becomes of a lost bank is decided by its lease, which also sees a frozen node, whose
tasks Ray does not run again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any, ParamSpec, TypeVar

from adaptive_lora.errors import UsageError

P = ParamSpec("P")
T = TypeVar("T")


class RayExecutor(Executor):
    """Tasks on the cluster at `address`, by default the one that this machine belongs to, else a new one on it.

    A task asks for `cpus`, `gpus` (whole or a share) and `memory_gb`, and waits until a node has them.
    """

    def __init__(
        self, cpus: float = 1, gpus: float = 0, memory_gb: float | None = None, address: str | None = None
    ) -> None:
        try:
            import ray
        except ImportError:
            raise UsageError("Ray is not installed; pip install 'adaptive-lora[ray]'.") from None
        self._ray: Any = ray
        if not ray.is_initialized():
            ray.init(address=address, log_to_driver=False)
        memory = {} if memory_gb is None else {"memory": int(memory_gb * 2**30)}
        self._options = {"num_cpus": cpus, "num_gpus": gpus, "max_retries": 0, **memory}
        self._refs: dict[Future[Any], Any] = {}

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """One task; its future is done when its answer is here, or its node is known to be lost."""
        future: Future[T] = Future()
        future.set_running_or_notify_cancel()  # so that it is given up by `abandon`, which ends what it stands for
        ref = self._ray.remote(fn).options(**self._options).remote(*args, **kwargs)
        self._refs[future] = ref
        # Not `ref.future()`: where the task cannot be run, that one is silent.
        threading.Thread(target=self._wait, args=(future, ref), daemon=True).start()
        return future

    def abandon(self, future: Future[Any]) -> None:
        """Kills the task's process; a node that is frozen hears of it when it wakes."""
        if (ref := self._refs.pop(future, None)) is not None:
            self._ray.cancel(ref, force=True)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Leaves the cluster as it is; with `cancel_futures` without tasks of this study."""
        for future in list(self._refs):
            if cancel_futures and not future.done():
                self.abandon(future)

    def _wait(self, future: Future[Any], ref: Any) -> None:
        try:
            future.set_result(self._ray.get(ref))
        except BaseException as error:
            future.set_exception(error)
        finally:
            self._refs.pop(future, None)
