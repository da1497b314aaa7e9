"""The playground in a real Chromium, against the embedded default model and, for slow answers, the fakes."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from e2e_client import check_idle
from playwright.sync_api import Browser, ConsoleMessage, Page, Route, expect, sync_playwright
from server_process import ServerProcess

from tests.api.test_http_serve import process

CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
]
AUDIO = Path(__file__).parent.parent / "golden" / "audio"
KITCHEN = AUDIO / "kitchen.wav"
EXAMPLES = Path(__file__).parents[2] / "examples" / "clips"
INSECURE_HOST = "playground.test"
"""Resolved to this machine in the browser alone; plain HTTP from it is no secure context."""
ANSWER_MS = 60_000
STEP_MS = 15_000
"""For what needs no answer; a busy machine has many times its usual second."""
CHAT_URL = re.compile("/v1/speech/chat$")
FAKE_TEXT = "Hello, wörld!"
PHONE = {"width": 360, "height": 740}
CLIP_KNOWN = "The clip was known: it was not encoded again."
PROMPT_KNOWN = "This instruction was known: a part of the prompt came from the cache."
ODD_NAME = '-it\'s "the" kitchen; a, b $HOME é.wav'


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium with a microphone that hears the kitchen clip."""
    flags = [
        "--no-sandbox",  # it refuses to run as root with one
        "--use-fake-ui-for-media-stream",
        "--use-fake-device-for-media-stream",
        f"--use-file-for-fake-audio-capture={KITCHEN}",
        f"--host-resolver-rules=MAP {INSECURE_HOST} 127.0.0.1",
    ]
    expect.set_options(timeout=STEP_MS)
    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def default_server() -> Iterator[ServerProcess]:
    """`wavllm serve` with the embedded default."""
    with ServerProcess(None) as running:
        yield running


