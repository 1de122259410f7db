"""`report_words`: the words of a report, taken out of a file that may be one of our own reports."""

from __future__ import annotations

import json
import re

from neuroflamingo.report.records import BANNER

_OWN_TEXT = re.compile(
    re.escape(BANNER)
    + r"[^\n]*\n\n[^\n]*\nModel [^\n]*, NeuroFlamingo [^\n]*\n\n(?P<words>.*?)\n\n+"
    + r"(?:WHAT CHANGED|WHAT SPEAKS AGAINST IT|FINDINGS READ FROM THE TEXT)\n",
    re.DOTALL,
)


def report_words(contents: str) -> str:
    """The words of a report, without surrounding blanks.

    Of a report that `to_text` or `to_json` wrote these are what it states; its banner, findings, prompt and provenance
    are left out. Any other text is taken as it is.
    """
    text = contents.strip()
    own = _OWN_TEXT.match(text)
    if own is not None:
        return own["words"].strip()
    if text.startswith("{"):
        try:
            stored = json.loads(text)
        except ValueError:
            return text
        if isinstance(stored, dict) and {"banner", "text", "provenance"} <= stored.keys():
            return str(stored.get("stated_text") or stored["text"]).strip()
    return text
