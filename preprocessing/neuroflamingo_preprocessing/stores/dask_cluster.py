"""Runs into a store on a Dask cluster, either a local one started for the run or any with a scheduler's address.

Workers need this package and must see the inputs and the store under the same paths. Dask reassigns the tasks of a lost
worker; items that it committed are found in the store and not made again.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import ExitStack, contextmanager
from itertools import islice
from typing import Any
from uuid import uuid4

from neuroflamingo_preprocessing.errors import ModelError, NeuroFlamingoError, UsageError
from neuroflamingo_preprocessing.stores.jobs import TRY_AGAIN, Job, JobResult, Task, lost_result, use_one_thread, work

CONNECT_S = 10.0
UNDER_WAY = 2000
"""Tasks submitted to a scheduler at a time: enough for the cluster to scale up, few enough for its memory."""
RETRIES = 2
"""Retries of a task whose failure is not an error of its scan, such as lack of memory on one machine."""
FAILURES = 1
"""Workers of a local cluster that may die on a scan before it is tried alone; Dask's default is 3."""
ADDRESS = re.compile(r"(tcp|tls|ucx|ws|wss)://[^\s/]+")
LOCAL = "local"


def check_scheduler(scheduler: str | None) -> None:
    """Check a scheduler option before the long work.

    Raises:
        UsageError: neither `local` nor an address.
        ModelError: dask and distributed are not installed (exit 69).
    """
    if scheduler is None:
        return
    if scheduler != LOCAL and not ADDRESS.fullmatch(scheduler):
        raise UsageError(
            f"--scheduler {scheduler} is not an address",
            expected="tcp://HOST:PORT, or local",
            seen=scheduler,
            hint="a Dask scheduler prints its address when it starts",
        )
    try:
        import distributed  # noqa: F401
    except ImportError as error:
        raise ModelError(
            "--scheduler needs dask and distributed",
            expected="the extra `cluster`",
            seen=str(error),
            hint="pip install 'neuroflamingo[cluster]'; without them: --nprocs, or a job array with --num-parts",
        ) from error


def work_on_cluster(
    job: Job, tasks: Sequence[Task], scheduler: str, processes: int
) -> Iterator[tuple[Task, JobResult]]:
    """Process tasks on a cluster; see `work_all`.

    Raises:
        NeuroFlamingoError: the scheduler does not answer, or the connection is lost (exit 75).
    """
    from distributed import CancelledError as Cancelled
    from distributed.comm.core import CommClosedError

    check_scheduler(scheduler)
    with _client(scheduler, processes) as client:
        try:
            yield from _spread(client, job, tasks)
        except (Cancelled, CancelledError, CommClosedError) as error:
            raise NeuroFlamingoError(
                f"the connection to the scheduler {scheduler} was lost",
                expected="a scheduler that runs until all scans are done",
                seen=type(error).__name__,
                hint="start it again and repeat the command: it resumes where it stopped",
                exit_code=TRY_AGAIN,
            ) from error


def _spread(client: Any, job: Job, tasks: Sequence[Task]) -> Iterator[tuple[Task, JobResult]]:
    from distributed import KilledWorker, as_completed

    name = f"neuroflamingo-{uuid4().hex[:12]}"
    shared = client.submit(_same, job, key=f"{name}-job")  # a result like any other: made again if its holder is lost
    under_way: dict[str, Task] = {}
    suspects: list[Task] = []

    def send(number: int, task: Task, again: str = "") -> Any:
        key = f"{name}-{number}{again}"
        under_way[key] = task
        return client.submit(_work_there, shared, task, key=key, retries=RETRIES, pure=False)

    rest = iter(enumerate(tasks))
    results = as_completed([send(*pair) for pair in islice(rest, UNDER_WAY)], loop=client.loop)
    for future in results:
        task = under_way.pop(future.key)
        for pair in islice(rest, 1):
            results.add(send(*pair))
        fault = future.exception() if future.status == "error" else None
        if isinstance(fault, KilledWorker):
            suspects.append(task)  # perhaps it only shared the worker with the scan that kills it
        elif isinstance(fault, ImportError):
            raise _not_installed(fault) from fault
        else:
            yield task, future.result()
        future.release()
    for number, task in enumerate(suspects):
        try:
            yield task, send(number, task, "-alone").result()
        except KilledWorker:
            yield task, lost_result(task)


def _not_installed(fault: ImportError) -> ModelError:
    return ModelError(
        "a worker cannot import what it needs",
        expected="the workers' environment to be that of this command",
        seen=str(fault),
        hint="install this version of neuroflamingo in it",
    )


def _same(job: Job) -> Job:
    return job


def _work_there(job: Job, task: Task) -> JobResult:
    use_one_thread()
    return work(job, task)


async def _answers(address: str) -> None:
    """Complete one handshake: a client would wait forever for a server that accepts connections and never replies."""
    from distributed.comm.core import connect
    from distributed.security import Security

    arguments = Security().get_connection_args("client")
    comm = await asyncio.wait_for(connect(address, timeout=CONNECT_S, **arguments), CONNECT_S)
    comm.abort()


@contextmanager
def _client(scheduler: str, processes: int) -> Iterator[Any]:
    """Client of a scheduler; closed at the end, together with a local cluster started for it."""
    from dask import config
    from distributed import Client, LocalCluster
    from distributed.system import MEMORY_LIMIT

    with ExitStack() as stack:
        place: Any = scheduler
        if scheduler == LOCAL:
            stack.enter_context(config.set({"distributed.scheduler.allowed-failures": FAILURES}))
            place = LocalCluster(
                n_workers=processes,
                threads_per_worker=1,
                host="127.0.0.1",
                dashboard_address=None,  # type: ignore[arg-type]
                memory_limit=MEMORY_LIMIT // processes,
                silence_logs=logging.CRITICAL,
            )
            stack.enter_context(place)
        try:
            if scheduler != LOCAL:
                asyncio.run(_answers(scheduler))
            client = Client(place, timeout=CONNECT_S, set_as_default=False)
        except (OSError, TimeoutError, ValueError) as error:
            raise NeuroFlamingoError(
                f"the scheduler {scheduler} does not answer",
                expected=f"a Dask scheduler within {CONNECT_S:g} s",
                seen=f"{type(error).__name__}: {error}"[:200],
                hint="check the address and that it is running, with the same versions of dask and Python as here",
                exit_code=TRY_AGAIN,
            ) from error
        yield stack.enter_context(client)
