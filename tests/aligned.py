"""The alignment of a head that lies in the template already, for tests that are not about the search for it."""

from __future__ import annotations

import numpy as np

from neuroflamingo_preprocessing.structural.alignment import Alignment
from neuroflamingo_preprocessing.structural.brain_extraction import Brain
from neuroflamingo_preprocessing.structural.template import load_template


def lies_in_the_template() -> Alignment:
    """What `align` would find."""
    template = load_template()
    brain = Brain(template.mask > 0, template.affine, given=True, limits=(-1e6, 1e6))
    return Alignment(np.eye(4), fit=0.98, correlation=0.98, overlap=0.98, starts=1, turned=False, brain=brain)
