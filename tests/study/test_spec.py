"""Study files: everything wrong is said at once, with line, key, what is allowed and the nearest name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from adaptive_lora.errors import StudyFileError
from adaptive_lora.study.seeds import SEEDS_FROM
from adaptive_lora.study.study_file import Study, content_of, load_study, locate, parse_study

GOOD = """\
name: good
model: {name: demo}
data: {source: "demo:all", train: 20, validation: 5, test: 5}
budgets: ["rank:4", "params:50_000"]
arms:
  - uniform
  - {name: rising, strategy: linear-decay, options: {slope: -1}, scaling: rslora}
seeds: {evaluation: 3, tuning: [7, 8]}
train: {epochs: 3, learning_rate: [1e-4, 3e-4]}
"""


def parse(text: str) -> Study:
    return parse_study(text, Path("study.yaml"))


def complaints(text: str) -> list[str]:
    with pytest.raises(StudyFileError) as caught:
        parse(text)
    return list(caught.value.complaints)


def test_a_good_file_reads_as_written() -> None:
    spec = parse(GOOD).spec
    assert spec.train.learning_rate == [1e-4, 3e-4]  # YAML 1.2: numbers, not strings
    assert spec.seeds.evaluation == [0, 1, 2] and spec.seeds.tuning == [7, 8]
    assert [arm.name for arm in spec.arms] == ["uniform", "rising"]
    assert spec.arms[1].scaling is not None and spec.arms[1].scaling.rule == "rslora"
    assert spec.scaling.rule == "constant"


def test_counted_tuning_seeds_are_never_evaluation_seeds() -> None:
    spec = parse(GOOD.replace("[7, 8]", "3")).spec
    assert spec.seeds.tuning == [SEEDS_FROM["tuning"] + i for i in range(3)]
    assert not set(spec.seeds.tuning) & set(spec.seeds.evaluation)


def test_identity_is_the_content() -> None:
    one = parse(GOOD)
    reordered = parse("# a comment\n" + GOOD.replace("{name: demo}", "{dtype: float32, name: demo}"))
    other = parse(GOOD.replace("epochs: 3", "epochs: 4"))
    assert one.identity == reordered.identity != other.identity


@pytest.mark.parametrize(
    "name", ["demo", "smollm2-alpaca", "superseded/alpaca-stories260k", "superseded/gsm8k-stories260k"]
)
def test_what_says_nothing_of_looks_is_the_study_it_was(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Committed studies were made before there were looks; what they say is what they said."""
    monkeypatch.setenv("ADAPTIVE_LORA_ASSETS", "anywhere")
    folder = Path(__file__).parents[2] / "results" / name
    facts = json.loads((folder / "facts.json").read_text())
    study = parse_study((folder / "study.yaml").read_text(), folder)
    assert study.content == content_of(facts["spec"])
    if name in ("demo", "smollm2-alpaca"):  # identities of the others were made of paths too, as was then the way
        assert study.identity == facts["identity"]


def test_a_study_that_says_nothing_of_its_margin_measures_it() -> None:
    assert parse(GOOD).spec.analysis.margin == "half-budget"
    assert parse(GOOD + "analysis: {margin: 0.02}").spec.analysis.margin == 0.02
    assert parse(GOOD + "analysis: {primary: []}\ncontrols: none").spec.analysis.margin == "half-budget"


def test_looks_are_part_of_what_a_study_is() -> None:
    looking = parse(GOOD.replace("evaluation: 3", "evaluation: 3, looks: [2, 3]"))
    assert looking.spec.seeds.looks == [2, 3]
    assert (
        looking.identity
        != parse(GOOD).identity
        == parse(GOOD.replace("evaluation: 3", "evaluation: 3, looks: []")).identity
    )


def test_what_the_page_shows_beside_it_is_not_what_a_study_is() -> None:
    silent, said, none = parse(GOOD), parse(GOOD + "report: {answers: 5}"), parse(GOOD + "report: {answers: 0}")
    assert silent.identity == said.identity == none.identity
    assert (silent.spec.report.answers, none.spec.report.answers) == (5, 0)
    assert "report" not in silent.spec.model_dump(mode="json") and "report" not in said.spec.model_dump(mode="json")
    assert none.spec.model_dump(mode="json")["report"] == {"answers": 0}
    assert "report" not in none.content
    assert complaints(GOOD + "report: {answers: 21}")[0].startswith("line 10, report.answers: ")


