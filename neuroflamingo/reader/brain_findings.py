"""Table of brain findings that the reader knows: names, words, codes, and the class of the embedded model, if any.

Words are phrases with `(a|b)` for alternatives and `(a|)` for what may be left out; plural forms, hyphens and British
spellings need no entry. Codes are SNOMED CT codes of DICOM's free set (PS3.16); a finding that this set lacks has none.
"""

from __future__ import annotations

from typing import NamedTuple

from neuroflamingo.findings.vocabulary import FindingClass

C = FindingClass


class BrainFinding(NamedTuple):
    """One row of the table.

    Attributes:
        name: as records state it.
        kind: class of the embedded model's vocabulary that it belongs to, or None.
        code: SNOMED CT code in DICOM's free set, or None.
        words: phrases that name it, separated by semicolons.
    """

    name: str
    kind: FindingClass | None
    code: str | None
    words: str


OTHER = "other finding"
"""Name of what is a finding by its form ("-oma", "-itis", "abnormal ...") but stands in no row; its words are kept."""

_INFARCT = "(lacunar|territorial|cortical|embolic|watershed|ischemic|cerebral|brain|territory|) (infarct|infarction)"
_OLD = "(old|chronic|remote|prior|previous|established|healed|age indeterminate)"
_WHITE = (
    "(lesion|change|disease|foci|focus|abnormality|hyperintensity|hyperintense lesion|signal change|hypodensity"
    "|rarefaction|spot)"
)
_VESSEL = "(arterial|artery|vascular|vessel|carotid|ica|mca|basilar|vertebral|luminal|)"
_VENTRICLE = "(enlargement|dilatation|dilation|prominence|widening|ectasia|expansion)"

