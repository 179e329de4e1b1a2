#!/usr/bin/env python3
"""The web pages in a headless Chromium, driven through chromedriver's own protocol.

Usage: web_page_test.py NIBBLE [SCREENSHOT_DIR]. Exit code 77 (skipped) without chromedriver.
"""
import base64
import json
import pathlib
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

from served import Served, run_all, wait_until

TOOLS = json.dumps([{"type": "function", "function": {
    "name": "get_weather", "description": "Current weather of a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}},
                   "required": ["city"]}}}])
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # W3C WebDriver, 12.


class Browser:
    def __init__(self):
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        self.driver = subprocess.Popen(["chromedriver", f"--port={port}"],
                                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.base = f"http://127.0.0.1:{port}"
        wait_until("chromedriver", self.is_up, 30)
        arguments = ["--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1280,860",
                     "--disable-dev-shm-usage"]
        made = self.call("POST", "/session", {"capabilities": {"alwaysMatch": {
            "goog:loggingPrefs": {"browser": "ALL"},
            "goog:chromeOptions": {"args": arguments}}}})
        self.base += "/session/" + made["sessionId"]

    def is_up(self):
        try:
            return self.call("GET", "/status")["ready"]
        except (OSError, KeyError):
            return False

    def call(self, method, path, body=None):
        request = urllib.request.Request(self.base + path, method=method,
                                         data=None if body is None else json.dumps(body).encode(),
                                         headers={"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=120) as response:
                return json.load(response)["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(error.read().decode()) from error

    def open(self, url):
        self.call("POST", "/url", {"url": url})

    def run(self, script):
        return self.call("POST", "/execute/sync", {"script": script, "args": []})

    def text(self, selector):
        return self.run(f"return [...document.querySelectorAll({json.dumps(selector)})]"
                        ".map(e => e.textContent).join('|')")

    def element(self, selector):
        found = self.call("POST", "/element", {"using": "css selector", "value": selector})
        return found[ELEMENT]

    def click(self, selector):
        self.call("POST", f"/element/{self.element(selector)}/click", {})

    def type(self, selector, text):
        self.call("POST", f"/element/{self.element(selector)}/value", {"text": text})

    def set(self, selector, value):
        self.run(f"const e = document.querySelector({json.dumps(selector)});"
                 f"e.value = {json.dumps(value)}; e.dispatchEvent(new Event('input'));")

    def complaints(self):
        lines = self.call("POST", "/se/log", {"type": "browser"})
        return [line["message"] for line in lines if line["level"] == "SEVERE"]

    def screenshot(self, folder, name):
        if folder:
            picture = base64.b64decode(self.call("GET", "/screenshot"))
            pathlib.Path(folder, name + ".png").write_bytes(picture)

    def close(self):
        try:
            self.call("DELETE", "")
        finally:
            self.driver.terminate()
            self.driver.wait()


def settled(browser):
    return browser.text("#send") == "Send"


def an_answer_streams_in(browser, server, folder):
    browser.open(server.url + "/")
    browser.screenshot(folder, "empty")
    # The page, while an answer comes: its text must be seen to grow.
    browser.run("window.sizes = []; new MutationObserver(() => sizes.push("
                "document.querySelector('.turn.assistant')?.textContent.length ?? 0))"
                ".observe(document.getElementById('messages'), "
                "{subtree: true, childList: true, characterData: true});")
    browser.type("#prompt", "What is the capital of France?\ue007")
    wait_until("an answer", lambda: browser.text(".turn.assistant .meta") != "", 60)
    assert browser.text(".turn.user") == "What is the capital of France?"
    sizes = browser.run("return [...new Set(sizes)]")
    assert len(sizes) > 3, sizes
    assert "first token" in browser.text(".turn.assistant .meta")
    browser.screenshot(folder, "answer")


def reasoning_is_folded(browser, server, folder):
    browser.open(server.url + "/")
    browser.set("#thinking", "true")
    browser.type("#prompt", "How many legs do two cats have?\ue007")
    wait_until("an answer", lambda: browser.text(".turn.assistant .meta") != "", 60)
    assert browser.run("return document.querySelectorAll('details.reasoning').length") == 1
    assert browser.run("return document.querySelector('details.reasoning').open") is False
    assert len(browser.text("details.reasoning div")) > 5
    browser.click("details.reasoning summary")
    assert browser.run("return document.querySelector('details.reasoning').open") is True
    browser.screenshot(folder, "reasoning")
    browser.set("#thinking", "")


def a_tool_call_is_shown_and_answered(browser, server, folder):
    browser.open(server.url + "/")
    browser.set("#preset", "greedy")
    browser.set("#thinking", "false")
    browser.set("#tools", TOOLS)
    browser.type("#prompt", "What is the weather in Paris?\ue007")
    wait_until("an answer", lambda: browser.text(".turn.assistant .meta") != "", 60)
    assert "get_weather" in browser.text(".tool .name"), browser.text(".turn.assistant")
    browser.screenshot(folder, "tool")
    browser.type(".tool input", "18 degrees, sunny\ue007")
    wait_until("an answer", lambda: settled(browser) and browser.run(
        "return document.querySelectorAll('.turn.assistant').length") == 2, 60)
    assert browser.text(".error") == "", browser.text(".error")
    browser.set("#tools", "")


def stop_ends_an_answer_and_frees_its_place(browser, server, folder):
    browser.open(server.url + "/")
    browser.run("const send = fetch; window.fetch = (url, options) => {"
                "if (options?.body) options.body = JSON.stringify({...JSON.parse(options.body),"
                "ignore_eos: true, max_tokens: 3000}); return send(url, options); };")
    browser.type("#prompt", "Count\ue007")
    wait_until("it runs", lambda: server.metric("vllm:num_requests_running") == 1)
    browser.click("#send")
    wait_until("it ends", lambda: server.metric("vllm:num_requests_running") == 0, 2)
    wait_until("the page says so", lambda: "stopped" in browser.text(".meta"))


def dark_and_light_differ_and_are_kept(browser, server, folder):
    browser.open(server.url + "/")
    ground = "return getComputedStyle(document.body).backgroundColor"
    first = browser.run(ground)
    browser.click("#theme")
    second = browser.run(ground)
    assert first != second, first
    browser.open(server.url + "/status")
    assert browser.run(ground) == second
    browser.open(server.url + "/")
    assert browser.run(ground) == second
    browser.type("#prompt", "Write `code` and a list\ue007")
    wait_until("an answer", lambda: browser.text(".turn.assistant .meta") != "", 60)
    browser.screenshot(folder, "dark")
    browser.click("#theme")


def the_status_page_shows_numbers(browser, server, folder):
    browser.open(server.url + "/status")
    wait_until("numbers", lambda: "generated tokens" in browser.text("#totals"))
    assert "ready" in browser.text(".tile"), browser.text(".tile")
    time.sleep(2.5)
    browser.screenshot(folder, "status")


def a_key_is_asked_for_and_taken(browser, server, folder):
    with Served(sys.argv[1], "--api-key", "s3cret") as guarded:
        browser.open(guarded.url + "/")
        browser.type("#prompt", "Hello\ue007")
        wait_until("a refusal", lambda: "API key" in browser.text(".error"))
        browser.complaints()  # the 401s are on purpose
        browser.type("#key", "s3cret\t")
        browser.type("#prompt", "Hello\ue007")
        wait_until("an answer", lambda: "first token" in browser.text(".meta"), 60)
    browser.open(server.url + "/")


def nothing_broke_the_policy(browser, server, folder):
    assert not [line for line in browser.complaints() if "401" not in line], browser.complaints()


def main():
    if not shutil.which("chromedriver"):
        print("SKIPPED: no chromedriver; install the packages chromium and chromium-driver")
        return 77
    folder = sys.argv[2] if len(sys.argv) > 2 else None
    with Served(sys.argv[1], "--max-model-len", "4096") as server:
        browser = Browser()
        try:
            return run_all([an_answer_streams_in, reasoning_is_folded,
                            a_tool_call_is_shown_and_answered,
                            stop_ends_an_answer_and_frees_its_place,
                            dark_and_light_differ_and_are_kept, the_status_page_shows_numbers,
                            nothing_broke_the_policy, a_key_is_asked_for_and_taken],
                           browser, server, folder)
        finally:
            browser.close()


if __name__ == "__main__":
    sys.exit(main())
