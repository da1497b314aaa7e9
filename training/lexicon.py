"""Word tables of the everyday grammar: nouns with gender, adjectives, verbs, subjects, places, phrases.

Every row is one entry, its columns parted by "|"; `words.py` reads the rows and inflects the entries.
"""

# Columns: English | English plural | German | gender | German plural [| accusative and dative of a weak noun]
NOUNS: dict[str, str] = {
    "food": """
        apple|apples|Apfel|m|Äpfel
        banana|bananas|Banane|f|Bananen
        orange|oranges|Orange|f|Orangen
        lemon|lemons|Zitrone|f|Zitronen
        pear|pears|Birne|f|Birnen
        tomato|tomatoes|Tomate|f|Tomaten
        potato|potatoes|Kartoffel|f|Kartoffeln
        onion|onions|Zwiebel|f|Zwiebeln
        carrot|carrots|Karotte|f|Karotten
        cucumber|cucumbers|Gurke|f|Gurken
        pizza|pizzas|Pizza|f|Pizzas
        salad|salads|Salat|m|Salate
        soup|soups|Suppe|f|Suppen
        cake|cakes|Kuchen|m|Kuchen
        egg|eggs|Ei|n|Eier
        sausage|sausages|Wurst|f|Würste
        sandwich|sandwiches|Sandwich|n|Sandwiches
        cookie|cookies|Keks|m|Kekse
        melon|melons|Melone|f|Melonen
        mushroom|mushrooms|Pilz|m|Pilze
        pancake|pancakes|Pfannkuchen|m|Pfannkuchen
        strawberry|strawberries|Erdbeere|f|Erdbeeren
    """,
    "clothes": """
        shirt|shirts|Hemd|n|Hemden
        jacket|jackets|Jacke|f|Jacken
        coat|coats|Mantel|m|Mäntel
        dress|dresses|Kleid|n|Kleider
        skirt|skirts|Rock|m|Röcke
        hat|hats|Hut|m|Hüte
        sweater|sweaters|Pullover|m|Pullover
        scarf|scarves|Schal|m|Schals
        belt|belts|Gürtel|m|Gürtel
        tie|ties|Krawatte|f|Krawatten
        suit|suits|Anzug|m|Anzüge
        blouse|blouses|Bluse|f|Blusen
        cap|caps|Mütze|f|Mützen
    """,
    "thing": """
        bag|bags|Tasche|f|Taschen
        book|books|Buch|n|Bücher
        key|keys|Schlüssel|m|Schlüssel
        phone|phones|Telefon|n|Telefone
        umbrella|umbrellas|Regenschirm|m|Regenschirme
        camera|cameras|Kamera|f|Kameras
        computer|computers|Computer|m|Computer
        watch|watches|Armbanduhr|f|Armbanduhren
        ring|rings|Ring|m|Ringe
        letter|letters|Brief|m|Briefe
        newspaper|newspapers|Zeitung|f|Zeitungen
        suitcase|suitcases|Koffer|m|Koffer
        ticket|tickets|Fahrkarte|f|Fahrkarten
        passport|passports|Reisepass|m|Reisepässe
        map|maps|Karte|f|Karten
        pencil|pencils|Bleistift|m|Bleistifte
        present|presents|Geschenk|n|Geschenke
        picture|pictures|Bild|n|Bilder
        bicycle|bicycles|Fahrrad|n|Fahrräder
        ball|balls|Ball|m|Bälle
        guitar|guitars|Gitarre|f|Gitarren
        knife|knives|Messer|n|Messer
        cup|cups|Tasse|f|Tassen
        bottle|bottles|Flasche|f|Flaschen
        basket|baskets|Korb|m|Körbe
        towel|towels|Handtuch|n|Handtücher
        dictionary|dictionaries|Wörterbuch|n|Wörterbücher
        magazine|magazines|Zeitschrift|f|Zeitschriften
        battery|batteries|Batterie|f|Batterien
        backpack|backpacks|Rucksack|m|Rucksäcke
    """,
    "home": """
        table|tables|Tisch|m|Tische
        chair|chairs|Stuhl|m|Stühle
        lamp|lamps|Lampe|f|Lampen
        sofa|sofas|Sofa|n|Sofas
        bed|beds|Bett|n|Betten
        mirror|mirrors|Spiegel|m|Spiegel
        carpet|carpets|Teppich|m|Teppiche
        shelf|shelves|Regal|n|Regale
        cupboard|cupboards|Schrank|m|Schränke
        desk|desks|Schreibtisch|m|Schreibtische
        fridge|fridges|Kühlschrank|m|Kühlschränke
        clock|clocks|Uhr|f|Uhren
        radio|radios|Radio|n|Radios
        blanket|blankets|Decke|f|Decken
        pillow|pillows|Kissen|n|Kissen
    """,
    "container": """
        bag|bags|Tasche|f|Taschen
        basket|baskets|Korb|m|Körbe
        suitcase|suitcases|Koffer|m|Koffer
        backpack|backpacks|Rucksack|m|Rucksäcke
        box|boxes|Kiste|f|Kisten
        drawer|drawers|Schublade|f|Schubladen
        bowl|bowls|Schüssel|f|Schüsseln
    """,
    "opening": """
        window|windows|Fenster|n|Fenster
        door|doors|Tür|f|Türen
        box|boxes|Kiste|f|Kisten
        drawer|drawers|Schublade|f|Schubladen
        gate|gates|Tor|n|Tore
        envelope|envelopes|Umschlag|m|Umschläge
        tent|tents|Zelt|n|Zelte
    """,
    "room": """
        kitchen|kitchens|Küche|f|Küchen
        bathroom|bathrooms|Badezimmer|n|Badezimmer
        bedroom|bedrooms|Schlafzimmer|n|Schlafzimmer
        living room|living rooms|Wohnzimmer|n|Wohnzimmer
        cellar|cellars|Keller|m|Keller
        garage|garages|Garage|f|Garagen
        hall|halls|Flur|m|Flure
    """,
    "animal": """
        dog|dogs|Hund|m|Hunde
        cat|cats|Katze|f|Katzen
        horse|horses|Pferd|n|Pferde
        bird|birds|Vogel|m|Vögel
        cow|cows|Kuh|f|Kühe
        sheep|sheep|Schaf|n|Schafe
        pig|pigs|Schwein|n|Schweine
        duck|ducks|Ente|f|Enten
        chicken|chickens|Huhn|n|Hühner
        mouse|mice|Maus|f|Mäuse
        rabbit|rabbits|Kaninchen|n|Kaninchen
        goat|goats|Ziege|f|Ziegen
        frog|frogs|Frosch|m|Frösche
        fox|foxes|Fuchs|m|Füchse
        bear|bears|Bär|m|Bären|Bären
        lion|lions|Löwe|m|Löwen|Löwen
        monkey|monkeys|Affe|m|Affen|Affen
        snake|snakes|Schlange|f|Schlangen
        turtle|turtles|Schildkröte|f|Schildkröten
    """,
    "vehicle": """
        train|trains|Zug|m|Züge
        bus|buses|Bus|m|Busse
        ship|ships|Schiff|n|Schiffe
        tram|trams|Straßenbahn|f|Straßenbahnen
        ferry|ferries|Fähre|f|Fähren
    """,
    "relative": """
        mother|mothers|Mutter|f|Mütter
        father|fathers|Vater|m|Väter
        sister|sisters|Schwester|f|Schwestern
        brother|brothers|Bruder|m|Brüder
        daughter|daughters|Tochter|f|Töchter
        son|sons|Sohn|m|Söhne
        grandmother|grandmothers|Großmutter|f|Großmütter
        grandfather|grandfathers|Großvater|m|Großväter
        uncle|uncles|Onkel|m|Onkel
        aunt|aunts|Tante|f|Tanten
        wife|wives|Frau|f|Frauen
        husband|husbands|Mann|m|Männer
    """,
    "job": """
        doctor|doctors|Arzt|m|Ärzte
        baker|bakers|Bäcker|m|Bäcker
        gardener|gardeners|Gärtner|m|Gärtner
        cook|cooks|Koch|m|Köche
        driver|drivers|Fahrer|m|Fahrer
        dentist|dentists|Zahnarzt|m|Zahnärzte
        farmer|farmers|Bauer|m|Bauern|Bauern
        waiter|waiters|Kellner|m|Kellner
        lawyer|lawyers|Anwalt|m|Anwälte
        engineer|engineers|Ingenieur|m|Ingenieure
        pilot|pilots|Pilot|m|Piloten|Piloten
        artist|artists|Künstler|m|Künstler
        singer|singers|Sänger|m|Sänger
        writer|writers|Schriftsteller|m|Schriftsteller
        policeman|policemen|Polizist|m|Polizisten|Polizisten
        painter|painters|Maler|m|Maler
        mechanic|mechanics|Mechaniker|m|Mechaniker
        tailor|tailors|Schneider|m|Schneider
    """,
    "event": """
        concert|concerts|Konzert|n|Konzerte
        meeting|meetings|Besprechung|f|Besprechungen
        lesson|lessons|Unterrichtsstunde|f|Unterrichtsstunden
        exam|exams|Prüfung|f|Prüfungen
        game|games|Spiel|n|Spiele
        party|parties|Party|f|Partys
        wedding|weddings|Hochzeit|f|Hochzeiten
        journey|journeys|Reise|f|Reisen
        movie|movies|Film|m|Filme
        course|courses|Kurs|m|Kurse
        exhibition|exhibitions|Ausstellung|f|Ausstellungen
    """,
    "body": """
        arm|arms|Arm|m|Arme
        leg|legs|Bein|n|Beine
        foot|feet|Fuß|m|Füße
        hand|hands|Hand|f|Hände
        knee|knees|Knie|n|Knie
        shoulder|shoulders|Schulter|f|Schultern
        ear|ears|Ohr|n|Ohren
        eye|eyes|Auge|n|Augen
        ankle|ankles|Knöchel|m|Knöchel
    """,
    "building": """
        house|houses|Haus|n|Häuser
        apartment|apartments|Wohnung|f|Wohnungen
        garden|gardens|Garten|m|Gärten
        tower|towers|Turm|m|Türme
        castle|castles|Schloss|n|Schlösser
        bridge|bridges|Brücke|f|Brücken
        street|streets|Straße|f|Straßen
        village|villages|Dorf|n|Dörfer
        lake|lakes|See|m|Seen
        mountain|mountains|Berg|m|Berge
        river|rivers|Fluss|m|Flüsse
        island|islands|Insel|f|Inseln
    """,
}

