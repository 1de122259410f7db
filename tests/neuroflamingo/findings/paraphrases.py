"""Hand-written report sentences with the findings that a radiologist would take from them.

`FIRST` was written after the lexicon had been frozen, then scored once; so was `SECOND`, on purpose with rarer words.
The lexicon was then improved with both in view, and `HELD_OUT` was written and scored once; nothing was changed
for its sake. docs/evaluate.md has the three first scores.
"""

from __future__ import annotations

from neuroflamingo.findings.vocabulary import Certainty, Finding, FindingClass, Region, Side, Signal

C, L, R, B, M = FindingClass, Side.LEFT, Side.RIGHT, Side.BILATERAL, Side.MIDLINE
FRONTAL, PARIETAL, TEMPORAL, OCCIPITAL, INSULA, GANGLIA, THALAMUS, BRAINSTEM, CEREBELLUM = tuple(Region)[:9]
LOW, HIGH = Signal.LOW, Signal.HIGH


def infarct(side=None, region=None, size=None, signal=None, **more) -> Finding:
    return Finding(kind=C.INFARCT, side=side, region=region, size_mm=size, signal=signal, **more)


def mass(side=None, region=None, size=None, signal=None, **more) -> Finding:
    return Finding(kind=C.MASS, side=side, region=region, size_mm=size, signal=signal, **more)


def bleed(side=None, region=None, size=None, signal=None, **more) -> Finding:
    return Finding(kind=C.HEMATOMA, side=side, region=region, size_mm=size, signal=signal, **more)


def white(grade=None, side=B, **more) -> Finding:
    return Finding(kind=C.WHITE_MATTER_LESIONS, side=side, region=Region.WHITE_MATTER, grade=grade, **more)


def ventricles(grade=None, side=B, **more) -> Finding:
    return Finding(kind=C.VENTRICULAR_ENLARGEMENT, side=side, region=Region.VENTRICLES, grade=grade, **more)


def atrophy(side=None, region=None, grade=None, **more) -> Finding:
    return Finding(kind=C.ATROPHY, side=side, region=region, grade=grade, **more)


MAYBE = Certainty.POSSIBLE

