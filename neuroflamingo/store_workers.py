"""Where the scans of a run are worked on: in this process, in a pool of processes, or on a Dask cluster."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool

from neuroflamingo.store_jobs import Job, Made, Task, work

LOST = "its worker died, alone with it too: most likely it needs more memory than there is"
TRY_AGAIN = 75
_JOB: Job | None = None
"""Of a worker process of the pool."""


def work_all(
    job: Job, tasks: Sequence[Task], processes: int = 1, scheduler: str | None = None
) -> Iterator[tuple[Task, Made]]:
    """Results as they come; the same tasks give the same items wherever they are worked on.

    A worker that dies costs its own scans only: those that were under way are tried again, each alone.

    Args:
        job: what all tasks have in common.
        tasks: the scans.
        processes: of the pool, or of the local cluster; 1 without a scheduler works in this process.
        scheduler: None, `local`, or the address of a Dask scheduler.
    """
    if not tasks:
        return iter(())
    if scheduler is not None:
        from neuroflamingo.store_cluster import work_on_cluster

        return work_on_cluster(job, tasks, scheduler, processes)
    if processes <= 1:
        return ((task, work(job, task)) for task in tasks)
    return _work_in_pool(job, tasks, processes)


def lost(task: Task) -> Made:
    """What is said of a scan that kills its worker."""
    return Made(task.name, "failed", error=f"{task.name}: {LOST}", exit_code=TRY_AGAIN)


def one_thread() -> None:
    """Workers stand beside each other: one thread each, in libraries that are loaded later too.

    torch is not loaded for this: preparing does without it, and it takes longer than a head.
    """
    from threadpoolctl import threadpool_limits

    os.environ["OMP_NUM_THREADS"] = "1"
    threadpool_limits(1)
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)


def _work_in_pool(job: Job, tasks: Sequence[Task], processes: int) -> Iterator[tuple[Task, Made]]:
    suspects: list[Task] = []
    rest = list(reversed(tasks))
    while rest:
        with _pool(job, processes) as pool:
            under_way: dict[Future[Made], Task] = {}
            try:
                while rest or under_way:
                    while rest and len(under_way) < 2 * processes:
                        under_way[pool.submit(_work_there, rest[-1])] = rest[-1]
                        del rest[-1]
                    for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                        made = future.result()
                        yield under_way.pop(future), made
            except BrokenProcessPool:
                suspects += under_way.values()
    for task in suspects:
        with _pool(job, 1) as pool:
            try:
                yield task, pool.submit(_work_there, task).result()
            except BrokenProcessPool:
                yield task, lost(task)


def _pool(job: Job, processes: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _begin, (job,))


def _begin(job: Job) -> None:
    global _JOB
    _JOB = job
    one_thread()


def _work_there(task: Task) -> Made:
    assert _JOB is not None
    return work(_JOB, task)
