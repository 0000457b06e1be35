"""Text scores against the packages that define them, and against every way a pair could be shifted."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import sacrebleu
from hypothesis import given, settings
from hypothesis import strategies as st
from sacrebleu.metrics import BLEU, CHRF

from evaluation.bench_text import TRICKY, invented_sets, main
from evaluation.leakage import find_leaks
from evaluation.protocols import PROTOCOLS, clean_r2gen, find_protocol, glue_vlm3d, glue_vlm3d_draft
from evaluation.score import score_texts
from evaluation.text import text_scores
from evaluation.tokens import tokenise
from mla_med.errors import ConfigError, ReportError

SHARED = Path(__file__).parents[2] / "shared/data/text"
EXPECTED = json.loads((Path(__file__).parent / "expected_text.json").read_text(encoding="utf-8"))
SETS = invented_sets()
NAMES = [protocol.name for protocol in PROTOCOLS] + ["r2gen:60"]
NEWLINES = ["\r", "\r\n", "\n", "\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\t"]
needs_shared = pytest.mark.skipif(not SHARED.exists(), reason="the shared texts are not on this machine")


def lines(name):
    return [json.loads(line) for line in (SHARED / name).read_text(encoding="utf-8").split("\n") if line]


def first_references(name):
    references, drafts = SETS[name]
    return [several[0] for several in references], drafts


@pytest.mark.parametrize("name", SETS)
def test_scores_are_those_of_pycocoevalcap_and_nltk(name):
    scores = text_scores(*SETS[name])
    expected = EXPECTED["sets"][name]
    assert {key: scores[key].value for key in expected} == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("text", "tokens"), EXPECTED["tokens"], ids=range(len(TRICKY)))
def test_words_are_those_of_the_java_tokenizer(text, tokens):
    assert " ".join(tokenise(text)) == tokens


def test_the_words_of_a_sentence_written_out():
    text = "No. 5 rib: it's 1.5cm (IM274), e.g. T2-weighted. Don't compare clear.No"
    told = "no. 5 rib it 's 1.5 cm -lrb- im274 -rrb- e.g. t2-weighted do n't compare clear.no"
    assert tokenise(text) == told.split()


@pytest.mark.parametrize("name", ["shuffled", "no negation", "first half", "tricky words", "repetitive"])
def test_bleu_counts_are_sacrebleus(name):
    references, drafts = first_references(name)
    split = find_protocol("coco").split_draft
    metric = BLEU(tokenize="none", force=True)
    theirs = metric._extract_corpus_statistics([*map(split, drafts)], [[*map(split, references)]])
    assert np.array_equal(text_scores(references, drafts)["BLEU-4"].sums.each_RT, np.array(theirs))


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize(("protocol", "tok"), [("sacre13a", "13a"), ("zh", "zh")])
def test_bleu_is_sacrebleus_where_sacrebleu_is_the_protocol(protocol, tok, order):
    references = ["右肺上叶见结节，大小约5mm。双肺纹理清晰。", "No nodule in CT-2.5.", "a b", "Mass, 3 cm."]
    drafts = ["右肺上叶结节，约5mm。", "No nodule in CT-2.5 mm.", "", "x"]
    theirs = BLEU(tokenize=tok, max_ngram_order=order, force=True).corpus_score(drafts, [references]).score
    assert text_scores(references, drafts, protocol)[f"BLEU-{order}"].value == pytest.approx(theirs / 100)


@pytest.mark.parametrize("name", ["shuffled", "some empty", "two readers", "tricky words"])
def test_chrf_is_sacrebleus(name):
    references, drafts = SETS[name]
    theirs = CHRF().corpus_score(drafts, [*zip(*references, strict=True)]).score
    assert text_scores(references, drafts)["chrF"].value == pytest.approx(theirs / 100, abs=1e-9)


def test_r2gen_loses_decimals_and_comparators_on_both_sides():
    assert clean_r2gen("1. Nodule of 12.5 x 3 mm, <5 mm. 2. No_effusion") == (
        "nodule of 125 x 3 mm 5 mm . noeffusion ."
    )
    scores = text_scores(
        ["12.5 mm wide, seen in the left lobe"], ["125 mm wide seen in the left lobe"], "r2gen:60"
    )
    assert scores["BLEU-4"].value == pytest.approx(1)


def test_r2gen_cuts_references_so_that_short_drafts_win():
    references, drafts = ["a b c d e f g h i j"], ["a b c d"]
    assert text_scores(references, drafts, "r2gen:60")["BLEU-1"].value < 0.4
    assert text_scores(references, drafts, "r2gen:5")["BLEU-1"].value == pytest.approx(4 / 5)


def test_vlm3d_glues_sentences_and_cleans_drafts_only():
    assert glue_vlm3d('Open . No "mass"\n .') == 'Open.No "mass".'
    assert glue_vlm3d_draft('Open . No "mass_"\n .<|eot_id|>') == "Open.No mass."


def test_rexrank_is_the_mean_of_smoothed_bleu_2():
    # 1 and sqrt(2/4 * 0.1/3), as the package fast_bleu prints them
    scores = text_scores(["a b c d", "a b c d"], ["A b c d", "a x b y"], "rexrank")
    assert scores["BLEU-2"].value == pytest.approx((1 + 0.12909944487358058) / 2)
    assert find_protocol("rexrank").headline == "BLEU-2"


def test_m3d_is_the_mean_of_unigrams():
    scores = text_scores(["a b c d", "a b"], ["a b", "a x y z"], "m3d")
    assert scores["BLEU-1"].value == pytest.approx((np.exp(1 - 4 / 2) + 1 / 4) / 2)


def test_one_pair_of_texts_has_as_many_bleus_as_protocols():
    references, drafts = first_references("shuffled")
    values = {name: text_scores(references, drafts, name)["BLEU-4"] for name in NAMES}
    assert len({score.signature for score in values.values()}) == len(NAMES)
    assert len({round(score.value, 6) for score in values.values()}) >= len(NAMES) - 2


def test_a_score_says_how_to_make_it_again():
    score = text_scores(["a b c d e"], ["a b c d f"])["BLEU-4"]
    assert score.signature == (
        "case:mixed|eff:no|smooth:none+tiny|agg:corpus|nrefs:1|tok:none|pre:ptb3.4.1-lc-nopunct|refs:full|"
        f"protocol:coco|n:1|version:{sacrebleu.__version__}"
    )
    assert "smooth:none+tiny" in str(score)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("bleu", "choose of coco, vlm3d"),
        ("r2gen", "such as r2gen:60"),
        ("r2gen:1", "such as"),
        ("r2gen:²", "such"),
    ],
)
def test_an_unknown_protocol_is_refused_with_those_there_are(name, words):
    with pytest.raises(ConfigError, match=words) as caught:
        text_scores(["a"], ["a"], name)
    assert caught.value.code == "PROTOCOL_UNKNOWN"


def test_lists_of_unequal_length_are_refused_and_so_is_nothing():
    with pytest.raises(ReportError, match="2 references and 1 drafts"):
        text_scores(["a", "b"], ["a"])
    with pytest.raises(ReportError, match="at least one"):
        text_scores([], [])


@pytest.mark.parametrize("protocol", [protocol.name for protocol in PROTOCOLS])
def test_empty_texts_score_nothing_and_break_nothing(protocol):
    scores = text_scores(["a b c d e", "", "a b c d e"], ["", "a b c d e", "a b c d e"], protocol)
    for name in ("BLEU-1", "BLEU-4", "ROUGE-L", "METEOR", "chrF"):
        assert scores[name].per_pair[:2] == pytest.approx([0, 0], abs=1e-6)
        assert scores[name].per_pair[2] > 0.9
    assert 0 < scores["BLEU-4"].value < 1


def test_r2gen_leaves_a_point_of_an_empty_text_as_its_code_does():
    assert clean_r2gen("").split() == ["."]


WORDS = ["no", "nodule", "effusion", "left", "lobe", "5", "mm", "the", *NEWLINES]
REPORTS = st.lists(st.lists(st.sampled_from(WORDS), max_size=12).map(" ".join), min_size=2, max_size=5)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(REPORTS, st.randoms(use_true_random=False))
def test_whatever_stands_in_a_text_every_draft_meets_its_own_reference(texts, random):
    texts = [f"case {k} {text}" for k, text in enumerate(texts)]
    order = list(range(len(texts)))
    random.shuffle(order)
    same, moved = text_scores(texts, texts), text_scores([texts[k] for k in order], [texts[k] for k in order])
    for name in ("BLEU-1", "ROUGE-L", "chrF"):
        assert same[name].per_pair == pytest.approx(1.0, abs=1e-6)
        assert moved[name].value == pytest.approx(1.0, abs=1e-6)
    others = text_scores(texts, texts[1:] + texts[:1])
    again = text_scores([texts[k] for k in order], [(texts[1:] + texts[:1])[k] for k in order])
    for name in ("BLEU-4", "ROUGE-L", "METEOR", "CIDEr", "chrF"):
        assert again[name].per_pair == pytest.approx(others[name].per_pair[order])


@pytest.mark.parametrize("newline", NEWLINES)
@pytest.mark.parametrize("protocol", ["coco", "radeval", "sacre13a", "zh"])
def test_a_newline_in_one_text_changes_no_other_pair(newline, protocol):
    references, drafts = first_references("shuffled")
    broken = [references[0].replace(". ", f".{newline}", 1), *references[1:]]
    before, after = (text_scores(some, drafts, protocol) for some in (references, broken))
    for name in ("BLEU-4", "ROUGE-L", "METEOR"):
        assert after[name].per_pair == pytest.approx(before[name].per_pair, abs=1e-9)


@pytest.mark.parametrize("protocol", ["coco", "rexrank", "sacre13a"])
def test_a_resample_scores_as_the_repeated_texts(protocol):
    references, drafts = first_references("shuffled")
    again = [0, 0, 3, 4, 4, 9]
    counts = np.bincount(again, minlength=len(drafts))[None, :].astype(float)
    repeated = text_scores([references[k] for k in again], [drafts[k] for k in again], protocol)
    for measure in (score.measure for score in text_scores(references, drafts, protocol).values()):
        if measure.name not in ("CIDEr", "identical outputs"):  # these two look at all pairs
            assert measure.statistic(counts)[0] == pytest.approx(repeated[measure.name].value)


def test_what_drafts_repeat_is_counted():
    scores = text_scores(["a b c d", "e f g h"], ["a b c d a b c d", "a  b c d a b c d"])
    # five 4-grams in each, the last of which is the first again
    assert scores["repetition"].value == pytest.approx(1 / 5)
    assert scores["identical outputs"].value == 1.0
    assert scores["length ratio"].value == pytest.approx(16 / 8)
    assert not scores["repetition"].higher_is_better


@needs_shared
def test_published_bleu_of_reg2rg_is_reproduced():
    rows = lines("ct_pairs_reg2rg/ctrg.jsonl")
    published = {"BLEU-1": 0.5196, "BLEU-2": 0.4262, "BLEU-3": 0.3638, "BLEU-4": 0.3203}
    scores = text_scores([row["ref"] for row in rows], [row["pred"] for row in rows], "sacre13a")
    assert {name: scores[name].value for name in published} == pytest.approx(published, abs=5e-5)


@needs_shared
@pytest.mark.parametrize("case", ["case_readme", "case_zero4gram"])
def test_expected_values_of_nlg_eval_are_reproduced(case):
    told = json.loads((SHARED / "eval_pairs/nlgeval_expected.json").read_text())[case]
    scores = text_scores(told["refs"], told["hyps"])
    expected = {
        k.replace("Bleu_", "BLEU-").replace("ROUGE_L", "ROUGE-L"): v for k, v in told["expected"].items()
    }
    del expected["METEOR"]  # theirs is the Java program with its tables of synonyms
    assert {name: scores[name].value for name in expected} == pytest.approx(expected, abs=2e-6)


@needs_shared
def test_expected_values_of_radeval_are_reproduced():
    rows = lines("eval_pairs/radeval_regression.jsonl")
    told = json.loads((SHARED / "eval_pairs/radeval_regression.expected.json").read_text())
    scores = text_scores([row["ref"] for row in rows], [row["hyp"] for row in rows], "radeval")
    names = {"bleu": "BLEU-4", "bleu_1": "BLEU-1", "bleu_2": "BLEU-2", "bleu_3": "BLEU-3"}
    names |= {"rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L"}
    assert {k: scores[names[k]].value for k in told["detailed"]} == pytest.approx(told["detailed"], abs=5e-5)
    for key, values in told["per_sample"].items():
        assert scores[names[key]].per_pair == pytest.approx(values, rel=1e-6)
    rows = lines("eval_pairs/radeval_paper.jsonl")
    told = json.loads((SHARED / "eval_pairs/radeval_paper.expected.json").read_text())
    scores = text_scores([row["ref"] for row in rows], [row["hyp"] for row in rows], "radeval")
    for key in ("bleu", "rouge1", "rouge2", "rougeL"):
        assert scores[names[key]].value == pytest.approx(told[key]["value"], rel=1e-9)


def test_a_training_loop_gets_scores_without_torch():
    program = """
