"""Words of a header -> body part and contrast medium in our vocabulary; two opinions -> where they differ.

In English, German, French, Spanish and Chinese as scanners and people write them, and in the terms of
DICOM PS3.16 Annex L. Says '' or None where the words do not tell. Knows nothing of voxels.
"""

from __future__ import annotations

import re
import unicodedata

BODY_PARTS = ("head", "neck", "chest", "abdomen", "pelvis", "spine", "limb")
"""What header words are mapped to, from head to foot. Voxels are told apart as head, chest, abdomen."""

# Phrases that name a body part and mean another, or none; rewritten before anything else.
_REWRITTEN = (
    (r"(?:HEAD|FEET|FOOT)[ -]?FIRST|HEAD ?(?:HOLDER|REST|COIL)|C-?ARM|ARMS? (?:UP|DOWN|RAISED)", " "),
    (r"头先进|足先进|頭先|足先", " "),
    (r"(FEMORAL|FEMUR|HUMERAL|RADIAL) (?:HEAD|NECK)", r"\1"),
    (r"(?:HEAD|NECK|TAIL) OF (?:THE )?PANCREAS|PANCREA[A-Z]* (?:HEAD|NECK|TAIL)", "PANCREAS"),
    (r"(?:SKULL ?BASE|EYES?|VERTEX|HEAD) TO (?:MID[ -]?)?(?:THIGHS?|TOES?|FEET)", "WHOLEBODY"),
    (r"(?:WHOLE|TOTAL|FULL|ENTIRE) BODY|CORPS ENTIER|CUERPO (?:ENTERO|COMPLETO)", "WHOLEBODY"),
    (r"(ABDOMINAL|THORACIC) AORTA", r"\1"),
    (r"VENOUS SINUS|CORONARY SINUS", " "),
    (r"(?:CHEST|THORAX) ?TO ?PELVIS", "CAP"),
    # BodyPartExamined ends after 16 characters.
    (r"(?<![A-Z])CHES?$", "CHEST"),
    # CHESTABDPELVIS, HEADANDNECK: terms of PS3.16 Annex L and of scanners that run words together.
    (r"(HEAD|NECK|CHEST|THORAX|THOR|ABDOMEN|ABDO|ABD)(?:AND|TO)?(?=NECK|CHEST|THORAX|ABD|PELV)", r"\1 "),
)
_LEVEL = (
    r"(?:CERVICAL|CERVICO|THORACIC|THORACO|THORACIQUE|TORACICA|DORSAL|DORSALE|DORSO|LUMBAR|LUMBO|LOMBAIRE|"
    r"LOMBO|SACRAL|SACREE?|CTL?|TLS?|LS|[CTLS])"
)
_SPINE = re.compile(
    rf"(?<![A-Z])(?:{_LEVEL}[ /-]+)*{_LEVEL}?(?:SPINE|SPINAL|RACHIS|COLUMNA|COLONNE|VERTEBRA[A-Z]*)(?![A-Z])"
    rf"(?:[ /-]+{_LEVEL}(?![A-Z]))*"
    r"|[A-Z]*WIRBEL[A-Z]*|(?:HALS|BRUST|LENDEN)[ -]?WS|[颈頸胸腰骶]*[椎脊][体體管柱髓]?"
)
# A star stands for any letters. An abbreviation of several parts stands under each of them.
_WORDS = {
    "head": """
        HEAD BRAIN SKULL CRAN* NEUROCRAN* CEREBR* ENCEPHAL* ENCEFAL* TETE CERVEAU CABEZA KOPF* SCHADEL*
        SCHAEDEL* GEHIRN* HIRN* CCT CCTA FACE FACIAL VISAGE GESICHT* MAXIL* MAXLIO* MANDIB* UNTERKIEFER*
        OBERKIEFER* JAW SINUS SINUSES PNS NNH ORBIT* AUGE* FELSENBEIN* ROCHER* MASTOID* IAC IAM EAR
        PITUITARY HYPOPHYS* SELLA DENTAL STROKE WHOLEBODY GANZKORPER* POLYTRAUMA PANSCAN""",
    "neck": """
        NECK HALS* COU CUELLO CERVICAL CAROTI* KAROTI* LARYN* PHARYN* THYROID* SCHILDDRUS* PAROTI* WHOLEBODY
        GANZKORPER* POLYTRAUMA PANSCAN""",
    "chest": """
        CHEST THORA* THOR THX TORA* BRUST* LUNG LUNGS LUNGE* PULMO* POUMON* BRONCH* HEART CARDI* HERZ* COEUR
        CORAZON CORONARY CORONARIES CORONARIA* CORONARIEN* CORONAIRE* KORONAR* MEDIASTIN* RIB RIBS RIPPEN*
        STERNUM BREAST OESOPHAG* ESOPHAG* TRACHEA* HRCT CTPA PE LAE CALCIUM SMARTSCORE CASCORE* AORTA CAP TAP
        TAB WHOLEBODY GANZKORPER* POLYTRAUMA PANSCAN""",
    "abdomen": """
        ABDO* ABD BAUCH* OBERBAUCH* LIVER LEBER* FOIE HIGADO HEPAT* KIDNEY KIDNEYS NIERE* REN RENA* REINS
        RINON* PANCREA* PANKREA* SPLEEN MILZ* ADRENAL* NEBENNIERE* UROGRA* UROLITH* KUB STOMACH MAGEN* COLON*
        KOLON* COLOSCAN* ENTEROGRA* ENTEROSCAN* BILIARY GALLBLADDER AORTA CAP TAP TAB WHOLEBODY GANZKORPER*
        POLYTRAUMA PANSCAN""",
    "pelvis": """
        PELVI* PELV PEL BECKEN* BASSIN BLADDER PROSTAT* UTERUS CERVIX OVARY RECTUM HIP HIPS HUFT* HUEFT*
        HANCHE* CADERA* CAP TAP TAB WHOLEBODY GANZKORPER* POLYTRAUMA PANSCAN""",
    "spine": """
        CSPINE TSPINE LSPINE CTSPINE TLSPINE LSSPINE SSPINE HWS BWS LWS LUMB* LOMB* SACRUM SACRAL COCCYX
        MYELO*""",
    "limb": """
        LIMB EXTREMIT* KNEE* KNIE* GENOU* RODILLA* FOOT FEET FUSS* PIED PIE HAND HANDS MANO ELBOW* ELLBOGEN*
        ELLENBOGEN* COUDE CODO WRIST* HANDGELENK* POIGNET MUNECA SHOULDER* SCHULTER* EPAULE* HOMBRO* ANKLE*
        SPRUNGGELENK* CHEVILLE* TOBILLO* FEMUR FEMORAL TIBIA* FIBULA HUMERUS HUMERAL RADIAL FOREARM*
        UNTERARM* OBERARM* ARM LEG LEGS CALF THIGH* OBERSCHENKEL* UNTERSCHENKEL* BRAS JAMBE* CUISSE* BRAZO*
        PIERNA* FINGER* TOE TOES CLAVICLE* SCAPULA* CALCANEUS PATELLA RUNOFF""",
}
_CHINESE = {
    "head": "[头頭颅顱脑腦]|鼻窦|鼻竇|眼眶|眼窩|颞骨|副鼻腔|颌|全身",
    "neck": "[颈頸]|甲状腺|甲狀腺|喉|咽|全身",
    "chest": "胸|肺|心脏|心臟|冠脉|冠脈|冠状动脉|纵隔|縱隔|肋|乳腺|全身",
    "abdomen": "腹|肝|肾|腎|胰|脾|胆|膽|泌尿|全身",
    "pelvis": "盆|膀胱|前列腺|子宫|子宮|髋|髖|全身",
    "spine": "(?!)",
    "limb": "膝|踝|腕|肘|肩|股骨|四肢|[上下]肢|手(?![术術])|足",
}


