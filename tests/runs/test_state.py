"""The state before the first step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bert_jax.parallel import sharding
from bert_jax.runs.state import init_state


def draw(key):
    return {
        name: {"kernel": jax.random.normal(jax.random.fold_in(key, i), (8, 4))}
        for i, name in enumerate(("pooler", "classifier"))
    }


def test_given_parameters_leave_the_others_as_they_are_drawn():
    mesh, optimizer = sharding.make_mesh(-1, 1, 1), optax.adam(1e-3)
    drawn = init_state(draw, optimizer, mesh, 7)
    given = {"pooler/kernel": np.arange(32.0).reshape(8, 4)}  # float64: stored as the model's
    state = init_state(draw, optimizer, mesh, 7, given=given)
    kernel = state.params["pooler"]["kernel"]
    assert kernel.dtype == jnp.float32
    np.testing.assert_array_equal(kernel, given["pooler/kernel"])
    np.testing.assert_array_equal(
        state.params["classifier"]["kernel"], drawn.params["classifier"]["kernel"]
    )
    assert jax.tree.structure(state) == jax.tree.structure(drawn)
    assert not any(np.any(x) for x in jax.tree.leaves(state.opt_state))
