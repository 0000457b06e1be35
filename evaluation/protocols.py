"""The name of a protocol -> how a text becomes words, and how words become BLEU.

"BLEU-4" is not one number: the published ways of cutting, cleaning and averaging differ by a factor of two
on the same pairs. Each of them has a name here, was read from the code that defines it, and leaves its
signature on every value. Knows no n-grams and no files.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a
from sacrebleu.tokenizers.tokenizer_zh import TokenizerZh

from evaluation.tokens import tokenise
from mla_med.errors import ConfigError

Split = Callable[[str], str]
"""Text -> words with one blank between them."""


class Smoothing(StrEnum):
    """What becomes of an order of which no n-gram matches."""

    TINY = "none+tiny"
    """1e-15 of a match, as in pycocoevalcap's bleu_scorer.py; where every order matches, as NONE to 1e-9."""
    NONE = "none"
    EXP = "exp"
    """Halved once more for each such order: sacrebleu's default (Chen and Cherry, WMT 2014, method 3)."""
    FLOOR = "floor0.1"
    """A tenth of a match (method 1), as in fast_bleu and nltk."""


@dataclass(frozen=True, slots=True)
class Protocol:
    name: str
    words: str
    """Who scores like this, and what to know of it."""
    split_reference: Split
    split_draft: Split
    pre: str
    """What is done to a text before sacrebleu could take it with the tokeniser `tok`."""
    tok: str = "none"
    smoothing: Smoothing = Smoothing.TINY
    is_mean: bool = False
    """The mean of the scores of the single reports, and not one score of all their n-grams."""
    refs: str = "full"
    headline: str = "BLEU-4"
    has_rouge_score: bool = False
    """ROUGE-1, -2 and -L of the package rouge_score, from the texts as they are, for pycocoevalcap's."""

    @property
    def signature(self) -> str:
        return f"pre:{self.pre}|refs:{self.refs}|protocol:{self.name}"


def find_protocol(name: str) -> Protocol:
    """By its name; r2gen takes the number of words that references are cut at: `r2gen:300`."""
    base, _, number = name.partition(":")
    if base == "r2gen" and number.isascii() and number.isdigit() and int(number) > 1:
        return _r2gen(int(number))
    if base == "r2gen":
        raise ConfigError(
            f"Protocol {name!r} needs the length that references are cut at, such as r2gen:60 (IU X-ray), "
            "r2gen:100 (MIMIC-CXR) or r2gen:300 (CT2Rep).",
            code="PROTOCOL_UNKNOWN",
        )
    for protocol in PROTOCOLS:
        if protocol.name == name:
            return protocol
    known = ", ".join([*(p.name for p in PROTOCOLS), "r2gen:N"])
    raise ConfigError(f"No protocol {name!r}; choose of {known}.", code="PROTOCOL_UNKNOWN")


def split_coco(text: str) -> str:
    return " ".join(tokenise(text))


def split_blanks(text: str) -> str:
    return " ".join(text.split())


def clean_r2gen(text: str) -> str:
    """clean_report_mimic_cxr of github.com/zhjohnchan/R2Gen, modules/tokenizers.py, which CT2Rep copies.
    Deletes every point inside a sentence, and by the range `:-[` in its class also < = > and capitals'
    neighbours: "12.5 x 3 mm" becomes "125 x 3 mm" on both sides, before anything is scored."""
    for pattern, new in _R2GEN_CLEANING:
        text = pattern.sub(new, text)
    text = text.replace("1. ", "")
    for before in (". ", " "):
        for number in "2345":
            text = text.replace(f"{before}{number}. ", ". ")
    sentences = text.strip().lower().split(". ")
    return " . ".join(_R2GEN_DROPPED.sub("", sentence.strip()) for sentence in sentences) + " ."


def glue_vlm3d(text: str) -> str:
    """nlg_metrics.py of github.com/forithmus/VLM3D-Dockers (MICCAI VLM3D, report generation)."""
    return text.replace("\n", "").replace(" . ", ".").replace(" .", ".")


