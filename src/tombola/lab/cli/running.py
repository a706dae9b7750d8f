"""What `tombola search`, `tombola train` and `tombola report` do once their options are understood."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click
import torch
from rich.console import Console
from rich.text import Text

from tombola.files import write_atomically
from tombola.lab.cli.choices import Choices, configs_of
from tombola.lab.cli.grouped import HERE
from tombola.lab.cli.progress import watcher
from tombola.lab.cli.recipes import Training
from tombola.lab.cli.sparse import SparseTraining
from tombola.lab.config import RunConfig
from tombola.lab.errors import LabError
from tombola.lab.launched import Launched, launched
from tombola.lab.places import made
from tombola.lab.report.page import write_report
from tombola.lab.report.terminal import print_summary, stdout
from tombola.lab.runs.alike import groups
from tombola.lab.runs.how import How
from tombola.lab.runs.on_ranks import run_on_ranks
from tombola.lab.runs.on_ray import Resources, run_on_ray
from tombola.lab.runs.parallel import run_many
from tombola.lab.runs.thin import check_device
from tombola.lab.study import digits_study
from tombola.lab.tracking import Tracking, check_tracker

T = TypeVar("T", bound=Training)
COMMANDS = "commands.txt"
"""In the folder of the runs: every command that made runs there, for the foot of the report."""


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster (``address`` None: the one that is there, or a new one), and what each task has of it."""

    address: str | None
    resources: Resources

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Cluster | None:
        """The cluster that the options ask for; None for this machine.

        Raises:
            click.UsageError: values that do not go together.
        """
        on, device, context = options["on"], options["device"], click.get_current_context()
        cpus, gpus = options["cpus_per_task"], options["gpus_per_task"]
        if on is None:
            if cpus is not None or gpus is not None:
                raise click.UsageError("--cpus-per-task and --gpus-per-task are for --on ray", context)
            return None
        if device not in ("cpu", "cuda"):
            raise click.UsageError(f"--device {device}: on Ray give cpu or cuda; Ray says which GPU", context)
        if device == "cpu" and gpus:
            raise click.UsageError("--gpus-per-task is for --device cuda", context)
        if device == "cuda" and gpus == 0:
            raise click.UsageError("--gpus-per-task must be above 0 with --device cuda", context)
        if options["together"] > 1:
            share = "several tasks share a GPU by --gpus-per-task 0.25"
            raise click.UsageError(f"--together: is for the processes of this machine; on Ray {share}", context)
        gpus = (1.0 if device == "cuda" else 0.0) if gpus is None else gpus
        resources = Resources(cpus=options["threads"] if cpus is None else cpus, gpus=gpus)
        return cls(address=None if on == "ray" else on, resources=resources)


