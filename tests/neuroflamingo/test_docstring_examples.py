"""The examples in the docstrings of the public classes run and give what they show."""

from __future__ import annotations

import doctest
import importlib

import pytest

OPTIONS = doctest.ELLIPSIS | doctest.IGNORE_EXCEPTION_DETAIL
WITH_EXAMPLES = (
    "neuroflamingo.findings.vocabulary:Finding",
    "neuroflamingo.inference.pipeline:write_report",
    "neuroflamingo.model.config:NeuroFlamingoConfig",
    "neuroflamingo.model.fusion:FusedLayer",
    "neuroflamingo.model.gated_attention:GatedCrossAttentionBlock",
    "neuroflamingo.model.neuroflamingo:NeuroFlamingo",
    "neuroflamingo.model.processor:NeuroFlamingoProcessor",
    "neuroflamingo.model.resampler:PerceiverResampler",
    "neuroflamingo.report.model:Report",
)


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_example_in_the_docstring_runs(name: str) -> None:
    module_name, _, member = name.partition(":")
    documented = getattr(importlib.import_module(module_name), member)
    found = [test for test in doctest.DocTestFinder(recurse=False).find(documented, member, globs={}) if test.examples]
    assert found, f"{name} has no example"
    for test in found:
        assert doctest.DocTestRunner(optionflags=OPTIONS).run(test).failed == 0