BRAIN_FINDINGS: tuple[BrainFinding, ...] = tuple(
    BrainFinding(*row)
    for row in (
        # vessels
        ("lacunar infarct", C.INFARCT, None, f"lacune; lacuna; lacunar (stroke|lesion|focus|ischemia); lacunar "
         f"(infarct|infarction); (acute|{_OLD[1:-1]}|small|tiny|subacute) lacunar (infarct|infarction|stroke)"),
        ("infarct", C.INFARCT, None, f"{_INFARCT}; stroke; ischemic (lesion|insult|event|territory|area|defect); "
            "cerebrovascular accident; "
         "cva; thromboembolic event; infarcted"),
        ("acute infarct", None, None, f"(acute|early|hyperacute|recent) {_INFARCT}; (acute|recent|early) (ischemic|) "
         "(stroke|ischemia); acute ischemic (change|lesion); acute ischemia; loss of (gray white|gray white matter) "
         "differentiation; (hyperdense artery|hyperdense mca|dense mca) sign"),
        ("subacute infarct", None, None, f"(subacute|late subacute|early subacute) {_INFARCT}; subacute (ischemic|) "
         "stroke"),
        ("chronic infarct", C.INFARCT, None, f"{_OLD} {_INFARCT}; {_OLD} (ischemic|) stroke; infarct {_OLD}; "
         f"{_OLD} ischemic (insult|injury|event|damage|lesion); post ischemic (change|defect|lesion)"),
        ("encephalomalacia", C.INFARCT, None, f"(cystic|) encephalomalacia; encephalomalacic (change|area|cavity); "
         f"cerebromalacia; malacia; malacic (change|area); {_OLD} insult; porencephaly; porencephalic (cyst|cavity)"),
        ("gliosis", C.INFARCT, None, "(reactive|) gliosis; gliotic (change|scar|cavity|focus|area); glial scar"),
        ("white matter lesions", C.WHITE_MATTER_LESIONS, None, f"(white matter|wm|periventricular|subcortical|deep "
         f"white matter) (t2|flair|t2 flair|signal|) {_WHITE}; (chronic|) (small "
         f"vessel|microvascular|microangiopathic|"
         f"small vessel ischemic|microvascular ischemic|white matter ischemic) {_WHITE}; leukoaraiosis; "
         "leukoencephalopathy; microangiopathy; wmh; wml; white matter (ischemic|microangiopathic|degenerative) "
         "change; chronic (cerebral|) ischemic (change|disease); chronic ischemic microangiopathy; small vessel "
         "disease"
         "; (vasculopathic|) small vessel (ischemic|) disease; periventricular (cap|halo|rim)"),
        ("hematoma", C.HEMATOMA, "35566002", "(acute|subacute|chronic|) (intracerebral|intraparenchymal|parenchymal|"
         "intracranial|intra axial|lobar|cerebral|cerebellar|) (hematoma|hemorrhage|bleed|bleeding); hemorrhagic "
         "(focus|lesion|component|collection|product|area|change|transformation|conversion); blood "
         "(product|clot|degradation product|); "
         "ich; clot; bled"),
        ("microhemorrhage", None, None, "microhemorrhage; microbleed; cerebral microbleed; cmb; micro "
            "(hemorrhage|bleed)"
         "; petechial hemorrhage"),
        ("subarachnoid hemorrhage", None, None, "subarachnoid (hemorrhage|blood|bleed|bleeding|hematoma); sah; "
         "perimesencephalic hemorrhage"),
        ("subdural hematoma", None, None, "(acute|subacute|chronic|acute on chronic|) subdural (hematoma|hemorrhage|"
         "bleed|blood); sdh"),
        ("subdural collection", None, None, "subdural (fluid|) (collection|effusion|hygroma); hygroma; extra axial "
         "(fluid|) collection; extraaxial (fluid|) collection; (abnormal|) fluid collection; (abnormal|) collection"),
        ("epidural hematoma", None, None, "(epidural|extradural) (hematoma|hemorrhage|collection); edh"),
        ("intraventricular hemorrhage", None, None, "intraventricular (hemorrhage|blood|bleed|extension|hematoma); "
         "ivh"),
        ("superficial siderosis", None, None, "(superficial|) siderosis; hemosiderin (staining|deposition|deposit)"),
        ("amyloid angiopathy", None, None, "(cerebral|) amyloid angiopathy; caa"),
        ("aneurysm", None, "85659009", "(saccular|fusiform|berry|) aneurysm; aneurysmal dilatation"),
        ("arteriovenous malformation", None, None, "arteriovenous (malformation|fistula); avm; dural fistula; "
            "vascular "
         "malformation"),
        ("cavernous malformation", None, None, "cavernous (malformation|angioma|hemangioma); cavernoma"),
        ("hemangioma", None, "400210000", "hemangioma"),
        ("developmental venous anomaly", None, None, "developmental venous anomaly; dva; venous (angioma|anomaly)"),
        ("venous sinus thrombosis", None, None, "(dural|cerebral|) (venous|sinus|straight sinus|sagittal sinus|"
         "transverse sinus|central venous|dural venous sinus|venous sinus|dural sinus) "
         "(thrombosis|thrombus|thromboses); (thrombosis|thrombus) (of|in|within) (the|) (left|right|) "
         "(transverse|sigmoid|sagittal|superior sagittal|straight|dural venous|venous) sinus"),
        ("arterial stenosis", None, None, f"(focal|severe|mild|moderate|) {_VESSEL} (stenosis|narrowing); stenosed; "
         "stenotic"),
        ("arterial occlusion", None, None, f"{_VESSEL} occlusion; occluded; loss of (normal|the|) flow void; absent "
         "flow void; large vessel occlusion; lvo"),
        ("arterial dissection", None, "710864009", f"{_VESSEL} dissection"),
        ("vasospasm", None, None, "vasospasm; (mild|moderate|severe|arterial|) spasm"),
        ("vasculitis", None, None, "vasculitis; vasculopathy; moyamoya (disease|)"),
        ("hypoxic-ischemic injury", None, None, "hypoxic ischemic (injury|encephalopathy|change); (anoxic|hypoxic) "
         "(brain|) injury; hie"),
        ("PRES", None, None, "pres; posterior reversible encephalopathy (syndrome|)"),
        # tumors
        ("mass", C.MASS, "4147007", "(ring enhancing|expansile|neoplastic|tumoral|necrotic|space occupying|mass like|"
         "enhancing mass|solid cystic|rim enhancing|malignant|tumorous) (lesion|process|abnormality|growth); "
         "(enhancing|"
         "soft tissue|tumor|) mass (lesion|); (brain|) tumor; neoplasm; neoplasia; malignancy; enhancing nodule; "
         "growth"
         "; masses; enhancing (solid|) component; sol; expansile process; tumor (core|bulk|bed); metastatic focus"),
        ("glioma", C.MASS, None, "(high grade|low grade|diffuse "
            "midline|pontine|optic|infiltrating|infiltrative|diffuse"
         "|butterfly|multifocal|) glioma; glioblastoma (multiforme|); gbm; astrocytoma; oligodendroglioma; "
         "gliomatosis; "
         "(low|high) grade (astrocytoma|glial neoplasm|glial tumor); glial (tumor|neoplasm); ganglioglioma; dnet; "
         "dipg; glioneuronal tumor; xanthoastrocytoma; (high|low) grade neoplasm"),
        ("meningioma", C.MASS, None, "(falcine|parafalcine|convexity|sphenoid wing|olfactory groove|) meningioma"),
        ("metastasis", C.MASS, "128462008", "(brain|intracranial|cerebral|hemorrhagic|) metastasis; metastatic "
            "(lesion|"
         "deposit|disease|tumor|nodule); secondary deposit; met"),
        ("lymphoma", C.MASS, "1163043007", "(primary|) (cns|) lymphoma; pcnsl"),
        ("schwannoma", C.MASS, None, "(vestibular|trigeminal|facial|) (schwannoma|neurinoma); acoustic neuroma"),
        ("pituitary adenoma", C.MASS, "1187375007", "(pituitary|) (adenoma|microadenoma|macroadenoma); pituitary "
         "(tumor|mass); pitnet; prolactinoma"),
        ("craniopharyngioma", C.MASS, None, "craniopharyngioma"),
        ("ependymoma", C.MASS, None, "ependymoma; subependymoma"),
        ("medulloblastoma", C.MASS, None, "medulloblastoma; pnet; embryonal tumor"),
        ("hemangioblastoma", C.MASS, None, "hemangioblastoma"),
        ("pineal tumor", C.MASS, None, "pineal (tumor|mass); pineocytoma; pineoblastoma; germinoma; germ cell tumor; "
         "teratoma"),
        ("choroid plexus tumor", C.MASS, None, "choroid plexus (papilloma|carcinoma|tumor)"),
        ("epidermoid or dermoid", None, "419670003", "(epidermoid|dermoid) (cyst|tumor|); cholesteatoma"),
        ("lipoma", None, "134328007", "lipoma"),
        ("hamartoma", None, "51398009", "(tuber cinereum|hypothalamic|) hamartoma"),
        ("tumor recurrence", C.MASS, "25173007", "(tumor|disease|local|) (recurrence|progression); "
            "(recurrent|residual) "
         "(tumor|neoplasm|disease|mass|glioma|enhancing tumor|enhancing disease); enhancing residual"),
        ("radiation change", None, None, "(radiation|treatment|post treatment|post radiation) "
         "(necrosis|change|effect); "
         "pseudoprogression"),
        ("postoperative change", None, None, "(post operative|postoperative|post surgical|postsurgical) "
            "(change|cavity|"
         "defect|finding|appearance); (resection|surgical|operative) (cavity|bed|site|defect); craniotomy (defect|"
         "change|flap|); craniectomy; burr hole; ventriculostomy; shunt catheter; (vp|ventriculoperitoneal|v p) "
         "shunt; "
         "cranioplasty"),
        # signs
        ("lesion", None, "52988006", "(cystic|solid|focal|enhancing|intra axial|extra axial|brain|parenchymal|) "
            "lesion; "
         "nodule; spot; focal abnormality; nodular (focus|lesion); lesion area; abnormal area; hypodensity; "
         "hyperdensity"),
        ("signal abnormality", None, None, "(t1|t2|flair|t2 flair|increased|abnormal|decreased|high|low|) signal "
         "(abnormality|alteration|change|anomaly); (t1|t2|flair|t2 flair|) (hyperintensity|hypointensity); abnormal "
         "(increased|decreased|) (t1|t2|flair|t2 flair|) signal; (increased|decreased|abnormally "
         "increased|abnormally "
         "decreased|elevated|attenuated|abnormal) (t1|t2|flair|t2 flair|) signal (intensity|); (bright|hyperintense|"
         "high signal|hypointense) (focus|area|region); increased (t2|flair) (signal|intensity); "
         "(focus|foci|area) of "
         "(high|increased|abnormal|low) (t2|flair|t1|) signal; low density; (focus|foci) of (t2|flair|t2 flair) "
         "(signal|hyperintensity)"),
        ("edema", None, "79654002", "(vasogenic|cytotoxic|perilesional|peritumoral|surrounding|cerebral|brain|"
         "interstitial|marked|) edema; edematous (change|area|zone)"),
        ("swelling", None, "65124004", "(gyral|cortical|brain|cerebral|parenchymal|tissue|diffuse|) swelling"),
        ("mass effect", None, None, "(local|) mass effect; mass shift; (sulcal|ventricular|) effacement; effaced; "
         "effacing; efface; mass effect (on|upon); compress; compressing; "
         "(compressing|compress|compressed|compression) (of|on|) (the|) (adjacent|ipsilateral|left|right|) "
         "(lateral|third|fourth|) (ventricle|sulci|sulcus|brainstem|horn|parenchyma|structure); ventricular "
         "compression"
         "; compression; compressed; (is|are) (displaced|deformed|distorted|pushed); "
         "(lateral|third|fourth|temporal|frontal|occipital|basal|) (sulci|ventricle|horn|cistern) "
         "(is|are) (narrowed|shallow|flattened|effaced|obliterated)"),
        ("midline shift", None, None, "(leftward|rightward|) midline shift; (leftward|rightward|) shift of (the|) "
         "midline (structure|); "
         "midline (structure|) (is|are|was|) (slightly|mildly|markedly|significantly|) "
         "(deviation|displacement|shifted|displaced|deviated|shift|pushed); (leftward|"
         "rightward) shift; midline deviation; septal deviation; deviation of the midline"),
        ("herniation", None, None, "(uncal|tonsillar|subfalcine|transtentorial|brain|cerebellar tonsillar|downward|"
         "upward|) herniation; coning"),
        ("invasion", None, None, "(deep white matter|white matter|ependymal|cortical|callosal|pial|dural) "
         "(invasion|involvement|infiltration)"),
        ("necrosis", None, "6574001", "(central|internal|tumor|) necrosis; necrotic "
            "(component|area|core|region|center|"
         "focus|change); central nonenhancing region"),
        ("enhancement", None, None, "(abnormal|pathologic|pathological|leptomeningeal|pachymeningeal|dural|nodular|"
         "ring|"
         "rim|peripheral|contrast|heterogeneous|homogeneous|gyral|ependymal|patchy|avid|intense|residual|irregular|"
         "thick|) (contrast|) enhancement; enhancing (focus|area|structure|residual); abnormally enhancing"),
        ("restricted diffusion", None, None, "restricted (water|) diffusion; diffusion restriction; (restriction of|"
         "restricts) diffusion; (diffusion|dwi) (abnormality|hyperintensity|positive lesion|signal abnormality); low "
         "adc; diffusion is restricted; bright signal on diffusion"),
        ("calcification", None, "18115005", "(dystrophic|coarse|punctate|) calcification; mineralization; calcific "
         "(density|focus|deposit); calcified (focus|area|component)"),
        ("iron deposition", None, None, "iron (deposition|accumulation)"),
        # spaces of fluid, and volume
        ("ventricular enlargement", C.VENTRICULAR_ENLARGEMENT, None, f"ventriculomegaly; (ventricular|ex vacuo "
         f"ventricular|ventricle) {_VENTRICLE}; ex vacuo (dilatation|dilation|prominence|enlargement); trapped "
         "ventricle"),
        ("hydrocephalus", C.VENTRICULAR_ENLARGEMENT, None, "(obstructive|communicating|noncommunicating|normal "
         "pressure|active|acute|) hydrocephalus; nph"),
        ("atrophy", C.ATROPHY, "13331008", "(cerebral|cortical|brain|lobar|hippocampal|cerebellar|parenchymal|global|"
         "generalized|central|involutional|mesial temporal|medial temporal|) atrophy; atrophic (change|); (brain|"
         "cerebral|parenchymal|cerebral parenchymal|cortical|hippocampal|) volume loss; loss of (brain|cerebral|"
         "parenchymal|cortical|gray matter|) (volume|parenchyma|tissue); neuronal loss; involutional change; "
         "atrophied; parenchymal loss; shrinkage; shrunken; wasting; (cortical|gyral) thinning; (sulcal|cortical "
         "sulcal) (prominence|widening)"),
        ("perivascular spaces", None, None, "(enlarged|dilated|prominent|) (perivascular|virchow robin) space; "
         "prominent vascular space"),
        ("arachnoid cyst", None, None, "arachnoid cyst"),
        ("pineal cyst", None, None, "pineal (gland|) cyst"),
        ("colloid cyst", None, None, "colloid cyst"),
        ("rathke cyst", None, None, "rathke (cleft|s cleft|) cyst"),
        ("cyst", None, "367643001", "cyst; cystic (structure|focus|area|change|space|cavity)"),
        ("empty sella", None, None, "(partially|) empty sella"),
        ("cavum", None, None, "cavum (septum pellucidum|vergae|velum interpositum|septi pellucidi|)"),
        ("mega cisterna magna", None, None, "mega cisterna magna; enlarged cisterna magna"),
        ("intracranial hypotension", None, None, "intracranial hypotension; brain sagging"),
        ("intracranial hypertension", None, None, "(idiopathic|benign|) intracranial hypertension; pseudotumor "
            "cerebri"),
        # inflammation and infection
        ("demyelination", None, None, "(active|acute|) demyelination; demyelinating (disease|lesion|plaque|process|"
         "change|disorder|focus); multiple sclerosis; ms; ms (lesion|plaque); adem; dawson finger; neuromyelitis "
         "optica; acute "
         "disseminated encephalomyelitis; progressive multifocal leukoencephalopathy; pml; tumefactive lesion"),
        ("abscess", None, "44132006", "(brain|cerebral|) abscess; empyema; (subdural|epidural) empyema"),
        ("encephalitis", None, None, "(herpes|autoimmune|limbic|viral|herpes simplex|post viral|) encephalitis; "
         "cerebritis; cerebellitis; rhombencephalitis"),
        ("meningitis", None, None, "(bacterial|viral|tuberculous|granulomatous|carcinomatous|) meningitis; "
         "leptomeningeal (disease|carcinomatosis|metastasis); ventriculitis"),
        ("parasitic infection", None, None, "toxoplasmosis; neurocysticercosis; cysticercosis; echinococcosis; "
         "tuberculoma"),
        ("neurodegeneration", None, None, "alzheimer disease; neurodegenerative (disease|disorder|process); "
         "frontotemporal dementia; huntington disease; parkinsonism; hot cross bun sign"),
        # malformations
        ("chiari malformation", None, None, "(arnold|) chiari (i|ii|1|2|type i|type 1|type ii|) (malformation|); "
         "tonsillar (ectopia|descent); low lying (cerebellar|) tonsil"),
        ("dandy-walker malformation", None, None, "dandy walker (malformation|variant|spectrum|continuum)"),
        ("heterotopia", None, None, "(nodular|gray matter|band|subependymal|periventricular nodular|) heterotopia; "
         "heterotopic gray matter"),
        ("cortical dysplasia", None, None, "(focal|) cortical dysplasia; fcd; cortical malformation"),
        ("polymicrogyria", None, None, "polymicrogyria; pachygyria; lissencephaly"),
        ("schizencephaly", None, None, "(open lip|closed lip|) schizencephaly"),
        ("callosal agenesis", None, None, "(agenesis|dysgenesis|hypogenesis|hypoplasia) of the corpus callosum; "
            "callosal "
         "(agenesis|dysgenesis|hypogenesis)"),
        ("mesial temporal sclerosis", None, None, "(mesial|medial) temporal sclerosis; hippocampal sclerosis; mts"),
        ("tuberous sclerosis", None, None, "tuberous sclerosis; cortical tuber; subependymal nodule"),
        ("neurofibromatosis", None, None, "neurofibromatosis; neurofibroma"),
        # injury, and outside the brain
        ("contusion", None, None, "(hemorrhagic|cortical|brain|cerebral|) contusion"),
        ("diffuse axonal injury", None, None, "(diffuse|traumatic) axonal injury; dai; shear injury"),
        ("fracture", None, None, "(skull|calvarial|facial bone|nondisplaced|minimally displaced|displaced|"
         "depressed|linear|) fracture"),
        ("scalp injury", None, None, "scalp (swelling|hematoma|laceration|edema); subgaleal hematoma; laceration; "
            "soft "
         "tissue swelling"),
        ("sinus disease", None, None, "(paranasal|) sinus disease; sinusitis; mucosal (thickening|disease); "
            "(mucous|) "
         "retention cyst; sinus opacification; opacification of (the|) (left|right|bilateral|) "
         "(maxillary|frontal|ethmoid|sphenoid|paranasal) (sinus|air cell); air fluid level; mucocele"),
        ("mastoid effusion", None, None, "mastoid (effusion|fluid|opacification); mastoiditis; fluid in the "
            "(left|right|)"
         " mastoid"),
        ("bone lesion", None, None, "(bone|bony|calvarial|osseous|marrow|lytic|sclerotic) (lesion|metastasis|marrow "
         "lesion); marrow signal abnormality; bony abnormality"),
        ("orbital finding", None, None, "proptosis; optic neuritis; papilledema; orbital mass"),
        ("cranial nerve finding", None, None, "(abnormal|) cranial nerve enhancement; neuritis; neurovascular "
            "conflict"),
        ("syrinx", None, None, "syrinx; syringomyelia; hydromyelia"),
        ("pneumocephalus", None, None, "pneumocephalus; intracranial air"),
    )
)  # fmt: skip

