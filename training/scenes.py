"""Templates of dialogues and short stories with facts that can be asked about.

A paragraph is one scene: its lines "speaker English || German", then "?" lines with a question, the answer
and the slot that is asked for, then the summary after "=".
"""

from __future__ import annotations

from dataclasses import dataclass

_DIALOGUES = """
0 Where are you going, {name}? || Wohin gehen Sie, {name}?
1 I am going {place:to} with {fellow}. || Ich gehe mit {fellow} {place:to}.
? Where is {name} going? | {place:to} | place
? Who is {name} going with? | {fellow} | fellow
= {name} is going {place:to}. || {name} geht {place:to}.

0 What would you like to drink, {name}? || Was möchten Sie trinken, {name}?
1 I would like {drink}, please. || Ich hätte gern {drink}, bitte.
? What would {name} like to drink? | {drink} | drink
= {name} orders {drink}. || {name} bestellt {drink}.

0 When does {vehicle:the} to {city} leave? || Wann fährt {vehicle:derN} nach {city} ab?
1 It leaves at {clock}. || {vehicle:itN} fährt um {clock} ab.
? Where does {vehicle:the} go? | to {city} | city
? When does {vehicle:the} leave? | at {clock} | clock
= {vehicle:the} to {city} leaves at {clock}. || {vehicle:derN} nach {city} fährt um {clock} ab.

0 Excuse me, where is {place:the}? || Entschuldigung, wo ist {place:derN}?
1 It is {position} {place2:the}. || {place:itN} ist {position} {place2:derD}.
? Which place does the speaker look for? | {place:the} | place
? Where is {place:the}? | {position} {place2:the} | place2
= {place:the} is {position} {place2:the}. || {place:derN} ist {position} {place2:derD}.

0 What did you buy {past}, {name}? || Was haben Sie {past} gekauft, {name}?
1 I bought {clothes:a+colour}. || Ich habe {clothes:einA+colour} gekauft.
? What did {name} buy? | {clothes:a} | clothes
? Which colour was it? | {colour} | colour
= {name} bought {clothes:a+colour}. || {name} hat {clothes:einA+colour} gekauft.

0 Where is {thing:my}, {name}? || Wo ist {thing:meinN}, {name}?
1 It is {surface}. || {thing:itN} ist {surface}.
? What is missing? | {thing:the} | thing
? Where is {thing:the}? | {surface} | surface
= {thing:the} is {surface}. || {thing:derN} ist {surface}.

0 How old is {relative:your}? || Wie alt ist {relative:IhrN}?
1 {relative:my} is {amount} years old. || {relative:meinN} ist {amount} Jahre alt.
? Who are they talking about? | {relative:the} | relative
? How old is {relative:the}? | {amount} years old | amount
= {relative:the} is {amount} years old. || {relative:derN} ist {amount} Jahre alt.

0 How much does {clothes:this} cost? || Wie viel kostet {clothes:diesN}?
1 It costs {amount} euros. || {clothes:itN} kostet {amount} Euro.
0 Good, I will take it. || Gut, ich nehme {clothes:itA}.
? What is being bought? | {clothes:a} | clothes
? How much does it cost? | {amount} euros | amount
= Someone buys {clothes:a} for {amount} euros. || Jemand kauft {clothes:einA} für {amount} Euro.

0 When is {event:the}, {name}? || Wann ist {event:derN}, {name}?
1 It is on {day} at {clock}. || {event:itN} ist am {day} um {clock}.
? What do they talk about? | {event:the} | event
? On which day is {event:the}? | on {day} | day
? At what time is {event:the}? | at {clock} | clock
= {event:the} is on {day}. || {event:derN} ist am {day}.

0 What do you study, {name}? || Was studieren Sie, {name}?
1 I study {subject} in {city}. || Ich studiere in {city} {subject}.
? What does {name} study? | {subject} | subject
? Where does {name} study? | in {city} | city
= {name} studies {subject} in {city}. || {name} studiert in {city} {subject}.

0 Do you have a pet, {name}? || Haben Sie ein Haustier, {name}?
1 Yes, I have {animal:a+fur}. || Ja, ich habe {animal:einA+fur}.
? Which animal does {name} have? | {animal:a} | animal
= {name} has {animal:a+fur}. || {name} hat {animal:einA+fur}.

0 What will you do {future}, {name}? || Was werden Sie {future} machen, {name}?
1 I will {chore}. || Ich werde {chore}.
? What will {name} do? | {chore} | chore
? When will {name} do it? | {future} | future
= {name} will {chore}. || {name} wird {chore}.

0 Can you help me {future}, {name}? || Können Sie mir {future} helfen, {name}?
1 No, I must {chore}. || Nein, ich muss {chore}.
0 That is a pity. || Das ist schade.
? What must {name} do? | {chore} | chore
? When is help needed? | {future} | future
= {name} cannot help. || {name} kann nicht helfen.

0 How was the weather in {city}? || Wie war das Wetter in {city}?
1 It was {sky} and {sky2}. || Es war {sky} und {sky2}.
? Which city do they talk about? | {city} | city
= It was {sky} and {sky2} in {city}. || In {city} war es {sky} und {sky2}.

0 Hello, {name}, where were you {past}? || Hallo, {name}, wo waren Sie {past}?
1 I was {place:at} with {fellow}. || Ich war mit {fellow} {place:at}.
? Where was {name}? | {place:at} | place
? Who was with {name}? | {fellow} | fellow
= {name} was {place:at}. || {name} war {place:at}.

0 Which languages do you speak, {name}? || Welche Sprachen sprechen Sie, {name}?
1 I speak {language} and I am learning {language2}. || Ich spreche {language} und lerne {language2}.
? Which language does {name} speak? | {language} | language
? Which language is {name} learning? | {language2} | language2
= {name} speaks {language}. || {name} spricht {language}.

0 What is wrong, {name}? || Was ist los, {name}?
1 I have {ill}. || Ich habe {ill}.
0 Then you must go to the doctor. || Dann müssen Sie zum Arzt gehen.
? What does {name} have? | {ill} | ill
= {name} has {ill}. || {name} hat {ill}.

0 What do we need for {meal}? || Was brauchen wir für das {meal}?
1 We need {number} {food:pl} and {mass}. || Wir brauchen {number} {food:plA} und {mass}.
? Which meal is planned? | {meal} | meal
? How many {food:pl} do they need? | {number} | number
= They need {food:pl} and {mass} for {meal}. || Sie brauchen {food:plA} und {mass} für das {meal}.

0 Where do you live now, {name}? || Wo wohnen Sie jetzt, {name}?
1 I live in {city} now. || Ich wohne jetzt in {city}.
0 And {name2}? || Und {name2}?
1 {name2} lives in {city2}. || {name2} wohnt in {city2}.
? Where does {name} live? | in {city} | city
? Where does {name2} live? | in {city2} | city2
= {name} and {name2} live in different cities. || {name} und {name2} wohnen in verschiedenen Städten.

0 Who is {job:the} there? || Wer ist {job:derN} dort?
1 That is {kinsman:my}. || Das ist {kinsman:meinN}.
0 {kinsman:itEn} is very {character}. || {kinsman:itN} ist sehr {character}.
? What is {kinsman:the}? | {job:a} | job
? Who is {job:the}? | {kinsman:the} | kinsman
= {kinsman:the} is {job:a}. || {kinsman:derN} ist {job:bare}.

0 How do you get to {city}, {name}? || Wie kommen Sie nach {city}, {name}?
1 I go {ride}. || Ich fahre {ride}.
0 I prefer to fly. || Ich fliege lieber.
? How does {name} travel? | {ride} | ride
? Where is {name} going? | to {city} | city
= {name} goes to {city} {ride}. || {name} fährt {ride} nach {city}.

0 Can I speak to {name}, please? || Kann ich bitte mit {name} sprechen?
1 No, {name} is {place:at}. || Nein, {name} ist {place:at}.
0 I will call again {future}. || Ich rufe {future} wieder an.
? Where is {name}? | {place:at} | place
? When will the speaker call again? | {future} | future
= {name} is {place:at}. || {name} ist {place:at}.

0 Do you like {food:pl}, {name}? || Mögen Sie {food:plA}, {name}?
1 No, but I like {food2:pl}. || Nein, aber ich mag {food2:plA}.
? What does {name} like? | {food2:pl} | food2
= {name} likes {food2:pl}, but not {food:pl}. || {name} mag {food2:plA}, aber keine {food:plA}.

0 What is in {container:the+colour}? || Was ist in {container:derD+colour}?
1 There are {number} {food:pl} in it. || Darin sind {number} {food:plN}.
? What is in {container:the}? | {food:pl} | food
? How many {food:pl} are there? | {number} | number
= There are {food:pl} in {container:the}. || In {container:derD} sind {food:plN}.

0 May I help you? || Kann ich Ihnen helfen?
1 Yes, I am looking for {clothes:a+colour} for {relative:my}. || Ja, ich suche {clothes:einA+colour} für {relative:meinA}.
? What is the speaker looking for? | {clothes:a+colour} | clothes
? Who is it for? | {relative:the} | relative
= Someone is looking for {clothes:a} for {relative:the}. || Jemand sucht {clothes:einA} für {relative:derA}.
"""  # noqa: E501