@dataclass
class Visit:
    """A page, and what the browser complained of. refusals, expected: statuses, words that tests provoke."""

    page: Page
    refusals: set[int] = field(default_factory=set)
    complaints: list[str] = field(default_factory=list)
    addresses: list[str] = field(default_factory=list)
    expected: list[str] = field(default_factory=list)

    def hear(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    @property
    def unexpected(self) -> list[str]:
        statuses = [re.search(r"with a status of (\d+)", text) for text in self.complaints]
        return [
            text
            for text, status in zip(self.complaints, statuses, strict=True)
            if status is None or int(status[1]) not in self.refusals
            if not any(words in text for words in self.expected)
        ]


@contextmanager
def visiting(browser: Browser, url: str, **options: Any) -> Iterator[Visit]:
    """A fresh browser profile on the page; at the end nothing was complained of or fetched elsewhere."""
    with browser.new_context(**options) as context:
        page = context.new_page()
        visit = Visit(page)
        page.set_default_timeout(ANSWER_MS)
        page.on("console", visit.hear)
        page.on("pageerror", lambda error: visit.complaints.append(str(error)))
        page.on("request", lambda request: visit.addresses.append(request.url))
        page.goto(url)
        yield visit
    assert visit.unexpected == []
    assert [url_ for url_ in visit.addresses if not url_.startswith((url, f"blob:{url}"))] == []


@pytest.fixture
def visit(browser: Browser, default_server: ServerProcess) -> Iterator[Visit]:
    """The page of the default server, once it knows the model."""
    with visiting(browser, default_server.url) as opened:
        expect(opened.page.locator("#model-name")).to_have_text(re.compile("wavllm"), timeout=ANSWER_MS)
        yield opened
    check_idle(default_server)


def choose(page: Page, path: Path) -> None:
    page.set_input_files("#file", path)
    expect(page.locator("#clip-name")).to_contain_text(path.name)


def ask(page: Page, prompt: str) -> None:
    """Ask and wait for the end, whatever it is."""
    num_before = page.locator(".exchange").count()
    page.fill("#prompt", prompt)
    page.click("#ask")
    expect(page.locator(".exchange")).to_have_count(num_before + 1)
    expect(page.locator("#stop")).to_be_hidden(timeout=ANSWER_MS)


def facts(page: Page, selector: str) -> dict[str, str]:
    """Terms and values of the newest list of facts."""
    groups = page.locator(selector).first.locator("div").all()
    return {group.locator("dt").inner_text(): group.locator("dd").inner_text() for group in groups}


def answers(page: Page) -> list[str]:
    return page.locator(".answer").all_inner_texts()


def test_a_file_is_drawn_asked_about_and_asked_about_again(visit: Visit) -> None:
    page = visit.page
    choose(page, KITCHEN)
    expect(page.locator("#clip-name")).to_have_text("kitchen.wav, 2.8 s, 86 KiB")
    assert page.evaluate(
        "() => { const c = document.getElementById('waveform');"
        " return new Set(c.getContext('2d').getImageData(0, 0, c.width, c.height).data).size > 2; }"
    ), "the waveform is blank"

    page.get_by_role("button", name="Transcribe").click()
    transcribe = page.input_value("#prompt")
    ask(page, transcribe)
    (first,) = answers(page)
    assert first
    numbers = facts(page, ".timings")
    assert {"Queue", "Decode", "Encode", "First token", "Total", "Request"} <= set(numbers)
    assert numbers["Cached"] == "0 tokens"
    expect(page.locator(".cache-note")).to_be_hidden()
    expect(page.locator("#announcer")).to_have_text(f"Answer: {first}")

    ask(page, "How many speakers are in the audio clip?")
    assert facts(page, ".timings")["Encode"] == "0 ms", "the clip was encoded again"
    expect(page.locator(".cache-note:visible").first).to_have_text(CLIP_KNOWN)
    page.get_by_role("button", name="Ask again").last.click()
    expect(page.locator(".exchange")).to_have_count(3)
    expect(page.locator("#stop")).to_be_hidden(timeout=ANSWER_MS)
    assert int(facts(page, ".timings")["Cached"].split()[0]) > 0
    expect(page.locator(".cache-note:visible").first).to_have_text(f"{CLIP_KNOWN} {PROMPT_KNOWN}")
    assert answers(page)[0] == answers(page)[2] == first
    assert page.locator(".question").all_inner_texts()[::2] == [transcribe, transcribe]

    choose(page, AUDIO / "short.wav")
    expect(page.locator(".exchange")).to_have_count(0)


def test_the_microphone(visit: Visit) -> None:
    page = visit.page
    page.click("#record")
    expect(page.locator("#clip-message")).to_have_text("Recording.")
    page.wait_for_timeout(2500)
    page.get_by_role("button", name="Stop recording").click()
    expect(page.locator("#clip-name")).to_contain_text("recording.webm")
    page.click("#play")
    expect(page.locator("#play")).to_have_text("Pause")
    page.click("#play")
    ask(page, "What is said?")
    assert answers(page)[0]
    assert not page.locator(".error:visible").count()
    expect(page.locator("#record")).to_have_text("Record")


def test_the_microphone_is_taken_away(visit: Visit) -> None:
    """What was heard until then is the clip."""
    page = visit.page
    keep = "window.opened = await open(wish)"
    page.evaluate(
        "const open = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);"
        f"navigator.mediaDevices.getUserMedia = async (wish) => ({keep}); 0"
    )
    page.click("#record")
    expect(page.locator("#clip-message")).to_have_text("Recording.")
    page.wait_for_timeout(1500)
    page.evaluate("for (const track of opened.getTracks()) track.stop()")
    expect(page.locator("#clip-message")).to_have_text("The microphone went away. This is what it heard.")
    expect(page.locator("#clip-name")).to_contain_text("recording.webm")
    expect(page.locator("#record")).to_have_text("Record")


def test_a_recording_outlives_a_clip_that_cannot_be_read(visit: Visit) -> None:
    page = visit.page
    page.route(re.compile("shop.flac$"), lambda route: route.abort())
    visit.expected.append("ERR_FAILED")
    page.click("#record")
    expect(page.locator("#clip-message")).to_have_text("Recording.")
    page.get_by_role("button", name="Two voices").click()
    expect(page.locator("#clip-message")).to_have_text("The clip cannot be read. The recording goes on.")
    page.get_by_role("button", name="Stop recording").click()
    expect(page.locator("#clip-name")).to_contain_text("recording.webm")


def test_nothing_is_asked_while_another_clip_is_read(visit: Visit) -> None:
    page = visit.page
    late: list[Route] = []
    page.route(re.compile("shop.flac$"), lambda route: late.append(route))
    choose(page, KITCHEN)
    page.get_by_role("button", name="Two voices").click()
    page.fill("#prompt", "What is said?")
    page.click("#ask")
    expect(page.locator("#clip-message")).to_have_text("The clip is still being read.")
    assert page.locator(".exchange").count() == 0
    late[0].continue_()
    expect(page.locator("#clip-name")).to_contain_text("shop.flac")


def test_another_server_answers_from_now_on(visit: Visit) -> None:
    """One for a single instruction, then one that takes any, with nobody loading the page anew."""
    page = visit.page

    def fixed(route: Route) -> None:
        reply = route.fetch()
        models = reply.json()
        models["data"][0]["merged_prompt"] = "Only this."
        route.fulfill(response=reply, json=models)

    page.route(re.compile("/v1/models$"), fixed)
    expect(page.locator("#prompt")).to_have_value("Only this.")
    expect(page.locator("#presets")).to_be_hidden()
    page.unroute(re.compile("/v1/models$"))
    expect(page.locator("#presets")).to_be_visible()
    expect(page.locator("#prompt")).to_be_editable()


def test_a_browser_that_keeps_nothing(browser: Browser, default_server: ServerProcess) -> None:
    """Where site data is blocked, reading `sessionStorage` throws."""
    with browser.new_context() as context:
        page = context.new_page()
        refuse = "{ get() { throw new DOMException('', 'SecurityError'); } }"
        page.add_init_script(f"Object.defineProperty(window, 'sessionStorage', {refuse});")
        page.goto(default_server.url)
        expect(page.locator("#model-name")).to_have_text(re.compile("wavllm"))


def test_the_microphone_is_refused(browser: Browser, default_server: ServerProcess) -> None:
    refusal = "new DOMException('', 'NotAllowedError')"
    refuse = f"navigator.mediaDevices.getUserMedia = () => Promise.reject({refusal});"
    with browser.new_context() as context:
        page = context.new_page()
        page.add_init_script(refuse)
        page.goto(default_server.url)
        page.click("#record")
        expect(page.locator("#clip-message")).to_contain_text("refused the microphone")
        expect(page.locator("#record")).to_be_enabled()


def test_no_microphone_on_an_insecure_page(browser: Browser, default_server: ServerProcess) -> None:
    port = default_server.ports["http"]
    with visiting(browser, f"http://{INSECURE_HOST}:{port}") as visit:
        visit.page.click("#record")
        expect(visit.page.locator("#clip-message")).to_contain_text("over HTTPS or at localhost")
        choose(visit.page, AUDIO / "short.wav")
        ask(visit.page, "What is said?")
        assert answers(visit.page)[0], "all else works there"
        visit.page.locator("summary", has_text="program").click()
        visit.page.get_by_label("Copy the curl command").click()
        expect(visit.page.get_by_label("Copy the curl command")).to_have_text("Selected")


def test_what_is_no_audio_and_what_is_no_number(visit: Visit, tmp_path: Path) -> None:
    page = visit.page
    visit.refusals |= {400, 415}
    text = tmp_path / "notes.txt"
    text.write_text("These are my notes.\n" * 20)
    choose(page, text)
    expect(page.locator("#clip-message")).to_contain_text("cannot show or play")
    ask(page, "What is said?")
    expect(page.locator(".error-message")).to_contain_text("not audio known here but plain text")
    error = facts(page, ".error-facts")
    assert (error["Status"], error["Code"], error["Parameter"]) == ("415", "unsupported_audio", "audio")
    assert re.fullmatch("[0-9a-f]{32}", error["Request"])

    choose(page, KITCHEN)
    page.get_by_text("Settings", exact=True).click()
    page.fill("#temperature", "hot")
    ask(page, "What is said?")
    assert facts(page, ".error-facts")["Parameter"] == "temperature"
    expect(page.locator("#temperature")).to_have_attribute("aria-invalid", "true")
    page.fill("#temperature", "0.5")
    expect(page.locator("#temperature")).not_to_have_attribute("aria-invalid", "true")
    page.fill("#seed", "7")
    page.fill("#max_tokens", "2")
    ask(page, "What is said?")
    assert answers(page)[0].endswith("Cut at the longest answer allowed.")
    assert facts(page, ".timings")["Answer"] == "2 tokens"


def run(command: list[str], folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A copied command, where the clip lies."""
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=60, env=os.environ | environment
    )


def streamed_text(output: str) -> str:
    """What a streamed answer says, which must be whole."""
    events = [line.removeprefix("data: ") for line in output.splitlines() if line.startswith("data: ")]
    assert events[-1:] == ["[DONE]"], output
    return "".join(json.loads(event)["choices"][0]["delta"].get("content", "") for event in events[:-1])


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_commands_ask_the_same(visit: Visit, tmp_path: Path) -> None:
    """As copied; a line feed, all that a shell and curl take for their own, and a name as odd."""
    page = visit.page
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    choose(page, Path(shutil.copy(KITCHEN, tmp_path / ODD_NAME)))
    page.get_by_text("Settings", exact=True).click()
    page.fill("#max_tokens", "12")
    ask(page, 'It\'s "said"; what?\n@$HOME `ls` é')
    (said,) = answers(page)
    said = said.removesuffix(" Cut at the longest answer allowed.")
    page.locator("summary", has_text="program").click()
    expect(page.locator(".place")).to_have_text(f"Run it where {ODD_NAME} lies.")

    done = run(["bash", "-c", copied(page, "Copy the curl command")], tmp_path)
    assert streamed_text(done.stdout).strip() == said.strip(), done.stderr
    done = run([sys.executable, "-c", copied(page, "Copy the Python program")], tmp_path)
    assert done.stdout.strip() == said.strip(), done.stderr


def copied(page: Page, label: str) -> str:
    """What the button with this label leaves in the clipboard."""
    page.get_by_label(label).click()
    expect(page.get_by_label(label)).to_have_text("Copied")
    return str(page.evaluate("() => navigator.clipboard.readText()"))


def test_an_example_is_played_and_saved(visit: Visit, tmp_path: Path) -> None:
    """For the commands read the clip from a file."""
    page = visit.page
    page.get_by_role("button", name="Two voices").click()
    expect(page.locator("#clip-name")).to_have_text("shop.flac, 4.4 s, 59 KiB")
    page.click("#play")
    expect(page.locator("#play")).to_have_text("Pause")
    page.get_by_role("button", name="One voice").click()
    expect(page.locator("#clip-name")).to_have_text("evening.flac, 3.5 s, 47 KiB")
    expect(page.locator("#play")).to_have_text("Play")
    page.get_by_role("button", name="Two voices").click()
    expect(page.locator("#clip-name")).to_have_text("shop.flac, 4.4 s, 59 KiB")
    with page.expect_download() as download:
        page.get_by_role("link", name="Save this clip").click()
    assert download.value.suggested_filename == "shop.flac"
    download.value.save_as(tmp_path / "shop.flac")
    assert (tmp_path / "shop.flac").read_bytes() == (EXAMPLES / "shop.flac").read_bytes()


def test_the_last_clip_chosen_wins(visit: Visit) -> None:
    """Over an example that comes late, and over a recording."""
    page = visit.page
    late: list[Route] = []
    page.route(re.compile("shop.flac$"), lambda route: late.append(route))
    page.get_by_role("button", name="Two voices").click()
    page.get_by_role("button", name="One voice").click()
    expect(page.locator("#clip-name")).to_contain_text("evening.flac")
    with page.expect_response(re.compile("shop.flac$")):
        late[0].continue_()
    page.wait_for_timeout(1000)
    expect(page.locator("#clip-name")).to_contain_text("evening.flac")
    page.click("#record")
    expect(page.locator("#clip-message")).to_have_text("Recording.")
    page.click("#ask")
    expect(page.locator("#clip-message")).to_have_text("Stop the recording first.")
    assert page.locator(".exchange").count() == 0
    choose(page, KITCHEN)
    expect(page.locator("#record")).to_have_text("Record")
    page.wait_for_timeout(1000)
    expect(page.locator("#clip-name")).to_have_text("kitchen.wav, 2.8 s, 86 KiB")


def test_clips_that_need_not_be_sent(visit: Visit, tmp_path: Path) -> None:
    """None at all, one over the limit, one that has gone before it was read."""
    page = visit.page
    page.click("#ask")
    expect(page.locator("#clip-message")).to_have_text("Choose, drop or record a clip first.")
    large = tmp_path / "large.wav"
    with large.open("wb") as file:
        file.truncate(25 * 2**20 + 1)
    choose(page, large)
    page.click("#ask")
    expect(page.locator("#clip-message")).to_have_text("More than the 25 MiB that this server takes.")
    page.route(re.compile("shop.flac$"), lambda route: route.abort())
    visit.expected.append("ERR_FAILED")
    page.get_by_role("button", name="Two voices").click()
    expect(page.locator("#clip-message")).to_have_text("The clip cannot be read.")
    assert page.locator(".exchange").count() == 0


def test_a_file_that_has_changed_since_it_was_chosen(visit: Visit, tmp_path: Path) -> None:
    clip = Path(shutil.copy(KITCHEN, tmp_path / "kitchen.wav"))
    choose(visit.page, clip)
    clip.write_bytes(b"something else")
    ask(visit.page, "What is said?")
    assert answers(visit.page)[0]
    assert not visit.page.locator(".error:visible").count()


def test_text_can_be_dragged_and_files_leave_the_page_where_it_is(visit: Visit) -> None:
    """Whether the page takes a drop for itself."""
    dropped = (
        "kind => { const transfer = new DataTransfer();"
        " if (kind === 'text') transfer.setData('text/plain', 'words');"
        " else transfer.items.add(new File(['x'], 'x.wav'));"
        " const event = new DragEvent('drop', {dataTransfer: transfer, bubbles: true, cancelable: true});"
        " document.querySelector('#prompt').dispatchEvent(event); return event.defaultPrevented; }"
    )
    assert visit.page.evaluate(dropped, "text") is False
    assert visit.page.evaluate(dropped, "file") is True


def test_what_is_to_be_read_out_has_its_place_from_the_start(visit: Visit) -> None:
    """A live region that appears together with its text is silent in some screen readers."""
    hidden = (
        "() => [...document.querySelectorAll('main [role=status], [aria-live]')]"
        ".filter(place => !place.checkVisibility()).map(place => place.id)"
    )
    assert visit.page.evaluate(hidden) == []


def test_a_dropped_file(visit: Visit) -> None:
    make = (
        "data => { const transfer = new DataTransfer();"
        " const bytes = Uint8Array.from(atob(data), letter => letter.charCodeAt(0));"
        " transfer.items.add(new File([bytes], 'dropped.wav')); return transfer; }"
    )
    data = base64.b64encode(KITCHEN.read_bytes()).decode()
    transfer = visit.page.evaluate_handle(make, data)
    visit.page.dispatch_event("h1", "drop", {"dataTransfer": transfer})
    expect(visit.page.locator("#clip-name")).to_contain_text("dropped.wav, 2.8 s")


def test_the_keyboard_alone_on_a_phone(browser: Browser, default_server: ServerProcess) -> None:
    with visiting(browser, default_server.url, viewport=PHONE, color_scheme="dark") as visit:
        page = visit.page
        page.keyboard.press("Tab")
        expect(page.get_by_text("Skip to the question")).to_be_focused()
        page.get_by_role("button", name="One voice").focus()
        page.keyboard.press("Enter")
        expect(page.locator("#clip-name")).to_have_text("evening.flac, 3.5 s, 47 KiB")
        page.get_by_role("button", name="Transcribe").focus()
        page.keyboard.press("Enter")
        page.focus("#prompt")
        page.keyboard.press("Control+Enter")
        expect(page.locator(".timings")).to_be_visible(timeout=ANSWER_MS)
        page.locator("summary", has_text="program").focus()
        page.keyboard.press("Enter")
        expect(page.locator("[data-command=curl]")).to_be_visible()
        for width in (PHONE["width"], 320):
            page.set_viewport_size({**PHONE, "width": width})
            assert page.evaluate("() => document.documentElement.scrollWidth") == width


def test_stop_cancels_and_keep_alives_are_no_text(browser: Browser) -> None:
    with process(FAKE_STEP_S="2", WAVLLM_SSE_KEEPALIVE="0.5") as server:
        url = server.http()
        with visiting(browser, url) as visit:
            page = visit.page
            choose(page, KITCHEN)
            page.click("#ask")
            expect(page.locator(".answer")).to_have_text("Hello")
            page.get_by_role("button", name="Ask again").click()
            expect(page.locator("#status")).to_contain_text("One at a time")
            page.click("#stop")
            expect(page.locator(".answer")).to_have_text(re.compile("^Hello.*Stopped.$"))
            expect(page.locator("#ask")).to_be_focused()
            server.wait_for("request", route="/v1/speech/chat", status=499)
            page.click("#ask")
            page.keyboard.press("Escape")
            expect(page.locator("#status")).to_have_text("Stopped.")
            page.click("#ask")
            expect(page.locator(".answer").first).to_have_text(FAKE_TEXT, timeout=ANSWER_MS)


def test_the_key_is_asked_for_and_kept_in_the_tab(browser: Browser) -> None:
    with process(WAVLLM_API_KEY="open-sesame") as server:
        url = server.http()
        with visiting(browser, url) as visit:
            page = visit.page
            visit.refusals |= {401}
            expect(page.get_by_label("Key", exact=True)).to_be_focused()
            page.keyboard.type("wrong")
            page.keyboard.press("Enter")
            expect(page.locator("#key-message")).to_have_text("The server does not know this key.")
            page.fill("#key", "open-sesame")
            page.keyboard.press("Enter")
            expect(page.locator("#model-name")).to_have_text("fake-wavllm")
            page.reload()
            expect(page.locator("#model-name")).to_have_text("fake-wavllm")
            choose(page, KITCHEN)
            ask(page, "What is said?")
            assert answers(page) == [FAKE_TEXT]
            assert "open-sesame" not in page.content()
            page.locator("summary", has_text="program").click()
            expect(page.locator(".place")).to_contain_text("WAVLLM_KEY holds the key")
            for shell, name in ((["bash"], "curl"), ([sys.executable], "python")):
                command = [*shell, "-c", page.locator(f"[data-command={name}]").inner_text()]
                done = run(command, AUDIO, WAVLLM_KEY="open-sesame")
                assert done.returncode == 0, done.stderr
                said = done.stdout.strip() if name == "python" else streamed_text(done.stdout)
                assert said == FAKE_TEXT
            page.get_by_role("button", name="Forget it").click()
            expect(page.locator("#key-form")).to_be_visible()
            assert page.evaluate("() => sessionStorage.length + localStorage.length") == 0


NOT_UNDERSTOOD = "The server sent an answer that this page does not understand."
EVENT = 'data: {"choices":[{"delta":{"content":"Half"},"finish_reason":null}]}\n\n'
FAILURE = (
    'data: {"error":{"message":"<b>The engine died.</b>","type":"server_error","param":null,'
    '"code":"engine_error"}}\n\n'
)


@pytest.mark.parametrize(
    ("end", "message", "code"),
    [
        (FAILURE, "<b>The engine died.</b>", "engine_error"),
        ("", "The connection ended before the answer did.", "network"),
        ("data: <html>\n\n", NOT_UNDERSTOOD, "not_understood"),
    ],
)
def test_errors_after_the_first_word(visit: Visit, end: str, message: str, code: str) -> None:
    def answer(route: Route) -> None:
        head = {"content-type": "text/event-stream", "x-request-id": "from-a-test"}
        route.fulfill(status=200, headers=head, body=f": keep-alive\r\n\r\n{EVENT}: keep-alive\n\n{end}")

    page = visit.page
    page.route(CHAT_URL, answer)
    choose(page, KITCHEN)
    ask(page, "What is said?")
    assert answers(page) == ["Half"]
    expect(page.locator(".error-message")).to_have_text(message)
    assert facts(page, ".error-facts") == {"Code": code, "Request": "from-a-test"}
