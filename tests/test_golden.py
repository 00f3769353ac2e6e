"""What the quick tests read is what Keras says today."""

import golden
import numpy as np
import pytest


@pytest.mark.slow
@pytest.mark.parametrize("name", golden.ANSWERS)
def test_what_is_saved_is_what_keras_says(name):
    said, saved = golden.answer(name), golden.saved(name)
    assert said.keys() == saved.keys()
    for key, value in said.items():
        np.testing.assert_allclose(value, saved[key], rtol=1e-4, atol=1e-5, err_msg=key)
