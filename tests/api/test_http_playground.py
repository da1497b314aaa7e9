"""GET / in process: what is sent, to whom, under which policy, and that the package brings it."""

from __future__ import annotations

import re
import tomllib
from collections.abc import AsyncIterator, Iterator
from html.parser import HTMLParser
from pathlib import Path

import httpx
import pytest
from fakes import make_service
from http_harness import CHAT, client_of, error_of, events_of

from server.http_playground import PAGE, read_assets
from server.openai_schemas import TRANSCRIBE, TRANSLATE

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "server" / "playground"
PATHS = {path.relative_to(FOLDER).as_posix(): path for path in FOLDER.rglob("*") if path.is_file()}
TEXTS = {
    name: path.read_text(encoding="utf-8")
    for name, path in PATHS.items()
    if path.suffix in {".html", ".css", ".js", ".svg"}
}
SVG_NAMESPACE = "http://www.w3.org/2000/svg"
"""A name, which nothing loads."""


class Tags(HTMLParser):
    """Start tags with their attributes, in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def values(self, attribute: str) -> Iterator[str]:
        return (attrs[attribute] or "" for _, attrs in self.found if attribute in attrs)


TAGS = Tags(TEXTS[PAGE])


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    """Of a server that asks for a key; none of the tests sends it."""
    async with client_of(make_service(api_key=("secret",))) as client:
        yield client


async def test_the_page_needs_no_key(client: httpx.AsyncClient) -> None:
    page = await client.get("/")
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.text == TEXTS[PAGE]
    assert (await client.get("/v1/models")).status_code == 401


async def test_every_part_is_served_as_what_it_is(client: httpx.AsyncClient) -> None:
    kinds = {"js": "text/javascript", "css": "text/css", "svg": "image/svg+xml", "flac": "audio/flac"}
    for name, path in PATHS.items():
        if name == PAGE:
            continue
        part = await client.get(f"/playground/{name}")
        assert part.status_code == 200, name
        assert part.headers["content-type"].partition(";")[0] == kinds[path.suffix[1:]]
        assert part.content == path.read_bytes()
    assert set(read_assets()) == set(PATHS), "every file has a media type"


@pytest.mark.parametrize("path", ["/", "/playground/playground.js"])
async def test_headers(client: httpx.AsyncClient, path: str) -> None:
    headers = (await client.get(path)).headers
    assert headers["cache-control"] == "no-cache"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["permissions-policy"] == "microphone=(self)"
    assert headers["x-request-id"]
    policy = dict(rule.split(" ", 1) for rule in headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    sources = {source for rule in policy.values() for source in rule.split()}
    assert sources == {"'none'", "'self'", "blob:"}
    assert [name for name, rule in policy.items() if "blob:" in rule] == ["media-src"]


@pytest.mark.parametrize("path", ["/", "/playground/clips/shop.flac"])
async def test_a_browser_that_has_it_is_told_so(client: httpx.AsyncClient, path: str) -> None:
    first = await client.get(path)
    etag = first.headers["etag"]
    for known in (etag, f"W/{etag}", f'"other", {etag}', "*"):
        again = await client.get(path, headers={"if-none-match": known})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == etag
        assert "content-security-policy" in again.headers
    other = await client.get(path, headers={"if-none-match": '"other"'})
    assert other.status_code == 200
    assert other.content == first.content


@pytest.mark.parametrize("path", ["/", "/playground/playground.css"])
async def test_head(client: httpx.AsyncClient, path: str) -> None:
    whole, head = await client.get(path), await client.head(path)
    assert head.status_code == 200
    assert head.content == b""
    for name in ("content-length", "content-type", "etag", "content-security-policy"):
        assert head.headers[name] == whole.headers[name]


@pytest.mark.parametrize("path", ["", "/", "/index.html", "/..%2Fcli.py", "/clips", "/no.js"])
async def test_nothing_else_is_served(client: httpx.AsyncClient, path: str) -> None:
    response = await client.get(f"/playground{path}")
    assert response.status_code == 404
    assert error_of(response)["code"] == "not_found"


async def test_it_only_reads(client: httpx.AsyncClient) -> None:
    response = await client.post("/")
    assert response.status_code == 405
    assert error_of(response)["code"] == "method_not_allowed"
    assert "/playground" not in (await client.get("/openapi.json")).text


@pytest.mark.parametrize("name", TEXTS)
def test_nothing_comes_from_elsewhere(name: str) -> None:
    text = TEXTS[name].replace(SVG_NAMESPACE, "")
    assert not re.search(r"(?:https?|wss?|ftp|javascript):|data:[a-z]+/", text, re.IGNORECASE)
    assert not re.search(r"""["'(=]\s*//""", text), "no address without a scheme either"