def body_part_of(words: str) -> str:
    """What BodyPartExamined, or a description, calls the body part, in our words: "chest",
    "chest, abdomen and pelvis", or empty. Give it the most trusted words first and others only if
    those say nothing: words of a study name all its parts, those of a series its own."""
    return in_words(body_parts_of(words))


def body_parts_of(words: str) -> tuple[str, ...]:
    """The parts of BODY_PARTS that the words name, from head to foot, in English, German, French,
    Spanish and Chinese and in the terms of DICOM PS3.16 Annex L."""
    text = _plain(words)
    for pattern, instead in _REWRITTEN:
        text = re.sub(pattern, instead, text)
    text, spines = _SPINE.subn(" ", text)
    return tuple(part for part in BODY_PARTS if _NAMES[part].search(text) or (part == "spine" and spines))


def _plain(words: str) -> str:
    """Capitals without accents; underscores, and the ^ of Siemens' descriptions, are spaces."""
    letters = unicodedata.normalize("NFKD", unicodedata.normalize("NFKC", words).upper())
    bare = "".join(c for c in letters if not unicodedata.combining(c))
    return " ".join(re.sub(r"[_^]", " ", bare).split())


def _pattern(part: str) -> re.Pattern[str]:
    words = "|".join(word.replace("*", "[A-Z]*") for word in _WORDS[part].split())
    return re.compile(rf"(?<![A-Z])(?:{words})(?![A-Z])|{_CHINESE[part]}")