# Columns: English | German [| German stem before an ending]
ADJECTIVES: dict[str, str] = {
    "colour": """
        red|rot
        blue|blau
        green|grün
        yellow|gelb
        black|schwarz
        white|weiß
        brown|braun
        grey|grau
    """,
    "quality": """
        new|neu
        old|alt
        small|klein
        big|groß
        beautiful|schön
        cheap|billig
        expensive|teuer|teur
        strange|seltsam
        simple|einfach
        special|besonder|besonder
    """,
    "condition": """
        clean|sauber|sauber
        dirty|schmutzig
        broken|kaputt
        heavy|schwer
        light|leicht
        new|neu
        old|alt
        expensive|teuer|teur
        cheap|billig
        too small|zu klein
        too big|zu groß
        very old|sehr alt
        very beautiful|sehr schön
        very practical|sehr praktisch
    """,
    "taste": """
        fresh|frisch
        cold|kalt
        warm|warm
        sweet|süß
        delicious|köstlich
        too salty|zu salzig
        too hot|zu heiß
        very good|sehr gut
    """,
    "place_quality": """
        big|groß
        small|klein
        old|alt
        new|neu
        modern|modern
        famous|berühmt
        beautiful|schön
        quiet|ruhig
    """,
    "state": """
        tired|müde
        hungry|hungrig
        thirsty|durstig
        ill|krank
        busy|beschäftigt
        ready|fertig
        late|spät dran
        healthy|gesund
        alone|allein
        at home|zu Hause
        in a hurry|in Eile
        on holiday|im Urlaub
    """,
    "character": """
        friendly|freundlich
        polite|höflich
        patient|geduldig
        clever|klug
        curious|neugierig
        quiet|ruhig
        young|jung
        tall|groß
        famous|berühmt
        strict|streng
        shy|schüchtern
        funny|lustig
        honest|ehrlich
        hard-working|fleißig
    """,
    "event_quality": """
        interesting|interessant
        boring|langweilig
        short|kurz
        long|lang
        important|wichtig
        difficult|schwierig
        easy|einfach
        wonderful|wunderbar
        successful|erfolgreich
        useful|nützlich
    """,
    "school_quality": """
        interesting|interessant
        boring|langweilig
        difficult|schwierig
        easy|einfach
        useful|nützlich
        important|wichtig
    """,
    "produce": """
        fresh|frisch
        big|groß
        small|klein
        green|grün
        red|rot
        ripe|reif
        expensive|teuer|teur
    """,
    "fur": """
        black|schwarz
        white|weiß
        brown|braun
        grey|grau
        small|klein
        big|groß
        old|alt
        young|jung
    """,
    "side": """
        left|link
        right|recht
    """,
    "comparative": """
        older|älter
        newer|neuer
        cheaper|billiger
        more expensive|teurer
        bigger|größer
        smaller|kleiner
        heavier|schwerer
        lighter|leichter
        more beautiful|schöner
        more practical|praktischer
    """,
    "sky": """
        cold|kalt
        warm|warm
        hot|heiß
        cloudy|bewölkt
        sunny|sonnig
        windy|windig
        foggy|neblig
        rainy|regnerisch
        cool|kühl
        stormy|stürmisch
        dry|trocken
    """,
}

