"""Words around findings: negation, doubt, time, change, degree, and what ends their reach.

The idea of triggers before and after a term, and of words that end a trigger's scope, is that of ConText (Harkema et
al. 2009, doi:10.1016/j.jbi.2009.05.002); the lists are own work from general radiological usage. Phrases are written as
in the table of findings.
"""

from __future__ import annotations

from enum import StrEnum


class Cue(StrEnum):
    """What a tagged phrase is."""

    FINDING = "finding"
    STRUCTURE = "structure"
    PLACE = "place"
    SIDE = "side"
    SIZE = "size"
    LARGE = "large"  # changes that make a finding of a structure
    SMALL = "small"
    NORMAL = "normal"
    ABNORMAL = "abnormal"
    NO = "no"  # denies what follows
    NOT_SEEN = "not seen"  # denies what stands before
    MAYBE = "maybe"  # doubts what follows
    MAYBE_LIST = "maybe list"  # doubts all that follows
    MAYBE_BEFORE = "maybe before"  # doubts what stands before
    IS = "is"  # what follows names what stands before, for certain
    STOP = "stop"
    VERB = "verb"
    ASIDE = "aside"  # what follows is a neighbour, not the place
    PAST = "past"  # what follows was: history, or removed
    BEFORE = "before"  # a size that follows is the earlier one
    NOW = "now"
    CHANGE = "change"
    GRADE = "grade"
    UNEVEN = "uneven"  # the side that follows is the worse of two
    SAME = "same"  # refers to the finding before
    SIGNAL = "signal"
    IMAGING = "imaging"
    SHOWS = "shows"
    ADVICE = "advice"  # sentences that state nothing about the brain
    PLAIN = "plain"  # words that look like cues and are none


_NAMED: dict[str, str] = {
    "<seen>": (
        "(seen|present|visible|visualized|identified|detected|found|demonstrated|evident|observed|"
        "noted|apparent|appreciated|shown|depicted|recognized|there|suspected|discernible|"
        "demonstrable)"
    ),
    "<be>": "(is|are|was|were|has been|have been|can be|could be|)",
    "<represent>": "(represent|reflect|be|indicate|suggest|relate to|be related to|be due to)",
}
"""Alternatives that several phrases share."""

