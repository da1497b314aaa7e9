"""The text side of the training data: scripts, their German, and the tasks made of them."""

from __future__ import annotations

import random
import re

import pytest

from training import phrasings, refusals
from training.facts import families
from training.grammar import EVERYDAY, everyday_sentence
from training.phrasings import AUDIO, Part, Phrasings, normal
from training.scripts import EMOTIONS, Line, Script, draw_script, ordinary_script, split_of
from training.tasks import TASKS, make_example, tasks_for
from training.words import Entry, fill_german, pick, tables

DRAWN = ("everyday", "story", "dialogue", "question", "digits")

# how the English template starts | the entries of its slots | German
GERMAN = [
    ("{who} {modal:now/who} {get:inf} {thing:a+quality}", "who=she modal=will get=buy thing=ring quality=old "
     "future=tomorrow", "Sie wird morgen einen alten Ring kaufen."),
    ("{who} {modal:now/who} {get:inf} {clothes", "who=I modal=must get=pick_up clothes=dress colour=red",
     "Ich muss ein rotes Kleid abholen."),
    ("{who} {get:past} {clothes", "who=they get=bring_along clothes=jacket colour=green past=yesterday",
     "Sie haben gestern eine grüne Jacke mitgebracht."),
    ("{who} {handle:past} {thing:the+colour}", "who=he handle=lose thing=key colour=black past=last_week",
     "Er hat letzte Woche den schwarzen Schlüssel verloren."),
    ("{future} {who} will {handle", "future=tonight who=we handle=clean home=mirror",
     "Heute Abend werden wir den Spiegel putzen."),
    ("{other:do} {other} {get:inf}", "other=Anna get=pick_up thing=suitcase colour=brown",
     "Holt Anna einen braunen Koffer ab?"),
    ("{who} {who:have} not {handle", "who=I handle=repair home=lamp",
     "Ich habe die Lampe noch nicht repariert."),
    ("I forgot to {get", "get=pick_up thing=letter clothes=shirt",
     "Ich habe vergessen, den Brief und das Hemd abzuholen."),
    ("Which {clothes", "clothes=hat colour=blue", "Welchen blauen Hut mögen Sie lieber?"),
    ("I am looking for", "clothes=coat colour=white relative=uncle",
     "Ich suche einen weißen Mantel für meinen Onkel."),
    ("{habit} {stranger} {meet", "habit=every_day stranger=the_girl meet=call relative=father",
     "Jeden Tag ruft das Mädchen meinen Vater an."),
    ("{name} {often} {meet", "name=Peter often=often meet=invite job=pilot",
     "Peter lädt oft den Piloten ein."),
    ("{kinsman:my} is {job", "kinsman=son job=baker city=Vienna", "Mein Sohn ist Bäcker in Wien."),
    ("{stranger} cannot come", "stranger=they relative=mother state=late",
     "Sie können nicht kommen, weil meine Mutter spät dran ist."),
    ("I gave {relative", "relative=sister thing=watch colour=yellow past=last_year",
     "Ich habe meiner Schwester letztes Jahr eine gelbe Armbanduhr gegeben."),
    ("{name} is helping", "name=Tom relative=grandfather room=cellar",
     "Tom hilft meinem Großvater im Keller."),
    ("{thing:the+colour} belongs", "thing=bicycle colour=red relative=aunt",
     "Das rote Fahrrad gehört meiner Tante."),
    ("How much are the", "food=pear produce=expensive", "Wie viel kosten die teuren Birnen?"),
    ("Do you have {clothes:this}", "clothes=scarf colour=grey colour2=blue",
     "Haben Sie diesen Schal in Grau oder Blau?"),
    ("I do not want", "clothes=skirt colour=red clothes2=blouse colour2=white",
     "Ich will keinen roten Rock, ich will eine weiße Bluse."),
    ("{meal} is ready", "meal=dinner room=garage",
     "Das Abendessen ist fertig, bitte kommen Sie in die Garage."),
    ("{place:the} is {position}", "place=bank position=opposite place2=park",
     "Die Bank ist gegenüber dem Park."),
    ("Turn {direction}", "direction=left mark=after_the_bridge place=market",
     "Biegen Sie nach der Brücke links ab, dann werden Sie den Markt sehen."),
    ("{other} traveled from", "other=we city=Rome city2=Cologne past=yesterday",
     "Wir sind gestern von Rom nach Köln gereist."),
    ("{vehicle:the} to {city} leaves", "vehicle=ferry city=Oslo clock=half_past_two",
     "Die Fähre nach Oslo fährt um halb drei ab."),
    ("I have an appointment", "job=dentist day=Friday clock=ten_past_four",
     "Ich habe am Freitag um zehn nach vier einen Termin beim Zahnarzt."),
    ("Where is {thing:my}?", "thing=key", "Wo ist mein Schlüssel? Ich kann ihn nicht finden."),
    ("{animal:the+fur} is afraid", "animal=bear fur=big animal2=monkey",
     "Der große Bär hat Angst vor dem Affen."),
    ("{past} {stranger} {do:past}", "past=yesterday stranger=the_children do=swim fellow=a_friend",
     "Gestern sind die Kinder mit einem Freund geschwommen."),
    ("I hope that {other}", "other=Maria do=play_chess future=today",
     "Ich hoffe, dass Maria heute Schach spielen wird."),
    ("{name} says that", "name=Eva stranger=he do=play_tennis habit=every_Sunday",
     "Eva sagt, dass er jeden Sonntag Tennis spielt."),
    ("My {body:bare+side}", "body=foot side=left past=last_night",
     "Mein linker Fuß tut weh, weil ich letzte Nacht hingefallen bin."),
    ("In {month} it is", "month=May sky=cold country=Sweden", "Im Mai ist es in Schweden oft kalt."),
]  # fmt: skip


