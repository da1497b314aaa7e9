"""The closed world of facts that can be asked for, in speech or in the prompt."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from training.words import rows

_CAPITALS = """
    France|Paris
    Germany|Berlin
    Italy|Rome
    Spain|Madrid
    Portugal|Lisbon
    Austria|Vienna
    Switzerland|Bern
    Belgium|Brussels
    Denmark|Copenhagen
    Sweden|Stockholm
    Norway|Oslo
    Finland|Helsinki
    Iceland|Reykjavik
    Ireland|Dublin
    England|London
    Scotland|Edinburgh
    Wales|Cardiff
    Poland|Warsaw
    Hungary|Budapest
    Romania|Bucharest
    Bulgaria|Sofia
    Greece|Athens
    Turkey|Ankara
    Russia|Moscow
    Ukraine|Kyiv
    Croatia|Zagreb
    Serbia|Belgrade
    Slovenia|Ljubljana
    Slovakia|Bratislava
    Albania|Tirana
    Estonia|Tallinn
    Latvia|Riga
    Lithuania|Vilnius
    Malta|Valletta
    Egypt|Cairo
    Morocco|Rabat
    Kenya|Nairobi
    Ethiopia|Addis Ababa
    Ghana|Accra
    Senegal|Dakar
    China|Beijing
    Japan|Tokyo
    India|New Delhi
    South Korea|Seoul
    Thailand|Bangkok
    Vietnam|Hanoi
    Indonesia|Jakarta
    Iran|Tehran
    Iraq|Baghdad
    Nepal|Kathmandu
    Canada|Ottawa
    Mexico|Mexico City
    Cuba|Havana
    Brazil|Brasilia
    Argentina|Buenos Aires
    Chile|Santiago
    Peru|Lima
    Colombia|Bogota
    Australia|Canberra
    New Zealand|Wellington
    Jamaica|Kingston
"""

_CONTINENTS = """
    France|Europe
    Poland|Europe
    Norway|Europe
    Greece|Europe
    Egypt|Africa
    Kenya|Africa
    Ghana|Africa
    Morocco|Africa
    China|Asia
    Japan|Asia
    India|Asia
    Thailand|Asia
    Canada|North America
    Mexico|North America
    Brazil|South America
    Peru|South America
    Chile|South America
"""

_LANGUAGES = """
    France|French
    Germany|German
    Italy|Italian
    Spain|Spanish
    Portugal|Portuguese
    Austria|German
    England|English
    Poland|Polish
    Sweden|Swedish
    Norway|Norwegian
    Denmark|Danish
    Greece|Greek
    Russia|Russian
    Turkey|Turkish
    Hungary|Hungarian
    Japan|Japanese
    China|Chinese
    Brazil|Portuguese
    Mexico|Spanish
    Egypt|Arabic
    Australia|English
"""

_OPPOSITES = """
    hot|cold
    big|small
    tall|short
    fast|slow
    old|young
    rich|poor
    hard|soft
    heavy|light
    happy|sad
    good|bad
    early|late
    open|closed
    full|empty
    clean|dirty
    wet|dry
    strong|weak
    high|low
    near|far
    left|right
    up|down
    day|night
    black|white
    loud|quiet
    easy|difficult
    cheap|expensive
    thick|thin
    wide|narrow
    deep|shallow
    sweet|sour
    always|never
    first|last
    inside|outside
    begin|end
    love|hate
    buy|sell
    win|lose
    give|take
    push|pull
    friend|enemy
    summer|winter
    war|peace
    true|false
    above|below
    north|south
    east|west
    question|answer
"""

_SOUNDS = """
    dog|barks
    cat|meows
    cow|moos
    horse|neighs
    sheep|bleats
    pig|grunts
    duck|quacks
    lion|roars
    bee|buzzes
    snake|hisses
    frog|croaks
    rooster|crows
    wolf|howls
    mouse|squeaks
    owl|hoots
"""

_YOUNG = """
    dog|puppy
    cat|kitten
    cow|calf
    horse|foal
    sheep|lamb
    pig|piglet
    duck|duckling
    lion|cub
    hen|chick
    goat|kid
    frog|tadpole
    goose|gosling
"""

_LEGS = """
    dog|four
    cat|four
    horse|four
    cow|four
    bird|two
    chicken|two
    duck|two
    human|two
    spider|eight
    insect|six
    bee|six
    ant|six
    butterfly|six
    elephant|four
    octopus|eight
"""

_COLOURS = """
    grass|green
    snow|white
    blood|red
    coal|black
    a banana|yellow
    a lemon|yellow
    a carrot|orange
    a strawberry|red
    a tomato|red
    milk|white
    chocolate|brown
    the sun|yellow
    the sea|blue
    the clear sky|blue
    a cucumber|green
    an elephant|grey