# Columns: English base | third person | past | participle | German infinitive | what parts from it | er |
# participle | auxiliary (h haben, s sein); a parting word in capitals is an object: "Schach spielen"
VERBS: dict[str, str] = {
    "get": """
        buy|buys|bought|bought|kaufen||kauft|gekauft|h
        find|finds|found|found|finden||findet|gefunden|h
        bring|brings|brought|brought|bringen||bringt|gebracht|h
        sell|sells|sold|sold|verkaufen||verkauft|verkauft|h
        order|orders|ordered|ordered|bestellen||bestellt|bestellt|h
        choose|chooses|chose|chosen|wählen||wählt|gewählt|h
        take|takes|took|taken|nehmen||nimmt|genommen|h
        pay for|pays for|paid for|paid for|bezahlen||bezahlt|bezahlt|h
        look for|looks for|looked for|looked for|suchen||sucht|gesucht|h
        pick up|picks up|picked up|picked up|holen|ab|holt|abgeholt|h
        bring along|brings along|brought along|brought along|bringen|mit|bringt|mitgebracht|h
        use|uses|used|used|benutzen||benutzt|benutzt|h
        need|needs|needed|needed|brauchen||braucht|gebraucht|h
    """,
    "handle": """
        repair|repairs|repaired|repaired|reparieren||repariert|repariert|h
        clean|cleans|cleaned|cleaned|putzen||putzt|geputzt|h
        wash|washes|washed|washed|waschen||wäscht|gewaschen|h
        lose|loses|lost|lost|verlieren||verliert|verloren|h
        forget|forgets|forgot|forgotten|vergessen||vergisst|vergessen|h
        draw|draws|drew|drawn|zeichnen||zeichnet|gezeichnet|h
        hide|hides|hid|hidden|verstecken||versteckt|versteckt|h
        carry|carries|carried|carried|tragen||trägt|getragen|h
        pack|packs|packed|packed|packen|ein|packt|eingepackt|h
        photograph|photographs|photographed|photographed|fotografieren||fotografiert|fotografiert|h
    """,
    "cook": """
        eat|eats|ate|eaten|essen||isst|gegessen|h
        cut|cuts|cut|cut|schneiden||schneidet|geschnitten|h
        share|shares|shared|shared|teilen||teilt|geteilt|h
        try|tries|tried|tried|probieren||probiert|probiert|h
        order|orders|ordered|ordered|bestellen||bestellt|bestellt|h
        buy|buys|bought|bought|kaufen||kauft|gekauft|h
        bring|brings|brought|brought|bringen||bringt|gebracht|h
    """,
    "meet": """
        visit|visits|visited|visited|besuchen||besucht|besucht|h
        meet|meets|met|met|treffen||trifft|getroffen|h
        invite|invites|invited|invited|laden|ein|lädt|eingeladen|h
        call|calls|called|called|rufen|an|ruft|angerufen|h
        see|sees|saw|seen|sehen||sieht|gesehen|h
        ask|asks|asked|asked|fragen||fragt|gefragt|h
        pick up|picks up|picked up|picked up|holen|ab|holt|abgeholt|h
    """,
    "do": """
        work|works|worked|worked|arbeiten||arbeitet|gearbeitet|h
        cook|cooks|cooked|cooked|kochen||kocht|gekocht|h
        swim|swims|swam|swum|schwimmen||schwimmt|geschwommen|s
        dance|dances|danced|danced|tanzen||tanzt|getanzt|h
        sing|sings|sang|sung|singen||singt|gesungen|h
        read|reads|read|read|lesen||liest|gelesen|h
        run|runs|ran|run|laufen||läuft|gelaufen|s
        draw|draws|drew|drawn|zeichnen||zeichnet|gezeichnet|h
        travel|travels|traveled|traveled|reisen||reist|gereist|s
        study|studies|studied|studied|lernen||lernt|gelernt|h
        play chess|plays chess|played chess|played chess|spielen|Schach|spielt|Schach gespielt|h
        play football|plays football|played football|played football|spielen|Fußball|spielt|Fußball gespielt|h
        play tennis|plays tennis|played tennis|played tennis|spielen|Tennis|spielt|Tennis gespielt|h
        play cards|plays cards|played cards|played cards|spielen|Karten|spielt|Karten gespielt|h
        drink tea|drinks tea|drank tea|drunk tea|trinken|Tee|trinkt|Tee getrunken|h
        listen to music|listens to music|listened to music|listened to music|hören|Musik|hört|Musik gehört|h
        learn German|learns German|learned German|learned German|lernen|Deutsch|lernt|Deutsch gelernt|h
    """,
}