BY_NAME = {row.name: row for row in BRAIN_FINDINGS}

DIFFUSE = {
    "white matter lesions": "cerebral white matter",
    "ventricular enlargement": "lateral ventricles",
    "hydrocephalus": "lateral ventricles",
}
"""Findings with a fixed place, and without a size."""

GENERIC = ("mass", "lesion", "signal abnormality", "subdural collection", "cyst", "tumor recurrence", "infarct")
"""Findings that a more exact one in the same sentence names ("mass, likely a meningioma")."""

_VAGUE = ("lesion", "signal abnormality")
WIDER: dict[str, tuple[str, ...]] = (
    {row.name: ("mass", *_VAGUE) for row in BRAIN_FINDINGS if row.kind is C.MASS and row.name != "mass"}
    | dict.fromkeys(("acute infarct", "subacute infarct", "chronic infarct", "lacunar infarct"), ("infarct", *_VAGUE))
    | {
        "lesion": ("signal abnormality",),
        "mass": _VAGUE,
        "infarct": _VAGUE,
        "white matter lesions": _VAGUE,
        "hematoma": _VAGUE,
        "subdural hematoma": ("subdural collection", "hematoma"),
    }
    | {"hydrocephalus": ("ventricular enlargement",), "demyelination": ("white matter lesions", *_VAGUE)}
    | dict.fromkeys(("arachnoid cyst", "colloid cyst", "pineal cyst", "rathke cyst"), ("cyst", *_VAGUE))
)
"""Finding to the wider names by which a report may speak of it again ("the mass")."""

