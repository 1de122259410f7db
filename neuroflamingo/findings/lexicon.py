"""Vocabulary of brain scan reports as patterns, for the parser.

Patterns match lower-case text in which hyphens are spaces; a blank in a pattern matches any run of blanks. If two
patterns overlap, the longer match wins, so that "mass effect" is not a mass. Own work, from general radiological usage;
negation follows the idea of ConText (Harkema et al. 2009, doi:10.1016/j.jbi.2009.05.002): triggers before and after
a term, pseudo-triggers, and words that end a trigger's scope.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import NamedTuple

from neuroflamingo.findings.vocabulary import Certainty, FindingClass, Region, Side, Signal


class Tag(StrEnum):
    """Kind of a matched range of text."""

    CLASS = "class"
    STRUCTURE = "structure"  # something that can be normal or changed
    CHANGE = "change"  # a change that names a class only together with a structure
    NORMAL = "normal"
    WHOLE = "whole"  # the scan or brain as a whole
    ABNORMAL = "abnormal"  # a finding without a class
    SIDE = "side"
    REGION = "region"
    SIZE = "size"
    GRADE = "grade"
    SIGNAL = "signal"
    MAYBE = "maybe"
    NEGATION = "negation"
    NEGATION_AFTER = "negation after"
    STOP = "stop"  # ends the reach of a negation
    VERB = "verb"
    ASIDE = "aside"  # what follows is a neighbour of the finding, not its place
    SAME = "same"  # refers back to the finding before
    UNREADABLE = "unreadable"  # the scan shows nothing to report
    IGNORED = "ignored"


class Match(NamedTuple):
    """One tagged range of text, in character offsets."""

    start: int
    end: int
    tag: Tag
    value: object


C, G, W = FindingClass, Region, Side
_LESION = (
    "(?:lesions?|changes?|disease|foc(?:i|us)|abnormalit(?:y|ies)|alterations?|damage|rarefaction|spots?"
    "|(?:hypo|hyper) ?intensit(?:y|ies)|injury|signal (?:changes?|loss))"
)
_SEEN = (
    "(?:seen|present|visible|visuali[sz]ed|identified|detected|found|demonstrated|evident|observed|noted|apparent"
    "|appreciated|shown|depicted|recogni[sz]ed|there)"
)
_SHOW = "(?:show|demonstrate|reveal|contain|display|depict|exhibit|have|harbou?r|suggest|indicate)"
_PLACE = "(?:frontal|parietal|temporal|occipital|insula|basal|thalam|cerebell|hemispher)"
_NUMBER = r"\d{1,3}(?:[.,]\d{1,3})?"
_MM, _CM = "(?:mm|millimet(?:er|re)s?)", "(?:cm|centimet(?:er|re)s?)"
_BETWEEN = r" ?(?:x|×|by|\*|to) ?"

_PATTERNS: list[tuple[Tag, object, str]] = [
    (Tag.CLASS, C.INFARCT, r"(?:lacunar |cortical |territorial |ischa?emic )?infarct(?:s|ions?|ed)?"),
    (Tag.CLASS, C.INFARCT, r"(?:ischa?emic )?strokes?|(?:cystic )?encephalomalaci[ac]|lacun(?:es?|as?)|porencephal\w+"),
    (Tag.CLASS, C.INFARCT, r"(?:post )?ischa?emic (?:lesions?|injury|insults?|damage|defects?|cavit(?:y|ies)|scars?)"),
    (Tag.CLASS, C.INFARCT, r"lacunar (?:strokes?|lesions?|defects?|foc(?:us|i))|post stroke (?:change|defect|cavity)"),
    (Tag.CLASS, C.INFARCT, r"ischa?emic (?:events?|territor(?:y|ies)|areas?|foc(?:us|i)|changes?|softening|necrosis)"),
    (Tag.CLASS, C.INFARCT, r"glio(?:tic|sis)(?: (?:cavit(?:y|ies)|scars?|areas?|changes?))?|cerebromalacia|malacia"),
    (Tag.CLASS, C.INFARCT, r"malacic (?:area|defect|change)s?|cerebrovascular (?:accident|insult|event)s?"),
    (Tag.CLASS, C.MASS, r"(?:focal )?mass(?:es)?(?: lesions?)?|tumou?rs?|neoplasms?|gliomas?|meningiomas?"),
    (
        Tag.CLASS,
        C.MASS,
        r"neoplas(?:ia|tic)|astrocytomas?|(?:glio|medullo|neuro)blastomas?|lymphomas?|tumou?r(?:s|al)? (?:mass|lesion)",
    ),
    (Tag.CLASS, C.MASS, r"metastas[ei]s|space occupying (?:lesions?|process(?:es)?|abnormality)"),
    (Tag.CLASS, C.MASS, r"(?:neoplastic|expansile|tumou?rous|mass like) (?:lesions?|process(?:es)?|growths?)|growths?"),
    (Tag.CLASS, C.HEMATOMA, r"(?:intra(?:cerebral|parenchymal|cranial) )?ha?ematomas?|(?:micro)?ha?emorrhages?"),
    (Tag.CLASS, C.HEMATOMA, r"bleed(?:s|ing)?|blood (?:products?|collections?|clots?)|clots?|blood"),
    (Tag.CLASS, C.HEMATOMA, r"extravasat\w+|met ?ha?emoglobin|blood (?:degradation|breakdown) products|coagulum|bled"),
    (Tag.CLASS, C.HEMATOMA, r"ha?emorrhagic (?:lesions?|foc(?:us|i)|collections?|areas?)"),
    (Tag.CLASS, C.WHITE_MATTER_LESIONS, rf"white matter (?:signal )?{_LESION}|leu[ck]oaraiosis|leu[ck]oencephalopathy"),
    (Tag.CLASS, C.WHITE_MATTER_LESIONS, rf"{_LESION} (?:of|in|within|throughout) (?:the )?(?:cerebral )?white matter"),
    (Tag.CLASS, C.WHITE_MATTER_LESIONS, rf"(?:chronic )?small vessel (?:ischa?emic )?{_LESION}|microangiopath(?:y|ic)"),
    (Tag.CLASS, C.WHITE_MATTER_LESIONS, rf"microvascular (?:ischa?emic )?{_LESION}|periventricular {_LESION}"),
    (Tag.CLASS, C.WHITE_MATTER_LESIONS, r"demyelinat\w+|wm[hl]s?"),
    (Tag.CLASS, C.VENTRICULAR_ENLARGEMENT, r"ventriculomegaly|hydrocephal(?:us|ic)(?: ex vacuo)?"),
    (Tag.CLASS, C.ATROPHY, r"atroph(?:y|ic|ied)|(?:volume|parenchymal|tissue|neuronal) loss"),
    (Tag.CLASS, C.ATROPHY, r"loss of (?:\w+ )?(?:volume|tissue|parenchyma)"),
    (
        Tag.CLASS,
        C.ATROPHY,
        r"loss of (?:gr[ae]y matter|cortex|substance)|wasting|wasted|shrunk|(?:cortical|cortex) loss",
    ),
    (Tag.CLASS, C.ATROPHY, r"shrink(?:age|ing)|shrunken|involution|(?:cortical|gyral) thinning|thinn(?:ed|ing)"),
    (
        Tag.IGNORED,
        None,
        rf"(?:{_NUMBER} ?{_MM} (?:of )?)?(?:leftward |rightward |left to right |right to left )?midline shift"
        rf"(?: (?:(?:to|towards) the (?:left|right)|(?:of|by) {_NUMBER} ?{_MM}|, {_NUMBER} ?{_MM}))*",
    ),
    (
        Tag.IGNORED,
        None,
        rf"shift of (?:the )?midline(?: structures)?"
        rf"(?: (?:(?:to|towards) the (?:left|right)|(?:of|by) {_NUMBER} ?{_MM}))*",
    ),
    (Tag.IGNORED, None, r"mass effect|blood (?:vessels?|flow|supply)|growth of the child"),
    (Tag.STRUCTURE, "white matter", r"(?:deep |subcortical |periventricular |cerebral )*white matter(?: signal)?"),
    (
        Tag.STRUCTURE,
        "ventricles",
        r"(?:lateral )?ventric(?:les?|ular)(?: (?:system|size|caliber|calibre|spaces?))?"
        r"|(?:frontal|occipital|temporal) horns?|csf spaces?",
    ),
    (
        Tag.STRUCTURE,
        "volume",
        r"(?:(?:brain|cerebral|cortical|parenchymal|lobar|tissue) )?volumes?|gyri|(?:brain )?parenchyma"
        r"|cortical thickness",
    ),
    (Tag.STRUCTURE, "sulci", r"sulc(?:i|us|al(?: pattern| spaces)?)"),
    (Tag.CHANGE, "lesion", _LESION),
    (
        Tag.CHANGE,
        "large",
        r"enlarg(?:ed|ement|ing)|dilat(?:ed|ion|ation)|prominen(?:t|ce)|widen(?:ed|ing)|increased?|expan(?:ded|sion)"
        r"|distend(?:ed)?|distension|ectasia|ballooned|wide|large|big|ex vacuo"
        r"|(?:greater|larger|wider|bigger|fuller) than (?:expected|normal|usual)|wider|larger|ample|capacious|generous",
    ),
    (Tag.CHANGE, "small", r"reduced|reduction|decreased?|diminished|diminution|lost|loss|low(?:er|ered)?|small(?:er)?"),
    (
        Tag.NORMAL,
        None,
        r"normal(?:ly)?|unremarkable|preserved|maintained|intact|within normal limits|age appropriate|unaltered"
        r"|appropriate for (?:the )?(?:\w+ )?age|clear|of expected size|as expected"
        r"|slim|slender|healthy|regular|inconspicuous|of (?:good|usual|ordinary|expected) (?:size|width|volume)",
    ),
    (
        Tag.WHOLE,
        None,
        r"(?:brain |head |cranial |cerebral )?(?:mri|mr|scan|study|examination|exam|imaging|appearances?|images?)|brain"
        r"|(?:t1 )?appearance of the brain|anatomy",
    ),
    (
        Tag.ABNORMAL,
        None,
        r"(?:structural |focal |intracranial |significant )+(?:abnormalit(?:y|ies)|lesions?|findings?)"
        r"|patholog(?:y|ies)|abnormal(?:ly)?|(?:pathological|other|further|additional|new) findings?",
    ),
    (Tag.SIDE, W.LEFT, rf"l(?= {_PLACE})"),
    (Tag.SIDE, W.RIGHT, rf"r(?= {_PLACE})"),
    (Tag.SIDE, W.LEFT, r"left(?: sided| side| hemispher(?:e|ic))?|lt|leftward"),
    (Tag.SIDE, W.RIGHT, r"right(?: sided| side| hemispher(?:e|ic))?|rt|rightward"),
    (
        Tag.SIDE,
        W.BILATERAL,
        r"bilateral(?:ly)?|both(?: (?:cerebral )?hemispheres| sides)?|global(?:ly)?|generali[sz]ed|diffuse(?:ly)?"
        r"|(?:left and|left and the) right|right and (?:the )?left|either (?:side|hemisphere)",
    ),
    (Tag.SIDE, W.MIDLINE, r"(?:in |at |on |near )?(?:the )?midline|median|paramedian"),
    (Tag.REGION, G.FRONTAL, r"(?:bi|pre)?frontal(?: lobes?| cortex)?|precentral|fronto ?(?:parietal|temporal)"),
    (
        Tag.REGION,
        G.PARIETAL,
        r"(?:bi)?parietal(?: lobes?| cortex)?|postcentral|precune(?:us|al)|angular gyrus|supramarginal",
    ),
    (
        Tag.REGION,
        G.FRONTAL,
        r"(?:supplementary |pre|primary )?motor (?:cortex|area|strip)|broca s? area|orbito ?frontal",
    ),
    (Tag.REGION, G.PARIETAL, r"(?:somato)?sensory (?:cortex|strip)"),
    (Tag.REGION, G.PARIETAL, r"parieto ?(?:occipital|temporal)"),
    (Tag.REGION, G.TEMPORAL, r"(?:bi)?temporal(?: lobes?| cortex| pole)?|hippocamp(?:us|i|al)|amygdala|fusiform gyrus"),
    (
        Tag.REGION,
        G.TEMPORAL,
        r"uncus|entorhinal(?: cortex)?|para ?hippocampal(?: gyrus)?|heschl s? gyrus|auditory cortex",
    ),
    (Tag.REGION, G.TEMPORAL, r"temporo ?(?:parietal|occipital)"),
    (Tag.REGION, G.OCCIPITAL, r"(?:bi)?occipital(?: lobes?| cortex| pole)?|cuneus|calcarine|visual cortex"),
    (Tag.REGION, G.OCCIPITAL, r"lingual gyrus"),
    (Tag.REGION, G.INSULA, r"insula[rse]?|insular (?:cortex|ribbon|lobe)|operculo insular"),
    (Tag.REGION, G.BASAL_GANGLIA, r"basal gangli(?:a|on|onic)|caudate(?: nucleus| head)?|putam(?:en|inal)|striatum"),
    (Tag.REGION, G.BASAL_GANGLIA, r"globus pallidus|pallidum|lent(?:iform|icular)(?: nucleus)?|striat(?:al|ocapsular)"),
    (Tag.REGION, G.BASAL_GANGLIA, r"(?:internal|external) capsule|capsulo ?lenticular|pallidal|nucleus accumbens"),
    (Tag.REGION, G.THALAMUS, r"thalam(?:us|i|ic)|pulvinar"),
    (Tag.REGION, G.BRAINSTEM, r"(?:cerebral|mesencephalic) peduncles?|tegmentum|tectum|bulbar"),
    (Tag.REGION, G.CEREBELLUM, r"dentate nucleus|cerebellar (?:tonsils?|peduncles?)|infratentorial"),
    (Tag.REGION, G.BRAINSTEM, r"brain ?stem|pons|pontine|midbrain|mesencephal(?:on|ic)|medulla(?:ry)?(?: oblongata)?"),
    (Tag.REGION, G.CEREBELLUM, r"cerebell(?:um|ar)(?: hemispheres?| vermis)?|vermis|posterior fossa"),
    (Tag.SIZE, 1.0, rf"(?:{_NUMBER}{_BETWEEN})*{_NUMBER} ?{_MM}(?:{_BETWEEN}{_NUMBER} ?{_MM})*"),
    (Tag.SIZE, 10.0, rf"(?:{_NUMBER}{_BETWEEN})*{_NUMBER} ?{_CM}(?:{_BETWEEN}{_NUMBER} ?{_CM})*"),
    (Tag.GRADE, 1, r"mild(?:ly)?|slight(?:ly)?|minimal(?:ly)?|minor|discrete|subtle|sparse|few|scattered"),
    (Tag.GRADE, 1, r"light(?:ly)?|faint|modest(?:ly)?|borderline"),
    (Tag.GRADE, 1, r"grade (?:1|i)|fazekas (?:grade )?(?:1|i)"),
    (Tag.GRADE, 2, r"moderate(?:ly)?|mild(?:ly)? to moderate(?:ly)?|intermediate|(?:fazekas |grade )+(?:2|ii)"),
    (
        Tag.GRADE,
        3,
        r"severe(?:ly)?|marked(?:ly)?|extensive(?:ly)?|pronounced|advanced|gross(?:ly)?|confluent|massive(?:ly)?"
        r"|substantial(?:ly)?|considerabl[ey]|profound(?:ly)?|heavy|florid|end stage"
        r"|moderate(?:ly)? to severe(?:ly)?|(?:fazekas |grade )+(?:3|iii)",
    ),
    (
        Tag.SIGNAL,
        Signal.LOW,
        r"hypo ?intens(?:e|ity)|(?:t1 )?dark(?:er)?|low(?:er|ered)? (?:t1 )?(?:signal|intensity)(?: intensity)?"
        r"|(?:decreased|reduced|diminished) (?:t1 )?signal(?: intensity)?|loss of signal|signal (?:loss|void)"
        r"|signal is (?:low|reduced|decreased)|(?:csf|fluid) (?:like )?(?:signal|intensity)|black"
        r"|(?:dark|low) on t1|signal (?:drop|reduction|decrease)",
    ),
    (
        Tag.SIGNAL,
        Signal.HIGH,
        r"hyper ?intens(?:e|ity)|(?:t1 )?bright(?:er|ness)?|high(?:er)? (?:t1 )?(?:signal|intensity)(?: intensity)?"
        r"|(?:increased|raised|elevated) (?:t1 )?signal(?: intensity)?|signal is (?:high|raised|increased)"
        r"|t1 shortening|(?:bright|high) on t1|signal (?:elevation|increase)",
    ),
    (
        Tag.MAYBE,
        Certainty.POSSIBLE,
        r"(?:cannot|can not|could not) (?:(?:completely |entirely )?exclude|rule out)|favou?red (?:to represent|over)"
        r"|suggestive of|possibl[ey]|probabl[ey]|suspected|suspicious for|suspicion of|questionable|equivocal|perhaps"
        r"|likely"
        r"|(?:may|might|could) (?:represent|be|reflect|suggest)|(?:cannot|can not) be (?:excluded|ruled out)"
        r"|not (?:be )?(?:excluded|ruled out)|uncertain|presum(?:ed|abl[ey])|doubtful|concern(?:ing)? for",
    ),
    (
        Tag.NEGATION,
        None,
        r"no|not|non|(?:nor|neither)(?: (?:is|are|was|were)(?: there)?)?|without|negative for|absence of"
        r"|free (?:of|from)|devoid of|lack(?:s|ing)?(?: of)?"
        r"|no (?:evidence|sign|signs|indication|suggestion|trace) (?:of|for)|rather than|instead of|as opposed to"
        rf"|(?:do|does|did) not {_SHOW}|fails? to {_SHOW}|rules? out|excludes?|unlikely to be|not consistent with"
        r"|(?:cannot|can not) (?:see|identify|find)|never|nothing(?: to (?:suggest|indicate))?|none"
        r"|in place of|in lieu of|exclusion of|resolution of|(?:is|are|was|were|do|does|did)n.?t",
    ),
    (Tag.IGNORED, None, r"no (?:significant |interval |relevant )?(?:change|increase|decrease|difference)s?|not only"),
    (Tag.IGNORED, None, r"without (?:change|contrast|gadolinium|interval change)|no doubt|no previous"),
    (
        Tag.NEGATION_AFTER,
        None,
        rf"(?:(?:is|are|was|were|has been|have been|can be|could be) )?(?:not|never) (?:be |been )?{_SEEN}"
        rf"|cannot be {_SEEN}|(?:is|are|was|were) (?:absent|lacking|missing|unlikely|negative|excluded|ruled out)"
        r"|(?:is|are) not a feature|absent|: (?:none|no|nil|absent|negative|not \w+)|(?:is|are) nil"
        r"|not (?:demonstrable|discernible|in evidence|appreciable|recogni[sz]able)",
    ),
    (
        Tag.STOP,
        None,
        r"but|however|although|though|yet|whereas|while|except(?: for)?|apart from|aside from|other than|besides"
        r"|nevertheless|, with|, an?|and an?|and there (?:is|are)|, there (?:is|are)|(?:, )?only|;|:|in addition to",
    ),
    (
        Tag.VERB,
        None,
        r"is|are|was|were|has|have|shows?|demonstrates?|reveals?|contains?|measur(?:es|ing)|lies|occup(?:ies|ying)"
        r"|affects?|involves?|remains?|appears?|looks?",
    ),
    (
        Tag.ASIDE,
        None,
        r"extend(?:s|ing)(?: \w+)? (?:in)?to(?:wards?)?|reach(?:es|ing)|abut(?:s|ting)|adjacent to|next to|close to"
        r"|(?:anterior|posterior|lateral|medial|superior|inferior) to|compress(?:es|ing)|displac(?:es|ing)"
        r"|effac(?:es|ing)|sparing|spares|bordering|towards?|push(?:es|ing)|near",
    ),
    (
        Tag.UNREADABLE,
        None,
        r"(?:not |un)(?:readable|interpretable)|non ?diagnostic|not (?:of )?diagnostic(?: quality)?|blank"
        r"|no report is possible|no brain is seen",
    ),
    (Tag.SAME, None, r"it|this|the lesion|this lesion|the finding|its|which|that"),
]

CHANGED = {
    ("white matter", "lesion"): C.WHITE_MATTER_LESIONS,
    ("ventricles", "large"): C.VENTRICULAR_ENLARGEMENT,
    ("sulci", "large"): C.ATROPHY,
    ("volume", "small"): C.ATROPHY,
}
"""Class implied by a changed structure."""

NORMAL_DENIES = {
    "white matter": C.WHITE_MATTER_LESIONS,
    "ventricles": C.VENTRICULAR_ENLARGEMENT,
    "sulci": C.ATROPHY,
    "volume": C.ATROPHY,
}
"""Class denied by a normal structure."""


def _compile(pattern: str) -> re.Pattern[str]:
    spaced = re.sub(r" (\?)?", lambda blank: " *" if blank[1] else " +", pattern)
    return re.compile(rf"(?:(?<![a-z0-9])(?<!\d\.)|(?=[:;,]))(?:{spaced})(?![a-z0-9])")


_COMPILED = [(tag, value, _compile(pattern)) for tag, value, pattern in _PATTERNS]


def plain(text: str) -> str:
    """Lower-case text with hyphens and line breaks as spaces; every character keeps its position."""
    lowered = "".join(low if len(low := character.lower()) == 1 else character for character in text)
    return re.sub(r"[-\u2010-\u2014_\s*]", " ", lowered)


def tag(text: str) -> list[Match]:
    """Tagged ranges of a `plain` text, ascending and disjoint; of overlapping ones the longest, then the first."""
    found = [
        Match(match.start(), match.end(), kind, value)
        for kind, value, pattern in _COMPILED
        for match in pattern.finditer(text)
        if match.end() > match.start()
    ]
    taken = bytearray(len(text))
    chosen: list[Match] = []
    for match in sorted(found, key=lambda match: match.start - match.end):
        if not any(taken[match.start : match.end]):
            taken[match.start : match.end] = b"\x01" * (match.end - match.start)
            chosen.append(match)
    return sorted(chosen)
