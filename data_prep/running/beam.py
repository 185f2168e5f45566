"""The two stages as an Apache Beam pipeline: the same bytes, on as many machines as there are.

    python -m data_prep.build … --runner=beam --beam_options='--runner=DataflowRunner --project=…'

With a runner on several machines, input and output must be on a file system that all of them see,
such as gs://. Every worker machine copies the token store once (about 0.45 bytes per byte of text)
to its temporary directory.
"""

import functools
import shlex
import traceback
from collections.abc import Sequence

from bert_jax.cli import UserError
from data_prep.running import stages
from data_prep.sources import corpus


def run(job: stages.Job, parts: Sequence[corpus.Part], beam_options: str) -> None:
    """Runs both stages; what is finished already is skipped.

    Args:
      job: what to build.
      parts: of its input.
      beam_options: Beam's own flags in one string; '' runs in this process.

    Raises:
      UserError: Beam is not installed, or a worker met a user's mistake.
    """
    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError:
        raise UserError("--runner=beam needs Apache Beam: pip install 'bert_jax[beam]'") from None

    flags = shlex.split(beam_options)
    if not any(flag.startswith("--runner") for flag in flags):
        # What "DirectRunner" ends up with, after trying to download another one.
        flags.append("--runner=FnApiRunner")
    try:
        with beam.Pipeline(options=PipelineOptions(flags)) as pipeline:
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
        name = f"{UserError.__module__}.{UserError.__qualname__}: "
        lines = "".join(traceback.format_exception(error)).split("\n")
        message = next((line.partition(name)[2] for line in lines if name in line), "")
        if not message:
            raise
        raise UserError(message.partition(" [while running")[0]) from None


def _tokenize(job: stages.Job, unit: corpus.Unit) -> str:
    stages.tokenize(job, unit)
    return unit.name