FIRST: list[tuple[str, list[Finding]]] = [
    ("Cystic encephalomalacia in the left parietal region, spanning 3.1 cm.", [infarct(L, PARIETAL, 31)]),
    ("Sequela of an old stroke involving the right occipital cortex.", [infarct(R, OCCIPITAL)]),
    ("There is an old lacune in the left putamen measuring 9 mm.", [infarct(L, GANGLIA, 9)]),
    ("Established infarction of the right cerebellar hemisphere, 2.3 cm across.", [infarct(R, CEREBELLUM, 23)]),
    ("Post-ischemic defect within the left temporal lobe; it is T1 dark.", [infarct(L, TEMPORAL, None, LOW)]),
    ("The pons shows a small midline lacunar infarct of 8 mm.", [infarct(M, BRAINSTEM, 8)]),
    ("Two old strokes: one in the left frontal lobe and one in the right thalamus.",
     [infarct(L, FRONTAL), infarct(R, THALAMUS)]),
    ("Remote ischaemic damage is noted on the right, in the insular cortex.", [infarct(R, INSULA)]),
    ("A space-occupying lesion sits in the frontal lobe on the left. It measures 34 x 28 mm.",
     [mass(L, FRONTAL, 34)]),
    ("Right-sided temporal tumour, T1-hypointense, with a diameter of 4.1 cm.", [mass(R, TEMPORAL, 41, LOW)]),
    ("Neoplasm of the left cerebellum, maximal extent 27 mm.", [mass(L, CEREBELLUM, 27)]),
    ("A hypointense lesion is seen in the right parietal lobe, most in keeping with a tumor, 22 mm.",
     [mass(R, PARIETAL, 22, LOW)]),
    ("Left thalamic mass displacing the third ventricle, 19 millimetres.", [mass(L, THALAMUS, 19)]),
    ("An expansile process in the brain stem, in the midline, of reduced signal.", [mass(M, BRAINSTEM, None, LOW)]),
    ("The large mass centred on the right insula extends into the temporal lobe.", [mass(R, INSULA)]),
    ("Suspected glioma of the left occipital lobe.", [mass(L, OCCIPITAL, certainty=MAYBE)]),
    ("Bleed in the right basal ganglia, 18 mm, hyperintense on T1.", [bleed(R, GANGLIA, 18, HIGH)]),
    ("T1-bright blood products in the left cerebellar hemisphere over 1.6 cm.", [bleed(L, CEREBELLUM, 16, HIGH)]),
    ("Intraparenchymal haemorrhage of subacute age, right frontal, 33 mm.", [bleed(R, FRONTAL, 33)]),
    ("A focus of bleeding with high T1 signal lies in the left thalamus.", [bleed(L, THALAMUS, None, HIGH)]),
    ("There has been a hemorrhage into the right temporal lobe (2.5 cm).", [bleed(R, TEMPORAL, 25)]),
    ("A haematoma occupies the left parietal white matter and measures 29 mm.", [bleed(L, PARIETAL, 29)]),
    ("Moderate leukoaraiosis.", [white(2)]),
    ("Extensive small-vessel disease affecting both hemispheres.", [white(3)]),
    ("A few scattered spots are visible in the white matter on both sides.", [white(1)]),
    ("Confluent periventricular white matter hyperintensities.", [white(3)]),
    ("Mild chronic microvascular ischemic change.", [white(1)]),
    ("There are signs of microangiopathy, moderate in degree.", [white(2)]),
    ("Marked ventriculomegaly.", [ventricles(3)]),
    ("Hydrocephalus ex vacuo of slight degree.", [ventricles(1)]),
    ("The ventricular system is prominent to a moderate extent.", [ventricles(2)]),
    ("The lateral ventricles appear grossly distended.", [ventricles(3)]),
    ("Both lateral ventricles are mildly widened.", [ventricles(1)]),
    ("There is shrinkage of the left temporal lobe.", [atrophy(L, TEMPORAL)]),
    ("Volume loss of the frontal lobes bilaterally.", [atrophy(B, FRONTAL)]),
    ("The right parietal cortex is atrophic with widened sulci.", [atrophy(R, PARIETAL)]),
    ("Loss of brain volume in both occipital lobes.", [atrophy(B, OCCIPITAL)]),
    ("Severe hippocampal atrophy on the right.", [atrophy(R, TEMPORAL, 3)]),
    ("No evidence of bleeding, tumour or old stroke.", []),
    ("The brain is structurally unremarkable.", []),
    ("Neither a space-occupying lesion nor blood products can be seen.", []),
    ("Ventricles and sulci are of normal width for age.", []),
    ("Hemorrhage is not identified. The white matter looks clear.", []),
    ("There is no ventriculomegaly and no atrophy.", []),
    ("Free of infarction. No tumor is visible.", []),
    ("A tumour is not present; neither is there a bleed.", []),
    ("Mass in the left frontal lobe of 21 mm without hemorrhage.", [mass(L, FRONTAL, 21)]),
    ("Findings represent an old infarct rather than a tumour: left parietal lobe, 26 mm.",
     [infarct(L, PARIETAL, 26)]),
    ("Apart from a 12 mm bleed in the right thalamus, the study is normal.", [bleed(R, THALAMUS, 12)]),
    ("No infarct or tumor, but mild white matter disease is present.", [white(1)]),
    ("No mass. However, the ventricles are severely enlarged.", [ventricles(3)]),
    ("The ventricles are not dilated, although there is left frontal atrophy.", [atrophy(L, FRONTAL)]),
    ("A second bleed, 11 mm, lies in the right occipital lobe; the first, 24 mm hematoma is left frontal.",
     [bleed(R, OCCIPITAL, 11), bleed(L, FRONTAL, 24)]),
    ("Infarcts in the left frontal and right parietal lobes.", [infarct(L, FRONTAL), infarct(R, PARIETAL)]),
    ("Old infarct, right temporal lobe, 17 mm, and a mass in the left cerebellum, 30 mm.",
     [infarct(R, TEMPORAL, 17), mass(L, CEREBELLUM, 30)]),
    ("An old infarct cannot be excluded in the left insula.", [infarct(L, INSULA, certainty=MAYBE)]),
    ("There is a mass. The mass is located in the right frontal lobe and has a diameter of 38 mm.",
     [mass(R, FRONTAL, 38)]),
    ("Ventricular dilatation (moderate) with mild leukoaraiosis.", [ventricles(2), white(1)]),
    ("FINDINGS: Dark 2 cm cavity after ischemic stroke, left frontal lobe.\nIMPRESSION: Old left frontal infarct.",
     [infarct(L, FRONTAL, 20, LOW)]),
    ("Normal ventricles. Normal sulci. In the caudate nucleus on the left a tiny 8-mm old infarct.",
     [infarct(L, GANGLIA, 8)]),
]  # fmt: skip