"""

_MIXED_COLOURS = """
    blue|yellow|green
    red|yellow|orange
    red|blue|purple
    black|white|grey
    red|white|pink
"""

_MEANINGS = """
    baker|a person who makes bread
    teacher|a person who teaches students
    doctor|a person who helps sick people
    farmer|a person who grows food
    pilot|a person who flies planes
    tailor|a person who makes clothes
    singer|a person who sings songs
    painter|a person who paints pictures
    writer|a person who writes books
    cook|a person who prepares meals
    gardener|a person who works in gardens
    fisherman|a person who catches fish
    nurse|a person who cares for patients
    library|a place where you can borrow books
    hospital|a place where sick people get help
    school|a place where children learn
    bakery|a place where bread is sold
    airport|a place where planes land
    harbour|a place where ships stop
    museum|a place where old things are shown
    theatre|a place where plays are shown
    zoo|a place where you can see animals
    clock|a thing that shows the time
    umbrella|a thing that keeps you dry in the rain
    fridge|a thing that keeps food cold
    key|a thing that opens a lock
    pencil|a thing you write with
    knife|a thing you cut with
    map|a picture that shows where places are
    island|land with water all around it
    desert|a very dry place
    volcano|a mountain that can spit fire
"""

# question | another wording | another wording | held-out wording | answer
_SINGLE = """
    How many days are in a week?|How many days does a week have?|Tell me how many days a week has.|What is the number of days in a week?|A week has seven days.
    How many months are in a year?|How many months does a year have?|Tell me how many months a year has.|What is the number of months in a year?|A year has twelve months.
    How many hours are in a day?|How many hours does a day have?|Tell me how many hours a day has.|What is the number of hours in a day?|A day has twenty-four hours.
    How many minutes are in an hour?|How many minutes does an hour have?|Tell me how many minutes an hour has.|What is the number of minutes in an hour?|An hour has sixty minutes.
    How many seconds are in a minute?|How many seconds does a minute have?|Tell me how many seconds a minute has.|What is the number of seconds in a minute?|A minute has sixty seconds.
    How many weeks are in a year?|How many weeks does a year have?|Tell me how many weeks a year has.|What is the number of weeks in a year?|A year has fifty-two weeks.
    How many days are in a year?|How many days does a year have?|Tell me how many days a year has.|What is the number of days in a year?|A year has three hundred and sixty-five days.
    How many seasons are there?|How many seasons does a year have?|Tell me how many seasons there are.|What is the number of seasons in a year?|There are four seasons.
    How many letters are in the alphabet?|How many letters does the alphabet have?|Tell me how many letters the alphabet has.|What is the number of letters in the alphabet?|The alphabet has twenty-six letters.
    How many continents are there?|How many continents does the world have?|Tell me how many continents there are.|What is the number of continents?|There are seven continents.
    How many planets are in our solar system?|How many planets does the solar system have?|Tell me how many planets there are.|What is the number of planets?|There are eight planets.
    How many fingers are on one hand?|How many fingers does a hand have?|Tell me how many fingers a hand has.|What is the number of fingers on a hand?|A hand has five fingers.
    How many wheels does a car have?|How many wheels are on a car?|Tell me how many wheels a car has.|What is the number of wheels on a car?|A car has four wheels.
    How many wheels does a bicycle have?|How many wheels are on a bicycle?|Tell me how many wheels a bicycle has.|What is the number of wheels on a bicycle?|A bicycle has two wheels.
    How many sides does a triangle have?|How many sides are in a triangle?|Tell me how many sides a triangle has.|What is the number of sides of a triangle?|A triangle has three sides.
    How many sides does a square have?|How many sides are in a square?|Tell me how many sides a square has.|What is the number of sides of a square?|A square has four sides.
    How many strings does a violin have?|How many strings are on a violin?|Tell me how many strings a violin has.|What is the number of strings on a violin?|A violin has four strings.
    How many strings does a guitar have?|How many strings are on a guitar?|Tell me how many strings a guitar has.|What is the number of strings on a guitar?|A guitar has six strings.
    What is the largest ocean?|Which ocean is the largest?|Name the largest ocean.|Do you know the largest ocean?|The largest ocean is the Pacific.
    What is the largest planet?|Which planet is the largest?|Name the largest planet.|Do you know the largest planet?|The largest planet is Jupiter.
    What is the highest mountain?|Which mountain is the highest?|Name the highest mountain.|Do you know the highest mountain?|The highest mountain is Mount Everest.
    What is the largest animal?|Which animal is the largest?|Name the largest animal.|Do you know the largest animal?|The largest animal is the blue whale.
    What is the fastest land animal?|Which land animal is the fastest?|Name the fastest land animal.|Do you know the fastest land animal?|The fastest land animal is the cheetah.
    What is the tallest animal?|Which animal is the tallest?|Name the tallest animal.|Do you know the tallest animal?|The tallest animal is the giraffe.
    What is frozen water called?|What do we call frozen water?|Tell me what frozen water is called.|Do you know what frozen water is called?|Frozen water is called ice.
    What do bees make?|What is made by bees?|Tell me what bees make.|Do you know what bees make?|Bees make honey.
    What do cows give us?|What do we get from cows?|Tell me what cows give us.|Do you know what cows give us?|Cows give us milk.
    What do hens lay?|What is laid by hens?|Tell me what hens lay.|Do you know what hens lay?|Hens lay eggs.
    What is bread made from?|What do bakers make bread from?|Tell me what bread is made from.|Do you know what bread is made from?|Bread is made from flour.
    What is cheese made from?|What do people make cheese from?|Tell me what cheese is made from.|Do you know what cheese is made from?|Cheese is made from milk.
    What is wine made from?|What do people make wine from?|Tell me what wine is made from.|Do you know what wine is made from?|Wine is made from grapes.
    What is paper made from?|What do people make paper from?|Tell me what paper is made from.|Do you know what paper is made from?|Paper is made from wood.
    Where does the sun rise?|In which direction does the sun rise?|Tell me where the sun rises.|Do you know where the sun rises?|The sun rises in the east.
    Where does the sun set?|In which direction does the sun set?|Tell me where the sun sets.|Do you know where the sun sets?|The sun sets in the west.
    What do we breathe?|What do people breathe?|Tell me what we breathe.|Do you know what we breathe?|We breathe air.
    What do plants need to grow?|What do plants need?|Tell me what plants need to grow.|Do you know what plants need to grow?|Plants need water and light.
    Which season is the coldest?|What is the coldest season?|Name the coldest season.|Do you know the coldest season?|The coldest season is winter.
    Which season is the warmest?|What is the warmest season?|Name the warmest season.|Do you know the warmest season?|The warmest season is summer.
    What do we hear with?|Which part of the body do we hear with?|Tell me what we hear with.|Do you know what we hear with?|We hear with our ears.
    What do we see with?|Which part of the body do we see with?|Tell me what we see with.|Do you know what we see with?|We see with our eyes.
    What do we smell with?|Which part of the body do we smell with?|Tell me what we smell with.|Do you know what we smell with?|We smell with our nose.
    Which month has the fewest days?|What is the shortest month?|Name the shortest month.|Do you know the shortest month?|The shortest month is February.
    Which planet do we live on?|What is the name of our planet?|Name the planet we live on.|Do you know which planet we live on?|We live on the planet Earth.
    Who wrote Hamlet?|Who is the author of Hamlet?|Tell me who wrote Hamlet.|Do you know who wrote Hamlet?|William Shakespeare wrote Hamlet.
    Who painted the Mona Lisa?|Who is the painter of the Mona Lisa?|Tell me who painted the Mona Lisa.|Do you know who painted the Mona Lisa?|Leonardo da Vinci painted the Mona Lisa.
    Which river flows through London?|What is the river in London called?|Name the river in London.|Do you know the river in London?|The Thames flows through London.
    Which river flows through Paris?|What is the river in Paris called?|Name the river in Paris.|Do you know the river in Paris?|The Seine flows through Paris.
    Which river flows through Vienna?|What is the river in Vienna called?|Name the river in Vienna.|Do you know the river in Vienna?|The Danube flows through Vienna.
    Which river flows through Cologne?|What is the river in Cologne called?|Name the river in Cologne.|Do you know the river in Cologne?|The Rhine flows through Cologne.
    In which city is the Eiffel Tower?|Where is the Eiffel Tower?|Tell me where the Eiffel Tower is.|Do you know where the Eiffel Tower is?|The Eiffel Tower is in Paris.