# Columns: English | person (1 I, 3 he she, 0 we you they) | German
SUBJECTS = """
    I|1|ich
    we|0|wir
    you|0|Sie
    they|0|sie
    he|3|er
    she|3|sie
    my sister|3|meine Schwester
    my brother|3|mein Bruder
    my mother|3|meine Mutter
    my father|3|mein Vater
    my aunt|3|meine Tante
    my uncle|3|mein Onkel
    my daughter|3|meine Tochter
    my son|3|mein Sohn
    my parents|0|meine Eltern
    my children|0|meine Kinder
    our neighbour|3|unser Nachbar
    our teacher|3|unser Lehrer
    our friends|0|unsere Freunde
    the doctor|3|der Arzt
    the students|0|die Studenten
    the boy|3|der Junge
    the girl|3|das Mädchen
    the children|0|die Kinder
    the old man|3|der alte Mann
    the young woman|3|die junge Frau
    Anna|3|Anna
    Peter|3|Peter
    Maria|3|Maria
    Thomas|3|Thomas
    Julia|3|Julia
    Martin|3|Martin
    Laura|3|Laura
    David|3|David
"""

# Columns: English | third person | German plural | ich | er
MODALS = """
    can|can|können|kann|kann
    must|must|müssen|muss|muss
    will|will|werden|werde|wird
    should|should|sollten|sollte|sollte
    want to|wants to|wollen|will|will
    would like to|would like to|möchten|möchte|möchte
"""