SECOND: list[tuple[str, list[Finding]]] = [
    ("Gliotic cavity from a prior ischemic event, left middle frontal gyrus, 2.6 cm.", [infarct(L, FRONTAL, 26)]),
    ("The right putamen harbours an old lacunar stroke about 1 cm in length.", [infarct(R, GANGLIA, 10)]),
    ("Old ischaemic territory: left occipital pole.", [infarct(L, OCCIPITAL)]),
    ("Lobulated neoplasm arising from the vermis in the midline, 3.6 x 2.9 x 3.0 cm, of low T1 signal.",
     [mass(M, CEREBELLUM, 36, LOW)]),
    ("Hypointense intraaxial tumour, right mesial temporal region, no bleeding within it.",
     [mass(R, TEMPORAL, None, LOW)]),
    ("The left insula is replaced by a 28-mm growth; there is mass effect on the left lateral ventricle.",
     [mass(L, INSULA, 28)]),
    ("Intracerebral haemorrhage, subacute stage, lentiform nucleus on the right, 3 cm.", [bleed(R, GANGLIA, 30)]),
    ("T1 shortening due to blood is seen in the pons, 9 mm.", [bleed(None, BRAINSTEM, 9, HIGH)]),
    ("The white matter harbors numerous punctate foci, in keeping with advanced small vessel ischemic disease.",
     [white(3)]),
    ("Age-related white matter rarefaction, slight.", [white(1)]),
    ("Ex vacuo dilatation of the ventricles, considerable.", [ventricles(3)]),
    ("Ventricular caliber is slightly greater than expected.", [ventricles(1)]),
    ("The left temporal pole has shrunk, and its sulci are wide.", [atrophy(L, TEMPORAL)]),
    ("Reduced parenchymal volume of the right occipital lobe.", [atrophy(R, OCCIPITAL)]),
    ("Nothing to suggest previous stroke, neoplasia or hematoma.", []),
    ("The lateral ventricles keep their normal calibre and no tissue has been lost.", []),
    ("There are neither infarcts nor hemorrhages; the ventricles are slim and the sulci are not widened.", []),
    ("Other than moderate ventriculomegaly, no pathology.", [ventricles(2)]),
    ("In place of a suspected tumor there is only an old 15 mm bleed in the left parietal lobe.",
     [bleed(L, PARIETAL, 15)]),
    ("On the right: 14 mm thalamic hematoma. On the left: occipital infarction, 32 mm.",
     [bleed(R, THALAMUS, 14), infarct(L, OCCIPITAL, 32)]),
]  # fmt: skip

HELD_OUT: list[tuple[str, list[Finding]]] = [
    ("Encephalomalacic change of the right precentral gyrus, 2 cm, dark on T1.", [infarct(R, FRONTAL, 20, LOW)]),
    ("Prior cerebrovascular accident with a 35 mm defect in the left occipital cortex.", [infarct(L, OCCIPITAL, 35)]),
    ("In the left half of the pons there is an old 9 mm lacune.", [infarct(L, BRAINSTEM, 9)]),
    ("Old watershed infarction, right parietal.", [infarct(R, PARIETAL)]),
    ("Rounded tumor in the left centrum of the temporal lobe, of 3.3 cm, hypointense to cortex.",
     [mass(L, TEMPORAL, 33, LOW)]),
    ("Right cerebellar metastasis, 16 mm.", [mass(R, CEREBELLUM, 16)]),
    ("Two tumours, a 31 mm one in the right frontal lobe and a 12 mm one in the left parietal lobe.",
     [mass(R, FRONTAL, 31), mass(L, PARIETAL, 12)]),
    ("Recent bleeding: right insula, approximately 2.2 cm, shows increased T1 signal.", [bleed(R, INSULA, 22, HIGH)]),
    ("Subacute clot in the left frontal lobe, 40 mm, adjacent to the insula.", [bleed(L, FRONTAL, 40)]),
    ("Hemorrhagic focus, bright, of the caudate head on the left (14 mm).", [bleed(L, GANGLIA, 14, HIGH)]),
    ("Signal changes throughout the white matter, moderate.", [white(2)]),
    ("Severe leukoencephalopathy and marked hydrocephalus.", [white(3), ventricles(3)]),
    ("The ventricles have increased in size, mildly.", [ventricles(1)]),
    ("Slightly prominent sulci of the right frontal lobe from focal atrophy.", [atrophy(R, FRONTAL, 1)]),
    ("Parenchymal loss, both parietal lobes.", [atrophy(B, PARIETAL)]),
    ("We do not see any mass, bleed or stroke.", []),
    ("Hemorrhage: absent. Mass: none. Infarct: none. Ventricles: normal.", []),
    ("Absence of neoplasm and of hematoma; cerebral volume is well preserved.", []),
    ("The examination is normal except for moderate atrophy of the left temporal lobe.", [atrophy(L, TEMPORAL, 2)]),
    ("Probable old infarct on the left side, thalamus, 1.1 cm; otherwise no lesion.",
     [infarct(L, THALAMUS, 11, certainty=MAYBE)]),
]  # fmt: skip
