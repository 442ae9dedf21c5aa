"""vLLM's worker processes end with the process that started the engine, even if that was killed.

This module is imported by the workers alone, before they load the model; `SharedLLM.start` sees to it.
"""

import os
import signal
import threading
import time

from mooring.inference.vllm_shared import OWNER


class OwnedWorker:
    """A worker extension of vLLM (`worker_extension_cls`): importing it starts the watch."""


def exit_with_owner() -> None:
    """End this process, and vLLM's process that started it, when the process that started the engine is gone."""
    owner, parent = int(os.environ.get(OWNER, "0")), os.getppid()
    if not owner:
        return

    def watch() -> None:
        while _is_alive(owner):
            time.sleep(1)
        if parent != owner:
            os.kill(parent, signal.SIGKILL)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


exit_with_owner()