@dataclass(frozen=True)
class Runs:
    """The runs to make, and where and how."""

    configs: Sequence[RunConfig]
    out: Path
    jobs: int | None
    together: int
    threads: int
    workers: int
    device: str
    data_dir: Path | None
    data_dirs: Mapping[str, Path]
    track: Sequence[str]
    quiet: bool
    cluster: Cluster | None
    here: Launched | None

    @classmethod
    def from_options(cls, options: Mapping[str, Any], configs: Callable[[], Sequence[RunConfig]]) -> Runs:
        """The runs of `configs()`, made as the options say.

        Raises:
            click.UsageError: values that do not go together, or no such device, data or model.
        """
        device, there = options["device"], options.get("transfer_dir")
        cluster, here = Cluster.from_options(options), launched()
        if here is not None:
            _check_ranks(options, here)
        try:
            if cluster is None:
                check_usable(device if here is None or device == "cpu" else f"{device}:{here.local_rank}")
            for tracker in options["track"] or ():
                check_tracker(tracker)
            wanted = configs()
            if any(config.sparse for config in wanted):
                check_device(device)
                if here is not None:
                    raise LabError("--sparse: sparse layers are trained by one process; leave it or torchrun out")
        except LabError as error:
            raise click.UsageError(str(error), click.get_current_context()) from None
        moved = [config.transfer.data for config in wanted if config.transfer is not None]
        cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        jobs = options["jobs"] or (max(1, cpus // options["threads"]) if device == "cpu" else 1)
        if options["together"] > 1 and not groups(wanted, options["together"], jobs=jobs):
            alike = "two runs with data, model, batch size and precision in common, neither --sparse nor --compile"
            click.echo(f"together: no job has {alike}; each run is trained alone", err=True)
        beside = jobs if here is None else here.local_ranks
        readers = max(1, cpus // beside) if cluster is None else max(1, int(cluster.resources.cpus))
        return cls(
            configs=wanted,
            out=options["out"],
            jobs=options["jobs"] if cluster is not None else jobs,
            together=options["together"],
            threads=options["threads"],
            workers=options["workers"] or readers,
            device=device,
            data_dir=options["data_dir"],
            data_dirs=dict.fromkeys(moved, there) if there else {},
            track=options["track"] or (),
            quiet=options["quiet"],
            cluster=cluster,
            here=here,
        )

    @property
    def leads(self) -> bool:
        """Whether this process writes and prints: the only one, or the first of those that torchrun has started."""
        return self.here is None or self.here.rank == 0

    def run(self, command: str) -> None:
        """Make the runs, or go on with them; then write the report and print the table. `command` asked for them.

        Raises:
            LabError: a run failed, or its folder is damaged or in use.
        """
        if self.leads:
            _remember(self.out, command)
        totals = {config.folder_name: config.total_epochs for config in self.configs}
        how = How(
            device=self.device, threads=self.threads, data_dir=self.data_dir, data_dirs=self.data_dirs,
            workers=self.workers, together=self.together,
        )  # fmt: skip
        try:
            with (
                watcher(Console(stderr=True, highlight=False), totals, quiet=self.quiet or not self.leads) as watch,
                Tracking(self.out, self.configs, self.track if self.leads else (), then=watch) as tracking,
            ):
                if self.here is not None:
                    run_on_ranks(self.configs, self.out, how, self.here, on_event=tracking)
                elif self.cluster is None:
                    assert self.jobs is not None
                    run_many(self.configs, self.out, how, jobs=self.jobs, on_event=tracking)
                else:
                    run_on_ray(
                        self.configs, self.out, how, self.cluster.resources, address=self.cluster.address,
                        jobs=self.jobs, on_event=tracking,
                    )  # fmt: skip
        except KeyboardInterrupt:
            if not self.leads:
                sys.exit(0)  # any other status would have torchrun end the one that says so
            how_again = "" if self.here is None else ", with torchrun or without"
            click.echo(f"Stopped; nothing is lost. To continue where it stopped{how_again}:\n  {command}", err=True)
            sys.exit(130)
        if not self.leads:
            return
        for text in tracking.warnings if self.quiet else ():  # else they were shown
            click.echo(f"warning: {text}", err=True)
        print_report([self.out])


def _check_ranks(options: Mapping[str, Any], here: Launched) -> None:
    """Raise click.UsageError for options that contradict what torchrun does."""
    context, device = click.get_current_context(), options["device"]
    if options["on"] is not None:
        raise click.UsageError("--on: torchrun's ranks are where to compute; leave one of the two out", context)
    if (options["jobs"] or 1) > 1:
        raise click.UsageError("--jobs: torchrun's ranks train one run after another; leave it out", context)
    if options["together"] > 1:
        raise click.UsageError("--together: torchrun's ranks train one run after another; leave it out", context)
    if device not in ("cpu", "cuda"):
        raise click.UsageError(f"--device {device}: with torchrun give cpu or cuda; it says which GPU", context)
    if device == "cuda" and (found := torch.cuda.device_count()) < here.local_ranks:
        raise click.UsageError(f"--device cuda: {here.local_ranks} ranks, but {found} GPUs; start as many", context)


def searches(options: Mapping[str, Any], *, given: Collection[str]) -> list[RunConfig]:
    """The digits study, or the search that the options ask for if one of them was `given` that says what to search."""
    own = set(given) - set(HERE)
    if own <= {"seeds"}:
        return digits_study(options["seeds"]) if "seeds" in own else digits_study()
    return configs_of(_chosen(Choices, options))


def trainings(options: Mapping[str, Any]) -> list[RunConfig]:
    """The sparse trainings that the options ask for."""
    return _chosen(SparseTraining, options).configs()


def _chosen(kind: type[T], options: Mapping[str, Any]) -> T:
    names = kind.__dataclass_fields__
    return kind(**{name: value for name, value in options.items() if name in names and value is not None})


def check_usable(name: str) -> None:
    """Raise LabError unless PyTorch can use the device of that name."""
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise LabError(f"--device {name}: PyTorch cannot use it here ({reason}); cpu always works") from None


def _remember(out: Path, command: str) -> None:
    path = out / COMMANDS
    made(out)
    try:
        known = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        if command not in known:
            write_atomically(path, "".join(f"{line}\n" for line in [*known, command]).encode())
    except OSError as error:
        raise LabError(f"{out}: cannot be written to: {error.strerror}; choose another folder with --out") from None


def print_report(
    folders: Sequence[Path], output: Path | None = None, figure: Path | None = None, figures: Path | None = None
) -> None:
    """Write the report of all runs in `folders`, print their table, and say where the report is.

    Raises:
        LabError: no run there, or a damaged one.
    """
    commands = list(dict.fromkeys(line for folder in folders for line in _remembered(folder)))
    written = write_report(folders, output, figure=figure, figures_folder=figures, commands=commands)
    console = stdout()
    print_summary(written.summary, console)
    missing = len(written.summary.unfinished)
    if missing:
        console.print(Text(f"{missing} of {len(written.summary.runs)} runs are not finished.", style="yellow"))
    console.print(Text.assemble("\nReport:  ", (str(written.html), "bold")), soft_wrap=True)
    console.print(Text(f"Numbers: {written.csv}"), soft_wrap=True)
    if figure is not None:
        console.print(Text(f"Figure:  {figure}"), soft_wrap=True)
    if figures is not None:
        console.print(Text(f"Figures: {figures}"), soft_wrap=True)


def _remembered(folder: Path) -> list[str]:
    for place in (folder, folder.parent):
        path = place / COMMANDS
        if path.is_file():
            return path.read_text(encoding="utf-8", errors="replace").splitlines()
    return []
