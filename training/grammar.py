"""Templates of everyday sentences, English and German side by side.

Slots are read by `words.py`. The English past is the German perfect (but "war" and "hatte"), "you" is "Sie".
"""

from __future__ import annotations

import random

from training.words import Entry, fill_english, fill_german, pick

_THINGS = """
{who} {modal:now/who} {get:inf} {thing:a+quality} {future}.
{who} {modal:now/who} {future} {thing:einA+quality} {get:inf}.

{who} {modal:now/who} {get:inf} {clothes:a+colour}.
{who} {modal:now/who} {clothes:einA+colour} {get:inf}.

{who} {get:past} {clothes:a+colour} {past}.
{who} {get:aux/who} {past} {clothes:einA+colour} {get:part}.

{who} {get:past} {home:a+quality} {past}.
{who} {get:aux/who} {past} {home:einA+quality} {get:part}.

{who} {handle:past} {thing:the+colour} {past}.
{who} {handle:aux/who} {past} {thing:derA+colour} {handle:part}.

{who} {handle:past} {home:the+quality}.
{who} {handle:aux/who} {home:derA+quality} {handle:part}.

{future} {who} will {handle:inf} {home:the}.
{future} {who:will} {who} {home:derA} {handle:inf}.

{past} {who} {handle:past} {thing:the+quality}.
{past} {handle:aux/who} {who} {thing:derA+quality} {handle:part}.

{who} {modal:now/who} {handle:inf} {thing:the} and {home:the}.
{who} {modal:now/who} {thing:derA} und {home:derA} {handle:inf}.

{other:do} {other} {get:inf} {thing:a+colour}?
{get:now/other} {other} {thing:einA+colour}{get:rest}?

{other:have} {other} already {handle:part} {thing:the}?
{handle:aux/other} {other} {thing:derA} schon {handle:part}?

{who} {who:have} not {handle:part} {home:the} yet.
{who} {handle:aux/who} {home:derA} noch nicht {handle:part}.

Why do you {get:inf} {thing:the+colour}?
Warum {get:now/0} Sie {thing:derA+colour}{get:rest}?

When will {other} {handle:inf} {thing:the}?
Wann {other:will} {other} {thing:derA} {handle:inf}?

I forgot to {get:inf} {thing:the} and {clothes:the}.
Ich habe vergessen, {thing:derA} und {clothes:derA} {get:zu}.

Did you {handle:inf} {thing:the+colour} {past}?
{handle:aux/0} Sie {past} {thing:derA+colour} {handle:part}?

Who {handle:past} {thing:my+colour}?
Wer hat {thing:meinA+colour} {handle:part}?

I am looking for {clothes:a+colour} for {relative:my}.
Ich suche {clothes:einA+colour} für {relative:meinA}.

{thing:the+colour} is {comparative} than {thing2:the}.
{thing:derN+colour} ist {comparative} als {thing2:derN}.

{stranger} {stranger:have} forgotten {thing:the} {place:at}.
{stranger} {stranger:have} {thing:derA} {place:at} vergessen.

I have lost {luggage} {place:at}.
Ich habe {place:at} {luggage} verloren.

I cannot find {luggage} and {thing:my+colour}.
Ich kann {luggage} und {thing:meinA+colour} nicht finden.

{who} {modal:now/who} {chore} {future}.
{who} {modal:now/who} {future} {chore}.

Please do not forget to {get:inf} {thing:the+quality}.
Bitte vergessen Sie nicht, {thing:derA+quality} {get:zu}.

Could you please {chore} {future}?
Könnten Sie bitte {future} {chore}?

I think that {stranger} {modal:now/stranger} {chore}.
Ich denke, dass {stranger} {chore} {modal:now/stranger}.

Which {clothes:bare+colour} do you like better?
{clothes:welchA+colour} mögen Sie lieber?
"""