_STORIES = """
{name} bought {thing:a+colour} {past}. || {name} hat {past} {thing:einA+colour} gekauft.
It cost {amount} euros. || {thing:itN} hat {amount} Euro gekostet.
? What did {name} buy? | {thing:a} | thing
? How much did it cost? | {amount} euros | amount
= {name} bought {thing:a} for {amount} euros. || {name} hat {thing:einA} für {amount} Euro gekauft.

Last summer {name} traveled to {city}. || Letzten Sommer ist {name} nach {city} gereist.
{name:she} stayed there for {number} days. || {name:she} ist {number} Tage dort geblieben.
? Where did {name} travel? | to {city} | city
? How many days did {name} stay? | {number} days | number
= {name} spent {number} days in {city}. || {name} hat {number} Tage in {city} verbracht.

{name} works {place:at}. || {name} arbeitet {place:at}.
Every day {name:she} goes there {ride}. || Jeden Tag fährt {name:she} {ride} dorthin.
? Where does {name} work? | {place:at} | place
? How does {name} go to work? | {ride} | ride
= {name} goes to work {ride}. || {name} fährt {ride} zur Arbeit.

{name} has {animal:a+fur}. || {name} hat {animal:einA+fur}.
It likes to sleep {surface}. || {animal:itN} schläft gern {surface}.
? Which animal does {name} have? | {animal:a} | animal
? Where does the animal like to sleep? | {surface} | surface
= The animal of {name} sleeps {surface}. || Das Tier von {name} schläft {surface}.

{relative:my} lost {thing:the+colour} {place:at}. || {relative:meinN} hat {thing:derA+colour} {place:at} verloren.
{name} found it {past}. || {name} hat {thing:itA} {past} gefunden.
? What was lost? | {thing:the} | thing
? Who found it? | {name} | name
? Where was it lost? | {place:at} | place
= {name} found {thing:the}. || {name} hat {thing:derA} gefunden.

{event:the} begins on {day} at {clock}. || {event:derN} beginnt am {day} um {clock}.
It will take place {place:at}. || {event:itN} wird {place:at} stattfinden.
? On which day is {event:the}? | on {day} | day
? Where is {event:the}? | {place:at} | place
? When does {event:the} begin? | at {clock} | clock
= {event:the} is on {day}. || {event:derN} ist am {day}.

{kinsman:my} is {job:a} in {city}. || {kinsman:meinN} ist {job:bare} in {city}.
He speaks {language} and {language2}. || Er spricht {language} und {language2}.
? Where does {kinsman:the} work? | in {city} | city
? What is {kinsman:the}? | {job:a} | job
= {kinsman:the} speaks two languages. || {kinsman:derN} spricht zwei Sprachen.

{name} and {name2} met {place:at} {past}. || {name} und {name2} haben sich {past} {place:at} getroffen.
Then they went {place2:to}. || Dann sind sie {place2:to} gegangen.
? Where did they meet? | {place:at} | place
? Where did they go then? | {place2:to} | place2
? Who met {name}? | {name2} | name2
= {name} and {name2} went {place2:to}. || {name} und {name2} sind {place2:to} gegangen.

Today it is {sky} in {city}. || Heute ist es in {city} {sky}.
Tomorrow it will be {sky2}. || Morgen wird es {sky2} sein.
? How is the weather today? | {sky} | sky
? How will the weather be tomorrow? | {sky2} | sky2
? Which city is it about? | {city} | city
= The weather in {city} will change. || Das Wetter in {city} wird sich ändern.

{name} was ill {past}. || {name} war {past} krank.
{name:she} had {ill}. || {name:she} hatte {ill}.
Now {name:she} is healthy again. || Jetzt ist {name:she} wieder gesund.
? What did {name} have? | {ill} | ill
? When was {name} ill? | {past} | past
= {name} is healthy again. || {name} ist wieder gesund.

{name} wants to {chore}. || {name} will {chore}.
But first {name:she} must {chore2}. || Aber zuerst muss {name:she} {chore2}.
? What does {name} want to do? | {chore} | chore
? What must {name} do first? | {chore2} | chore2
= {name} has two things to do. || {name} hat zwei Dinge zu tun.

{relative:my} lives in {city}. || {relative:meinN} wohnt in {city}.
I will visit {relative:herEn} {future}. || Ich werde {relative:itA} {future} besuchen.
? Who lives in {city}? | {relative:the} | relative
? Where does {relative:the} live? | in {city} | city
? When is the visit? | {future} | future
= There will be a visit to {city}. || Es wird einen Besuch in {city} geben.

{name} would like to prepare {meal}. || {name} möchte das {meal} vorbereiten.
{name:she} needs {number} {food:pl} and {mass}. || {name:she} braucht {number} {food:plA} und {mass}.
? What would {name} like to prepare? | {meal} | meal
? How many {food:pl} does {name} need? | {number} | number
= {name} needs {food:pl} and {mass}. || {name} braucht {food:plA} und {mass}.

{name} has {number} sons and {number2} daughters. || {name} hat {number} Söhne und {number2} Töchter.
They all live in {country}. || Sie wohnen alle in {country}.
? How many sons does {name} have? | {number} | number
? How many daughters does {name} have? | {number2} | number2
? Where do the children live? | in {country} | country
= The children of {name} live in {country}. || Die Kinder von {name} wohnen in {country}.

{vehicle:the} to {city} is {amount} minutes late. || {vehicle:derN} nach {city} hat {amount} Minuten Verspätung.
{name} is waiting with {fellow}. || {name} wartet mit {fellow}.
? Where does {vehicle:the} go? | to {city} | city
? How late is {vehicle:the}? | {amount} minutes | amount
? Who is waiting with {name}? | {fellow} | fellow
= {name} is waiting for {vehicle:the}. || {name} wartet auf {vehicle:derA}.

{name} studies {subject} in {city}. || {name} studiert in {city} {subject}.
{name2} studies {subject2}. || {name2} studiert {subject2}.
? What does {name} study? | {subject} | subject
? What does {name2} study? | {subject2} | subject2
= {name} and {name2} are students. || {name} und {name2} studieren.

There are {number} {home:pl} in {room:the}. || In {room:derD} gibt es {number} {home:plA}.
{home2:the} is {condition}. || {home2:derN} ist {condition}.
? How many {home:pl} are there? | {number} | number
? What is {condition}? | {home2:the} | home2
= It is about the furniture in {room:the}. || Es geht um die Möbel in {room:derD}.

{name} gave {relative:my} {thing:a} {past}. || {name} hat {relative:meinD} {past} {thing:einA} gegeben.
It is {colour} and {condition}. || {thing:itN} ist {colour} und {condition}.
? What did {name} give away? | {thing:a} | thing
? Which colour is it? | {colour} | colour
? Who got it? | {relative:the} | relative
= {name} gave away {thing:a+colour}. || {name} hat {thing:einA+colour} verschenkt.

{name} learns {language} every day. || {name} lernt jeden Tag {language}.
{future} {name:she} will travel to {country}. || {future} wird {name:she} nach {country} reisen.
? Which language does {name} learn? | {language} | language
? Where will {name} travel? | to {country} | country
= {name} learns {language} and will travel to {country}. || {name} lernt {language} und wird nach {country} reisen.

I get up at {clock}. || Ich stehe um {clock} auf.
Then I eat {food:a} and drink {drink}. || Dann esse ich {food:einA} und trinke {drink}.
? When does the speaker get up? | at {clock} | clock
? What does the speaker eat? | {food:a} | food
? What does the speaker drink? | {drink} | drink
= Someone has {food:a} after getting up. || Jemand isst nach dem Aufstehen {food:einA}.

Near {city} there is {building:a+place_quality}. || Bei {city} gibt es {building:einA+place_quality}.
{name} was there {past} with {fellow}. || {name} war {past} mit {fellow} dort.
? What is there near {city}? | {building:a} | building
? Who was there with {name}? | {fellow} | fellow
= {name} visited a place near {city}. || {name} hat einen Ort bei {city} besucht.
"""  # noqa: E501


@dataclass(frozen=True, slots=True)
class Asked:
    """A question about a scene, its answer and the slot whose other entries make wrong answers."""

    question: str
    answer: str
    slot: str


@dataclass(frozen=True, slots=True)
class Scene:
    lines: tuple[tuple[int, str, str], ...]
    asked: tuple[Asked, ...]
    summary: tuple[str, str]


def _pair(text: str) -> tuple[str, str]:
    english, german = text.split(" || ")
    return english, german


def _scene(paragraph: str) -> Scene:
    lines: list[tuple[int, str, str]] = []
    asked: list[Asked] = []
    summary = ("", "")
    for row in paragraph.strip().splitlines():
        if row.startswith("? "):
            asked.append(Asked(*row[2:].split(" | ")))
        elif row.startswith("= "):
            summary = _pair(row[2:])
        elif row[0] in "01":
            lines.append((int(row[0]), *_pair(row[2:])))
        else:
            lines.append((0, *_pair(row)))
    return Scene(tuple(lines), tuple(asked), summary)


DIALOGUES = tuple(_scene(paragraph) for paragraph in _DIALOGUES.strip().split("\n\n"))
STORIES = tuple(_scene(paragraph) for paragraph in _STORIES.strip().split("\n\n"))
