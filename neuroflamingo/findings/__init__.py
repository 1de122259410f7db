"""Findings: the vocabulary, the text written from them, and the way back.

`schema` has the vocabulary, `regions` the places in MNI space, `wording` writes reports (its sentences are in
`phrases`), `parsing` reads them (its words are in `lexicon`, its grammar in `statements`).
"""