import sys
class Forbid:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "monai", "transformers"):
            raise ImportError(name + " is forbidden here")
sys.meta_path.insert(0, Forbid())
from evaluation.score import score_texts
print(score_texts(["No nodule.", "No effusion."], ["No nodule.", "No mass."])["BLEU-1"].value)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert float(done.stdout) == pytest.approx(0.75)


def test_scores_for_a_loop_carry_their_signature_and_no_interval():
    score = score_texts(["a b c d"], ["a b c d"], "radeval")["BLEU-4"]
    assert "protocol:radeval" in score.signature
    assert np.isnan(score.ci95).all()
    assert score.num_reports == 1


def test_a_report_of_the_training_is_found_whole_or_nearly():
    seen = "There is a solid nodule of 8 mm in the right upper lobe and no pleural effusion on either side."
    train = [
        "No nodule.",
        seen,
        "The heart is of normal size and the great vessels are unremarkable throughout.",
    ]
    texts = ["No NODULE", seen.replace("8 mm", "8 mm").lower(), f"Today: {seen}", "", "A mass of 5 cm."]
    leaks = find_leaks(texts, train)
    assert [(leak.text, leak.train, leak.is_same) for leak in leaks] == [
        (0, 0, True),
        (1, 1, True),
        (2, 1, False),
    ]
    assert 0.8 < leaks[2].share < 1