_PEOPLE = """
{stranger} {modal:now/stranger} {meet:inf} {relative:my} {future}.
{stranger} {modal:now/stranger} {future} {relative:meinA} {meet:inf}.

{name} {meet:past} {job:the} {past}.
{name} {meet:aux/name} {past} {job:derA} {meet:part}.

{past} I {meet:past} {name} and {relative:my}.
{past} habe ich {name} und {relative:meinA} {meet:part}.

{habit} {stranger} {meet:now/stranger} {relative:my}.
{habit} {meet:now/stranger} {stranger} {relative:meinA}{meet:rest}.

{name} {often} {meet:now/name} {job:the}.
{name} {meet:now/name} {often} {job:derA}{meet:rest}.

{kinsman:my} is {job:a} in {city}.
{kinsman:meinN} ist {job:bare} in {city}.

{relative:my} and {relative2:my} live in {city}.
{relative:meinN} und {relative2:meinN} wohnen in {city}.

{name} is {amount} years old and lives in {city}.
{name} ist {amount} Jahre alt und wohnt in {city}.

{relative:my} will be {amount} years old {future}.
{relative:meinN} wird {future} {amount} Jahre alt.

{job:the} is very {character} and {character2}.
{job:derN} ist sehr {character} und {character2}.

I think that {name} is very {character}.
Ich denke, dass {name} sehr {character} ist.

{who} {who:be} {state} because {weather}.
{who} {who:be} {state}, weil {weather}.

{who} {who:was} {state} {past}.
{who} {who:was} {past} {state}.

{other:be} {other} {state} today?
{other:be} {other} heute {state}?

{stranger} cannot come because {relative:my} is {state}.
{stranger} {stranger:can} nicht kommen, weil {relative:meinN} {state} ist.

My name is {name} and I come from {city}.
Mein Name ist {name} und ich komme aus {city}.

This is {relative:my}, and that is {name}.
Das ist {relative:meinN}, und das ist {name}.

{name} has {number} children and {animal:a+fur}.
{name} hat {number} Kinder und {animal:einA+fur}.

{kinsman:my} wants to become {job:a}, like {kinsman2:my}.
{kinsman:meinN} will {job:bare} werden, wie {kinsman2:meinN}.

{relative:my} speaks {language} and a little {language2}.
{relative:meinN} spricht {language} und ein wenig {language2}.

Do you know {name} and {relative:my}?
Kennen Sie {name} und {relative:meinA}?

{name} is waiting for {relative:my} {place:at}.
{name} wartet {place:at} auf {relative:meinA}.

Please give {thing:the+colour} to {relative:my}.
Bitte geben Sie {relative:meinD} {thing:derA+colour}.

I gave {relative:my} {thing:a+colour} {past}.
Ich habe {relative:meinD} {past} {thing:einA+colour} gegeben.

{name} is helping {relative:my} in {room:the}.
{name} hilft {relative:meinD} in {room:derD}.

{thing:the+colour} belongs to {relative:my}.
{thing:derN+colour} gehört {relative:meinD}.

{greeting}, {name}, how are you today?
{greeting}, {name}, wie geht es Ihnen heute?

{greeting}, my name is {name} and this is {relative:my}.
{greeting}, mein Name ist {name} und das ist {relative:meinN}.

{job:the} explained the problem to {relative:my} {past}.
{job:derN} hat {relative:meinD} {past} das Problem erklärt.

{relative:my} has lived in {country} for {since}.
{relative:meinN} wohnt seit {since} in {country}.
"""