WOMEN = """
    Anna Maria Julia Laura Sarah Emma Lisa Sophie Clara Helen Nina Eva Alice Lucy Emily Rosa Olivia Martha
    Hannah Nora Diana Paula Ruth Grace Victoria Monica Amy Rachel Susan Linda
"""
MEN = """
    Peter Thomas Martin David Paul Daniel Robert Michael Oliver Max Jack Felix Simon Henry Oscar Tom Ben Mark
    George Leon Adam Eric Frank Victor Philip Arthur Alex James Tim Walter
"""

# Columns: English city | German city
CITIES = """
    Berlin|Berlin
    Munich|München
    Hamburg|Hamburg
    Cologne|Köln
    Vienna|Wien
    Zurich|Zürich
    Geneva|Genf
    Paris|Paris
    London|London
    Rome|Rom
    Milan|Mailand
    Venice|Venedig
    Florence|Florenz
    Naples|Neapel
    Madrid|Madrid
    Barcelona|Barcelona
    Lisbon|Lissabon
    Brussels|Brüssel
    Amsterdam|Amsterdam
    Copenhagen|Kopenhagen
    Stockholm|Stockholm
    Oslo|Oslo
    Helsinki|Helsinki
    Prague|Prag
    Warsaw|Warschau
    Athens|Athen
    Moscow|Moskau
    Dublin|Dublin
    New York|New York
    Boston|Boston
    Chicago|Chicago
    Tokyo|Tokio
    Frankfurt|Frankfurt
    Leipzig|Leipzig
    Dresden|Dresden
    Bremen|Bremen
    Stuttgart|Stuttgart
    Nuremberg|Nürnberg
    Hanover|Hannover
"""

