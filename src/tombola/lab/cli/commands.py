"""The commands: what each takes, and what its help says.

PyTorch is imported when a command needs it and not before, so that help and mistakes answer at once.
"""

from __future__ import annotations

import shlex
from functools import partial
from pathlib import Path
from typing import Any

import click

from tombola.lab.cli.bench import PARALLEL, Bench
from tombola.lab.cli.grouped import Grouped
from tombola.lab.cli.options import network_options, reproduce_options, search_options, train_options
from tombola.lab.cli.values import COUNT, Listing

EXPORTS = ("state-dict", "safetensors", "onnx", "torch-export", "2:4", "sparse")
_OWN_MODEL = click.option(
    "--model", metavar="MODULE:FUNCTION", help="The model, if it is your own: no file has code run by its word alone."
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="tombola", message="%(prog)s %(version)s")
def cli() -> None:
    """Find small sub-networks that train: winning tickets and sparse networks, in PyTorch.

    \b
    Examples:
      tombola search --out runs/digits    a whole study in minutes, no download
      tombola train --method rigl,static  sparse from the first step on, beside dense
      tombola reproduce                   the papers' experiments, one command each
      tombola inspect TICKET              what a ticket keeps, where it comes from
      tombola report runs/digits          a page about all runs in that folder
      tombola export TICKET --to sparse   small and fast on this machine; or ONNX, a state dict, ...
    """


@cli.command(cls=Grouped)
@search_options
@click.pass_context
def search(context: click.Context, /, **options: Any) -> None:
    """Search for winning tickets, train each again, and write a report.

    Without options that say otherwise this is the digits study: dense training, Continuous Sparsification and
    Iterative Magnitude Pruning of two small networks on scikit-learn's handwritten digits, with controls. Any option
    under "What to search" makes a search of your own instead, and what is left open comes from a recipe: the papers'
    for conv2, conv4, conv6 and resnet20, the study's for other networks. (--seeds alone: the study with these seeds.)
    The same command continues a search that was stopped.

    \b
    Examples:
      tombola search --out runs/digits
      tombola search --density 0.1,0.05 --seeds 0,1,2 --out runs/asked
      tombola search --method cs,imp --data cifar10 --data-dir DIR --device cuda
      tombola search --initial-score -0.05,0 --data mine:load --model mine:net
      tombola search --method imp --data cifar10 --transfer-to cifar100 --data-dir DIR
    """
    from tombola.lab.cli.running import Runs, searches

    Runs.from_options(options, partial(searches, options, given=typed(context))).run(_command(context))


@cli.command(cls=Grouped)
@train_options
@click.pass_context
def train(context: click.Context, /, **options: Any) -> None:
    """Train sparse networks, each in one go, beside the dense one, and write a report.

    Masks are there from the first step on (rigl, set, snfs, static, snip) or come while the network trains (gmp,
    granet, cs). What is left open comes from a recipe: the papers' for conv2, conv4, conv6, resnet20 and wide
    ResNets, the digits study's for other networks. The same command continues a training that was stopped.

    \b
    Examples:
      tombola train --method rigl,static --density 0.1,0.05 --seeds 0,1,2
      tombola train --method rigl --density 0.1 --epochs x5 --equal-arithmetic --small-dense
      tombola train --method rigl --pattern 2:4 --data cifar10 --data-dir DIR --device cuda
      tombola train --method dense --epochs x5 --schedule cosine
    """
    from tombola.lab.cli.running import Runs, trainings

    Runs.from_options(options, partial(trainings, options)).run(_command(context))


@cli.command(cls=Grouped)
@click.argument("name", required=False)
@reproduce_options
@click.pass_context
def reproduce(context: click.Context, /, **options: Any) -> None:
    """Run the experiment NAME of a paper, and set what it finds beside what is published.

    Without NAME: the list of all experiments, with what each costs. What a recipe does, where it departs from the paper
    and what in it is from memory is said at the top of its file in tombola/lab/recipes, and in its report. The same
    command continues what was stopped.

    \b
    Examples:
      tombola reproduce
      tombola reproduce cs-figure-3-left --scale smoke
      tombola reproduce rigl-cifar10 --data-dir DIR --device cuda --out runs/rigl
    """
    from tombola.lab.cli.reproducing import print_experiments, reproduction

    if options["name"] is None:
        print_experiments()
        return
    reproduction(options, _command(context))


@cli.command()
@click.argument("ticket", type=click.Path(path_type=Path, dir_okay=False))
def inspect(ticket: Path) -> None:
    """Show what TICKET keeps in each layer, and where it comes from.

    \b
    Example:
      tombola inspect runs/digits/RUN/tickets/round-01.safetensors
    """
    from tombola.lab.cli.inspection import description, load
    from tombola.lab.report.terminal import stdout

    stdout().print(description(load(ticket), ticket))