_FOOD = """
I would like {number} {food:pl} and {drink}, please.
Ich hätte gern {number} {food:plA} und {drink}, bitte.

{who} would like {food:a} and {drink}.
{who} {who:like} {food:einA} und {drink}.

{who} {cook:past} {number} {food:pl} {past}.
{who} {cook:aux/who} {past} {number} {food:plA} {cook:part}.

{who} {modal:now/who} {cook:inf} {food:a} with {mass} {future}.
{who} {modal:now/who} {future} {food:einA} mit {mass} {cook:inf}.

We still need {mass}, {mass2} and {number} {food:pl}.
Wir brauchen noch {mass}, {mass2} und {number} {food:plA}.

{name} does not like {food:pl}, but {name:she} likes {food2:pl}.
{name} mag keine {food:plA}, aber {name:she} mag {food2:plA}.

Could you bring me {drink} and {food:a}, please?
Könnten Sie mir bitte {drink} und {food:einA} bringen?

{food:the} is {taste}, but {food2:the} is {taste2}.
{food:derN} ist {taste}, aber {food2:derN} ist {taste2}.

{number} {food:pl} cost {amount} euros.
{number} {food:plN} kosten {amount} Euro.

How much are the {food:pl+produce}?
Wie viel kosten {food:diePlN+produce}?

Please put the {food:pl+produce} in the basket.
Bitte legen Sie {food:diePlA+produce} in den Korb.

How much does {clothes:this+colour} cost?
Wie viel kostet {clothes:diesN+colour}?

{clothes:this+colour} costs only {amount} euros.
{clothes:diesN+colour} kostet nur {amount} Euro.

Do you have {clothes:this} in {colour} or {colour2}?
Haben Sie {clothes:diesA} in {colour:name} oder {colour2:name}?

I do not want {clothes:a+colour}, I want {clothes2:a+colour2}.
Ich will {clothes:keinA+colour}, ich will {clothes2:einA+colour2}.

We had {food:pl} and {mass} for {meal} yesterday.
Wir hatten gestern {food:plA} und {mass} zum {meal}.

{who} {who:have} no {food:pl} and no {food2:pl}.
{who} {who:have} keine {food:plA} und keine {food2:plA}.

A table for {number} people at {clock}, please.
Einen Tisch für {number} Personen um {clock}, bitte.

{name} is drinking {drink} in {room:the}.
{name} trinkt {drink} in {room:derD}.

{meal} is ready, please come into {room:the}.
Das {meal} ist fertig, bitte kommen Sie in {room:derA}.

We eat {food:pl} with {mass} {habit}.
Wir essen {habit} {food:plA} mit {mass}.

Is there any {mass} or {mass2} in {room:the}?
Gibt es in {room:derD} {mass} oder {mass2}?
"""

_WAYS = """
Excuse me, where is {place:the}?
Entschuldigung, wo ist {place:derN}?

Excuse me, is there {place:a} {position} {place2:the}?
Entschuldigung, gibt es {place:einA} {position} {place2:derD}?

How do I get {place:to} from here?
Wie komme ich von hier {place:to}?

{place:the} is {position} {place2:the}.
{place:derN} ist {position} {place2:derD}.

Turn {direction} {mark}, then you will see {place:the}.
Biegen Sie {mark} {direction} ab, dann werden Sie {place:derA} sehen.

{who} {modal:now/who} go {place:to} {ride} {future}.
{who} {modal:now/who} {future} {ride} {place:to} fahren.

{who} {modal:now/who} walk {place:to} {future}.
{who} {modal:now/who} {future} zu Fuß {place:to} gehen.

{who} {modal:now/who} travel to {city} {ride} {future}.
{who} {modal:now/who} {future} {ride} nach {city} reisen.

{other} traveled from {city} to {city2} {past}.
{other} {other:be} {past} von {city} nach {city2} gereist.

I would like {number} tickets to {city}, please.
Ich hätte gern {number} Fahrkarten nach {city}, bitte.

{vehicle:the} to {city} leaves at {clock}.
{vehicle:derN} nach {city} fährt um {clock} ab.

When does {vehicle:the} from {city} arrive?
Wann kommt {vehicle:derN} aus {city} an?

{vehicle:the} from {city} is {amount} minutes late.
{vehicle:derN} aus {city} hat {amount} Minuten Verspätung.

{who} {who:was} {place:at} {past}.
{who} {who:was} {past} {place:at}.

{who} {who:was} in {country} with {fellow} {past}.
{who} {who:was} {past} mit {fellow} in {country}.

{name} works {place:at} in {city}.
{name} arbeitet {place:at} in {city}.

{city} has {place:a+place_quality} and {building:a+place_quality2}.
{city} hat {place:einA+place_quality} und {building:einA+place_quality2}.

There is {building:a+place_quality} {position} {place:the}.
Es gibt {building:einA+place_quality} {position} {place:derD}.

Do not go {place:to}, go {place2:to}!
Gehen Sie nicht {place:to}, gehen Sie {place2:to}!

We will meet {place:at} at {clock}.
Wir werden uns um {clock} {place:at} treffen.

The way {place:to} takes {duration}.
Der Weg {place:to} dauert {duration}.

I would like a room for {number} nights in {city}.
Ich hätte gern ein Zimmer für {number} Nächte in {city}.

The hotel in {city} costs {amount} euros per night.
Das Hotel in {city} kostet {amount} Euro pro Nacht.

We live on the {ordinal} floor {position} {place:the}.
Wir wohnen im {ordinal} Stock {position} {place:derD}.

{building:the+place_quality} in {city} is very famous.
{building:derN+place_quality} in {city} ist sehr berühmt.

There are many {nature} and {nature2} {position} {building:the}.
Es gibt viele {nature} und {nature2} {position} {building:derD}.
"""

