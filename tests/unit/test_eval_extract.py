"""Tables of answers and what they chose."""

from __future__ import annotations

import time

import pytest

from server.eval import extract, words
from server.eval.tasks import Kind, bleu_tokenizer, canonical, kind_of, task_of_file

FOUR = {"happy", "sad", "angry", "neutral"}


@pytest.mark.parametrize(
    ("answer", "chosen"),
    [
        ("sad", "sad"),
        ("The speaker sounds SAD.", "sad"),
        ("joy", "happy"),
        ("She is full of happiness!", "happy"),
        ("There is anger in his voice.", "angry"),
        ("The tone is calm.", "neutral"),
        ("excited", "happy"),
        ("He is not happy but sad.", "sad"),
        ("She isn't angry, she is neutral", "neutral"),
        ("not only angry", "angry"),
        ("He isn't happy.", None),
        ("not happy, sad", "sad"),
        ("neither happy nor sad, neutral", "neutral"),
        ("He cannot be called happy. Sad.", "sad"),
        ("not just angry", "angry"),
        ("not happy \u2014 sad", "sad"),
        ("not happy (rather sad)", "sad"),
        ("Either happy or sad.", None),
        ("fear", "fearful"),
        ("The man speaks about his dog.", None),
        ("unhappy", "sad"),
        ("", None),
    ],
)
def test_emotions(answer, chosen):
    assert extract.emotion(answer, FOUR) == chosen


def test_emotions_that_the_references_tell_apart():
    assert extract.emotion("excited", {*FOUR, "excited"}) == "excited"
    assert extract.emotion("wistful", {"wistful"}) == "wistful"
    assert extract.emotion_reference("Happiness") == "happy"
    assert extract.emotion_reference("exc") == "excited"
    assert extract.emotion_reference("Wistful") == "wistful"


ONE = "Is there only one speaker in the audio clip?"
TWO = "Are there two different speakers?"
MORE = "Does more than one person speak?"
SAME = "Do the two clips have the same speaker?"


@pytest.mark.parametrize(
    ("prompt", "answer", "chosen"),
    [
        (ONE, "Yes", "yes"),
        (ONE, "no.", "no"),
        (ONE, "No, there are two.", "no"),
        (ONE, "The answer is yes.", "yes"),
        (ONE, "There is only one speaker.", "yes"),
        (ONE, "There are two speakers: one man, one woman.", "no"),
        (ONE, "There is more than one speaker", "no"),
        (ONE, "There is not just one speaker", "no"),
        (ONE, "A single person; there is no other speaker.", "yes"),
        (ONE, "I know nothing.", None),
        (ONE, "Answer: Yes", "yes"),
        (ONE, "I think yes", "yes"),
        (ONE, "I think no.", "no"),
        (ONE, "No one else speaks; only one speaker.", "yes"),
        (ONE, "No other person speaks.", "yes"),
        (ONE, "No, one man and one woman.", "no"),
        (TWO, "No one else speaks.", "no"),
        (TWO, "There is one speaker.", "no"),
        (TWO, "Two.", "yes"),
        (MORE, "Multiple people are talking.", "yes"),
        (MORE, "only one", "no"),
        (SAME, "They come from the same speaker.", "yes"),
        (SAME, "They come from two different speakers.", "no"),
        (SAME, "They are not the same.", "no"),
        ("Tell me about the voices.", "one", None),
        (SAME, "The two voices do not belong to the same person.", "no"),
        (SAME, "They aren't different.", "yes"),
        (ONE, "There isn't only one speaker", "no"),
        (ONE, "There isn\u2019t just one speaker in this clip.", "no"),
        (ONE, "It doesn't sound like the same person.", "no"),
        (ONE, "The voices do not belong to the same person.", "no"),
        (ONE, "They are not from the same speaker", "no"),
        (ONE, "I can't say that there is only one speaker.", "no"),
        (ONE, "There is one male speaker and one female speaker", "no"),
        (ONE, "One man and one woman", "no"),
        (ONE, "One man, one woman.", "no"),
        (ONE, "There are two speakers, one of them a woman.", "no"),
        (ONE, "There are not two speakers but three.", "no"),
        (ONE, "There are no multiple speakers", "yes"),
        (ONE, "There is not more than one speaker", "yes"),
        (ONE, "There are not two speakers", "yes"),
        (ONE, "There is only one speaker, not two.", "yes"),
        (ONE, "There is one speaker, one voice.", "yes"),
        (ONE, "I hear one speaker in one room", "yes"),
        (ONE, "There is only one speaker. There are two speakers.", None),
        (ONE, "I'm not sure that there is one speaker.", None),
        ("Please answer yes or no whether there is only one speaker in the audio.", "Only one.", "yes"),
        ("Answer with yes or no if the two clips have the same speaker.", "The same speaker.", "yes"),
        ("Determine whether or not there is only one speaker.", "There are two speakers.", "no"),
        ("Say only yes or no to whether this recording contains a single speaker.", "One speaker.", "yes"),
        (ONE, "There is no doubt that there are two speakers.", "no"),
        (ONE, "Without a doubt there are two speakers.", "no"),
        (ONE, "I have no doubt that this is one speaker.", "yes"),
        (ONE, "The voice does not change throughout the recording which suggests a single speaker.", "yes"),
        (ONE, "There is no background noise and only one speaker.", "yes"),
        (ONE, "The tone does not change because there is only one speaker.", "yes"),
        (SAME, "They do not sound alike because they are different speakers.", "no"),
        (SAME, "There is no noticeable difference because it is the same person.", "yes"),
    ],
)
def test_speakers_yes_or_no(prompt, answer, chosen):
    assert extract.speakers(answer, prompt, "yes") == chosen