SIGNS = ("edema", "mass effect", "necrosis", "midline shift", "herniation")
"""Signs that make a "lesion" of the same report a mass."""

STRUCTURES: dict[str, tuple[str, str | None]] = {
    "ventricles": ("(lateral|third|fourth|cerebral|) (ventricle|ventricular system|ventricular size|ventricular "
                   "caliber|ventricular spaces|ventricular); (frontal|occipital|temporal) horn; csf space; "
                   "ventricular "
                   "system and sulci", "ventricular enlargement"),
    "sulci": ("(cortical|cerebral|) (sulci|sulcus|sulcal pattern|fissure|sulcal space); gyri; gyral pattern",
              "atrophy"),
    "volume": ("(brain|cerebral|cortical|parenchymal|hippocampal|gray matter|) volume; cortical thickness", "atrophy"),
    "white matter": ("(cerebral|deep|) white matter (signal|)", "white matter lesions"),
    "sinuses": ("(paranasal|maxillary|ethmoid|sphenoid|frontal|visualized|) sinus", "sinus disease"),
    "mastoids": ("mastoid (air cell|); middle ear", "mastoid effusion"),
    "brain": ("(brain|cerebral|) (parenchyma|hemisphere); brain; mri (of the brain|brain|); brain mri; study; "
              "examination; scan; head; imaging; ct; cerebrum; gray white (matter|) (differentiation|junction); gray "
              "matter; cortex", None),
    "other": ("pituitary (gland|); orbit; globe; calvarium; skull (base|); sella; flow void; basal cistern; cistern; "
              "csf; vessel; circle of willis; (internal|external|common|) carotid artery; artery; optic "
              "(chiasm|nerve);"
              " craniocervical junction; meninges; corpus callosum; soft tissue; bone; (major|) "
              "(intracranial|vascular"
              "|) (vessel|vasculature|system|structure); dural (venous|) sinus; cortical vein; vein; cranial nerve; "
              "brain stem; brainstem; cerebellum; internal auditory canal; foramen magnum; midline (structure|); "
              "diffusion; subarachnoid space; perivascular space; parenchymal signal; nasopharynx; cervical spine; "
              "hippocampus; marrow; disk; spinal cord; stem", None),
}  # fmt: skip
"""Structures that can be normal or changed: their words, and the finding that "normal" denies."""

CHANGED = {
    ("ventricles", "large"): "ventricular enlargement",
    ("sulci", "large"): "atrophy",
    ("volume", "small"): "atrophy",
}
"""Finding that a changed structure is."""
