"""Wordings of the instructions; those of `held_out` never occur in training.

"{audio}" is one of `AUDIO`.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from typing import Literal

Part = Literal["train", "held_out"]

AUDIO = (
    "the audio",
    "the recording",
    "the clip",
    "the audio clip",
    "this audio",
    "this recording",
    "this clip",
    "the attached audio",
    "the provided audio",
    "the speech",
    "the sound file",
)


@dataclass(frozen=True, slots=True)
class Phrasings:
    train: tuple[str, ...]
    held_out: tuple[str, ...]

    def draw(self, rng: random.Random, part: Part) -> str:
        """One wording, the audio named in one of several ways."""
        return rng.choice(self.of(part)).replace("{audio}", rng.choice(AUDIO))

    def of(self, part: Part) -> tuple[str, ...]:
        return self.train if part == "train" else self.held_out


def _listed(text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.strip().splitlines())


ASR = Phrasings(
    _listed("""
        Based on the attached audio, generate a comprehensive text transcription of the spoken content.
        Transcribe the audio.
        Transcribe the recording.
        What is said?
        Transcribe {audio}.
        Transcribe {audio} into text.
        Please transcribe {audio}.
        Please transcribe {audio} word for word.
        Could you transcribe {audio}?
        Can you transcribe {audio} for me?
        Transcribe the audio recording into text, capturing every spoken word.
        What is said in {audio}?
        What does the speaker say?
        What does the person say in {audio}?
        What do you hear?
        What are the words spoken in {audio}?
        What was said?
        Write down what is said.
        Write down what you hear in {audio}.
        Please write down every word of {audio}.
        Write out the spoken words.
        Turn {audio} into text.
        Turn the speech into written text.
        Convert {audio} to text.
        Convert the spoken words into text, please.
        Give me a transcript of {audio}.
        Give me the transcript.
        Provide a transcript of {audio}.
        Provide a written version of {audio}.
        Provide an accurate transcription of the spoken content in {audio}.
        I need a transcript of {audio}.
        I would like a transcription of {audio}.
        Listen to {audio} and write down what is said.
        Listen to {audio} and transcribe it.
        Generate a transcript of {audio}.
        Generate the text of {audio}.
        Create a full transcription of {audio}.
        Produce a transcript of the spoken words.
        Recognize the speech in {audio}.
        Recognize the speech and give the text.
        Perform speech recognition on {audio}.
        Speech to text, please.
        Show me the text of {audio}.
        Type out what is being said.
        Tell me what is said in {audio}.
        Tell me what the speaker says.
        Tell me exactly which words are spoken.
        Repeat what is said in {audio}.
        Repeat the words you hear.
        Transcript, please.
        Transcription
        Transcribe
        Transcribe this
        Your task is to transcribe {audio}.
        Record the spoken words of {audio} as text.
        Put the spoken words into writing.
    """),
    _listed("""
        Please provide the transcription of {audio}.
        Can you tell me what is being said in {audio}?
        Write the words that you hear in {audio}.
        Make a written record of everything that is said.
        Would you please write a transcript of {audio}?
        Which words does the speaker say?
        Could you turn the spoken content into text?
        Please convert the speech to text.
        Give the exact text of {audio}.
    """),
)

EN2DE = Phrasings(
    _listed("""
        Translate the audio clip into German.
        Translate {audio} into German.
        Translate {audio} to German.
        Please translate {audio} into German.
        Please translate this into German.
        Translate this to German.
        Translate it into German.
        Can you translate {audio} into German?
        Could you translate {audio} to German, please?
        Could you please translate the spoken words into German?
        Translate the speech into German.
        Translate the English speech into German text.
        Translate what is said into German.
        Translate what the speaker says into German.
        Translate the spoken English into German.
        Translate every sentence of {audio} into German.
        German translation, please.
        German, please.
        Translate into German
        To German
        Into German, please.
        What is this in German?
        What is said, in German?
        How do you say this in German?
        How would you say this in German?
        What does the speaker say, in German?
        What is the German translation of {audio}?
        What would this be in German?
        Give me {audio} in German.
        Give me the German translation.
        Give the German translation of {audio}.
        Give me the German text of {audio}.
        Provide a German translation of {audio}.
        Provide the German version of the spoken content.
        Write a German translation of {audio}.
        Write down in German what is said.
        Write what is said in German.
        Write the content of {audio} in German.
        Listen to {audio} and translate it into German.
        Listen to {audio} and write it down in German.
        Convert {audio} into German text.
        Convert the English speech to German.
        Turn {audio} into German.
        Turn the spoken words into German.
        Say it in German.
        Tell me in German what is said.
        Tell me the German translation of {audio}.
        I need {audio} in German.
        I need a German translation of {audio}.
        I would like to have {audio} in German.
        Your task is to translate {audio} into German.
        Render {audio} in German.
        Show me a German translation of {audio}.
        Produce a German translation of the speech.
    """),
    _listed("""
        Please give me a translation of {audio} into German.
        Can you tell me what is said, in German?
        Could you give the German version of {audio}?
        Express the content of {audio} in German.
        Write out the German translation of the spoken words.
        How is this said in German?
        I would like a German translation, please.
        Change the spoken English to German.
        Translate all that you hear into German.
    """),
)

SV_ONE = Phrasings(
    _listed("""
        Is there only one speaker in the audio clip?
        Is there only one speaker in {audio}?
        Is there only one speaker?
        Is there just one speaker in {audio}?
        Is only one person speaking in {audio}?
        Is only one person talking?
        Is it only one person who speaks in {audio}?
        Is there a single speaker in {audio}?
        Does only one person speak in {audio}?
        Does {audio} have only one speaker?
        Does {audio} contain just one voice?
        Is it the same speaker all the time?
        Is the same person speaking throughout {audio}?
        Is everything said by one person?
        Is everything in {audio} said by the same speaker?
        Is there only one voice in {audio}?
        Do you hear only one speaker?
        Can you hear just one voice in {audio}?
        Is one person speaking alone?
        Please tell me if there is only one speaker in {audio}.
        Tell me whether only one person speaks.
        Only one speaker?
    """),
    _listed("""
        Does a single person speak in {audio}?
        Do all words in {audio} come from the same speaker?
        Is the whole of {audio} spoken by one person?
        Do you hear just one person in {audio}?
    """),
)

SV_TWO = Phrasings(
    _listed("""
        Are there two speakers in {audio}?
        Are there two speakers?
        Are there two people talking?
        Are there two people talking in {audio}?
        Are two people speaking in {audio}?
        Are two different people speaking?
        Are there two voices in {audio}?
        Are there different speakers in {audio}?
        Is there more than one speaker in {audio}?
        Is there more than one speaker?
        Is more than one person speaking?
        Is there a second speaker in {audio}?
        Do two people speak in {audio}?
        Do you hear two speakers?
        Do you hear two different voices in {audio}?
        Does {audio} have two speakers?
        Does the speaker change in {audio}?
        Can you hear more than one person in {audio}?
        Tell me whether two people are talking.
        Two speakers?
    """),
    _listed("""
        Are two voices to be heard in {audio}?
        Does more than one person talk in {audio}?
        Do several people speak in {audio}?
        Is there another speaker in {audio}?
    """),
)

SV_COUNT = Phrasings(
    _listed("""
        How many speakers are in {audio}?
        How many speakers are there?
        How many people are speaking in {audio}?
        How many people are talking?
        How many people speak in {audio}?
        How many voices are there in {audio}?
        How many different speakers do you hear?
        How many different voices can you hear in {audio}?
        Count the speakers in {audio}.
        Count the voices.
        Tell me the number of speakers in {audio}.
        What is the number of speakers?
        How many speakers?
    """),
    _listed("""
        How many persons do you hear in {audio}?
        What is the number of people who speak in {audio}?
        Please count how many people are talking.
    """),
)

EMOTION_WORD = Phrasings(
    _listed("""
        Can you describe the emotional condition of the speaker in the provided audio clip?
        What is the emotion of the speaker?
        What is the emotion of the speaker in {audio}?
        What emotion do you hear in {audio}?
        Which emotion does the speaker show?
        Which emotion is expressed in {audio}?
        What is the speaker's emotion?
        What is the mood of the speaker?
        What mood is the speaker in?
        Recognize the emotion of the speaker in {audio}.
        Recognize the emotion.
        Identify the speaker's emotion.
        Identify the emotion in {audio}.
        Name the emotion of the speaker.
        Name the emotion you hear in {audio}.
        Classify the emotion of {audio}.
        Describe the emotion in one word.
        Describe the speaker's emotional state.
        In one word, how does the speaker feel?
        Neutral, happy, sad or angry?
        Is the speaker neutral, happy, sad or angry?
        Does the speaker sound neutral, happy, sad or angry?
        Choose the emotion of {audio}: neutral, happy, sad, angry.
        Emotion?
        Emotion of the speaker
        Please tell me the emotion of the speaker in {audio}.
        Give me the emotion of {audio}.
        What emotional state is the speaker in?
        Detect the emotion in the voice.
        Determine the emotional state of the speaker in {audio}.
    """),
    _listed("""
        Can you name the feeling that the speaker expresses?
        Which mood do you hear in {audio}?
        What kind of emotion is in the voice?
        Please recognize the mood of the speaker.
        State the emotion of the speaker in {audio}.
        Which of these fits the speaker: neutral, happy, sad or angry?
    """),
)

EMOTION_SENTENCE = Phrasings(
    _listed("""
        How does the speaker sound?
        How does the speaker sound in {audio}?
        How does the voice sound?
        How does the person in {audio} feel?
        How is the speaker feeling?
        How does the speaker feel?
        Tell me how the speaker feels.
        Tell me how the speaker sounds in {audio}.
        Describe how the speaker sounds.
        Describe the mood of the speaker in a sentence.
        In what way does the speaker talk?
        What feeling do you get from the voice?
    """),
    _listed("""
        How do you think the speaker feels in {audio}?
        Say in a sentence how the speaker sounds.
        Can you tell how the speaker is feeling?
    """),
)

SUMMARY = Phrasings(
    _listed("""
        Summarize the audio.
        Summarize {audio}.
        Summarize {audio} in one sentence.
        Please summarize {audio}.
        Please summarize what is said.
        Can you summarize {audio}?
        Could you summarize {audio} for me?
        Summarize what is said in {audio}.
        Summarize the conversation.
        Summarize the content of {audio} briefly.
        Give me a summary.
        Give me a summary of {audio}.
        Give me a short summary of {audio}.
        Give a brief summary of the spoken content.
        Provide a summary of {audio}.
        Provide a short summary.
        Write a summary of {audio}.
        Write a one-sentence summary.
        What is {audio} about?
        What is it about?
        What is the main point of {audio}?
        What is the main idea?
        What is the gist of {audio}?
        In short, what is said?
        Tell me briefly what {audio} is about.
        Tell me in one sentence what is said.
        Sum up {audio}.
        Sum it up in one sentence.
        Summary, please.
        Summary
        I need a short summary of {audio}.
        Listen to {audio} and summarize it.
        Describe the content of {audio} in one sentence.
        Put {audio} in a nutshell.
    """),
    _listed("""
        Please give me the main point of {audio} in a sentence.
        Can you sum up what is said in {audio}?
        Produce a brief summary of the recording.
        What is the short version of {audio}?
        Tell me the gist of what is said.
        Shorten {audio} to one sentence.
    """),
)

TEXT = Phrasings(
    _listed("""
        {question}
        {question}
        Ignore the audio. {question}
        Ignore {audio}. {question}
        Ignore {audio} and answer: {question}
        Please ignore {audio}. {question}
        Ignore the audio clip, {question}
        Do not listen to {audio}. {question}
        Forget {audio}. {question}
        Without listening to {audio}: {question}
        This has nothing to do with {audio}. {question}
        Answer this question: {question}
        Please answer: {question}
        Question: {question}
        Leave {audio} aside. {question}
        Never mind {audio}. {question}
        I have a question: {question}
    """),
    _listed("""
        Pay no attention to {audio}. {question}
        Skip {audio} and tell me: {question}
        Regardless of {audio}, {question}
    """),
)

SPOKEN = Phrasings(
    _listed("""
        Answer the question.
        Answer the spoken question.
        Answer the question in {audio}.
        Please answer the question in {audio}.
        Listen to the question and answer it.
        What is the answer to the question?
        Give me the answer to the spoken question.
    """),
    _listed("""
        Please reply to the question that is asked.
        Respond to the question in {audio}.
    """),
)

CONTENT = Phrasings(
    _listed("""
        {question}
        {question}
        {question}
        Listen to {audio} and answer: {question}
        Answer the question about {audio}: {question}
        Based on {audio}, answer this question: {question}
        According to {audio}: {question}
        Please answer: {question}
    """),
    _listed("""
        Use {audio} to answer the question: {question}
        I want to know from {audio}: {question}
    """),
)

SQA = Phrasings(
    _listed("""
        {question} A. {a}; B. {b}; C. {c}.
        {question} A. {a}; B. {b}; C. {c}
        {question} A. {a} B. {b} C. {c}
        {question} A: {a}, B: {b}, C: {c}
        {question} (A) {a} (B) {b} (C) {c}
        {question} Choose one: A. {a}; B. {b}; C. {c}.
        Choose the correct answer. {question} A. {a}; B. {b}; C. {c}.
        Select the right option based on {audio}. {question} A. {a}; B. {b}; C. {c}.
        Listen to {audio} and choose: {question} A. {a}; B. {b}; C. {c}.
        Question: {question} Options: A. {a}; B. {b}; C. {c}.
        Answer the multiple choice question. {question} A. {a}; B. {b}; C. {c}.
    """),
    _listed("""
        Which option is right? {question} A. {a}; B. {b}; C. {c}.
        {question} Pick an answer: (A) {a}; (B) {b}; (C) {c}.
    """),
)

FIND = Phrasings(
    _listed("""
        Which option is {option}? A. {a}; B. {b}; C. {c}.
        Which of these is {option}? A. {a} B. {b} C. {c}
        Which of them says {option}? A: {a}, B: {b}, C: {c}
        Where does it say {option}? (A) {a} (B) {b} (C) {c}
        Find {option}. A. {a}; B. {b}; C. {c}
        Choose {option}. Options: A. {a}; B. {b}; C. {c}.
        Choose the correct answer: {option}. A. {a}; B. {b}; C. {c}.
    """),
    _listed("""
        Pick {option}: (A) {a}; (B) {b}; (C) {c}.
    """),
)

COT_GERMAN = Phrasings(
    _listed("""
        First transcribe {audio}, then translate it into German.
        First transcribe {audio}, then translate that into German.
        Transcribe {audio}, then translate the text into German.
        Transcribe {audio} and then translate it into German.
        Please transcribe {audio} first and translate it into German afterwards.
        Write down what is said, then translate it into German.
        First write down the spoken words, then give the German translation.
        Start with a transcript of {audio}, then translate the transcript into German.
        Give me the transcript first and then the German translation.
        Convert {audio} to text and then translate the text into German.
        Transcribe what you hear. Then translate your transcript into German.
        Step one: transcribe {audio}. Step two: translate it into German.
    """),
    _listed("""
        Begin by transcribing {audio}, and after that translate it into German.
        Write a transcript of {audio}, followed by its German translation.
        Before you translate {audio} into German, transcribe it.
    """),
)

COT_SUMMARY = Phrasings(
    _listed("""
        First transcribe {audio}, then summarize it, then translate the summary into German.
        Transcribe {audio}, summarize the text, and translate the summary into German.
        First transcribe {audio}, next summarize it, and finally translate the summary to German.
        Please transcribe {audio}, then sum it up, then translate the summary into German.
        Write down what is said, then summarize it and translate the summary into German.
        Step one: transcribe {audio}. Step two: summarize it. Step three: translate the summary into German.
        Start with a transcript, then give a summary, then the summary in German.
        Give me the transcript, a summary of it, and the German translation of the summary.
    """),
    _listed("""
        Begin by transcribing {audio}, continue with a summary, and end with the summary in German.
        Write a transcript, then summarize the transcript, then put the summary into German.
    """),
)

COT_CONTENT = Phrasings(
    _listed("""
        First transcribe {audio}, then answer the question: {question}
        Transcribe {audio}, then answer: {question}
        Transcribe {audio} and then answer this question: {question}
        Write down what is said, then answer: {question}
        Give me the transcript first, then answer the question: {question}
        Step one: transcribe {audio}. Step two: answer the question. {question}
    """),
    _listed("""
        Begin with a transcript of {audio}, and after that answer: {question}
        Write out the spoken words before you answer: {question}
    """),
)

COT_SPOKEN = Phrasings(
    _listed("""
        First transcribe the question, then answer it.
        Transcribe the spoken question, then answer it.
        Transcribe {audio}, then answer the question that is asked in it.
        Write down the question, then answer it.
        Give me the question as text first, then the answer.
        Step one: transcribe the question. Step two: answer it.
    """),
    _listed("""
        Begin by writing down the question, and after that answer it.
        Repeat the question as text and answer it then.
    """),
)

OPENERS = Phrasings(
    _listed("""
        First,
        Firstly,
        First of all,
        To begin,
        To begin with,
        To start,
        To start with,
        Start with this:
        Initially,
        In the first place,
        At first,
        Begin with this:
        1.
        Step one:
        As a first step,
    """),
    _listed("""
        Before anything else,
        For a start,
    """),
)

MIDDLES = Phrasings(
    _listed("""
        then
        Then,
        Next,
        After that,
        Afterwards,
        Subsequently,
        Secondly,
        Following that,
        In addition,
        Also,
        Moreover,
        Furthermore,
        2.
        Step two:
        As a second step,
        Once this is done,
    """),
    _listed("""
        Thereafter,
        When you have finished that,
    """),
)

FINALS = Phrasings(
    _listed("""
        finally
        Finally,
        Lastly,
        Last,
        At last,
        In the end,
        To finish,
        To conclude,
        Furthermore,
        And finally,
        Thirdly,
        3.
        Step three:
        As the last step,
        To end,
    """),
    _listed("""
        To round things off,
        As a last point,
    """),
)

JOINS = ("; ", ". ", ", ", " ")


def varied(text: str, rng: random.Random) -> str:
    """The wording as people type: now and then without capitals or without the last stop."""
    share = rng.random()
    if share < 0.08:
        return text.lower()
    if share < 0.16:
        return text.rstrip(".")
    if share < 0.20:
        return text[:1].lower() + text[1:]
    if share < 0.22:
        return text.rstrip(".?").lower()
    if share < 0.24:
        return re.sub(r"\.$", "!", text)
    return text


def normal(text: str) -> str:
    """A wording without what `varied` changes."""
    return text.lower().rstrip(".?!")