@pytest.mark.parametrize("name", [name for name in TEXTS if name.endswith(".js")])
def test_scripts_never_make_markup_of_text(name: str) -> None:
    makers = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|\beval\b|new Function"
    assert not re.search(makers, TEXTS[name])


def test_the_page_needs_no_inline_script_or_style() -> None:
    """The policy would block them, and the page would break silently."""
    for tag, attrs in TAGS.found:
        assert tag != "style"
        assert tag != "script" or attrs.get("src")
        assert not [name for name in attrs if name == "style" or name.startswith("on")]


def test_what_the_page_refers_to_exists() -> None:
    loaded = [value for value in (*TAGS.values("src"), *TAGS.values("href")) if not value.startswith("#")]
    clips = list(TAGS.values("data-clip"))
    imports = re.findall(r'from "\./([^"]+)"', "".join(TEXTS.values()))
    found = {value.removeprefix("playground/") for value in (*loaded, *clips)} | set(imports)
    assert found == set(PATHS) - {PAGE}


def test_labels_and_ids_fit_together() -> None:
    ids = list(TAGS.values("id"))
    assert len(ids) == len(set(ids))
    pointers = ("for", "aria-labelledby", "aria-describedby")
    assert {value for pointer in pointers for value in TAGS.values(pointer)} <= set(ids)
    labelled = set(TAGS.values("for"))
    for tag, attrs in TAGS.found:
        if tag in {"input", "select", "textarea"}:
            assert attrs["id"] in labelled or "aria-label" in attrs
    sought = set(re.findall(r'find\("#([\w-]+)"', "".join(TEXTS.values())))
    assert sought <= set(ids)


def colours(block: str) -> dict[str, str]:
    return dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", block))


def luminance(colour: str) -> float:
    """WCAG's relative luminance of #rrggbb."""
    shares = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_is_that_of_wcag_aa(scheme: str) -> None:
    light, dark = re.findall(r":root \{(.*?)\}", TEXTS["playground.css"], re.DOTALL)
    palette = colours(light) | (colours(dark) if scheme == "dark" else {})
    grounds = ("page", "surface", "sunken")
    texts = [(text, ground) for text in ("text", "muted") for ground in grounds]
    texts += [("accent-text", "accent"), ("accent-text", "accent-strong"), ("accent", "surface")]
    texts += [("bad", "bad-surface"), ("bad", "surface"), ("muted", "bad-surface"), ("text", "bad-surface")]
    for text, ground in texts:
        assert contrast(palette[text], palette[ground]) >= 4.5, (text, ground)
    for edge in ("edge", "accent", "bad"):  # of controls, and the focus ring
        assert contrast(palette[edge], palette["surface"]) >= 3, edge


def test_presets_are_the_published_instructions_where_there_are_any() -> None:
    assert {TRANSCRIBE, *TRANSLATE.values()} <= set(TAGS.values("data-prompt"))


async def test_the_page_asks_for_what_a_form_may_ask_for() -> None:
    """The fields that api.js adds, in the form that it builds by hand, line feeds kept."""
    boundary = "form-1-2-3-4"
    fields = {"prompt": "one\ntwo", "stream": "true", "stream_options": '{"include_usage": true}'}
    texts = [
        f'--{boundary}\r\ncontent-disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
        for name, value in fields.items()
    ]
    head = f'--{boundary}\r\ncontent-disposition: form-data; name="file"; filename="clip"\r\n\r\n'
    clip = (ROOT / "tests" / "golden" / "audio" / "kitchen.wav").read_bytes()
    body = ("".join(texts) + head).encode() + clip
    async with client_of(make_service()) as client:
        response = await client.post(
            CHAT,
            content=body + f"\r\n--{boundary}--\r\n".encode(),
            headers={"content-type": f"multipart/form-data; boundary={boundary}"},
        )
    *_, usage, done = events_of(response.text)
    assert done == "[DONE]"
    assert usage["usage"]["prompt_tokens_details"]["cached_tokens"] == 0


def test_the_clips_are_those_that_the_default_model_is_shown_with() -> None:
    """And that its answers in the README are about; copied, for examples/ is no part of the package."""
    shown = {path.name: path.read_bytes() for path in (ROOT / "examples" / "clips").glob("*.flac")}
    assert {path.name: path.read_bytes() for path in FOLDER.glob("clips/*")} == shown


def test_the_wheel_brings_every_part() -> None:
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    patterns = tools["setuptools"]["package-data"]["server"]
    packed = {path for pattern in patterns for path in (ROOT / "server").glob(pattern)}
    assert set(PATHS.values()) <= packed