def _entry(table: str, english: str) -> Entry:
    for entry in tables()[table]:
        words = [
            getattr(part, name, None)
            for part in (entry, getattr(entry, "noun", None))
            for name in ("en", "name")
        ]
        if english in [word[0] if isinstance(word, tuple) else word for word in words]:
            return entry
    raise LookupError(table, english)


def _drawn_scripts(number: int = 40) -> list[Script]:
    rng = random.Random(5)
    return [draw_script(kind, rng, "train") for kind in DRAWN for _ in range(number)]


@pytest.mark.parametrize(("start", "slots", "german"), GERMAN, ids=[row[2][:30] for row in GERMAN])
def test_german_is_inflected(start: str, slots: str, german: str) -> None:
    [template] = [pair for pair in EVERYDAY if pair[0].startswith(start)]
    picks = {}
    for slot in slots.split():
        name, _, word = slot.partition("=")
        picks[name] = _entry(name.rstrip("0123456789"), word.replace("_", " "))
    assert fill_german(template[1], picks) == german


@pytest.mark.parametrize("kind", DRAWN)
def test_a_seed_gives_the_same_script(kind: str) -> None:
    first, second = (draw_script(kind, random.Random(7), "train") for _ in range(2))
    assert first == second
    task = tasks_for(first)[-1]
    assert len({make_example(task, first, random.Random(8), "train") for _ in range(3)}) == 1


@pytest.mark.parametrize("kind", ["everyday", "story", "dialogue"])
def test_splits_share_no_text(kind: str) -> None:
    train, test = (
        {draw_script(kind, random.Random(3), split).text for _ in range(1)}
        | {script.text for script in _many(kind, split)}
        for split in ("train", "test")
    )
    assert not train & test


def _many(kind: str, split: str) -> list[Script]:
    rng = random.Random(11)
    return [draw_script(kind, rng, "train" if split == "train" else "test") for _ in range(300)]


def test_the_two_sentences_of_a_dialogue_are_of_its_split() -> None:
    for script in _many("dialogue", "test"):
        if not script.questions:
            assert all(split_of(line.text) == "test" for line in script.lines)


def test_about_a_tenth_of_the_sentences_is_test() -> None:
    rng = random.Random(2)
    share = sum(split_of(everyday_sentence(rng)[0]) == "test" for _ in range(2000)) / 2000
    assert 0.06 < share < 0.14


def test_every_template_is_filled_and_of_speakable_length() -> None:
    rng = random.Random(1)
    for _ in range(4000):
        for text in everyday_sentence(rng):
            assert not re.search(r"[{}]|\s\s|\s[.,?]", text), text
            assert text[0].isupper(), text
            assert text[-1] in ".?!", text
            assert 3 <= len(text.split()) <= 17, text


def test_one_sentence_has_one_translation() -> None:
    rng = random.Random(4)
    found: dict[str, str] = {}
    for _ in range(5000):
        english, german = everyday_sentence(rng)
        assert found.setdefault(english, german) == german


def test_the_vocabulary_is_wide() -> None:
    rng = random.Random(6)
    words = {
        word for _ in range(12000) for word in re.findall(r"[a-z'-]+", everyday_sentence(rng)[0].lower())
    }
    assert len(words) >= 700
    assert len(EVERYDAY) >= 60


def test_clips_are_short() -> None:
    assert max(len(script.text.split()) for script in _drawn_scripts(200)) <= 30


def test_dialogues_have_one_voice_or_two() -> None:
    scripts = _many("dialogue", "train")
    alone = sum(script.speakers == 1 for script in scripts)
    assert 100 < alone < 200
    assert {script.emotion for script in scripts} == set(EMOTIONS)