"""  # noqa: E501

# table | held-out wording | other wordings ... | answer; "{0}" and so on are the columns of a row
_PATTERNS: tuple[tuple[str, tuple[str, ...], str, str], ...] = (
    (
        _CAPITALS,
        (
            "What is the capital of {0}?",
            "Which city is the capital of {0}?",
            "Name the capital of {0}.",
            "Tell me the capital of {0}.",
            "What is the capital city of {0}?",
        ),
        "Do you know the capital of {0}?",
        "The capital of {0} is {1}.",
    ),
    (
        _CONTINENTS,
        ("On which continent is {0}?", "Which continent is {0} in?", "Tell me the continent of {0}."),
        "Do you know which continent {0} is in?",
        "{0} is in {1}.",
    ),
    (
        _LANGUAGES,
        (
            "Which language do people speak in {0}?",
            "What language is spoken in {0}?",
            "Name the language of {0}.",
        ),
        "Do you know the language of {0}?",
        "People in {0} speak {1}.",
    ),
    (
        _OPPOSITES,
        (
            "What is the opposite of {0}?",
            "Tell me the opposite of {0}.",
            "Name the opposite of {0}.",
            "Which word is the opposite of {0}?",
        ),
        "Do you know the opposite of {0}?",
        "The opposite of {0} is {1}.",
    ),
    (
        _SOUNDS,
        ("What sound does a {0} make?", "Which sound does a {0} make?", "Tell me what sound a {0} makes."),
        "Do you know what sound a {0} makes?",
        "A {0} {1}.",
    ),
    (
        _YOUNG,
        ("What is a young {0} called?", "What do we call a young {0}?", "Tell me the word for a young {0}."),
        "Do you know what a young {0} is called?",
        "A young {0} is called a {1}.",
    ),
    (
        _LEGS,
        (
            "How many legs does {a0} have?",
            "Tell me how many legs {a0} has.",
            "What number of legs does {a0} have?",
        ),
        "Do you know how many legs {a0} has?",
        "{a0} has {1} legs.",
    ),
    (
        _COLOURS,
        ("What colour is {0}?", "Which colour is {0}?", "Tell me the colour of {0}."),
        "Do you know what colour {0} is?",
        "{0} is {1}.",
    ),
    (
        _MIXED_COLOURS,
        (
            "What colour do {0} and {1} make?",
            "Which colour do you get from {0} and {1}?",
            "Mix {0} and {1}, what colour is it?",
        ),
        "Do you know which colour {0} and {1} make?",
        "{0} and {1} make {2}.",
    ),
    (
        _MEANINGS,
        ("What is {a0}?", "Tell me what {a0} is.", "What does the word {0} mean?"),
        "Do you know what {a0} is?",
        "{a0} is {1}.",
    ),
)

_DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday"
_MONTHS = "January February March April May June July August September October November December"
_UNITS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
_TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")


@dataclass(frozen=True, slots=True)
class Fact:
    """A question in several wordings, the ones kept from training apart, and its answer."""

    wordings: tuple[str, ...]
    held_out: str
    answer: str


def number_word(number: int) -> str:
    """A number under one hundred in words."""
    if number < 20:
        return _UNITS[number]
    return _TENS[number // 10] + (f"-{_UNITS[number % 10]}" if number % 10 else "")


def _sentence(template: str, row: list[str]) -> str:
    article = "an" if row[0][0] in "aeiou" else "a"
    text = template.format(*row, a0=f"{article} {row[0]}")
    return text[0].upper() + text[1:]


def _fact(wordings: tuple[str, ...], held_out: str, answer: str, row: list[str]) -> Fact:
    told = tuple(_sentence(wording, row) for wording in wordings)
    return Fact(told, _sentence(held_out, row), _sentence(answer, row))


def _order_facts(words: list[str], kind: str) -> list[Fact]:
    facts: list[Fact] = []
    for place, word in enumerate(words):
        after, before = words[(place + 1) % len(words)], words[place - 1]
        facts += [
            _fact(
                (
                    f"Which {kind} comes {side} {{0}}?",
                    f"What {kind} comes {side} {{0}}?",
                    f"Name the {kind} {side} {{0}}.",
                ),
                f"Do you know the {kind} {side} {{0}}?",
                f"The {kind} {side} {{0}} is {{1}}.",
                [word, other],
            )
            for side, other in (("after", after), ("before", before))
        ]
    return facts


def _sums() -> list[Fact]:
    rows_of: list[tuple[str, int, int, int]] = []
    for one in range(1, 10):
        rows_of += [("plus", one, two, one + two) for two in range(1, 10)]
        rows_of += [("minus", one, two, one - two) for two in range(1, one + 1)]
        rows_of += [("times", one, two, one * two) for two in range(2, 10) if one >= 2]
    return [
        _fact(
            (
                f"What is {{0}} {sign} {{1}}?",
                f"How much is {{0}} {sign} {{1}}?",
                f"Tell me what {{0}} {sign} {{1}} is.",
            ),
            f"Can you calculate {{0}} {sign} {{1}}?",
            f"{{0}} {sign} {{1}} is {{2}}.",
            [number_word(one), number_word(two), number_word(result)],
        )
        for sign, one, two, result in rows_of
    ]


@cache
def families() -> tuple[tuple[Fact, ...], ...]:
    """All facts, those of a kind together."""
    found = [
        tuple(_fact(wordings, held_out, answer, row) for row in rows(table))
        for table, wordings, held_out, answer in _PATTERNS
    ]
    found.append(tuple(_order_facts(_DAYS.split(), "day")))
    found.append(tuple(_order_facts(_MONTHS.split(), "month")))
    found.append(tuple(_sums()))
    found.append(tuple(Fact(tuple(row[:3]), row[3], row[4]) for row in rows(_SINGLE)))
    return tuple(found)
