"""The writer of YAML: numbers in YAML's form, and an error for values without one."""

from __future__ import annotations

import pytest

from fastapi_observe.slo.prometheus.yaml import dump


def test_values_without_a_yaml_form() -> None:
    """A value without a YAML form raises an error that names YAML."""
    with pytest.raises(TypeError, match=r"cannot write .* as YAML"):
        dump({"a": object()})


def test_numbers_have_the_form_of_yaml() -> None:
    """NaN, infinity and large numbers are written in YAML's form."""
    assert dump({"a": [float("nan"), float("inf"), float("-inf"), 1e30]}).split()[2::2] == [
        ".nan",
        ".inf",
        "-.inf",
        "1.0e+30",
    ]