def test_everything_is_said_at_once() -> None:
    bad = """\
name: bad study!
model: {nmae: demo, dtype: float3}
data: {source: x.json, train: 0, validation: five, test: 5}
budgets: ["rank:0"]
arms: [unifrom, {strategy: random, options: {sed: 3}}, {ranks: none.json}]
seeds: {evaluation: [1, 1], tuning: 2}
train: {epochs: 3, steps: 3, learning_rate: [1e-4, -1], schedule: linaer}
analysis: {baseline: unifrm}
analysis: {}
extra: 1
"""
    found = complaints(bad)
    for line, *words in [
        (1, "name", "'bad study!'"),
        (2, "model.name", "missing"),
        (2, "model.nmae", "did you mean 'name'", "name, revision, dtype"),
        (2, "model.dtype", "did you mean 'float32'"),
        (3, "data.train", "greater than or equal to 1", "got 0"),
        (3, "data.validation", "integer", "'five'"),
        (4, "budgets[0]", "rank:r"),
        (5, "arms[0]", "did you mean 'uniform'"),
        (5, "arms[1]", "did you mean 'seed'"),
        (5, "arms[2].ranks", "none.json does not exist"),
        (6, "seeds.evaluation", "must differ"),
        (7, "train.learning_rate[1]", "greater than 0"),
        (7, "train.schedule", "did you mean 'linear'"),
        (9, "analysis", "stands here twice"),
        (10, "extra", "unknown key"),
    ]:
        assert any(c.startswith(f"line {line}, {words[0]}: ") and all(w in c for w in words[1:]) for c in found), (
            f"nothing says line {line}, {words}: {found}"
        )


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("epochs: 3, ", "", "give either `epochs` or `steps`"),
        ("tuning: [7, 8]", "tuning: []", "a grid of learning rates needs tuning seeds"),
        ("tuning: [7, 8]", "tuning: [2, 8]", "2 both tune and evaluate"),
        (
            "evaluation: 3",
            "evaluation: 6, looks: [1, 6]",
            r"seeds.looks\[0\]: expected greater than or equal to 2, got 1",
        ),
        ("evaluation: 3", "evaluation: 6, looks: [4, 4, 6]", "each look has more .* than the one before, got 4, 4, 6"),
        ("evaluation: 3", "evaluation: 6, looks: [6, 4]", "each look has more .* than the one before, got 6, 4"),
        ("evaluation: 3", "evaluation: 6, looks: [3, 5]", "are 6, got 3, 5; end with 6, or write `evaluation: 5`"),
        ("tuning: [7, 8]}", "tuning: [7, 8], looks: [3]}\nanalysis: {primary: []}", "no primary comparison.*`looks`"),
        (
            "seeds: {",
            "controls: [twin]\nseeds: {",
            "analysis.margin: `half-budget`, the default.*without `half`.*margin: 0.01",
        ),
        ('"rank:4"', '"rank:1"', "analysis.margin: .*rank:1 has no half; give a number"),
        ("  - uniform\n", "  - uniform\n  - uniform\n", "2 arms are called 'uniform'"),
        ("  - uniform\n", "  - random\n", "no arm is called 'uniform'"),
        ("scaling: rslora", "scaling: rs-lora", "did you mean 'rslora'"),
        ("options: {slope: -1}", "options: {slope: 5}", "`slope`.*less than 2"),
        (
            "options: {slope: -1}",
            "options: {min_rank: 4, max_rank: 2}",
            "`min_rank` 4 is above `max_rank` 2",
        ),
        ("strategy: linear-decay", "strategy: linear-decay, ranks: {c_attn: 4}", "either a `strategy` or `ranks`"),
        ("{name: demo}", '{name: "${SURELY_NOT_SET}/x"}', "SURELY_NOT_SET is not set"),
        ("name: good", "name: ../evil", "letters, digits"),
        (
            "  - uniform\n",
            "  - uniform\n  - {name: t, strategy: uniform, scaling: constant}\n",
            "same arm as 'uniform'",
        ),
        ('["rank:4", "params:50_000"]', '["rank:4", "rank:4"]', "budgets: each value once"),
        ("[1e-4, 3e-4]", "[1e-4, 1e-4]", "train.learning_rate: each value once"),
        ("epochs: 3,", "steps: 6, warmup: 500,", "`warmup` of 500 steps leaves none"),
        ("evaluation: 3", "evaluation: 20000", "seeds.evaluation: expected"),
        ("train: 20", 'train: "20"', r"data.train: expected integer, got '20'"),
        (
            "seeds: {",
            "  - {name: f, ranks: {c_attn: 4}}\n"
            "analysis: {primary: [rising, {arm: f, budget: 'params:50_000'}]}\nseeds: {",
            r"line \d+, analysis.primary\[1\]: 'f' has fixed `ranks`, .* under the first budget alone; write rank:4",
        ),
        ("epochs: 3", "epochs: true", "train.epochs: expected number, got True"),
    ],
)
def test_single_faults(old: str, new: str, message: str) -> None:
    assert old in GOOD
    with pytest.raises(StudyFileError, match=message):
        parse(GOOD.replace(old, new))


