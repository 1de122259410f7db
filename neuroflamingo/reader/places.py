"""Places that the reader knows: the regions of the findings' vocabulary first, then others under names of their own."""

from __future__ import annotations

from neuroflamingo.findings.vocabulary import Region, Side

_LOBE = "(lobe|cortex|region|area|pole|convexity|operculum|gyrus|gyri|lobule|)"
_GYRUS = "(superior|middle|inferior|medial|orbital|mesial|anterior|posterior|lateral|)"

PLACES: dict[str, str] = {
    Region.FRONTAL: f"{_GYRUS} (prefrontal|orbitofrontal|frontal) {_LOBE}; (anterior|posterior) frontal {_LOBE}; "
    "precentral (gyrus|); (primary|supplementary|) motor (cortex|area|strip); broca s area; gyrus rectus; "
    "frontal opercular; rolandic (cortex|region); paracentral lobule; anterior cingulate (gyrus|); frontobasal",
    Region.PARIETAL: f"{_GYRUS} (parietal) {_LOBE}; postcentral (gyrus|); precuneus; angular gyrus; supramarginal "
    "gyrus; (somatosensory|sensory) (cortex|strip); (superior|inferior) parietal lobule; posterior cingulate "
    "(gyrus|)",
    Region.TEMPORAL: f"{_GYRUS} (temporal) {_LOBE}; (mesial|medial|anteromedial|posterior|anterior|inferolateral) "
    f"temporal {_LOBE}; hippocampus; hippocampal (formation|); parahippocampal (gyrus|); amygdala; uncus; fusiform "
    "gyrus; entorhinal (cortex|); wernicke s area; heschl s gyrus; auditory cortex; (anterior|) temporal fossa; "
    "temporal tip",
    Region.OCCIPITAL: f"{_GYRUS} (occipital) {_LOBE}; cuneus; calcarine (cortex|fissure|); lingual gyrus; visual "
    "cortex",
    Region.INSULA: "insula; insular (cortex|ribbon|lobe|region|)",
    Region.BASAL_GANGLIA: "basal ganglia; basal ganglion; basal ganglionic; caudate (nucleus|head|body|); "
    "(head|body) "
    "of the caudate (nucleus|); putamen; putaminal; globus pallidus; pallidal; globi pallidi; lentiform nucleus; "
    "lenticular nucleus; striatum; striatal; internal capsule; external capsule; capsular; gangliocapsular "
    "(region|); "
    "striatocapsular; capsuloganglionic; lenticulostriate (distribution|); deep gray (matter|nuclei)",
    Region.THALAMUS: "thalamus; thalami; thalamic; pulvinar",
    Region.BRAINSTEM: "brain stem; brainstem; pons; pontine; basis pontis; midbrain; mesencephalon; mesencephalic; "
    "medulla (oblongata|); medullary; lateral medulla; cerebral peduncle; tegmentum; tectum; tectal (plate|); "
    "pontomedullary; pontomesencephalic",
    Region.CEREBELLUM: "cerebellum; cerebellar (hemisphere|vermis|lobe|lobule|peduncle|region|); (superior|middle|"
    "inferior) cerebellar (peduncle|hemisphere|); vermis; cerebellar tonsil; dentate nucleus; brachium pontis; "
    "posterior"
    " fossa; infratentorial (region|)",
    Region.WHITE_MATTER: "(deep|subcortical|cerebral|) white matter; periventricular (region|area|white matter|); "
    "subcortical (region|area|); corona radiata; centrum semiovale; centra semiovale; periatrial (region|); "
    "peritrigonal (region|); paratrigonal (region|); optic radiation; deep white matter",
    Region.VENTRICLES: "(lateral|) ventricle; lateral ventricular; (frontal|occipital|temporal) horn; "
    "(atrium|trigone) "
    "(of the lateral ventricle|); intraventricular; ventricular; subependymal (region|)",
    "third ventricle": "(third|3rd) ventricle; foramen of monro",
    "fourth ventricle": "(fourth|4th) ventricle; foramen of magendie",
    "corpus callosum": "corpus callosum; callosal; splenium (of the corpus callosum|); genu (of the corpus "
    "callosum|); "
    "pericallosal (region|)",
    "sella": "sella (turcica|); sellar (region|); intrasellar; pituitary (gland|fossa)",
    "suprasellar cistern": "suprasellar (cistern|region|)",
    "cavernous sinus": "cavernous sinus",
    "pineal region": "pineal (region|)",
    "cerebellopontine angle": "cerebellopontine angle; cp angle; cpa; internal auditory canal; iac",
    "middle cranial fossa": "middle cranial fossa; middle fossa",
    "anterior cranial fossa": "anterior cranial fossa; olfactory groove; planum sphenoidale",
    "falx": "falx; falcine; parafalcine; interhemispheric fissure",
    "tentorium": "tentorium; tentorial",
    "meninges": "meninges; leptomeninges; leptomeningeal; pachymeningeal; dura; dural",
    "sylvian fissure": "sylvian (fissure|cistern)",
    "perisylvian region": "perisylvian (region|cortex|)",
    "hypothalamus": "hypothalamus; hypothalamic; tuber cinereum",
    "skull": "calvarium; calvarial; skull (base|vault|); clivus; petrous (apex|bone)",
    "temporal bone": "temporal bone",
    "paranasal sinuses": "(paranasal|maxillary|ethmoid|sphenoid|frontal) sinus; ethmoid air cell; maxillary antrum",
    "mastoid": "mastoid (air cell|)",
    "orbit": "orbit; orbital; intraorbital",
    "scalp": "scalp",
    "cervical spine": "cervical (spine|cord|spinal cord); spinal cord; thoracic spine",
    "MCA": "(mca|middle cerebral artery) (bifurcation|branch|trunk|); m1 (segment|); m2 (segment|)",
    "ACA": "(aca|anterior cerebral artery) (branch|); a1 (segment|); a2 (segment|); anterior communicating "
    "artery; acom",
    "PCA": "(pca|posterior cerebral artery) (branch|); p1 (segment|); p2 (segment|); posterior communicating "
    "artery; pcom",
    "ICA": "(ica|internal carotid artery) (terminus|bifurcation|); internal carotid; supraclinoid; ophthalmic artery",
    "common carotid artery": "common carotid (artery|)",
    "vertebral artery": "vertebral artery; vertebrobasilar (system|)",
    "basilar artery": "basilar (artery|tip)",
    "MCA territory": "(mca|middle cerebral artery) (territory|distribution|vascular territory)",
    "ACA territory": "(aca|anterior cerebral artery) (territory|distribution|vascular territory)",
    "PCA territory": "(pca|posterior cerebral artery) (territory|distribution|vascular territory)",
    "PICA territory": "(pica|posterior inferior cerebellar artery) (territory|distribution|)",
    "SCA territory": "(sca|superior cerebellar artery) (territory|distribution|)",
    "AICA territory": "(aica|anterior inferior cerebellar artery) (territory|distribution|)",
    "watershed": "(watershed|border zone|borderzone) (zone|territory|region|distribution|)",
}
"""Name of a place to the phrases for it, as in the table of findings."""

