"""The audit of other packages: which licences bind, and what an answer about weaknesses means."""

from __future__ import annotations

import json

import pytest

from tools.audit import binding_licences, weaknesses


@pytest.mark.parametrize(
    ("licence", "binds"),
    [
        ("MIT", False),
        ("LGPL-3.0-or-later", False),
        ("GNU Library or Lesser General Public License (LGPL)", False),
        ("GPL-2.0-only", True),
        ("AGPL-3.0", True),
        ("GNU General Public License v3 (GPLv3)", True),
        ("GNU Affero General Public License v3", True),
        ("MPL-2.0 AND MIT", False),
    ],
)
def test_licences_that_bind_are_named(licence: str, binds: bool) -> None:
    assert bool(binding_licences([{"Name": "some-package", "License": licence}])) == binds
    assert not binding_licences([{"Name": "codespell", "License": licence}]), "a program of the checks only"


def test_no_answer_is_told_from_no_weakness() -> None:
    packages = [
        {"name": "a", "version": "1", "vulns": []},
        {
            "name": "b",
            "version": "2",
            "vulns": [{"id": "CVE-1", "fix_versions": ["3"]}, {"id": "CVE-2", "fix_versions": []}],
        },
        {"name": "c", "skip_reason": "not found"},
    ]
    assert weaknesses(json.dumps({"dependencies": packages})) == (
        ["b 2: CVE-1, repaired in 3", "b 2: CVE-2, repaired in none yet"],
        2,
    )
    assert weaknesses("") == ([], 0) and weaknesses(json.dumps({"dependencies": packages[2:]})) == ([], 0)
