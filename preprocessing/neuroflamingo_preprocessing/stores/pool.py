"""Processing of the scans of a run in a pool of processes that survives the death of a worker."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool

from neuroflamingo_preprocessing.stores.jobs import Job, JobResult, Task, lost_result, use_one_thread, work

_JOB: Job | None = None
"""Job of this worker process, set when it starts."""


def work_in_pool(job: Job, tasks: Sequence[Task], processes: int) -> Iterator[tuple[Task, JobResult]]:
    """Process tasks in a pool; after a worker dies, the tasks that were under way are tried again, each alone.

    A dead worker breaks the whole pool, and nobody knows which task killed it, so a new pool takes the rest.
    """
    suspects: list[Task] = []
    rest = list(reversed(tasks))
    while rest:
        with _pool(job, processes) as pool:
            under_way: dict[Future[JobResult], Task] = {}
            try:
                while rest or under_way:
                    while rest and len(under_way) < 2 * processes:
                        under_way[pool.submit(_work_there, rest[-1])] = rest[-1]
                        del rest[-1]
                    for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                        result = future.result()
                        yield under_way.pop(future), result
            except BrokenProcessPool:
                suspects += under_way.values()
    for task in suspects:
        with _pool(job, 1) as pool:
            try:
                yield task, pool.submit(_work_there, task).result()
            except BrokenProcessPool:
                yield task, lost_result(task)


def _pool(job: Job, processes: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _begin, (job,))


def _begin(job: Job) -> None:
    global _JOB
    _JOB = job
    use_one_thread()


def _work_there(task: Task) -> JobResult:
    assert _JOB is not None
    return work(_JOB, task)