_NAMES = {part: _pattern(part) for part in BODY_PARTS}

_IV = r"(?:I\.?V\.?|INTRAVENOUS|INTRAVENOS[AO]?|E\.?V\.?)"
_MEDIUM = (
    rf"(?:{_IV}[ -]?)?(?:CONTRAST[A-Z]*|KONTRAST[A-Z]*|CNTRST|CONTR?|CON|CNT|CE|CM|KM|PDC|DYE|ENHA?[A-Z]*|"
    r"GAD[A-Z]*)"
)
_MOUTH = r"(?:ORAL|RECTAL|PO)(?![A-Z])"
# By mouth or rectum: says nothing of vessels.
_NOT_VESSELS = (
    (rf"{_MOUTH}(?: CONTRAST)? ?(?:AND|OR|&|\+|/) ?(?={_IV})", ""),
    (rf"({_IV}) ?(?:AND|OR|&|\+|/) ?{_MOUTH}", r"\1"),
    (
        r"(?:(?<![A-Z])(?:W/?O|WITHOUT|W/?|WITH|NO|OHNE|MIT|SANS|AVEC|SIN|CON)|\+)? ?"
        rf"(?<![A-Z]){_MOUTH}(?: (?:CONTRAST[A-Z]*|KM))?(?: ONLY)?",
        " ",
    ),
    (r"口服(?:造影剂|对比剂)?", " "),
)
_WITHOUT = re.compile(
    rf"(?<![A-Z])(?:(?:W/?O(?:UT)?|WITHOUT)(?:(?: ANY)? ?{_MEDIUM}| ?/?C)?(?![A-Z])"
    r"(?! ?(?:INTER|SED|ANES|MET))"
    rf"|NON?[ -]?(?:{_MEDIUM}|{_IV})|UN-?ENHANCED|NCCT|NECT|PLAIN|NATIV[AEO]?|NATIVE[RS]?|NATIF"
    rf"|PRE[ -]?(?:{_MEDIUM}|{_IV}|INJ[A-Z]*)|OHNE(?: {_MEDIUM})?|O\.? ?KM|KM-"
    rf"|SANS(?: (?:{_MEDIUM}|{_IV}|INJ[A-Z]*|PRODUIT[A-Z ]*))?|SIN (?:{_MEDIUM}|{_IV}|CIV|CTE)|S/C"
    r"|(?:CA|CALCIUM|CORONARY CALCIUM)[ -]?SCOR[A-Z]*|SMARTSCORE|CASCOR[A-Z]*)(?![A-Z])"
    r"|(?<![A-Z0-9])(?:C-|IV-|-C)(?![A-Z0-9-])"
    r"|平扫|平掃|非增强|未增强|[无無](?:造影|对比|對比)|単純"
)
_AND = r" ?(?:&|AND|UND|ET|Y|\+|/)? ?"
# The tilde is where a statement of _WITHOUT stood: "W & W/O CONTRAST" is "W & ~".
_WITH = re.compile(
    rf"(?<![A-Z])(?:(?:W/?|WITH|POST|MIT|M\.?|AVEC|APRES|CON)[ -]?(?:{_MEDIUM}|{_IV}|INJ[A-Z]*|CIV|CTE)"
    r"|W/? ?C|(?<!EDGE )ENHANCED|CECT|CE|CTA|CTPA|CTV|[A-Z]*ANGIO[A-Z]*|CONTRAST[A-Z]*|KONTRAST[A-Z]*|KM"
    r"|ART|ARTERIAL|ARTERIELL[A-Z]*|ARTERIEL[A-Z]*|PORTAL[A-Z]*|PORTO[A-Z]*|PVP|VEN|VENOUS|VENO[ES][A-Z]*"
    r"|VEINEU[A-Z]*|NEPHROGRA[A-Z]*|INJECTEE?S?|INJ|UROGRA[A-Z]*|PERFUSION|C/C)(?![A-Z])"
    rf"|(?<![A-Z])W/?{_AND}~|(?<![A-Z])(?:WITH|MIT|AVEC){_AND}~|~{_AND}W(?:/(?![A-Z])|(?![A-Z/]))"
    r"|(?<![A-Z])W/?$|(?<![A-Z0-9])(?:C\+|IV\+|\+ ?C|\+ ?IV)(?![A-Z0-9])"
    r"|增强|增強|强化|[动動][脉脈]期|[门門静靜][脉脈]期|延[迟遲]期|造影"
)
_NO_AGENT = re.compile(r"NONE|NO|NON|NIL|0|KEIN[A-Z]*|OHNE|SANS|SIN|[无無]|WATER|WASSER|SALINE|NACL.*")
_UNKNOWN_AGENT = re.compile(r"\W*|UNK|UNKNOWN|UNSPECIFIED|N/?A|NOT .*")
_SWALLOWED = re.compile(
    r"(?<![A-Z])(?:ORAL|PER ?OS|P\.?O\.?|RECTAL|ENEMA|BARIUM[A-Z]*|GASTRO[A-Z]*)(?![A-Z])|口服"
)
_INTO_VEIN = re.compile(rf"(?<![A-Z]){_IV}(?![A-Z])|静脉|靜脈")


