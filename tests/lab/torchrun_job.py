"""What each rank does that `test_torchrun.py` starts: the runs of a JSON file, together. Each keeps its tickets too."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

from tombola.lab.config import RunConfig
from tombola.lab.errors import LabError
from tombola.lab.launched import launched
from tombola.lab.runs import work
from tombola.lab.runs.how import How
from tombola.lab.runs.on_ranks import run_on_ranks

if __name__ == "__main__":
    here, folder = launched(), Path(sys.argv[1])
    assert here is not None
    mine = folder / f"rank-{here.rank}"
    save = work.Ticket.save

    def save_twice(ticket: work.Ticket, path: Path) -> None:
        save(ticket, path)
        save(ticket, mine / f"{path.parent.parent.name} {path.name}")

    mine.mkdir()
    work.Ticket.save = save_twice  # type: ignore[method-assign,assignment]
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", message="round ")  # that few epochs leave scores undecided
    configs = [RunConfig.from_json(text) for text in json.loads((folder / "configs.json").read_text())]
    events: list[str] = []
    try:
        run_on_ranks(
            configs, folder / "together", How(), here, on_event=lambda run, event: events.append(event["event"])
        )
    except LabError as error:
        events.append(str(error))
    (folder / f"events-{here.rank}.json").write_text(json.dumps(events))
