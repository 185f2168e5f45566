"""The two stages as an Apache Beam pipeline: the same bytes, on as many machines as there are.

    python -m data_prep.build … --runner=beam --beam_options='--runner=DataflowRunner --project=…'

On Dask, Beam 2.77 gives silently wrong results for tagged outputs, Partition, Top, finish_bundle,
BatchElements, windows, and keys that are equal without being the same (1 and True): none is used.

With a runner on several machines, input and output must be on a file system that all of them see,
such as gs://. Every worker machine copies the token store once (about 0.45 bytes per byte of text)
to its temporary directory.
"""

import argparse
import functools
import logging
import re
import shlex
import traceback
from collections.abc import Sequence
from typing import Any

from bert_jax.cli import UserError, brief
from data_prep.running import stages
from data_prep.sources import corpus

_USER_ERROR = re.compile(r"^(?:\S*: )?bert_jax\.(?:cli\.UserError|files\.DamagedError): (.*)", re.M)
_DASK = "apache_beam.runners.dask.dask_runner.DaskRunner"
_LONG_NAMES = {"daskrunner": _DASK, "dask": _DASK}  # Beam has short names for its others


def run(job: stages.Job, parts: Sequence[corpus.Part], beam_options: str) -> None:
    """Runs both stages; what is finished already is skipped.

    Args:
      job: what to build.
      parts: of its input.
      beam_options: Beam's own flags in one string; '' runs in this process.

    Raises:
      UserError: Beam is not installed or does not know the flags, or a worker met a user error.
    """
    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError:
        raise UserError("--runner=beam needs Apache Beam: pip install 'bert_jax[beam]'") from None

    for noisy in ("apache_beam", "distributed"):  # every worker's coming and going
        logging.getLogger(noisy).setLevel(logging.WARNING)
    pipeline = _pipeline(beam, PipelineOptions, beam_options)
    try:
        with pipeline:
            merged = pipeline | "start" >> beam.Create([None])
            if not stages.has_store(job):
                merged = (
                    pipeline
                    | "parts" >> beam.Create(parts)
                    | "spread parts" >> beam.Reshuffle()
                    | "read" >> beam.FlatMap(stages.read_units)
                    | "spread units" >> beam.Reshuffle()
                    | "tokenise" >> beam.Map(functools.partial(_tokenize, job))
                    # One list once all units are done, also if there are none.
                    | "all units" >> beam.combiners.ToList()
                    | "merge" >> beam.Map(lambda names: stages.merge(job, names))
                )
            _ = (
                merged
                | "shards" >> beam.FlatMap(lambda _: stages.list_shards(job))
                | "spread shards" >> beam.Reshuffle()
                | "write" >> beam.Map(functools.partial(stages.write_shard, job))
            )
    except Exception as error:
        # Beam wraps what a worker raised, and only the text of its traceback survives.
        message = _USER_ERROR.search("".join(traceback.format_exception(error)))
        if not message:
            raise
        raise UserError(message[1].partition(" [while running")[0]) from None


def _pipeline(beam: Any, pipeline_options: Any, beam_options: str) -> Any:
    """An empty pipeline with the runner that the flags name.

    Raises:
      UserError: flags or a runner that Beam does not know.
    """
    try:
        flags = _with_runner(shlex.split(beam_options))
        return beam.Pipeline(options=pipeline_options(flags))
    except (Exception, SystemExit) as error:  # of a runner's module, too, anything may come
        shown = (
            brief(error).partition(". Valid values")[0]
            if isinstance(error, Exception)
            else "see above"
        )
        raise UserError(
            f"--beam_options={shlex.quote(beam_options)} cannot be used ({shown}): expected Beam's "
            "flags, as in '--runner=DataflowRunner --project=P --region=R'; runners are "
            "FnApiRunner, DaskRunner, DataflowRunner, FlinkRunner, SparkRunner, or MODULE.CLASS"
        ) from None


def _with_runner(flags: Sequence[str]) -> list[str]:
    """['--runner=DaskRunner'] -> ['--runner=apache_beam.….DaskRunner'], which Beam needs."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    # What "DirectRunner" ends up with, after trying to download another one.
    parser.add_argument("--runner", default="FnApiRunner")
    known, others = parser.parse_known_args(flags)
    return [f"--runner={_LONG_NAMES.get(known.runner.lower(), known.runner)}", *others]


def _tokenize(job: stages.Job, unit: corpus.Unit) -> str:
    stages.tokenize(job, unit)
    return unit.name
