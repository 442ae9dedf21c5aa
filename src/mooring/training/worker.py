"""One of the processes that tune together: `torchrun … -m mooring.training.worker JOB`.

The first one writes each event to stdout, as a line of JSON. Whatever else is printed goes to stderr.
"""

import json
import os
import sys
import threading
from pathlib import Path

from mooring.errors import UserError
from mooring.events import Event
from mooring.training.processes import Job


def main() -> None:
    """Do a job's part of this process."""
    first = os.environ["RANK"] == "0"
    events = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    threading.Thread(target=_end_with_owner, daemon=True).start()
    from mooring.training.lora import train

    def say(kind: str, what: object) -> None:
        events.write(json.dumps({kind: what}) + "\n")

    def relay(event: Event) -> None:
        if first:
            say("event", event.to_dict())

    try:
        train(Job.from_json(Path(sys.argv[1]).read_text()), relay)
    except UserError as error:
        type_ = type(error).__name__
        say("error", {"type": type_, "message": error.message, "hint": error.hint, "code": error.code})
        sys.exit(error.exit_code)
    finally:
        import torch.distributed

        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def _end_with_owner() -> None:
    """End when the process that started the tuning has ended: it holds the other end of stdin."""
    while os.read(0, 1024):
        pass
    os._exit(1)


if __name__ == "__main__":
    main()