@pytest.mark.parametrize(
    ("answer", "chosen"),
    [
        ("Two.", "two"),
        ("There are 2 speakers", "two"),
        ("a single one", "one"),
        ("one or two", None),
        ("Two, and no one else", "two"),
        ("", None),
    ],
)
def test_how_many_speakers(answer, chosen):
    assert extract.speakers(answer, "How many people speak?", "two") == chosen


def test_speaker_references():
    assert [extract.speaker_reference(text) for text in ("Yes", "no.", "2", "Two speakers")] == [
        "yes",
        "no",
        "two",
        "two",
    ]


@pytest.mark.parametrize(
    ("prompt", "choices"),
    [
        (
            "What will the man do next? A. Start to take exercise; B. Do as he always does; C. Change it.",
            {"A": "Start to take exercise", "B": "Do as he always does", "C": "Change it"},
        ),
        ("Rich? A. Rich B. Wise C. Funny", {"A": "Rich", "B": "Wise", "C": "Funny"}),
        ("When? A. 8:00 p.m; B. 7:30 p.m", {"A": "8:00 p.m", "B": "7:30 p.m"}),
        ("How? (A) By car (B) By bus", {"A": "By car", "B": "By bus"}),
        ("Who is Mr. A. Smith? A. One; B. Two; C. Three", {"A": "One", "B": "Two", "C": "Three"}),
        (
            "What's in it? A. Vitamin C. and more; B. Iron; C. Salt",
            {"A": "Vitamin C. and more", "B": "Iron", "C": "Salt"},
        ),
        ("What is said?", {}),
        ("A. Nothing else", {}),
    ],
)
def test_options(prompt, choices):
    assert extract.options(prompt) == choices


CHOICES = {"A": "Mail a letter", "B": "Use the restroom", "C": "Find the police station", "D": "The station"}


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        ("b.", "B"),
        ("(B)", "B"),
        ("B. Use the restroom", "B"),
        ("B: she is late", "B"),
        ("**C**", "C"),
        ("A, because he said so", "A"),
        ("The answer is C.", "C"),
        ("The correct answer is: A", "A"),
        ("I would take option D here.", "D"),
        ("Probably (C), not sure", "C"),
        ("use the restroom!", "B"),
        ("She wants to find the police station.", "C"),
        ("the station", "D"),
        ("A man wants to leave.", None),
        ("Either (A) or (B)", None),
        ("E", None),
        ("mail a letter or use the restroom", None),
        ("She does not want to mail a letter", None),
        ("She doesn't want to mail a letter.", None),
        ("She will not mail a letter but use the restroom.", "B"),
        ("She has no time, she will mail a letter.", "A"),
        ("There is no doubt that she will mail a letter", "A"),
        ("She wants not only to mail a letter", "A"),
        ("", None),
    ],
)
def test_choices(answer, letter):
    assert extract.choice(answer, CHOICES) == letter


PLACES = {"A": "A school", "B": "A restaurant", "C": "A bank"}


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        # all options over again, or several
        ("A. A school; B. A restaurant; C. A bank.", None),
        ("A. A school B. A restaurant C. A bank", None),
        ("A. A school; B. A restaurant; C. A bank. The answer is B.", "B"),
        ("(A) or (B)", None),
        ("A, B and C are possible", None),
        ("B or C", None),
        ("The answer is B or C.", None),
        ("The answer is A and C.", None),
        ("Where to?\nA. To school\nB. To eat", None),
        # what is stated wins over what stands first
        ("(A) is wrong. The answer is (B).", "B"),
        ("A: Where to?\nB: To the bank.\nThe answer is (C).", "C"),
        ("A. A school? No, B is correct.", "B"),
        ("Option A is wrong, option B is right.", "B"),
        ("(A) and (C) are wrong. (B)", "B"),
        ("C isn't right. (B)", "B"),
        ("The answer would be B.", "B"),
        ("ANSWER: B", "B"),
        ("The best choice is **C**", "C"),
        ("It's C.", "C"),
        ("It\u2019s C.", "C"),
        ("C is correct.", "C"),
        ("A is the correct answer.", "A"),
        ("The answer is A because they learn.", "A"),
        ("Option A here.", "A"),
        # an article is no letter
        ("Answer: A restaurant.", "B"),
        ("The answer is A bank", "C"),
        ("The answer is B, A restaurant.", "B"),
        ("It is A restaurant.", "B"),
        ("A man is leaving", None),
        ("A restaurant. (B)", "B"),
        ("A-levels", None),
        # lines of their own
        ("B\nThey order food.", "B"),
        ("They are at the bank.\nC.", "C"),
        ("They eat.\n\n(B)\n", "B"),
        ("A dog. (B)", "B"),
        ("At a bank (C).", "C"),
        ("The answer is (B)", "B"),
        ("b", "B"),
        ("(b)", "B"),
        ("B.", "B"),
        # said in other ways
        ("The correct answer to the question is B.", "B"),
        ("I would choose B.", "B"),
        ("I would choose A restaurant.", "B"),
        ("I would not choose B. The answer is C.", "C"),
        ("I wouldn't choose (B)", None),
        ("Based on the conversation, B.", "B"),
        ("Based on the conversation, A restaurant.", "B"),
        ("Based on what they say, B or C.", None),
        ("Based on what they say, it may be A, B.", None),
        ("The answer is definitely B", "B"),
        ("The answer is definitely not B", None),
        ("answer: c", "C"),
        ("answer: (b) a restaurant", "B"),
        ("the answer is b", "B"),
        ("the answer is a.", "A"),
        ("The answer is a restaurant.", "B"),
        ("answer: b, c", None),
    ],
)
def test_choices_that_begin_with_an_article(answer, letter):
    assert extract.choice(answer, PLACES) == letter


