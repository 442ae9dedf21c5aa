"""Open a model that a command names, outside of a run."""

from pathlib import Path

from mooring.config import Runner
from mooring.errors import ModelError
from mooring.inference.engine import Engine
from mooring.inference.folder import open_folder
from mooring.inference.load import load_engine
from mooring.merging.pair import open_pair
from mooring.pipeline.sweeps.sweep import SweepSpec


def open_model(folder: Path, runner: Runner, system: str | None) -> Engine:
    """Open a checkpoint, or an adapter on the base that it names.

    An adapter that PEFT cannot attach to the class that loads its base, such as one of a wrapper's language model
    alone, is merged into it in memory instead.

    Raises:
        UserError: As `load_engine`, or the adapter does not fit its base.
    """
    try:
        return load_engine(folder, runner, system)
    except ModelError as error:
        if error.code != "model.adapter_names":
            raise
    from mooring.pipeline.sweeps.transformers import MergedModel

    pair = open_pair(open_folder(folder).base, folder)
    with MergedModel(SweepSpec(pair=pair, runner=runner, system=system)) as merged:
        return merged.at(1.0, plain=True)