def test_a_chinese_report_of_the_training_is_found_nearly_too():
    """It has no blanks: as one word each, no clause had a run."""
    seen = "右肺上叶见一枚实性结节，直径约8毫米，边缘毛糙，邻近胸膜稍牵拉。"
    seen += "双侧胸腔未见积液。心影大小正常，主动脉壁见钙化。"
    texts = [f"今日所见：{seen}", "左肺下叶见片状磨玻璃影，边界不清，其内可见支气管充气征，考虑感染性病变。"]
    (leak,) = find_leaks(texts, ["双肺未见异常。", seen])
    assert (leak.text, leak.train, leak.is_same) == (0, 1, False)
    assert 0.8 < leak.share < 1


def test_leaks_of_one_language_are_found_whatever_else_the_training_holds():
    english = "There is a solid nodule of 8 mm in the right upper lobe."
    chinese = "双肺未见明显异常密度影。"
    train = [f"As before. {english} No effusion.", f"{chinese}心影大小正常。", "右肺上叶见结节。" * 20]
    found = [(leak.text, leak.train, leak.share) for leak in find_leaks([english, chinese], train)]
    assert found == [(0, 0, 1.0)]  # a short Chinese report is an idiom, in whatever company


def test_the_bench_prints_a_row_for_every_package_or_says_that_it_is_missing(capsys):
    assert main(["--pairs", "4", "--peer-pairs", "2", "--cases", "3", "--words", "20"]) == 0
    printed = capsys.readouterr().out
    for name in ("ours: every score", "pycocoevalcap Cider", "nltk corpus_bleu", "torchmetrics BLEUScore"):
        assert name in printed