@pytest.mark.parametrize(
    "loop",
    [" , ", ", ", " and ", " B,", "(", "A and ", "answer is ", "answer to ", "so, B, ", "one a ", " not"]
)
def test_an_answer_that_loops_is_read_in_no_time(loop):
    begin = time.process_time()
    text = "The answer is B" + loop * 250 + "x"
    extract.choice(text, PLACES)
    extract.choice(loop * 250 + "a school", PLACES)
    extract.speakers(text, ONE, "yes")
    assert time.process_time() - begin < 1


def test_the_longer_option_wins_over_one_inside_it():
    choices = {"A": "In the morning", "B": "Early in the morning"}
    assert extract.choice("He left early in the morning.", choices) == "B"
    assert extract.choice("He left in the morning.", choices) == "A"


def test_without_options_letters_count():
    assert extract.choice("D.", {}) == "D"
    assert extract.choice("in the morning", {}) is None
    assert extract.choice_reference("A. 7:00", {}) == "A"
    assert extract.choice_reference("Use the restroom", CHOICES) == "B"
    assert extract.choice_reference("Something else", CHOICES) == "something else"


COT = (
    "First of all, transcribe the audio recording into text; Additionally given this text, condense it, "
    "no more than 20 words?; Lastly disregarding the sound, translate this English summary into German."
)
II = (
    "To begin, Transcribe the recording; Subsequently, How does the woman go home? A. By bus; B. In the "
    "man's car; C. In her father's car.; Furthermore, ignore it, What is the capital?; Lastly, Continue it"
)


def test_how_many_parts_are_asked_for():
    assert extract.num_instructions(COT, "Drei Filme im Rennen") == 3
    assert extract.num_instructions(II, "") == 4
    assert extract.num_instructions("anything", "ASR+SQA+SFT+Continue") == 4
    assert extract.num_instructions("Summarise", "Eins") == 1
    assert extract.is_labels("ASR+SUMM+ST_C_new")
    assert not extract.is_labels("C++ und mehr")


def test_parts_of_an_answer():
    assert extract.parts("One; two;\n\nthree.", 3) == ["One", "two", "three."]
    assert extract.parts("One. Two! Drei", 3) == ["One.", "Two!", "Drei"]
    assert extract.parts("First. Still first; second", 2) == ["First. Still first", "second"]
    assert extract.parts(" ; .", 1) == []


def test_plain():
    assert words.plain("  The \uff23at's  — “hat”! ") == "the cat s hat"


@pytest.mark.parametrize(
    ("stem", "task"),
    [
        ("asr", "asr"),
        ("test-clean_asr", "asr"),
        ("EN2DE", "en2de"),
        ("covost2.en2zh.test", "en2zh"),
        ("gaokao", "SQA"),
        ("sqa", "SQA"),
        ("SQQA", "SQQA"),
        ("CoT-task-story", "CoT-task-story"),
        ("CoT-task", "CoT-task"),
        ("II-task", "II-task"),
        ("manifest", None),
        ("asr_and_emo", None),
        ("b2b", None),
    ],
)
def test_tasks_of_file_names(stem, task):
    assert task_of_file(stem) == task


def test_kinds():
    assert kind_of(canonical("ASR")) is Kind.TRANSCRIPTION
    assert kind_of("en2de") is Kind.TRANSLATION
    assert kind_of("SQA") is Kind.CHOICE
    assert kind_of("CoT-task-story") is Kind.STEPS
    assert kind_of("my own task") is Kind.TEXT
    assert [bleu_tokenizer(task) for task in ("en2de", "en2zh", "en2ja")] == ["13a", "zh", "char"]