# Columns: English | its preposition | German | gender | German for "to it" | German for "at it"
PLACES = """
    station|at|Bahnhof|m|zum Bahnhof|am Bahnhof
    airport|at|Flughafen|m|zum Flughafen|am Flughafen
    market|at|Markt|m|zum Markt|auf dem Markt
    supermarket|in|Supermarkt|m|zum Supermarkt|im Supermarkt
    bank|at|Bank|f|zur Bank|in der Bank
    post office|at|Post|f|zur Post|bei der Post
    hospital|in|Krankenhaus|n|zum Krankenhaus|im Krankenhaus
    pharmacy|in|Apotheke|f|zur Apotheke|in der Apotheke
    library|in|Bibliothek|f|zur Bibliothek|in der Bibliothek
    museum|in|Museum|n|zum Museum|im Museum
    theatre|in|Theater|n|zum Theater|im Theater
    park|in|Park|m|zum Park|im Park
    beach|on|Strand|m|zum Strand|am Strand
    hotel|in|Hotel|n|zum Hotel|im Hotel
    restaurant|in|Restaurant|n|zum Restaurant|im Restaurant
    bakery|in|Bäckerei|f|zur Bäckerei|in der Bäckerei
    school|in|Schule|f|zur Schule|in der Schule
    university|at|Universität|f|zur Universität|an der Universität
    office|in|Büro|n|zum Büro|im Büro
    church|in|Kirche|f|zur Kirche|in der Kirche
    town hall|in|Rathaus|n|zum Rathaus|im Rathaus
    swimming pool|at|Schwimmbad|n|zum Schwimmbad|im Schwimmbad
    zoo|in|Zoo|m|zum Zoo|im Zoo
    harbour|at|Hafen|m|zum Hafen|am Hafen
    bus stop|at|Bushaltestelle|f|zur Bushaltestelle|an der Bushaltestelle
    bookshop|in|Buchhandlung|f|zur Buchhandlung|in der Buchhandlung
    stadium|in|Stadion|n|zum Stadion|im Stadion
    factory|in|Fabrik|f|zur Fabrik|in der Fabrik
    petrol station|at|Tankstelle|f|zur Tankstelle|an der Tankstelle
    police station|at|Polizeiwache|f|zur Polizeiwache|auf der Polizeiwache
"""