_WORDS: dict[Cue, str] = {
    Cue.NO: (
        "no; not; without (any|); neither (is there|are there|); nor (is there|are there|"
        "); negative for; absence "
        "of; free (of|from); devoid of; lack of; lacks; lacking; no "
        "(definite|convincing|clear|appreciable|significant|radiographic|mr|mri|ct|obvious|gross|focal|) "
        "(evidence|sign|indication|suggestion|trace|finding) (of|for|to suggest|to indicate|"
        "suggesting); rather "
        "than; instead of; as opposed to; (do|does|did|could|) not "
        "(show|demonstrate|reveal|contain|display|exhibit|have|suggest); fail to (show|"
        "demonstrate); unlikely to "
        "(be|represent); not consistent with; never; nothing to (suggest|indicate); none of; resolution of; "
        "exclude; rules out; ruled out; denies; no longer; cannot (see|identify); can not (see|identify|"
        "find); no "
        "new; no other; no further; no additional; in place of; unremarkable for"
    ),
    Cue.NOT_SEEN: (
        "<be> (not|never|no longer) (be|been|clearly|definitely|) <seen>; cannot be <seen>; (is|are|was|were|) "
        "(absent|lacking|missing|unlikely|negative|excluded|ruled out); not a feature; none; nil; (has|have|) "
        "(completely|fully|) (resolved|disappeared|cleared); no longer "
        "(seen|visible|present|identified|evident|appreciated); not (in evidence|apparent); (is|are) not "
        "(appreciated|enlarged or dilated)"
    ),
    Cue.MAYBE: (
        "possible; possibly; probable; probably; suspected; suspicious for; suspicion (of|for); questionable; "
        "equivocal; perhaps; likely (to be|representing|reflecting|due to|related to|secondary to|"
        "); most likely "
        "(due to|representing|reflecting|a|); less likely; (may|might|could|can) <represent>; cannot (rule "
        "out|exclude|completely exclude|entirely exclude); can not (rule out|exclude); could not (rule "
        "out|exclude); (not|difficult to) (exclude|"
        "rule out); presumed; presumably; concern for; concerning for; "
        "worrisome for; suggestive of; suggesting; suggests; suggest; felt suggestive of; favored to "
        "(represent|reflect|be); favor; favors; favoring; (is|are|) favored over (a|) (true|) (a|); appears to "
        "be; question of; raises the (possibility|question|suspicion) of; possibility of; potential; suspect; "
        "strongly suggestive of; most suggestive of; felt to (represent|be); thought to (represent|"
        "be); versus; "
        "vs; in favor of; versus less likely; (can|may|could) be seen (with|in); consideration would be; "
        "compatible with either; either; ?; or"
    ),
    Cue.MAYBE_LIST: (
        "differential (diagnosis|considerations|consideration|) (includes|include|including|of|"
        "); considerations "
        "include; differential diagnosis; representing either; representing (either|) (a|) (prominent|)"
    ),
    Cue.MAYBE_BEFORE: (
        "(is|are|was|were|has been|have been|remains|, if present) "
        "(suspected|possible|likely|probable|favored|questioned|considered|suggested|not excluded|not entirely "
        "excluded); (cannot|can not|could not|not) be (completely|entirely|definitively|fully|) (excluded|"
        "ruled "
        "out); in the differential (diagnosis|); (should|must|could|can|may|might|to) (also|) be "
        "(considered|excluded|suspected); (is|are) (less|more|most|also|highly|very|equally) (likely|"
        "probable); "
        "is in question; difficult to exclude; is a (possibility|"
        "consideration); to be considered; not excluded; "
        "may be present"
    ),
    Cue.IS: (
        "(most|felt|more|highly|) (consistent|compatible) (with|most with); in keeping with; representing; "
        "represents; diagnostic of; characteristic of; typical (of|"
        "for); indicating; indicative of; corresponding "
        "to; reflecting; indicates; classic for; reflects; corresponds to; sequela of; due to; secondary to; as a "
        "result of; (consistent|compatible) most with; in line with; confirming"
    ),
    Cue.STOP: (
        "but; however; although; though; yet; whereas; while; except (for|"
        "); apart from; aside from; other than; "
        "besides; nevertheless;;; in addition to; otherwise; there (is|are|was|were); with the exception of; "
        "also; which; and there (is|are); only; that; instead"
    ),
    Cue.VERB: (
        "is; are; was; were; has; have; lies; occupies; occupying; involves; involving; remains; remain; appears; "
        "appear; looks; affects; measures; measuring; measured; noted; seen; centered; located; identified; "
        "becoming; present"
    ),
    Cue.SHOWS: (
        "shows; show; showed; demonstrates; demonstrated; demonstrate; reveals; revealed; reveal; contains; "
        "exhibits; displays; notable for; depicts; noted; appreciated; consistent with; was reviewed; has; had"
    ),
    Cue.ASIDE: (
        "extending (in|)to; extends (in|)to; extension (in|)to; (extending|extend|extends|extension) "
        "(along|across|through|towards|toward|posteriorly|anteriorly|inferiorly|superiorly|laterally|medially|"
        "beyond|from|up "
        "to|around); reaching; reaches; abutting; abuts; adjacent to; next to; close to; "
        "(anterior|posterior|lateral|medial|superior|inferior|superficial|deep|contiguous|anteriorly|"
        "perpendicular|distal|proximal) "
        "to; displacing; displaces; displacement of; sparing; spares; bordering; pushing; near; crossing; across; "
        "crosses; below; above; through; invading; impinging on; encasing; underlying; level of; involvement of; "
        "distortion of; with involvement of; infiltrating; infiltration (in|)to; spread to; deviation of; "
        "contacting; contact with; pressing; relative to; compared to the; communicating with; elevating; "
        "encroaching on; towards; toward; anterior to; surrounding"
    ),
    Cue.PAST: (
        "status post; s p; history of; hx of; h o; known history of; post (resection|treatment|surgery|op) "
        "(of|for|); (after|following|prior|previous) "
        "(resection|removal|excision|treatment|surgery|evacuation|clipping) (of|for|); "
        "(resection|removal|excision|evacuation|clipping|biopsy) of; family history of; has had (a|an|); rule "
        "out; r o; evaluate for; evaluation (of|"
        "for); assess for; to exclude; please exclude; screening for; risk "
        "of; indication; clinical concern for; underwent"
    ),
    Cue.BEFORE: (
        "previously; prior; formerly; before; earlier; compared (with|to); (was|were) (previously|"
        "); from; versus "
        "prior; on prior; previous; up from; down from; vs prior; had been; as opposed to; against"
    ),
    Cue.NOW: "now; currently; at present; today; to; presently; measures; measuring",
    Cue.CHANGE: (
        "(has|have|) (nearly|almost|partially|partly|largely|mostly|incompletely|near) "
        "(completely|entirely|complete|) (resolved|disappeared|cleared|resolution); new; stable; unchanged; "
        "increased (in size|); decreased (in size|); larger; smaller; interval "
        "(increase|decrease|growth|development|change|enlargement) (in|of|) (size|) (of|); progressed; "
        "progressive; progression; regressed; improved; worsened; grown; enlarging; growing; resolving; "
        "improving; worsening; no (significant|interval|relevant|appreciable|) (interval|) change (in|of|); "
        "without (significant|interval|) (interval|) change (in|of|); not changed; similar (in size|to prior|"
        "); "
        "not significantly changed; residual; persistent; recurrent"
    ),
    Cue.GRADE: (
        "mild; mildly; slight; slightly; minimal; minimally; minor; subtle; trace; tiny; small; few; scattered; "
        "moderate; moderately; grossly; considerably; slight degree; substantially; massively; profound; severe; "
        "severely; marked; markedly; extensive; extensively; pronounced; advanced; large; gross; confluent; "
        "massive; significant; considerable; substantial; mild to moderate; moderate to severe; fazekas (grade|"
        ") "
        "(1|2|3|i|ii|iii); punctate; thin; diffuse"
    ),
    Cue.LARGE: (
        "increased; enlarged; dilated; prominent; widened; wide; distended; enlarging; dilatation; enlargement; "
        "widening; ectasia; expansion; distension; disproportionately enlarged; increased in size; "
        "(slightly|mildly|moderately|markedly|somewhat|) (larger|greater|wider|bigger|fuller) than "
        "(expected|normal|usual); enlarge; prominence; bigger; expanded; dilation; full"
    ),
    Cue.SMALL: "reduced; decreased; diminished; lost; small; low; loss; thinned; shrunken; thinning; reduction",
    Cue.NORMAL: (
        "normal; normally; unremarkable; preserved; maintained; intact; within normal limit; age appropriate; "
        "appropriate for (the|) (patient s|) age; clear; patent; stable (exam|examination|study|mri|scan); (as|"
        ") "
        "expected (for age|); well preserved; midline in position; not displaced; negative; no abnormality; "
        "symmetric in size; in normal position; well pneumatized; normal for age; (is|are) midline; (is|are|"
        ") not "
        "(enlarged|dilated|displaced|shifted|deviated|thickened); nondilated; spared; uninvolved; not "
        "(involved|affected); undisplaced; normal in (size|appearance|signal|caliber|morphology|configuration)"
    ),
    Cue.ABNORMAL: (
        "abnormal; abnormally; abnormality; pathology; pathologic; pathological; anomaly; anomalous; acute "
        "(intracranial|) (finding|process|disease|abnormality|pathology); "
        "(intracranial|significant|focal|acute|cortical "
        "based|structural|other|additional|further|new|incidental|suspicious|) "
        "(abnormality|pathology|process|finding|disease)"
    ),
    Cue.UNEVEN: (
        "(slightly|) (greater|more|worse|larger|more pronounced|more prominent|more prominently|more marked|"
        "more "
        "severe|worst) (on|than) (the|); (left|right) (greater|more|worse|larger|more severe|more pronounced|"
        "more "
        "prominent|>) than (on|) (the|) (left|right|); (left|right) > (left|right|); more so on (the|); "
        "asymmetrically on (the|)"
    ),
    Cue.SAME: (
        "it; this; (enhancing|solid|cystic|nonenhancing|non enhancing|central|peripheral) "
        "(part|portion|component|region|area|margin); (the|its) "
        "(part|portion|margin|center|border|bulk|core|wall|"
        "rim); side; location; site; laterality; size; these; "
        "its; the finding; the abnormality; they; the former; the largest; largest; one; the larger; another; the "
        "other; (a|the|) second; a third (one|lesion); the smaller; epicenter"
    ),
    Cue.SIGNAL: (
        "(t1|t2|flair|) (hyperintense|hypointense|isointense|bright|dark|hypodense|hyperdense|isodense); "
        "(t1|t2|flair|high|low|mixed|increased|decreased|long|short|heterogeneous|uniform|intermediate) "
        "(t1|t2|flair|) signal (intensity|); signal (intensity|characteristic|void|"
        "); heterogeneous; homogeneous; "
        "inhomogeneous; enhances; enhanced; enhancing; nonenhancing; cystic; solid; lobulated; ill defined; well "
        "defined; well circumscribed; irregular; margin; nonspecific; diameter; thickness; volume of the lesion; "
        "border; boundary; shape; dimension; hyperintensity; hypointensity; texture; dural tail; dural based; "
        "satellite; multifocal (disease|"
        "); multicentric; component; involvement; invasion; cortical; ependymal; "
        "subependymal; proportion; percent; percentage; non enhancing; t1; t2; flair; adc; dwi"
    ),
    Cue.IMAGING: (
        "mri; mr; ct; hct; cect; scan; mra; cta; angiogram; angiography; arteriogram; imaging; tomography; t2 "
        "weighted; t1 weighted; flair; dwi; duplex; image; ct brain; mri brain; head ct; brain mri; brain ct"
    ),
    Cue.ADVICE: (
        "without (intravenous|iv|) (contrast|gadolinium); with (intravenous|iv|) contrast; with and without "
        "(contrast|gadolinium); recommend; recommended; recommendation; follow up; clinical correlation; "
        "correlate (clinically|); correlation (with|is); discussed with; reported to; communicated; dictated; "
        "limited by; motion (artifact|degraded); artifact; technique; contrast (material|administration|agent) "
        "(was|"
        "); intravenous; gadolinium; images were; images are; sequences; was performed; were performed; were "
        "obtained; was obtained; is advised; advised; comparison (is|was|with|); thank you; patient with; a "
        "patient; year old; presenting with; presented with; signed; reformatted; preliminary report; please; "
        "patient s name; no previous (study|examination)"
    ),
    Cue.PLAIN: (
        "no doubt; none of (the|"
        "these) lesion; non hemorrhagic; non specific; muscle spasm; not only; mass of the "
        "patient; no prior (study|examination|imaging|exam|mri|ct|scan|studies); no previous; growth of the "
        "child; blood (pressure|vessel|flow|supply); no (complication|known); normal variant; benign variant; "
        "developmental variant; body mass; not (limited|diagnostic|applicable|available|"
        "performed); non contrast; "
        "noncontrast; time of flight; clinical history; bone marrow; not mentioned; flow void"
    ),
}


def _filled(words: str) -> str:
    for name, alternatives in _NAMED.items():
        words = words.replace(name, alternatives)
    return words


CUES: dict[Cue, str] = {cue: _filled(words) for cue, words in _WORDS.items()}
"""Phrases of each cue."""