def glue_vlm3d_draft(text: str) -> str:
    return glue_vlm3d(text.replace("\n", "").replace("<|eot_id|>", "").replace('"', "").replace("_", ""))


def split_rexrank(text: str) -> str:
    """prep_reports in CXRMetric/run_eval.py of github.com/rajpurkarlab/CXR-Report-Metric."""
    return " ".join(word for word in text.lower().replace(".", " .").split(" ") if word)


_THIRTEEN_A = Tokenizer13a()
_CHINESE = TokenizerZh()


def split_13a(text: str) -> str:
    return " ".join(_THIRTEEN_A(text).split())


def split_zh(text: str) -> str:
    return " ".join(_CHINESE(split_blanks(text)).split())


_R2GEN_CLEANING = tuple(
    (re.compile(pattern), new)
    for pattern, new in ((r"\n", " "), (r"__+", "_"), (r"  +", " "), (r"\.\.+", "."))
)
_R2GEN_DROPPED = re.compile(r"""["/\\'.,?;*!%^&_+():-\[\]{}]""")


@lru_cache(maxsize=8)
def _r2gen(length: int) -> Protocol:
    def cut(text: str) -> str:
        # the id list opens with a 0, which is cut with it and not decoded
        return " ".join(clean_r2gen(text).split()[: length - 1])

    return Protocol(
        name=f"r2gen:{length}",
        words="R2Gen, CT2Rep, R2GenCSR, ORGan and others: cleaned words, references cut at a length, so that "
        "a short draft is not punished. Without the vocabulary of their training split, so no <unk>.",
        split_reference=cut,
        split_draft=lambda text: " ".join(clean_r2gen(text).split()),
        pre="r2gen-mimic|unk:none",
        refs=f"cut:{length}",
    )


PROTOCOLS = (
    Protocol(
        name="coco",
        words="pycocoevalcap: Penn Treebank words, lower case, no punctuation; one score of all n-grams.",
        split_reference=split_coco,
        split_draft=split_coco,
        pre="ptb3.4.1-lc-nopunct",
    ),
    Protocol(
        name="vlm3d",
        words="MICCAI VLM3D (CT-RATE): case and punctuation kept, sentences glued together. The challenge "
        "scores only the ids that both files hold; here a missing draft counts.",
        split_reference=glue_vlm3d,
        split_draft=glue_vlm3d_draft,
        pre="vlm3d-glued",
    ),
    Protocol(
        name="radeval",
        words="RadEval: what stands between blanks, as it is.",
        split_reference=split_blanks,
        split_draft=split_blanks,
        pre="none",
        has_rouge_score=True,
    ),
    Protocol(
        name="rexrank",
        words="CXR-Report-Metric and ReXrank, whose column BLEU is BLEU-2, the mean over reports.",
        split_reference=split_rexrank,
        split_draft=split_rexrank,
        pre="lc-points-apart",
        smoothing=Smoothing.FLOOR,
        is_mean=True,
        headline="BLEU-2",
    ),
    Protocol(
        name="m3d",
        words="M3D-LaMed and u2Tokenizer, whose BLEU is Hugging Face's with max_order=1, a mean of reports.",
        split_reference=split_13a,
        split_draft=split_13a,
        pre="none",
        tok="13a",
        smoothing=Smoothing.NONE,
        is_mean=True,
        headline="BLEU-1",
    ),
    Protocol(
        name="sacre13a",
        words="sacrebleu as it comes: mteval-13a words, case kept.",
        split_reference=split_13a,
        split_draft=split_13a,
        pre="none",
        tok="13a",
        smoothing=Smoothing.EXP,
    ),
    Protocol(
        name="zh",
        words="sacrebleu --tokenize zh: every Chinese character is a word.",
        split_reference=split_zh,
        split_draft=split_zh,
        pre="none",
        tok="zh",
        smoothing=Smoothing.EXP,
    ),
)