# Columns: English | German, the same in every use
PHRASES: dict[str, str] = {
    "future": """
        tomorrow|morgen
        tonight|heute Abend
        today|heute
        this afternoon|heute Nachmittag
        this weekend|dieses Wochenende
        next week|nächste Woche
        next month|nächsten Monat
        next year|nächstes Jahr
        next Monday|nächsten Montag
        next Tuesday|nächsten Dienstag
        next Wednesday|nächsten Mittwoch
        next Thursday|nächsten Donnerstag
        next Friday|nächsten Freitag
        next Saturday|nächsten Samstag
        next Sunday|nächsten Sonntag
        tomorrow evening|morgen Abend
        tomorrow morning|morgen früh
        in two days|in zwei Tagen
        in three weeks|in drei Wochen
        in the summer|im Sommer
        in the autumn|im Herbst
        in January|im Januar
        in March|im März
        in April|im April
        in May|im Mai
        in June|im Juni
        in August|im August
        in October|im Oktober
        in December|im Dezember
    """,
    "past": """
        yesterday|gestern
        yesterday evening|gestern Abend
        yesterday morning|gestern Morgen
        this morning|heute Morgen
        last night|letzte Nacht
        last week|letzte Woche
        last month|letzten Monat
        last year|letztes Jahr
        last Monday|letzten Montag
        last Tuesday|letzten Dienstag
        last Wednesday|letzten Mittwoch
        last Thursday|letzten Donnerstag
        last Friday|letzten Freitag
        last Saturday|letzten Samstag
        last Sunday|letzten Sonntag
        last summer|letzten Sommer
        last winter|letzten Winter
        two days ago|vor zwei Tagen
        three weeks ago|vor drei Wochen
        an hour ago|vor einer Stunde
        a month ago|vor einem Monat
    """,
    "habit": """
        every day|jeden Tag
        every morning|jeden Morgen
        every evening|jeden Abend
        every week|jede Woche
        every year|jedes Jahr
        every Monday|jeden Montag
        every Friday|jeden Freitag
        every Sunday|jeden Sonntag
    """,
    "often": """
        always|immer
        often|oft
        sometimes|manchmal
        never|nie
        rarely|selten
        usually|meistens
    """,
    "day": """
        Monday|Montag
        Tuesday|Dienstag
        Wednesday|Mittwoch
        Thursday|Donnerstag
        Friday|Freitag
        Saturday|Samstag
        Sunday|Sonntag
    """,
    "month": """
        January|Januar
        February|Februar
        March|März
        April|April
        May|Mai
        June|Juni
        July|Juli
        August|August
        September|September
        October|Oktober
        November|November
        December|Dezember
    """,
    "number": """
        two|zwei
        three|drei
        four|vier
        five|fünf
        six|sechs
        seven|sieben
        eight|acht
        nine|neun
        ten|zehn
        eleven|elf
        twelve|zwölf
    """,
    "amount": """
        five|fünf
        ten|zehn
        twelve|zwölf
        thirteen|dreizehn
        fourteen|vierzehn
        fifteen|fünfzehn
        sixteen|sechzehn
        seventeen|siebzehn
        eighteen|achtzehn
        nineteen|neunzehn
        twenty|zwanzig
        twenty-five|fünfundzwanzig
        thirty|dreißig
        forty|vierzig
        forty-two|zweiundvierzig
        fifty|fünfzig
        sixty|sechzig
        seventy|siebzig
        eighty|achtzig
        ninety|neunzig
        one hundred|hundert
    """,
    "clock": """
        one o'clock|ein Uhr
        two o'clock|zwei Uhr
        three o'clock|drei Uhr
        four o'clock|vier Uhr
        five o'clock|fünf Uhr
        six o'clock|sechs Uhr
        seven o'clock|sieben Uhr
        eight o'clock|acht Uhr
        nine o'clock|neun Uhr
        ten o'clock|zehn Uhr
        eleven o'clock|elf Uhr
        twelve o'clock|zwölf Uhr
        half past one|halb zwei
        half past two|halb drei
        half past three|halb vier
        half past four|halb fünf
        half past seven|halb acht
        half past eight|halb neun
        half past nine|halb zehn
        quarter past six|Viertel nach sechs
        quarter past eight|Viertel nach acht
        quarter to nine|Viertel vor neun
        quarter to five|Viertel vor fünf
        ten past four|zehn nach vier
        ten to seven|zehn vor sieben
        noon|zwölf Uhr mittags
    """,
    "mass": """
        bread|Brot
        milk|Milch
        butter|Butter
        cheese|Käse
        rice|Reis
        sugar|Zucker
        salt|Salz
        honey|Honig
        fruit|Obst
        meat|Fleisch
        fish|Fisch
        flour|Mehl
        jam|Marmelade
        pepper|Pfeffer
        oil|Öl
        chocolate|Schokolade
        garlic|Knoblauch
    """,
    "drink": """
        a cup of coffee|eine Tasse Kaffee
        a cup of tea|eine Tasse Tee
        a glass of water|ein Glas Wasser
        a glass of milk|ein Glas Milch
        a glass of wine|ein Glas Wein
        a glass of orange juice|ein Glas Orangensaft
        a bottle of beer|eine Flasche Bier
        a bottle of lemonade|eine Flasche Limonade
        a hot chocolate|eine heiße Schokolade
        a glass of apple juice|ein Glas Apfelsaft
    """,
    "meal": """
        breakfast|Frühstück
        lunch|Mittagessen
        dinner|Abendessen
    """,
    "language": """
        German|Deutsch
        English|Englisch
        French|Französisch
        Spanish|Spanisch
        Italian|Italienisch
        Russian|Russisch
        Polish|Polnisch
        Japanese|Japanisch
        Chinese|Chinesisch
        Turkish|Türkisch
        Dutch|Niederländisch
        Greek|Griechisch
    """,
    "subject": """
        mathematics|Mathematik
        history|Geschichte
        geography|Geografie
        biology|Biologie
        chemistry|Chemie
        physics|Physik
        art|Kunst
        music|Musik
        medicine|Medizin
        law|Jura
    """,
    "country": """
        Germany|Deutschland
        France|Frankreich
        Italy|Italien
        Spain|Spanien
        Austria|Österreich
        England|England
        Poland|Polen
        Greece|Griechenland
        Sweden|Schweden
        Norway|Norwegen
        Denmark|Dänemark
        Portugal|Portugal
        Japan|Japan
        China|China
        India|Indien
        Canada|Kanada
        Brazil|Brasilien
        Mexico|Mexiko
        Ireland|Irland
        Scotland|Schottland
        Egypt|Ägypten
        Australia|Australien
    """,
    "direction": """
        left|links
        right|rechts
    """,
    "mark": """
        after the bridge|nach der Brücke
        at the traffic light|an der Ampel
        behind the church|hinter der Kirche
        at the next corner|an der nächsten Ecke
        before the tunnel|vor dem Tunnel
        after the town hall|nach dem Rathaus
        at the end of the street|am Ende der Straße
    """,
    "position": """
        next to|neben
        behind|hinter
        in front of|vor
        opposite|gegenüber
    """,
    "surface": """
        on the table|auf dem Tisch
        under the bed|unter dem Bett
        in the kitchen|in der Küche
        in the drawer|in der Schublade
        on the shelf|auf dem Regal
        behind the door|hinter der Tür
        next to the lamp|neben der Lampe
        in the car|im Auto
        on the chair|auf dem Stuhl
        in the cellar|im Keller
        under the sofa|unter dem Sofa
        in the garden|im Garten
        in front of the house|vor dem Haus
    """,
    "weather": """
        it is raining|es regnet
        it is snowing|es schneit
        the sun is shining|die Sonne scheint
    """,
    "fellow": """
        a friend|einem Freund
        my sister|meiner Schwester
        my brother|meinem Bruder
        my parents|meinen Eltern
        my family|meiner Familie
        the children|den Kindern
        a colleague|einem Kollegen
        my neighbour|meinem Nachbarn
        our teacher|unserem Lehrer
        my grandmother|meiner Großmutter
    """,
    "ride": """
        by train|mit dem Zug
        by bus|mit dem Bus
        by car|mit dem Auto
        by taxi|mit dem Taxi
        by bicycle|mit dem Fahrrad
    """,
    "ill": """
        a headache|Kopfschmerzen
        a toothache|Zahnschmerzen
        a fever|Fieber
        a cold|eine Erkältung
        a stomach ache|Bauchschmerzen
        a cough|Husten
        a sore throat|Halsschmerzen
    """,
    "duration": """
        two hours|zwei Stunden
        ten minutes|zehn Minuten
        half an hour|eine halbe Stunde
        three days|drei Tage
        one week|eine Woche
        five years|fünf Jahre
        a long time|lange
        twenty minutes|zwanzig Minuten
        two months|zwei Monate
    """,
    "since": """
        two years|zwei Jahren
        three months|drei Monaten
        five weeks|fünf Wochen
        six months|sechs Monaten
        ten years|zehn Jahren
        one year|einem Jahr
        four days|vier Tagen
    """,
    "ordinal": """
        first|ersten
        second|zweiten
        third|dritten
        fourth|vierten
        fifth|fünften
        sixth|sechsten
        seventh|siebten
        eighth|achten
        ninth|neunten
        tenth|zehnten
    """,
    "ache": """
        back|Rücken
        head|Kopf
        neck|Nacken
        stomach|Bauch
    """,
    "greeting": """
        good morning|guten Morgen
        good evening|guten Abend
        hello|hallo
    """,
    "nature": """
        flowers|Blumen
        trees|Bäume
        stars|Sterne
        clouds|Wolken
        leaves|Blätter
        roses|Rosen
        stones|Steine
    """,
    "digit": """
        zero|null
        one|eins
        two|zwei
        three|drei
        four|vier
        five|fünf
        six|sechs
        seven|sieben
        eight|acht
        nine|neun
    """,
    "luggage": """
        my luggage|mein Gepäck
        my money|mein Geld
        my handbag|meine Handtasche
        my wallet|meinen Geldbeutel
        my credit card|meine Kreditkarte
        my glasses|meine Brille
        my gloves|meine Handschuhe
        my driving licence|meinen Führerschein
        my shoes|meine Schuhe
        my homework|meine Hausaufgaben
    """,
    "chore": """
        clean the windows|die Fenster putzen
        wash the dishes|das Geschirr spülen
        water the flowers|die Blumen gießen
        do the laundry|die Wäsche waschen
        take out the rubbish|den Müll rausbringen
        feed the cat|die Katze füttern
        walk the dog|den Hund ausführen
        pay the bill|die Rechnung bezahlen
        write a letter|einen Brief schreiben
        send a message|eine Nachricht schicken
        answer the question|die Frage beantworten
        prepare the meal|das Essen vorbereiten
        rent a car|ein Auto mieten
        book a room|ein Zimmer buchen
        plant a tree|einen Baum pflanzen
        bake a cake|einen Kuchen backen
        catch the last train|den letzten Zug erreichen
        close the windows|die Fenster schließen
        turn off the light|das Licht ausmachen
        turn on the heating|die Heizung anmachen
        sign the contract|den Vertrag unterschreiben
        print the report|den Bericht drucken
        learn the new words|die neuen Wörter lernen
        build a small boat|ein kleines Boot bauen
        change the appointment|den Termin ändern
        cancel the order|die Bestellung stornieren
        explain the rules|die Regeln erklären
        tell a story|eine Geschichte erzählen
        open a bank account|ein Bankkonto eröffnen
        celebrate the birthday|den Geburtstag feiern
    """,
}