_TIME = """
It is {clock} and {who} {who:be} {state}.
Es ist {clock} und {who} {who:be} {state}.

{event:the} begins at {clock} and ends at {clock2}.
{event:derN} beginnt um {clock} und endet um {clock2}.

{event:the} {past} was very {event_quality}.
{event:derN} {past} war sehr {event_quality}.

{event:the} will take place {place:at} {future}.
{event:derN} wird {future} {place:at} stattfinden.

I have an appointment with {job:the} on {day} at {clock}.
Ich habe am {day} um {clock} einen Termin beim {job:ob}.

Can we move {event:the} from {day} to {day2}?
Können wir {event:derA} von {day} auf {day2} verschieben?

{name} has to work until {clock} on {day}.
{name} muss am {day} bis {clock} arbeiten.

{relative:my} studies {subject} and {subject2} in {city}.
{relative:meinN} studiert in {city} {subject} und {subject2}.

{name} finds {subject} {school_quality}, but {subject2} {school_quality2}.
{name} findet {subject} {school_quality}, aber {subject2} {school_quality2}.

{place:the} is closed on {day} and {day2}.
{place:derN} ist am {day} und am {day2} geschlossen.

{relative:my} has a birthday in {month}.
{relative:meinN} hat im {month} Geburtstag.

I have been learning {language} for {since}.
Ich lerne seit {since} {language}.

{place:the} is open from {clock} to {clock2}.
{place:derN} ist von {clock} bis {clock2} geöffnet.

My phone number is {digit}, {digit2}, {digit3}, {digit4}.
Meine Telefonnummer ist {digit}, {digit2}, {digit3}, {digit4}.

{future} it will be {sky} in {city}.
{future} wird es in {city} {sky} sein.

{past} it was {sky} and {sky2} in {city}.
{past} war es in {city} {sky} und {sky2}.

In {month} it is often {sky} in {country}.
Im {month} ist es in {country} oft {sky}.

{weather}, so take {clothes:a} with you.
{weather}, also nehmen Sie {clothes:einA} mit.

If {weather}, {who} will stay at home.
Wenn {weather}, {who:will} {who} zu Hause bleiben.

It is too {sky} for {event:a} {place:at}.
Es ist zu {sky} für {event:einA} {place:at}.

When does {event:the} {place:at} begin?
Wann beginnt {event:derN} {place:at}?
"""