def contrast_of(agent: str | None, words: str) -> bool | None:
    """Whether intravenous contrast medium was given, as the header states it; None: not stated, or
    stated both ways.

    `agent` is ContrastBolusAgent, None if absent. It may be empty without a meaning (type 2 in PS3.3
    C.7.6.4), so that only a name counts; a medium that was swallowed is none in a vein. `words` are
    descriptions; their phases ("portal venous") count as statements.
    """
    named, said = _of_agent(_plain(agent or "")), _of_words(_plain(words))
    if named is None or said is None:
        return said if named is None else named
    return named if named == said else None


def _of_agent(agent: str) -> bool | None:
    if _UNKNOWN_AGENT.fullmatch(agent):
        return None
    if _NO_AGENT.fullmatch(agent) or _WITHOUT.search(agent):
        return False
    return not _SWALLOWED.search(agent) or bool(_INTO_VEIN.search(agent))


def _of_words(text: str) -> bool | None:
    for pattern, instead in _NOT_VESSELS:
        text = re.sub(pattern, instead, text)
    text, without = _WITHOUT.subn("~", text)
    given = bool(_WITH.search(text))
    return given if given != bool(without) else None


def disagreements(
    header_body_part: str,
    pixels_body_part: str,
    header_contrast: bool | None,
    pixels_contrast: bool | None,
) -> tuple[str, ...]:
    """A sentence for each thing that header and voxels state differently, both sides in it.

    Body parts are the words of `body_part_of` and `Content.body_part`. A part agrees with its
    neighbours: a pelvis with an abdomen, a neck with a head or a chest, a spine with any of them.
    """
    notes = []
    stated, shown = _parts_in(header_body_part), _parts_in(pixels_body_part)
    expected = {seen for part in stated for seen in _SEEN_AS.get(part, (part,))}
    if stated and shown and not expected & set(shown):
        notes.append(f"The header says {header_body_part}; the voxels show {in_words(shown, 'a')}.")
    if header_contrast is False and pixels_contrast is True:
        notes.append(
            "The header says no contrast medium; the vessels are brighter than blood without it can be."
        )
    if header_contrast is True and pixels_contrast is False:
        notes.append("The header says contrast medium; the vessels are no brighter than blood without it.")
    return tuple(notes)


_SEEN_AS = {
    "neck": ("head", "chest"),
    "pelvis": ("abdomen",),
    "spine": ("head", "chest", "abdomen"),
}


def _parts_in(words: str) -> tuple[str, ...]:
    return tuple(part for part in BODY_PARTS if part in words)


def in_words(parts: tuple[str, ...], article: str = "") -> str:
    named = [f"{article}{'n' if part[0] == 'a' else ''} {part}" if article else part for part in parts]
    return " and ".join(filter(None, [", ".join(named[:-1]), *named[-1:]]))
