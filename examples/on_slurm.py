"""`tombola search` as Slurm jobs, one for each seed: `python examples/on_slurm.py --seeds 0,1,2 -- SEARCH OPTIONS`.

A job that is preempted or reaches its time limit is submitted again by submitit; the search goes on from its last
checkpoint, because the same command always does. Needs `pip install submitit`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import submitit

from tombola.lab.cli.main import run


class Search(submitit.helpers.Checkpointable):
    """What a job does; submitit calls it again, with the same arguments, after a preemption."""

    def __call__(self, *arguments: str) -> str:
        """Search, and return the command that was done."""
        if status := run(["search", *arguments]):
            raise SystemExit(f"tombola search ended with status {status}; see the job's log")
        return " ".join(arguments)


def main() -> None:
    """Submit the jobs, and wait for them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0", help="a job for each, such as 0,1,2")
    parser.add_argument("--jobs", type=int, default=1, help="CPUs of each Slurm job, and processes of its search")
    parser.add_argument("--hours", type=float, default=8)
    parser.add_argument("--partition", default=None)
    parser.add_argument("--cluster", default=None, help="local: processes of this machine, to try it")
    parser.add_argument("--logs", type=Path, default=Path("slurm"), help="on a path that all nodes see")
    parser.add_argument("search", nargs="+", help="options of tombola search, after --; their --out is shared too")
    options = parser.parse_args()

    executor = submitit.AutoExecutor(folder=options.logs, cluster=options.cluster, slurm_max_num_timeout=100)
    executor.update_parameters(
        name="tombola", timeout_min=round(60 * options.hours), cpus_per_task=options.jobs, tasks_per_node=1
    )  # fmt: skip
    if options.partition is not None:
        executor.update_parameters(slurm_partition=options.partition)
    what = [*options.search, "--jobs", str(options.jobs), "--quiet"]
    jobs = [executor.submit(Search(), *what, "--seeds", seed) for seed in options.seeds.split(",")]
    for job in jobs:
        print(f"{job.job_id}: done: {job.result()}")


if __name__ == "__main__":
    sys.exit(main())