_HOME = """
{thing:the+colour} is {surface}.
{thing:derN+colour} ist {surface}.

Where is {thing:my}? I cannot find it.
Wo ist {thing:meinN}? Ich kann {thing:itA} nicht finden.

{thing:your} was {surface}, not {surface2}.
{thing:IhrN} war {surface}, nicht {surface2}.

Please open {opening:the} and close {opening2:the}.
Bitte öffnen Sie {opening:derA} und schließen Sie {opening2:derA}.

Could you please open {opening:the+colour}?
Könnten Sie bitte {opening:derA+colour} öffnen?

{home:the} in {room:the} is {condition}.
{home:derN} in {room:derD} ist {condition}.

Our apartment has {number} rooms and {room:a+quality}.
Unsere Wohnung hat {number} Zimmer und {room:einA+quality}.

There are {number} {home:pl} and {home2:a} in {room:the}.
In {room:derD} gibt es {number} {home:plA} und {home2:einA}.

{thing:this+colour} is {condition} and belongs to {name}.
{thing:diesN+colour} ist {condition} und gehört {name}.

{name} has {animal:a+fur} and {number} {animal2:pl}.
{name} hat {animal:einA+fur} und {number} {animal2:plA}.

{animal:the+fur} is sleeping {surface}.
{animal:derN+fur} schläft {surface}.

We saw {number} {animal:pl} and {animal2:a} {place:at}.
Wir haben {place:at} {number} {animal:plA} und {animal2:einA} gesehen.

{animal:the+fur} is afraid of {animal2:the}.
{animal:derN+fur} hat Angst vor {animal2:derD}.

{name} has {ill} and must go to {job:the} on {day}.
{name} hat {ill} und muss am {day} zum {job:ob} gehen.

{who} {who:had} {ill} {past}.
{who} {who:had} {past} {ill}.

My {body:bare+side} hurts because I fell down {past}.
{body:meinN+side} tut weh, weil ich {past} hingefallen bin.

My {ache} hurts, but I must {chore}.
Mein {ache} tut weh, aber ich muss {chore}.

{home:the+quality} is {position} {home2:the}.
{home:derN+quality} ist {position} {home2:derD}.
"""

_LEISURE = """
{stranger} {modal:now/stranger} {do:inf} with {fellow} {future}.
{stranger} {modal:now/stranger} {future} mit {fellow} {do:inf}.

{who} {do:now/who} {habit}.
{who} {do:now/who} {habit}{do:rest}.

{who} {often} {do:now/who} {place:at}.
{who} {do:now/who} {often} {place:at}{do:rest}.

{habit} {stranger} {do:now/stranger} with {fellow}.
{habit} {do:now/stranger} {stranger} mit {fellow}{do:rest}.

{past} {stranger} {do:past} with {fellow}.
{past} {do:aux/stranger} {stranger} mit {fellow} {do:part}.

{other} {modal:now/other} {do:inf} at {clock}.
{other} {modal:now/other} um {clock} {do:inf}.

I hope that {other} will {do:inf} {future}.
Ich hoffe, dass {other} {future} {do:inf} {other:will}.

{name} says that {stranger} {do:now/stranger} {habit}.
{name} sagt, dass {stranger} {habit} {do:end/stranger}.

{other:do} {other} {do:inf} {habit}?
{do:now/other} {other} {habit}{do:rest}?

Can you {do:inf} or {do2:inf}?
Können Sie {do:inf} oder {do2:inf}?

I can neither {do:inf} nor {do2:inf}.
Ich kann weder {do:inf} noch {do2:inf}.
"""


def template_pairs(text: str) -> tuple[tuple[str, str], ...]:
    """The templates of a text: paragraphs of one English and one German line."""
    paragraphs = (paragraph.strip().splitlines() for paragraph in text.strip().split("\n\n"))
    return tuple((english, german) for english, german in paragraphs)


EVERYDAY = tuple(
    pair for text in (_THINGS, _PEOPLE, _FOOD, _WAYS, _TIME, _HOME, _LEISURE) for pair in template_pairs(text)
)


def everyday_sentence(rng: random.Random) -> tuple[str, str]:
    """One everyday sentence and its German."""
    english, german = rng.choice(EVERYDAY)
    picks: dict[str, Entry] = {}
    pick(english, rng, picks)
    return fill_english(english, picks), fill_german(german, picks)