@cli.command()
@click.argument("folders", metavar="DIR...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The page to write; a CSV with the same numbers goes beside it.  [default: report.html in the first DIR]",
)
@click.option(
    "--figure",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write accuracy against density as an SVG picture too.",
)
@click.option(
    "--figures",
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    help="Write every figure as PDF, SVG and PNG into this folder too.",
)
def report(folders: tuple[Path, ...], output: Path | None, figure: Path | None, figures: Path | None) -> None:
    """Write one page about all runs in some folders, finished or not.

    What is published of the same data, model and density stands beside what was measured.

    \b
    Examples:
      tombola report runs/digits runs/asked -o both.html
      tombola report runs/digits --figure digits.svg
      tombola report runs/digits --figures figures
    """
    from tombola.lab.cli.running import print_report

    print_report(folders, output, figure, figures)


@cli.command()
@click.argument("ticket", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--to", type=click.Choice(EXPORTS), required=True, help="What to make of it.")
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The file to write.  [default: beside the ticket, with a name of its own]",
)
@click.option("--batch", type=COUNT, default=64, show_default=True, help="sparse: examples at a time to be fast at.")
@click.option("--threads", type=COUNT, metavar="N", show_default="one per CPU", help="PyTorch's.")
@click.option(
    "--bf16",
    is_flag=True,
    help="sparse: let dense layers multiply in bfloat16, which is less exact. 2:4: values in bfloat16, not float16.",
)
@_OWN_MODEL
@click.pass_context
def export(
    context: click.Context,
    ticket: Path,
    to: str,
    output: Path | None,
    batch: int,
    threads: int | None,
    bf16: bool,
    model: str | None,
) -> None:
    """Write the network of TICKET in the form that another program or a machine wants, for inference.

    \b
    state-dict    PyTorch's, dense with zeros: any program loads it
    safetensors   the same in that format
    onnx          for batches of any size; ONNX Runtime is checked beside PyTorch
    torch-export  a program of torch.export, for batches of any size, checked
    2:4           half the values, semi-structured tensors on a GPU; for masks of --pattern 2:4
    sparse        small and fast on this machine: each layer is timed dense and sparse, and the fastest of all is kept;
                  tombola.sparse.load reads the file

    \b
    Examples:
      tombola export runs/RUN/tickets/trained.safetensors --to onnx
      tombola export runs/RUN/tickets/trained.safetensors --to sparse --batch 1
    """
    from tombola.lab.cli.exporting import export

    for option, forms in (("batch", ("sparse",)), ("bf16", ("sparse", "2:4"))):
        if option in typed(context) and to not in forms:
            raise click.UsageError(f"--{option} goes with --to {' and '.join(forms)}, not with --to {to}", context)
    export(ticket, to, output, batch=batch, threads=threads, bf16=bf16, model=model)


@cli.command(cls=Bench)
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--batch", "batches", type=Listing(COUNT), default="1,64", show_default=True, help="Examples at a time.")
@click.option("--threads", type=COUNT, metavar="N", show_default="one per CPU", help="Of each engine.")
@click.option("--turns", type=COUNT, default=15, show_default=True, help="How often each engine is timed.")
@click.option("--bf16", is_flag=True, help="PyTorch in bfloat16 too.")
@_OWN_MODEL
def bench(file: Path, batches: tuple[int, ...], threads: int | None, turns: int, bf16: bool, model: str | None) -> None:
    """Time the network in FILE beside PyTorch, torch.compile and ONNX Runtime with the dense one.

    Each engine is alone in its process, and they take turns. `tombola bench parallel` is another command: it times the
    training of several networks as one, which is what --together does. (A file of that name is ./parallel.)

    \b
    Examples:
      tombola bench runs/RUN/tickets/trained.sparse.safetensors --batch 1,64
      tombola bench parallel --help
    """
    from tombola.lab.cli.exporting import print_speeds

    print_speeds(file, batches, threads=threads, turns=turns, bf16=bf16, model=model)


@click.command(PARALLEL)
@click.option(
    "--members",
    type=Listing(COUNT),
    default="2,4,8",
    show_default=True,
    metavar="K,...",
    help="Networks at once.",
)
@network_options
@click.option("--threads", type=COUNT, metavar="N", default=1, show_default=True, help="PyTorch's.")
@click.option("--turns", type=COUNT, default=15, show_default=True, help="How often both ways are timed.")
@click.option("--device", metavar="NAME", default="cpu", show_default=True, help="cpu, cuda, cuda:1, ...")
def parallel(members: tuple[int, ...], threads: int, turns: int, **options: Any) -> None:
    """Time a training step of several networks, one after the other and computed as one, as --together does it.

    A step is forward, backward and an update by SGD; each network has weights and a batch of its own. First it is
    checked that losses, gradients and buffers are those of the networks alone.

    \b
    Examples:
      tombola bench parallel
      tombola bench parallel --model resnet20 --data cifar10 --data-dir DIR --device cuda
    """
    from tombola.lab.cli.gains import print_gains
    from tombola.lab.cli.recipes import Training

    given = {name: value for name, value in options.items() if value is not None}
    print_gains(Training(compile=False, **given), members, threads=threads, turns=turns)


Bench.parallel = parallel


def typed(context: click.Context) -> set[str]:
    """Names of the options that were typed."""
    source = click.core.ParameterSource.COMMANDLINE
    return {name for name in context.params if context.get_parameter_source(name) is source}


def _command(context: click.Context) -> str:
    """The command as it was typed, ready to be typed again."""
    return shlex.join(["tombola", *context.find_root().meta["arguments"]])
