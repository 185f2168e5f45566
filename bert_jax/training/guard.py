"""Batches that change nothing, since their loss or gradient was bad: recorded, counted, limited."""

import json
import logging
import math
from typing import Any

import ml_collections
from etils import epath

from bert_jax import files
from bert_jax.cli import UserError
from bert_jax.parallel import distributed
from bert_jax.runs import telemetry

INCIDENTS_FILE = "incidents.jsonl"


class Guard:
    """Writes WORKDIR/incidents.jsonl, a line per batch that was not accepted, and counts them.

    Args:
      config: `config.guard`.
      step: the run starts with the step after this one.
    """

    def __init__(self, config: ml_collections.ConfigDict, workdir: epath.Path, step: int):
        self._config, self._path = config, workdir / INCIDENTS_FILE
        with distributed.shared_errors():
            lines = telemetry.read_lines(self._path, step=int)
        # Those of lost steps will happen again. Their number ends the run in all processes.
        self._skipped = distributed.as_in_first([line for line in lines if line["step"] <= step])

    @property
    def rolls_back(self) -> bool:
        return self._config.action == "rollback"

    def skipped(self, step: int, values: dict[str, float], origin: dict[str, Any]) -> None:
        """Records a batch that was not accepted.

        Raises:
          UserError: it is one more than the config allows.
        """
        finite = math.isfinite(values["loss"]) and math.isfinite(values["gradient_norm"])
        reason = "spike" if finite else "not finite"
        shown = {name: repr(values[name]) for name in ("loss", "gradient_norm")}
        self._skipped.append({"step": step, "reason": reason, **shown, **origin})
        if distributed.is_first():
            lines = (json.dumps(batch) + "\n" for batch in self._skipped)
            files.write_whole(self._path, "".join(lines))
        bad = origin["out_of_vocabulary"]
        logging.warning(
            f"step {step:,}: the loss ({values['loss']:.4g}) or gradient "
            f"({values['gradient_norm']:.4g}) is {'a spike' if finite else 'not finite'}; the "
            f"batch changes nothing. It came from {', '.join(origin['records'])} of "
            f"{origin['data_dir']}"
            + "".join(
                f"; example {b['example']} of {b['record']} has token id {b['token_id']}"
                for b in bad[:3]
            )
            + f" (recorded in {self._path})"
        )
        if len(self._skipped) > self._config.max_incidents:
            raise UserError(
                f"gave up at step {step:,}: {len(self._skipped)} batches were not accepted, "
                f"config.guard.max_incidents={self._config.max_incidents}. {self._path} names "
                "them. Lower the learning rate or mend the data, then run the same command"
            )


def check_guard(guard: ml_collections.ConfigDict) -> None:
    """Raises UserError unless the rule for bad losses is one of those there are."""
    if guard.action not in ("skip", "rollback"):
        raise UserError(f"config.guard.action={guard.action!r} is neither 'skip' nor 'rollback'")
    if guard.max_loss_ratio and guard.max_loss_ratio <= 1:
        raise UserError(
            f"config.guard.max_loss_ratio={guard.max_loss_ratio}: a spike is more than 1 times "
            "the average; 0 turns the limit off"
        )