def test_every_task_that_fits_gives_an_answer() -> None:
    seen = set()
    for place, script in enumerate([*_drawn_scripts(), ordinary_script("A sentence from elsewhere.")]):
        for task in tasks_for(script):
            for part in ("train", "held_out"):
                example = make_example(task, script, random.Random(place), part)
                seen.add(task)
                assert example.task == task
                assert example.answer.strip() == example.answer != ""
                assert "\n" not in example.answer, "a manifest has one line a row"
                assert example.instruction or task == "sqqa"
                assert not re.search(r"[{}]", example.instruction + example.answer), example
    assert seen == set(TASKS)


def test_transcripts_and_translations_are_those_of_the_lines() -> None:
    script = Script("dialogue", (Line(0, "One.", "Eins."), Line(1, "Two.", "Zwei.")), "sad")
    rng = random.Random(1)
    assert make_example("asr", script, rng, "train").answer == "One. Two."
    assert make_example("en2de", script, rng, "train").answer == "Eins. Zwei."
    assert make_example("cot", script, rng, "train").answer == "1. One. Two. 2. Eins. Zwei."


def test_clips_joined_of_three_voices_and_several_moods_are_not_asked_for_one() -> None:
    lines = tuple(Line(speaker, "One.", None) for speaker in range(3))
    script = Script("chained", lines, "")
    assert not {"sv", "emotion"} & set(tasks_for(script))
    for seed in range(50):
        answer = make_example("ii", script, random.Random(seed), "train").answer
        assert "1. " in answer
        assert "2. " in answer
        assert not re.search(r"\b(One|Two|Yes|No)\.( |$)", answer.replace("One. One. One.", ""))


@pytest.mark.parametrize("part", ["train", "held_out"])
def test_the_letter_is_that_of_the_option_named(part: Part) -> None:
    letters = set()
    for number, script in enumerate(_many("story", "train")[:100]):
        example = make_example("find", script, random.Random(number), part)
        option, letter = re.fullmatch(r"(.+)\. \(([ABC])\)", example.answer).groups()
        assert f"{option[0].lower()}{option[1:]}" in example.instruction
        assert re.search(rf"{letter}[.:)] {re.escape(option)}\b", example.instruction), example
        letters.add(letter)
    assert letters == {"A", "B", "C"}


@pytest.mark.parametrize("voices", [1, 2])
def test_the_number_of_speakers_answers_every_kind_of_question(voices: int) -> None:
    script = Script("dialogue", (Line(0, "One.", None), Line(voices - 1, "Two.", None)), "neutral")
    tables_of_kind = (phrasings.SV_ONE, phrasings.SV_TWO, phrasings.SV_COUNT)
    of_kind = {
        normal(text): kind for kind, table in enumerate(tables_of_kind) for text in _spelled_out(table.train)
    }
    right = (("Yes.", "No.", "One."), ("No.", "Yes.", "Two."))[voices - 1]
    rng = random.Random(9)
    for _ in range(200):
        example = make_example("sv", script, rng, "train")
        assert example.answer == right[of_kind[normal(example.instruction)]]


def test_the_letter_of_a_choice_fits_its_text() -> None:
    rng = random.Random(12)
    for script in _drawn_scripts():
        if not script.questions:
            continue
        example = make_example("sqa", script, rng, "train")
        answer = re.fullmatch(r"(.+)\. \(([ABC])\)", example.answer)
        assert answer is not None
        assert re.search(rf"{answer[2]}\W+{re.escape(answer[1])}", example.instruction)
        for choice in script.questions:
            assert len(set(choice.options)) == 3


def _spelled_out(wordings: tuple[str, ...]) -> set[str]:
    return {text.replace("{audio}", audio) for text in wordings for audio in AUDIO}


TABLES = [name for name, value in vars(phrasings).items() if isinstance(value, Phrasings)]


@pytest.mark.parametrize("name", TABLES)
def test_held_out_wordings_do_not_occur_in_training(name: str) -> None:
    table: Phrasings = getattr(phrasings, name)
    train, held_out = (
        {normal(text) for text in _spelled_out(part)} for part in (table.train, table.held_out)
    )
    assert held_out
    assert not train & held_out


def test_held_out_refusals_and_facts_do_not_occur_in_training() -> None:
    categories = refusals.CATEGORIES.values()
    train = {normal(text) for category in categories for text in category.train}
    held_out = {normal(text) for category in categories for text in category.held_out}
    assert not train & held_out
    assert len(train) + len(held_out) >= 250
    facts = [fact for family in families() for fact in family]
    assert len(facts) >= 400
    assert not {wording for fact in facts for wording in fact.wordings} & {fact.held_out for fact in facts}
    assert all(len(fact.wordings) >= 3 for fact in facts)


def test_a_question_has_one_answer() -> None:
    answers: dict[str, str] = {}
    for family in families():
        for fact in family:
            for wording in (*fact.wordings, fact.held_out):
                assert answers.setdefault(wording, fact.answer) == fact.answer, wording


def test_slots_of_one_table_differ() -> None:
    picks: dict[str, Entry] = {}
    pick("{city} {city2} {city3}", random.Random(0), picks)
    assert len(set(map(id, picks.values()))) == 3
