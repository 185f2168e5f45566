"""Programs that are compiled side by side."""

import time
import types

import numpy as np

from bert_jax.parallel.programs import ShapeCache, compile_together


def test_programs_are_traced_one_at_a_time():
    """Flax changes its module classes while it makes new ones, as for a layer under remat."""
    tracing, most = 0, 0

    class Function:
        def lower(self, batch):
            nonlocal tracing, most
            tracing += 1
            most = max(most, tracing)
            time.sleep(0.01)
            tracing -= 1
            return types.SimpleNamespace(compile=lambda: len(batch["x"]))

    by_shape = ShapeCache(Function())
    batches = [{"x": np.zeros(i)} for i in range(1, 9)]
    compile_together([(by_shape, (batch,)) for batch in batches])
    assert most == 1
    assert [by_shape.programs[ShapeCache.key(batch)] for batch in batches] == [*range(1, 9)]