@pytest.mark.parametrize(
    ("train", "arm", "message"),
    [
        (
            "epochs: 1, warmup: 500",
            "",
            r"line 1\d, train\.warmup: .*500 steps leaves none of the 5 steps that 'uniform'",
        ),
        (
            "epochs: 1",
            "warmup: 5",
            r"line \d, arms\[1\]\.train\.warmup: .*5 steps leaves none of the 5 steps that 'own'",
        ),
        ("epochs: 2, warmup: 5", "longer: 0.5", r"train\.warmup: .*5 steps leaves none of the 5 steps that 'own'"),
        ("epochs: 1, warmup: 4", "warmup: 0.9", ""),
        ("steps: 1, warmup: 0.5", "longer: 6, warmup: 5", ""),
    ],
)
def test_a_warm_up_leaves_some_of_every_arms_updates(train: str, arm: str, message: str) -> None:
    own = f"  - uniform\n  - {{name: own, strategy: uniform, train: {{{arm or 'multipliers: {b: 2}'}}}}}\n"
    text = GOOD.replace("epochs: 3", train).replace("  - uniform\n", own)
    if not message:
        parse(text)
        return
    with pytest.raises(StudyFileError, match=message) as caught:
        parse(text)
    assert len(caught.value.complaints) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected keys and values"),
        ("a: [", "line 1, column 5: not valid YAML"),
        ("a: &x 1\nb: *x", "aliases"),
        ("a: !!python/object/apply:os.system ['true']", "not valid YAML|tags"),
        ("a: !thing 1", "tags"),
        ("x" * 1_000_001, "characters"),
    ],
)
def test_what_is_not_plain_yaml_is_refused(text: str, message: str) -> None:
    with pytest.raises(StudyFileError, match=message):
        parse(text)


def test_a_missing_file_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(StudyFileError, match="adaptive-lora init"):
        load_study(tmp_path / "none.yaml")


def test_rank_files_are_read_beside_the_study_and_count_in_its_identity(tmp_path: Path) -> None:
    text = GOOD.replace("  - uniform\n", "  - uniform\n  - {ranks: ranks/mine.json}\n")
    (tmp_path / "ranks").mkdir()
    (tmp_path / "study.yaml").write_text(text)
    identities = []
    for rank in (4, 5):
        (tmp_path / "ranks" / "mine.json").write_text(json.dumps({"c_attn": rank, "c_proj": 2, "c_fc": 1}))
        study = load_study(tmp_path / "study.yaml")
        identities.append(study.identity)
        assert study.spec.arms[1].name == "mine"
        assert study.spec.arms[1].ranks == {"c_attn": rank, "c_proj": 2, "c_fc": 1}
    assert identities[0] != identities[1]


def test_paths_take_variables_and_the_study_files_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLACE", "/somewhere")
    (tmp_path / "data.json").write_text("[]")
    assert locate("${PLACE}/x", tmp_path) == "/somewhere/x"
    assert locate("data.json", tmp_path) == str(tmp_path / "data.json")
    assert locate("owner/name", tmp_path) == "owner/name"


def test_identity_keeps_variables_as_written(monkeypatch: pytest.MonkeyPatch) -> None:
    text = GOOD.replace("{name: demo}", '{name: "${PLACE}/x"}')
    monkeypatch.setenv("PLACE", "/one")
    first = parse(text).identity
    monkeypatch.setenv("PLACE", "/two")
    assert parse(text).identity == first