COMBINED = {"fronto": Region.FRONTAL, "parieto": Region.PARIETAL, "temporo": Region.TEMPORAL}
COMBINED |= {"occipito": Region.OCCIPITAL, "thalamo": Region.THALAMUS, "insulo": Region.INSULA}
"""First half of words such as "frontoparietal"."""

TERRITORIES = (
    "infarct",
    "acute infarct",
    "subacute infarct",
    "chronic infarct",
    "lacunar infarct",
    "restricted diffusion",
)
"""Findings whose artery means its territory ("PCA infarct")."""

MIDLINE_PLACES = {"falx", "suprasellar cistern"}
"""Places that lie in the midline where no side is stated."""

SIDES: dict[Side, str] = {
    Side.LEFT: "left (sided|side|hemisphere|cerebral hemisphere|hemispheric|cerebral|); lt; on the left",
    Side.RIGHT: "right (sided|side|hemisphere|cerebral hemisphere|hemispheric|cerebral|); rt; on the right",
    Side.BILATERAL: "bilateral; bilaterally; both (cerebral|) hemisphere; both side; either side; both; "
    "bihemispheric; "
    "bi hemispheric; bi hemispherical; bihemispherical; symmetric; symmetrical; symmetrically; generalized; "
    "diffuse; diffusely; global; globally; biconvexity; (left and right|right and left); each side; either "
    "hemisphere",
    Side.MIDLINE: "(in|at|on|near) the midline; midline",
}

PLACED_IN: dict[str, tuple[str, ...]] = {
    "mesial temporal sclerosis": (Region.TEMPORAL,),
    "empty sella": ("sella",),
    "pituitary adenoma": ("sella",),
    "pineal cyst": ("pineal region",),
    "colloid cyst": ("third ventricle",),
    "callosal agenesis": ("corpus callosum",),
    "sinus disease": ("paranasal sinuses",),
    "mastoid effusion": ("mastoid",),
    **dict.fromkeys(("hydrocephalus", "ventricular enlargement"), (Region.VENTRICLES,)),
    "white matter lesions": (Region.WHITE_MATTER,),
    "intraventricular hemorrhage": (),
    "scalp injury": (),
    "chiari malformation": (),
}
"""Places that a finding's name implies."""
